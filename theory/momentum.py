"""Norm under heavy-ball momentum: bounds, decay, relaxation (docs/mathematics.md §7).

Two consecutive steps x⁺ = (1+μ-ηλ)x - μx⁻ - η∇f, with ∇f orthogonal to x, give for any gradients

    r⁺ = (1+μ-γ) r - μ r⁻ + (η²‖∇f‖² + μ‖x⁺-x⁻‖²)/(1+μ),   γ = ηλ(2 - ηλ/(1+μ)),   r = ‖x‖² .

Without the last term this is a linear recursion. r is never below its solution if its roots are real: γ <= (1-√μ)².
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, overload

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from theory.arguments import (
    Flag,
    FloatArray,
    Number,
    Value,
    broadcast,
    check_flag,
    check_lr,
    check_real,
    check_steps,
    check_wd,
    format_number,
    to_float,
)
from theory.bounds import Bounds, states_at
from theory.period import log_root, whole_steps


class MomentumRelaxation(NamedTuple, Generic[Value, Flag]):
    """Relaxation time in steps of a small deviation of the norm, and whether the norm rings meanwhile."""

    time: Value
    rings: Flag


@overload
def momentum_lower_bound(lr: Number, wd: Number, grad_norm_min: Number, *, momentum: Number) -> float: ...
@overload
def momentum_lower_bound(
    lr: ArrayLike, wd: ArrayLike, grad_norm_min: ArrayLike, *, momentum: ArrayLike
) -> FloatArray: ...
def momentum_lower_bound(lr: ArrayLike, wd: ArrayLike, grad_norm_min: ArrayLike, *, momentum: ArrayLike) -> Any:
    """Lower bound of lim inf ρ for heavy-ball SGD with coupled decay, if g̃ >= ℓ at every step.

    With γ = ηλ(2-ηλ/(1+μ)) and m = (1-√μ)², the bound is

    - ρ⁴ = ηℓ²/(λ(2(1+μ)-ηλ)) for 2γ <= m. Gradients of alternating sign keep the norm there for ever.
    - ρ² = 2ηℓ√((m-γ)/(1+μ))/m for m/2 < γ < m.

    For 2γ <= m and ηλ < 1, a run that starts at or above the bound with zero velocity is never below it. Without
    momentum the bound is the lower end of `norm_bounds` (for (1-ηλ)² < 1/2: the lowest of all L).

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0, ηλ < 2(1+μ); numbers or arrays that broadcast.
    grad_norm_min : ℓ >= 0 (units of the loss).
    momentum : μ, 0 <= μ < 1.

    Returns
    -------
    ρ in units of the weights: float or array. It is 0, which is always valid, where γ >= m or ℓ = 0. It is `inf` for
    wd = 0 and ℓ > 0, where the norm grows for ever.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §7.

    Examples
    --------
    >>> round(momentum_lower_bound(0.1, 0.001, 1.0, momentum=0.9), 4)
    2.2649
    """
    lr, wd, mu, low = _check_arguments(
        lr, wd, momentum, grad_norm_min=check_real("grad_norm_min", grad_norm_min, at_least=0)
    )
    intrinsic_lr = lr * wd
    gamma, margin, largest = _recursion_constants(intrinsic_lr, mu)
    with np.errstate(divide="ignore", invalid="ignore"):
        attained = 1 / np.sqrt((1 + mu) * gamma)
        overshooting = 2 * np.sqrt(np.maximum(margin, 0) / (1 + mu)) / largest
        sq_norm = np.where(2 * gamma <= largest, attained, overshooting)
    return to_float(np.where(low == 0, 0.0, np.sqrt(lr) * np.sqrt(low) * np.sqrt(np.where(low == 0, 0.0, sq_norm))))


def momentum_envelope(
    steps: int | ArrayLike,
    norm: ArrayLike,
    lr: ArrayLike,
    wd: ArrayLike,
    grad_norm_min: ArrayLike,
    *,
    momentum: ArrayLike,
) -> FloatArray:
    """Lower bound of the norm after t steps of heavy-ball SGD with coupled decay, if g̃ >= ℓ at every step.

    The run starts with zero velocity. r = ρ² is never below the recursion R⁺ = (1+μ)R - μR⁻ + φ(R), with γ and m as in
    `momentum_lower_bound`. φ(R) = -γR + β/R with β = (ηℓ)²/(1+μ), continued by its tangent below R = √(β/(m-γ)). The
    recursion starts at R₀ = r₀ and R₁ = (1-ηλ)²r₀ + (ηℓ)²/r₀; for other first two norms it holds with R₁ = r₁. It tends
    to the square of `momentum_lower_bound`.

    For 2γ <= m, R lies above the solution of a linear recursion with the same first two values: e⁺ = (1+μ-2γ)e - μe⁻
    with e = R - bound². Without momentum R is the lower end of `norm_envelope` for unlimited L.

    Parameters
    ----------
    steps : last step N (then t = 0 … N), or a one-dimensional array of step numbers t >= 0.
    norm : ρ > 0 at t = 0, where the velocity is zero.
    lr, wd, grad_norm_min, momentum : as in `momentum_lower_bound`; all broadcast with `norm`.

    Returns
    -------
    ρ: array of the broadcast shape with the steps as last axis. Where γ > m it is 0 for t >= 2, which is always valid.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §7.

    Examples
    --------
    >>> momentum_envelope(3, 1.0, 0.1, 0.01, 1.0, momentum=0.5).round(4)
    array([1.    , 1.004 , 1.0083, 1.0126])
    """
    step_numbers = check_steps(steps)
    start, low = check_real("norm", norm, above=0), check_real("grad_norm_min", grad_norm_min, at_least=0)
    lr, wd, mu, start, low = _check_arguments(lr, wd, momentum, norm=start, grad_norm_min=low)
    intrinsic_lr = lr * wd
    gamma, margin, largest = _recursion_constants(intrinsic_lr, mu)
    # in units where ηℓ, or for ℓ = 0 the first norm, is 1, neither a large nor a small ℓ overflows
    unit = np.where(low > 0, np.sqrt(lr) * np.sqrt(low), start)
    push = np.where(low > 0, 1.0, 0.0)
    beta = push / (1 + mu)
    with np.errstate(divide="ignore", invalid="ignore"):
        turning = np.sqrt(beta / margin)
    tangent = 2 * np.sqrt(beta * np.maximum(margin, 0))

    def recursion() -> Iterator[FloatArray]:
        # the change per step is stored, because the difference of two norms would lose its digits; it is NaN at first,
        # because the first step has a law of its own and must not count as converged
        current, change = (start / unit) ** 2, np.full(start.shape, np.nan)
        yield np.stack((current, change))
        change = intrinsic_lr * (intrinsic_lr - 2) * current + push / current
        while True:
            # below the margin a step leads to 0, also from a norm that overflowed
            current = np.where((margin < 0) & np.isnan(change), 0.0, current + change)
            yield np.stack((current, change))
            growth = np.where(push > 0, beta / current, 0.0)
            change = mu * change + np.where(current >= turning, growth - gamma * current, tangent - largest * current)
            change = np.where(margin < 0, -current, change)

    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        squares = states_at(step_numbers, recursion())[0]
    return np.asarray(unit[..., np.newaxis] * np.sqrt(np.maximum(squares, 0)))


@overload
def momentum_least_decay_steps(lr: Number, wd: Number, ratio: Number, *, momentum: Number) -> float: ...
@overload
def momentum_least_decay_steps(
    lr: ArrayLike, wd: ArrayLike, ratio: ArrayLike, *, momentum: ArrayLike
) -> FloatArray: ...
def momentum_least_decay_steps(lr: ArrayLike, wd: ArrayLike, ratio: ArrayLike, *, momentum: ArrayLike) -> Any:
    """Least number of steps in which the norm of heavy-ball SGD with coupled decay can decrease by a factor.

    For any gradients it is 2 ln(ratio)/(-ln p), where p is the larger root of z² - (1+μ-γ)z + μ and
    γ = ηλ(2-ηλ/(1+μ)). The number counts from a peak, a norm not below that of the step before, to any later trough.
    In a run with ηλ < 1 and zero initial velocity, each step multiplies the norm by √p or more.

    Without momentum √p = 1-ηλ, as in `least_decay_steps`. With momentum p ≈ 1-2ηλ/(1-μ), the decay of weights without
    gradients, so no bound is better to first order in ηλ.

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0, ηλ < 2(1+μ); numbers or arrays that broadcast.
    ratio : norm at the peak over norm at the trough, >= 1.
    momentum : μ, 0 <= μ < 1.

    Returns
    -------
    whole number of steps, as float or array. It is 0, which is always valid, where γ > (1-√μ)². It is `inf` without
    decay for a ratio above 1.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §7.

    Examples
    --------
    >>> momentum_least_decay_steps(0.5, 0.0001, ratio=2.0, momentum=0.9)
    1374.0
    """
    lr, wd, mu, ratio = _check_arguments(lr, wd, momentum, ratio=check_real("ratio", ratio, at_least=1))
    intrinsic_lr, log_sq_ratio = lr * wd, 2 * np.log(ratio)
    gamma, margin, _ = _recursion_constants(intrinsic_lr, mu)
    trace = (1 + mu - intrinsic_lr) ** 2 / (1 + mu)
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithm = log_root(gamma, trace, 1 - mu, margin * (trace + 2 * np.sqrt(mu)))
        steps = whole_steps(log_sq_ratio, -logarithm)
    return to_float(np.where(margin < 0, 0.0, steps))


@overload
def momentum_stationary_bounds(
    lr: Number, wd: Number, mean_sq_gradient: Number, *, momentum: Number
) -> Bounds[float]: ...
@overload
def momentum_stationary_bounds(
    lr: ArrayLike, wd: ArrayLike, mean_sq_gradient: ArrayLike, *, momentum: ArrayLike
) -> Bounds[FloatArray]: ...
def momentum_stationary_bounds(
    lr: ArrayLike, wd: ArrayLike, mean_sq_gradient: ArrayLike, *, momentum: ArrayLike
) -> Any:
    """Interval that contains √E‖x‖² of every stationary run of heavy-ball SGD with coupled decay.

    E‖x‖² lies between ηE‖∇f‖²/(λ(2(1+μ)-ηλ)) and ((1+μ)/(1-μ))² times that, for any distribution of the gradients.
    Gradients that reverse at every step attain the lower end. Gradients that turn the weights on a circle attain the
    upper end. Independent gradients give (1+μ)/(1-μ) times the lower end, half-way on a logarithmic scale.

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0, ηλ < 2(1+μ); numbers or arrays that broadcast.
    mean_sq_gradient : E‖∇f‖² >= 0, the mean square of the gradient itself, not of g̃ (squared loss per squared weight).
    momentum : μ, 0 <= μ < 1.

    Returns
    -------
    Bounds(lower, upper) of √E‖x‖² in units of the weights: floats or arrays. Without decay: (inf, inf), since no run
    with gradients is stationary, or (0, inf) if there are no gradients either.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §7.

    Examples
    --------
    >>> bounds = momentum_stationary_bounds(0.1, 0.001, 0.01, momentum=0.9)
    >>> round(bounds.lower, 4), round(bounds.upper, 4)
    (0.513, 9.7469)
    """
    square = check_real("mean_sq_gradient", mean_sq_gradient, at_least=0)
    lr, wd, mu, square = _check_arguments(lr, wd, momentum, mean_sq_gradient=square)
    with np.errstate(divide="ignore", invalid="ignore"):
        lower = np.sqrt(lr) * np.sqrt(square) / np.sqrt(wd) / np.sqrt(2 * (1 + mu) - lr * wd)
        upper = lower * (1 + mu) / (1 - mu)
    constant = (square == 0) & (wd == 0)
    return Bounds(to_float(np.where(constant, 0.0, lower)), to_float(np.where(constant, np.inf, upper)))


@overload
def momentum_relaxation(
    lr: Number, wd: Number, *, momentum: Number, decoupled: bool = False
) -> MomentumRelaxation[float, bool]: ...
@overload
def momentum_relaxation(
    lr: ArrayLike, wd: ArrayLike, *, momentum: ArrayLike, decoupled: bool = False
) -> MomentumRelaxation[FloatArray, npt.NDArray[np.bool_]]: ...
def momentum_relaxation(lr: ArrayLike, wd: ArrayLike, *, momentum: ArrayLike, decoupled: bool = False) -> Any:
    """Relaxation time of a small deviation of the norm from equilibrium under heavy ball, and whether the norm rings.

    This holds for gradients that are independent in time, in many dimensions. E‖x‖², E⟨x,v⟩ and E‖v‖² relax with the
    eigenvalues π² and the roots of z² - (1+π-K)z + π. Coupled decay has π = μ and K = 4ηλ - 2(ηλ)²/(1+μ). Decoupled
    decay has π = sμ and K = 2(1-s²)(1-μ²)/(1+sμ) with s = 1-ηλ.

    The roots dominate. They are complex for (1-√π)² < K < (1+√π)². The norm then rings, and the time is that of the
    buffer, -2/ln π, for any K. Otherwise it is about (1-μ)/K steps. Without momentum it is `relaxation_time`.

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0; ηλ < 2(1+μ), for decoupled decay ηλ < 2; numbers or arrays that broadcast.
    momentum : μ, 0 <= μ < 1.
    decoupled : whether decay acts on the weights directly and does not enter the buffer.

    Returns
    -------
    MomentumRelaxation(time, rings), floats and bools or arrays. `time` is in steps: `inf` where wd = 0 or where a
    deviation changes its sign for ever (ηλ = 1+μ), and 0 where the multiplier vanishes. `rings` is True where the
    dominant roots are complex.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §7.

    Examples
    --------
    >>> time, rings = momentum_relaxation(0.1, 0.0005, momentum=0.9)
    >>> round(time, 1), rings
    (490.3, False)
    """
    decoupled = check_flag("decoupled", decoupled)
    lr, wd, mu = _check_arguments(lr, wd, momentum, decoupled=decoupled)
    intrinsic_lr = lr * wd
    if decoupled:
        product_of_roots, one_minus_product = (1 - intrinsic_lr) * mu, 1 - mu + intrinsic_lr * mu
        change = 2 * intrinsic_lr * (2 - intrinsic_lr) * (1 - mu) * (1 + mu) / (1 + product_of_roots)
        mirrored = 2 * (1 + mu - intrinsic_lr) ** 2 / (1 + product_of_roots)
    else:
        product_of_roots, one_minus_product = mu, 1 - mu
        change, mirrored = 2 * intrinsic_lr * (2 - intrinsic_lr / (1 + mu)), 2 * (1 + mu - intrinsic_lr) ** 2 / (1 + mu)
    # For K above the ringing range, the roots are those of K' = 2(1+π)-K with opposite sign.
    nearer, farther = np.minimum(change, mirrored), np.maximum(change, mirrored)
    root = np.sqrt(np.maximum(product_of_roots, 0))
    largest = (one_minus_product / (1 + root)) ** 2
    trace = (farther - nearer) / 2
    product_form = (largest - nearer) * (farther - largest)
    discriminant = np.where(product_of_roots > 0, product_form, trace**2 - 4 * np.minimum(product_of_roots, 0))
    rings = discriminant < 0
    with np.errstate(divide="ignore", invalid="ignore"):
        real_roots = log_root(nearer, trace, one_minus_product, np.maximum(discriminant, 0))
        logarithm = np.where(rings, np.log1p(-one_minus_product) / 2, real_roots)
        time = np.where(logarithm == 0, np.inf, -1 / logarithm)
    return MomentumRelaxation(to_float(time), bool(rings) if rings.ndim == 0 else rings)


def _recursion_constants(intrinsic_lr: FloatArray, mu: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return γ, m-γ and m = (1-√μ)², the largest γ at which z² - (1+μ-γ)z + μ has real roots.

    1-√μ and m-γ = A² - B², with A = (1+μ-ηλ)/√(1+μ) and B² = 2√μ, are written without avoidable cancellation.
    """
    largest = ((1 - mu) / (1 + np.sqrt(mu))) ** 2
    one, other = np.sqrt(1 + mu), np.sqrt(2 * np.sqrt(mu))
    margin = (largest / (one + other) - intrinsic_lr / one) * (one + other - intrinsic_lr / one)
    return intrinsic_lr * (2 - intrinsic_lr / (1 + mu)), margin, largest


def _check_arguments(
    lr: ArrayLike, wd: ArrayLike, momentum: ArrayLike, *, decoupled: bool = False, **others: FloatArray
) -> tuple[FloatArray, ...]:
    mu = check_real("momentum", momentum, at_least=0, below=1)
    checked = broadcast(lr=check_lr(lr), wd=check_wd(wd), momentum=mu, **others)
    lr, wd, mu = checked[:3]
    product, limit = lr * wd, np.asarray(2.0 if decoupled else 2 * (1 + mu))
    good = product < limit
    if not good.all():
        index = tuple(np.argwhere(~good)[0])
        allowed = float(np.broadcast_to(limit, good.shape)[index])
        raise ValueError(
            f"lr * wd must be < {format_number(allowed)} here, got {format_number(product[index])} "
            f"(lr={float(lr[index]):g}, wd={float(wd[index]):g}, momentum={float(mu[index]):g})"
        )
    return checked
