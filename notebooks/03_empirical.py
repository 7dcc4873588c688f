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
# What `theory` predicts and `simulate` simulates, held against networks that are trained here, with every step measured: the norm
# $\rho$ of the scale-invariant weights, the gradient norm $\tilde g=\rho\,\|\nabla f\|$, the angle of each step. All data are embedded; a
# processor is enough. The text to it is `docs/training.md` and `docs/mathematics.md` §2 to §6.

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
OWN_WD = 0.006  # of your own network, in part 5

# %% [markdown]
# ## 1. Train
# A ConvNet with batch normalization on 8×8 digits, all of whose trained weights are scale-invariant. The result is an `xarray.Dataset`
# with a row for each step.

# %%
config = empirical.RunConfig(lr=LR, wd=WD, model="convnet", steps=STEPS, evaluate_every=STEPS // 10)
run = empirical.train(config, progress=False)
run

# %% [markdown]
# The norm falls by weight decay, the effective learning rate $\eta/\rho^2$ rises, training destabilizes (green), the norm jumps up. The dotted
# line is the equilibrium that the mean square of the gradient norm predicts. The run swings about it and does not rest there.

# %%
rest = theory.equilibrium_norm(LR, WD, float((run.grad_norm**2).mean() ** 0.5))
part = run.isel(step=slice(-1500, None))
fig, axes = plt.subplots(3, 1, figsize=(9, 6), sharex=True)
simulate.plots.plot_trajectory(
    part, axes, simulated=simulate.replay(part), periods=simulate.find_periods(part, discard=0), levels={"norm": rest}
)
plt.show()

# %%
judged = simulate.classify(run)
print(f"{judged}: {judged.reason}")

# %% [markdown]
# ## 2. Replay: one law for the norm
# Dashed in the picture, and not to be told from the measured norm: `replay` is the one-step law
# $\rho_+^2=(1-\eta\lambda)^2\rho^2+\eta^2\tilde g^2/\rho^2$, fed with nothing but the measured gradient norms. The largest relative deviation over the whole run:

# %%
float(abs(simulate.replay(run).norm / run.norm - 1).max())

# %% [markdown]
# A network whose normalization has PyTorch's default $\varepsilon=10^{-5}$ obeys the law only while its norm is not small. Here it began at 0.1:

# %%
spoiled = empirical.train(
    empirical.RunConfig(lr=1e-3, wd=0.01, width=8, init_norm=0.1, norm_eps=1e-5, steps=500), progress=False
)
float(abs(simulate.replay(spoiled).norm / spoiled.norm - 1).max())

# %% [markdown]
# Decay and growth balance exactly: what decay took from $\ln\rho$ is what the turns of the weights gave, but for the change between the
# two ends. `theory.balance` splits it.

# %%
theory.balance(float(run.norm[0]), float(run.final_norm), run.rotation.values, LR, WD)

# %% [markdown]
# ## 3. Rest, or periods
# A network of 8 hidden units cannot learn all digits: its gradients stay noisy, and its norm comes to rest where theory says. One of 96
# can, and swings. The prediction of the norm takes the gradients of *another* seed.

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
    judged = simulate.classify(first)
    rows.append(
        {
            "units": width,
            "norm, predicted": theory.equilibrium_norm(LR, wd, gradient),
            "norm, measured": float(settled.norm.mean()),
            "rotation, predicted": theory.equilibrium_rotation(LR, wd),
            "rotation, median": float(settled.rotation.median()),
            "spread of ln ρ": judged.log_norm_sd,
            "verdict": judged.verdict,
        }
    )
pd.DataFrame(rows).set_index("units").round(4)

# %% [markdown]
# The norm alone fits both; the rotation tells them apart: a periodic network turns little in most steps, and far in some.
#
# ## 4. The symmetry
# Multiply $\eta$ and $\rho_0^2$ by $c$, divide $\lambda$ by $c$: the directions of the weights, and so the losses, stay the same.
# `theory.equivalent_run` says which run that is.

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
# Ten lines: a network and data of your own, a probe of it at two values of $\eta\lambda$, and what to expect at others.

# %%
digits = load_digits()
images, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
torch.manual_seed(0)
linear, norm = partial(torch.nn.Linear, bias=False), partial(torch.nn.BatchNorm1d, eps=1e-12, affine=False)
hidden = [linear(64, 128), norm(128), torch.nn.ReLU(), linear(128, 128), norm(128), torch.nn.ReLU()]
module = torch.nn.Sequential(*hidden, linear(128, 10))
module[-1].weight.requires_grad_(False).mul_(10 / module[-1].weight.norm())  # its norm must not decay
model = empirical.calibrate(module, images, labels, periods=20 if FAST else 60, seeds=1, progress=False)
expected = model.predict(LR, OWN_WD)
print(expected)

# %% [markdown]
# And so it came, trained there:

# %%
trained = empirical.train(
    empirical.RunConfig(lr=LR, wd=OWN_WD, steps=6000 if FAST else 30_000),
    model=module,
    data=(images, labels),
    progress=False,
)
found = simulate.classify(trained)
pd.DataFrame(
    {
        "verdict": [expected.verdict, found.verdict],
        "period, steps": [expected.period, found.periods.mean],
        "± stderr, or half of 90 %": [
            (expected.interval.upper - expected.interval.lower) / 2 if expected.interval else np.nan,
            found.periods.stderr,
        ],
        "spread of ln ρ": [expected.log_norm_sd, found.log_norm_sd],
    },
    index=["predicted", "measured"],
).round(3)

# %%
fig, ax = plt.subplots(figsize=(9, 2.6))
simulate.plots.plot_trajectory(trained.isel(step=slice(-3000, None)), ax, variables=["norm"])
plt.show()

# %% [markdown]
# Of networks it had not seen such predictions came to a mean error of the period of some 5 % where the period is clear
# (`docs/validation.md`, which also says where they fail).
#
# ## 6. Why it destabilizes
# Under full batches the reason can be seen. With $h$, the largest curvature of the loss on the sphere, steps overshoot where
# $\tilde\eta h>2$. On the way from a peak of the norm down to the next break, it rises to about that.

# %%
import tempfile
from pathlib import Path

from empirical.studies.tables.edge import FULL_BATCH, LIMIT, edge

with tempfile.TemporaryDirectory() as folder:
    found = edge(FULL_BATCH, Path(folder), points=8 if FAST else 40, progress=False)
fig, ax = plt.subplots(figsize=(9, 2.8))
ax.plot(found.steps, found.product, "o-", ms=3)
ax.axhline(LIMIT, color="k", ls=":", lw=1)
ax.set(yscale="log", xlabel="step", ylabel="effective lr × curvature")
plt.show()

# %%
found.before_the_break  # median over the last tenth of the fall

# %% [markdown]
# With mini-batches the break comes far below that edge: it is a random event, the likelier the higher the effective learning rate
# (`docs/curvature.md`). `04_paper_figures` shows all this as the paper does, `05_your_training` in a training of your own.
