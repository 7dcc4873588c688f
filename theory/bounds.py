"""Bounds of the norm when the gradient norm stays in a range, ℓ <= g̃ <= L (docs/mathematics.md §3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, overload

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from theory.arguments import (
    FloatArray,
    Number,
    Value,
    broadcast,
    check_intrinsic_lr,
    check_lr,
    check_number,
    check_order,
    check_real,
    check_steps,
    check_wd,
    to_float,
)


class Bounds(NamedTuple, Generic[Value]):
    """Lower and upper bound of the norm: floats or arrays of one shape."""

    lower: Value
    upper: Value


@overload
def norm_bounds(lr: Number, wd: Number, grad_norm_min: Number, grad_norm_max: Number) -> Bounds[float]: ...
@overload
def norm_bounds(
    lr: ArrayLike, wd: ArrayLike, grad_norm_min: ArrayLike, grad_norm_max: ArrayLike
) -> Bounds[FloatArray]: ...
def norm_bounds(lr: ArrayLike, wd: ArrayLike, grad_norm_min: ArrayLike, grad_norm_max: ArrayLike) -> Any:
    """Smallest interval of norms that attracts every orbit with ℓ <= g̃ <= L and that no orbit leaves.

    The g̃ may come in any order. Let a = (1-ηλ)² and r = ρ². For a >= 1/2 the interval of r begins at r_ℓ = ηℓ/√(1-a)
    and ends at max(r_L, a r_ℓ + (ηL)²/r_ℓ). For a < 1/2 the norm overshoots, and the interval is the exact attractor of
    docs/mathematics.md §3. Each end is approached by some sequence of g̃.

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0, ηλ < 2; numbers or arrays that broadcast.
    grad_norm_min, grad_norm_max : 0 <= ℓ <= L, L > 0 (units of the loss).

    Returns
    -------
    Bounds(lower, upper) of ρ: floats or arrays; (0, inf) at ηλ = 1, and (inf, inf) for wd = 0 and ℓ > 0.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §3.

    Examples
    --------
    >>> bounds = norm_bounds(0.1, 0.01, 1.0, 4.0)
    >>> round(bounds.lower, 4), round(bounds.upper, 4)
    (1.4955, 2.9911)
    """
    lr, wd, low, high = check_range(lr, wd, grad_norm_min, grad_norm_max)
    intrinsic_lr = check_intrinsic_lr(lr, wd)
    # In units of r = ρ²/(ηL) only a and q = ℓ/L remain, and nothing overflows. 1-q² from a rounded q would lose digits.
    a, one_minus_a, q = (1 - intrinsic_lr) ** 2, intrinsic_lr * (2 - intrinsic_lr), low / high
    one_minus_sq_q = (high - low) / high * (1 + q)
    with np.errstate(divide="ignore", invalid="ignore"):
        monotone = a >= 0.5
        fixed_point = 1 / np.sqrt(one_minus_a)
        lower = np.where(monotone, np.where(q == 0, 0.0, q * fixed_point), 2 * np.sqrt(a) * q)
        upper = np.maximum(fixed_point, a * lower + 1 / lower)
        if not monotone.all():
            # a < 1/2 and L² < (2-4a²)ℓ²: the minimum of the map is outside the attractor, whose ends exchange
            exchange = ~monotone & ((2 - 4 * a * a) * q * q > 1)
            root = np.hypot(one_minus_sq_q, 2 * a * q)
            product = (1 + q * q + root) / (2 * (1 - a * a))
            highest = np.sqrt((one_minus_sq_q + 2 * (a * q) ** 2 + root) / (2 * a * (1 - a * a)))
            degenerate = intrinsic_lr == 1
            lower = np.where(degenerate, 0.0, np.where(exchange, product / highest, lower))
            upper = np.where(degenerate, np.inf, np.where(exchange, highest, upper))
    unit = np.sqrt(lr) * np.sqrt(high)
    return Bounds(to_float(unit * np.sqrt(lower)), to_float(unit * np.sqrt(upper)))


@overload
def probable_norm_bounds(
    lr: Number,
    wd: Number,
    mean_square_min: Number,
    mean_square_max: Number,
    grad_norm_max: Number,
    *,
    grad_norm_min: Number = 0.0,
    probability: float = 0.99,
) -> Bounds[float]: ...
@overload
def probable_norm_bounds(
    lr: ArrayLike,
    wd: ArrayLike,
    mean_square_min: ArrayLike,
    mean_square_max: ArrayLike,
    grad_norm_max: ArrayLike,
    *,
    grad_norm_min: ArrayLike = 0.0,
    probability: float = 0.99,
) -> Bounds[FloatArray]: ...
def probable_norm_bounds(
    lr: ArrayLike,
    wd: ArrayLike,
    mean_square_min: ArrayLike,
    mean_square_max: ArrayLike,
    grad_norm_max: ArrayLike,
    *,
    grad_norm_min: ArrayLike = 0.0,
    probability: float = 0.99,
) -> Any:
    """Bounds that hold with a given probability at each late step, from the mean square of the gradient norm.

    The bounds of `norm_bounds` need every g̃ in a range and hold always. Here g̃² needs an expectation, given the past,
    between `mean_square_min` and `mean_square_max`, and ℓ <= g̃ <= L. The norm averages g̃² over 1/(4ηλ) steps, so the
    extremes hardly matter if ηλ is small. The deviation of this average is bounded by the inequalities of Hoeffding and
    Freedman for martingales, whichever is smaller.

    Parameters
    ----------
    lr, wd : η > 0, λ > 0, ηλ < 1.
    mean_square_min, mean_square_max : range of E[g̃² | past], with 0 <= ℓ² <= min <= max <= L².
    grad_norm_max : L > 0 (units of the loss).
    grad_norm_min : ℓ >= 0; the upper bound is infinite for ℓ = 0. All broadcast.
    probability : that both bounds hold at one step, 0 < p < 1. Over N steps use 1 - (1 - p)/N.

    Returns
    -------
    Bounds(lower, upper) of ρ: floats or arrays, never wider than those of `norm_bounds`. They hold after the start is
    forgotten, which takes some 1/(4ηλ) steps; a start inside them needs no time.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §3. Li et al. 2022, arXiv 2202.00980, show the order of magnitude.

    Examples
    --------
    >>> [round(bound, 2) for bound in norm_bounds(0.1, 1e-4, 0.5, 4.0)]
    [3.34, 9.46]
    >>> [round(bound, 2) for bound in probable_norm_bounds(0.1, 1e-4, 1.0, 1.0, 4.0, grad_norm_min=0.5)]
    [4.66, 4.8]
    """
    lr, wd, low, high = check_range(lr, wd, grad_norm_min, grad_norm_max)
    mean_low, mean_high = (
        check_real(name, value, above=0)
        for name, value in (("mean_square_min", mean_square_min), ("mean_square_max", mean_square_max))
    )
    check_order("mean_square_min", mean_low, "mean_square_max", mean_high)
    check_order("mean_square_max", mean_high, "grad_norm_max squared", high**2)
    check_order("grad_norm_min squared", low**2, "mean_square_min", mean_low)
    chance = check_number("probability", probability, above=0, below=1)
    check_real("wd", wd, above=0)
    intrinsic_lr = check_intrinsic_lr(lr, wd, below=1.0)
    lr, low, high, mean_low, mean_high, intrinsic_lr, wd = broadcast(
        lr=lr,
        grad_norm_min=low,
        grad_norm_max=high,
        mean_square_min=mean_low,
        mean_square_max=mean_high,
        intrinsic_lr=intrinsic_lr,
        wd=wd,
    )
    certain = norm_bounds(lr, wd, low, high)
    # u = ρ⁴ averages 2aη²g̃² with the weights (1-a²)a^(2n); dropping b²/u bounds it from below, its largest value above
    a, one_minus_a = (1 - intrinsic_lr) ** 2, intrinsic_lr * (2 - intrinsic_lr)
    largest_weight = one_minus_a * (1 + a)
    sum_of_squares = one_minus_a * (1 + a) / (1 + a**2)
    log_chance, square = np.log(2 / (1 - chance)), high**2
    hoeffding = (square - low**2) * np.sqrt(sum_of_squares * log_chance / 2)
    variance = sum_of_squares * np.minimum(mean_high * square, (square - low**2) ** 2 / 4)
    third = largest_weight * (square - low**2) * log_chance / 3
    deviation = np.minimum(hoeffding, third + np.sqrt(third**2 + 2 * variance * log_chance))
    with np.errstate(divide="ignore", over="ignore"):
        second_order = (lr * high / certain.lower**2) ** 2
    scale = np.sqrt(lr) * largest_weight**-0.25
    lower = scale * (2 * a * np.maximum(mean_low - deviation, 0)) ** 0.25
    upper = scale * ((2 * a + second_order) * (mean_high + deviation)) ** 0.25
    return Bounds(to_float(np.maximum(lower, certain.lower)), to_float(np.minimum(upper, certain.upper)))


def norm_envelope(
    steps: int | ArrayLike,
    norm: ArrayLike,
    lr: ArrayLike,
    wd: ArrayLike,
    grad_norm_min: ArrayLike,
    grad_norm_max: ArrayLike,
) -> Bounds[FloatArray]:
    """Exact interval of norms that can be reached from `norm` in t steps with ℓ <= g̃ <= L.

    The reachable r = ρ² form an interval (a continuous image of one), so iterating its two ends is exact for every ηλ,
    also above 1. For a = (1-ηλ)² >= 1/2 and a start at r_ℓ or above, the lower end is the orbit of constant g̃ = ℓ. The
    upper end is the orbit of g̃ = L if ℓ/L >= (1-a)/a. Otherwise it decays with ℓ before one step with L.

    Parameters
    ----------
    steps : last step N (then t = 0 … N), or a one-dimensional array of step numbers t >= 0.
    norm : ρ > 0 at t = 0.
    lr, wd, grad_norm_min, grad_norm_max : as in `norm_bounds`; all broadcast with `norm`.

    Returns
    -------
    Bounds(lower, upper) of ρ: arrays of the broadcast shape with the steps as last axis.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §3.

    Examples
    --------
    >>> envelope = norm_envelope(2, 1.0, 0.1, 0.01, 0.0, 1.0)
    >>> envelope.lower.round(4), envelope.upper.round(4)
    (array([1.   , 0.999, 0.998]), array([1.    , 1.004 , 1.0079]))
    """
    step_numbers = check_steps(steps)
    lr, wd, low, high = check_range(lr, wd, grad_norm_min, grad_norm_max)
    start = check_real("norm", norm, above=0)
    intrinsic_lr = check_intrinsic_lr(lr, wd)
    start, lr, high, q, intrinsic_lr = broadcast(
        norm=start, lr=lr, grad_norm_max=high, grad_norm_min=low / high, wd=intrinsic_lr
    )
    a = (1 - intrinsic_lr) ** 2
    unit = np.sqrt(lr) * np.sqrt(high)
    # where F(r) = a r + (ηℓ)²/r has its minimum, and that minimum
    with np.errstate(divide="ignore", invalid="ignore"):
        turning, least = q / np.sqrt(a), 2 * np.sqrt(a) * q

    def reachable() -> Iterator[FloatArray]:
        lower = upper = (start / unit) ** 2
        while True:
            yield np.stack((lower, upper))
            images = _map(a, q, lower), _map(a, q, upper)
            highest = np.maximum(_map(a, 1.0, lower), _map(a, 1.0, upper))
            lower = np.where(turning <= lower, images[0], np.where(turning >= upper, images[1], least))
            upper = highest

    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        ends = states_at(step_numbers, reachable())
    scaled = unit[..., np.newaxis] * np.sqrt(ends)
    return Bounds(scaled[0], scaled[1])


def states_at(steps: npt.NDArray[np.int64], states: Iterator[FloatArray]) -> FloatArray:
    """Return the states at these steps, steps as last axis; a state that equals the one before stays for ever."""
    state = next(states)
    collected, step, converged = np.empty((*state.shape, steps.size)), 0, False
    for index in np.argsort(steps, kind="stable"):
        while step < steps[index] and not converged:
            after = next(states)
            state, step, converged = after, step + 1, np.array_equal(after, state)
        collected[..., index] = state
    return collected


def _map(a: Any, grad_norm: Any, sq_norm: FloatArray) -> FloatArray:
    """Return r⁺ = a r + g̃²/r in units ηL = 1, where 0/0 means no gradient and 0·∞ no memory (ηλ = 1)."""
    decayed = np.where(np.asarray(a) == 0, 0.0, a * sq_norm)
    growth = np.where(np.asarray(grad_norm) == 0, 0.0, grad_norm * (grad_norm / sq_norm))
    return np.asarray(decayed + growth)


def check_range(
    lr: ArrayLike, wd: ArrayLike, grad_norm_min: ArrayLike, grad_norm_max: ArrayLike
) -> tuple[FloatArray, ...]:
    """Check η, λ and ℓ <= L, and broadcast them."""
    low = check_real("grad_norm_min", grad_norm_min, at_least=0)
    high = check_real("grad_norm_max", grad_norm_max, above=0)
    check_order("grad_norm_min", low, "grad_norm_max", high)
    return broadcast(lr=check_lr(lr), wd=check_wd(wd), grad_norm_min=low, grad_norm_max=high)
