"""Numbers and a simulated trajectory for one setting, from theory and simulation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

import theory
from simulate.maps.gradients import BoundedGradient
from simulate.maps.norm_map import norm_map
from simulate.period_model.model import period
from theory.arguments import check_integer, check_intrinsic_lr, check_number, check_order

Value = float | str  # a number, or the reason why there is none

_RELAXATIONS = 12  # relaxation times that a trajectory covers after its decay phase
_MIN_STEPS, _DEFAULT_STEPS, MAX_STEPS = 100, 1000, 2_000_000
_MAX_ROWS = 2000
_NO_ANGULAR_JUMPS = "no angular jump formula with momentum"


@dataclass(frozen=True)
class Quantity:
    """Label and units of a value, and the powers of η and L it is proportional to.

    The powers hold at fixed ηλ, momentum, ℓ/L, δ and ρ₀/√(ηL); see the symmetries in docs/mathematics.md §6.
    """

    words: str
    units: str
    lr_power: float = 0.0
    grad_norm_power: float = 0.0

    def text(self, value: Value) -> str:
        """Return the value with its units, or the reason why there is no number."""
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
    "angular_jump_rotation": Quantity("smallest angular jump", "rad"),
    "angular_jump_regime": Quantity("angular jumps", ""),
    "angular_jump_norm_max": Quantity("no angular jump above norm", "weight", 0.5, 0.5),
    "angular_jump_norm_min": Quantity("only angular jumps below norm", "weight", 0.5, 0.5),
    "angular_jump_earliest": Quantity("earliest angular jump", "steps"),
    "angular_jump_latest": Quantity("latest first angular jump", "steps"),
    "period": Quantity("period of reference ConvNet", "steps"),
    "trough_norm": Quantity("its norm at the troughs", "weight", 0.5, 0.0),
    "peak_norm": Quantity("its norm at the peaks", "weight", 0.5, 0.0),
}
EQUILIBRIUM_NAMES = tuple(QUANTITIES)[:9]
ANGULAR_JUMP_NAMES = tuple(QUANTITIES)[9:15]
PERIOD_NAMES = tuple(QUANTITIES)[15:]


class _RangeEnd(NamedTuple):
    """One end of the range of g̃: names of the bound and the equilibrium that belong to it."""

    bound: str
    words: str
    equilibrium: str
    letter: str


_ENDS = (
    _RangeEnd("norm_lower", "lower bound", "equilibrium_norm_min", "ℓ"),
    _RangeEnd("norm_upper", "upper bound", "equilibrium_norm_max", "L"),
)


class Level(NamedTuple):
    """Horizontal lines of one kind in the figure of the norm.

    `kind` is "bound", "ends" (equilibria at ℓ and L) or "rms" (equilibrium at rms g̃), `words` the label, `names` the
    values drawn.
    """

    kind: str
    words: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Exploration:
    """Numbers and trajectory of one setting, returned by `explore`.

    Attributes
    ----------
    lr, wd, momentum : η, λ, μ.
    grad_norm_min, grad_norm_max : ℓ and L, the range of g̃.
    norm : ρ at the start.
    delta : δ, threshold of an angular jump.
    values : for each name in `QUANTITIES` a number, or the reason why there is none.
    trajectory : simulated with independent g̃, uniform between ℓ and L.
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
) -> Exploration:
    """Compute equilibria, bounds, angular jumps, period and a simulated trajectory for one setting of SGD.

    Parameters
    ----------
    lr, wd : η > 0 and λ >= 0, numbers with ηλ < 2(1+μ).
    grad_norm_min, grad_norm_max : range of g̃ (units of the loss), 0 <= ℓ <= L, L > 0.
    norm : ρ > 0 at the start.
    momentum : μ of the heavy ball, 0 <= μ < 1.
    delta : 0 < δ < 1, threshold of an angular jump: 1 - cos θ > δ.
    steps : length of the trajectory. By default it covers the decay to the equilibrium and 12 relaxation times, at
        most two million steps.
    seed : seed of the gradient norms of the trajectory.

    Returns
    -------
    Exploration. With momentum, equilibria, rotation and relaxation assume random gradient directions. The trajectory
    comes from `norm_map` and has at most 2000 rows. `edge_sharpness` is the largest curvature h on the unit sphere at
    which steps at the equilibrium norm do not overshoot. The period is that of `simulate.period`: it belongs to this
    project's ConvNet and does not depend on ℓ and L.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or out of range.

    Source: docs/mathematics.md §2 to §7.

    Examples
    --------
    >>> exploration = explore(0.5, 0.01, grad_norm_min=1.0, grad_norm_max=4.0, norm=10.0)
    >>> round(exploration.values["relaxation_time"], 1), exploration.values["angular_jump_regime"]
    (49.6, 'impossible')
    >>> explore(0.5, 0.0, grad_norm_min=1.0, grad_norm_max=4.0, norm=10.0).values["equilibrium_norm_max"]
    'none without weight decay'
    """
    lr, wd = check_number("lr", lr, above=0), check_number("wd", wd, at_least=0)
    low = check_number("grad_norm_min", grad_norm_min, at_least=0)
    high = check_number("grad_norm_max", grad_norm_max, above=0)
    check_order("grad_norm_min", np.asarray(low), "grad_norm_max", np.asarray(high))
    norm, delta = check_number("norm", norm, above=0), check_number("delta", delta, above=0, below=1)
    rule = theory.SGD(momentum=momentum)
    check_intrinsic_lr(np.asarray(lr), np.asarray(wd), below=rule.intrinsic_lr_limit)
    run = norm_trajectory(norm, lr, wd, low, high, momentum, steps=steps, seed=seed)
    values = {
        **equilibrium_values(lr, wd, low, high, momentum),
        **angular_jump_values([norm], lr, wd, low, high, delta, momentum)[0],
        **period_values(lr, wd, momentum),
    }
    return Exploration(lr, wd, float(momentum), low, high, norm, delta, values, run)


def equilibrium_values(lr: float, wd: float, low: float, high: float, momentum: float) -> dict[str, Value]:
    """Equilibria, bounds, rotation, relaxation time and edge of stability, by the names in `EQUILIBRIUM_NAMES`."""
    if wd == 0:
        return dict.fromkeys(EQUILIBRIUM_NAMES, "none without weight decay")
    rule, rms = theory.SGD(momentum=momentum), _rms(low, high)
    oscillates = "none: at this ηλ the norm oscillates forever"
    named: Any = {"optimizer": rule}
    if momentum:
        bound = float(theory.momentum_lower_bound(lr, wd, low, momentum=momentum))
        lower: Value = bound if bound or not low else "none: the norm rings at this ηλ"
        upper: Value = "no upper bound is known with momentum"
    else:
        bounds = theory.norm_bounds(lr, wd, low, high)
        lower, upper = bounds.lower, bounds.upper if math.isfinite(bounds.upper) else oscillates
    lowest = _evaluate(theory.equilibrium_norm, lr, wd, low, **named)
    return {
        "equilibrium_norm_min": lowest if low else "none: without gradients the norm decays to 0",
        "equilibrium_norm_rms": _evaluate(theory.equilibrium_norm, lr, wd, rms, **named),
        "equilibrium_norm_max": _evaluate(theory.equilibrium_norm, lr, wd, high, **named),
        "norm_lower": lower,
        "norm_upper": upper,
        "equilibrium_effective_lr": _evaluate(theory.equilibrium_effective_lr, lr, wd, rms, **named),
        "equilibrium_rotation": _evaluate(theory.equilibrium_rotation, lr, wd, **named),
        "relaxation_time": _evaluate(_relaxation_time, lr, wd, momentum, none=oscillates),
        "edge_sharpness": _evaluate(_edge_sharpness, lr, wd, rms, rule),
    }


def angular_jump_values(
    norms: Sequence[float], lr: float, wd: float, low: float, high: float, delta: float, momentum: float
) -> list[dict[str, Value]]:
    """Angular jumps for each start norm, by the names in `ANGULAR_JUMP_NAMES`.

    With momentum only the smallest rotation is a number.
    """
    # arccos(1-δ), accurate for small δ too
    rotation: dict[str, Value] = {"angular_jump_rotation": 2 * math.asin(math.sqrt(delta / 2))}
    if momentum:
        return [{**dict.fromkeys(ANGULAR_JUMP_NAMES, _NO_ANGULAR_JUMPS), **rotation}] * len(norms)
    try:
        regime = theory.angular_jump_regime(lr, wd, low, high, delta)
        highest = theory.angular_jump_norm(lr, wd, high, delta)
        time = theory.steps_to_angular_jump(norms, lr, wd, low, high, delta)
    except ValueError as error:
        return [{**dict.fromkeys(ANGULAR_JUMP_NAMES, _reason(error)), **rotation}] * len(norms)
    lowest = theory.angular_jump_norm(lr, wd, low, delta) if low else "none: no angular jumps without gradients"
    steps = [map(_step_value, values) for values in time]
    return [
        {**rotation, **dict(zip(ANGULAR_JUMP_NAMES[1:], (regime, highest, lowest, earliest, latest), strict=True))}
        for earliest, latest in zip(*steps, strict=True)
    ]


def period_values(lr: float, wd: float, momentum: float) -> dict[str, Value]:
    """Period of the reference model and the norms at its troughs and peaks, by the names in `PERIOD_NAMES`."""
    if momentum or not wd:
        return dict.fromkeys(PERIOD_NAMES, "only for plain SGD with weight decay")
    try:
        with warnings.catch_warnings():
            # the model warns outside its calibrated range; show no number then
            warnings.simplefilter("error", UserWarning)
            prediction = period(lr, wd)
    except (UserWarning, ValueError) as warning:
        return dict.fromkeys(PERIOD_NAMES, _reason(str(warning).partition(";")[0]))
    return dict(zip(PERIOD_NAMES, (prediction.period, prediction.trough_norm, prediction.peak_norm), strict=True))


def positive_numbers(values: Mapping[str, Value]) -> dict[str, float]:
    """Those values that a logarithmic axis can show."""
    return {name: value for name, value in values.items() if not isinstance(value, str) and value > 0}


def norm_levels(values: Mapping[str, Value]) -> list[Level]:
    """Lines for bounds and equilibria. Where a bound equals an equilibrium, one line is for both."""
    heights = positive_numbers(values)

    def equal(one: str, other: str) -> bool:
        return math.isclose(heights.get(one, 0.0), heights.get(other, math.inf), rel_tol=1e-9)

    bounds = [end for end in _ENDS if end.bound in heights]
    joint = [end for end in bounds if equal(end.bound, end.equilibrium)]
    separate = [end for end in _ENDS if end.equilibrium in heights and end not in joint]
    words = bounds[0].words if len(bounds) == 1 else "bounds"
    if joint:
        label = _equilibrium_label(joint)
        words += f" = {label}" if joint == bounds else f" ({joint[0].words} = {label})"
    rms = "equilibrium_norm_rms"
    levels = [
        Level("bound", words, tuple(end.bound for end in bounds)),
        Level("ends", _equilibrium_label(separate), tuple(end.equilibrium for end in separate)),
        Level("rms", "equilibrium at rms g̃", (rms,) if rms in heights and not equal(rms, _ENDS[1].equilibrium) else ()),
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
    max_steps: int = MAX_STEPS,
) -> xr.Dataset:
    """Simulate the trajectory that `explore` returns, by default of at most `max_steps`."""
    if steps is None:
        steps = min(_default_steps(norm, lr, wd, _rms(low, high), momentum), max_steps)
    steps = check_integer("steps", steps)
    return norm_map(
        lr,
        wd,
        BoundedGradient(low, high),
        norm=norm,
        steps=steps,
        optimizer=theory.SGD(momentum=momentum),
        record_every=max(1, -(-steps // _MAX_ROWS)),
        seed=seed,
    )


def _evaluate(formula: Callable[..., Any], *arguments: Any, none: str = "none", **named: Any) -> Value:
    """Return the number if it is finite, else `none`; outside the range of the formula, the reason."""
    try:
        number = float(formula(*arguments, **named))
    except ValueError as error:
        return _reason(error)
    return number if math.isfinite(number) else none


def _reason(error: object) -> str:
    """Reason why there is no number, with ηλ for lr * wd as in all labels."""
    return f"none: {error}".replace("lr * wd", "ηλ")


def _equilibrium_label(ends: list[_RangeEnd]) -> str:
    return f"equilibrium at {' and '.join(end.letter for end in ends)}"


def _step_value(step: float) -> Value:
    return float(step) if math.isfinite(step) else "never" if step > 0 else "undetermined after 20 000 steps"


def _rms(low: float, high: float) -> float:
    """Root mean square of g̃ uniform between `low` and `high`."""
    return high * math.sqrt((1 + low / high + (low / high) ** 2) / 3)


def _relaxation_time(lr: float, wd: float, momentum: float) -> float:
    return float(theory.momentum_relaxation(lr, wd, momentum=momentum).time)


def _edge_sharpness(lr: float, wd: float, grad_norm: float, rule: theory.SGD) -> float:
    """Curvature whose critical norm is the equilibrium norm; the critical norm is proportional to its root."""
    equilibrium = theory.equilibrium_norm(lr, wd, grad_norm, optimizer=rule)
    return float((equilibrium / theory.critical_norm(lr, 1.0, wd=wd, optimizer=rule)) ** 2)


def _default_steps(norm: float, lr: float, wd: float, grad_norm: float, momentum: float) -> int:
    equilibrium = theory.equilibrium_norm(lr, wd, grad_norm, optimizer=theory.SGD(momentum=momentum))
    decay = theory.momentum_least_decay_steps(lr, wd, max(norm / equilibrium, 1.0), momentum=momentum)
    steps = float(decay + _RELAXATIONS * _relaxation_time(lr, wd, momentum))
    if not math.isfinite(steps):
        return _DEFAULT_STEPS
    return round(max(float(f"{steps:.1e}"), _MIN_STEPS))
