# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The figures of the paper, at small scale
#
# Lobacheva et al. (NeurIPS 2021, [arXiv 2106.15739](https://arxiv.org/abs/2106.15739)) trained ConvNets and ResNets on CIFAR, for
# days on GPUs. The same dynamics is seen in small networks on embedded digits, in minutes on a processor. `draw_figures` trains what
# is needed, once, and writes each figure in print quality: PDF and PNG, or SVG, as wide as one column or two. On the command line:
#
# ```
# bnwd figures --out figures                        # runs in figures/runs are used again
# bnwd figures --out large --paper-scale            # the same figures of ConvNets on CIFAR-10, on a GPU
# ```
#
# Below each figure stand its settings, and below them (`full`) those of the same runs at the scale of the paper, which
# `empirical.at_paper_scale` gives. Each run there is 16 times as long at a sixteenth of the decay, so that as many relaxation times
# $1/\eta\lambda$ pass; `empirical.paper_runs` has the runs of the paper itself. Symbols as in `01_theory`.

# %%
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
from IPython.display import Image, Markdown

from empirical.studies.paper_figures.all_figures import all_figures
from empirical.studies.paper_figures.drawing import draw_figures

FAST = bool(os.environ.get("BNWD_FAST"))  # a short version for tests
OUT = tempfile.mkdtemp()  # a folder of your own keeps figures and runs
with ThreadPoolExecutor(1) as one_by_one:  # without it, as many runs side by side as there are processors
    files = draw_figures(OUT, fast=FAST, executor=one_by_one, progress=False)
figures = {figure.name: figure for figure in all_figures(FAST)}
captions = {name: f"{figure.caption} {figure.seen}" for name, figure in figures.items()}


def settings(name):
    """Settings of the runs of a figure, here and at the scale of the paper."""
    here = pd.DataFrame(figures[name].scales())
    full = here[[column for column in here if column.startswith("full ")]]
    parts = {"here": here.drop(columns=full.columns), "full": full.rename(columns=lambda column: column[5:])}
    return pd.concat(parts)


# %% [markdown]
# ## 1. Loss and error
# *The paper*: training with normalization and weight decay does not converge, it destabilizes again and again. *Here*: each time
# loss and errors rise by a factor of ten and more within some steps, and the network learns the digits again.

# %%
Image(files["training-curves"][1], width=510)

# %%
Markdown(captions["training-curves"])

# %%
settings("training-curves")

# %% [markdown]
# ## 2. Norm, effective learning rate, rotation
# *The paper*: between two destabilizations weight decay shrinks the norm, and the effective learning rate grows until steps are too
# large. *Here*: the norm falls along straight lines (exponentially), and jumps up. Periods are the shorter, the larger $\eta\lambda$. Most of
# the time weights turn less than at an equilibrium, and far more in the few steps of a destabilization.

# %%
Image(files["norm"][1], width=1000)

# %%
Markdown(captions["norm"])

# %%
settings("norm")

# %% [markdown]
# ## 3. Phase picture
# *The paper*: a period is a loop in the plane of gradient norm and effective learning rate. *Here* too, clockwise: up on the left,
# over the top when training breaks, down on the right, where single steps lie beyond the line on which growth and decay balance.

# %%
Image(files["phase-picture"][1], width=510)

# %%
Markdown(captions["phase-picture"])

# %%
settings("phase-picture")

# %% [markdown]
# ## 4. Length of the periods
# *The paper*: periods are the shorter, the larger learning rate or weight decay. *Here*: they depend on the product of both alone,
# and shorten a little faster than $1/\eta\lambda$. A model that was calibrated on other runs of this network at two $\eta\lambda$ predicts them.

# %%
Image(files["periods"][1], width=1000)

# %%
Markdown(captions["periods"])

# %%
settings("periods")

# %% [markdown]
# ## 5. Width of the network
# *The paper*: small networks, which cannot learn all samples, reach an equilibrium; large ones are periodic. *Here*: narrow MLPs
# rest, the widest have clear periods, and those between neither.

# %%
Image(files["width"][1], width=1000)

# %%
Markdown(captions["width"])

# %%
settings("width")

# %% [markdown]
# ## 6. Minima of successive periods
# *The paper*: each period ends at another minimum, and ensembles of them are better than one of them. *Here*: successive minima lie
# tens of degrees apart, farther ones farther, and all of them together err no more than one alone on average. With 360 test images one image
# is 0.28 %, so that the figure cannot say how much better.

# %%
Image(files["minima"][1], width=1000)

# %%
Markdown(captions["minima"])

# %%
settings("minima")

# %% [markdown]
# ## 7. Full batches
# *The paper*: noise is not the reason, for full-batch gradient descent is periodic too. *Here*: its loss falls smoothly by orders of
# magnitude, until the norm is so small that a step overshoots. Some rises of the loss are too short to move the norm by a tenth, and are not marked.

# %%
Image(files["full-batch"][1], width=510)

# %%
Markdown(captions["full-batch"])

# %%
settings("full-batch")
