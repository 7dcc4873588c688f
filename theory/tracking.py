"""Norm under a changing learning rate, and how closely it follows its equilibrium (docs/mathematics.md §9)."""

from __future__ import annotations

from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike

from theory.arguments import (
    FloatArray,
    Number,
    broadcast,
    check_integer,
    check_lr,
    check_number,
    check_real,
    check_wd,
    to_float,
)
from theory.equilibrium import equilibrium_norm
from theory.schedules import Schedule


@overload
def tracking_lag(lr: Schedule, wd: Number, step: Number) -> float: ...
@overload
def tracking_lag(lr: Schedule, wd: ArrayLike, step: ArrayLike) -> FloatArray: ...
def tracking_lag(lr: Schedule, wd: ArrayLike, step: ArrayLike) -> Any:
    """Relative lag of the norm behind the equilibrium of the current learning rate, ρ/ρ*(η_t) - 1.

    To first order in slow changes it is -(d ln η/dt)/(16ηλ). Where the lag is no longer small, the norm cannot follow:
    it stays too large while η decreases, and the gradient norm g̃/ρ of the weights stops growing.

    Parameters
    ----------
    lr : schedule.
    wd : λ >= 0.
    step : step numbers >= 0; broadcasts with `wd`.

    Returns
    -------
    lag: float or array; 0 where η is constant, and `inf` with the sign of the lag where η changes and wd = 0.

    Raises
    ------
    TypeError, ValueError : `lr` is not a schedule, or an argument is not a number or is out of range.

    Source: docs/mathematics.md §9, from the differential equation of §5.

    Examples
    --------
    >>> from theory.schedules import Linear
    >>> round(tracking_lag(Linear(0.5, 1e-6, steps=10_000), 0.01, 5000), 6)  # 1/(16·0.25·0.01·5000)
    0.005
    """
    wd, at = check_wd(wd), check_real("step", step, at_least=0)
    wd, at = broadcast(wd=wd, step=at)
    # central difference of ln η over one step, one-sided at step 0
    before = np.maximum(at - 0.5, 0)
    change = np.log(_learning_rates(lr, at + 0.5) / _learning_rates(lr, before)) / (at + 0.5 - before)
    with np.errstate(divide="ignore", invalid="ignore"):
        return to_float(np.where(change == 0, 0.0, -change / (16 * _learning_rates(lr, at) * wd)))


@overload
def corrected_decay(lr: Schedule, wd: Number, step: Number, *, lr_max: Number) -> float: ...
@overload
def corrected_decay(lr: Schedule, wd: ArrayLike, step: ArrayLike, *, lr_max: ArrayLike) -> FloatArray: ...
def corrected_decay(lr: Schedule, wd: ArrayLike, step: ArrayLike, *, lr_max: ArrayLike) -> Any:
    """Weight decay λη_t/η_max, at which the equilibrium norm does not change with the learning rate.

    With constant λ the equilibrium norm is ∝ η^¼, so the gradient norm of the weights grows as η decreases. With this
    decay ρ*⁴ ≈ ηg̃²/(2λ_t) = η_max g̃²/(2λ) at every step.

    Parameters
    ----------
    lr : schedule.
    wd : λ >= 0 at the largest learning rate.
    step : step numbers >= 0.
    lr_max : η_max > 0, the largest learning rate of the schedule. All broadcast.

    Returns
    -------
    λ_t: float or array.

    Raises
    ------
    TypeError, ValueError : `lr` is not a schedule, or an argument is not a number or is out of range.

    Source: Defazio 2025, arXiv 2506.02285; docs/mathematics.md §9.

    Examples
    --------
    >>> from theory.schedules import Linear
    >>> corrected_decay(Linear(0.5, 0.1, steps=100), 0.01, [0, 100], lr_max=0.5).round(6).tolist()
    [0.01, 0.002]
    """
    wd, at = check_wd(wd), check_real("step", step, at_least=0)
    wd, at, lr_max = broadcast(wd=wd, step=at, lr_max=check_lr(lr_max, "lr_max"))
    return to_float(wd * _learning_rates(lr, at) / lr_max)


@overload
def quasi_equilibrium_norm(lr: Schedule, wd: Number, step: Number, grad_norm: Number = 1.0) -> float: ...
@overload
def quasi_equilibrium_norm(lr: Schedule, wd: ArrayLike, step: ArrayLike, grad_norm: ArrayLike = 1.0) -> FloatArray: ...
def quasi_equilibrium_norm(lr: Schedule, wd: ArrayLike, step: ArrayLike, grad_norm: ArrayLike = 1.0) -> Any:
    """Equilibrium norm ρ*(η_t) for the learning rate of each step.

    Parameters
    ----------
    lr : schedule with η_t λ < 2.
    wd : λ >= 0.
    step : step numbers >= 0.
    grad_norm : g̃ > 0 (units of the loss). All broadcast.

    Returns
    -------
    ρ*(η_t): float or array; inf where wd = 0. A run has this norm only while `tracking_lag` is small.

    Raises
    ------
    TypeError, ValueError : `lr` is not a schedule, or an argument is not a number or is out of range.

    Source: docs/mathematics.md §9.

    Examples
    --------
    >>> from theory.schedules import Linear
    >>> quasi_equilibrium_norm(Linear(0.5, 0.1, steps=100), 0.01, [0, 100], 2.0).round(3).tolist()
    [3.164, 2.115]
    """
    return equilibrium_norm(_learning_rates(lr, check_real("step", step, at_least=0)), wd, grad_norm)


@overload
def gradient_growth(lr: Schedule, wd: Number, step: Number) -> float: ...
@overload
def gradient_growth(lr: Schedule, wd: ArrayLike, step: ArrayLike) -> FloatArray: ...
def gradient_growth(lr: Schedule, wd: ArrayLike, step: ArrayLike) -> Any:
    """Growth of the gradient norm ‖∇f‖ = g̃/ρ since step 0 that is caused by a decreasing learning rate.

    At constant g̃ the norm follows the learning rate, ρ* ∝ η^¼. So ‖∇f‖ grows as η^-¼, without any change of the loss on
    the sphere. `corrected_decay` removes this growth.

    Parameters
    ----------
    lr : schedule with η_t λ < 2.
    wd : λ > 0.
    step : step numbers >= 0; broadcasts with `wd`.

    Returns
    -------
    factor: float or array. It is valid only while `tracking_lag` is small; later ‖∇f‖ grows less.

    Raises
    ------
    TypeError, ValueError : `lr` is not a schedule, or an argument is not a number or is out of range.

    Source: Defazio 2025, arXiv 2506.02285; docs/mathematics.md §9.

    Examples
    --------
    >>> from theory.schedules import Linear
    >>> round(gradient_growth(Linear(0.5, 0.005, steps=100), 0.01, 100), 2)  # 100^¼
    3.16
    """
    wd = check_real("wd", wd, above=0)
    return to_float(quasi_equilibrium_norm(lr, wd, 0) / quasi_equilibrium_norm(lr, wd, step))


def tracked_steps(lr: Schedule, wd: float, steps: int, *, start: int = 0, tolerance: float = 0.1) -> int:
    """First step at which the norm no longer follows its equilibrium, because `tracking_lag` exceeds `tolerance`.

    The norm is assumed to be at equilibrium before.

    Parameters
    ----------
    lr : schedule.
    wd : λ > 0.
    steps : number of steps N of the run.
    start : first step to check, for example the end of a warm-up, which no norm can follow.
    tolerance : size of `tracking_lag` that still counts as following, > 0.

    Returns
    -------
    step number; N if the norm follows to the end. A sudden change of η counts, even if the norm recovers later.

    Raises
    ------
    TypeError, ValueError : `lr` is not a schedule, or an argument is not a number or is out of range.

    Source: docs/mathematics.md §9.

    Examples
    --------
    >>> from theory.schedules import Linear
    >>> tracked_steps(Linear(0.5, 1e-9, steps=10_000), 0.01, 10_000)  # 10 000 - √(10 000/(1.6·0.5·0.01))
    8882
    """
    count, limit = check_integer("steps", steps, at_least=1), check_number("tolerance", tolerance, above=0)
    begin = check_integer("start", start, at_most=count)
    lag = tracking_lag(lr, check_number("wd", wd, above=0), np.arange(begin, count))
    too_large = np.flatnonzero(np.abs(lag) > limit)
    return begin + int(too_large[0]) if too_large.size else count


def _learning_rates(lr: Schedule, at: FloatArray) -> FloatArray:
    if not callable(lr):
        raise TypeError(f"lr must be a schedule such as Cosine(0.1, 0.01, steps=1000), got {lr!r}")
    return check_real("lr", lr(at), above=0)
