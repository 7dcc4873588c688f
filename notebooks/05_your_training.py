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
# You train a network with normalization layers and weight decay in your own loop. Is it at equilibrium? Will it destabilize? Which
# learning rate and weight decay give a desired rotation? Why did the loss spike? This notebook answers these questions for any
# PyTorch model and loop; it does not use the networks of this project. Symbols: $\rho$ norm of the scale-invariant weights,
# $\tilde\eta=\eta/\rho^2$ effective learning rate, $\tilde g=\rho\,\|\nabla f\|$ effective gradient norm.

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
# ## 1. Your loop
# Replace the model, the optimizer and the data by yours. Three lines belong to the monitor. It finds the scale-invariant weights by
# measurement, from a batch of inputs.

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
# The monitor predicts where the norm is heading, in words and in numbers. It measures ρ* from the growth of the norm. For plain SGD this was
# accurate to a few percent in our tests. With AdamW and Muon it needs about one memory of weight decay, because gradients still change before.

# %%
outlook = monitor.forecast()
print(outlook)

# %% [markdown]
# Layers may have their own learning rate, weight decay and optimizer. The table has a row for each, and the check of steps says whether the
# optimizer does what its settings prescribe.

# %%
print(monitor.check_steps()[0])
monitor.table()

# %%
fig, axes = plt.subplots(2, 1, figsize=(9, 4.4), sharex=True)
simulate.plots.plot_trajectory(
    run,
    axes,
    variables=["norm", "rotation"],
    levels={"norm": outlook.equilibrium_norm, "rotation": outlook.equilibrium_rotation},
)
plt.show()

# %% [markdown]
# The dotted line of the norm depends on the gradients of your network; that of the rotation is $\arccos(1-\eta\lambda)$ for any gradients.
# After the run `classify` uses both. At equilibrium the median rotation is close to its predicted value, and the norm varies little.

# %%
classification = simulate.classify(run)
print(f"{classification}: {classification.reason}")

# %% [markdown]
# ## 3. Will it destabilize?
# An angular jump is a step with $1-\cos\theta>\delta$. `earliest_angular_jump` is the number of steps before which none can occur, if
# $\tilde g$ stays below a maximum: the largest value so far, or one that you choose. It is a lower bound, often far from sharp.

# %%
pd.DataFrame(
    [
        {
            "largest g̃ you allow": limit,
            "steps until an angular jump is possible": monitor.forecast(grad_norm_max=limit).earliest_angular_jump,
        }
        for limit in (outlook.grad_norm, 3 * outlook.grad_norm, 10 * outlook.grad_norm)
    ]
).round(2)

# %% [markdown]
# **With momentum, Adam or AdamW no bound of the first angular jump is known.** For heavy-ball momentum with the coupled decay of
# `torch.optim.SGD`, bounds of the norm hold for any gradients. Suppose training destabilized at a norm of 2 before, and the norm has just
# peaked at 4. It returns to 2 after `momentum_least_decay_steps` steps at the earliest. While $\tilde g\ge\ell$ it does not stay below
# `momentum_lower_bound`. No formula gives the norm at which training destabilizes, but your log does. Under AdamW only the decay without
# gradients is known, which gradients can slow down or speed up. Under Adam not even that is known (NaN).

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
        rows[name]["at least, with any gradients"] = theory.momentum_least_decay_steps(
            lr, 0.02, ratio=2.0, momentum=rule.momentum
        )
        rows[name]["lower bound of the norm for g̃ ≥ 1"] = theory.momentum_lower_bound(
            lr, 0.02, 1.0, momentum=rule.momentum
        )
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# No formula predicts from the settings alone whether your network is periodic, and with which period. That depends on how well the
# network learns its data. `empirical.calibrate(model, images, labels)` makes calibration runs at two values of $\eta\lambda$ and predicts
# other settings, see `03_empirical`. On the command line: `bnwd calibrate`, then `bnwd predict --period-model`.
#
# ## 4. Which learning rate and weight decay do I want?
# At equilibrium each step rotates the weights by an angle that depends on $\eta\lambda$. For half of the present angle:

# %%
target = theory.equilibrium_rotation(0.2, 0.02) / 2
advice = monitor.forecast(rotation=target)
answers = {"target rotation": target, "wd at this lr": advice.wd_for_rotation, "lr at this wd": advice.lr_for_rotation}
pd.Series(answers).round(4)

# %% [markdown]
# The loop continues with that weight decay until steps rotate as far as desired. The same monitor records learning rate and weight
# decay of every step. The norm needs some relaxation times to settle. For plain SGD `theory.relaxation_time(lr, wd)` is about
# $1/4\eta\lambda$ steps; for momentum use `theory.momentum_relaxation`.

# %%
optimizer.param_groups[0]["weight_decay"] = advice.wd_for_rotation
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
        "target rotation": target,
        "rotation, root mean square": float((after.rotation[half:] ** 2).mean() ** 0.5),
        "before": float((run.rotation[STEPS // 2 :] ** 2).mean() ** 0.5),
    }
).round(4)

# %% [markdown]
# Formulas also answer this for other optimizers. AdamW at a usual η = 0.001 needs an unusually large λ for this rotation. At λ = 0.02 it
# needs an unusually large η, and the norm then takes very long to settle.

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
# This network learns its data, and one batch is noise: two kinds of spikes. `diagnose` takes a trajectory, a CSV file or a TensorBoard
# log. For each spike it reports the cause, if it is certain, and the evidence. A single high loss within the noise may not count as a
# spike, such as that near step 1450 of this run.

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
    pixels = torch.rand(64, 64, generator=generator) if step == 820 else images[batch]
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(wide(pixels), labels[batch])
    loss.backward()
    monitor.before_step(loss)
    optimizer.step()
    monitor.after_step()
diagnosis = simulate.diagnose(monitor.trajectory())
print(diagnosis)

# %%
fig, axes = plt.subplots(3, 1, figsize=(9, 6), sharex=True)
simulate.plots.plot_diagnosis(diagnosis, axes)
plt.show()

# %% [markdown]
# In a Lightning module `empirical.MonitorCallback(inputs)` does all this (`docs/curvature.md`). `docs/diagnosis.md` describes what to log,
# and how often the causes were right on trainings with known causes.
