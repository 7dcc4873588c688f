"""Predictions of theory for one setting, as a table or as JSON. Imports no PyTorch."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import theory
from theory.arguments import check_number
from theory.optimizers import format_optimizer

# predictions that are complete for plain SGD only: key and label
_PLAIN_SGD_ONLY = {
    "relaxation_time": "relaxation time",
    "free_decay": "decay without gradients",
    "angular_jump_norm": "angular jumps",
    "period": "periods",
}


@dataclass(frozen=True)
class PredictedValue:
    """One predicted number or word, with its label.

    Attributes
    ----------
    key : name in JSON.
    label : text in the table.
    value : a number or a word.
    unit : of the number.
    note : condition under which the value holds.
    """

    key: str
    label: str
    value: float | str
    unit: str = ""
    note: str = ""


def predictions(
    lr: float,
    wd: float,
    grad_norm: float = 1.0,
    *,
    optimizer: theory.Optimizer | None = None,
    grad_norm_range: tuple[float, float] | None = None,
    norm: float | None = None,
    delta: float | None = None,
    sharpness: float | None = None,
    period_model: str | os.PathLike[str] | None = None,
) -> list[PredictedValue]:
    """Predict equilibrium norm, rotation, angular jumps and periods from formulas.

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0.
    grad_norm : g̃ > 0.
    optimizer : default `theory.SGD()`.
    grad_norm_range : smallest and largest g̃, ℓ and L. Adds bounds of the norm and whether angular jumps can occur.
    norm : present ρ > 0. Needs `grad_norm_range`. Adds the earliest and latest step of the next angular jump.
    delta : an angular jump is a step with 1 - cos θ > δ, 0 < δ < 1. Default: 0.1.
    sharpness : largest Hessian eigenvalue at weights scaled to norm 1. Adds the norm at the edge of stability.
    period_model : file of a `simulate.PeriodModel`. Default: the model of the reference ConvNet.

    Returns
    -------
    Values in a fixed order. Values without a meaning for the setting are left out. The last value lists what is not
    available for the optimizer.

    Raises
    ------
    TypeError, ValueError : an argument is out of range, or `norm` comes without `grad_norm_range`.

    Source: docs/mathematics.md §2 to §6.

    Examples
    --------
    >>> values = predictions(0.1, 0.01, optimizer=theory.SGD(momentum=0.9))
    >>> [(value.key, round(value.value, 3)) for value in values[:3]]
    [('equilibrium_norm', 2.659), ('equilibrium_effective_lr', 0.014), ('equilibrium_rotation', 0.032)]
    """
    rule = theory.SGD() if optimizer is None else optimizer
    for name, value in (("lr", lr), ("wd", wd), ("grad_norm", grad_norm)):
        check_number(name, value)
    if grad_norm_range is not None and np.shape(grad_norm_range) != (2,):
        raise ValueError(f"grad_norm_range must be two numbers, got {grad_norm_range!r}")
    if norm is not None and grad_norm_range is None:
        raise ValueError(f"norm must come with grad_norm_range, which bounds the next angular jump, got {norm!r} alone")
    values = _equilibrium_values(lr, wd, grad_norm, rule)
    plain_sgd = rule == theory.SGD() and lr * wd < 1
    if delta is not None and not plain_sgd:
        raise ValueError(
            f"delta must be left out unless the optimizer is plain SGD with lr * wd < 1, got {delta!r} with {rule!r}"
        )
    delta = 0.1 if delta is None else delta
    if plain_sgd:
        label = f"angular jumps (δ = {delta:g}) below the norm"
        largest_norm = theory.angular_jump_norm(lr, wd, grad_norm, delta)
        values.append(PredictedValue("angular_jump_norm", label, largest_norm, "", _gradient_note(grad_norm)))
    if grad_norm_range is not None:
        if not plain_sgd:
            raise ValueError(
                f"grad_norm_range must be left out unless the optimizer is plain SGD with lr * wd < 1, got {rule!r}"
            )
        values += _range_values(lr, wd, grad_norm_range, norm, delta)
    if sharpness is not None:
        sgd = rule if isinstance(rule, theory.SGD) else None
        if sgd is None:
            raise ValueError(f"sharpness must be left out unless the optimizer is SGD, got optimizer={rule!r}")
        edge = theory.critical_norm(lr, sharpness, wd=wd, optimizer=sgd)
        values.append(PredictedValue("critical_norm", "norm at the edge of stability", edge))
    if plain_sgd and wd > 0:
        values += _period_values(lr, wd, period_model)
    elif period_model is not None:
        raise ValueError(
            "period_model must be left out unless the optimizer is plain SGD with 0 < lr * wd < 1, "
            f"got {str(period_model)!r}"
        )
    if rule != theory.SGD():
        missing = [label for key, label in _PLAIN_SGD_ONLY.items() if key not in {value.key for value in values}]
        label = "no formula for this optimizer"
        values.append(PredictedValue("not_known", label, ", ".join(missing), "", format_optimizer(rule)))
    return values


def _gradient_note(grad_norm: float) -> str:
    return f"for g̃ = {grad_norm:g}"


def _equilibrium_values(lr: float, wd: float, grad_norm: float, rule: theory.Optimizer) -> list[PredictedValue]:
    quantities: dict[str, tuple[str, Callable[..., Any], str]] = {
        "equilibrium_norm": ("equilibrium norm ρ*", theory.equilibrium_norm, ""),
        "equilibrium_effective_lr": ("equilibrium effective lr η/ρ*²", theory.equilibrium_effective_lr, ""),
        "equilibrium_rotation": ("equilibrium rotation θ*", theory.equilibrium_rotation, "radians per step"),
    }
    if rule == theory.SGD() and lr * wd >= 1:
        # each step reverses the weights, so the rotation has no equilibrium
        del quantities["equilibrium_rotation"]
    values = []
    for key, (label, formula, unit) in quantities.items():
        value, other = (float(formula(lr, wd, grad_norm=g, optimizer=rule)) for g in (grad_norm, 2 * grad_norm))
        note = "for every g̃" if math.isclose(value, other) else _gradient_note(grad_norm)
        if rule != theory.SGD():
            note += ", if gradients are independent in time"
        values.append(PredictedValue(key, label, value, unit, note))
    relaxation = math.nan
    if rule == theory.SGD():
        relaxation = float(theory.relaxation_time(lr, wd))
    elif isinstance(rule, theory.SGD) and not rule.nesterov:
        momentum_relaxation = theory.momentum_relaxation(lr, wd, momentum=rule.momentum, decoupled=rule.decoupled)
        relaxation = float(momentum_relaxation.time)
    if not math.isnan(relaxation):
        note = "time in which a small deviation from ρ* shrinks by a factor of e"
        values.append(PredictedValue("relaxation_time", "relaxation time", relaxation, "steps", note))
    decay = theory.free_decay(lr, wd, optimizer=rule) if lr * wd < 1 else math.nan
    if decay > 0:
        label = "decay by a factor of e without gradients"
        values.append(PredictedValue("free_decay", label, 1 / decay, "steps", "by weight decay alone"))
    return values


def _range_values(
    lr: float, wd: float, grad_norm_range: tuple[float, float], norm: float | None, delta: float
) -> list[PredictedValue]:
    low, high = grad_norm_range
    bounds = theory.norm_bounds(lr, wd, low, high)
    condition = f"for {low:g} <= g̃ <= {high:g}"
    values = [
        PredictedValue("norm_lower", "lower bound of the norm", bounds.lower, "", condition),
        PredictedValue("norm_upper", "upper bound of the norm", bounds.upper, "", condition),
        PredictedValue(
            "angular_jumps",
            f"angular jumps (δ = {delta:g})",
            theory.angular_jump_regime(lr, wd, low, high, delta),
            "",
            f"{condition}, starting at a norm where no step is an angular jump yet",
        ),
    ]
    if norm is not None:
        time = theory.steps_to_angular_jump(norm, lr, wd, low, high, delta)
        start = f"from norm {norm:g}, {condition}"
        values += [
            PredictedValue("angular_jump_earliest", "next angular jump, earliest", time.earliest, "steps", start),
            PredictedValue("angular_jump_latest", "next angular jump, latest", time.latest, "steps", start),
        ]
    return values


def _period_values(lr: float, wd: float, period_model: str | os.PathLike[str] | None) -> list[PredictedValue]:
    import simulate

    model = simulate.PeriodModel.reference() if period_model is None else simulate.PeriodModel.load(period_model)
    if not model.has_law:
        raise ValueError(f"period_model must be of a network with periods, got {str(period_model)!r} without any")
    if model.optimizer != theory.SGD():
        raise ValueError(f"period_model must be calibrated with plain SGD, got one calibrated with {model.optimizer}")
    with warnings.catch_warnings():
        # the note says what it would warn about
        warnings.simplefilter("ignore", UserWarning)
        period, interval, prediction = model.law.period(lr, wd), model.law_interval(lr, wd), model.predict(lr, wd)
    if not math.isfinite(period):
        return []
    low, high = model.calibrated_range
    inside = low * (1 - 1e-9) <= lr * wd <= high * (1 + 1e-9)
    config = json.loads(model.calibration_runs[0].run or "{}")
    network = ", ".join(str(config[key]) for key in ("model", "width", "dataset") if config.get(key) is not None)
    source = "for your own network: bnwd calibrate" if period_model is None else str(period_model)
    return [
        PredictedValue(
            "period_verdict",
            "verdict for the network below",
            prediction.verdict,
            "",
            "equilibrium: the norm settles; periodic: it oscillates",
        ),
        PredictedValue("period", "  period, if periodic", period, "steps"),
        PredictedValue("period_lower", "  90 % interval, lower end", interval.lower, "steps"),
        PredictedValue("period_upper", "  90 % interval, upper end", interval.upper, "steps"),
        PredictedValue("period_network", "  network", network or "unknown", "", source),
        PredictedValue(
            "period_calibrated",
            "  inside the calibrated range",
            "yes" if inside else "no",
            "",
            f"{low:.3g} <= lr * wd <= {high:.3g}",
        ),
    ]


def format_predictions(values: Sequence[PredictedValue]) -> str:
    """Format predictions as a table.

    Examples
    --------
    >>> print(format_predictions([PredictedValue("period", "period", 160.2, "steps", "of a ConvNet")]))
    period  160.2 steps  of a ConvNet
    """
    cells = [(value.label, _format_value(value), value.note) for value in values]
    widths = [max(len(row[i]) for row in cells) for i in range(2)] if cells else [0, 0]
    return "\n".join(f"{a.ljust(widths[0])}  {b.ljust(widths[1])}  {c}".rstrip() for a, b, c in cells)


def _format_value(prediction: PredictedValue) -> str:
    value, unit = prediction.value, prediction.unit
    if isinstance(value, str):
        return value
    if math.isinf(value) and unit == "steps":
        return "never"
    return f"{value:.6g} {unit}".rstrip()


def to_json_values(values: Sequence[PredictedValue]) -> dict[str, Any]:
    """Return the values by key, for JSON. inf and NaN, which JSON lacks, become None.

    Examples
    --------
    >>> to_json_values([PredictedValue("angular_jumps", "", "impossible"), PredictedValue("period", "", math.inf)])
    {'angular_jumps': 'impossible', 'period': None}
    """
    return {
        value.key: value.value if isinstance(value.value, str) or math.isfinite(value.value) else None
        for value in values
    }
