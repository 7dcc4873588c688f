"""Inverse design: settings for a wanted rotation, norm or relaxation time (docs/mathematics.md §8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from theory.arguments import FloatArray, broadcast, check_lr, check_real, to_float
from theory.optimizers import Optimizer, check_optimizer, rotation_limit

# The unknown is searched on a logarithmic scale: a range of 700 halved a hundred times is below rounding.
_HALVINGS = 100
_LOG_RANGE = 700.0
_UNLIMITED = 1e12


def wd_for_rotation(
    lr: npt.ArrayLike,
    rotation: npt.ArrayLike,
    *,
    grad_norm: npt.ArrayLike = 1.0,
    optimizer: Optimizer | None = None,
) -> Any:
    """Weight decay λ with which the weights turn by `rotation` per step at equilibrium.

    Parameters
    ----------
    lr : η > 0.
    rotation : wanted θ* in radians per step, 0 < θ < π/2.
    grad_norm : g̃ > 0; it matters for `Adam` with L2 regularization only.
    optimizer : default `SGD()`.

    Returns
    -------
    λ: float or array, NaN where no λ (but for `Adam`, with ηλ < 1) gives that rotation.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Source: docs/mathematics.md §8, the inverse of `equilibrium_rotation`.

    Examples
    --------
    >>> round(wd_for_rotation(0.5, 0.1), 6)
    0.009992
    """
    rate, angle, gradient = _checked("lr", lr, "rotation", rotation, grad_norm)
    rule = check_optimizer(optimizer)
    return to_float(_solve(lambda wd: rule.equilibrium_turn(rate, wd, gradient), _turn(angle), _largest(rule, rate)))


def lr_for_rotation(
    wd: npt.ArrayLike,
    rotation: npt.ArrayLike,
    *,
    grad_norm: npt.ArrayLike = 1.0,
    optimizer: Optimizer | None = None,
) -> Any:
    """Learning rate η with which the weights turn by `rotation` per step at equilibrium.

    Parameters
    ----------
    wd : λ > 0.
    rotation, grad_norm, optimizer : as in `wd_for_rotation`.

    Returns
    -------
    η: float or array, NaN where no η (but for `Adam`, with ηλ < 1) gives that rotation.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Source: docs/mathematics.md §8, the inverse of `equilibrium_rotation`.

    Examples
    --------
    >>> round(lr_for_rotation(0.01, 0.1), 6)
    0.499583
    """
    decay, angle, gradient = _checked("wd", wd, "rotation", rotation, grad_norm)
    rule = check_optimizer(optimizer)
    return to_float(_solve(lambda lr: rule.equilibrium_turn(lr, decay, gradient), _turn(angle), _largest(rule, decay)))


def wd_for_norm(
    lr: npt.ArrayLike, norm: npt.ArrayLike, *, grad_norm: npt.ArrayLike = 1.0, optimizer: Optimizer | None = None
) -> Any:
    """Weight decay λ with which the norm settles at `norm`.

    Parameters
    ----------
    lr : η > 0.
    norm : wanted ρ* > 0.
    grad_norm, optimizer : as in `equilibrium_norm`.

    Returns
    -------
    λ: float or array, NaN where no λ (but for `Adam`, with ηλ < 1) gives that norm; of two, as for Nesterov near its
    edge of stability, the smaller.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Source: docs/mathematics.md §8, the inverse of `equilibrium_norm`.

    Examples
    --------
    >>> round(wd_for_norm(0.1, 2.115, grad_norm=2.0), 4)
    0.01
    """
    rate, wanted, gradient = _checked("lr", lr, "norm", norm, grad_norm)
    rule = check_optimizer(optimizer)

    # the norm falls with λ, so that its inverse rises, up to the edge of stability
    def inverse(wd: FloatArray) -> FloatArray:
        return np.asarray(1 / rule.equilibrium_norm(rate, wd, gradient))

    return to_float(_solve(inverse, 1 / wanted, _end_of_rise(inverse, _largest(rule, rate))))


def lr_for_norm(
    wd: npt.ArrayLike, norm: npt.ArrayLike, *, grad_norm: npt.ArrayLike = 1.0, optimizer: Optimizer | None = None
) -> Any:
    """Learning rate η with which the norm settles at `norm`.

    Parameters
    ----------
    wd : λ > 0.
    norm : wanted ρ* > 0.
    grad_norm, optimizer : as in `equilibrium_norm`.

    Returns
    -------
    η: float or array, NaN where no η (but for `Adam`, with ηλ < 1) gives that norm.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Source: docs/mathematics.md §8, the inverse of `equilibrium_norm`.

    Examples
    --------
    >>> round(lr_for_norm(0.01, 2.115, grad_norm=2.0), 4)
    0.1
    """
    decay, wanted, gradient = _checked("wd", wd, "norm", norm, grad_norm)
    rule = check_optimizer(optimizer)
    return to_float(_solve(lambda lr: rule.equilibrium_norm(lr, decay, gradient), wanted, _largest(rule, decay)))


def wd_for_relaxation(lr: npt.ArrayLike, steps: npt.ArrayLike) -> Any:
    """Weight decay λ with which the norm forgets a small deviation, by a factor e, in this many steps (plain SGD).

    Parameters
    ----------
    lr : η > 0.
    steps : wanted relaxation time > 0.

    Returns
    -------
    λ: float or array, the one with (1-ηλ)² > 1/2, where the norm comes back without overshooting.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Source: docs/mathematics.md §8, the inverse of `relaxation_time`.

    Examples
    --------
    >>> round(wd_for_relaxation(0.1, 250), 5)
    0.00999
    """
    rate, time = broadcast(lr=check_lr(lr), steps=check_real("steps", steps, above=0))
    return to_float(_intrinsic_for(time) / rate)


def lr_for_relaxation(wd: npt.ArrayLike, steps: npt.ArrayLike) -> Any:
    """Learning rate η with which the norm forgets a small deviation, by a factor e, in this many steps (plain SGD).

    Parameters
    ----------
    wd : λ > 0.
    steps : wanted relaxation time > 0.

    Returns
    -------
    η: float or array, the one with (1-ηλ)² > 1/2, where the norm comes back without overshooting.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Source: docs/mathematics.md §8, the inverse of `relaxation_time`.

    Examples
    --------
    >>> round(lr_for_relaxation(0.01, 250), 5)
    0.09985
    """
    decay, time = broadcast(wd=check_real("wd", wd, above=0), steps=check_real("steps", steps, above=0))
    return to_float(_intrinsic_for(time) / decay)


def _intrinsic_for(time: FloatArray) -> FloatArray:
    """The ηλ whose multiplier 2a-1 is exp(-1/time)."""
    with np.errstate(over="ignore"):
        one_minus_a = -np.expm1(-1 / time) / 2
    return np.asarray(one_minus_a / (1 + np.sqrt(1 - one_minus_a)))


def _checked(
    first: str, setting: npt.ArrayLike, second: str, wanted: npt.ArrayLike, grad_norm: npt.ArrayLike
) -> tuple[FloatArray, ...]:
    limit = {"below": np.pi / 2} if second == "rotation" else {}
    return broadcast(
        **{
            first: check_lr(setting, first),
            second: check_real(second, wanted, above=0, **limit),
            "grad_norm": check_real("grad_norm", grad_norm, above=0),
        }
    )


def _turn(angle: FloatArray) -> FloatArray:
    return np.asarray(2 * np.sin(angle / 2) ** 2)


def _largest(rule: Optimizer, setting: FloatArray) -> FloatArray:
    """Largest value of the unknown: ηλ < 1, or far beyond where the optimizer sets no limit."""
    return np.asarray(min(rotation_limit(rule), _UNLIMITED) / setting)


def _end_of_rise(function: Callable[[FloatArray], FloatArray], limit: FloatArray) -> FloatArray:
    """Where a function that rises and then may fall is largest below `limit`, by golden-section search."""
    low, high = limit * 1e-3, limit
    share = (np.sqrt(5) - 1) / 2
    if (function(limit) >= function(limit * (1 - 1e-6))).all():
        return limit
    for _ in range(80):
        width = high - low
        left, right = high - share * width, low + share * width
        rises = function(left) < function(right)
        low, high = np.where(rises, left, low), np.where(rises, high, right)
    return np.asarray(high)


def _solve(rising: Callable[[FloatArray], FloatArray], target: FloatArray, limit: FloatArray) -> FloatArray:
    """Solve rising(x) = target for 0 < x < limit by halving an interval of ln x; NaN where there is no solution."""
    high = np.log(limit)
    low = high - _LOG_RANGE
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        reachable = rising(limit) >= target
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            below = rising(np.exp(middle)) < target
            low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(reachable, np.exp((low + high) / 2), np.nan)
