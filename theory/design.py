"""Inverse design: settings for a target rotation, norm or relaxation time (docs/mathematics.md §8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike

from theory.arguments import FloatArray, Number, broadcast, check_lr, check_real, to_float
from theory.optimizers import Optimizer, OptimizerLike, check_optimizer, rotation_limit

# The unknown is bisected on a logarithmic scale: the range of floats, about 1400, halved 100 times is below rounding.
_HALVINGS = 100
_SMALLEST, _LARGEST = float(np.finfo(float).tiny), float(np.finfo(float).max)
_UNLIMITED = 1e12


@overload
def wd_for_rotation(
    lr: Number, rotation: Number, *, grad_norm: Number = 1.0, optimizer: OptimizerLike = None
) -> float: ...
@overload
def wd_for_rotation(
    lr: ArrayLike, rotation: ArrayLike, *, grad_norm: ArrayLike = 1.0, optimizer: OptimizerLike = None
) -> FloatArray: ...
def wd_for_rotation(
    lr: ArrayLike, rotation: ArrayLike, *, grad_norm: ArrayLike = 1.0, optimizer: OptimizerLike = None
) -> Any:
    """Weight decay λ at which the equilibrium rotation per step is `rotation`.

    Parameters
    ----------
    lr : η > 0.
    rotation : target θ* in radians per step, 0 < θ < π/2.
    grad_norm : g̃ > 0; only needed for `Adam` with L2 regularization.
    optimizer : object or its text form; default `SGD()`.

    Returns
    -------
    λ: float or array; NaN where no λ gives that rotation. Solutions have ηλ < 1, except for `Adam`.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §8, the inverse of `equilibrium_rotation`.

    Examples
    --------
    >>> round(wd_for_rotation(0.5, 0.1), 6)
    0.009992
    """
    checked_lr, angle, gradient = _check_arguments("lr", lr, "rotation", rotation, grad_norm)
    rule = check_optimizer(optimizer)
    return to_float(
        _solve(lambda wd: rule.equilibrium_turn(checked_lr, wd, gradient), _turn(angle), _upper_limit(rule, checked_lr))
    )


@overload
def lr_for_rotation(
    wd: Number, rotation: Number, *, grad_norm: Number = 1.0, optimizer: OptimizerLike = None
) -> float: ...
@overload
def lr_for_rotation(
    wd: ArrayLike, rotation: ArrayLike, *, grad_norm: ArrayLike = 1.0, optimizer: OptimizerLike = None
) -> FloatArray: ...
def lr_for_rotation(
    wd: ArrayLike, rotation: ArrayLike, *, grad_norm: ArrayLike = 1.0, optimizer: OptimizerLike = None
) -> Any:
    """Learning rate η at which the equilibrium rotation per step is `rotation`.

    Parameters
    ----------
    wd : λ > 0.
    rotation, grad_norm, optimizer : as in `wd_for_rotation`.

    Returns
    -------
    η: float or array; NaN where no η gives that rotation. Solutions have ηλ < 1, except for `Adam`.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §8, the inverse of `equilibrium_rotation`.

    Examples
    --------
    >>> round(lr_for_rotation(0.01, 0.1), 6)
    0.499583
    """
    checked_wd, angle, gradient = _check_arguments("wd", wd, "rotation", rotation, grad_norm)
    rule = check_optimizer(optimizer)
    return to_float(
        _solve(lambda lr: rule.equilibrium_turn(lr, checked_wd, gradient), _turn(angle), _upper_limit(rule, checked_wd))
    )


@overload
def wd_for_norm(lr: Number, norm: Number, *, grad_norm: Number = 1.0, optimizer: OptimizerLike = None) -> float: ...
@overload
def wd_for_norm(
    lr: ArrayLike, norm: ArrayLike, *, grad_norm: ArrayLike = 1.0, optimizer: OptimizerLike = None
) -> FloatArray: ...
def wd_for_norm(lr: ArrayLike, norm: ArrayLike, *, grad_norm: ArrayLike = 1.0, optimizer: OptimizerLike = None) -> Any:
    """Weight decay λ at which the norm settles at `norm`.

    Parameters
    ----------
    lr : η > 0.
    norm : target ρ* > 0.
    grad_norm, optimizer : as in `equilibrium_norm`.

    Returns
    -------
    λ: float or array; NaN where no λ that is a normal float gives that norm. Solutions have ηλ < 1, except for `Adam`.
    Of two solutions, as for Nesterov near its edge of stability, it is the smaller.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §8, the inverse of `equilibrium_norm`.

    Examples
    --------
    >>> round(wd_for_norm(0.1, 2.115, grad_norm=2.0), 4)
    0.01
    """
    checked_lr, target, gradient = _check_arguments("lr", lr, "norm", norm, grad_norm)
    rule = check_optimizer(optimizer)

    # the inverse of the norm increases with λ up to the edge of stability
    def inverse(wd: FloatArray) -> FloatArray:
        return np.asarray(1 / rule.equilibrium_norm(checked_lr, wd, gradient))

    return to_float(_solve(inverse, 1 / target, _maximizer(inverse, _upper_limit(rule, checked_lr))))


@overload
def lr_for_norm(wd: Number, norm: Number, *, grad_norm: Number = 1.0, optimizer: OptimizerLike = None) -> float: ...
@overload
def lr_for_norm(
    wd: ArrayLike, norm: ArrayLike, *, grad_norm: ArrayLike = 1.0, optimizer: OptimizerLike = None
) -> FloatArray: ...
def lr_for_norm(wd: ArrayLike, norm: ArrayLike, *, grad_norm: ArrayLike = 1.0, optimizer: OptimizerLike = None) -> Any:
    """Learning rate η at which the norm settles at `norm`.

    Parameters
    ----------
    wd : λ > 0.
    norm : target ρ* > 0.
    grad_norm, optimizer : as in `equilibrium_norm`.

    Returns
    -------
    η: float or array; NaN where no η that is a normal float gives that norm. Solutions have ηλ < 1, except for `Adam`.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §8, the inverse of `equilibrium_norm`.

    Examples
    --------
    >>> round(lr_for_norm(0.01, 2.115, grad_norm=2.0), 4)
    0.1
    """
    checked_wd, target, gradient = _check_arguments("wd", wd, "norm", norm, grad_norm)
    rule = check_optimizer(optimizer)
    return to_float(
        _solve(lambda lr: rule.equilibrium_norm(lr, checked_wd, gradient), target, _upper_limit(rule, checked_wd))
    )


@overload
def wd_for_relaxation(lr: Number, steps: Number) -> float: ...
@overload
def wd_for_relaxation(lr: ArrayLike, steps: ArrayLike) -> FloatArray: ...
def wd_for_relaxation(lr: ArrayLike, steps: ArrayLike) -> Any:
    """Weight decay λ at which a small deviation of the norm shrinks by e in `steps` steps (plain SGD).

    Parameters
    ----------
    lr : η > 0.
    steps : target relaxation time > 0.

    Returns
    -------
    λ: float or array; the solution with (1-ηλ)² > 1/2, at which the norm does not overshoot.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §8, the inverse of `relaxation_time`.

    Examples
    --------
    >>> round(wd_for_relaxation(0.1, 250), 5)
    0.00999
    """
    checked_lr, time = broadcast(lr=check_lr(lr), steps=check_real("steps", steps, above=0))
    return to_float(_intrinsic_lr_for(time) / checked_lr)


@overload
def lr_for_relaxation(wd: Number, steps: Number) -> float: ...
@overload
def lr_for_relaxation(wd: ArrayLike, steps: ArrayLike) -> FloatArray: ...
def lr_for_relaxation(wd: ArrayLike, steps: ArrayLike) -> Any:
    """Learning rate η at which a small deviation of the norm shrinks by e in `steps` steps (plain SGD).

    Parameters
    ----------
    wd : λ > 0.
    steps : target relaxation time > 0.

    Returns
    -------
    η: float or array; the solution with (1-ηλ)² > 1/2, at which the norm does not overshoot.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §8, the inverse of `relaxation_time`.

    Examples
    --------
    >>> round(lr_for_relaxation(0.01, 250), 5)
    0.09985
    """
    checked_wd, time = broadcast(wd=check_real("wd", wd, above=0), steps=check_real("steps", steps, above=0))
    return to_float(_intrinsic_lr_for(time) / checked_wd)


def _intrinsic_lr_for(time: FloatArray) -> FloatArray:
    """Return ηλ with the multiplier 2a-1 = exp(-1/time)."""
    with np.errstate(over="ignore"):
        one_minus_a = -np.expm1(-1 / time) / 2
    return np.asarray(one_minus_a / (1 + np.sqrt(1 - one_minus_a)))


def _check_arguments(
    first: str, setting: ArrayLike, second: str, target: ArrayLike, grad_norm: ArrayLike
) -> tuple[FloatArray, ...]:
    limit = {"below": np.pi / 2} if second == "rotation" else {}
    return broadcast(
        **{
            first: check_lr(setting, first),
            second: check_real(second, target, above=0, **limit),
            "grad_norm": check_real("grad_norm", grad_norm, above=0),
        }
    )


def _turn(angle: FloatArray) -> FloatArray:
    return np.asarray(2 * np.sin(angle / 2) ** 2)


def _upper_limit(rule: Optimizer, setting: FloatArray) -> FloatArray:
    """Return the upper limit of the unknown: ηλ < 1, or a very large value if the optimizer has no limit."""
    with np.errstate(over="ignore"):
        return np.minimum(min(rotation_limit(rule), _UNLIMITED) / setting, _LARGEST)


def _maximizer(function: Callable[[FloatArray], FloatArray], limit: FloatArray) -> FloatArray:
    """Return where a function that first increases is largest below `limit`, by golden-section search."""
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
    """Solve rising(x) = target for 0 < x < limit by bisection of ln x; NaN where there is no solution."""
    high = np.log(limit)
    low = np.minimum(np.log(_SMALLEST), high)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        reachable = (rising(limit) >= target) & (rising(np.exp(low)) <= target)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            below = rising(np.exp(middle)) < target
            low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(reachable, np.exp((low + high) / 2), np.nan)
