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
# # Your training
#
# You train a network with normalization and weight decay in a loop of your own. Is it at equilibrium? Will it destabilize? Which
# learning rate and weight decay give the rotation you want? Why did the loss spike? Everything here works on any PyTorch model
# and loop; nothing of it needs the networks of this project. Symbols: $\rho$ norm of the scale-invariant weights, $\tilde\eta=\eta/\rho^2$
# effective learning rate, $\tilde g=\rho\,\|\nabla f\|$.

# %%
import os

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
STEPS = 600 if FAST else 4000

# %% [markdown]
# ## 1. The loop you have
# A model, an optimizer and data: replace them by yours. Three lines of the loop belong to the monitor. It finds the weights that are
# scale-invariant by measurement, from a batch of inputs.

# %%
torch.manual_seed(0)
digits = load_digits()
images, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
hidden = [torch.nn.Linear(64, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU()]
model = torch.nn.Sequential(*hidden, torch.nn.Linear(16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.2, weight_decay=0.02)

monitor = empirical.Monitor(model, optimizer, images[:64])  # 1
generator = torch.Generator().manual_seed(0)
for _ in range(STEPS):
    batch = torch.randint(len(images), (64,), generator=generator)
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
    loss.backward()
    monitor.before_step(loss)  # 2
    optimizer.step()
    monitor.after_step()  # 3

run = monitor.trajectory()
list(run.group.values)  # the weights that are scale-invariant; the last layer is not

# %% [markdown]
# ## 2. Is it at equilibrium?
# The monitor says where the norm is heading, in words and in numbers. For plain SGD ρ* was good to some percent in trials; with
# momentum, or under Adam, gradients that depend on those before make it less sure, and the rotation is the better guide.

# %%
told = monitor.forecast()
print(told)

# %%
fig, axes = plt.subplots(2, 1, figsize=(9, 4.4), sharex=True)
simulate.plots.plot_trajectory(
    run,
    axes,
    variables=["norm", "rotation"],
    levels={"norm": told.equilibrium_norm, "rotation": told.equilibrium_rotation},
)
plt.show()

# %% [markdown]
# The dotted line of the norm moves with the gradients of your network; that of the rotation is $\arccos(1-\eta\lambda)$ whatever they are.
# After the whole run `classify` judges by both: a median rotation near equilibrium and a norm that spreads little.

# %%
judged = simulate.classify(run)
print(f"{judged}: {judged.reason}")

# %% [markdown]
# ## 3. Will it destabilize?
# `earliest_jump` bounds the steps until a step can turn the weights by more than $1-\cos\theta=\delta$, if $\tilde g$ stays below a maximum:
# the one seen so far, or one that you state. It is a bound, mostly far before the jump, never after it.

# %%
pd.DataFrame(
    [
        {
            "largest g̃ you allow": limit,
            "steps until a jump is possible": monitor.forecast(grad_norm_max=limit).earliest_jump,
        }
        for limit in (told.grad_norm, 3 * told.grad_norm, 10 * told.grad_norm)
    ]
).round(2)

# %% [markdown]
# **With momentum, Adam or AdamW no bound of the first jump is known.** Of heavy-ball momentum with the coupled decay of `torch.optim.SGD` it is
# known how fast and how far the norm can fall, whatever the gradients. If training broke at a norm of 2 before, and the norm has just
# peaked at 4, it is back at 2 after `momentum_least_decay_steps` steps at the earliest; and while $\tilde g\ge\ell$ it does not stay below
# `momentum_lower_bound`. At what norm training breaks, no formula says: your own log does. Under AdamW only the fall without gradients is
# known, which gradients can slow down or hasten, and under Adam not even that (NaN: not known).

# %%
rows = {}
for name, lr, rule in (
    ("SGD", 0.2, theory.SGD()),
    ("SGD, momentum 0.9", 0.02, theory.SGD(momentum=0.9)),
    ("AdamW", 0.001, theory.AdamW(dim=1024)),
    ("Adam", 0.001, theory.Adam(dim=1024)),
):
    rows[name] = {"steps to half the norm, without gradients": np.log(2) / theory.free_decay(lr, 0.02, optimizer=rule)}
    if isinstance(rule, theory.SGD):
        rows[name]["at least, with any"] = theory.momentum_least_decay_steps(
            lr, 0.02, ratio=2.0, momentum=rule.momentum
        )
        rows[name]["floor of the norm for g̃ ≥ 1"] = theory.momentum_lower_bound(lr, 0.02, 1.0, momentum=rule.momentum)
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# Whether your network rests or swings, and how long a period is, no formula tells from the settings alone: it depends on how well
# the network learns its data. `empirical.calibrate(model, images, labels)` trains it shortly at two values of $\eta\lambda$ and predicts
# the others, see `03_empirical`. On the command line: `bnwd calibrate`, then `bnwd predict --period-model`.
#
# ## 4. Which learning rate and weight decay do I want?
# At rest each step turns the weights by an angle that you choose by $\eta\lambda$. For half of the present angle:

# %%
wanted = theory.equilibrium_rotation(0.2, 0.02) / 2
wish = monitor.forecast(rotation=wanted)
answers = {"wanted rotation": wanted, "wd at this lr": wish.wd_for_rotation, "lr at this wd": wish.lr_for_rotation}
pd.Series(answers).round(4)

# %% [markdown]
# The loop goes on with that weight decay, and the steps come to turn as far as wished. The same monitor watches: it notes learning
# rate and weight decay of every step. The norm needs some relaxation times to get there, `theory.relaxation_time(lr, wd)`, about
# $1/4\eta\lambda$ steps of plain SGD; with momentum it is that of `theory.momentum_relaxation`.

# %%
optimizer.param_groups[0]["weight_decay"] = wish.wd_for_rotation
for _ in range(2 * STEPS):
    batch = torch.randint(len(images), (64,), generator=generator)
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
    loss.backward()
    monitor.before_step(loss)
    optimizer.step()
    monitor.after_step()
after = monitor.trajectory().isel(step=slice(STEPS, None))
half = after.sizes["step"] // 2
pd.Series(
    {
        "wanted rotation": wanted,
        "rotation, root mean square": float((after.rotation[half:] ** 2).mean() ** 0.5),
        "before": float((run.rotation[STEPS // 2 :] ** 2).mean() ** 0.5),
    }
).round(4)

# %% [markdown]
# By formula alone, also for other optimizers. Under AdamW steps of usual length, at η = 0.001, need a decay λ far above the usual to turn
# the weights by as much, or, at λ = 0.02, an η far above the usual: there the norm takes very long to come to rest.

# %%
pd.DataFrame(
    {
        name: {
            "wd for 0.05 radians": theory.wd_for_rotation(lr, 0.05, optimizer=rule),
            "lr for 0.05 radians": theory.lr_for_rotation(0.02, 0.05, optimizer=rule),
        }
        for name, lr, rule in (
            ("SGD", 0.2, theory.SGD()),
            ("SGD, momentum 0.9", 0.02, theory.SGD(momentum=0.9)),
            ("AdamW", 0.001, theory.AdamW(dim=1024)),
        )
    }
).T

# %% [markdown]
# ## 5. Why did the loss spike?
# A network that learns its data, with a batch of noise thrown in: two kinds of spikes. `diagnose` takes a trajectory, or a CSV file or
# TensorBoard log of any training, and says of the spikes it is sure of what they were, with the
# evidence. A single high loss among the noise may go without a mark, as that near step 1450 of this run.

# %%
torch.manual_seed(1)
wide = torch.nn.Sequential(
    torch.nn.Linear(64, 128, bias=False),
    torch.nn.BatchNorm1d(128, eps=1e-12),
    torch.nn.ReLU(),
    torch.nn.Linear(128, 10),
)
wide[-1].requires_grad_(False)
wide[-1].weight.mul_(10 / wide[-1].weight.norm())
optimizer = torch.optim.SGD(wide[:1].parameters(), lr=0.5, weight_decay=0.012)
monitor = empirical.Monitor(wide, optimizer, images[:64])
for step in range(1200 if FAST else 3000):
    batch = torch.randint(len(images), (64,), generator=generator)
    shown = torch.rand(64, 64, generator=generator) if step == 820 else images[batch]
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(wide(shown), labels[batch])
    loss.backward()
    monitor.before_step(loss)
    optimizer.step()
    monitor.after_step()
found = simulate.diagnose(monitor.trajectory())
print(found)

# %%
fig, axes = plt.subplots(3, 1, figsize=(9, 6), sharex=True)
simulate.plots.plot_diagnosis(found, axes)
plt.show()

# %% [markdown]
# In a Lightning module `empirical.MonitorCallback(inputs)` does all this (`docs/curvature.md`); what to log, and how often the causes
# were right on trainings of known causes, is in `docs/diagnosis.md`.
