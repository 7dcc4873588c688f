"""Logs with known causes of their spikes, for tests of the diagnosis."""

import functools

import numpy as np
from hypothesis import settings

import simulate
import theory

FIXED = settings(deadline=None, derandomize=True, max_examples=25)
LR, WD = 0.5, 0.02  # ηλ = 0.01


def noise(count, seed, level=0.1):
    return level * np.random.default_rng(seed).uniform(0.8, 1.25, count)


@functools.cache
def periodic(periods=3, decay_steps=150, seed=0, lr=LR, wd=WD, longer=0, level=0.02):
    """Norm that decays almost freely until some large gradients raise it; the loss follows them."""
    burst = np.array([4.0, 15.0, 40.0, 60.0, 30.0, 10.0])
    phases = [noise(decay_steps + longer * number**2, seed + number, level) for number in range(periods)]
    gradients = np.concatenate([np.append(phase, burst) for phase in phases])
    run = simulate.norm_map(lr, wd, simulate.RecordedGradient(gradients), norm=6.0, steps=gradients.size)
    # the rotation of a step determines the loss of the next
    rotation = np.append(0.0, run.rotation.values[:-1])
    return as_training(run).assign(loss=("step", noise(gradients.size, seed + 99) + 3 * rotation**2)), decay_steps + 6


@functools.cache
def at_equilibrium(count=800, seed=0, lr=LR, wd=WD):
    """Norm at equilibrium, with random loss and gradients."""
    gradients = noise(count, seed, 2.0)
    start = theory.equilibrium_norm(lr, wd, 2.0)
    run = simulate.norm_map(lr, wd, simulate.RecordedGradient(gradients), norm=start, steps=count)
    return as_training(run).assign(loss=("step", noise(count, seed + 99)))


def as_training(run):
    """Mark the run as a training, which has data."""
    return run.assign_attrs(source="training")


def with_columns(run, **columns):
    return run.assign({name: (run[name].dims, values) for name, values in columns.items()})


def with_losses(run, at, losses):
    """Replace losses from a row on."""
    loss = run.loss.values.copy()
    loss[at : at + len(losses)] = losses
    return with_columns(run, loss=loss)


def lr_schedule(values):
    return lambda step: np.asarray(values)[np.minimum(np.asarray(step, dtype=int), len(values) - 1)]
