"""All that theory and simulation say of one setting, in numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

import theory
from simulate.maps.gradients import BoundedGradient
from simulate.maps.norm_map import norm_map
from simulate.period_model.model import period
from theory.arguments import check_intrinsic_lr, check_number, check_order

Value = float | str  # a number, or in words why there is none

_RELAXATIONS = 12  # shown of a trajectory, after its fall
_FEWEST_STEPS, _STEPS, _MOST_STEPS = 100, 1000, 2_000_000
_ROWS = 2000
NO_JUMPS = "no jump formula with momentum"


@dataclass(frozen=True)
class Quantity:
    """One of the values shown: its words and units, and the powers of η and L that it goes with.

    The powers are those at fixed ηλ, momentum, ℓ/L, δ and ρ₀/√(ηL), by the symmetries of docs/mathematics.md §6.

    Examples
    --------
    >>> QUANTITIES["norm_upper"].units, QUANTITIES["norm_upper"].lr_power
    ('weight', 0.5)
    """

    words: str
    units: str
    lr_power: float = 0.0
    grad_norm_power: float = 0.0

    def text(self, value: Value) -> str:
        """Value with its units, or the words in place of a number.

        Examples
        --------
        >>> Quantity("relaxation time", "steps").text(49.6249)
        '49.62 steps'
        """
        return value if isinstance(value, str) else f"{value:.4g} {self.units}".rstrip()


QUANTITIES: dict[str, Quantity] = {
    "equilibrium_norm_min": Quantity("equilibrium norm at g̃ = ℓ", "weight", 0.5, 0.5),
    "equilibrium_norm_rms": Quantity("equilibrium norm at rms g̃", "weight", 0.5, 0.5),
    "equilibrium_norm_max": Quantity("equilibrium norm at g̃ = L", "weight", 0.5, 0.5),
    "norm_lower": Quantity("lower bound of the norm", "weight", 0.5, 0.5),
    "norm_upper": Quantity("upper bound of the norm", "weight", 0.5, 0.5),
    "equilibrium_effective_lr": Quantity("effective lr at rms equilibrium", "1/loss", 0.0, -1.0),
    "equilibrium_rotation": Quantity("rotation at equilibrium", "rad/step"),
    "relaxation_time": Quantity("relaxation time", "steps"),
    "edge_sharpness": Quantity("curvature at edge of stability", "loss", 0.0, 1.0),
    "jump_angle": Quantity("a step jumps above", "rad"),
    "angular_jump_regime": Quantity("jumps of a step", ""),
    "jump_norm_max": Quantity("no g̃ jumps above norm", "weight", 0.5, 0.5),
    "jump_norm_min": Quantity("every g̃ jumps below norm", "weight", 0.5, 0.5),
    "jump_earliest": Quantity("earliest jump", "steps"),
    "jump_latest": Quantity("latest first jump", "steps"),
    "period": Quantity("period of reference ConvNet", "steps"),
    "period_norm_min": Quantity("its norm at the troughs", "weight", 0.5, 0.0),
    "period_norm_max": Quantity("its norm at the peaks", "weight", 0.5, 0.0),
}
REST = tuple(QUANTITIES)[:9]
JUMPS = tuple(QUANTITIES)[9:15]
PERIOD = tuple(QUANTITIES)[15:]


class _End(NamedTuple):
    bound: str
    words: str
    rest: str
    letter: str


_ENDS = (
    _End("norm_lower", "lower bound", "equilibrium_norm_min", "ℓ"),
    _End("norm_upper", "upper bound", "equilibrium_norm_max", "L"),
)


class Level(NamedTuple):
    """Lines of one kind in the picture of the norm: "bound", "ends" or "rest", their words, the values they show."""

    kind: str
    words: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Explored:
    """What theory and simulation say of one setting.

    Attributes
    ----------
    lr, wd, momentum : η, λ, μ.
    grad_norm_min, grad_norm_max : ℓ and L.
    norm : ρ at the start.
    delta : δ of a jump.
    values : by the names of `QUANTITIES`, a number, or in words why there is none.
    trajectory : simulated with g̃ that are independent and uniform between ℓ and L.
    """

    lr: float
    wd: float
    momentum: float
    grad_norm_min: float
    grad_norm_max: float
    norm: float
    delta: float
    values: Mapping[str, Value]
    trajectory: xr.Dataset

    def __str__(self) -> str:
        return "\n".join(f"{QUANTITIES[name].words}: {QUANTITIES[name].text(v)}" for name, v in self.values.items())


def explore(
    lr: float,
    wd: float,
    *,
    grad_norm_min: float,
    grad_norm_max: float,
    norm: float,
    momentum: float = 0.0,
    delta: float = 0.1,
    steps: int | None = None,
    seed: int = 0,
) -> Explored:
    """Say of one setting of SGD all that follows from it: where the norm rests, its bounds, jumps, a trajectory.

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0, ηλ < 2(1+μ): numbers.
    grad_norm_min, grad_norm_max : 0 <= ℓ <= L, L > 0 (units of the loss), between which g̃ stays.
    norm : ρ > 0 at the start.
    momentum : μ of the heavy ball, 0 <= μ < 1.
    delta : 0 < δ < 1, from which on a step is a jump: 1 - cos θ > δ.
    steps : of the trajectory; by default it shows the fall to the equilibrium and 12 relaxation times, at most two
        million steps.
    seed : of the g̃ of the trajectory.

    Returns
    -------
    Explored. Equilibria, rotation and relaxation with momentum are those of random directions; the trajectory is
    `norm_map`'s, at most 2000 rows. `edge_sharpness` is the largest curvature h on the unit sphere at which the steps
    at the equilibrium norm do not overshoot. The period is `simulate.period`'s, of this project's ConvNet with its own
    gradients, whatever ℓ and L.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Source: docs/mathematics.md §2 to §7.

    Examples
    --------
    >>> found = explore(0.5, 0.01, grad_norm_min=1.0, grad_norm_max=4.0, norm=10.0)
    >>> round(found.values["relaxation_time"], 1), found.values["angular_jump_regime"]
    (49.6, 'impossible')
    >>> explore(0.5, 0.0, grad_norm_min=1.0, grad_norm_max=4.0, norm=10.0).values["equilibrium_norm_max"]
    'none without weight decay'
    """
    lr, wd = check_number("lr", lr, above=0), check_number("wd", wd, at_least=0)
    low, high = (
        check_number("grad_norm_min", grad_norm_min, at_least=0),
        check_number("grad_norm_max", grad_norm_max, above=0),
    )
    check_order("grad_norm_min", np.asarray(low), "grad_norm_max", np.asarray(high))
    norm, delta = check_number("norm", norm, above=0), check_number("delta", delta, above=0, below=1)
    rule = theory.SGD(momentum=momentum)
    check_intrinsic_lr(np.asarray(lr), np.asarray(wd), below=rule.intrinsic_lr_limit)
    run = norm_trajectory(norm, lr, wd, low, high, momentum, steps=steps, seed=seed)
    values = {
        **rest_values(lr, wd, low, high, momentum),
        **jump_values(norm, lr, wd, low, high, delta, momentum),
        **period_values(lr, wd, momentum),
    }
    return Explored(lr, wd, float(momentum), low, high, norm, delta, values, run)


def rest_values(lr: float, wd: float, low: float, high: float, momentum: float) -> dict[str, Value]:
    """Equilibria, bounds, rotation, relaxation and edge of stability, by the names of `REST`.

    Examples
    --------
    >>> rest_values(0.5, 0.01, 1.0, 4.0, 0.9)["norm_upper"]
    'no upper bound is known with momentum'
    """
    if wd == 0:
        return dict.fromkeys(REST, "none without weight decay")
    rule, rms = theory.SGD(momentum=momentum), _rms(low, high)
    swings = "none: at this ηλ the norm swings for ever"
    named: Any = {"optimizer": rule}
    if momentum:
        floor = float(theory.momentum_lower_bound(lr, wd, low, momentum=momentum))
        lower: Value = floor if floor or not low else "none: at this ηλ the norm rings"
        upper: Value = "no upper bound is known with momentum"
    else:
        bounds = theory.norm_bounds(lr, wd, low, high)
        lower, upper = bounds.lower, bounds.upper if math.isfinite(bounds.upper) else swings
    return {
        "equilibrium_norm_min": _told(theory.equilibrium_norm, lr, wd, low, **named)
        if low
        else "none: without gradients the norm falls for ever",
        "equilibrium_norm_rms": _told(theory.equilibrium_norm, lr, wd, rms, **named),
        "equilibrium_norm_max": _told(theory.equilibrium_norm, lr, wd, high, **named),
        "norm_lower": lower,
        "norm_upper": upper,
        "equilibrium_effective_lr": _told(theory.equilibrium_effective_lr, lr, wd, rms, **named),
        "equilibrium_rotation": _told(theory.equilibrium_rotation, lr, wd, **named),
        "relaxation_time": _told(_relaxation_time, lr, wd, momentum, none=swings),
        "edge_sharpness": _told(_edge_sharpness, lr, wd, rms, rule),
    }


def jump_values(
    norm: float, lr: float, wd: float, low: float, high: float, delta: float, momentum: float
) -> dict[str, Value]:
    """What is said of jumps, by the names of `JUMPS`: with momentum the angle alone.

    Examples
    --------
    >>> jump_values(2.0, 0.1, 0.01, 0.1, 2.0, 0.1, 0.0)["jump_latest"]
    'never'
    """
    # arccos(1-δ), precise for small δ too
    angle: dict[str, Value] = {"jump_angle": 2 * math.asin(math.sqrt(delta / 2))}
    if momentum:
        return {**dict.fromkeys(JUMPS, NO_JUMPS), **angle}
    try:
        regime = theory.angular_jump_regime(lr, wd, low, high, delta)
        highest = theory.angular_jump_norm(lr, wd, high, delta)
        time = theory.steps_to_angular_jump(norm, lr, wd, low, high, delta)
    except ValueError as error:
        return {**dict.fromkeys(JUMPS, _none(error)), **angle}
    lowest = theory.angular_jump_norm(lr, wd, low, delta) if low else "none: without gradients nothing jumps"
    told = (regime, highest, lowest, _when(time.earliest), _when(time.latest))
    return {**angle, **dict(zip(JUMPS[1:], told, strict=True))}


def period_values(lr: float, wd: float, momentum: float) -> dict[str, Value]:
    """Period of the reference model and the norms at its ends, by the names of `PERIOD`.

    Examples
    --------
    >>> 300 < period_values(0.5, 0.004, 0.0)["period"] < 600
    True
    """
    if momentum or not wd:
        return dict.fromkeys(PERIOD, "the reference model is of plain SGD with weight decay")
    try:
        with warnings.catch_warnings():
            # beyond its calibration the model warns, and no number is shown
            warnings.simplefilter("error", UserWarning)
            found = period(lr, wd)
    except (UserWarning, ValueError) as warning:
        return dict.fromkeys(PERIOD, _none(str(warning).partition(";")[0]))
    return dict(zip(PERIOD, (found.mean, found.trough_norm, found.peak_norm), strict=True))


def norm_levels(values: Mapping[str, Value]) -> list[Level]:
    """Bounds and equilibria as lines: where the two are equal there is one line, and its words say so.

    Examples
    --------
    >>> [level.words for level in norm_levels(rest_values(0.5, 0.01, 1.0, 4.0, 0.0))]
    ['bounds = equilibrium at ℓ and L', 'equilibrium at rms g̃']
    >>> [level.words for level in norm_levels(rest_values(0.5, 1e-4, 1.0, 4.0, 0.9))]
    ['lower bound', 'equilibrium at ℓ and L', 'equilibrium at rms g̃']
    """
    known = {name: value for name, value in values.items() if not isinstance(value, str) and value > 0}

    def equal(one: str, other: str) -> bool:
        return math.isclose(known.get(one, 0.0), known.get(other, math.inf), rel_tol=1e-9)

    bounds = [end for end in _ENDS if end.bound in known]
    joint = [end for end in bounds if equal(end.bound, end.rest)]
    apart = [end for end in _ENDS if end.rest in known and end not in joint]
    words = bounds[0].words if len(bounds) == 1 else "bounds"
    if joint:
        words += f" = {_equilibrium(joint)}" if joint == bounds else f" ({joint[0].words} = {_equilibrium(joint)})"
    rms = "equilibrium_norm_rms"
    levels = [
        Level("bound", words, tuple(end.bound for end in bounds)),
        Level("ends", _equilibrium(apart), tuple(end.rest for end in apart)),
        Level("rest", "equilibrium at rms g̃", (rms,) if rms in known and not equal(rms, _ENDS[1].rest) else ()),
    ]
    return [level for level in levels if level.names]


def norm_trajectory(
    norm: float,
    lr: float,
    wd: float,
    low: float,
    high: float,
    momentum: float,
    *,
    steps: int | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Simulate the trajectory that `explore` shows.

    Examples
    --------
    >>> norm_trajectory(10.0, 0.5, 0.01, 1.0, 4.0, 0.0).attrs["updates"]
    800
    """
    wanted = _steps(norm, lr, wd, _rms(low, high), momentum) if steps is None else steps
    return norm_map(
        lr,
        wd,
        BoundedGradient(low, high),
        norm=norm,
        steps=wanted,
        optimizer=theory.SGD(momentum=momentum),
        record_every=max(1, -(-wanted // _ROWS)),
        seed=seed,
    )


def _told(formula: Callable[..., Any], *arguments: Any, none: str = "none", **named: Any) -> Value:
    """The finite number, or `none`, or what the theory says of arguments out of its range."""
    try:
        number = float(formula(*arguments, **named))
    except ValueError as error:
        return _none(error)
    return number if math.isfinite(number) else none


def _none(why: object) -> str:
    """Why there is no number, in the letters of all other words."""
    return f"none: {why}".replace("lr * wd", "ηλ")


def _equilibrium(ends: list[_End]) -> str:
    return f"equilibrium at {' and '.join(end.letter for end in ends)}"


def _when(step: float) -> Value:
    return float(step) if math.isfinite(step) else "never" if step > 0 else "not decided in 20 000 steps"


def _rms(low: float, high: float) -> float:
    """Root mean square of g̃ that is uniform between the two, as those of the trajectory are."""
    return high * math.sqrt((1 + low / high + (low / high) ** 2) / 3)


def _relaxation_time(lr: float, wd: float, momentum: float) -> float:
    return float(theory.momentum_relaxation(lr, wd, momentum=momentum).time)


def _edge_sharpness(lr: float, wd: float, grad_norm: float, rule: theory.SGD) -> float:
    """Curvature whose critical norm, which goes with its root, is the equilibrium norm."""
    rest = theory.equilibrium_norm(lr, wd, grad_norm, optimizer=rule)
    return float((rest / theory.critical_norm(lr, 1.0, wd=wd, optimizer=rule)) ** 2)


def _steps(norm: float, lr: float, wd: float, grad_norm: float, momentum: float) -> int:
    rest = theory.equilibrium_norm(lr, wd, grad_norm, optimizer=theory.SGD(momentum=momentum))
    fall = theory.momentum_least_decay_steps(lr, wd, max(norm / rest, 1.0), momentum=momentum)
    wanted = float(fall + _RELAXATIONS * _relaxation_time(lr, wd, momentum))
    if not math.isfinite(wanted):
        return _STEPS
    return round(min(max(float(f"{wanted:.1e}"), _FEWEST_STEPS), _MOST_STEPS))
