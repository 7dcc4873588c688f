"""How the norm follows its equilibrium when the learning rate changes (docs/mathematics.md §9)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from theory.arguments import FloatArray, broadcast, learning_rate, plain, real, weight_decay
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
    decay, at = weight_decay(wd), real("step", step, at_least=0)
    decay, at = broadcast(wd=decay, step=at)
    # central difference of ln η over one step, one-sided at the beginning
    before = np.maximum(at - 0.5, 0)
    change = np.log(_rates(lr, at + 0.5) / _rates(lr, before)) / (at + 0.5 - before)
    with np.errstate(divide="ignore", invalid="ignore"):
        return plain(np.where(change == 0, 0.0, -change / (16 * _rates(lr, at) * decay)))


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
    decay, at = weight_decay(wd), real("step", step, at_least=0)
    decay, at, largest = broadcast(wd=decay, step=at, lr_max=learning_rate(lr_max, "lr_max"))
    return plain(decay * _rates(lr, at) / largest)


def _rates(lr: Schedule, at: FloatArray) -> FloatArray:
    if not callable(lr):
        raise TypeError(f"lr must be a schedule such as Cosine(0.1, 0.01, steps=1000), got {lr!r}")
    return real("lr", lr(at), above=0)
