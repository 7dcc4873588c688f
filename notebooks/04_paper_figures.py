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
# Lobacheva et al. (NeurIPS 2021, [arXiv 2106.15739](https://arxiv.org/abs/2106.15739)) trained ConvNets and ResNets on CIFAR for
# days on GPUs. Small networks on embedded digits show the same dynamics within minutes on a processor. `draw_figures` trains the
# runs once and writes each figure in print quality as PDF, PNG or SVG, one or two columns wide. On the command line:
#
# ```
# bnwd figures --out figures                        # reuses the runs in figures/runs
# bnwd figures --out large --paper-scale            # the same figures of ConvNets on CIFAR-10, on a GPU
# ```
#
# Below each figure is a table of its settings. The rows `full` are the same runs at the scale of the paper, from
# `empirical.at_paper_scale`. They are 16 times as long at a sixteenth of the decay, so the number of memories
# $1/\eta\lambda$ is the same. `empirical.paper_runs` returns the runs of the paper itself. Symbols are as in `01_theory`.

# %%
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
from IPython.display import Image, Markdown

from empirical.studies.paper_figures import all_figures, draw_figures

FAST = bool(os.environ.get("BNWD_FAST"))  # a short version for tests
OUT = tempfile.mkdtemp()  # a folder of your own keeps figures and runs
RUNS = os.environ.get("BNWD_RUNS")  # folder of runs to reuse, default OUT/runs
with ThreadPoolExecutor(1) as one_by_one:  # default: one process per processor
    files = draw_figures(OUT, runs=RUNS, fast=FAST, formats=["png"], executor=one_by_one, progress=False)
figures = {figure.name: figure for figure in all_figures(FAST)}
captions = {name: f"{figure.caption} {figure.observation}" for name, figure in figures.items()}


def settings(name):
    """Return the settings of the runs of a figure, here and at the scale of the paper."""
    here = pd.DataFrame(figures[name].scales())
    full = here[[column for column in here if column.startswith("full ")]]
    parts = {"here": here.drop(columns=full.columns), "full": full.rename(columns=lambda column: column[5:])}
    return pd.concat(parts)


# %% [markdown]
# ## 1. Loss and error
# *Paper*: training with normalization and weight decay does not converge, but destabilizes again and again. *Here*: loss and errors
# rise by a factor of ten or more within a few steps, and the network then learns the digits again.

# %%
Image(files["training-curves"][0], width=510)

# %%
Markdown(captions["training-curves"])

# %%
settings("training-curves")

# %% [markdown]
# ## 2. Norm, effective learning rate, rotation
# *Paper*: between destabilizations, weight decay shrinks the norm, and the effective learning rate grows until steps are too
# large. *Here*: the norm decays exponentially (straight lines) and then rises steeply. A larger $\eta\lambda$ shortens the periods. The
# weights rotate less than at equilibrium in most steps, and far more in the few steps of a destabilization.

# %%
Image(files["norm"][0], width=1000)

# %%
Markdown(captions["norm"])

# %%
settings("norm")

# %% [markdown]
# ## 3. Phase picture
# *Paper*: a period is a loop in the plane of gradient norm and effective learning rate. *Here*: the loop is clockwise. It goes up on the
# left, to the right when training destabilizes, and down on the right. There, single steps lie beyond the line where growth and decay
# balance.

# %%
Image(files["phase-picture"][0], width=510)

# %%
Markdown(captions["phase-picture"])

# %%
settings("phase-picture")

# %% [markdown]
# ## 4. Length of the periods
# *Paper*: a larger learning rate or weight decay shortens the periods. *Here*: they depend only on $\eta\lambda$ and decrease slightly
# faster than $1/\eta\lambda$. A model calibrated on other runs of this network, at two values of $\eta\lambda$, predicts them.

# %%
Image(files["periods"][0], width=1000)

# %%
Markdown(captions["periods"])

# %%
settings("periods")

# %% [markdown]
# ## 5. Width of the network
# *Paper*: small networks, which cannot fit all samples, reach an equilibrium, and large ones are periodic. *Here*: narrow MLPs are at
# equilibrium, the widest are periodic, and those in between are neither.

# %%
Image(files["width"][0], width=1000)

# %%
Markdown(captions["width"])

# %%
settings("width")

# %% [markdown]
# ## 6. Minima of successive periods
# *Paper*: each period reaches a different minimum, and an ensemble of minima is better than a single one. *Here*: successive minima are
# tens of degrees apart, and minima more periods apart are farther apart. The ensemble has no larger error than a single minimum on
# average. With 360 test images, one image is 0.28 %, so the figure cannot resolve the improvement.

# %%
Image(files["minima"][0], width=1000)

# %%
Markdown(captions["minima"])

# %%
settings("minima")

# %% [markdown]
# ## 7. Full batches
# *Paper*: noise is not the cause, since full-batch gradient descent is periodic too. *Here*: the loss falls smoothly by orders of
# magnitude, until the norm is so small that a step overshoots. Some rises of the loss are too short to change the norm by a tenth, and
# are not marked.

# %%
Image(files["full-batch"][0], width=510)

# %%
Markdown(captions["full-batch"])

# %%
settings("full-batch")
