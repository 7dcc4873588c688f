"""The commands `predict` and `transfer`: formulas for one setting, as a table or as JSON. They import no PyTorch."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

import theory
from empirical.cli.application import command, name_options, print_table
from empirical.cli.options import (
    GRADIENT_NORM_HELP,
    REFERENCE,
    LearningRate,
    WeightDecay,
    load_period_model,
    optimizer_option,
)
from simulate.trajectories.verdicts import PERIODIC, UNDETERMINED
from theory.arguments import check_number, quote
from theory.optimizers import check_optimizer, format_optimizer


class _Value(NamedTuple):
    """One predicted number or word: name in JSON, label in the table, and the condition under which it holds."""

    key: str
    label: str
    value: float | str
    unit: str = ""
    note: str = ""

    def text(self) -> str:
        if isinstance(self.value, str):
            return self.value
        if math.isinf(self.value) and self.unit == "steps":
            return "never"
        return f"{self.value:.6g} {self.unit}".rstrip()


# predictions that are complete for plain SGD only: key and label
_PLAIN_SGD_ONLY = {
    "relaxation_time": "relaxation time",
    "free_decay": "decay without gradients",
    "angular_jump_norm": "angular jumps",
    "period": "periods",
}


@command(
    "predict",
    "Predict norm, rotation and periods from lr and wd.",
    "--lr 0.5 --wd 0.01 --grad-norm 12 --grad-norm-range 1 30 --norm 9",
)
def predict_command(
    lr: LearningRate,
    wd: WeightDecay,
    grad_norm: Annotated[
        float | None,
        typer.Option(
            help=f"{GRADIENT_NORM_HELP} Default: 1. empirical.Monitor measures that of your network.",
            show_default=False,
        ),
    ] = None,
    grad_norm_range: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="SMALLEST LARGEST",
            help="Smallest and largest g̃ during training, e.g. 1 30. Adds bounds of the norm and whether angular jumps "
            "can occur.",
        ),
    ] = None,
    norm: Annotated[
        float | None,
        typer.Option(help="Present norm ρ. Needs --grad-norm-range. Adds when the next angular jump occurs."),
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(help="An angular jump is a step with 1 - cos θ > δ, 0 < δ < 1. Default: 0.1.", show_default=False),
    ] = None,
    sharpness: Annotated[
        float | None,
        typer.Option(help="Largest Hessian eigenvalue at weights of norm 1. Adds the norm at the edge of stability."),
    ] = None,
    period_model: Annotated[
        Path | None,
        typer.Option(
            help="File written by `bnwd calibrate` for your network, or the word reference for a small ConvNet on "
            "digits. Adds the predicted period."
        ),
    ] = None,
    optimizer: Annotated[str | None, optimizer_option] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON. inf and NaN become null.")] = False,
) -> None:
    """Predict equilibrium norm, rotation, angular jumps and periods from formulas. Nothing is trained."""
    rule, is_given = check_optimizer("SGD()" if optimizer is None else optimizer), grad_norm is not None
    grad_norm = 1.0 if grad_norm is None else grad_norm
    for name, number in (("lr", lr), ("wd", wd), ("grad_norm", grad_norm)):
        check_number(name, number)
    if norm is not None and grad_norm_range is None:
        raise ValueError(
            f"norm must come with --grad-norm-range, which bounds the next angular jump, got {quote(norm)} alone"
        )
    note = "" if optimizer is not None else 'assumed; for others --optimizer "SGD(momentum=0.9)" or "AdamW(dim=4096)"'
    values = [_Value("optimizer", "optimizer", format_optimizer(rule), note=note)]
    values += _equilibrium_values(lr, wd, grad_norm, rule)
    is_plain = rule == theory.SGD() and lr * wd < 1
    needs_plain = "must be left out unless the optimizer is plain SGD with"
    if delta is not None and not is_plain:
        raise ValueError(f"delta {needs_plain} lr * wd < 1, got {quote(delta)} with {rule!r}")
    if grad_norm_range is not None and not is_plain:
        raise ValueError(f"grad_norm_range {needs_plain} lr * wd < 1, got {quote(rule)}")
    if sharpness is not None and not isinstance(rule, theory.SGD):
        raise ValueError(f"sharpness must be left out unless the optimizer is SGD, got optimizer={rule!r}")
    if period_model is not None and not (is_plain and wd > 0):
        raise ValueError(f"period_model {needs_plain} 0 < lr * wd < 1, got {str(period_model)!r}")
    delta = 0.1 if delta is None else delta
    if is_plain:
        largest_norm = theory.angular_jump_norm(lr, wd, grad_norm, delta)
        label = f"angular jumps (δ = {delta:g}) below the norm"
        values.append(_Value("angular_jump_norm", label, largest_norm, note=f"for g̃ = {grad_norm:g}"))
    if grad_norm_range is not None:
        values += _range_values(lr, wd, grad_norm_range, norm, delta)
    if sharpness is not None and isinstance(rule, theory.SGD):
        edge = theory.critical_norm(lr, sharpness, wd=wd, optimizer=rule)
        values.append(_Value("critical_norm", "norm at the edge of stability", edge))
    if period_model is not None:
        values += _period_values(lr, wd, period_model)
    elif is_plain and wd > 0:
        note = "it depends on the network: bnwd calibrate measures yours, --period-model reference is an example"
        values.append(_Value("period_verdict", "equilibrium or periodic", UNDETERMINED, note=note))
    needs_gradient = any("for g̃" in value.note for value in values)
    if needs_gradient and (as_json or not is_given):
        note = "not given; the forecast of empirical.Monitor prints that of your network, --grad-norm sets it"
        values.append(_Value("grad_norm", "gradient norm g̃", grad_norm, note=note))
    if rule != theory.SGD():
        keys = {value.key for value in values}
        missing = ", ".join(label for key, label in _PLAIN_SGD_ONLY.items() if key not in keys)
        values.append(_Value("not_known", "not predicted", missing, note=f"no formula for {format_optimizer(rule)}"))
    _print_values([_Value("lr", "", lr), _Value("wd", "", wd), *values] if as_json else values, as_json)


@command(
    "transfer",
    "Learning rate and weight decay for another batch size, data set or width.",
    '--lr 3e-4 --wd 0.1 --batch-size 128 512 --optimizer "AdamW"',
)
def transfer_command(
    lr: LearningRate,
    wd: WeightDecay,
    batch_size: Annotated[
        tuple[float, float] | None, typer.Option(metavar="BEFORE AFTER", help="Samples or tokens per step.")
    ] = None,
    samples: Annotated[
        tuple[float, float] | None, typer.Option(metavar="BEFORE AFTER", help="Samples or tokens per epoch.")
    ] = None,
    width: Annotated[
        tuple[float, float] | None, typer.Option(metavar="BEFORE AFTER", help="Width of hidden layers, under AdamW.")
    ] = None,
    keep: Annotated[
        str,
        typer.Option(
            help="What stays the same: memory (time in which decay forgets an update), rotation (per step, for another "
            "batch size), or gain (of layers, for another width)."
        ),
    ] = "memory",
    optimizer: Annotated[str, optimizer_option] = "SGD()",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say which lr and wd keep the equilibrium after a change of batch size, data set or width. Nothing is trained."""
    rule = check_optimizer(optimizer)
    with name_options(batch_size="--batch-size", samples="--samples", width="--width", keep="--keep"):
        after = theory.transfer(lr, wd, batch_size=batch_size, samples=samples, width=width, keep=keep, optimizer=rule)
    values = [
        _Value("lr", "learning rate", after.lr, note=f"was {lr:g}"),
        _Value("wd", "weight decay", after.wd, note=f"was {wd:g}"),
    ]
    for name, pair in (("before", (lr, wd)), ("after", (after.lr, after.wd))):
        steps = float(theory.memory(*pair, optimizer=rule).steps)
        if math.isfinite(steps):
            values.append(_Value(f"memory_{name}", f"memory {name}", steps, "steps", "about 1/(ηλ) without momentum"))
    values.append(_Value("rule", "rule", after.rule))
    values.append(_Value("period", "period", "not kept by any rule", note="calibrate again: bnwd calibrate --help"))
    _print_values(values, as_json)


def _print_values(values: list[_Value], as_json: bool) -> None:
    if as_json:
        # JSON has no inf and no NaN
        plain = {v.key: v.value if isinstance(v.value, str) or math.isfinite(v.value) else None for v in values}
        typer.echo(json.dumps(plain, indent=2))
    else:
        print_table([[value.label, value.text(), value.note] for value in values])


def _equilibrium_values(lr: float, wd: float, grad_norm: float, rule: theory.Optimizer) -> Iterator[_Value]:
    def angular_lr(lr: float, wd: float, **options: Any) -> Any:
        return lr / theory.equilibrium_norm(lr, wd, **options)

    quantities: list[tuple[str, str, Callable[..., Any], str]] = [
        ("equilibrium_norm", "equilibrium norm ρ*", theory.equilibrium_norm, ""),
        ("equilibrium_effective_lr", "equilibrium effective lr η/ρ*²", theory.equilibrium_effective_lr, "")
        if isinstance(rule, theory.SGD)
        # the size of their updates does not depend on that of the gradients
        else ("equilibrium_angular_lr", "equilibrium angular lr η/ρ*", angular_lr, ""),
    ]
    # from ηλ = 1 on, each step of plain SGD reverses the weights, so the rotation has no equilibrium
    if rule != theory.SGD() or lr * wd < 1:
        rotation = ("equilibrium_rotation", "equilibrium rotation θ*", theory.equilibrium_rotation, "radians per step")
        quantities.append(rotation)
    for key, label, formula, unit in quantities:
        value, other = (float(formula(lr, wd, grad_norm=g, optimizer=rule)) for g in (grad_norm, 2 * grad_norm))
        note = "for every g̃" if math.isclose(value, other) else f"for g̃ = {grad_norm:g}"
        yield _Value(key, label, value, unit, note + ", if gradients are independent in time" * (rule != theory.SGD()))
    if hasattr(rule, "norm_rate"):
        relaxation = float(theory.relaxation_time(lr, wd, grad_norm=grad_norm, optimizer=rule))
        if isinstance(rule, theory.SGD) and not rule.nesterov:
            # exact, also where the norm rings
            exact = theory.momentum_relaxation(lr, wd, momentum=rule.momentum, decoupled=rule.decoupled)
            relaxation = float(exact.time)
        note = "time in which a small deviation from ρ* shrinks by a factor of e"
        yield _Value("relaxation_time", "relaxation time", relaxation, "steps", note)
    decay = theory.free_decay(lr, wd, optimizer=rule) if lr * wd < 1 else math.nan
    if decay > 0:
        label = "decay by a factor of e without gradients"
        yield _Value("free_decay", label, 1 / decay, "steps", "by weight decay alone")


def _range_values(
    lr: float, wd: float, grad_norm_range: tuple[float, float], norm: float | None, delta: float
) -> Iterator[_Value]:
    low, high = grad_norm_range
    bounds = theory.norm_bounds(lr, wd, low, high)
    condition = f"for {low:g} <= g̃ <= {high:g}"
    yield _Value("norm_lower", "lower bound of the norm", bounds.lower, note=condition)
    yield _Value("norm_upper", "upper bound of the norm", bounds.upper, note=condition)
    regime = theory.angular_jump_regime(lr, wd, low, high, delta)
    note = f"{condition}, starting at a norm where no step is an angular jump yet"
    yield _Value("angular_jumps", f"angular jumps (δ = {delta:g})", regime, note=note)
    if norm is not None:
        time = theory.steps_to_angular_jump(norm, lr, wd, low, high, delta)
        start = f"from norm {norm:g}, {condition}"
        yield _Value("angular_jump_earliest", "next angular jump, earliest", time.earliest, "steps", start)
        yield _Value("angular_jump_latest", "next angular jump, latest", time.latest, "steps", start)


def _period_values(lr: float, wd: float, period_model: Path) -> Iterator[_Value]:
    is_reference, model = str(period_model) == REFERENCE, load_period_model(period_model)
    if not model.has_law:
        raise ValueError(f"period_model must be of a network with periods, got {str(period_model)!r} without any")
    if model.optimizer != theory.SGD():
        raise ValueError(f"period_model must be calibrated with plain SGD, got one calibrated with {model.optimizer}")
    with warnings.catch_warnings():
        # the note says what it would warn about
        warnings.simplefilter("ignore", UserWarning)
        prediction = model.predict(lr, wd, norms=False)
    interval = prediction.period_interval
    if prediction.reason:
        yield _Value("period_verdict", "verdict for the network below", prediction.verdict, note=prediction.reason)
    elif interval is None or not math.isfinite(prediction.period):
        return
    low, high = model.calibrated_range
    inside = "yes" if low * (1 - 1e-9) <= lr * wd <= high * (1 + 1e-9) else "no"
    config = json.loads(model.calibration_runs[0].run or "{}")
    network = ", ".join(str(config[key]) for key in ("model", "width", "dataset") if config.get(key) is not None)
    source = "for your own network: bnwd calibrate" if is_reference else str(period_model)
    if not prediction.reason:
        meaning = "equilibrium: the norm settles; periodic: it oscillates; no clear period: neither"
        yield _Value("period_verdict", "verdict for the network below", prediction.verdict, note=meaning)
    if interval is not None:
        label = "  period" if prediction.verdict == PERIODIC else "  distance of norm rises"
        yield _Value("period", label, prediction.period, "steps")
        yield _Value("period_lower", "  90 % interval, lower end", interval.lower, "steps")
        yield _Value("period_upper", "  90 % interval, upper end", interval.upper, "steps")
    yield _Value("period_network", "  network", network or "unknown", note=source)
    range_note = f"{low:.3g} <= lr * wd <= {high:.3g}"
    yield _Value("period_calibrated", "  inside the calibrated range", inside, note=range_note)
