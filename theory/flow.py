"""The norm under constant g̃ in continuous time: where it is, and how long it falls (docs/mathematics.md §4, §5)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from theory.arguments import (
    FloatArray,
    broadcast,
    check_intrinsic_lr,
    check_lr,
    check_order,
    check_real,
    check_wd,
    to_float,
)


def norm_flow(
    time: npt.ArrayLike, norm: npt.ArrayLike, lr: npt.ArrayLike, wd: npt.ArrayLike, grad_norm: npt.ArrayLike
) -> Any:
    """Norm after a time under constant g̃, by the differential equation dr/dt = -2ηλr + (ηg̃)²/r, r = ρ².

    ρ⁴(t) = ρ*⁴ + (ρ₀⁴-ρ*⁴)exp(-4ηλt) with ρ*⁴ = ηg̃²/(2λ). Its relative error in ρ⁴ against single steps is of the order
    of ηλ over times of the order of 1/ηλ, and about 2(ηλ)²t in a long free fall; it means nothing where single steps
    turn the weights far (η̃g̃ ≳ 1).

    Parameters
    ----------
    time : t >= 0 in steps.
    norm : ρ₀ > 0.
    lr, wd : η > 0, λ >= 0.
    grad_norm : g̃ >= 0 (units of the loss). All are numbers or arrays that broadcast.

    Returns
    -------
    ρ(t) in units of the weights: float or array.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Source: arXiv 2010.02916; docs/mathematics.md §5.

    Examples
    --------
    >>> round(norm_flow(1000, 4.0, 0.1, 0.01, grad_norm=2.0), 4)
    2.2208
    """
    start, rate, decay = check_real("norm", norm, above=0), check_lr(lr), check_wd(wd)
    gradient, passed = check_real("grad_norm", grad_norm, at_least=0), check_real("time", time, at_least=0)
    start, rate, decay, gradient, passed = broadcast(norm=start, lr=rate, wd=decay, grad_norm=gradient, time=passed)
    fall = 4 * rate * decay * passed
    # the integral of 2 exp(-4ηλs) over the time, finite also without decay
    growth = 2 * passed * np.where(fall > 0, -np.expm1(-fall) / np.where(fall > 0, fall, 1), 1.0)
    return to_float(_fourth_norm(start * np.exp(-fall / 4), np.sqrt(rate) * np.sqrt(gradient) * growth**0.25))


def decay_time(
    norm: npt.ArrayLike, norm_to: npt.ArrayLike, lr: npt.ArrayLike, wd: npt.ArrayLike, grad_norm: npt.ArrayLike
) -> Any:
    """Number of steps, not rounded, in which the norm falls from one value to another under constant g̃.

    t = N ln((u₀-u*)/(u₁-u*)) + (F-N) ln((u₀+w)/(u₁+w)) with u = ρ⁴, u* = b/(1-a), w = b/(1+a), N = -1/ln(2a-1) and
    F = -1/(2 ln a): the time of a flow that has the map's fixed point and its rates there and at infinity. Its error,
    measured, is below ηλ steps for ηλ <= 0.2 and below one step up to 0.29.

    Parameters
    ----------
    norm, norm_to : ρ₀ >= ρ₁ > 0.
    lr, wd : η > 0, λ >= 0 with (1-ηλ)² >= 1/2, that is ηλ <= 0.2928.
    grad_norm : g̃ >= 0 (units of the loss). All are numbers or arrays that broadcast.

    Returns
    -------
    steps: float or array; inf where ρ₁ is not above the equilibrium norm, 0 where ρ₀ = ρ₁.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range, or norm < norm_to.

    Source: docs/mathematics.md §4.

    Examples
    --------
    >>> round(decay_time(4.0, 2.5, 0.1, 0.01, grad_norm=2.0), 2)
    628.67
    """
    start, end = check_real("norm", norm, above=0), check_real("norm_to", norm_to, above=0)
    check_order("norm_to", end, "norm", start)
    rate, decay, gradient = check_lr(lr), check_wd(wd), check_real("grad_norm", grad_norm, at_least=0)
    intrinsic_lr = check_intrinsic_lr(rate, decay, below=1 - np.sqrt(0.5))
    start, end, rate, gradient, intrinsic_lr = broadcast(
        norm=start, norm_to=end, lr=rate, grad_norm=gradient, wd=intrinsic_lr
    )
    # in units of the start's r nothing overflows
    push = rate / start * (gradient / start)
    first, last = np.ones_like(start), (end / start) ** 2
    with np.errstate(divide="ignore"):
        reached = (intrinsic_lr > 0) & (last * np.sqrt(intrinsic_lr * (2 - intrinsic_lr)) > push)
    safe = np.where(reached, intrinsic_lr, 0.1), np.where(reached, push, 0.0)
    time = np.where(reached, flow_time(first, np.where(reached, last, 1.0), *safe), np.inf)
    return to_float(np.where(start == end, 0.0, time))


def flow_time(start: FloatArray, end: FloatArray, intrinsic_lr: FloatArray, q: FloatArray) -> FloatArray:
    """Time to fall from one r = ρ² to another with k = ηλ > 0 and q = ηg̃, in a flow with the rates of the map.

    With u = r², u⁺-u = (b-(1-a)u)(b+(1+a)u)/u: the time is a sum of the logarithms of the distances to the two zeros.

    Examples
    --------
    >>> round(float(flow_time(np.array(2.0), np.array(1.0), np.array(0.01), np.array(0.0))), 3)  # ln 2/(-2 ln 0.99)
    34.484
    """
    rest, other = q / np.sqrt(intrinsic_lr * (2 - intrinsic_lr)), q / np.sqrt(1 + (1 - intrinsic_lr) ** 2)
    far = -1 / (4 * np.log1p(-intrinsic_lr))  # steps per unit of -ln u at u = ∞, where u⁺ = a² u
    near = -1 / np.log1p(
        -2 * intrinsic_lr * (2 - intrinsic_lr)
    )  # the same of ln(u-u*) at the fixed point, where it shrinks by 2a-1
    plain_fall = 2 * np.log(start / end)
    nearness = [np.log(np.maximum((1 - rest / r) * (1 + rest / r), np.finfo(float).eps)) for r in (start, end)]
    others = np.log1p((other / start) ** 2) - np.log1p((other / end) ** 2)
    return np.asarray(far * plain_fall + near * (nearness[0] - nearness[1]) + (far - near) * others)


def _fourth_norm(x: FloatArray, y: FloatArray) -> FloatArray:
    """(x⁴ + y⁴)^¼."""
    large, small = np.maximum(x, y), np.minimum(x, y)
    ratio = np.where(large > 0, small / np.where(large > 0, large, 1), 0.0)
    return np.asarray(large * (1 + ratio**4) ** 0.25)
