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
# Given a learning rate $\eta$ and a weight decay $\lambda$: is training periodic, and how long is a period? `simulate` answers in
# milliseconds, with a model fitted to short calibration runs of a network. The theory is in `docs/mathematics.md` §4 to §6.
#
# Symbols are those of `01_theory`: $\rho$ is the norm of the scale-invariant weights, $\tilde\eta=\eta/\rho^2$ the effective learning
# rate, $\tilde g$ the gradient norm at weights of norm 1, and $T$ the period in steps.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import simulate
import theory
from simulate.explorer import explore, explorer, plot_exploration

FAST = bool(os.environ.get("BNWD_FAST"))  # a short version for tests
plt.rcParams.update(
    {"figure.figsize": (9, 3.4), "figure.constrained_layout.use": True, "axes.grid": True, "grid.alpha": 0.3}
)
LR = 0.5  # used where only ηλ matters

# %% [markdown]
# ## 1. Predict one period
# The reference model describes the paper's ConvNet with 4 channels in the first layer, trained on 8×8 digits with plain SGD and
# mini-batches of 64.

# %%
pd.Series(vars(simulate.period(LR, 0.004)))

# %% [markdown]
# `period` is $T$ in steps, and `period_interval` its 90 % interval. `trough_norm` and `peak_norm` are the norms at the trough and at the
# peak. `effective_lr_at_destabilization` is the effective learning rate at the trough, where training destabilizes.
#
# $T$ comes from the balance law $T(-\ln(1-\eta\lambda))=J/(1-\varphi)$, where $J$ is the rise of $\ln\rho$ in a destabilization and
# $\varphi$ the share of growth outside destabilizations. The norms come from the reduced model of part 2.
#
# The points are the calibration runs, two seeds at each of two $\eta\lambda$. Below $\eta\lambda$ = 0.002 the prediction is an
# extrapolation. Held-out runs gave $T\eta\lambda$ = 0.67 ± 0.02 at $\eta\lambda$ = 0.005 and 0.98 ± 0.05 at 0.001; at 0.005 the
# prediction is about a tenth too long. Another network has other periods and needs its own calibration runs, as in part 6.

# %%


def plot_prediction(ax, model, intrinsic_lrs):
    """Plot T·ηλ with its interval, and return the predictions."""
    predictions = [model.predict(LR, intrinsic_lr / LR) for intrinsic_lr in intrinsic_lrs]
    lower, middle, upper = (
        np.array([(p.period_interval.lower, p.period, p.period_interval.upper) for p in predictions]).T * intrinsic_lrs
    )
    ax.plot(intrinsic_lrs, middle, label="prediction")
    ax.fill_between(intrinsic_lrs, lower, upper, alpha=0.2, lw=0, label="90 % interval")
    return predictions


model = simulate.PeriodModel.reference()
intrinsic_lrs = np.geomspace(*model.calibrated_range, 7 if FAST else 15)
fig, axes = plt.subplots(1, 2)
predictions = plot_prediction(axes[0], model, intrinsic_lrs)
for run in model.calibration_runs:
    intrinsic_lr = run.intrinsic_lr
    axes[0].errorbar(
        intrinsic_lr, run.period * intrinsic_lr, run.period_stderr * intrinsic_lr, fmt="ko", ms=4, capsize=3
    )
    axes[1].plot([intrinsic_lr] * 2, np.array([run.trough_norm, run.peak_norm]) * LR**0.5, "ko", ms=4)
axes[0].plot([], [], "ko", ms=4, label="calibration runs")
axes[0].set(xscale="log", xlabel="ηλ", ylabel="T·ηλ", title="Period")
axes[1].plot(intrinsic_lrs, [prediction.peak_norm for prediction in predictions], label="peak")
axes[1].plot(intrinsic_lrs, [prediction.trough_norm for prediction in predictions], label="trough")
axes[1].set(xscale="log", xlabel="ηλ", ylabel="norm ρ", title=f"Norm at trough and peak, η = {LR}")
axes[0].legend(fontsize=8)
axes[1].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 2. Simulate a trajectory
# Norm and loss decrease together, and the effective learning rate increases. At a random step training destabilizes: loss and norm rise,
# and a new period begins. Green lines mark the onsets that `find_periods` detects.

# %%
run = simulate.oscillate(LR, 0.004, steps=8000 if FAST else 300_000, seed=1)
part = run.isel(step=slice(0, 6000))
fig, axes = plt.subplots(3, 1, figsize=(9, 6), sharex=True)
simulate.plots.plot_trajectory(part, axes, periods=simulate.find_periods(part, discard=0))
plt.show()

# %% [markdown]
# On the left of the dotted line decay outweighs growth, so the norm falls and the effective learning rate rises. On its right
# growth outweighs decay, in a few large steps. Destabilizations come at random, so the periods vary in length.

# %%
fig, axes = plt.subplots(1, 2, figsize=(12, 4.4))
simulate.plots.plot_phase(part, axes[0], periods=simulate.find_periods(part, discard=0))
simulate.plots.plot_periods(simulate.find_periods(run), axes[1])
plt.show()

# %%
classification = simulate.classify(run)
print(f"{classification}: {classification.reason}")

# %% [markdown]
# At equilibrium the rotation ratio (`rotation_ratio`: median angle per step over its predicted value) would be near 1, and the spread of
# $\ln\rho$ (`log_norm_sd`) small.
#
# `oscillate` simulates the reduced model as it is, without correction by the calibration runs. So its mean period differs somewhat
# from the prediction of part 1. Their ratio is:

# %%
simulate.find_periods(run).mean / simulate.period(LR, 0.004).period

# %% [markdown]
# The trajectory obeys the one-step law: with its gradient norms, the law reproduces its norms up to rounding.

# %%
float(abs(simulate.replay(part).norm / part.norm - 1).max())

# %% [markdown]
# ## 3. Periods without a network
# Small scale-invariant losses show where periods come from. Below, a valley in the plane is trained with its full gradient.
#
# Beside a low ridge the norm settles at the edge of stability, where steps just overshoot (dotted). Beside a high ridge the loss becomes
# so small that overshooting takes long to grow again. Meanwhile decay continues, and the norm falls far below the edge before training
# destabilizes. This repeats forever.

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
# Mini-batch noise is a second mechanism. The example is linear regression on normalized weights.
#
# If no weights fit the targets, the noise never vanishes, and the norm settles at the equilibrium for its $\tilde g$ (dotted). If some
# weights fit all targets, the noise vanishes with the loss. Then the norm oscillates about that equilibrium without settling, as in a
# network that fits all its training data.

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
# ## 4. The norm map
# If the gradient norms are given, the norm follows a map of one variable, which is cheap for millions of steps.
#
# With constant $\tilde g$ the norm settles at `theory.equilibrium_norm`. With any $\tilde g$ between two limits it ends between the two
# `theory.norm_bounds`. An adversary reaches these bounds; random gradients here do not. In continuous time (`norm_ode`) the norm differs
# by a relative error of order $\eta\lambda$.

# %%
fig, axes = plt.subplots(1, 3, figsize=(12, 3.6))
fig.get_layout_engine().set(w_pad=0.1)
settling = simulate.norm_map(LR, 0.02, 2.0, norm=np.array([0.8, 2.0, 8.0]), steps=300)
axes[0].plot(settling.step, settling.norm.T, "C0")
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
    for intrinsic_lr in sizes:
        wd = intrinsic_lr / LR
        begin, steps = ratio * theory.equilibrium_norm(LR, wd, 2.0), round(1 / intrinsic_lr)
        steady = simulate.norm_map(LR, wd, 2.0, norm=begin, steps=steps)
        flow = simulate.norm_ode(LR, wd, 2.0, norm=begin, steps=steps)
        errors.append(float(abs(flow.norm / steady.norm - 1).max()))
    axes[2].loglog(sizes, errors, "o-", color=color, ms=4, label=f"from {ratio:g} × equilibrium")
axes[2].plot(sizes, sizes, "k:", lw=1, label="ηλ")
axes[2].set(xlabel="ηλ", ylabel="largest relative error of ρ", title="Differential equation against map")
axes[2].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 5. Phase diagrams
# Each cell is a run of its own, classified by `classify`; numbers are $T\eta\lambda$. Along lines of constant $\eta\lambda$ (dashed)
# nothing changes: in units of $\sqrt\eta$ the norm depends only on the product of learning rate and weight decay. The valley is periodic
# only at large $\eta\lambda$, the model of the network over its whole range.

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
# A model of your network needs calibration runs with plain SGD and constant learning rate at two values of $\eta\lambda$. Let the larger be
# the largest you want to predict, and the other a fifth of it. Each needs at least 100 periods, with every step recorded.
# `empirical.calibrate` trains such runs and fits the model in one call. By hand, `empirical.train` records the runs (`model=` and `data=`
# take your own module and data):
#
# ```python
# high = empirical.train(empirical.RunConfig(lr=0.5, wd=0.02, model="convnet", steps=30_000))
# low = empirical.train(empirical.RunConfig(lr=0.5, wd=0.004, model="convnet", steps=60_000))
# mine = simulate.PeriodModel.from_runs([high, low])
# mine.save("mine.json")
# simulate.period(0.5, 0.01, model=mine)
# ```
#
# Below, simulated runs of the reference model replace the trained ones, so that the true periods can be simulated. This tests the
# calibration. Whether a network follows the model can only be tested with held-out runs of that network, as in part 1.
#
# Below the calibration runs the balance law gives longer periods than the reduced model: by about 12 % at $\eta\lambda$ = 0.001, and 20 %
# at 0.0005. The true periods lie within the 90 % intervals. For the network itself, the prediction at 0.001 was within the
# error of the measurement (part 1).

# %%
calibration_runs = [
    simulate.oscillate(LR, wd, steps=round((100 if FAST else 300) / wd), seed=7) for wd in (0.02, 0.004)
]
mine = simulate.PeriodModel.from_runs(calibration_runs)
held_out = np.array([0.0005, 0.001, 0.005])
true_periods = [
    simulate.find_periods(
        simulate.oscillate(LR, intrinsic_lr / LR, steps=round((100 if FAST else 400) / intrinsic_lr), seed=8)
    )
    for intrinsic_lr in held_out
]
intrinsic_lrs = np.geomspace(*mine.calibrated_range, 7 if FAST else 15)
fig, ax = plt.subplots()
plot_prediction(ax, mine, intrinsic_lrs)
for intrinsic_lr, length, error, mark in (
    *((run.intrinsic_lr, run.period, run.period_stderr, "ko") for run in mine.calibration_runs),
    *(
        (intrinsic_lr, periods.mean, periods.stderr, "C3s")
        for intrinsic_lr, periods in zip(held_out, true_periods, strict=True)
    ),
):
    ax.errorbar(intrinsic_lr, length * intrinsic_lr, error * intrinsic_lr, fmt=mark, ms=4, capsize=3)
ax.plot([], [], "ko", ms=4, label="calibration runs")
ax.plot([], [], "C3s", ms=4, label="true periods at held-out settings")
ax.set(xscale="log", xlabel="ηλ", ylabel="T·ηλ", title="Predictions from two calibration runs")
ax.legend(fontsize=8)
plt.show()

# %%
pd.DataFrame(
    {
        "ηλ": intrinsic_lr,
        "prediction": str(simulate.period(LR, intrinsic_lr / LR, model=mine)),
        "true T": periods.mean,
        "±": periods.stderr,
    }
    for intrinsic_lr, periods in zip(held_out, true_periods, strict=True)
).round(4)

# %% [markdown]
# What can go wrong, and how you notice:
#
# - *No clear period.* More than 0.9 of the growth of $\ln\rho$ lies outside the detected rises ($\varphi>0.9$), as at equilibrium.
#   `find_periods` warns, and `classify` returns "no clear period" or "equilibrium". It also returns "no clear period" if gradients that
#   ignore the norm have such periods, and "undetermined" if lr, wd and optimizer do not fit the norms. A model fitted to such runs has no reduced model, but
#   its `predict` still works.
# - *Too few periods.* With fewer than 10 at the lowest $\eta\lambda$ there is neither a balance law nor a reduced model; with fewer than
#   100 predictions are rough.
# - *Coarse logs.* Rows more than $0.01/\eta\lambda$ steps apart miss short periods: `find_periods` warns. `from_runs` needs every step.
# - *Outside the range.* Above the largest calibrated $\eta\lambda$, or below a thirtieth of it, `period` and `oscillate` warn. Their
#   predictions were never compared with training there.
# - *No warning* comes in three cases: calibration runs at a single $\eta\lambda$ (the constants are then the same everywhere), another batch
#   size, or trained weights that are not scale-invariant.

# %% [markdown]
# ## 7. Explore one setting
# `explore` collects the results of parts 1 to 6 and of `01_theory` for one setting: equilibria at the least, the root mean square and
# the largest $\tilde g$, bounds, rotation, relaxation, angular jumps, the edge of stability, the period of the reference model, and a
# trajectory. At the shaded norms a step with the largest $\tilde g$, or with any, is an angular jump. Missing results are explained in
# words: with momentum there is a lower bound, but no formula for angular jumps.

# %%
exploration = explore(LR, 0.02, grad_norm_min=0.1, grad_norm_max=20.0, norm=20.0, delta=0.1)
fig, axes = plt.subplots(1, 3, figsize=(14, 4.4), width_ratios=[1.2, 1, 0.9])
plot_exploration(exploration, axes)
plt.show()

# %% [markdown]
# `explorer` shows the same with sliders. It needs a running kernel and `ipywidgets` (extra `notebooks`). For readers without Python,
# `simulate.write_explorer_page("explorer.html")` writes one page for any browser.

# %%
explorer()
