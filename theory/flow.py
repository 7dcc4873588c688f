"""Norm under constant g̃ in continuous time, and the time it takes to decay (docs/mathematics.md §4, §5)."""

from __future__ import annotations

from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike

from theory.arguments import (
    FloatArray,
    Number,
    broadcast,
    check_intrinsic_lr,
    check_lr,
    check_order,
    check_real,
    check_wd,
    to_float,
)


@overload
def norm_flow(time: Number, norm: Number, lr: Number, wd: Number, grad_norm: Number) -> float: ...
@overload
def norm_flow(time: ArrayLike, norm: ArrayLike, lr: ArrayLike, wd: ArrayLike, grad_norm: ArrayLike) -> FloatArray: ...
def norm_flow(time: ArrayLike, norm: ArrayLike, lr: ArrayLike, wd: ArrayLike, grad_norm: ArrayLike) -> Any:
    """Norm after a time under constant g̃, from the differential equation dr/dt = -2ηλr + (ηg̃)²/r with r = ρ².

    ρ⁴(t) = ρ*⁴ + (ρ₀⁴-ρ*⁴)exp(-4ηλt) with ρ*⁴ = ηg̃²/(2λ). Compared with single steps, the relative error in ρ⁴ is of
    order ηλ over times of order 1/ηλ. It is about 2(ηλ)²t in a long decay without gradients. The equation does not
    apply where single steps rotate the weights far (η̃g̃ ≳ 1).

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
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: arXiv 2010.02916; docs/mathematics.md §5.

    Examples
    --------
    >>> round(norm_flow(1000, 4.0, 0.1, 0.01, grad_norm=2.0), 4)
    2.2208
    """
    start, lr, wd = check_real("norm", norm, above=0), check_lr(lr), check_wd(wd)
    gradient, elapsed = check_real("grad_norm", grad_norm, at_least=0), check_real("time", time, at_least=0)
    start, lr, wd, gradient, elapsed = broadcast(norm=start, lr=lr, wd=wd, grad_norm=gradient, time=elapsed)
    exponent = 4 * lr * wd * elapsed
    # the integral of 2 exp(-4ηλs) over the time, also finite without decay
    growth = 2 * elapsed * np.where(exponent > 0, -np.expm1(-exponent) / np.where(exponent > 0, exponent, 1), 1.0)
    return to_float(_fourth_norm(start * np.exp(-exponent / 4), np.sqrt(lr) * np.sqrt(gradient) * growth**0.25))


@overload
def decay_time(norm: Number, norm_to: Number, lr: Number, wd: Number, grad_norm: Number) -> float: ...
@overload
def decay_time(
    norm: ArrayLike, norm_to: ArrayLike, lr: ArrayLike, wd: ArrayLike, grad_norm: ArrayLike
) -> FloatArray: ...
def decay_time(norm: ArrayLike, norm_to: ArrayLike, lr: ArrayLike, wd: ArrayLike, grad_norm: ArrayLike) -> Any:
    """Number of steps, not rounded, in which the norm decays from one value to another under constant g̃.

    t = N ln((u₀-u*)/(u₁-u*)) + (F-N) ln((u₀+w)/(u₁+w)) with u = ρ⁴, a = (1-ηλ)², b = (ηg̃)², u* = b/(1-a), w = b/(1+a),
    N = -1/ln(2a-1) and F = -1/(2 ln a). This flow has the fixed point of the map, and decays like the map both there
    and at infinity. The measured error is below ηλ steps for ηλ <= 0.2, and below one step up to 0.29.

    Parameters
    ----------
    norm, norm_to : ρ₀ >= ρ₁ > 0.
    lr, wd : η > 0, λ >= 0 with (1-ηλ)² >= 1/2, that is ηλ <= 0.2928.
    grad_norm : g̃ >= 0 (units of the loss). All are numbers or arrays that broadcast.

    Returns
    -------
    steps: float or array; inf where ρ₁ is at or below the equilibrium norm, 0 where ρ₀ = ρ₁.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range, or norm < norm_to.

    Source: docs/mathematics.md §4.

    Examples
    --------
    >>> round(decay_time(4.0, 2.5, 0.1, 0.01, grad_norm=2.0), 2)
    628.67
    """
    start, end = check_real("norm", norm, above=0), check_real("norm_to", norm_to, above=0)
    check_order("norm_to", end, "norm", start)
    lr, wd, gradient = check_lr(lr), check_wd(wd), check_real("grad_norm", grad_norm, at_least=0)
    intrinsic_lr = check_intrinsic_lr(lr, wd, below=1 - np.sqrt(0.5))
    start, end, lr, gradient, intrinsic_lr = broadcast(
        norm=start, norm_to=end, lr=lr, grad_norm=gradient, wd=intrinsic_lr
    )
    # in units of the initial r nothing overflows
    push = lr / start * (gradient / start)
    first, last = np.ones_like(start), (end / start) ** 2
    with np.errstate(divide="ignore"):
        reached = (intrinsic_lr > 0) & (last * np.sqrt(intrinsic_lr * (2 - intrinsic_lr)) > push)
    safe = np.where(reached, intrinsic_lr, 0.1), np.where(reached, push, 0.0)
    time = np.where(reached, flow_time(first, np.where(reached, last, 1.0), *safe), np.inf)
    return to_float(np.where(start == end, 0.0, time))


def flow_time(start: FloatArray, end: FloatArray, intrinsic_lr: FloatArray, q: FloatArray) -> FloatArray:
    """Time in which r = ρ² decays from `start` to `end` for ηλ > 0 and q = ηg̃, as in `decay_time`.

    With u = r², u⁺-u = (b-(1-a)u)(b+(1+a)u)/u. The time is a sum of logarithms of the distances to the two zeros.
    """
    fixed_point, other_zero = q / np.sqrt(intrinsic_lr * (2 - intrinsic_lr)), q / np.sqrt(1 + (1 - intrinsic_lr) ** 2)
    # steps per unit of -ln u at u = ∞, where u⁺ = a² u
    far = -1 / (4 * np.log1p(-intrinsic_lr))
    # steps per unit of -ln(u-u*) at the fixed point, where u-u* shrinks by 2a-1
    near = -1 / np.log1p(-2 * intrinsic_lr * (2 - intrinsic_lr))
    free_term = 2 * np.log(start / end)
    near_terms = [
        np.log(np.maximum((1 - fixed_point / r) * (1 + fixed_point / r), np.finfo(float).eps)) for r in (start, end)
    ]
    other_term = np.log1p((other_zero / start) ** 2) - np.log1p((other_zero / end) ** 2)
    return np.asarray(far * free_term + near * (near_terms[0] - near_terms[1]) + (far - near) * other_term)


def _fourth_norm(x: FloatArray, y: FloatArray) -> FloatArray:
    """Return (x⁴ + y⁴)^¼."""
    large, small = np.maximum(x, y), np.minimum(x, y)
    ratio = np.where(large > 0, small / np.where(large > 0, large, 1), 0.0)
    return np.asarray(large * (1 + ratio**4) ** 0.25)
