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
# # Periods without training
#
# Given a learning rate $\eta$ and a weight decay $\lambda$: will training be periodic, and how long is a period? `simulate`
# answers in milliseconds, from a model that was calibrated on short runs of a network. The text to it is
# `docs/mathematics.md` §5. Symbols as in `01_theory`.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import simulate
import theory

FAST = bool(os.environ.get("BNWD_FAST"))  # a short version for tests
plt.rcParams.update(
    {"figure.figsize": (9, 3.4), "figure.constrained_layout.use": True, "axes.grid": True, "grid.alpha": 0.3}
)
LR = 0.5
PERIODS = 60 if FAST else 1000

# %% [markdown]
# ## 1. One question, one answer
# The reference model is that of this project's ConvNet with 8-16-16 channels on 8×8 digits, mini-batches of 64, plain SGD.

# %%
period = simulate.period(LR, 0.004, periods=PERIODS)
period

# %% [markdown]
# `mean` is the length of a period in steps, `norm_min` and `norm_max` the norm where it begins and where it peaks,
# `effective_lr_max` the effective learning rate at which training breaks.
#
# Over a range of $\eta\lambda$ there are two predictions from the same probe: the reduced model, which `period` uses, and the
# balance law $T(-\ln(1-\eta\lambda))=J/(1-\varphi)$. The points are the training runs that both were calibrated on. Below them
# both are extrapolations; runs at $\eta\lambda$ = 0.005 and 0.001 that neither had seen gave $T\eta\lambda$ = 0.77 ± 0.02 and
# 0.99 ± 0.05. Another network has other periods: they can fall with $\eta\lambda$ where these rise.

# %%
model = simulate.PeriodModel.reference()
intrinsic = np.geomspace(1 / 3000, 0.01, 7 if FAST else 15)
told = [model.period(LR, k / LR, periods=PERIODS) for k in intrinsic]
fig, axes = plt.subplots(1, 2)
axes[0].plot(intrinsic, [p.mean * k for p, k in zip(told, intrinsic, strict=True)], label="reduced model")
axes[0].plot(intrinsic, model.law.period(LR, intrinsic / LR) * intrinsic, "--", label="balance law")
for segment in model.segments:
    k = segment.intrinsic_lr
    axes[0].errorbar(k, segment.period * k, segment.period_stderr * k, fmt="ko", ms=4, capsize=3)
    axes[1].plot([k, k], np.array([segment.norm_min, segment.norm_max]) * LR**0.5, "ko", ms=4)
axes[0].plot([], [], "ko", ms=4, label="training (calibration)")
axes[0].set(xscale="log", xlabel="ηλ", ylabel="T·ηλ", title="length of a period")
axes[1].plot(intrinsic, [p.norm_max for p in told], label="at the peak")
axes[1].plot(intrinsic, [p.norm_min for p in told], label="where a period begins")
axes[1].set(xscale="log", xlabel="ηλ", ylabel="norm ρ", title=f"norms at its ends, η = {LR}")
axes[0].legend(fontsize=8)
axes[1].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 2. A trajectory
# Norm and loss fall together; the effective learning rate rises until the loss that is left breaks out at random; the norm
# jumps up; a new period begins. Green lines mark where `find_periods` sees a period begin.

# %%
run = simulate.oscillate(LR, 0.004, steps=6000 if FAST else 60_000, seed=1)
part = run.isel(step=slice(0, 6000))
fig, axes = plt.subplots(3, 1, figsize=(9, 6), sharex=True)
simulate.plots.plot_trajectory(part, axes, periods=simulate.find_periods(part))
plt.show()

# %%
fig, axes = plt.subplots(1, 2, figsize=(12, 4.4))
simulate.plots.plot_phase(part, axes[0], periods=simulate.find_periods(part))
simulate.plots.plot_periods(simulate.find_periods(run), axes[1])
plt.show()

# %%
simulate.classify(run)

# %% [markdown]
# It is a trajectory like any other: the one-step law, fed with its gradient norms, gives its norms.

# %%
float(abs(simulate.replay(part).norm / part.norm - 1).max())

# %% [markdown]
# ## 3. The same without any network
# Scale-invariant losses that are small enough to compile show where periods come from. A valley in the plane, trained with all
# of its data: depending on the height of its ridge over its curvature the norm settles at the edge of stability, or it
# falls and breaks out for ever.

# %%
fig, axes = plt.subplots(2, 1, figsize=(9, 4.2), sharex=True)
for ax, ridge in zip(axes, (0.2, 5.0), strict=True):
    landscape = simulate.Ratio2D(1.0, ridge)
    settled = simulate.descend(landscape, 0.1, 0.1, steps=3000, weights=np.array([0.2, 0.1]))
    simulate.plots.plot_trajectory(settled, [ax], variables=["norm"])
    ax.axhline(theory.critical_norm(0.1, landscape.sharpness), color="k", lw=0.8, ls=":")
    ax.set_title(f"ridge {ridge}: {simulate.classify(settled)}; dotted: edge of stability", fontsize=9)
axes[0].set_xlabel("")
plt.show()

# %% [markdown]
# A linear regression on normalized weights, with targets that no weights fit, in mini-batches: noise holds the norm at its equilibrium.

# %%
generator = np.random.default_rng(0)
inputs, targets = generator.normal(size=(256, 20)), generator.normal(size=256)
landscape = simulate.NormalizedRegression(inputs, targets, batch_size=16)
noisy = simulate.descend(landscape, 0.1, 0.05, steps=2000 if FAST else 6000, norm=2.0)
root_mean_square = float(np.sqrt((noisy.grad_norm[400:] ** 2).mean()))
fig, ax = plt.subplots()
simulate.plots.plot_trajectory(
    noisy, [ax], variables=["norm"], levels={"norm": theory.equilibrium_norm(0.1, 0.05, root_mean_square)}
)
ax.set_title(f"mini-batches of noise: {simulate.classify(noisy)}", fontsize=9)
plt.show()

# %% [markdown]
# ## 4. The exact map
# If the gradient norm is given, the norm alone is a map of one variable, and a billion of its steps take seconds. Under constant
# $\tilde g$ it settles; under random $\tilde g$ it stays inside the bounds; under adversarial $\tilde g$ it reaches them.

# %%
bounds = theory.norm_bounds(LR, 0.02, 1.0, 6.0)
fig, axes = plt.subplots(1, 2, sharey=True)
starts = np.array([0.8, 2.0, 8.0])
falls = simulate.norm_map(LR, 0.02, 2.0, norm=starts, steps=400)
flows = simulate.norm_ode(LR, 0.02, 2.0, norm=starts, steps=400)
axes[0].plot(falls.step, falls.norm.T, "C0")
axes[0].plot(flows.step, flows.norm.T, "k:", lw=1)
axes[0].axhline(theory.equilibrium_norm(LR, 0.02, 2.0), color="C1", ls="--", lw=1)
axes[0].set(yscale="log", xlabel="step", ylabel="norm ρ", title="constant g̃; dotted: differential equation")
for gradient, name, color in (
    (simulate.AdversarialGradient(1.0, 6.0, towards="upper"), "against the upper bound", "C3"),
    (simulate.BoundedGradient(1.0, 6.0), "random", "C0"),
    (simulate.AdversarialGradient(1.0, 6.0, towards="lower"), "against the lower bound", "C2"),
):
    walk = simulate.norm_map(LR, 0.02, gradient, norm=4.0, steps=1000, seed=0)
    axes[1].plot(walk.step, walk.norm, color, lw=0.8, label=name)
for bound in bounds:
    axes[1].axhline(bound, color="k", lw=1, ls="--")
axes[1].set(yscale="log", xlabel="step", title="1 ≤ g̃ ≤ 6; dashed: bounds")
axes[1].legend(fontsize=8, loc="upper right")
plt.show()

# %% [markdown]
# ## 5. Phase diagrams
# Each cell is a run of its own, judged by `classify`. Along lines of constant $\eta\lambda$ nothing changes: learning rate and decay act through
# their product alone, once the norm is measured in units of $\sqrt\eta$.

# %%
cells = 5 if FAST else 14
diagrams = (
    simulate.phase_diagram(
        np.geomspace(0.1, 2.0, cells), np.geomspace(0.02, 0.45, cells), model=simulate.Ratio2D(1.0, 0.15)
    ),
    simulate.phase_diagram(
        np.geomspace(0.1, 1.0, 5), np.geomspace(0.0035, 0.01, 5), model=model, relaxations=60 if FAST else 400
    ),
)
fig, axes = plt.subplots(1, 2, figsize=(12, 4.4))
for ax, diagram, name in zip(axes, diagrams, ("a valley in the plane, all data", "the reference ConvNet"), strict=True):
    simulate.plots.plot_phase_diagram(diagram, ax)
    ax.set_title(name)
plt.show()

# %% [markdown]
# ## 6. Your own network
# A model of your network needs a probe: runs with plain SGD and constant learning rate at two values of $\eta\lambda$, the larger one the
# largest you will ask for, the other a fifth of it, with 100 periods or more each. With `empirical.train` that is
#
# ```python
# high = empirical.train(empirical.RunConfig(lr=0.5, wd=0.02, model="convnet", steps=30_000))
# low = empirical.train(empirical.RunConfig(lr=0.5, wd=0.004, model="convnet", steps=60_000))
# mine = simulate.PeriodModel.from_probe([high, low])
# ```
#
# Here two trajectories of the reference model stand in for them, so that the answer is known.

# %%
probe = [simulate.oscillate(LR, wd, steps=round((100 if FAST else 300) / wd), seed=7) for wd in (0.02, 0.004)]
mine = simulate.PeriodModel.from_probe(probe)
pd.DataFrame(
    {
        "ηλ": k,
        "calibrated anew": mine.period(LR, k / LR, periods=PERIODS).mean,
        "known model": simulate.find_periods(simulate.oscillate(LR, k / LR, steps=round(300 / k), seed=8)).mean,
    }
    for k in (0.01, 0.005, 0.002)
).round(3)

# %% [markdown]
# What can go wrong is said: a probe without clear periods ($\varphi>0.9$) or with too few of them is refused, a log that is too coarse
# gives a warning, and so does a question outside the range of $\eta\lambda$ in which such predictions were compared with training.
