"""When a single step turns the weights by much: rotation of a step and δ-jumps (docs/mathematics.md §1, §4)."""

from __future__ import annotations

from typing import Any, NamedTuple

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
from theory.bounds import Bounds, norm_bounds
from theory.flow import flow_time
from theory.optimizers import SGD, check_optimizer

ITERATED_STEPS = 20_000  # up to here `steps_to_angular_jump` runs the map itself
RINGING = 1 - np.sqrt(0.5)  # ηλ above which (1-ηλ)² < 1/2 and the norm swings about its rest


def kappa(delta: Any) -> Any:
    """κ(δ) = √((1-δ)⁻²-1): tangent of the angle whose cosine is 1-δ, without cancellation.

    Parameters
    ----------
    delta : 0 <= δ < 1, number or array.

    Returns
    -------
    κ(δ), without units.

    Source: docs/mathematics.md §4.

    Examples
    --------
    >>> round(float(kappa(0.5)), 6)
    1.732051
    """
    return np.sqrt(delta * (2 - delta)) / (1 - delta)


def step_angle(turn: Any, intrinsic_lr: Any) -> Any:
    """Angle of one SGD step with η̃g̃ = `turn`, in radians; above ηλ = 1 the direction flips and it exceeds π/2.

    Examples
    --------
    >>> round(float(step_angle(1.0, 0.0)), 6)  # π/4
    0.785398
    """
    return np.arctan2(turn, 1 - intrinsic_lr)


def rotation(norm: npt.ArrayLike, lr: npt.ArrayLike, wd: npt.ArrayLike, grad_norm: npt.ArrayLike) -> Any:
    """Angle θ between the weights before and after one SGD step: tan θ = η̃g̃/(1-ηλ), η̃ = η/ρ².

    Parameters
    ----------
    norm : ρ > 0 before the step.
    lr, wd : η > 0, λ >= 0, ηλ < 1.
    grad_norm : g̃ >= 0 of the step (units of the loss). All are numbers or arrays that broadcast.

    Returns
    -------
    θ in radians: float or array.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

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
    return to_float(step_angle(lr / norm * (grad_norm / norm), intrinsic_lr))


def angular_jump_norm(lr: npt.ArrayLike, wd: npt.ArrayLike, grad_norm: npt.ArrayLike, delta: npt.ArrayLike) -> Any:
    """Norm below which, and only below which, a step with this g̃ is a δ-jump: 1 - cos θ > δ.

    ρ² = ηg̃/((1-ηλ)κ(δ)): the inverse of `rotation` at cos θ = 1-δ.

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
    TypeError, ValueError : an argument is no number or out of range.

    Source: arXiv 2106.15739 §3 (δ-jumps); docs/mathematics.md §4.

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


def angular_jump_regime(
    lr: npt.ArrayLike,
    wd: npt.ArrayLike,
    grad_norm_min: npt.ArrayLike,
    grad_norm_max: npt.ArrayLike,
    delta: npt.ArrayLike,
) -> Any:
    """Whether gradients in a range can, or must, make a δ-jump, from a norm at which no g̃ <= L makes one at once.

    "impossible": no sequence of g̃ ever jumps, L/ℓ <= κ(δ)/κ(ηλ). "certain": δ < ηλ and ℓ > 0, every sequence does.
    "possible": some sequences jump and some never do. The last holds for ℓ = 0 too: without gradients nothing jumps.

    For ηλ > 0.2929, (1-ηλ)² < 1/2, where the norm swings about its rest, "impossible" is L/ℓ <= 2(1-ηλ)²κ(δ), and
    what is "possible" depends on the start: from some norms, not from all. `steps_to_angular_jump` takes the start.

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0, ηλ < 1.
    grad_norm_min, grad_norm_max : 0 <= ℓ <= L, L > 0 (units of the loss).
    delta : 0 < δ < 1. All are numbers or arrays that broadcast.

    Returns
    -------
    One of the three words, or an array of them. Both borders are decided by the numbers as they are stored.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Source: arXiv 2106.15739 §3; docs/mathematics.md §4.

    Examples
    --------
    >>> angular_jump_regime(0.1, 0.01, grad_norm_min=1.0, grad_norm_max=2.0, delta=0.1)
    'impossible'
    >>> angular_jump_regime(0.1, 0.01, grad_norm_min=0.1, grad_norm_max=2.0, delta=[0.1, 0.0005]).tolist()
    ['possible', 'certain']
    """
    lr, intrinsic_lr, low, high, delta = _checked_range(lr, wd, grad_norm_min, grad_norm_max, delta)
    regime = np.where(_certain(intrinsic_lr, low, delta), "certain", "possible")
    regime = np.where(_impossible(intrinsic_lr, low, high, delta), "impossible", regime)
    return str(regime) if regime.ndim == 0 else regime


class AngularJumpTime(NamedTuple):
    """Steps before the step that is the first δ-jump, at the least and at the most: floats or arrays of one shape."""

    earliest: Any
    latest: Any


def steps_to_angular_jump(
    norm: npt.ArrayLike,
    lr: npt.ArrayLike,
    wd: npt.ArrayLike,
    grad_norm_min: npt.ArrayLike,
    grad_norm_max: npt.ArrayLike,
    delta: npt.ArrayLike,
) -> AngularJumpTime:
    """Number of steps before the first step that is a δ-jump, at the least and at the most, when ℓ <= g̃ <= L.

    Both are attained. The earliest jump comes by falling with ℓ until r = ρ² is below r_δ(L), then jumping with L. The
    latest one comes if every g̃ is the largest that does not jump, at most L: r⁺ = min(a r + (ηL)²/r, a r/(1-δ)²),
    until r is below r_δ(ℓ), where every g̃ jumps. For δ >= ηλ that never happens.

    For ηλ > 0.2929, a = (1-ηλ)² < 1/2, where the norm swings about its rest, no such sequence is best from every norm.
    There the interval of all r is followed that can be reached (for the latest: without a jump).

    Parameters
    ----------
    norm : ρ > 0 at the start.
    lr, wd : η > 0, λ >= 0, ηλ < 1.
    grad_norm_min, grad_norm_max : 0 <= ℓ <= L, L > 0 (units of the loss).
    delta : 0 < δ < 1. All are numbers or arrays that broadcast.

    Returns
    -------
    AngularJumpTime(earliest, latest): whole numbers as floats, 0 if the first step jumps, inf if no step does.
    Falls of up to 20 000 steps are iterated. A longer one is taken from a closed form in continuous time whose error,
    measured, is below ηλ steps: the number is exact unless that time lies so close to a whole one, else off by one.
    A fall that ends a relative distance d above the r at which it would come to rest is known as well as its arguments
    are: their rounding, 1e-16, moves it by about 1e-16/(4dηλ) steps.
    For ηλ > 0.2929 a number is NaN where 20 000 steps do not decide it: within rounding of a border, or near ηλ = 1,
    where a swing takes more than that to settle.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Source: docs/mathematics.md §4.

    Examples
    --------
    >>> steps_to_angular_jump(2.0, 0.1, 0.01, grad_norm_min=0.1, grad_norm_max=2.0, delta=0.1)
    AngularJumpTime(earliest=1220.0, latest=inf)
    """
    lr, intrinsic_lr, low, high, delta = _checked_range(lr, wd, grad_norm_min, grad_norm_max, delta)
    norm = check_real("norm", norm, above=0)
    arrays = broadcast(norm=norm, lr=lr, wd=intrinsic_lr, grad_norm_min=low, grad_norm_max=high, delta=delta)
    shape = arrays[0].shape
    norm, lr, intrinsic_lr, low, high, delta = (array.ravel() for array in arrays)
    # norms are compared as `angular_jump_norm` rounds them, falls are followed in units of r = ρ²/(ηL)
    jumps_with_high = norm < _angular_jump_norm(lr, intrinsic_lr, high, delta)
    jumps_with_low = norm < _angular_jump_norm(lr, intrinsic_lr, low, delta)
    start, q, high_end = (norm / np.sqrt(lr * high)) ** 2, low / high, 1 / ((1 - intrinsic_lr) * kappa(delta))

    ringing = intrinsic_lr > RINGING

    earliest = np.where(jumps_with_high, 0.0, np.inf)
    undecided = ~jumps_with_high & ~_impossible(intrinsic_lr, low, high, delta)
    i = np.flatnonzero(undecided & ~ringing)
    earliest[i] = np.maximum(_fall(start[i], high_end[i], intrinsic_lr[i], q[i])[0], 1)
    i = np.flatnonzero(undecided & ringing)
    earliest[i] = _earliest_while_ringing(start[i], high_end[i], intrinsic_lr[i], q[i])

    latest = np.where(jumps_with_low, 0.0, np.inf)
    i = np.flatnonzero(~jumps_with_low & ~ringing & _certain(intrinsic_lr, low, delta))
    steps, reached = _fall(start[i], high_end[i], intrinsic_lr[i], np.ones(i.size))
    distance = np.log(reached / (q * high_end)[i])
    rest = _steps_down(distance, intrinsic_lr[i], delta[i]) + 1
    latest[i] = np.maximum(steps + np.where(distance >= 0, rest, 0), 1)
    i = np.flatnonzero(~jumps_with_low & ringing & (low > 0))
    latest[i] = _latest_while_ringing(start[i], high_end[i], intrinsic_lr[i], q[i], delta[i])
    latest = np.maximum(latest, np.where(np.isinf(latest), 0, earliest))
    return AngularJumpTime(to_float(earliest.reshape(shape)), to_float(latest.reshape(shape)))


def critical_norm(
    lr: npt.ArrayLike,
    sharpness: npt.ArrayLike,
    *,
    wd: npt.ArrayLike = 0.0,
    falling: bool = False,
    optimizer: SGD | None = None,
) -> Any:
    """Norm below which steps of this η overshoot in the sharpest direction: the edge of stability η̃h = 2.

    With momentum μ the edge is at η̃h = 2(1+μ), with Nesterov's at (2+2μ)/(1+2μ), as PyTorch defines them. Decay moves
    it a little: where growth holds the norm, to 2-ηλ; where the norm falls freely, to 2(1-ηλ); likewise with momentum.

    Parameters
    ----------
    lr : η > 0.
    sharpness : h >= 0, largest eigenvalue of the Hessian on the unit sphere (units of the loss).
    wd : λ >= 0, ηλ < 1.
    falling : whether the norm falls freely.
    optimizer : default `SGD()`; the others have no edge that depends on η̃h alone.

    Returns
    -------
    ρ = √(ηh/limit) in units of the weights: float or array; NaN in a fall so fast that the norm rings, with coupled
    decay at ηλ > (1-√μ)² (heavy ball) or ((1-μ)/(1+μ))² (Nesterov).

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range, or the optimizer is no SGD.

    Source: docs/mathematics.md §4.

    Examples
    --------
    >>> critical_norm(0.25, 32.0)
    2.0
    """
    rule = check_optimizer(optimizer)
    if not isinstance(rule, SGD):
        raise ValueError(f"optimizer must be an SGD, got {rule!r}")
    if not isinstance(falling, bool):
        raise TypeError(f"falling must be True or False, got {falling!r}")
    lr, sharpness, decay = check_lr(lr), check_real("sharpness", sharpness, at_least=0), check_wd(wd)
    intrinsic_lr = check_intrinsic_lr(lr, decay, below=1.0)
    lr, sharpness, intrinsic_lr = broadcast(lr=lr, sharpness=sharpness, wd=intrinsic_lr)
    return to_float(np.sqrt(lr) * np.sqrt(sharpness / rule.edge_with_decay(intrinsic_lr, falling)))


def _angular_jump_norm(
    lr: FloatArray, intrinsic_lr: FloatArray, grad_norm: FloatArray, delta: FloatArray
) -> FloatArray:
    return np.asarray(np.sqrt(lr) * np.sqrt(grad_norm / ((1 - intrinsic_lr) * kappa(delta))))


def _impossible(intrinsic_lr: FloatArray, low: FloatArray, high: FloatArray, delta: FloatArray) -> Any:
    """Whether r_ℓ, below which the norm does not sink, is at or above r_δ(L); in a swing, the least r⁺ of any r."""
    return high * np.where(
        intrinsic_lr > RINGING, 1 / (2 * (1 - intrinsic_lr) ** 2), kappa(intrinsic_lr)
    ) <= low * kappa(delta)


def _certain(intrinsic_lr: FloatArray, low: FloatArray, delta: FloatArray) -> Any:
    return (delta < intrinsic_lr) & (low > 0)


def _fall(start: FloatArray, end: FloatArray, intrinsic_lr: FloatArray, q: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Least t with r_t < end under r⁺ = a r + q²/r, and r_t; one-dimensional arrays, end above the fixed point."""
    time = flow_time(start, end, intrinsic_lr, q)
    steps = np.where(start < end, 0.0, np.floor(time) + 1)
    # the last step of a closed form, at the speed of the map at its end
    reached = np.where(start < end, start, end * ((1 - intrinsic_lr) ** 2 + (q / end) ** 2) ** (steps - time))
    # iterate y = r/r* - 1, which shrinks by a factor per step, so that rounding does not add up; q = 0 is geometric
    i = np.flatnonzero((start >= end) & (steps <= ITERATED_STEPS) & (q > 0))
    one_minus_a = (intrinsic_lr * (2 - intrinsic_lr))[i]
    rest = q[i] / np.sqrt(one_minus_a)
    y, goal = start[i] / rest - 1, end[i] / rest - 1
    for t in range(1, ITERATED_STEPS + 2):
        if not i.size:
            break
        y = y * (1 - one_minus_a - one_minus_a / (1 + y))
        below = y < goal
        if below.any():
            steps[i[below]], reached[i[below]] = t, (rest * (1 + y))[below]
            i, y, goal, rest, one_minus_a = i[~below], y[~below], goal[~below], rest[~below], one_minus_a[~below]
    return steps, np.minimum(reached, np.nextafter(end, 0))


def _earliest_while_ringing(start: FloatArray, end: FloatArray, intrinsic_lr: FloatArray, q: FloatArray) -> FloatArray:
    """Least t at which some sequence with q <= g̃ <= 1 has r_t < end, for (1-ηλ)² < 1/2; one-dimensional arrays."""
    steps = np.full(start.size, np.nan)
    i, lowest, highest = np.arange(start.size), start.copy(), start.copy()
    attractor = Bounds(*(np.asarray(bound) ** 2 for bound in norm_bounds(1.0, intrinsic_lr, q, 1.0)))
    for t in range(1, ITERATED_STEPS + 1):
        # a convex function of r: least at its turning point, greatest at an end
        turning = np.clip(q[i] / (1 - intrinsic_lr[i]), lowest, highest)
        lowest, highest = (
            _after(turning, intrinsic_lr[i], q[i]),
            np.maximum(_after(lowest, intrinsic_lr[i], 1.0), _after(highest, intrinsic_lr[i], 1.0)),
        )
        steps[i[lowest < end[i]]] = t
        # no step lengthens the distance of ln r from the attractor
        with np.errstate(divide="ignore"):
            away = np.maximum(np.abs(np.log(lowest / attractor.lower[i])), np.abs(np.log(highest / attractor.upper[i])))
        never = attractor.lower[i] * np.exp(-away) >= end[i]
        steps[i[never]] = np.inf
        open_still = np.isnan(steps[i])
        i, lowest, highest = i[open_still], lowest[open_still], highest[open_still]
        if not i.size:
            break
    return steps


def _latest_while_ringing(
    start: FloatArray, end: FloatArray, intrinsic_lr: FloatArray, q: FloatArray, delta: FloatArray
) -> FloatArray:
    """Least t at which every sequence with q <= g̃ <= 1 has jumped or has r_t < q·end, where every g̃ jumps."""
    steps = np.full(start.size, np.nan)
    i, lowest, highest = np.arange(start.size), start.copy(), start.copy()
    grown = ((1 - intrinsic_lr) / (1 - delta)) ** 2
    rest = 1 / np.sqrt(intrinsic_lr * (2 - intrinsic_lr))
    for t in range(1, ITERATED_STEPS + 1):
        # one r that is held for ever, or about which the swing of a constant g̃ stays quiet, is enough for never
        away = np.maximum(np.log(np.maximum(lowest / rest[i], q[i] * rest[i] / highest)), 0)
        quiet = np.where(
            away > 0, np.exp(-away) * kappa(delta[i]) >= kappa(intrinsic_lr[i]), delta[i] >= intrinsic_lr[i]
        )
        steps[i[quiet]] = np.inf
        # below the threshold of L the greatest r falls by a constant factor
        falling = ~quiet & (highest < end[i]) & (delta[i] < intrinsic_lr[i])
        j = i[falling]
        steps[j] = t + _steps_down(np.log(highest[falling] / (q[j] * end[j])), intrinsic_lr[j], delta[j])
        open_still = np.isnan(steps[i])
        i, lowest, highest = i[open_still], lowest[open_still], highest[open_still]
        if not i.size:
            break
        inside = (lowest <= end[i]) & (end[i] <= highest)
        turning = np.clip(q[i] / (1 - intrinsic_lr[i]), lowest, highest)
        ends = [np.minimum(_after(r, intrinsic_lr[i], 1.0), grown[i] * r) for r in (lowest, highest)]
        top = np.where(inside, grown[i] * end[i], 0.0)
        lowest, highest = (
            np.maximum(_after(turning, intrinsic_lr[i], q[i]), q[i] * end[i]),
            np.maximum(top, np.maximum(*ends)),
        )
        gone = highest < q[i] * end[i]
        steps[i[gone]] = t
        i, lowest, highest = i[~gone], lowest[~gone], highest[~gone]
    return steps


def _steps_down(distance: FloatArray, intrinsic_lr: FloatArray, delta: FloatArray) -> FloatArray:
    """Whole steps of the largest g̃ without a jump in a fall of ln r: each is a constant factor below r_δ(L), δ < ηλ."""
    return np.asarray(np.floor(distance / (2 * np.log1p((intrinsic_lr - delta) / (1 - intrinsic_lr)))))


def _after(r: FloatArray, intrinsic_lr: FloatArray, g: FloatArray | float) -> FloatArray:
    return np.asarray((1 - intrinsic_lr) ** 2 * r + g * (g / r))


def _checked_range(
    lr: npt.ArrayLike,
    wd: npt.ArrayLike,
    grad_norm_min: npt.ArrayLike,
    grad_norm_max: npt.ArrayLike,
    delta: npt.ArrayLike,
) -> tuple[FloatArray, ...]:
    lr, wd = check_lr(lr), check_wd(wd)
    low, high = (
        check_real("grad_norm_min", grad_norm_min, at_least=0),
        check_real("grad_norm_max", grad_norm_max, above=0),
    )
    check_order("grad_norm_min", low, "grad_norm_max", high)
    delta = check_real("delta", delta, above=0, below=1)
    intrinsic_lr = check_intrinsic_lr(lr, wd, below=1.0)
    return broadcast(lr=lr, wd=intrinsic_lr, grad_norm_min=low, grad_norm_max=high, delta=delta)
