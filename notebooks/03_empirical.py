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
# # Real networks
#
# This notebook trains networks and compares them with the predictions of `theory` and the simulations of `simulate`. Every step is
# measured: the norm $\rho$ of the scale-invariant weights, the gradient norm $\tilde g=\rho\,\|\nabla f\|$ and the angle of the step. All
# data are embedded, and a processor is enough. Background: `docs/training.md` and `docs/mathematics.md` §2 to §6.

# %%
import os
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits

import empirical
import simulate
import theory

FAST = bool(os.environ.get("BNWD_FAST"))  # a short version for tests
plt.rcParams.update(
    {"figure.figsize": (9, 3.4), "figure.constrained_layout.use": True, "axes.grid": True, "grid.alpha": 0.3}
)
torch.set_num_threads(1)
LR, WD = 0.5, 0.01
STEPS = 2000 if FAST else 10_000
OWN_WD = 0.006  # for your own network in section 5

# %% [markdown]
# ## 1. Train
# We train a ConvNet with batch normalization on 8×8 digits. All its trained weights are scale-invariant. The result is an
# `xarray.Dataset` with one row per step.

# %%
config = empirical.RunConfig(lr=LR, wd=WD, model="convnet", steps=STEPS, evaluate_every=STEPS // 10)
run = empirical.train(config, progress=False)
run

# %% [markdown]
# Weight decay shrinks the norm, the effective learning rate $\eta/\rho^2$ grows, training destabilizes (green), and the norm rises. The
# dotted line is the equilibrium predicted from the mean square of the gradient norm. The run oscillates around it and does not settle.

# %%
equilibrium = theory.equilibrium_norm(LR, WD, float((run.grad_norm**2).mean() ** 0.5))
part = run.isel(step=slice(-1500, None))
fig, axes = plt.subplots(3, 1, figsize=(9, 6), sharex=True)
simulate.plots.plot_trajectory(
    part,
    axes,
    simulated=simulate.replay(part),
    periods=simulate.find_periods(part, discard=0),
    levels={"norm": equilibrium},
)
plt.show()

# %%
classification = simulate.classify(run)
print(f"{classification}: {classification.reason}")

# %% [markdown]
# ## 2. Replay: one law for the norm
# `replay` applies the one-step law $\rho_+^2=(1-\eta\lambda)^2\rho^2+\eta^2\tilde g^2/\rho^2$ to the measured gradient norms alone. It is the
# dashed line in the figure, which coincides with the measured norm. The largest relative deviation over the whole run is:

# %%
float(abs(simulate.replay(run).norm / run.norm - 1).max())

# %% [markdown]
# With PyTorch's default $\varepsilon=10^{-5}$ in its normalization, a network follows the law only if its norm is not small. Here the norm
# starts at 0.1:

# %%
spoiled = empirical.train(
    empirical.RunConfig(lr=1e-3, wd=0.01, width=8, init_norm=0.1, norm_eps=1e-5, steps=500), progress=False
)
float(abs(simulate.replay(spoiled).norm / spoiled.norm - 1).max())

# %% [markdown]
# Decay and growth of $\ln\rho$ balance exactly, up to the change between the first and the last step. `theory.balance` computes the
# parts: the decay, and the growth from the rotation of the weights.

# %%
theory.balance(float(run.norm[0]), float(run.final_norm), run.rotation.values, LR, WD)

# %% [markdown]
# ## 3. Equilibrium or periods
# A network with 8 hidden units cannot fit all digits. Its gradients stay noisy, and its norm settles at the predicted equilibrium. A
# network with 96 units can fit them, and is periodic. The norm is predicted from the gradients of *another* seed.

# %%
widths = {8: 0.02, 96: 0.004}
rows = []
for width, wd in widths.items():
    first, second = (
        empirical.train(
            empirical.RunConfig(lr=LR, wd=wd, width=width, steps=round((20 if FAST else 48) / wd), seed=seed),
            progress=False,
        )
        for seed in (1, 2)
    )
    settled = first.isel(step=slice(first.sizes["step"] // 2, None))
    gradient = float((second.grad_norm[second.sizes["step"] // 2 :] ** 2).mean() ** 0.5)
    classification = simulate.classify(first)
    rows.append(
        {
            "units": width,
            "norm, predicted": theory.equilibrium_norm(LR, wd, gradient),
            "norm, measured": float(settled.norm.mean()),
            "rotation, predicted": theory.equilibrium_rotation(LR, wd),
            "rotation, median": float(settled.rotation.median()),
            "spread of ln ρ": classification.log_norm_sd,
            "verdict": classification.verdict,
        }
    )
pd.DataFrame(rows).set_index("units").round(4)

# %% [markdown]
# The predicted norm fits both networks. Only the rotation separates them: a periodic network rotates little in most steps and far in
# a few.
#
# ## 4. The symmetry
# If $\eta$ and $\rho_0^2$ are multiplied by $c$ and $\lambda$ is divided by $c$, the directions of the weights stay the same, and so do the
# losses. `theory.equivalent_run` returns these settings.

# %%
start = 3.0
other = theory.equivalent_run(LR, WD, start, lr_to=LR / 5)
curves = [
    empirical.train(
        empirical.RunConfig(lr=lr, wd=wd, init_norm=norm, width=32, dtype="float64", steps=400), progress=False
    ).loss.values
    for lr, wd, norm in ((LR, WD, start), other)
]
float(np.abs(curves[0] / curves[1] - 1).max())

# %% [markdown]
# ## 5. Predict your own network
# Take your own network and data, calibrate a period model at two values of $\eta\lambda$, and predict the behaviour at others.

# %%
digits = load_digits()
images, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
torch.manual_seed(0)
linear, norm = partial(torch.nn.Linear, bias=False), partial(torch.nn.BatchNorm1d, eps=1e-12, affine=False)
hidden = [linear(64, 128), norm(128), torch.nn.ReLU(), linear(128, 128), norm(128), torch.nn.ReLU()]
module = torch.nn.Sequential(*hidden, linear(128, 10))
module[-1].weight.requires_grad_(False).mul_(10 / module[-1].weight.norm())  # its norm must not decay
model = empirical.calibrate(module, images, labels, periods=10 if FAST else 60, seeds=1, progress=False)
prediction = simulate.period(LR, OWN_WD, model=model)
print(prediction)

# %% [markdown]
# Training at this setting gives:

# %%
trained = empirical.train(
    empirical.RunConfig(lr=LR, wd=OWN_WD, steps=3000 if FAST else 30_000),
    model=module,
    data=(images, labels),
    progress=False,
)
measured, interval = simulate.classify(trained), prediction.period_interval
pd.DataFrame(
    {
        "verdict": [prediction.verdict, measured.verdict],
        "period, steps": [prediction.period, measured.periods.mean],
        "± standard error, or half of the 90 % interval": [
            (interval.upper - interval.lower) / 2 if interval else np.nan,
            measured.periods.stderr,
        ],
        "spread of ln ρ": [prediction.log_norm_sd, measured.log_norm_sd],
    },
    index=["predicted", "measured"],
).round(3)

# %%
fig, ax = plt.subplots(figsize=(9, 2.6))
simulate.plots.plot_trajectory(trained.isel(step=slice(-3000, None)), ax, variables=["norm"])
plt.show()

# %% [markdown]
# For held-out networks with a clear period, the mean error of the predicted period is about 7 %. `docs/validation.md` also shows where
# such predictions fail.
#
# ## 6. Why it destabilizes
# With full batches the reason is visible. Let $h$ be the largest curvature of the loss on the sphere. Steps overshoot if
# $\tilde\eta h>2$. During the decay phase, from a peak of the norm to the next onset, $\tilde\eta h$ grows to about 2.

# %%
import dataclasses
import tempfile
from pathlib import Path

from empirical.studies.tables import FULL_BATCH, STABILITY_LIMIT, measure_edge

if FAST:
    FULL_BATCH = dataclasses.replace(FULL_BATCH, wd=0.02, width=32, samples=200, steps=1500)
with tempfile.TemporaryDirectory() as folder:
    edge = measure_edge(FULL_BATCH, Path(folder), points=8 if FAST else 40, progress=False)
fig, ax = plt.subplots(figsize=(9, 2.8))
ax.plot(edge.steps, edge.product, "o-", ms=3)
ax.axhline(STABILITY_LIMIT, color="k", ls=":", lw=1)
ax.set(yscale="log", xlabel="step", ylabel="effective lr × curvature")
plt.show()

# %%
edge.median_before_onset  # median over the last tenth of the decay phase

# %% [markdown]
# With mini-batches training destabilizes far below this edge. A destabilization is then a random event, and becomes more likely as the
# effective learning rate grows (`docs/curvature.md`). `04_paper_figures` shows all this in the figures of the paper, and
# `05_your_training` in your own training.
