"""Learning rates of the steps that are left in a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import theory
from theory.arguments import FloatArray, check_integer, check_real

# learning rate, or a factor of it, at a step number; or its future values, the present one first
ScheduleLike = Callable[[int], Any] | Sequence[float] | FloatArray

_BLOCKS = 400  # blocks of steps into which the remaining steps are divided


@dataclass(frozen=True)
class LearningRatesAhead:
    """Learning rates of the steps that are left, as blocks of steps.

    Attributes
    ----------
    steps : number of steps that are left; None if it is not known.
    lrs, distances : learning rate and number of steps of each block, at most 400 blocks.
    has_schedule : whether the learning rate follows a schedule; without one it stays.
    """

    steps: int | None
    lrs: FloatArray
    distances: FloatArray
    has_schedule: bool

    @classmethod
    def of(cls, lr: float, last_step: int, steps_left: int | None, schedule: ScheduleLike | None) -> LearningRatesAhead:
        """Evaluate a schedule. Only its ratios to its value at the last recorded step count."""
        if steps_left is not None:
            steps_left = check_integer("steps_left", steps_left)
        if schedule is None:
            count = np.array([] if steps_left is None else [float(steps_left)])
            return cls(steps_left, np.full(count.size, lr), count, False)
        if callable(schedule):
            if steps_left is None:
                steps_left = _own_end(schedule, last_step)
            edges = np.unique(np.linspace(0, steps_left, min(steps_left, _BLOCKS) + 1).round().astype(int))
            distances = np.diff(edges)
            at = last_step + 1 + edges[:-1] + (distances - 1) // 2
            values = _factors([float(np.asarray(schedule(step))) for step in (last_step, *at.tolist())])
        else:
            values = _factors(schedule)
            if steps_left is not None and steps_left > values.size - 1:
                raise ValueError(
                    f"steps_left must be <= {values.size - 1}, the number of future values in schedule, got "
                    f"{steps_left}"
                )
            steps_left = values.size - 1 if steps_left is None else steps_left
            edges = np.unique(np.linspace(0, steps_left, min(steps_left, _BLOCKS) + 1).round().astype(int))
            distances = np.diff(edges)
            future = values[1 : steps_left + 1]
            means = np.add.reduceat(future, edges[:-1]) / distances if steps_left else future
            values = np.append(values[0], means)
        if values[0] > 0:
            return cls(steps_left, lr * values[1:] / values[0], distances.astype(float), True)
        if lr > 0 or values.any():
            raise ValueError(
                f"schedule must be > 0 at the last recorded step {last_step}, where lr = {lr:g}, got "
                f"{values[0]:g}: only ratios to this value count"
            )
        return cls(steps_left, np.zeros(distances.size), distances.astype(float), True)


def _own_end(schedule: Any, last_step: int) -> int:
    """Number of steps left under a schedule object that knows its end, such as `theory.Cosine`."""
    offset = 0
    while isinstance(schedule, theory.WarmUp):
        offset, schedule = offset + schedule.steps, schedule.after
    if not isinstance(schedule, (theory.Cosine, theory.Linear)):
        raise ValueError(
            f"steps_left must be a whole number >= 0 for a schedule without an end of its own, got None with "
            f"{schedule!r}"
        )
    return max(0, offset + schedule.steps - last_step - 1)


def _factors(values: Any) -> FloatArray:
    """Check the values of a schedule: one or more numbers >= 0."""
    factors = check_real("schedule", values, at_least=0)
    if factors.ndim != 1:
        raise ValueError(f"schedule must be a function or a sequence of numbers, got shape {factors.shape}")
    if not factors.size:
        raise ValueError("schedule must have the present lr or factor as its first value, got no values")
    return factors
