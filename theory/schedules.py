"""Learning-rate schedules: vectorised functions of the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from theory.arguments import FloatArray, check_integer, check_items, check_lr, check_number, check_real, check_wd, quote


class Schedule(Protocol):
    """A learning rate that may change with the step."""

    def __call__(self, step: ArrayLike) -> FloatArray:
        """Return the learning rate η of each step number."""


@dataclass(frozen=True)
class Constant:
    """The same learning rate at every step.

    Examples
    --------
    >>> Constant(0.1)([0, 5]).tolist()
    [0.1, 0.1]
    """

    lr: float

    def __post_init__(self) -> None:
        check_number("lr", self.lr, above=0)

    def __call__(self, step: ArrayLike) -> FloatArray:
        """Return η at each step."""
        return np.full(check_real("step", step).shape, float(self.lr))


@dataclass(frozen=True)
class StepDecay:
    """Multiply the learning rate by `factor` at each of the `milestones` (step numbers).

    Examples
    --------
    >>> StepDecay(1.0, milestones=(2, 3), factor=0.5)([0, 1, 2, 3]).tolist()
    [1.0, 1.0, 0.5, 0.25]
    """

    lr: float
    milestones: tuple[int, ...]
    factor: float = 0.1

    def __post_init__(self) -> None:
        check_number("lr", self.lr, above=0)
        check_number("factor", self.factor, above=0)
        milestones = tuple(check_integer("milestones", m) for m in check_items("milestones", self.milestones))
        if list(milestones) != sorted(set(milestones)):
            raise ValueError(f"milestones must increase, got {quote(self.milestones)}")
        object.__setattr__(self, "milestones", milestones)

    def __call__(self, step: ArrayLike) -> FloatArray:
        """Return η at each step."""
        passed = np.searchsorted(np.asarray(self.milestones, dtype=float), check_real("step", step), side="right")
        return np.asarray(self.lr * float(self.factor) ** passed)


@dataclass(frozen=True)
class Linear:
    """Straight line from `lr` at step 0 to `lr_end` at step `steps`, constant afterwards.

    Examples
    --------
    >>> Linear(1.0, 0.5, steps=2)([0, 1, 2, 3]).tolist()
    [1.0, 0.75, 0.5, 0.5]
    """

    lr: float
    lr_end: float
    steps: int

    def __post_init__(self) -> None:
        check_number("lr", self.lr, above=0)
        check_number("lr_end", self.lr_end, above=0)
        check_integer("steps", self.steps, at_least=1)

    def __call__(self, step: ArrayLike) -> FloatArray:
        """Return η at each step."""
        progress = np.clip(check_real("step", step) / self.steps, 0, 1)
        return np.asarray(self.lr + (self.lr_end - self.lr) * progress)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `lr` at step 0 to `lr_end` at step `steps`, constant afterwards.

    Examples
    --------
    >>> Cosine(1.0, 0.5, steps=2)([0, 1, 2, 3]).round(12).tolist()
    [1.0, 0.75, 0.5, 0.5]
    """

    lr: float
    lr_end: float
    steps: int

    def __post_init__(self) -> None:
        check_number("lr", self.lr, above=0)
        check_number("lr_end", self.lr_end, above=0)
        check_integer("steps", self.steps, at_least=1)

    def __call__(self, step: ArrayLike) -> FloatArray:
        """Return η at each step."""
        progress = np.clip(check_real("step", step) / self.steps, 0, 1)
        return np.asarray(self.lr_end + (self.lr - self.lr_end) * (1 + np.cos(np.pi * progress)) / 2)


@dataclass(frozen=True)
class Exponential:
    """Multiply the learning rate by `factor` at every step.

    Examples
    --------
    >>> Exponential(1.0, 0.5)([0, 1, 2]).tolist()
    [1.0, 0.5, 0.25]
    """

    lr: float
    factor: float

    def __post_init__(self) -> None:
        check_number("lr", self.lr, above=0)
        check_number("factor", self.factor, above=0)

    def __call__(self, step: ArrayLike) -> FloatArray:
        """Return η at each step."""
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(self.lr * float(self.factor) ** check_real("step", step))


@dataclass(frozen=True)
class WarmUp:
    """Increase linearly over the first `steps` steps, then follow the schedule `after` from its step 0.

    Examples
    --------
    >>> WarmUp(4, Constant(1.0))([0, 1, 3, 4, 9]).tolist()
    [0.25, 0.5, 1.0, 1.0, 1.0]
    """

    steps: int
    after: Schedule

    def __post_init__(self) -> None:
        check_integer("steps", self.steps, at_least=1)
        if not callable(self.after):
            raise TypeError(f"after must be a schedule such as Constant(0.1), got {quote(self.after)}")

    def __call__(self, step: ArrayLike) -> FloatArray:
        """Return η at each step."""
        step = check_real("step", step)
        rise = np.minimum((step + 1) / self.steps, 1)
        return np.asarray(rise * self.after(np.maximum(step - self.steps, 0)))


@dataclass(frozen=True)
class PiecewiseLinear:
    """Straight lines through the learning rates `lrs` at the step numbers `steps`, constant before and after.

    Examples
    --------
    >>> PiecewiseLinear(steps=(0, 2, 4), lrs=(0.25, 0.5, 1.0))([0, 1, 2, 4, 9]).tolist()
    [0.25, 0.375, 0.5, 1.0, 1.0]
    """

    steps: tuple[int, ...]
    lrs: tuple[float, ...]

    def __post_init__(self) -> None:
        steps = tuple(check_integer("steps", number) for number in check_items("steps", self.steps))
        if not steps or list(steps) != sorted(set(steps)):
            raise ValueError(f"steps must be increasing step numbers, at least one, got {quote(self.steps)}")
        lrs = tuple(check_number("lrs", lr, above=0) for lr in check_items("lrs", self.lrs))
        if len(lrs) != len(steps):
            raise ValueError(f"lrs must have one learning rate for each of the {len(steps)} steps, got {len(lrs)}")
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "lrs", lrs)

    def __call__(self, step: ArrayLike) -> FloatArray:
        """Return η at each step."""
        return np.asarray(np.interp(check_real("step", step), self.steps, self.lrs))


SCHEDULES: dict[str, type[Any]] = {
    "Constant": Constant,
    "StepDecay": StepDecay,
    "Linear": Linear,
    "Cosine": Cosine,
    "Exponential": Exponential,
    "PiecewiseLinear": PiecewiseLinear,
    "WarmUp": WarmUp,
}


def learning_rates(lr: ArrayLike | Schedule, start: int, stop: int) -> FloatArray:
    """Checked learning rates η of the steps start … stop-1, from a number or a schedule.

    Parameters
    ----------
    lr : number > 0 or schedule.
    start, stop : step numbers.

    Returns
    -------
    array of shape (stop-start,).

    Raises
    ------
    TypeError, ValueError : the number is not a learning rate, or the schedule does not give one learning rate > 0 for
        each step.
    """
    if callable(lr):
        return schedule_values(lr, "lr", np.arange(start, stop))
    return np.full(stop - start, check_number("lr", check_lr(lr), above=0))


def schedule_values(schedule: Any, name: str, at: ArrayLike) -> FloatArray:
    """Values of a schedule of lr or wd at these steps, checked.

    Examples
    --------
    >>> schedule_values(Linear(0.5, 0.25, steps=100), "lr", [0, 100]).tolist()
    [0.5, 0.25]
    """
    if not callable(schedule):
        raise TypeError(f"{name} must be a schedule such as Cosine(0.1, 0.01, steps=1000), got {quote(schedule)}")
    try:
        values = schedule(at)
    except Exception as error:  # the function is the caller's
        raise TypeError(
            f"{name} must be a schedule, a function of steps, but {quote(schedule)} raised {type(error).__name__}"
        ) from error
    checked = check_wd(values) if name == "wd" else check_lr(values, name)
    if checked.shape != np.shape(at):
        raise ValueError(f"{name} must give one value for each step, got shape {checked.shape} from {schedule!r}")
    return checked
