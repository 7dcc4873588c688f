"""What theory says of a setting, laid out for the command line; no network and no PyTorch."""

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

# what plain SGD has besides, by key
_KNOWN_OF_SGD = {
    "relaxation_time": "relaxation time",
    "free_fall": "free fall",
    "angular_jump_norm": "jumps",
    "period": "periods",
}


@dataclass(frozen=True)
class Predicted:
    """One number, or word, that follows from a setting.

    Attributes
    ----------
    key : name in JSON.
    words : what it is.
    value : a number or a word.
    unit : of the number.
    note : what it rests on.
    """

    key: str
    words: str
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
) -> list[Predicted]:
    """Say where norm and rotation settle, when steps become jumps and how long periods are, by formula alone.

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0.
    grad_norm : g̃ > 0.
    optimizer : default `theory.SGD()`.
    grad_norm_range : ℓ and L between which g̃ stays; adds bounds of the norm and whether jumps are possible.
    norm : ρ > 0 now; with the range it adds when a jump is possible and certain.
    delta : a jump is a step with 1 - cos θ > δ, 0 < δ < 1; default 0.1.
    sharpness : largest eigenvalue of the Hessian at weights of norm 1; adds the norm at the edge of stability.
    period_model : file of a `simulate.PeriodModel`; default is that of the reference ConvNet.

    Returns
    -------
    Numbers in a fixed order; what has no meaning for the setting is left out, what is not known for the optimizer is
    named.

    Raises
    ------
    TypeError, ValueError : an argument is out of range, or `norm` comes without the range.

    Source: docs/mathematics.md §2 to §6.

    Examples
    --------
    >>> found = predictions(0.1, 0.01, optimizer=theory.SGD(momentum=0.9))
    >>> [(each.key, round(each.value, 3)) for each in found[:3]]
    [('equilibrium_norm', 2.659), ('equilibrium_effective_lr', 0.014), ('equilibrium_rotation', 0.032)]
    """
    rule = theory.SGD() if optimizer is None else optimizer
    for name, value in (("lr", lr), ("wd", wd), ("grad_norm", grad_norm)):
        check_number(name, value)
    if grad_norm_range is not None and np.shape(grad_norm_range) != (2,):
        raise ValueError(f"grad_norm_range must be two numbers, got {grad_norm_range!r}")
    if norm is not None and grad_norm_range is None:
        raise ValueError(f"norm must come with grad_norm_range, which says when a jump is due, got {norm!r} alone")
    found = _at_rest(lr, wd, grad_norm, rule)
    plain_sgd = rule == theory.SGD() and lr * wd < 1
    if delta is not None and not plain_sgd:
        raise ValueError(f"delta must be left out but for plain SGD with lr * wd < 1, got {delta!r} with {rule!r}")
    delta = 0.1 if delta is None else delta
    if plain_sgd:
        words = f"norm below which a step is a jump (δ = {delta:g})"
        jumps = theory.angular_jump_norm(lr, wd, grad_norm, delta)
        found.append(Predicted("angular_jump_norm", words, jumps, "", _of_gradient(grad_norm)))
    if grad_norm_range is not None:
        if not plain_sgd:
            raise ValueError(f"grad_norm_range must be left out but for plain SGD with lr * wd < 1, got {rule!r}")
        found += _within(lr, wd, grad_norm_range, norm, delta)
    if sharpness is not None:
        sgd = rule if isinstance(rule, theory.SGD) else None
        if sgd is None:
            raise ValueError(f"sharpness must be left out but for SGD, got optimizer={rule!r}")
        edge = theory.critical_norm(lr, sharpness, wd=wd, optimizer=sgd)
        found.append(Predicted("critical_norm", "norm at the edge of stability", edge))
    if plain_sgd and wd > 0:
        found += _period(lr, wd, period_model)
    elif period_model is not None:
        raise ValueError(
            f"period_model must be left out but for plain SGD with 0 < lr * wd < 1, got {str(period_model)!r}"
        )
    if rule != theory.SGD():
        missing = [words for key, words in _KNOWN_OF_SGD.items() if key not in {each.key for each in found}]
        found.append(Predicted("not_known", "not known", ", ".join(missing), "", f"for {format_optimizer(rule)}"))
    return found


def _of_gradient(grad_norm: float) -> str:
    return f"for g̃ = {grad_norm:g}"


def _at_rest(lr: float, wd: float, grad_norm: float, rule: theory.Optimizer) -> list[Predicted]:
    quantities: dict[str, tuple[str, Callable[..., Any], str]] = {
        "equilibrium_norm": ("equilibrium norm ρ*", theory.equilibrium_norm, ""),
        "equilibrium_effective_lr": ("equilibrium effective lr η/ρ*²", theory.equilibrium_effective_lr, ""),
        "equilibrium_rotation": ("equilibrium rotation θ*", theory.equilibrium_rotation, "radians per step"),
    }
    if rule == theory.SGD() and lr * wd >= 1:
        # each step turns the weights around, and there is no angle of rest
        del quantities["equilibrium_rotation"]
    found = []
    for key, (words, formula, unit) in quantities.items():
        value, other = (float(formula(lr, wd, grad_norm=g, optimizer=rule)) for g in (grad_norm, 2 * grad_norm))
        note = "whatever g̃" if math.isclose(value, other) else _of_gradient(grad_norm)
        if rule != theory.SGD():
            note += ", of gradients that do not depend on those before"
        found.append(Predicted(key, words, value, unit, note))
    relaxation = math.nan
    if rule == theory.SGD():
        relaxation = float(theory.relaxation_time(lr, wd))
    elif isinstance(rule, theory.SGD) and not rule.nesterov:
        followed = theory.momentum_relaxation(lr, wd, momentum=rule.momentum, decoupled=rule.decoupled)
        relaxation = float(followed.time)
    if not math.isnan(relaxation):
        found.append(Predicted("relaxation_time", "relaxation time", relaxation, "steps"))
    decay = theory.free_decay(lr, wd, optimizer=rule) if lr * wd < 1 else math.nan
    if decay > 0:
        words = "free fall by a factor of e"
        found.append(Predicted("free_fall", words, 1 / decay, "steps", "without gradients"))
    return found


def _within(
    lr: float, wd: float, grad_norm_range: tuple[float, float], norm: float | None, delta: float
) -> list[Predicted]:
    low, high = grad_norm_range
    bounds = theory.norm_bounds(lr, wd, low, high)
    where = f"for {low:g} <= g̃ <= {high:g}"
    found = [
        Predicted("norm_lower", "lower bound of the norm", bounds.lower, "", where),
        Predicted("norm_upper", "upper bound of the norm", bounds.upper, "", where),
        Predicted(
            "jumps",
            f"jumps (δ = {delta:g})",
            theory.angular_jump_regime(lr, wd, low, high, delta),
            "",
            f"{where}, from a norm at which none is due at once",
        ),
    ]
    if norm is not None:
        time = theory.steps_to_angular_jump(norm, lr, wd, low, high, delta)
        since = f"from norm {norm:g}, {where}"
        found += [
            Predicted("jump_earliest", "first jump, at the earliest", time.earliest, "steps", since),
            Predicted("jump_latest", "first jump, at the latest", time.latest, "steps", since),
        ]
    return found


def _period(lr: float, wd: float, period_model: str | os.PathLike[str] | None) -> list[Predicted]:
    import simulate

    model = simulate.PeriodModel.reference() if period_model is None else simulate.PeriodModel.load(period_model)
    if not model.has_law:
        raise ValueError(
            f"period_model must be of a network that shows periods, got {str(period_model)!r}, which shows none"
        )
    if model.optimizer != "SGD()":
        raise ValueError(f"period_model must be of plain SGD as the prediction is, got one of {model.optimizer}")
    with warnings.catch_warnings():
        # what it would warn of, the note says
        warnings.simplefilter("ignore", UserWarning)
        period, known, expected = model.law.period(lr, wd), model.law_interval(lr, wd), model.predict(lr, wd)
    if not math.isfinite(period):
        return []
    low, high = model.calibrated_range
    inside = low * (1 - 1e-9) <= lr * wd <= high * (1 + 1e-9)
    said = json.loads(model.calibration_runs[0].run or "{}")
    network = ", ".join(str(said[key]) for key in ("model", "width", "dataset") if said.get(key) is not None)
    other = "for another network: bnwd calibrate" if period_model is None else str(period_model)
    return [
        Predicted("period_verdict", "training of the network below", expected.verdict),
        Predicted("period", "  period, where it is periodic", period, "steps"),
        Predicted("period_lower", "  at least (90 %)", known.lower, "steps"),
        Predicted("period_upper", "  at most (90 %)", known.upper, "steps"),
        Predicted("period_network", "  of the network", network or "unknown", "", other),
        Predicted(
            "period_calibrated",
            "  calibrated there",
            "yes" if inside else "no",
            "",
            f"{low:.3g} <= lr * wd <= {high:.3g}",
        ),
    ]


def format_predictions(found: Sequence[Predicted]) -> str:
    """Lay numbers out as a table.

    Examples
    --------
    >>> print(format_predictions([Predicted("period", "period", 160.2, "steps", "of a ConvNet")]))
    period  160.2 steps  of a ConvNet
    """
    cells = [(each.words, _text(each), each.note) for each in found]
    widths = [max(len(row[i]) for row in cells) for i in range(2)] if cells else [0, 0]
    return "\n".join(f"{a.ljust(widths[0])}  {b.ljust(widths[1])}  {c}".rstrip() for a, b, c in cells)


def _text(each: Predicted) -> str:
    if isinstance(each.value, str):
        return each.value
    if math.isinf(each.value) and each.unit == "steps":
        return "never"
    return f"{each.value:.6g} {each.unit}".rstrip()


def as_plain(found: Sequence[Predicted]) -> dict[str, Any]:
    """Numbers by key, for JSON, which knows neither inf nor NaN: these are None.

    Examples
    --------
    >>> as_plain([Predicted("jumps", "jumps", "impossible"), Predicted("jump_latest", "latest", math.inf)])
    {'jumps': 'impossible', 'jump_latest': None}
    """
    return {
        each.key: each.value if isinstance(each.value, str) or math.isfinite(each.value) else None for each in found
    }
