"""How the norm follows its equilibrium when the learning rate changes (docs/mathematics.md §9)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from theory.arguments import (
    FloatArray,
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


def tracking_lag(lr: Schedule, wd: npt.ArrayLike, step: npt.ArrayLike) -> Any:
    """Relative lag of the norm behind the equilibrium of the present learning rate, ρ/ρ*(η_t) - 1.

    The first order of slow change, -(d ln η/dt)/(16ηλ). Where its size is no longer small the norm cannot follow: it
    stays behind, too large while η falls, and the gradient norm g̃/ρ of the weights stays what it was then.

    Parameters
    ----------
    lr : schedule.
    wd : λ >= 0.
    step : step numbers >= 0; broadcasts with `wd`.

    Returns
    -------
    lag: float or array; `inf` (with the sign of the change) where wd = 0 and the rate changes, 0 where it is constant.

    Raises
    ------
    TypeError, ValueError : `lr` is no schedule, or an argument is no number or out of range.

    Source: docs/mathematics.md §9, from the differential equation of §5.

    Examples
    --------
    >>> from theory.schedules import Linear
    >>> round(tracking_lag(Linear(0.5, 1e-6, steps=10_000), 0.01, 5000), 6)  # 1/(16·0.25·0.01·5000)
    0.005
    """
    decay, at = check_wd(wd), check_real("step", step, at_least=0)
    decay, at = broadcast(wd=decay, step=at)
    # central difference of ln η over one step, one-sided at the beginning
    before = np.maximum(at - 0.5, 0)
    change = np.log(_rates(lr, at + 0.5) / _rates(lr, before)) / (at + 0.5 - before)
    with np.errstate(divide="ignore", invalid="ignore"):
        return to_float(np.where(change == 0, 0.0, -change / (16 * _rates(lr, at) * decay)))


def corrected_decay(lr: Schedule, wd: npt.ArrayLike, step: npt.ArrayLike, *, lr_max: npt.ArrayLike) -> Any:
    """Weight decay λη_t/η_max, under which the equilibrium norm does not change with the learning rate.

    With constant λ the equilibrium norm is ∝ η^¼ and the gradient norm of the weights grows as the rate falls; with
    this decay ρ*⁴ ≈ ηg̃²/(2λ_t) = η_max g̃²/(2λ) throughout.

    Parameters
    ----------
    lr : schedule.
    wd : λ >= 0 at the largest learning rate.
    step : step numbers >= 0.
    lr_max : η_max > 0, the largest rate of the schedule. All broadcast.

    Returns
    -------
    λ_t: float or array.

    Raises
    ------
    TypeError, ValueError : `lr` is no schedule, or an argument is no number or out of range.

    Source: Defazio 2025, arXiv 2506.02285; docs/mathematics.md §9.

    Examples
    --------
    >>> from theory.schedules import Linear
    >>> corrected_decay(Linear(0.5, 0.1, steps=100), 0.01, [0, 100], lr_max=0.5).round(6).tolist()
    [0.01, 0.002]
    """
    decay, at = check_wd(wd), check_real("step", step, at_least=0)
    decay, at, largest = broadcast(wd=decay, step=at, lr_max=check_lr(lr_max, "lr_max"))
    return to_float(decay * _rates(lr, at) / largest)


def quasi_equilibrium_norm(lr: Schedule, wd: npt.ArrayLike, step: npt.ArrayLike, grad_norm: npt.ArrayLike = 1.0) -> Any:
    """Norm ρ*(η_t) at which decay and growth balance under the learning rate of each step.

    Parameters
    ----------
    lr : schedule with η_t λ < 2.
    wd : λ >= 0.
    step : step numbers >= 0.
    grad_norm : g̃ > 0 (units of the loss). All broadcast.

    Returns
    -------
    ρ*(η_t): float or array; inf where wd = 0. The norm is there only while `tracking_lag` is small.

    Raises
    ------
    TypeError, ValueError : `lr` is no schedule, or an argument is no number or out of range.

    Source: docs/mathematics.md §9.

    Examples
    --------
    >>> from theory.schedules import Linear
    >>> quasi_equilibrium_norm(Linear(0.5, 0.1, steps=100), 0.01, [0, 100], 2.0).round(3).tolist()
    [3.164, 2.115]
    """
    return equilibrium_norm(_rates(lr, check_real("step", step, at_least=0)), wd, grad_norm)


def gradient_growth(lr: Schedule, wd: npt.ArrayLike, step: npt.ArrayLike) -> Any:
    """Growth since step 0 of the gradient norm of the weights, ‖∇f‖ = g̃/ρ, that a falling learning rate brings about.

    At constant g̃ the norm follows the learning rate down, ρ* ∝ η^¼, so ‖∇f‖ grows as η^-¼: without any change of the
    loss on the sphere. `corrected_decay` removes it.

    Parameters
    ----------
    lr : schedule with η_t λ < 2.
    wd : λ > 0.
    step : step numbers >= 0; broadcasts with `wd`.

    Returns
    -------
    factor: float or array. True only while `tracking_lag` is small; after that ‖∇f‖ grows less.

    Raises
    ------
    TypeError, ValueError : `lr` is no schedule, or an argument is no number or out of range.

    Source: Defazio 2025, arXiv 2506.02285; docs/mathematics.md §9.

    Examples
    --------
    >>> from theory.schedules import Linear
    >>> round(gradient_growth(Linear(0.5, 0.005, steps=100), 0.01, 100), 2)  # 100^¼
    3.16
    """
    decay = check_real("wd", wd, above=0)
    return to_float(quasi_equilibrium_norm(lr, decay, 0) / quasi_equilibrium_norm(lr, decay, step))


def tracked_steps(lr: Schedule, wd: float, steps: int, *, start: int = 0, tolerance: float = 0.1) -> int:
    """Step up to which the norm, once it is at equilibrium, follows it: the first one at which the lag is too large.

    Parameters
    ----------
    lr : schedule.
    wd : λ > 0.
    steps : number of steps N of the run.
    start : first step that is looked at, such as the end of a warm-up, in which no norm can follow.
    tolerance : size of `tracking_lag` that still counts as following, > 0.

    Returns
    -------
    step number; N if it follows to the end. A sudden change of η ends it, though the norm comes back afterwards.

    Raises
    ------
    TypeError, ValueError : `lr` is no schedule, or an argument is no number or out of range.

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
    lost = np.flatnonzero(np.abs(lag) > limit)
    return begin + int(lost[0]) if lost.size else count


def _rates(lr: Schedule, at: FloatArray) -> FloatArray:
    if not callable(lr):
        raise TypeError(f"lr must be a schedule such as Cosine(0.1, 0.01, steps=1000), got {lr!r}")
    return check_real("lr", lr(at), above=0)
