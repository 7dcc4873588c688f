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
# # The theory, derived and drawn
#
# Every formula of `theory` with its derivation, each step of which sympy proves, and a figure that holds it against
# simulation. Symbols: $\eta$ learning rate, $\lambda$ weight decay, $\rho$ norm of the scale-invariant weights, $r=\rho^2$,
# $\tilde\eta=\eta/\rho^2$ effective learning rate, $\tilde g=\rho\lVert\nabla f\rVert$ gradient norm at weights of norm 1,
# $\theta$ angle between successive weights. The text to it is `docs/mathematics.md`, whose sections are those below.

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
LR, G = 0.5, 2.0  # used wherever just ηλ matters

# %% [markdown]
# ## 1. One step
# Weight decay shortens the weights, the gradient stands at a right angle to them: a right triangle.

# %%
derivations.rotation

# %%
norms = np.geomspace(0.4, 4.0, 200)
fig, ax = plt.subplots()
for start in norms[::10]:
    walk = simulate.random_walk(LR, 0.1, G, dim=50, steps=1, walkers=1, norm=start)
    ax.plot(
        walk.norm.item(), walk.rotation.item(), "C0o", label="a step in 50 dimensions" if start == norms[0] else None
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
for ax, k, steps in zip(axes, (0.02, 0.6, 1.5), (120, 20, 20), strict=True):
    rest = theory.equilibrium_norm(LR, k / LR, G)
    run = simulate.norm_map(LR, k / LR, G, norm=rest * np.array([0.4, 0.7, 1.0, 1.6, 2.5]), steps=steps)
    ax.plot(run.step, run.norm.T / rest, ".-" if steps < 50 else "-")
    ax.axhline(1, color="k", lw=1)
    ax.set(xlabel="step", title=f"ηλ = {k}", yscale="log")
axes[0].set_ylabel("ρ / equilibrium norm")
plt.show()

# %% [markdown]
# The multiplier of a small deviation tells how fast the norm comes to rest, and whether it overshoots.

# %%
derivations.relaxation_time

# %%
ks = np.geomspace(1e-3, 1.99, 400)
measured_at = np.array([1e-3, 3e-3, 1e-2, 0.03, 0.1, 0.2, 0.5, 0.7, 1.3, 1.6, 1.9, 1.97])
rest = theory.equilibrium_norm(LR, measured_at / LR, G)
run = simulate.norm_map(LR, measured_at / LR, G, norm=rest * (1 + 1e-6), steps=2)
shrink = abs(run.final_norm - rest) / (rest * 1e-6)
fig, ax = plt.subplots()
ax.plot(ks, theory.relaxation_time(LR, ks / LR), label="theory.relaxation_time")
ax.plot(measured_at, -2 / np.log(shrink), "o", label="two steps of the map")
ax.set(
    xscale="log",
    yscale="log",
    xlabel="ηλ",
    ylabel="relaxation time (steps)",
    title="At ηλ = 1 every orbit has period 2",
)
ax.legend()
plt.show()

# %% [markdown]
# When $\tilde g$ fluctuates the norm spreads. The moment identities hold on every stationary trace, on periodic ones too: a
# norm that agrees with the formula proves no equilibrium. The spread does tell.

# %%
display(derivations.moment_identities, derivations.moments_of_a_window, derivations.equilibrium_spread)

# %%
variations = np.linspace(0.05, 1.5, 30)
fig, ax = plt.subplots()
for k, color in ((1e-3, "C0"), (1e-2, "C1"), (0.1, "C2")):
    measured = []
    for variation in variations[::5]:
        width = np.sqrt(np.log1p(variation**2))
        squares = G**2 * np.exp(width * np.random.default_rng(0).normal(size=2_000 if FAST else 200_000) - width**2 / 2)
        run = simulate.norm_map(
            LR,
            k / LR,
            simulate.RecordedGradient(np.sqrt(squares)),
            norm=theory.equilibrium_norm(LR, k / LR, G),
            steps=squares.size,
        )
        measured.append(float(np.log(run.norm[squares.size // 10 :]).std()))
    ax.plot(variations, theory.equilibrium_spread(LR, k / LR, variations).deviation, color=color, label=f"ηλ = {k}")
    ax.plot(variations[::5], measured, "o", color=color)
ax.set(
    xlabel="relative standard deviation of g̃²",
    ylabel="standard deviation of ln ρ",
    title="Spread at equilibrium (dots: simulated)",
)
ax.legend()
plt.show()

# %% [markdown]
# ## 3. Bounds: the generalised equilibrium
# All that is known of the gradients is $\ell\le\tilde g\le L$; their order may be an adversary's.

# %%
display(derivations.norm_bounds, derivations.norm_envelope, derivations.attraction)

# %%
low, high, k, steps = 1.0, 6.0, 0.05, 60
bounds = theory.norm_bounds(LR, k / LR, low, high)
fig, axes = plt.subplots(1, 2)
for start, color in ((0.5, "C0"), (6.0, "C1")):
    envelope = theory.norm_envelope(steps, start, LR, k / LR, low, high)
    axes[0].fill_between(range(steps + 1), envelope.lower, envelope.upper, color=color, alpha=0.2, lw=0)
    orbits = simulate.norm_map(
        LR, k / LR, simulate.BoundedGradient(np.full(12, low), high), norm=start, steps=steps, seed=1
    )
    axes[0].plot(orbits.step, orbits.norm.T, color=color, lw=0.5)
for end in bounds:
    axes[0].axhline(end, color="k", lw=1)
axes[0].set(yscale="log", xlabel="step", ylabel="norm ρ", title=f"Reachable norms, ηλ = {k}, L/ℓ = {high / low:g}")
ratios = np.geomspace(1, 30, 200)
for k, color in ((0.01, "C0"), (0.2, "C1"), (0.6, "C2")):
    ends = theory.norm_bounds(LR, k / LR, G / ratios, G)
    rest = theory.equilibrium_norm(LR, k / LR, G)
    axes[1].fill_between(ratios, ends.lower / rest, ends.upper / rest, color=color, alpha=0.25, label=f"ηλ = {k}")
axes[1].set(xscale="log", yscale="log", xlabel="L/ℓ", ylabel="ρ / equilibrium norm of L", title="Attracting interval")
axes[1].legend()
plt.show()

# %% [markdown]
# ## 4. Destabilization
# A $\delta$-jump is a step with $1-\cos\theta>\delta$. It happens exactly below a norm.

# %%
display(derivations.angular_jump_norm, derivations.angular_jump_regime, derivations.angular_jumps_while_ringing)

# %% [markdown]
# **Two camps, one statement.** With $\ell=L$ (bottom edge) only jumps with $\delta<\eta\lambda$ happen, which are the
# equilibrium's own rotation: the equilibrium presumption. With $L/\ell\to\infty$ (upwards) every jump comes within reach: the
# instability presumption. In between it depends on the gradients.

# %%
ks, ratios = np.geomspace(1e-6, 0.29, 300), np.geomspace(1, 1000, 300)
words = ["impossible", "possible", "certain"]
fig, axes = plt.subplots(1, 3, sharey=True, figsize=(9, 3.4))
for ax, delta in zip(axes, (1e-3, 0.02, 0.3), strict=True):
    regime = theory.angular_jump_regime(LR, ks / LR, G / ratios[:, np.newaxis], G, delta)
    image = np.select([regime == word for word in words], range(3))
    ax.contourf(ks, ratios, image, levels=[-0.5, 0.5, 1.5, 2.5], colors=["#dceaf7", "#f7d9a8", "#b4462f"])
    ax.set(xscale="log", yscale="log", xlabel="ηλ", title=f"δ = {delta}")
    ax.grid(False)
    for word in words:
        where = np.argwhere(regime == word)
        if len(where) > 3000:
            row, column = where.mean(axis=0).astype(int)
            ax.text(ks[column], ratios[row], word, ha="center", color="white" if word == "certain" else "black")
axes[0].set_ylabel("L/ℓ")
plt.show()

# %% [markdown]
# How soon: the earliest jump falls with $\ell$ and jumps with $L$; the latest takes the largest gradient that does not jump, as
# long as there is one. In the picture there always is one for $\delta=0.02$: that jump need never come.

# %%
display(derivations.steps_to_angular_jump, derivations.decay_time)

# %%
k, low, high = 1e-3, 0.3, 20.0
start = np.geomspace(0.7, 40, 60)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.6))
for delta, color in ((0.02, "C0"), (5e-4, "C1")):
    time = theory.steps_to_angular_jump(start, LR, k / LR, low, high, delta)
    axes[0].plot(start, np.maximum(time.earliest, 0.5), color=color, label=f"earliest, δ = {delta}")
    if np.isfinite(time.latest[-1]):
        axes[0].plot(start, np.maximum(time.latest, 0.5), "--", color=color, label=f"latest, δ = {delta}")
axes[0].set(
    xscale="log",
    yscale="log",
    xlabel="norm at the start",
    ylabel="steps before the jump",
    title=f"ηλ = {k}, L/ℓ = {high / low:.0f}",
)
axes[0].legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, columnspacing=1)
for k in (0.1, 0.03, 0.01):
    run = simulate.norm_map(LR, k / LR, G, norm=50.0, steps=int(4 / k))
    above = run.norm.values > 1.001 * theory.equilibrium_norm(LR, k / LR, G)
    steps = run.step.values[above]
    axes[1].plot(
        steps * k, (theory.decay_time(50.0, run.norm.values[above], LR, k / LR, G) - steps) / k, label=f"ηλ = {k}"
    )
axes[1].set(
    xlabel="ηλ · steps",
    ylabel="error / ηλ (steps)",
    title="Error of theory.decay_time, in closed form",
    ylim=(-1.1, 1.1),
)
axes[1].legend()
plt.show()

# %% [markdown]
# Whatever the gradients, jumps cannot come more often than decay makes room for them.

# %%
derivations.least_time_between_angular_jumps

# %%
gradient = np.exp(3 * np.random.default_rng(0).normal(size=4_000 if FAST else 40_000))
deltas = np.geomspace(1e-3, 0.6, 25)
fig, ax = plt.subplots()
for k, color in ((0.003, "C0"), (0.03, "C1")):
    run = simulate.norm_map(LR, k / LR, simulate.RecordedGradient(gradient), norm=3.0, steps=gradient.size)
    turned = 1 - np.cos(run.rotation.values)
    counts = np.array([np.count_nonzero(turned > delta) for delta in deltas])
    ax.plot(deltas, theory.least_time_between_angular_jumps(LR, k / LR, deltas), color=color, label=f"least, ηλ = {k}")
    ax.plot(deltas[counts > 0], gradient.size / counts[counts > 0], "o", ms=3, color=color)
ax.set(
    xscale="log",
    yscale="log",
    xlabel="δ",
    ylabel="steps per δ-jump",
    title="Mean time between jumps (dots: wild gradients)",
)
ax.legend()
plt.show()

# %% [markdown]
# **Edge of stability.** Where the loss is sharp, $\tilde\eta h$ has a limit, and so the norm has a critical value. Decay moves it.

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
axes[0].set(xlabel="momentum μ", ylabel="largest stable η̃h", title="Edge of stability, no decay")
axes[0].legend()
ks = np.linspace(0, 0.1, 50)
for falling, label in ((False, "norm held by growth"), (True, "norm falling freely")):
    for mu, style in ((0.0, "-"), (0.5, "--")):
        edge = 1 / theory.critical_norm(1.0, 1.0, wd=ks, falling=falling, optimizer=theory.SGD(momentum=mu)) ** 2
        axes[1].plot(ks, edge / edge[0], style, color=f"C{falling:d}", label=f"{label}, μ = {mu}")
axes[1].set(xlabel="ηλ", ylabel="limit / limit without decay", title="Decay moves the edge")
axes[1].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 5. Periods
# Growth and decay balance over every run, exactly; the law of the period follows.

# %%
display(derivations.balance, derivations.balance_law, derivations.least_decay_steps, derivations.free_decay)

# %%
gradient = np.tile(np.r_[60.0, np.full(300, 0.3)], 8)
run = simulate.norm_map(LR, 0.02, simulate.RecordedGradient(gradient), norm=2.0, steps=gradient.size)
found = simulate.find_periods(run, discard=0)
parts = theory.balance(run.norm.values[0], run.final_norm.item(), run.rotation.values, LR, 0.02)
law = theory.BalanceLaw(found.norm_rise, 0.0, found.outside_growth, 1.0, found.intrinsic_lr)
fig, ax = plt.subplots()
ax.plot(run.step, run.norm)
for onset in found.onsets:
    ax.axvline(onset, color="C2", lw=1)
ax.set(xlabel="step", ylabel="norm ρ", yscale="log")
ax.set_title(
    f"period {found.mean:.1f} steps, law {law.period(LR, 0.02):.1f}; decay took {parts.decayed:.3f} of ln ρ, growth "
    f"gave {parts.grown:.3f}"
)
plt.show()

# %% [markdown]
# In continuous time the norm obeys a differential equation with a closed solution; its error is of first order in $\eta\lambda$.

# %%
derivations.norm_flow

# %%
sizes = np.array([4e-3, 2e-3, 1e-3, 5e-4, 2.5e-4])
errors = []
fig, axes = plt.subplots(1, 2)
for k in sizes:
    steps = round(0.5 / k)
    rest = theory.equilibrium_norm(LR, k / LR, G)
    run = simulate.norm_map(LR, k / LR, G, norm=rest / 2, steps=steps)
    flow = theory.norm_flow(run.step.values, rest / 2, LR, k / LR, G)
    errors.append(abs(flow**4 / run.norm.values**4 - 1).max())
axes[0].plot(run.step, run.norm, lw=4, alpha=0.4, label="map")
axes[0].plot(run.step, flow, "k-", lw=1, label="theory.norm_flow")
axes[0].set(xlabel="step", ylabel="norm ρ", title=f"ηλ = {k}")
axes[0].legend()
axes[1].loglog(sizes, errors, "o-")
axes[1].set_xticks(sizes, [f"{size:g}" for size in sizes], minor=False)
axes[1].set_xticks([], minor=True)
axes[1].set(
    xlabel="ηλ",
    ylabel="largest relative error of ρ⁴",
    title=f"order {np.polyfit(np.log(sizes), np.log(errors), 1)[0]:.3f}",
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
    xlabel="steps into the fall",
    ylabel="L η̃",
    yscale="log",
    title="Loss times effective learning rate, ηλ = 1e-3, c = 50",
)
ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 6. Symmetry
# Only combinations of the settings matter; and decay can be replaced by a growing learning rate.

# %%
display(derivations.equivalent_run, derivations.run_without_decay)

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
axes[1].plot(decayed.step, decayed.rotation, lw=4, alpha=0.4, label="decay λ")
axes[1].plot(grown.step, grown.rotation, "k-", lw=0.8, label="growing η, no decay")
axes[1].set(xlabel="step", ylabel="rotation (rad)", title="The same rotations")
axes[1].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 7. Other optimizers
# Linear rules: the second moments of weights and momentum close, and sympy solves them from the update rule itself.

# %%
display(derivations.heavy_ball, derivations.nesterov, derivations.decoupled_heavy_ball, derivations.decoupled_nesterov)

# %% [markdown]
# Rules whose step does not grow with the gradient: norm and rotation follow from the autocorrelation of the direction.

# %%
display(derivations.decoupled_decay, derivations.adamw, derivations.adam, derivations.lion)

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
# **Heavy ball with any gradients.** Their order may again be an adversary's; with momentum a fall cannot be faster than that
# of a linear recursion, and ringing of the norm is not a period.

# %%
display(
    derivations.momentum_lower_bound,
    derivations.momentum_least_decay_steps,
    derivations.momentum_stationary_bounds,
    derivations.momentum_relaxation,
)

# %%
mu, k, low = 0.5, 0.01, 1.0
rule = theory.SGD(momentum=mu)
generator = np.random.default_rng(0)
fig, axes = plt.subplots(1, 2)
steps = 300
axes[0].plot(theory.momentum_envelope(steps, 4.0, LR, k / LR, low, momentum=mu), "k-", label="theory.momentum_envelope")
axes[0].axhline(
    theory.momentum_lower_bound(LR, k / LR, low, momentum=mu), color="k", ls=":", label="theory.momentum_lower_bound"
)
for kind in ("alternating", "random", "constant"):
    x, state, norms = np.array([4.0, 0.0, 0.0]), (np.zeros(3),), []
    for step in range(steps):
        norms.append(np.linalg.norm(x))
        push = {
            "alternating": (-1) ** step * np.eye(3)[2],
            "random": generator.normal(size=3),
            "constant": np.eye(3)[2],
        }[kind]
        push = push - (push @ x) / (x @ x) * x
        x, state = rule.update(x, low * push / np.linalg.norm(push) / norms[-1], state, LR, k / LR)
    axes[0].plot(norms, label=f"{kind} gradients")
axes[0].set(xlabel="step", ylabel="norm ρ", title=f"Heavy ball, μ = {mu}, ηλ = {k}, g̃ = {low:g}")
axes[0].legend(fontsize=7)
ks = np.geomspace(1e-5, 1, 400)
for mu, color in ((0.0, "C0"), (0.5, "C1"), (0.9, "C2")):
    relaxation = theory.momentum_relaxation(LR, ks / LR, momentum=mu)
    axes[1].plot(ks, relaxation.time, color=color, label=f"μ = {mu}")
    axes[1].plot(ks, np.where(relaxation.rings, relaxation.time, np.nan), color=color, lw=4, alpha=0.4)
axes[1].set(
    xscale="log",
    yscale="log",
    xlabel="ηλ",
    ylabel="relaxation time (steps)",
    title="Where the norm rings (thick)",
    ylim=(0.3, 1e5),
)
axes[1].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 8. Inverse design
# Which decay gives the rotation, norm or relaxation time that is wanted?

# %%
derivations.inverse_design

# %%
lrs, angles = np.geomspace(1e-3, 1, 80), np.geomspace(5e-3, 0.5, 80)
fig, axes = plt.subplots(1, 2, sharey=True)
for ax, (name, rule) in zip(axes, {"SGD": theory.SGD(), "AdamW": theory.AdamW(dim=1000)}.items(), strict=True):
    wd = theory.wd_for_rotation(lrs, angles[:, np.newaxis], optimizer=rule)
    ax.set(xscale="log", yscale="log", xlabel="learning rate η", title=f"{name}: decay for a rotation")
    powers = np.arange(-5, 3)
    lines = ax.contour(lrs, angles, np.log10(wd), levels=powers, colors=simulate.plots.MEASURED, linestyles="-")
    # labels where lines cross the diagonal, but not in its corners
    places = np.interp(powers, np.log10(wd[::-1].diagonal())[::-1], np.arange(80)[::-1]).astype(int)
    inside = (places > 5) & (places < 75)
    where = list(zip(lrs[places[inside]], angles[::-1][places[inside]], strict=True))
    ax.clabel(lines, powers[inside], fmt=lambda power: f"λ = {10.0**power:g}", fontsize=8, colors="k", manual=where)
axes[0].set_ylabel("wanted rotation (rad/step)")
plt.show()

# %% [markdown]
# ## 9. Learning-rate schedules
# The norm follows the equilibrium of the present learning rate as long as it can; gradients of the weights grow meanwhile.

# %%
display(
    derivations.norm_under_schedule, derivations.tracking_lag, derivations.tracked_steps, derivations.corrected_decay
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
axes[0].set(xlabel="step", ylabel="norm ρ", title="The norm lags behind (line: lag exceeds 10 %)")
axes[1].set(
    xlabel="step",
    ylabel="gradient norm of the weights / first",
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
pushes = np.array([1.0, 4.0])
runs = [
    simulate.norm_map(LR, 0.02, push, norm=start, steps=400) for push, start in zip(pushes, (6.0, 2.0), strict=True)
]
groups = np.stack([run.norm.values for run in runs], axis=-1)
total = np.linalg.norm(groups, axis=-1)
fig, axes = plt.subplots(1, 2)
axes[0].plot(runs[0].step, theory.total_grad_norm(groups, pushes), label="g̃ of both groups together")
axes[0].axhline(pushes.sum(), color="k", lw=1, label="sum of the groups' g̃")
axes[0].set(xlabel="step", ylabel="effective gradient norm", title="Groups find their proportion")
axes[0].legend(fontsize=8)
eps = np.geomspace(1e-12, 1e-2, 100)
axes[1].plot(eps, theory.invariance_norm(eps, 0.5, 0.01), label="1 % of the scale gets through")
for wd in (1e-4, 1e-2):
    axes[1].plot(
        eps, theory.decay_invariance_norm(eps, 0.5, wd, 0.1, 0.1), label=f"radial gradient is 10 % of decay {wd:g}"
    )
axes[1].set(
    xscale="log",
    yscale="log",
    xlabel="ε of the normalization layer",
    ylabel="norm ρ of a channel",
    title="Invariance ends below",
)
axes[1].legend(fontsize=8)
plt.show()
