"""What heavy-ball momentum does to the norm: bounds, falls, relaxation (docs/mathematics.md §7).

Two consecutive steps x⁺ = (1+μ-ηλ)x - μx⁻ - η∇f, with ∇f at a right angle to x, give for any gradients

    r⁺ = (1+μ-γ) r - μ r⁻ + (η²‖∇f‖² + μ‖x⁺-x⁻‖²)/(1+μ),   γ = ηλ(2 - ηλ/(1+μ)),   r = ‖x‖² .

Without the last term this is a linear recursion that r never undercuts, as long as its roots are real: γ <= (1-√μ)².
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from theory.arguments import FloatArray, broadcast, check_lr, check_real, check_steps, check_wd, to_float
from theory.bounds import Bounds


class MomentumRelaxation(NamedTuple):
    """How a small deviation of the norm from equilibrium dies: its time in steps, and whether it rings meanwhile."""

    time: Any
    rings: Any


def momentum_lower_bound(
    lr: npt.ArrayLike, wd: npt.ArrayLike, grad_norm_min: npt.ArrayLike, *, momentum: npt.ArrayLike
) -> Any:
    """Norm below which heavy-ball SGD with coupled decay cannot stay: lim inf ρ is at least this if g̃ >= ℓ always.

    With γ = ηλ(2-ηλ/(1+μ)) and m = (1-√μ)²: ρ⁴ = ηℓ²/(λ(2(1+μ)-ηλ)) for 2γ <= m, which gradients of changing sign hold
    for ever, and ρ² = 2ηℓ√((m-γ)/(1+μ))/m for m/2 < γ < m. A run that starts at rest, for 2γ <= m and ηλ < 1 at or
    above the floor, is never below it. Without momentum it is the lower end of `norm_bounds` (for ηλ with
    (1-ηλ)² < 1/2: of all L).

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0, ηλ < 2(1+μ); numbers or arrays that broadcast.
    grad_norm_min : ℓ >= 0 (units of the loss).
    momentum : μ, 0 <= μ < 1.

    Returns
    -------
    ρ in units of the weights: float or array; 0, which is always true, where γ >= m or ℓ = 0; `inf` for wd = 0 and
    ℓ > 0 (the norm grows for ever).

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Source: docs/mathematics.md §7.

    Examples
    --------
    >>> round(momentum_lower_bound(0.1, 0.001, 1.0, momentum=0.9), 4)
    2.2649
    """
    lr, wd, mu, low = _checked(lr, wd, momentum, grad_norm_min=check_real("grad_norm_min", grad_norm_min, at_least=0))
    intrinsic_lr = lr * wd
    fall, margin, largest = _rates(intrinsic_lr, mu)
    with np.errstate(divide="ignore", invalid="ignore"):
        resting = 1 / np.sqrt((1 + mu) * fall)
        overshooting = 2 * np.sqrt(np.maximum(margin, 0) / (1 + mu)) / largest
        sq_norm = np.where(2 * fall <= largest, resting, overshooting)
    return to_float(np.where(low == 0, 0.0, np.sqrt(lr) * np.sqrt(low) * np.sqrt(np.where(low == 0, 0.0, sq_norm))))


def momentum_envelope(
    steps: int | npt.ArrayLike,
    norm: npt.ArrayLike,
    lr: npt.ArrayLike,
    wd: npt.ArrayLike,
    grad_norm_min: npt.ArrayLike,
    *,
    momentum: npt.ArrayLike,
) -> Any:
    """Norm that heavy-ball SGD with coupled decay, started at rest, has at least after t steps if g̃ >= ℓ always.

    r = ρ² is never below the recursion R⁺ = (1+μ)R - μR⁻ + φ(R) from R₀ = r₀, R₁ = (1-ηλ)²r₀ + (ηℓ)²/r₀, where
    φ(R) = -γR + β/R with β = (ηℓ)²/(1+μ), continued by its tangent below R = √(β/(m-γ)); γ and m as in
    `momentum_lower_bound`. With other first two norms it holds from R₀ = r₀ and R₁ = r₁. It ends there.
    For 2γ <= m it lies above the solution, with the same first two values, of the linear recursion
    e⁺ = (1+μ-2γ)e - μe⁻ of e = R - floor². Without momentum it is the lower end of `norm_envelope` for L without limit.

    Parameters
    ----------
    steps : last step N (then t = 0 … N), or a one-dimensional array of the wanted t >= 0.
    norm : ρ at t = 0, > 0, where the velocity is zero.
    lr, wd, grad_norm_min, momentum : as in `momentum_lower_bound`; all broadcast with `norm`.

    Returns
    -------
    ρ: array of the broadcast shape with the steps as last axis; for t >= 2 it is 0, which is always true, where γ > m.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Source: docs/mathematics.md §7.

    Examples
    --------
    >>> momentum_envelope(3, 1.0, 0.1, 0.01, 1.0, momentum=0.5).round(4)
    array([1.    , 1.004 , 1.0083, 1.0126])
    """
    wanted = check_steps(steps)
    start, low = check_real("norm", norm, above=0), check_real("grad_norm_min", grad_norm_min, at_least=0)
    lr, wd, mu, start, low = _checked(lr, wd, momentum, norm=start, grad_norm_min=low)
    intrinsic_lr = lr * wd
    fall, margin, largest = _rates(intrinsic_lr, mu)
    # in units where ηℓ is 1, or the first norm is, neither a large nor a small ℓ overflows
    unit = np.where(low > 0, np.sqrt(lr) * np.sqrt(low), start)
    push = np.where(low > 0, 1.0, 0.0)
    first = (start / unit) ** 2
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        beta = push / (1 + mu)
        turning = np.sqrt(beta / margin)
        tangent = 2 * np.sqrt(beta * np.maximum(margin, 0))
        squares = np.empty((*start.shape, wanted.size))
        order = np.argsort(wanted, kind="stable")
        # the change of a step is carried along, because the difference of two norms would have lost its digits
        current, change = first, np.zeros_like(first)
        done, step, at_rest = 0, 0, False
        while done < wanted.size:
            if wanted[order[done]] == step or at_rest:
                squares[..., order[done]] = current
                done += 1
                continue
            if step == 0:
                change_now = intrinsic_lr * (intrinsic_lr - 2) * current + push / current
            else:
                growth = np.where(push > 0, beta / current, 0.0)
                change_now = mu * change + np.where(
                    current >= turning, growth - fall * current, tangent - largest * current
                )
            after = current + change_now
            if step >= 1:
                after = np.where(margin < 0, 0.0, after)
            at_rest = step > 1 and bool(np.array_equal(after, current) and np.array_equal(change_now, change))
            current, change, step = after, change_now, step + 1
    return unit[..., np.newaxis] * np.sqrt(np.maximum(squares, 0))


def momentum_least_decay_steps(
    lr: npt.ArrayLike, wd: npt.ArrayLike, ratio: npt.ArrayLike, *, momentum: npt.ArrayLike
) -> Any:
    """Least number of steps in which the norm of heavy-ball SGD with coupled decay can fall by a factor.

    With p the larger root of z² - (1+μ-γ)z + μ, γ = ηλ(2-ηλ/(1+μ)): 2 ln(ratio)/(-ln p) steps, whatever the gradients,
    from a peak, that is a norm not below the one a step before, to any later trough. A run that starts at rest with
    ηλ < 1 loses no more than √p in any step. Without momentum √p = 1-ηλ, and this is `least_decay_steps`; with momentum
    p ≈ 1-2ηλ/(1-μ), the rate at which weights without gradients decay, so no bound is better to first order in ηλ.

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0, ηλ < 2(1+μ); numbers or arrays that broadcast.
    ratio : norm at the peak over norm at the trough, >= 1.
    momentum : μ, 0 <= μ < 1.

    Returns
    -------
    whole number of steps, as float or array; 0, which is always true, where γ > (1-√μ)²; `inf` without decay for a
    ratio above 1.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Source: docs/mathematics.md §7.

    Examples
    --------
    >>> momentum_least_decay_steps(0.5, 0.0001, ratio=2.0, momentum=0.9)
    1374.0
    """
    lr, wd, mu, ratio = _checked(lr, wd, momentum, ratio=check_real("ratio", ratio, at_least=1))
    intrinsic_lr, falls = lr * wd, 2 * np.log(ratio)
    fall, margin, _ = _rates(intrinsic_lr, mu)
    trace = (1 + mu - intrinsic_lr) ** 2 / (1 + mu)
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithm = _log_root(fall, trace, mu, margin * (trace + 2 * np.sqrt(mu)))
        steps = np.where(falls == 0, 0.0, falls / -logarithm)
        # a quotient that is a whole number but for rounding is that number
        near = np.round(steps)
        whole = np.where(np.abs(steps - near) <= 1e-12 * np.maximum(steps, 1), near, np.ceil(steps))
    return to_float(np.where(margin < 0, 0.0, whole))


def momentum_stationary_bounds(
    lr: npt.ArrayLike, wd: npt.ArrayLike, mean_sq_gradient: npt.ArrayLike, *, momentum: npt.ArrayLike
) -> Bounds:
    """Interval that contains √E‖x‖² of every stationary trace of heavy-ball SGD with coupled decay.

    E‖x‖² lies between ηE‖∇f‖²/(λ(2(1+μ)-ηλ)) and ((1+μ)/(1-μ))² times that, whatever the law of the gradients.
    Gradients that turn back at every step attain the lower end, those that turn the weights on a circle the upper one;
    independent gradients lie at (1+μ)/(1-μ) times the lower end, half-way on a logarithmic scale.

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0, ηλ < 2(1+μ); numbers or arrays that broadcast.
    mean_sq_gradient : E‖∇f‖² >= 0, the mean square of the gradient itself, not of g̃ (squared loss per squared weight).
    momentum : μ, 0 <= μ < 1.

    Returns
    -------
    Bounds(lower, upper) of √E‖x‖² in units of the weights: floats or arrays; without decay (inf, inf), since no trace
    with gradients is stationary, and (0, inf) if there are no gradients either.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Source: docs/mathematics.md §7.

    Examples
    --------
    >>> bounds = momentum_stationary_bounds(0.1, 0.001, 0.01, momentum=0.9)
    >>> round(bounds.lower, 4), round(bounds.upper, 4)
    (0.513, 9.7469)
    """
    square = check_real("mean_sq_gradient", mean_sq_gradient, at_least=0)
    lr, wd, mu, square = _checked(lr, wd, momentum, mean_sq_gradient=square)
    with np.errstate(divide="ignore", invalid="ignore"):
        lower = np.sqrt(lr) * np.sqrt(square) / np.sqrt(wd) / np.sqrt(2 * (1 + mu) - lr * wd)
        upper = lower * (1 + mu) / (1 - mu)
    undecided = (square == 0) & (wd == 0)
    return Bounds(to_float(np.where(undecided, 0.0, lower)), to_float(np.where(undecided, np.inf, upper)))


def momentum_relaxation(
    lr: npt.ArrayLike, wd: npt.ArrayLike, *, momentum: npt.ArrayLike, decoupled: bool = False
) -> MomentumRelaxation:
    """Steps in which a small deviation of the norm from equilibrium shrinks by e under heavy ball, and if it rings.

    For gradients that are independent in time, in many dimensions. E‖x‖², E⟨x,v⟩ and E‖v‖² relax with the eigenvalues
    π² and the roots of z² - (1+π-K)z + π, where π = μ and K = 4ηλ - 2(ηλ)²/(1+μ), or, for decoupled decay with
    s = 1-ηλ, π = sμ and K = 2(1-s²)(1-μ²)/(1+sμ). The roots lead. They are complex for (1-√π)² < K < (1+√π)²: the norm
    then rings, and the time is that of the buffer, -2/ln π, whatever the decay. Otherwise it is about (1-μ)/K steps.
    Without momentum the time is `relaxation_time`.

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0; ηλ < 2(1+μ), for decoupled decay ηλ < 2; numbers or arrays that broadcast.
    momentum : μ, 0 <= μ < 1.
    decoupled : the weights decay by themselves, and the decay does not enter the buffer.

    Returns
    -------
    MomentumRelaxation(time, rings): steps, `inf` where wd = 0 or where a deviation changes its sign for ever
    (ηλ = 1+μ), 0 where the multiplier vanishes; and whether the leading roots are complex. Floats and bools or arrays.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Source: docs/mathematics.md §7.

    Examples
    --------
    >>> time, rings = momentum_relaxation(0.1, 0.0005, momentum=0.9)
    >>> round(time, 1), rings
    (490.3, False)
    """
    if not isinstance(decoupled, (bool, np.bool_)):
        raise TypeError(f"decoupled must be True or False, got {decoupled!r}")
    lr, wd, mu = _checked(lr, wd, momentum, decoupled=bool(decoupled))
    intrinsic_lr = lr * wd
    if decoupled:
        own, one_minus_own = (1 - intrinsic_lr) * mu, 1 - mu + intrinsic_lr * mu
        change = 2 * intrinsic_lr * (2 - intrinsic_lr) * (1 - mu) * (1 + mu) / (1 + own)
        mirrored = 2 * (1 + mu - intrinsic_lr) ** 2 / (1 + own)
    else:
        own, one_minus_own = mu, 1 - mu
        change, mirrored = 2 * intrinsic_lr * (2 - intrinsic_lr / (1 + mu)), 2 * (1 + mu - intrinsic_lr) ** 2 / (1 + mu)
    # Roots of the other sign, beyond the ringing, are those of K' = 2(1+π)-K with the sign changed.
    nearer, farther = np.minimum(change, mirrored), np.maximum(change, mirrored)
    root = np.sqrt(np.maximum(own, 0))
    largest = (one_minus_own / (1 + root)) ** 2
    trace = (farther - nearer) / 2
    product_form = (largest - nearer) * (farther - largest)
    discriminant = np.where(own > 0, product_form, trace**2 - 4 * np.minimum(own, 0))
    rings = discriminant < 0
    with np.errstate(divide="ignore", invalid="ignore"):
        real_roots = _log_root(nearer, trace, own, np.maximum(discriminant, 0))
        logarithm = np.where(rings, np.log1p(-one_minus_own) / 2, real_roots)
        time = np.where(logarithm == 0, np.inf, -1 / logarithm)
    return MomentumRelaxation(to_float(time), bool(rings) if rings.ndim == 0 else rings)


def _rates(intrinsic_lr: FloatArray, mu: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return γ, m-γ and m = (1-√μ)², the largest γ at which z² - (1+μ-γ)z + μ has real roots.

    1-√μ and m-γ = A² - B² with A = (1+μ-k)/√(1+μ), B² = 2√μ are written so that nothing cancels but what must.
    """
    largest = ((1 - mu) / (1 + np.sqrt(mu))) ** 2
    one, other = np.sqrt(1 + mu), np.sqrt(2 * np.sqrt(mu))
    margin = (largest / (one + other) - intrinsic_lr / one) * (one + other - intrinsic_lr / one)
    return intrinsic_lr * (2 - intrinsic_lr / (1 + mu)), margin, largest


def _log_root(change: FloatArray, trace: FloatArray, own: FloatArray, discriminant: FloatArray) -> FloatArray:
    """Logarithm of the larger root p of z² - trace·z + own, where trace = 1 + own - change, given its discriminant.

    1-p is the smaller root of u² - (1-own+change)u + change: all digits of a p next to 1 come from there.
    """
    root = np.sqrt(discriminant)
    larger = (trace + root) / 2
    distance = 2 * change / (1 - own + change + root)
    return np.where(larger < 0.5, np.log(larger), np.log1p(-distance))


def _checked(
    lr: npt.ArrayLike, wd: npt.ArrayLike, momentum: npt.ArrayLike, *, decoupled: bool = False, **others: FloatArray
) -> tuple[FloatArray, ...]:
    mu = check_real("momentum", momentum, at_least=0, below=1)
    checked = broadcast(lr=check_lr(lr), wd=check_wd(wd), momentum=mu, **others)
    rate, decay, mu = checked[:3]
    product, limit = rate * decay, np.asarray(2.0 if decoupled else 2 * (1 + mu))
    good = product < limit
    if not good.all():
        index = tuple(np.argwhere(~good)[0])
        allowed = float(np.broadcast_to(limit, good.shape)[index])
        raise ValueError(
            f"lr * wd must be < {allowed:g} here, got {float(product[index]):g} "
            f"(lr={float(rate[index]):g}, wd={float(decay[index]):g}, momentum={float(mu[index]):g})"
        )
    return checked
