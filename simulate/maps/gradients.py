"""Rules for the effective gradient norm g̃: its value at every step of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from simulate.maps.noise import uniform_table
from theory.arguments import FloatArray, broadcast, check_choice, check_order, check_real


class GradientRule(Protocol):
    """Interface of rules whose g̃ does not depend on the norm. A new rule implements these two members."""

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the batch implied by the parameters of the rule."""

    def values_for(self, shape: tuple[int, ...], steps: int, seed: int) -> FloatArray:
        """Return g̃ of shape (*shape, steps)."""


@dataclass(frozen=True, eq=False)
class RecordedGradient:
    """Recorded g̃_t, one value for each step.

    Parameters
    ----------
    values : shape (steps,) or (*batch, steps), >= 0, in units of the loss.

    Raises
    ------
    TypeError, ValueError : a value is not a finite number >= 0.

    Examples
    --------
    >>> RecordedGradient([1.0, 2.0]).values_for((), 2, seed=0).tolist()
    [1.0, 2.0]
    """

    values: npt.ArrayLike

    def __post_init__(self) -> None:
        values = check_real("values", self.values, at_least=0).copy()
        if values.ndim == 0:
            raise ValueError("values must have the steps as last axis, got one number")
        object.__setattr__(self, "values", values)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the recorded batch."""
        return tuple(np.shape(self.values)[:-1])

    def values_for(self, shape: tuple[int, ...], steps: int, seed: int) -> FloatArray:
        """Return the first `steps` values."""
        values: Any = self.values
        if values.shape[-1] < steps:
            raise ValueError(f"values must cover {steps} steps, got {values.shape[-1]}")
        return np.broadcast_to(values[..., :steps], (*shape, steps))


@dataclass(frozen=True, eq=False)
class BoundedGradient:
    """Independent g̃_t, uniform between `low` and `high`.

    Parameters
    ----------
    low, high : 0 <= low <= high in units of the loss; numbers or arrays that broadcast to the batch.

    Raises
    ------
    TypeError, ValueError : a value is not a finite number >= 0, or low > high.

    Examples
    --------
    >>> values = BoundedGradient(1.0, 2.0).values_for((3,), 100, seed=0)
    >>> values.shape, bool(values.min() >= 1), bool(values.max() <= 2)
    ((3, 100), True, True)
    """

    low: npt.ArrayLike
    high: npt.ArrayLike

    def __post_init__(self) -> None:
        low, high = check_real("low", self.low, at_least=0).copy(), check_real("high", self.high, at_least=0).copy()
        check_order("low", low, "high", high)
        low, high = broadcast(low=low, high=high)
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the batch of bounds."""
        return np.shape(self.low)

    def values_for(self, shape: tuple[int, ...], steps: int, seed: int) -> FloatArray:
        """Return the values that the simulation uses. Each is a function of seed, position in the batch and step."""
        low = np.broadcast_to(np.asarray(self.low), shape)[..., np.newaxis]
        high = np.broadcast_to(np.asarray(self.high), shape)[..., np.newaxis]
        share = uniform_table(seed, int(np.prod(shape)), 0, steps).reshape(*shape, steps)
        return np.asarray(low + (high - low) * share)


@dataclass(frozen=True, eq=False)
class AdversarialGradient:
    """g̃_t between `low` and `high`, chosen at every step to drive the norm to one end of its attracting interval.

    The ends are those of `theory.norm_bounds`. Towards "lower", g̃ is `low`. Towards "upper", the norm decays under
    `low` before a single step with `high` raises it. This gives adversarial periods. Where a constant `high` leads to a
    larger norm, g̃ is always `high`. Both ends are reached or approached, the upper one within 0.1 % of ρ².

    For (1-ηλ)² < 1/2 the norm overshoots its equilibrium. Then `low` and `high` alternate until the norm is reached
    from which a step with `low` ends lowest. At ηλ = 1, or with `low` = 0, the interval is (0, ∞). The norm then leaves
    any bounds, and the run may end as "collapsed" or "diverged".

    In `norm_ode` nothing overshoots, and g̃ is always `low` or always `high`. Under a schedule, the lower end is that of
    the learning rate of step 0.

    Parameters
    ----------
    low, high : 0 <= low <= high in units of the loss; numbers or arrays that broadcast to the batch.
    towards : "lower" or "upper".

    Raises
    ------
    TypeError, ValueError : a value is not a finite number >= 0, low > high, or `towards` is not one of the two.

    Source: docs/mathematics.md §3.

    Examples
    --------
    >>> import theory
    >>> from simulate.maps.norm_map import norm_map
    >>> run = norm_map(0.1, 0.1, AdversarialGradient(1.0, 5.0, towards="upper"), norm=1.0, steps=2000)
    >>> round(float(run.norm.max()) / theory.norm_bounds(0.1, 0.1, 1.0, 5.0).upper, 2)
    1.0
    """

    low: npt.ArrayLike
    high: npt.ArrayLike
    towards: str = "lower"

    def __post_init__(self) -> None:
        bounded = BoundedGradient(self.low, self.high)
        object.__setattr__(self, "low", bounded.low)
        object.__setattr__(self, "high", bounded.high)
        check_choice("towards", self.towards, ("lower", "upper"))

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the batch of bounds."""
        return np.shape(self.low)
