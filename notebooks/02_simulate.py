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
# `docs/mathematics.md` §4 to §6. Symbols as in `01_theory`: $\rho$ norm of the scale-invariant weights, $\tilde\eta=\eta/\rho^2$
# effective learning rate, $\tilde g$ gradient norm at weights of norm 1; $T$ is the length of a period in steps.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import simulate
import theory
from simulate.explorer import explore, explorer, plot_explored

FAST = bool(os.environ.get("BNWD_FAST"))  # a short version for tests
plt.rcParams.update(
    {"figure.figsize": (9, 3.4), "figure.constrained_layout.use": True, "axes.grid": True, "grid.alpha": 0.3}
)
LR = 0.5  # used wherever just ηλ matters
PERIODS = 60 if FAST else 1000

# %% [markdown]
# ## 1. One question, one answer
# The reference model is that of this project's ConvNet with 8-16-16 channels on 8×8 digits, mini-batches of 64, plain SGD.

# %%
pd.Series(vars(simulate.period(LR, 0.004, periods=PERIODS)))

# %% [markdown]
# `mean` is the length of a period in steps, `trough_norm` and `peak_norm` the norm where it begins and where it peaks,
# `effective_lr_max` the effective learning rate at which training breaks. `stderr` knows only how many periods were simulated,
# not how good the model is.
#
# Two predictions come from one probe: the reduced model, which `period` uses, and the balance law
# $T(-\ln(1-\eta\lambda))=J/(1-\varphi)$ with $J$ the rise of $\ln\rho$ in a break and $\varphi$ the share of growth outside of breaks. The
# points are the training runs that both were calibrated on, two seeds at each of two $\eta\lambda$. Below $\eta\lambda$ = 0.002 both are
# extrapolations. Runs that neither had seen gave $T\eta\lambda$ = 0.77 ± 0.02 at $\eta\lambda$ = 0.005 and 0.99 ± 0.05 at 0.001, where the
# reduced model is too long. Another network has other periods: it needs a probe of its own, as in part 6.

# %%
model = simulate.PeriodModel.reference()
intrinsic = np.geomspace(*model.calibrated_range, 7 if FAST else 15)
told = [model.period(LR, k / LR, periods=PERIODS) for k in intrinsic]
fig, axes = plt.subplots(1, 2)
axes[0].plot(intrinsic, [p.mean * k for p, k in zip(told, intrinsic, strict=True)], label="reduced model")
axes[0].plot(intrinsic, model.law.period(LR, intrinsic / LR) * intrinsic, "--", label="balance law")
for segment in model.calibration_runs:
    k = segment.intrinsic_lr
    axes[0].errorbar(k, segment.period * k, segment.period_stderr * k, fmt="ko", ms=4, capsize=3)
    axes[1].plot([k, k], np.array([segment.trough_norm, segment.peak_norm]) * LR**0.5, "ko", ms=4)
axes[0].plot([], [], "ko", ms=4, label="training (calibration)")
axes[0].set(xscale="log", xlabel="ηλ", ylabel="T·ηλ", title="Length of a period")
axes[1].plot(intrinsic, [p.peak_norm for p in told], label="at the peak")
axes[1].plot(intrinsic, [p.trough_norm for p in told], label="where a period begins")
axes[1].set(xscale="log", xlabel="ηλ", ylabel="norm ρ", title=f"Norms at its ends, η = {LR}")
axes[0].legend(fontsize=8)
axes[1].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 2. A trajectory
# Norm and loss fall together; the effective learning rate rises until the loss that is left breaks out at random; the norm
# jumps up; a new period begins. Green lines mark where `find_periods` sees a period begin.

# %%
run = simulate.oscillate(LR, 0.004, steps=8000 if FAST else 300_000, seed=1)
part = run.isel(step=slice(0, 6000))
fig, axes = plt.subplots(3, 1, figsize=(9, 6), sharex=True)
simulate.plots.plot_trajectory(part, axes, periods=simulate.find_periods(part, discard=0))
plt.show()

# %% [markdown]
# Left of the dotted line decay wins and the norm falls, upwards in this picture; right of it growth wins, in a few large steps. The
# breaks are random, so that the lengths of the periods spread widely.

# %%
fig, axes = plt.subplots(1, 2, figsize=(12, 4.4))
simulate.plots.plot_phase(part, axes[0], periods=simulate.find_periods(part, discard=0))
simulate.plots.plot_periods(simulate.find_periods(run), axes[1])
plt.show()

# %%
judged = simulate.classify(run)
print(f"{judged}: {judged.reason}")

# %% [markdown]
# At equilibrium the rotation (`rotation_ratio`, the median angle per step over its predicted value) would be near 1, and the spread
# of $\ln\rho$ (`log_norm_sd`) small. `oscillate` is the reduced model as it is. `period` multiplies its length by what the probe says it is off, which is why
# part 1 gave fewer steps than the histogram:

# %%
model.period_correction(LR * 0.004)

# %% [markdown]
# It is a trajectory like any other: the one-step law of the norm, fed with its gradient norms, gives its norms up to rounding.

# %%
float(abs(simulate.replay(part).norm / part.norm - 1).max())

# %% [markdown]
# ## 3. The same without any network
# Scale-invariant losses that are small enough to compile show where periods come from. A valley in the plane, trained on its full
# gradient: with a low ridge beside it the norm settles at the edge of stability, where steps just overshoot (dotted). With a high
# ridge the loss falls so far that the overshoots need long to grow back, while decay goes on: the norm falls far below the edge,
# and breaks out, for ever.

# %%
fig, axes = plt.subplots(2, 2, figsize=(9, 4.2), sharex=True)
for column, ridge in zip(axes.T, (0.2, 5.0), strict=True):
    landscape = simulate.Ratio2D(sharpness=1.0, highest=ridge)
    trained = simulate.descend(landscape, 0.1, 0.1, steps=2500, weights=np.array([0.2, 0.1]))
    simulate.plots.plot_trajectory(trained, column, variables=["norm", "loss"])
    column[0].axhline(theory.critical_norm(0.1, landscape.sharpness), color="k", lw=1, ls=":")
    column[0].set_title(f"ridge of height {ridge:g}: {simulate.classify(trained)}")
    column[1].set_ylabel("loss")
plt.show()

# %% [markdown]
# Noise of mini-batches does the rest. In a linear regression on normalized weights it never ends if no weights fit the targets, and
# holds the norm at the equilibrium of its $\tilde g$ (dotted). If weights fit all targets, it fades with the loss, and there are periods
# about that line, on which the norm never rests, as in a network that learns all its data.

# %%
generator = np.random.default_rng(0)
inputs, teacher = generator.normal(size=(256, 20)), generator.normal(size=20)
fig, axes = plt.subplots(1, 2)
for ax, targets, name in (
    (axes[0], generator.normal(size=256), "no weights fit"),
    (axes[1], inputs @ teacher / np.linalg.norm(teacher), "weights fit"),
):
    landscape = simulate.NormalizedRegression(inputs, targets, batch_size=16)
    noisy = simulate.descend(landscape, 0.1, 0.05, steps=3000, norm=0.8)
    size = float(np.sqrt((noisy.grad_norm[400:] ** 2).mean()))
    simulate.plots.plot_trajectory(noisy, [ax], variables=["norm"])
    ax.axhline(theory.equilibrium_norm(0.1, 0.05, size), color="k", lw=1, ls=":")
    ax.set_title(f"{name}: {simulate.classify(noisy)}")
plt.show()

# %% [markdown]
# ## 4. The exact map
# If the gradient norm is given, the norm alone is a map of one variable, cheap enough for millions of steps. Under constant
# $\tilde g$ it comes to rest at `theory.equilibrium_norm`; under any other between two bounds it ends up inside `theory.norm_bounds`, which
# an adversary reaches and chance, here, does not. In continuous time (`norm_ode`) it is the same but for an error of order $\eta\lambda$.

# %%
fig, axes = plt.subplots(1, 3, figsize=(12, 3.6))
fig.get_layout_engine().set(w_pad=0.1)
falls = simulate.norm_map(LR, 0.02, 2.0, norm=np.array([0.8, 2.0, 8.0]), steps=300)
axes[0].plot(falls.step, falls.norm.T, "C0")
axes[0].axhline(theory.equilibrium_norm(LR, 0.02, 2.0), color="k", ls="--", lw=1)
axes[0].set(xlabel="step", ylabel="norm ρ", title="g̃ = 2; dashed: equilibrium")
for gradient, name, color in (
    (simulate.AdversarialGradient(1.0, 6.0, towards="upper"), "adversary, up", "C3"),
    (simulate.BoundedGradient(1.0, 6.0), "random", "C0"),
    (simulate.AdversarialGradient(1.0, 6.0, towards="lower"), "adversary, down", "C2"),
):
    walk = simulate.norm_map(LR, 0.02, gradient, norm=4.0, steps=600, seed=0)
    axes[1].plot(walk.step, walk.norm, color, lw=1, label=name)
for bound in theory.norm_bounds(LR, 0.02, 1.0, 6.0):
    axes[1].axhline(bound, color="k", lw=1, ls="--")
axes[1].set(xlabel="step", ylabel="norm ρ", ylim=(1.5, 5.0), title="1 ≤ g̃ ≤ 6; dashed: bounds")
axes[1].legend(fontsize=8, loc="center right", bbox_to_anchor=(1.0, 0.35))
sizes = np.geomspace(0.02, 0.0002, 5)
for ratio, color in ((0.5, "C0"), (2.0, "C1")):
    errors = []
    for k in sizes:
        begin, steps = ratio * theory.equilibrium_norm(LR, k / LR, 2.0), round(1 / k)
        steady = simulate.norm_map(LR, k / LR, 2.0, norm=begin, steps=steps)
        flow = simulate.norm_ode(LR, k / LR, 2.0, norm=begin, steps=steps)
        errors.append(float(abs(flow.norm / steady.norm - 1).max()))
    axes[2].loglog(sizes, errors, "o-", color=color, ms=4, label=f"from {ratio:g} × equilibrium")
axes[2].plot(sizes, sizes, "k:", lw=1, label="ηλ")
axes[2].set(xlabel="ηλ", ylabel="largest relative error of ρ", title="Differential equation against map")
axes[2].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 5. Phase diagrams
# Each cell is a run of its own, judged by `classify`; numbers are $T\eta\lambda$. Along lines of constant $\eta\lambda$ (dashed) nothing
# changes: learning rate and decay act through their product alone, once the norm is measured in units of $\sqrt\eta$. The valley swings
# at large $\eta\lambda$ only, the model of the network all over its range.

# %%
octave = np.arange(0, 4.1, 1.0 if FAST else 0.5)
valley = simulate.phase_diagram(0.125 * 2.0**octave, 0.02 * 2.0**octave, model=simulate.Ratio2D(1.0, 0.1))
halves = 2.0 ** np.arange(0, 2.6, 0.5)
network = simulate.phase_diagram(0.2 * halves, 0.002 * halves[:-1], model=model, relaxations=60 if FAST else 1000)
fig, axes = plt.subplots(1, 2, figsize=(12, 4.4))
for ax, diagram, name in ((axes[0], valley, "a valley in the plane"), (axes[1], network, "the reference ConvNet")):
    simulate.plots.plot_phase_diagram(diagram, ax)
    ax.set_title(name)
    ax.grid(False)
    for axis, values in ((ax.xaxis, diagram.lr.values[::2]), (ax.yaxis, diagram.wd.values[::2])):
        axis.set_ticks(values, [f"{value:g}" for value in values])
        axis.set_ticks([], minor=True)
plt.show()

# %% [markdown]
# ## 6. Your own network
# A model of your network needs a probe: runs with plain SGD and constant learning rate at two values of $\eta\lambda$, the larger one the
# largest you will ask for, the other a fifth of it, with 100 periods or more each, every step recorded. `empirical.train` records them
# (`model=` and `data=` take your own module and data):
#
# ```python
# high = empirical.train(empirical.RunConfig(lr=0.5, wd=0.02, model="convnet", steps=30_000))
# low = empirical.train(empirical.RunConfig(lr=0.5, wd=0.004, model="convnet", steps=60_000))
# mine = simulate.PeriodModel.from_runs([high, low])
# mine.save("mine.json")
# simulate.period(0.5, 0.01, model=mine)
# ```
#
# Here two trajectories of the reference model stand in for them, so that the answer is known: long runs of that model at settings
# the new one has not seen. This tests the calibration; whether a network obeys the model, its own unseen runs must tell, as in part 1.

# %%
probe = [simulate.oscillate(LR, wd, steps=round((100 if FAST else 300) / wd), seed=7) for wd in (0.02, 0.004)]
mine = simulate.PeriodModel.from_runs(probe)
unseen = np.array([0.0005, 0.001, 0.005])
truth = [
    simulate.find_periods(simulate.oscillate(LR, k / LR, steps=round((100 if FAST else 400) / k), seed=8))
    for k in unseen
]
ks = np.geomspace(*mine.calibrated_range, 7 if FAST else 15)
fig, ax = plt.subplots()
ax.plot(ks, [mine.period(LR, k / LR, periods=PERIODS).mean * k for k in ks], label="calibrated anew")
ax.plot(ks, mine.law.period(LR, ks / LR) * ks, "--", label="its balance law")
for k, length, error, mark in (
    *((each.intrinsic_lr, each.period, each.period_stderr, "ko") for each in mine.calibration_runs),
    *((k, each.mean, each.stderr, "C3s") for k, each in zip(unseen, truth, strict=True)),
):
    ax.errorbar(k, length * k, error * k, fmt=mark, ms=4, capsize=3)
ax.plot([], [], "ko", ms=4, label="probe")
ax.plot([], [], "C3s", ms=4, label="known model, unseen settings")
ax.set(xscale="log", xlabel="ηλ", ylabel="T·ηλ", title="Two runs predict the others")
ax.legend(fontsize=8)
plt.show()

# %%
pd.DataFrame(
    {
        "ηλ": k,
        "predicted T": mine.period(LR, k / LR, periods=PERIODS).mean,
        "balance law": mine.law.period(LR, k / LR),
        "known T": known.mean,
        "±": known.stderr,
    }
    for k, known in zip(unseen, truth, strict=True)
).round(4)

# %% [markdown]
# What can go wrong, and what says so:
#
# - *No clear period.* More than 0.9 of the growth of $\ln\rho$ lies outside the detected rises ($\varphi>0.9$), as at an equilibrium.
#   `find_periods` warns, `classify` says "no clear period" or "equilibrium", and `from_runs` refuses the run.
# - *Too few periods.* Below 10 in a run `from_runs` refuses it; below 100 the answer is rough.
# - *Coarse logs.* Rows more than $0.01/\eta\lambda$ steps apart miss short periods: `find_periods` warns. `from_runs` needs every step.
# - *Outside the range.* Above the largest $\eta\lambda$ of the probe, or below a thirtieth of it, `period` and `oscillate` answer with a
#   warning: what they say there was never held against training.
# - *Nothing says so* if the probe has one $\eta\lambda$ only (its constants are then taken to be the same everywhere), if the question is
#   about another batch size, or if some of the trained weights are not scale-invariant.

# %% [markdown]
# ## 7. Explore one setting
# `explore` collects what parts 1 to 6 and `01_theory` say of one setting: equilibria at the least, the root mean square and the largest
# $\tilde g$, bounds, rotation, relaxation, $\delta$-jumps, the edge of stability, the period of the reference model, and a trajectory. In
# the shaded norms the largest $\tilde g$, or every one, makes a step a jump. What does not exist is said in words: with momentum there
# is a lower bound, but no formula for jumps.

# %%
found = explore(LR, 0.02, grad_norm_min=0.1, grad_norm_max=20.0, norm=20.0, delta=0.1)
fig, axes = plt.subplots(1, 3, figsize=(14, 4.4), width_ratios=[1.2, 1, 0.9])
plot_explored(found, axes)
plt.show()

# %% [markdown]
# The same with sliders, which need a running kernel and `ipywidgets` (extra `notebooks`). For readers without Python,
# `simulate.write_explorer_page("explorer.html")` writes it as one page for any browser.

# %%
explorer()
