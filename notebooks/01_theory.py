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
# # The theory: derivations and figures
#
# This notebook shows every formula of `theory` with its derivation. sympy proves each step, and a figure compares each
# result with simulation. The sections are those of `docs/mathematics.md`, which explains the results.
#
# Symbols: $\eta$ learning rate, $\lambda$ weight decay, $\rho$ norm of the scale-invariant weights, $r=\rho^2$,
# $\tilde\eta=\eta/\rho^2$ effective learning rate, $\tilde g=\rho\lVert\nabla f\rVert$ gradient norm at weights of norm 1,
# $\theta$ angle between successive weights.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display

import simulate
import theory
from theory import derivations

FAST = bool(os.environ.get("BNWD_FAST"))  # a short version for tests
plt.rcParams.update(
    {"figure.figsize": (9, 3.2), "figure.constrained_layout.use": True, "axes.grid": True, "grid.alpha": 0.3}
)
LR, G = 0.5, 2.0  # used where only ηλ matters

# %% [markdown]
# ## 1. One step
# Weight decay shortens the weights, and the gradient is orthogonal to them. The step is the hypotenuse of a right triangle.

# %%
derivations.rotation

# %%
norms = np.geomspace(0.4, 4.0, 200)
fig, ax = plt.subplots()
for start in norms[::10]:
    walk = simulate.random_walk(LR, 0.1, G, dim=50, steps=1, walkers=1, norm=start)
    ax.plot(
        walk.norm.item(),
        walk.rotation.item(),
        "C0o",
        label="simulated step in 50 dimensions" if start == norms[0] else None,
    )
ax.plot(norms, theory.rotation(norms, LR, 0.1, G), "k-", lw=1, label="theory.rotation")
ax.set(xscale="log", xlabel="norm ρ before the step", ylabel="angle θ of the step (rad)", title="Rotation of one step")
ax.legend()
plt.show()

# %% [markdown]
# ## 2. Equilibrium

# %%
display(derivations.equilibrium_norm, derivations.equilibrium_effective_lr, derivations.equilibrium_rotation)

# %%
fig, axes = plt.subplots(1, 3, sharey=True)
for ax, intrinsic_lr, steps in zip(axes, (0.02, 0.6, 1.5), (120, 20, 20), strict=True):
    equilibrium = theory.equilibrium_norm(LR, intrinsic_lr / LR, G)
    run = simulate.norm_map(
        LR, intrinsic_lr / LR, G, norm=equilibrium * np.array([0.4, 0.7, 1.0, 1.6, 2.5]), steps=steps
    )
    ax.plot(run.step, run.norm.T / equilibrium, ".-" if steps < 50 else "-")
    ax.axhline(1, color="k", lw=1)
    ax.set(xlabel="step", title=f"ηλ = {intrinsic_lr}", yscale="log")
axes[0].set_ylabel("ρ / equilibrium norm")
plt.show()

# %% [markdown]
# The multiplier of a small deviation shows how fast the norm settles, and whether it overshoots.

# %%
derivations.relaxation_time

# %%
intrinsic_lrs = np.geomspace(1e-3, 1.99, 400)
measured_at = np.array([1e-3, 3e-3, 1e-2, 0.03, 0.1, 0.2, 0.5, 0.7, 1.3, 1.6, 1.9, 1.97])
equilibrium = theory.equilibrium_norm(LR, measured_at / LR, G)
run = simulate.norm_map(LR, measured_at / LR, G, norm=equilibrium * (1 + 1e-6), steps=2)
shrink = abs(run.final_norm - equilibrium) / (equilibrium * 1e-6)
fig, ax = plt.subplots()
ax.plot(intrinsic_lrs, theory.relaxation_time(LR, intrinsic_lrs / LR), label="theory.relaxation_time")
ax.plot(measured_at, -2 / np.log(shrink), "o", label="two steps of the map")
ax.set(
    xscale="log",
    yscale="log",
    xlabel="intrinsic learning rate ηλ",
    ylabel="relaxation time (steps)",
    title="At ηλ = 1 every orbit has period 2",
)
ax.legend()
plt.show()

# %% [markdown]
# When $\tilde g$ fluctuates, the norm spreads. The moment identities hold on every stationary trace, also on periodic ones.
# A norm that agrees with the formula is therefore no evidence of equilibrium. The spread is.

# %%
display(derivations.moment_identities, derivations.moments_of_a_window, derivations.equilibrium_spread)

# %%
variations = np.linspace(0.05, 1.5, 30)
fig, ax = plt.subplots()
for intrinsic_lr, color in ((1e-3, "C0"), (1e-2, "C1"), (0.1, "C2")):
    measured = []
    for variation in variations[::5]:
        width = np.sqrt(np.log1p(variation**2))
        squares = G**2 * np.exp(width * np.random.default_rng(0).normal(size=2_000 if FAST else 200_000) - width**2 / 2)
        run = simulate.norm_map(
            LR,
            intrinsic_lr / LR,
            simulate.RecordedGradient(np.sqrt(squares)),
            norm=theory.equilibrium_norm(LR, intrinsic_lr / LR, G),
            steps=squares.size,
        )
        measured.append(float(np.log(run.norm[squares.size // 10 :]).std()))
    ax.plot(
        variations,
        theory.equilibrium_spread(LR, intrinsic_lr / LR, variations).deviation,
        color=color,
        label=f"ηλ = {intrinsic_lr}",
    )
    ax.plot(variations[::5], measured, "o", color=color)
ax.set(
    xlabel="relative standard deviation of g̃²",
    ylabel="standard deviation of ln ρ",
    title="Spread at equilibrium (lines: theory, dots: simulation)",
)
ax.legend()
plt.show()

# %% [markdown]
# ## 3. Bounds: the generalised equilibrium
# The only assumption about the gradients is $\ell\le\tilde g\le L$. Their order may be adversarial.

# %%
display(derivations.norm_bounds, derivations.norm_envelope, derivations.attraction, derivations.probable_norm_bounds)

# %%
low, high, intrinsic_lr, steps = 1.0, 6.0, 0.05, 60
bounds = theory.norm_bounds(LR, intrinsic_lr / LR, low, high)
fig, axes = plt.subplots(1, 2)
for start, color in ((0.5, "C0"), (6.0, "C1")):
    envelope = theory.norm_envelope(steps, start, LR, intrinsic_lr / LR, low, high)
    axes[0].fill_between(range(steps + 1), envelope.lower, envelope.upper, color=color, alpha=0.2, lw=0)
    orbits = simulate.norm_map(
        LR, intrinsic_lr / LR, simulate.BoundedGradient(np.full(12, low), high), norm=start, steps=steps, seed=1
    )
    axes[0].plot(orbits.step, orbits.norm.T, color=color, lw=0.5)
for end in bounds:
    axes[0].axhline(end, color="k", lw=1)
axes[0].set(
    yscale="log", xlabel="step", ylabel="norm ρ", title=f"Reachable norms, ηλ = {intrinsic_lr}, L/ℓ = {high / low:g}"
)
ratios = np.geomspace(1, 30, 200)
for intrinsic_lr, color in ((0.01, "C0"), (0.2, "C1"), (0.6, "C2")):
    ends = theory.norm_bounds(LR, intrinsic_lr / LR, G / ratios, G)
    equilibrium = theory.equilibrium_norm(LR, intrinsic_lr / LR, G)
    axes[1].fill_between(
        ratios,
        ends.lower / equilibrium,
        ends.upper / equilibrium,
        color=color,
        alpha=0.25,
        label=f"ηλ = {intrinsic_lr}",
    )
axes[1].set(xscale="log", yscale="log", xlabel="L/ℓ", ylabel="ρ / equilibrium norm of L", title="Attracting interval")
axes[1].legend()
plt.show()

# %% [markdown]
# ## 4. Destabilization
# An angular jump is a step with $1-\cos\theta>\delta$. It happens exactly if the norm is below a threshold.

# %%
display(derivations.angular_jump_norm, derivations.angular_jump_regime, derivations.angular_jumps_while_ringing)

# %% [markdown]
# **Two views, one result.** For $\ell=L$ (bottom edge) only angular jumps with $\delta<\eta\lambda$ happen. They are the
# rotation of the equilibrium itself. This is the equilibrium presumption. For $L/\ell\to\infty$ (upwards) every angular jump
# becomes possible. This is the instability presumption. In between the gradients decide.

# %%
intrinsic_lrs, ratios = np.geomspace(1e-6, 0.29, 300), np.geomspace(1, 1000, 300)
regimes = ["impossible", "possible", "certain"]
fig, axes = plt.subplots(1, 3, sharey=True, figsize=(9, 3.4))
for ax, delta in zip(axes, (1e-3, 0.02, 0.3), strict=True):
    regime = theory.angular_jump_regime(LR, intrinsic_lrs / LR, G / ratios[:, np.newaxis], G, delta)
    image = np.select([regime == name for name in regimes], range(3))
    ax.contourf(intrinsic_lrs, ratios, image, levels=[-0.5, 0.5, 1.5, 2.5], colors=["#dceaf7", "#f7d9a8", "#b4462f"])
    ax.set(xscale="log", yscale="log", xlabel="intrinsic learning rate ηλ", title=f"δ = {delta}")
    ax.grid(False)
    for name in regimes:
        where = np.argwhere(regime == name)
        if len(where) > 3000:
            row, column = where.mean(axis=0).astype(int)
            ax.text(
                intrinsic_lrs[column], ratios[row], name, ha="center", color="white" if name == "certain" else "black"
            )
axes[0].set_ylabel("L/ℓ")
plt.show()

# %% [markdown]
# How soon? The earliest angular jump follows decay with $\ell$ and is a step with $L$. The latest follows steps with the largest
# gradient that causes none, as long as there is one. For $\delta=0.02$ there always is one, so that angular jump may never come.

# %%
display(derivations.steps_to_angular_jump, derivations.decay_time)

# %%
intrinsic_lr, low, high = 1e-3, 0.3, 20.0
start = np.geomspace(0.7, 40, 60)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.6))
for delta, color in ((0.02, "C0"), (5e-4, "C1")):
    time = theory.steps_to_angular_jump(start, LR, intrinsic_lr / LR, low, high, delta)
    axes[0].plot(start, np.maximum(time.earliest, 0.5), color=color, label=f"earliest, δ = {delta}")
    if np.isfinite(time.latest[-1]):
        axes[0].plot(start, np.maximum(time.latest, 0.5), "--", color=color, label=f"latest, δ = {delta}")
axes[0].set(
    xscale="log",
    yscale="log",
    xlabel="initial norm",
    ylabel="steps before the angular jump",
    title=f"ηλ = {intrinsic_lr}, L/ℓ = {high / low:.0f}",
)
axes[0].legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, columnspacing=1)
for intrinsic_lr in (0.1, 0.03, 0.01):
    run = simulate.norm_map(LR, intrinsic_lr / LR, G, norm=50.0, steps=int(4 / intrinsic_lr))
    above = run.norm.values > 1.001 * theory.equilibrium_norm(LR, intrinsic_lr / LR, G)
    steps = run.step.values[above]
    axes[1].plot(
        steps * intrinsic_lr,
        (theory.decay_time(50.0, run.norm.values[above], LR, intrinsic_lr / LR, G) - steps) / intrinsic_lr,
        label=f"ηλ = {intrinsic_lr}",
    )
axes[1].set(
    xlabel="ηλ · steps",
    ylabel="error / ηλ (steps)",
    title="Error of the closed form of the decay time",
    ylim=(-1.1, 1.1),
)
axes[1].legend()
plt.show()

# %% [markdown]
# For any gradients, weight decay limits how often angular jumps can come.

# %%
derivations.least_time_between_angular_jumps

# %%
gradient = np.exp(3 * np.random.default_rng(0).normal(size=4_000 if FAST else 40_000))
deltas = np.geomspace(1e-3, 0.6, 25)
fig, ax = plt.subplots()
for intrinsic_lr, color in ((0.003, "C0"), (0.03, "C1")):
    run = simulate.norm_map(LR, intrinsic_lr / LR, simulate.RecordedGradient(gradient), norm=3.0, steps=gradient.size)
    turn = 1 - np.cos(run.rotation.values)
    counts = np.array([np.count_nonzero(turn > delta) for delta in deltas])
    ax.plot(
        deltas,
        theory.least_time_between_angular_jumps(LR, intrinsic_lr / LR, deltas),
        color=color,
        label=f"lower bound, ηλ = {intrinsic_lr}",
    )
    ax.plot(deltas[counts > 0], gradient.size / counts[counts > 0], "o", ms=3, color=color)
ax.set(
    xscale="log",
    yscale="log",
    xlabel="δ",
    ylabel="steps per angular jump",
    title="Mean time between angular jumps (dots: strongly fluctuating gradients)",
)
ax.legend()
plt.show()

# %% [markdown]
# **Edge of stability.** For curvature $h$ the product $\tilde\eta h$ has a largest stable value, so the norm has a critical
# value. Weight decay changes it.

# %%
display(derivations.critical_norm, derivations.critical_norm_with_decay)

# %%
momenta = np.linspace(0, 0.99, 100)
fig, axes = plt.subplots(1, 2)
for nesterov, label in ((False, "heavy ball"), (True, "Nesterov")):
    limits = [
        1 / theory.critical_norm(1.0, 1.0, optimizer=theory.SGD(momentum=mu, nesterov=bool(nesterov and mu))) ** 2
        for mu in momenta
    ]
    axes[0].plot(momenta, limits, label=label)
axes[0].set(xlabel="momentum μ", ylabel="largest stable η̃h", title="Edge of stability without weight decay")
axes[0].legend()
intrinsic_lrs = np.linspace(0, 0.1, 50)
for falling, label in ((False, "constant norm"), (True, "decay without gradients")):
    for mu, style in ((0.0, "-"), (0.5, "--")):
        edge = (
            1
            / theory.critical_norm(1.0, 1.0, wd=intrinsic_lrs, falling=falling, optimizer=theory.SGD(momentum=mu)) ** 2
        )
        axes[1].plot(intrinsic_lrs, edge / edge[0], style, color=f"C{falling:d}", label=f"{label}, μ = {mu}")
axes[1].set(
    xlabel="intrinsic learning rate ηλ",
    ylabel="limit / limit without decay",
    title="Edge of stability with weight decay",
)
axes[1].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 5. Periods
# Growth and decay balance exactly over every run. The balance law of the period follows.

# %%
display(derivations.balance, derivations.balance_law, derivations.least_decay_steps, derivations.free_decay)

# %%
gradient = np.tile(np.r_[60.0, np.full(300, 0.3)], 8)
run = simulate.norm_map(LR, 0.02, simulate.RecordedGradient(gradient), norm=2.0, steps=gradient.size)
periods = simulate.find_periods(run, discard=0)
parts = theory.balance(run.norm.values[0], run.final_norm.item(), run.rotation.values, LR, 0.02)
law = theory.BalanceLaw(periods.norm_rise, 0.0, periods.outside_growth, 1.0, periods.intrinsic_lr)
fig, ax = plt.subplots()
ax.plot(run.step, run.norm)
for onset in periods.onsets:
    ax.axvline(onset, color="C2", lw=1)
ax.set(xlabel="step", ylabel="norm ρ", yscale="log")
ax.set_title(
    f"period {periods.mean:.1f} steps, balance law {law.period(LR, 0.02):.1f} steps; "
    f"in ln ρ: decay {parts.decay:.3f}, growth {parts.growth:.3f}"
)
plt.show()

# %% [markdown]
# In continuous time the norm obeys a differential equation with a closed solution. Its error is of first order in $\eta\lambda$.

# %%
derivations.norm_flow

# %%
sizes = np.array([4e-3, 2e-3, 1e-3, 5e-4, 2.5e-4])
errors = []
fig, axes = plt.subplots(1, 2)
for intrinsic_lr in sizes:
    steps = round(0.5 / intrinsic_lr)
    equilibrium = theory.equilibrium_norm(LR, intrinsic_lr / LR, G)
    run = simulate.norm_map(LR, intrinsic_lr / LR, G, norm=equilibrium / 2, steps=steps)
    flow = theory.norm_flow(run.step.values, equilibrium / 2, LR, intrinsic_lr / LR, G)
    errors.append(abs(flow**4 / run.norm.values**4 - 1).max())
axes[0].plot(run.step, run.norm, lw=4, alpha=0.4, label="map")
axes[0].plot(run.step, flow, "k-", lw=1, label="theory.norm_flow")
axes[0].set(xlabel="step", ylabel="norm ρ", title=f"ηλ = {intrinsic_lr}")
axes[0].legend()
axes[1].loglog(sizes, errors, "o-")
axes[1].set_xticks(sizes, [f"{size:g}" for size in sizes], minor=False)
axes[1].set_xticks([], minor=True)
axes[1].set(
    xlabel="intrinsic learning rate ηλ",
    ylabel="largest relative error of ρ⁴",
    title=f"Order of the error: {np.polyfit(np.log(sizes), np.log(errors), 1)[0]:.3f}",
)
plt.show()

# %% [markdown]
# While gradients are small, loss times effective learning rate follows a logistic curve to about $2\eta\lambda/c$.

# %%
derivations.decay_phase_product

# %%
steps = np.arange(12_000)
fig, ax = plt.subplots()
for start in (1e-7, 1e-5, 1e-3):
    ax.plot(
        steps, theory.decay_phase_product(steps, start, LR, 1e-3 / LR, tail=50.0), label=f"Lη̃ = {start:g} at the start"
    )
ax.axhline(2e-3 / 50, color="k", lw=1, label="2ηλ/c")
ax.set(
    xlabel="steps of the decay phase",
    ylabel="loss × effective learning rate, L η̃",
    yscale="log",
    title="Decay phase with ηλ = 1e-3, c = 50",
)
ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 6. Symmetry
# Training depends on combinations of the settings only. A growing learning rate can replace weight decay.

# %%
display(derivations.equivalent_run, derivations.run_without_decay, derivations.lr_at_fixed_norm)

# %%
fig, axes = plt.subplots(1, 2)
schedule = theory.WarmUp(20, theory.Cosine(LR, 0.05, 280))
for lr in (0.1, 0.5, 2.0):
    other = theory.equivalent_run(LR, 0.02, 3.0, lr_to=lr)
    noise = simulate.BoundedGradient(0.0, 30.0)
    run = simulate.norm_map(other.lr, other.wd, noise, norm=other.norm, steps=300, seed=0)
    axes[0].plot(
        run.step,
        run.norm / np.sqrt(lr),
        lw=6 - 4 * np.log10(lr * 10) / 1.3,
        alpha=0.6,
        label=f"η = {lr}, λ = {other.wd:g}",
    )
axes[0].set(xlabel="step", ylabel="ρ/√η", title="Equivalent runs")
axes[0].legend(fontsize=8)
rule = theory.SGD()
twin = theory.run_without_decay(LR, 0.02)
gradient = simulate.BoundedGradient(0.0, 30.0)
decayed = simulate.norm_map(LR, 0.02, gradient, norm=3.0, steps=300, seed=0)
grown = simulate.norm_map(twin.schedule, 0.0, gradient, norm=3.0, steps=300, seed=0)
axes[1].plot(decayed.step, decayed.rotation, lw=4, alpha=0.4, label="weight decay λ")
axes[1].plot(grown.step, grown.rotation, "k-", lw=0.8, label="growing η, no weight decay")
axes[1].set(xlabel="step", ylabel="rotation (rad)", title="The same rotations")
axes[1].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 7. Other optimizers
# For linear rules the second moments of weights and momentum obey closed equations. sympy derives and solves them from the
# update rule itself.

# %%
display(derivations.heavy_ball, derivations.nesterov, derivations.decoupled_heavy_ball, derivations.decoupled_nesterov)

# %% [markdown]
# For rules whose step does not grow with the gradient, norm and rotation follow from the autocorrelation of the direction.

# %%
display(derivations.decoupled_decay, derivations.adamw, derivations.adam, derivations.lion, derivations.muon)

# %%
dim = 100 if FAST else 300
rules = {
    "SGD": (theory.SGD(), 0.1),
    "heavy ball": (theory.SGD(momentum=0.9), 0.1),
    "Nesterov": (theory.SGD(momentum=0.9, nesterov=True), 0.1),
    "decoupled": (theory.SGD(momentum=0.9, decoupled=True), 0.1),
    "AdamW": (theory.AdamW(dim=dim), 0.1),
    "AdamW .95": (theory.AdamW(dim=dim, betas=(0.9, 0.95)), 0.1),
    "Adam+L2": (theory.Adam(dim=dim, betas=(0.9, 0.95)), 0.01),
    "Lion": (theory.Lion(dim=dim), 0.1),
}
fig, axes = plt.subplots(1, 2, sharey=True)
for place, (rule, lr) in enumerate(rules.values()):
    steps = 400 if FAST else 6_000
    walk = simulate.random_walk(lr, 0.1, G, dim=dim, steps=steps, optimizer=rule, walkers=16).isel(
        step=slice(steps // 2, None)
    )
    norm = np.sqrt((walk.norm**2).mean("step")) / theory.equilibrium_norm(lr, 0.1, G, optimizer=rule) - 1
    turn = (1 - np.cos(walk.rotation)).mean("step") / (
        1 - np.cos(theory.equilibrium_rotation(lr, 0.1, grad_norm=G, optimizer=rule))
    ) - 1
    for ax, error in zip(axes, (norm, turn), strict=True):
        ax.errorbar(100 * error.mean(), place, xerr=100 * 2 * error.std() / 4, fmt="o", color="C0")
for ax, title in zip(axes, ("norm", "1 - cos θ"), strict=True):
    ax.axvline(0, color="k", lw=1)
    ax.set(xlabel="measured minus predicted (%), ± 2 standard errors", title=title, xlim=(-3, 3))
axes[0].set_yticks(range(len(rules)), list(rules))
plt.show()

# %% [markdown]
# **Heavy ball with any gradients.** Their order may again be adversarial. With momentum the norm cannot decay faster than a
# linear recursion. Ringing of the norm is not a period.

# %%
display(
    derivations.momentum_lower_bound,
    derivations.momentum_least_decay_steps,
    derivations.momentum_stationary_bounds,
    derivations.momentum_relaxation,
)

# %%
mu, intrinsic_lr, low = 0.5, 0.01, 1.0
rule = theory.SGD(momentum=mu)
generator = np.random.default_rng(0)
fig, axes = plt.subplots(1, 2)
steps = 300
axes[0].plot(
    theory.momentum_envelope(steps, 4.0, LR, intrinsic_lr / LR, low, momentum=mu),
    "k-",
    label="theory.momentum_envelope",
)
axes[0].axhline(
    theory.momentum_lower_bound(LR, intrinsic_lr / LR, low, momentum=mu),
    color="k",
    ls=":",
    label="theory.momentum_lower_bound",
)
for kind in ("alternating", "random", "constant"):
    x, state, norms = np.array([4.0, 0.0, 0.0]), (np.zeros(3),), []
    for step in range(steps):
        norms.append(np.linalg.norm(x))
        gradient_direction = {
            "alternating": (-1) ** step * np.eye(3)[2],
            "random": generator.normal(size=3),
            "constant": np.eye(3)[2],
        }[kind]
        gradient_direction = gradient_direction - (gradient_direction @ x) / (x @ x) * x
        x, state = rule.update(
            x, low * gradient_direction / np.linalg.norm(gradient_direction) / norms[-1], state, LR, intrinsic_lr / LR
        )
    axes[0].plot(norms, label=f"{kind} gradients")
axes[0].set(xlabel="step", ylabel="norm ρ", title=f"Heavy ball, μ = {mu}, ηλ = {intrinsic_lr}, g̃ = {low:g}")
axes[0].legend(fontsize=7)
intrinsic_lrs = np.geomspace(1e-5, 1, 400)
for mu, color in ((0.0, "C0"), (0.5, "C1"), (0.9, "C2")):
    relaxation = theory.momentum_relaxation(LR, intrinsic_lrs / LR, momentum=mu)
    axes[1].plot(intrinsic_lrs, relaxation.time, color=color, label=f"μ = {mu}")
    axes[1].plot(intrinsic_lrs, np.where(relaxation.rings, relaxation.time, np.nan), color=color, lw=4, alpha=0.4)
axes[1].set(
    xscale="log",
    yscale="log",
    xlabel="intrinsic learning rate ηλ",
    ylabel="relaxation time (steps)",
    title="Where the norm rings (thick)",
    ylim=(0.3, 1e5),
)
axes[1].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 8. Inverse design
# Which weight decay gives the required rotation, norm or relaxation time?

# %%
derivations.inverse_design

# %%
lrs, angles = np.geomspace(1e-3, 1, 80), np.geomspace(5e-3, 0.5, 80)
fig, axes = plt.subplots(1, 2, sharey=True)
for ax, (name, rule) in zip(axes, {"SGD": theory.SGD(), "AdamW": theory.AdamW(dim=1000)}.items(), strict=True):
    wd = theory.wd_for_rotation(lrs, angles[:, np.newaxis], optimizer=rule)
    ax.set(xscale="log", yscale="log", xlabel="learning rate η", title=f"{name}: weight decay for a rotation")
    powers = np.arange(-5, 3)
    lines = ax.contour(
        lrs, angles, np.log10(wd), levels=powers, colors=simulate.plots.style.MEASURED_COLOR, linestyles="-"
    )
    # labels where the lines cross the diagonal, except in its corners
    places = np.interp(powers, np.log10(wd[::-1].diagonal())[::-1], np.arange(80)[::-1]).astype(int)
    inside = (places > 5) & (places < 75)
    where = list(zip(lrs[places[inside]], angles[::-1][places[inside]], strict=True))
    ax.clabel(lines, powers[inside], fmt=lambda power: f"λ = {10.0**power:g}", fontsize=8, colors="k", manual=where)
axes[0].set_ylabel("required rotation (rad/step)")
plt.show()

# %% [markdown]
# ## 9. Learning-rate schedules
# While the learning rate changes slowly, the norm follows its equilibrium. The gradient norm of the weights grows meanwhile.

# %%
display(
    derivations.norm_under_schedule,
    derivations.tracking_lag,
    derivations.tracked_steps,
    derivations.corrected_decay,
    derivations.small_steps,
    derivations.settings_for_effective_lr,
    derivations.modulation,
)

# %%
steps, wd = (4_000 if FAST else 20_000), 0.01
fig, axes = plt.subplots(1, 2)
for name, schedule in {"linear": theory.Linear(LR, 1e-5, steps), "cosine": theory.Cosine(LR, 0.005, steps)}.items():
    run = simulate.norm_map(schedule, wd, G, norm=theory.equilibrium_norm(LR, wd, G), steps=steps)
    at = run.step.values[:: steps // 200]
    line = axes[0].plot(run.step, run.norm, label=f"{name}: norm")[0]
    axes[0].plot(
        at, theory.quasi_equilibrium_norm(schedule, wd, at, G), ":", color=line.get_color(), label="equilibrium of η_t"
    )
    axes[0].axvline(theory.tracked_steps(schedule, wd, steps), color=line.get_color(), lw=0.8)
    axes[1].plot(run.step, run.norm.values[0] / run.norm, color=line.get_color(), label=f"{name}: measured")
    axes[1].plot(
        at, theory.gradient_growth(schedule, wd, at), ":", color=line.get_color(), label="theory.gradient_growth"
    )
axes[0].set(xlabel="step", ylabel="norm ρ", title="Lag of the norm (vertical line: 10 %)")
axes[1].set(
    xlabel="step",
    ylabel="gradient norm of the weights / initial",
    yscale="log",
    title="Growth at the end of training",
    ylim=(0.9, 5),
)
for ax in axes:
    ax.legend(fontsize=7)
plt.show()

# %% [markdown]
# ## 10. Groups, and where scale invariance ends

# %%
display(derivations.total_grad_norm, derivations.invariance_norm, derivations.decay_invariance_norm)

# %%
grad_norms = np.array([1.0, 4.0])
runs = [
    simulate.norm_map(LR, 0.02, grad_norm, norm=start, steps=400)
    for grad_norm, start in zip(grad_norms, (6.0, 2.0), strict=True)
]
groups = np.stack([run.norm.values for run in runs], axis=-1)
total = np.linalg.norm(groups, axis=-1)
fig, axes = plt.subplots(1, 2)
axes[0].plot(runs[0].step, theory.total_grad_norm(groups, grad_norms), label="g̃ of the total")
axes[0].axhline(grad_norms.sum(), color="k", lw=1, label="sum of the groups' g̃")
axes[0].set(xlabel="step", ylabel="effective gradient norm", title="Two groups tend to equilibrium")
axes[0].legend(fontsize=8)
eps = np.geomspace(1e-12, 1e-2, 100)
axes[1].plot(eps, theory.invariance_norm(eps, 0.5, 0.01), label="1 % of a change of scale passes")
for wd in (1e-4, 1e-2):
    axes[1].plot(
        eps, theory.decay_invariance_norm(eps, 0.5, wd, 0.1, 0.1), label=f"radial gradient is 10 % of decay, λ = {wd:g}"
    )
axes[1].set(
    xscale="log",
    yscale="log",
    xlabel="ε of the normalization layer",
    ylabel="weight norm ρ of a channel",
    title="Norm below which invariance ends",
)
axes[1].legend(fontsize=8)
plt.show()
