"""Rotation of single steps, angular jumps and the edge of stability (docs/mathematics.md §1, §4)."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, overload

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from theory.arguments import (
    FloatArray,
    Number,
    Value,
    broadcast,
    check_flag,
    check_intrinsic_lr,
    check_lr,
    check_real,
    check_wd,
    quote,
    to_float,
)
from theory.bounds import Bounds, check_range, norm_bounds
from theory.flow import flow_time
from theory.optimizers import SGD, check_optimizer

ITERATED_STEPS = 20_000  # `steps_to_angular_jump` iterates the map up to this step
_RINGING_ABOVE = 1 - np.sqrt(0.5)  # for larger ηλ, (1-ηλ)² < 1/2 and the norm rings around its equilibrium


def kappa(delta: Any) -> Any:
    """Tangent of the angle with cosine 1-δ, without cancellation: κ(δ) = √((1-δ)⁻²-1).

    Parameters
    ----------
    delta : 0 <= δ < 1, number or array.

    Returns
    -------
    κ(δ), without units.

    Source: docs/mathematics.md §4.
    """
    return np.sqrt(delta * (2 - delta)) / (1 - delta)


def step_angle(turn: Any, intrinsic_lr: Any) -> Any:
    """Angle of one SGD step with η̃g̃ = `turn`, in radians. Above ηλ = 1 the direction flips and it exceeds π/2."""
    return np.arctan2(turn, 1 - intrinsic_lr)


@overload
def rotation(norm: Number, lr: Number, wd: Number, grad_norm: Number) -> float: ...
@overload
def rotation(norm: ArrayLike, lr: ArrayLike, wd: ArrayLike, grad_norm: ArrayLike) -> FloatArray: ...
def rotation(norm: ArrayLike, lr: ArrayLike, wd: ArrayLike, grad_norm: ArrayLike) -> Any:
    """Angle θ between the weights before and after one SGD step: tan θ = η̃g̃/(1-ηλ), η̃ = η/ρ².

    Parameters
    ----------
    norm : ρ > 0 before the step.
    lr, wd : η > 0, λ >= 0, ηλ < 1.
    grad_norm : g̃ >= 0 of the step (units of the loss). All are numbers or arrays that broadcast.

    Returns
    -------
    θ in radians: float or array. Rounding of θ changes tan θ by about 1e-16 tan²θ, so steep angles lose its digits.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §1.

    Examples
    --------
    >>> round(rotation(1.0, lr=0.1, wd=0.01, grad_norm=2.0), 5)
    0.19759
    """
    norm, lr, wd = check_real("norm", norm, above=0), check_lr(lr), check_wd(wd)
    grad_norm = check_real("grad_norm", grad_norm, at_least=0)
    intrinsic_lr = check_intrinsic_lr(lr, wd, below=1.0)
    norm, lr, grad_norm, intrinsic_lr = broadcast(norm=norm, lr=lr, grad_norm=grad_norm, wd=intrinsic_lr)
    with np.errstate(over="ignore"):  # an infinite η̃g̃ turns by a right angle
        return to_float(step_angle(lr / norm * (grad_norm / norm), intrinsic_lr))


@overload
def angular_jump_norm(lr: Number, wd: Number, grad_norm: Number, delta: Number) -> float: ...
@overload
def angular_jump_norm(lr: ArrayLike, wd: ArrayLike, grad_norm: ArrayLike, delta: ArrayLike) -> FloatArray: ...
def angular_jump_norm(lr: ArrayLike, wd: ArrayLike, grad_norm: ArrayLike, delta: ArrayLike) -> Any:
    """Norm below which a step with this g̃ is an angular jump, 1 - cos θ > δ; at this norm and above it is not.

    ρ² = ηg̃/((1-ηλ)κ(δ)), the inverse of `rotation` at cos θ = 1-δ.

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0, ηλ < 1.
    grad_norm : g̃ > 0 of the step (units of the loss).
    delta : 0 < δ < 1. All are numbers or arrays that broadcast.

    Returns
    -------
    ρ in units of the weights: float or array.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: arXiv 2106.15739 §3 (angular jumps); docs/mathematics.md §4.

    Examples
    --------
    >>> round(angular_jump_norm(0.1, 0.01, grad_norm=2.0, delta=0.1), 5)
    0.64293
    """
    lr, wd = check_lr(lr), check_wd(wd)
    grad_norm, delta = check_real("grad_norm", grad_norm, above=0), check_real("delta", delta, above=0, below=1)
    intrinsic_lr = check_intrinsic_lr(lr, wd, below=1.0)
    lr, grad_norm, delta, intrinsic_lr = broadcast(lr=lr, grad_norm=grad_norm, delta=delta, wd=intrinsic_lr)
    return to_float(_angular_jump_norm(lr, intrinsic_lr, grad_norm, delta))


@overload
def angular_jump_regime(lr: Number, wd: Number, grad_norm_min: Number, grad_norm_max: Number, delta: Number) -> str: ...
@overload
def angular_jump_regime(
    lr: ArrayLike, wd: ArrayLike, grad_norm_min: ArrayLike, grad_norm_max: ArrayLike, delta: ArrayLike
) -> npt.NDArray[np.str_]: ...
def angular_jump_regime(
    lr: ArrayLike, wd: ArrayLike, grad_norm_min: ArrayLike, grad_norm_max: ArrayLike, delta: ArrayLike
) -> Any:
    """Whether gradients in a range can or must produce an angular jump.

    The start is a norm at which no g̃ <= L gives an angular jump at once.

    - "impossible": no sequence of g̃ ever gives an angular jump; L/ℓ <= κ(δ)/κ(ηλ).
    - "certain": every sequence does; δ < ηλ and ℓ > 0.
    - "possible": some sequences do and some never do. For ℓ = 0 nothing is certain: zero gradients never give one.

    For ηλ > 0.2929, where (1-ηλ)² < 1/2, the norm rings around its equilibrium. Then "impossible" is
    L/ℓ <= 2(1-ηλ)²κ(δ), and "possible" depends on the initial norm, which `steps_to_angular_jump` takes into account.

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0, ηλ < 1.
    grad_norm_min, grad_norm_max : 0 <= ℓ <= L, L > 0 (units of the loss).
    delta : 0 < δ < 1. All are numbers or arrays that broadcast.

    Returns
    -------
    One of the three words, or an array of them. The comparisons have no tolerance for rounding.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: arXiv 2106.15739 §3; docs/mathematics.md §4.

    Examples
    --------
    >>> angular_jump_regime(0.1, 0.01, grad_norm_min=1.0, grad_norm_max=2.0, delta=0.1)
    'impossible'
    >>> angular_jump_regime(0.1, 0.01, grad_norm_min=0.1, grad_norm_max=2.0, delta=[0.1, 0.0005]).tolist()
    ['possible', 'certain']
    """
    lr, intrinsic_lr, low, high, delta = _check_range(lr, wd, grad_norm_min, grad_norm_max, delta)
    regime = np.where(_certain(intrinsic_lr, low, delta), "certain", "possible")
    regime = np.where(_impossible(intrinsic_lr, low, high, delta), "impossible", regime)
    return str(regime) if regime.ndim == 0 else regime


class AngularJumpTime(NamedTuple, Generic[Value]):
    """Least and greatest number of steps before the first angular jump: floats or arrays of one shape."""

    earliest: Value
    latest: Value


@overload
def steps_to_angular_jump(
    norm: Number, lr: Number, wd: Number, grad_norm_min: Number, grad_norm_max: Number, delta: Number
) -> AngularJumpTime[float]: ...
@overload
def steps_to_angular_jump(
    norm: ArrayLike, lr: ArrayLike, wd: ArrayLike, grad_norm_min: ArrayLike, grad_norm_max: ArrayLike, delta: ArrayLike
) -> AngularJumpTime[FloatArray]: ...
def steps_to_angular_jump(
    norm: ArrayLike, lr: ArrayLike, wd: ArrayLike, grad_norm_min: ArrayLike, grad_norm_max: ArrayLike, delta: ArrayLike
) -> Any:
    """Least and greatest number of steps before the first angular jump, for ℓ <= g̃ <= L.

    Both are attained. The angular jump comes earliest for g̃ = ℓ until r = ρ² is below r_δ(L), then g̃ = L. It comes
    latest if every g̃ is the largest one up to L without an angular jump: r⁺ = min(a r + (ηL)²/r, a r/(1-δ)²) with
    a = (1-ηλ)². Once r is below r_δ(ℓ), every g̃ gives an angular jump. For δ >= ηλ that never happens.

    For ηλ > 0.2929, where a < 1/2, the norm rings around its equilibrium and no sequence is best from every norm. Then
    the interval of all reachable r is iterated (for the latest: of those reachable without an angular jump).

    Parameters
    ----------
    norm : ρ > 0 at the start.
    lr, wd : η > 0, λ >= 0, ηλ < 1.
    grad_norm_min, grad_norm_max : 0 <= ℓ <= L, L > 0 (units of the loss).
    delta : 0 < δ < 1. All are numbers or arrays that broadcast.

    Returns
    -------
    AngularJumpTime(earliest, latest): whole numbers as floats; 0: the first step is an angular jump; inf: no step is.
    Up to 20 000 steps are iterated. Longer times come from a closed form in continuous time with a measured error below
    ηλ steps. The number is then exact, or off by one if the time is that close to a whole number.
    If r has to decay to a relative distance d above its equilibrium, rounding of the arguments (1e-16) changes the
    number by about 1e-16/(4dηλ) steps.
    For ηλ > 0.2929 a number is NaN if 20 000 steps do not decide it. This happens within rounding of a border, or near
    ηλ = 1, where the norm rings for longer.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §4.

    Examples
    --------
    >>> steps_to_angular_jump(2.0, 0.1, 0.01, grad_norm_min=0.1, grad_norm_max=2.0, delta=0.1)
    AngularJumpTime(earliest=1220.0, latest=inf)
    """
    lr, intrinsic_lr, low, high, delta = _check_range(lr, wd, grad_norm_min, grad_norm_max, delta)
    norm = check_real("norm", norm, above=0)
    arrays = broadcast(norm=norm, lr=lr, wd=intrinsic_lr, grad_norm_min=low, grad_norm_max=high, delta=delta)
    shape = arrays[0].shape
    norm, lr, intrinsic_lr, low, high, delta = (array.ravel() for array in arrays)
    # norms are compared as `angular_jump_norm` rounds them; r is in units of ηL
    below_high = norm < _angular_jump_norm(lr, intrinsic_lr, high, delta)
    below_low = norm < _angular_jump_norm(lr, intrinsic_lr, low, delta)
    start, q, high_end = (norm / np.sqrt(lr * high)) ** 2, low / high, 1 / ((1 - intrinsic_lr) * kappa(delta))

    ringing = intrinsic_lr > _RINGING_ABOVE

    earliest = np.where(below_high, 0.0, np.inf)
    undecided = ~below_high & ~_impossible(intrinsic_lr, low, high, delta)
    i = np.flatnonzero(undecided & ~ringing)
    earliest[i] = np.maximum(_steps_below(start[i], high_end[i], intrinsic_lr[i], q[i])[0], 1)
    i = np.flatnonzero(undecided & ringing)
    earliest[i] = _earliest_while_ringing(start[i], high_end[i], intrinsic_lr[i], q[i])

    latest = np.where(below_low, 0.0, np.inf)
    i = np.flatnonzero(~below_low & ~ringing & _certain(intrinsic_lr, low, delta))
    steps, reached = _steps_below(start[i], high_end[i], intrinsic_lr[i], np.ones(i.size))
    distance = np.log(reached / (q * high_end)[i])
    remaining = _steps_without_angular_jump(distance, intrinsic_lr[i], delta[i]) + 1
    latest[i] = np.maximum(steps + np.where(distance >= 0, remaining, 0), 1)
    i = np.flatnonzero(~below_low & ringing & (low > 0))
    latest[i] = _latest_while_ringing(start[i], high_end[i], intrinsic_lr[i], q[i], delta[i])
    latest = np.maximum(latest, np.where(np.isinf(latest), 0, earliest))
    return AngularJumpTime(to_float(earliest.reshape(shape)), to_float(latest.reshape(shape)))


@overload
def critical_norm(
    lr: Number, sharpness: Number, *, wd: Number = 0.0, falling: bool = False, optimizer: SGD | str | None = None
) -> float: ...
@overload
def critical_norm(
    lr: ArrayLike,
    sharpness: ArrayLike,
    *,
    wd: ArrayLike = 0.0,
    falling: bool = False,
    optimizer: SGD | str | None = None,
) -> FloatArray: ...
def critical_norm(
    lr: ArrayLike,
    sharpness: ArrayLike,
    *,
    wd: ArrayLike = 0.0,
    falling: bool = False,
    optimizer: SGD | str | None = None,
) -> Any:
    """Norm below which SGD overshoots in the sharpest direction: the edge of stability η̃h = 2.

    It holds for scale-invariant weights in a valley whose sharpness on the unit sphere stays the same while the norm
    changes. Trained weights that are not scale-invariant change the sharpness, and then a measured h is soon outdated.

    With momentum μ the edge is at η̃h = 2(1+μ), and at (2+2μ)/(1+2μ) with Nesterov momentum as in PyTorch. Weight decay
    shifts the edge slightly: to 2-ηλ at constant norm, and to 2(1-ηλ) while the norm decays freely (without momentum).

    Parameters
    ----------
    lr : η > 0.
    sharpness : h >= 0, largest eigenvalue of the Hessian on the unit sphere (units of the loss).
    wd : λ >= 0, ηλ < 1.
    falling : whether the norm decays freely, without growth by gradients.
    optimizer : object or its text form; default `SGD()`. Other optimizers have no edge that depends on η̃h alone.

    Returns
    -------
    ρ = √(ηh/limit) in units of the weights: float or array. NaN if `falling` and the freely decaying norm rings: with
    coupled decay at ηλ > (1-√μ)² (heavy ball) or ((1-μ)/(1+μ))² (Nesterov).

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range, or the optimizer is not an `SGD`.

    Source: docs/mathematics.md §4.

    Examples
    --------
    >>> critical_norm(0.25, 32.0)
    2.0
    """
    rule = check_optimizer(optimizer)
    if not isinstance(rule, SGD):
        raise ValueError(f"optimizer must be an SGD, got {quote(rule)}")
    falling = check_flag("falling", falling)
    lr, sharpness, wd = check_lr(lr), check_real("sharpness", sharpness, at_least=0), check_wd(wd)
    intrinsic_lr = check_intrinsic_lr(lr, wd, below=1.0)
    lr, sharpness, intrinsic_lr = broadcast(lr=lr, sharpness=sharpness, wd=intrinsic_lr)
    return to_float(np.sqrt(lr) * np.sqrt(sharpness / rule.edge_with_decay(intrinsic_lr, falling)))


def _angular_jump_norm(
    lr: FloatArray, intrinsic_lr: FloatArray, grad_norm: FloatArray, delta: FloatArray
) -> FloatArray:
    return np.asarray(np.sqrt(lr) * np.sqrt(grad_norm / ((1 - intrinsic_lr) * kappa(delta))))


def _impossible(intrinsic_lr: FloatArray, low: FloatArray, high: FloatArray, delta: FloatArray) -> Any:
    """Whether the lower bound of r is at or above r_δ(L): r_ℓ, or the least r⁺ of any r where the norm rings."""
    return high * np.where(
        intrinsic_lr > _RINGING_ABOVE, 1 / (2 * (1 - intrinsic_lr) ** 2), kappa(intrinsic_lr)
    ) <= low * kappa(delta)


def _certain(intrinsic_lr: FloatArray, low: FloatArray, delta: FloatArray) -> Any:
    return (delta < intrinsic_lr) & (low > 0)


def _steps_below(
    start: FloatArray, end: FloatArray, intrinsic_lr: FloatArray, q: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return the least t with r_t < end under r⁺ = a r + q²/r, and r_t: one-dimensional arrays.

    `end` lies above the fixed point.
    """
    time = flow_time(start, end, intrinsic_lr, q)
    steps = np.where(start < end, 0.0, np.floor(time) + 1)
    # last step of the closed form, with the factor of the map at `end`
    reached = np.where(start < end, start, end * ((1 - intrinsic_lr) ** 2 + (q / end) ** 2) ** (steps - time))
    # iterate y = r/r* - 1, which shrinks by a factor per step, so rounding does not accumulate; q = 0 is geometric
    i = np.flatnonzero((start >= end) & (steps <= ITERATED_STEPS) & (q > 0))
    one_minus_a = (intrinsic_lr * (2 - intrinsic_lr))[i]
    fixed_point = q[i] / np.sqrt(one_minus_a)
    y, goal = start[i] / fixed_point - 1, end[i] / fixed_point - 1
    for t in range(1, ITERATED_STEPS + 2):
        if not i.size:
            break
        y = y * (1 - one_minus_a - one_minus_a / (1 + y))
        below = y < goal
        if below.any():
            steps[i[below]], reached[i[below]] = t, (fixed_point * (1 + y))[below]
            i, y, goal, fixed_point, one_minus_a = (
                i[~below],
                y[~below],
                goal[~below],
                fixed_point[~below],
                one_minus_a[~below],
            )
    return steps, np.minimum(reached, np.nextafter(end, 0))


def _earliest_while_ringing(start: FloatArray, end: FloatArray, intrinsic_lr: FloatArray, q: FloatArray) -> FloatArray:
    """Return the least t at which some sequence with q <= g̃ <= 1 has r_t < end, for (1-ηλ)² < 1/2: 1-d arrays."""
    steps = np.full(start.size, np.nan)
    i, lowest, highest = np.arange(start.size), start.copy(), start.copy()
    attractor = Bounds(*(np.asarray(bound) ** 2 for bound in norm_bounds(1.0, intrinsic_lr, q, 1.0)))
    for t in range(1, ITERATED_STEPS + 1):
        # a convex function of r: its minimum is at the turning point, its maximum at an end
        turning = np.clip(q[i] / (1 - intrinsic_lr[i]), lowest, highest)
        lowest, highest = (
            _next_r(turning, intrinsic_lr[i], q[i]),
            np.maximum(_next_r(lowest, intrinsic_lr[i], 1.0), _next_r(highest, intrinsic_lr[i], 1.0)),
        )
        steps[i[lowest < end[i]]] = t
        # no step increases the distance of ln r from the attractor
        with np.errstate(divide="ignore"):
            away = np.maximum(np.abs(np.log(lowest / attractor.lower[i])), np.abs(np.log(highest / attractor.upper[i])))
        never = attractor.lower[i] * np.exp(-away) >= end[i]
        steps[i[never]] = np.inf
        undecided = np.isnan(steps[i])
        i, lowest, highest = i[undecided], lowest[undecided], highest[undecided]
        if not i.size:
            break
    return steps


def _latest_while_ringing(
    start: FloatArray, end: FloatArray, intrinsic_lr: FloatArray, q: FloatArray, delta: FloatArray
) -> FloatArray:
    """Return the least t at which every sequence with q <= g̃ <= 1 had an angular jump or has r_t < q·end: 1-d arrays.

    Below q·end every g̃ gives an angular jump.
    """
    steps = np.full(start.size, np.nan)
    i, lowest, highest = np.arange(start.size), start.copy(), start.copy()
    grown = ((1 - intrinsic_lr) / (1 - delta)) ** 2
    fixed_point = 1 / np.sqrt(intrinsic_lr * (2 - intrinsic_lr))
    for t in range(1, ITERATED_STEPS + 1):
        # never, if one r can be kept for ever, or if the norm can ring at a constant g̃ without an angular jump
        away = np.maximum(np.log(np.maximum(lowest / fixed_point[i], q[i] * fixed_point[i] / highest)), 0)
        never = np.where(
            away > 0, np.exp(-away) * kappa(delta[i]) >= kappa(intrinsic_lr[i]), delta[i] >= intrinsic_lr[i]
        )
        steps[i[never]] = np.inf
        # below the threshold of L the greatest r decreases by a constant factor
        falling = ~never & (highest < end[i]) & (delta[i] < intrinsic_lr[i])
        j = i[falling]
        steps[j] = t + _steps_without_angular_jump(
            np.log(highest[falling] / (q[j] * end[j])), intrinsic_lr[j], delta[j]
        )
        undecided = np.isnan(steps[i])
        i, lowest, highest = i[undecided], lowest[undecided], highest[undecided]
        if not i.size:
            break
        inside = (lowest <= end[i]) & (end[i] <= highest)
        turning = np.clip(q[i] / (1 - intrinsic_lr[i]), lowest, highest)
        ends = [np.minimum(_next_r(r, intrinsic_lr[i], 1.0), grown[i] * r) for r in (lowest, highest)]
        top = np.where(inside, grown[i] * end[i], 0.0)
        lowest, highest = (
            np.maximum(_next_r(turning, intrinsic_lr[i], q[i]), q[i] * end[i]),
            np.maximum(top, np.maximum(*ends)),
        )
        forced = highest < q[i] * end[i]
        steps[i[forced]] = t
        i, lowest, highest = i[~forced], lowest[~forced], highest[~forced]
    return steps


def _steps_without_angular_jump(distance: FloatArray, intrinsic_lr: FloatArray, delta: FloatArray) -> FloatArray:
    """Number of whole steps in which ln r decreases by `distance` below r_δ(L), without an angular jump.

    g̃ is the largest without one, so each step multiplies r by a constant factor; δ < ηλ.
    """
    return np.asarray(np.floor(distance / (2 * np.log1p((intrinsic_lr - delta) / (1 - intrinsic_lr)))))


def _next_r(r: FloatArray, intrinsic_lr: FloatArray, g: FloatArray | float) -> FloatArray:
    return np.asarray((1 - intrinsic_lr) ** 2 * r + g * (g / r))


def _check_range(
    lr: ArrayLike,
    wd: ArrayLike,
    grad_norm_min: ArrayLike,
    grad_norm_max: ArrayLike,
    delta: ArrayLike,
) -> tuple[FloatArray, ...]:
    lr, wd, low, high = check_range(lr, wd, grad_norm_min, grad_norm_max)
    delta = check_real("delta", delta, above=0, below=1)
    intrinsic_lr = check_intrinsic_lr(lr, wd, below=1.0)
    return broadcast(lr=lr, wd=intrinsic_lr, grad_norm_min=low, grad_norm_max=high, delta=delta)
