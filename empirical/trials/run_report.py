"""A report of one run: what theory and simulation predict, what was measured, pictures, settings; one HTML page."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import xarray as xr

import simulate
import theory
from empirical.config import RunConfig
from empirical.measures.forecast import forecast
from empirical.trials import checks, page
from simulate.trajectories.contract import COMPLETE, check_trajectory, intrinsic_lr, setting, unfixed_optimizer
from simulate.trajectories.folder import writable_file
from simulate.trajectories.periods import PERIODIC, settled_part
from theory.optimizers import optimizer_named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PERIODS_SHOWN = 8
_MOST_POINTS = 2000  # of a curve
_MOST_MARKED = 60  # periods, beyond which their marks hide the curves
_FEWEST_ROWS = 40  # for an error of a mean of correlated rows
# Settings in which runs of one network may differ.
RATES_AND_SEEDS = frozenset({"lr", "wd", "seed", "data_seed", "init_norm"})
LENGTH_AND_ENGINE = frozenset({"steps", "device", "engine", "replicas", "evaluate_every", "evaluate_batches"})

Found = TypeVar("Found")


@dataclass(frozen=True)
class Comparison:
    """A quantity that was predicted and measured; numbers that there are not are NaN.

    Attributes
    ----------
    quantity, unit : what it is.
    predicted, measured, error : numbers; the last is the standard error of the measured one.
    inputs : what the prediction knows of the run.
    """

    quantity: str
    predicted: float
    measured: float
    error: float = math.nan
    unit: str = ""
    inputs: str = ""

    @property
    def ratio(self) -> float:
        """Measured over predicted; NaN where nothing is predicted."""
        return self.measured / self.predicted if self.predicted and math.isfinite(self.predicted) else math.nan


@dataclass(frozen=True)
class Findings:
    """What can be said of a run; what cannot is None, and `notes` say why.

    Attributes
    ----------
    comparisons : predictions beside measurements.
    classification, diagnosis, replayed : of `simulate.classify`, `simulate.diagnose` and `simulate.replay`.
    outlook : where the norm is heading, in words.
    expected : what the probe of the network lets expect, in words.
    notes : what cannot be said or is uncertain, and why.
    """

    comparisons: tuple[Comparison, ...]
    classification: simulate.Classification | None
    diagnosis: simulate.Diagnosis | None
    replayed: xr.Dataset | None
    outlook: str
    expected: str
    notes: tuple[str, ...]


def write_run_report(
    source: str | os.PathLike[str] | xr.Dataset,
    path: str | os.PathLike[str],
    *,
    model: simulate.PeriodModel | None = None,
) -> Path:
    """Write a report of a run or a sweep: one self-contained HTML page with tables and figures.

    Parameters
    ----------
    source : run folder, saved trajectory, sweep folder, or the trajectory of one run.
    path : of the page, which is replaced.
    model : of a probe of the same network, for predictions of its periods; by default that of this project's own
        ConvNet where the run is one of it, else none.

    Returns
    -------
    path of the page.

    Raises
    ------
    TypeError, ValueError : no such source, a batch, or a path that is a folder; nothing is written then.

    Source: docs/mathematics.md §1, §2, §4, §5.

    Examples
    --------
    >>> import tempfile
    >>> run = simulate.norm_map(0.5, 0.02, simulate.BoundedGradient(1, 3), norm=2.0, steps=2000, seed=0)
    >>> write_run_report(run, Path(tempfile.mkdtemp()) / "report.html").name
    'report.html'
    """
    # it imports this module
    from empirical.trials.sweep_report import is_sweep, sweep_parts

    target = Path(path)
    if target.is_dir():
        raise ValueError(f"path must be a file, got the folder {os.fspath(path)!r}")
    with suppress(OSError):
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
    writable_file("path", target)
    if model is not None and not isinstance(model, simulate.PeriodModel):
        raise TypeError(f"model must be a simulate.PeriodModel, got {type(model).__name__}")
    if isinstance(source, xr.Dataset):
        run, place = check_trajectory(source, single=True), ""
    else:
        place = os.fspath(source)
        if not Path(place).is_dir():
            raise ValueError(f"source must be a run folder, a saved trajectory or a sweep folder, got {place!r}")
        if is_sweep(Path(place)):
            page.write_page(target, f"Sweep {Path(place).name}", sweep_parts(Path(place), model))
            return target
        run = check_trajectory(simulate.load(place), single=True)
    page.write_page(target, title_of(run), _run_parts(run, place, model), footer=_made_with(run))
    return target


def examine(run: xr.Dataset, model: simulate.PeriodModel | None = None) -> Findings:
    """Predict what can be predicted of a run, and hold it against what was measured.

    Parameters
    ----------
    run : one trajectory.
    model : as in `write_run_report`.

    Returns
    -------
    Findings

    Raises
    ------
    TypeError, ValueError : no trajectory of one run.

    Source: docs/mathematics.md §1, §2, §4, §5.

    Examples
    --------
    >>> found = examine(simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=2000))
    >>> found.classification.verdict, round(found.comparisons[0].ratio, 6)
    ('equilibrium', 1.0)
    """
    check_trajectory(run, single=True)
    notes = Notes()
    judged = notes.attempt("verdict", simulate.classify, run)
    replayed = notes.attempt("replay", _replayed, run)
    comparisons = [
        *(notes.attempt("equilibrium", equilibrium, run) or []),
        *(replay_lines(run, replayed) if replayed is not None else []),
    ]
    expected = ""
    if judged is not None and judged.verdict == PERIODIC:
        comparisons += notes.attempt("period", period_lines, judged.periods) or []
        if replayed is not None:
            comparisons += notes.attempt("period of the replay", _replayed_period, replayed, judged.periods) or []
    config = run.attrs.get("config", "")
    probe = notes.attempt(
        "prediction from the probe", probe_of, config, str(run.attrs.get("optimizer", "SGD()")), model
    )
    if probe is not None:
        lines, expected = notes.attempt("prediction from the probe", probe_lines, run, probe, judged) or ([], "")
        comparisons += lines
    told = notes.attempt("outlook", lambda: forecast(check_trajectory(run, "final_norm")))
    return Findings(
        tuple(comparisons),
        judged,
        notes.attempt("spikes", simulate.diagnose, run),
        replayed,
        "" if told is None else str(told),
        expected,
        tuple(dict.fromkeys(notes.told)),
    )


class Notes:
    """Collects why things cannot be said, and what is said with a warning.

    Examples
    --------
    >>> notes = Notes()
    >>> notes.attempt("number", float, "many"), notes.told
    (None, ["number: could not convert string to float: 'many'"])
    """

    def __init__(self) -> None:
        self.told: list[str] = []

    def attempt(self, what: str, function: Callable[..., Found], *given: Any) -> Found | None:
        """Call a function; None, and a note of the reason, where it refuses what it is given."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                return function(*given)
            # numbers at the ends of the floating-point range are not for every formula, nor for every axis
            except (ValueError, ArithmeticError) as error:
                self.told.append(f"{what}: {error}")
                return None
            finally:
                self.told += [f"{what}: {each.message}" for each in said if issubclass(each.category, UserWarning)]


def equilibrium(run: xr.Dataset) -> list[Comparison]:
    """Norm and rotation at which the run would rest, from its own gradient norms, beside what it did.

    Examples
    --------
    >>> [line.unit for line in equilibrium(simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=2000))]
    ['weight', 'radian', 'radian']
    """
    rule, (lr, wd) = optimizer_named(unfixed_optimizer(run)), _constants(run)
    if wd == 0:
        raise ValueError("without weight decay there is none: the norm grows as long as there are gradients")
    part = _settled(run)
    squares = part.grad_norm.values**2
    rms = math.sqrt(squares.mean())
    # the power whose mean the formulas are about
    power = 4 if rule == theory.SGD() else 2
    powers = part.norm.values**power
    norm = float(powers.mean()) ** (1 / power)
    error = norm * _relative_error(powers) / power
    inputs = "root mean square of g̃ after the first 2/ηλ steps, η, λ"
    predicted = theory.equilibrium_norm(lr, wd, rms, optimizer=rule)
    found = [Comparison(f"norm, (E ρ{'⁴' if power == 4 else '²'})^1/{power}", predicted, norm, error, "weight", inputs)]
    if "rotation" not in part:
        return found
    angle = theory.equilibrium_rotation(lr, wd, grad_norm=rms, optimizer=rule)
    known = "η, λ" if rule == theory.SGD() else inputs
    turned = part.rotation.values
    found.append(
        Comparison(
            "rotation of a step, median",
            angle,
            float(np.median(turned)),
            unit="radian",
            inputs=f"{known}; that the run rests",
        )
    )
    if rule == theory.SGD() and (turned < math.pi / 2).all():
        mean = math.acos(math.exp(float(np.log(np.cos(turned)).mean())))
        words = f"{known}; that the norm neither grows nor falls in the long run"
        found.append(
            Comparison("rotation of a step, geometric mean of cos θ", angle, mean, unit="radian", inputs=words)
        )
    return found


def replay_lines(run: xr.Dataset, replayed: xr.Dataset) -> list[Comparison]:
    """The norm that the one-step law gives for the run's own gradient norms, beside the measured one.

    Examples
    --------
    >>> run = simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=20)
    >>> replay_lines(run, simulate.replay(run))[0].ratio
    1.0
    """
    inputs = "first norm, g̃ of each step, η, λ"
    predicted, measured = float(replayed.norm[-1]), float(run.norm[-1])
    with np.errstate(all="ignore"):
        worst = float(np.fmax.reduce(np.abs(replayed.norm.values / run.norm.values - 1)))
    return [
        Comparison("last norm, replayed", predicted, measured, unit="weight", inputs=inputs),
        Comparison("largest relative deviation of the replayed norm", 0.0, worst, inputs=inputs),
    ]


def period_lines(periods: simulate.Periods) -> list[Comparison]:
    """Bound of the periods of a run beside their measured mean.

    Raises
    ------
    ValueError : there is no rate of decay that a period could be held against.

    Examples
    --------
    >>> gradient = simulate.RecordedGradient(np.where(np.arange(4000) % 150, 0.1, 60.0))
    >>> run = simulate.norm_map(0.5, 0.01, gradient, norm=5.0, steps=4000)
    >>> (line,) = period_lines(simulate.find_periods(run))
    >>> line.measured > line.predicted, line.measured
    (True, 150.0)
    """
    if not periods.decay > 0:
        raise ValueError("the optimizer has no rate of decay that a period could be held against")
    measured = (periods.mean, periods.stderr, "step")
    words = f"η, λ; that a rise is {periods.rise:g} of ln ρ"
    return [Comparison("period, at least", periods.rise / periods.decay, *measured, words)]


def _replayed_period(replayed: xr.Dataset, measured: simulate.Periods) -> list[Comparison]:
    found = simulate.find_periods(replayed, rise=measured.rise)
    inputs = "first norm, g̃ of each step, η, λ; not the measured norms"
    return [Comparison("period of the replayed norm", found.mean, measured.mean, measured.stderr, "step", inputs)]


def probe_lines(
    run: xr.Dataset, model: simulate.PeriodModel, judged: simulate.Classification | None
) -> tuple[list[Comparison], str]:
    """Predictions from a probe of the network, trained at other settings, and what it lets expect in words.

    Raises
    ------
    ValueError : the rates of the run vary, or the probe says nothing about them.

    Examples
    --------
    >>> run = simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=2000)
    >>> probe_lines(run, simulate.PeriodModel.reference(), None)[1][:8]
    'periodic'
    """
    lr, wd = _constants(run)
    expected = model.expect(lr, wd)
    found = []
    if judged is not None and judged.verdict == PERIODIC and model.has_law:
        measured = (judged.periods.mean, judged.periods.stderr, "step")
        found.append(
            Comparison("period, law of the network’s probe", expected.period, *measured, "runs of the probe, η, λ")
        )
        if model.oscillator is not None:
            own = model.period(lr, wd)
            found.append(
                Comparison("period, reduced model of the probe", own.mean, *measured, "runs of the probe, η, λ")
            )
    return found, str(expected)


def title_of(run: xr.Dataset) -> str:
    """What a run is, in some words.

    Examples
    --------
    >>> title_of(simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=1))
    'map, η=0.5 λ=0.02'
    """
    config = _config(run.attrs.get("config", ""))
    what = f"{config['model']} on {config['dataset']}" if {"model", "dataset"} <= config.keys() else ""
    words = [what or str(run.attrs.get("source", "trajectory"))]
    with suppress(ValueError):
        words.append(checks.setting_name(xr.Dataset(attrs=dict(zip(("lr", "wd"), _constants(run), strict=True)))))
    rule = str(run.attrs.get("optimizer", "SGD()"))
    return ", ".join(words + ([rule] if rule != "SGD()" else []))


def some_periods(run: xr.Dataset) -> tuple[xr.Dataset, simulate.Periods]:
    """Cut out the last periods of a run.

    Examples
    --------
    >>> part, periods = some_periods(simulate.oscillate(0.5, 0.02, steps=3000))
    >>> periods.count, part.sizes["step"] == int(periods.onsets[-1] - periods.onsets[0] + 1)
    (8, True)
    """
    found = simulate.find_periods(run)
    shown = min(PERIODS_SHOWN, found.count)
    if shown == 0:
        return run, found
    last = replace(
        found,
        onsets=found.onsets[-shown - 1 :],
        lengths=found.lengths[-shown:],
        norm_min=found.norm_min[-shown:],
        norm_max=found.norm_max[-shown:],
    )
    return run.sel(step=slice(int(last.onsets[0]), int(last.onsets[-1]))), last


def predicted_levels(run: xr.Dataset, gradients: xr.Dataset) -> dict[str, float]:
    """Equilibrium of a run for the gradient norms of a trajectory, as levels of `plot_trajectory`.

    Examples
    --------
    >>> run = simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=500)
    >>> round(predicted_levels(run, run)["norm"], 2)
    2.66
    """
    (lr, wd), rule = _constants(run), optimizer_named(unfixed_optimizer(run))
    rms = math.sqrt(float((settled_part(gradients).grad_norm ** 2).mean()))
    return {
        "norm": theory.equilibrium_norm(lr, wd, rms, optimizer=rule),
        "effective_lr": theory.equilibrium_effective_lr(lr, wd, rms, optimizer=rule),
    }


def comparison_table(lines: tuple[Comparison, ...]) -> str:
    """HTML of predictions beside measurements.

    Examples
    --------
    >>> "1.01" in comparison_table((Comparison("norm", 2.0, 2.02),))
    True
    """
    rows: list[list[page.Cell | str]] = [
        [
            line.quantity,
            page.number(line.predicted),
            page.with_error(line.measured, line.error),
            line.unit,
            page.number(line.ratio, ".4f"),
            line.inputs,
        ]
        for line in lines
    ]
    heads = ["quantity", "predicted", "measured", "unit", "measured / predicted", "what the prediction knows"]
    return page.table("predictions and measurements", heads, rows)


def _run_parts(run: xr.Dataset, place: str, model: simulate.PeriodModel | None) -> list[str]:
    found = examine(run, model)
    notes = Notes()
    pictures = [picture for picture in _pictures(run, found, notes) if picture]
    unsaid = tuple(dict.fromkeys([*found.notes, *notes.told]))
    compared = comparison_table(found.comparisons) if found.comparisons else page.paragraphs("Nothing can be compared.")
    return [
        *_verdict(run, found),
        page.section("Prediction against measurement", compared),
        page.section("What cannot be said, and why", page.bullets(unsaid)) if unsaid else "",
        page.section("What comes next", page.paragraphs(found.outlook)) if found.outlook else "",
        page.section("Spikes of the loss", page.lines(str(found.diagnosis))) if found.diagnosis is not None else "",
        *pictures,
        page.section("Settings", page.table("settings", [], [[name, text] for name, text in settings(run).items()])),
        page.section("Data", *_how_to_open(run, place)),
    ]


def _verdict(run: xr.Dataset, found: Findings) -> list[str]:
    steps = int(run.status_step) if "status_step" in run else run.sizes["step"]
    status = str(run.status.item()) if "status" in run else COMPLETE
    ended = f"{steps} steps" if status == COMPLETE else f"{status} after {steps} steps"
    judged, parts = found.classification, [page.lead("No verdict.")]
    if judged is not None:
        parts = [page.lead(f"Verdict: {judged}."), page.paragraphs(f"Why: {judged.reason}.")]
    parts.append(page.paragraphs(f"{ended[:1].upper()}{ended[1:]}."))
    return parts + ([page.paragraphs(f"A probe lets expect: {found.expected}.")] if found.expected else [])


def _pictures(run: xr.Dataset, found: Findings, notes: Notes) -> list[str | None]:
    """Figures that the run has something to show in."""
    if run.sizes["step"] < 2:
        return []
    judged = found.classification
    is_periodic = judged is not None and judged.verdict == PERIODIC
    drawn: list[tuple[str, Callable[[], tuple[Figure, str]]]] = [("The run", lambda: _whole(run, found))]
    if is_periodic:
        drawn.append(("Some periods", lambda: _some_periods(run, found)))
    if {"grad_norm", "effective_lr"} <= set(run.data_vars):
        drawn.append(("Phase picture", lambda: _phase(run, is_periodic)))
    if judged is not None and is_periodic:
        drawn.append(("Lengths of the periods", lambda: _lengths(judged.periods)))
    if (diagnosis := found.diagnosis) is not None and diagnosis.spikes:
        drawn.append(("Spikes and their causes", lambda: _spikes(diagnosis)))
    return [notes.attempt(title.lower(), _picture, title, make) for title, make in drawn]


def _picture(title: str, make: Callable[[], tuple[Figure, str]]) -> str:
    figure, caption = make()
    return page.figure_section(title, figure, caption)


def _levels(run: xr.Dataset) -> dict[str, float]:
    """Predicted equilibrium, where there is one."""
    try:
        _settled(run)
        return {name: level for name, level in predicted_levels(run, run).items() if math.isfinite(level) and level > 0}
    except (ValueError, ArithmeticError):
        return {}


def _trajectory_figure(run: xr.Dataset, **drawn: Any) -> Figure:
    shown = [name for name in ("loss", "norm", "effective_lr") if name in run and run[name].dims == ("step",)]
    figure, axes = page.new_figure(2.5 * len(shown), len(shown), sharex=True, squeeze=False)
    simulate.plots.plot_trajectory(run, list(axes[:, 0]), variables=shown, most_points=_MOST_POINTS, **drawn)
    return figure


def _whole(run: xr.Dataset, found: Findings) -> tuple[Figure, str]:
    judged, levels = found.classification, _levels(run)
    periods = judged.periods if judged is not None and judged.periods.count <= _MOST_MARKED else None
    words = ["All rows."]
    if found.replayed is not None:
        words.append("Dashed: the norm simulated from the measured gradient norms alone.")
    if periods is not None and periods.count and judged is not None and judged.verdict == PERIODIC:
        words.append("Green: onsets of periods.")
    else:
        periods = None
    if levels:
        words.append("Dotted: the equilibrium that the mean square of the gradient norm predicts.")
    return _trajectory_figure(run, simulated=found.replayed, periods=periods, levels=levels), " ".join(words)


def _some_periods(run: xr.Dataset, found: Findings) -> tuple[Figure, str]:
    part, periods = some_periods(run)
    simulated = None if found.replayed is None else found.replayed.sel(step=part.step)
    caption = f"The last {periods.count} periods; green: their onsets. Dashed and dotted as above."
    return _trajectory_figure(part, simulated=simulated, periods=periods, levels=_levels(run)), caption


def _phase(run: xr.Dataset, is_periodic: bool) -> tuple[Figure, str]:
    part, periods = some_periods(run) if is_periodic else (run, None)
    words = ["Effective learning rate against gradient norm."]
    if unbalanced := str(run.attrs.get("optimizer", "SGD()")) != "SGD()":
        # the line of balance is that of plain SGD; without decay there is none
        part = part.drop_vars("wd", errors="ignore").assign_attrs(wd=0.0)
    figure, ax = page.new_figure(5.5)
    simulate.plots.plot_phase(part, ax, periods=periods)
    if not unbalanced and 0 < intrinsic_lr(run) < 1:
        words.append("Below the dotted line the norm falls, above it rises.")
    return figure, " ".join([*words, "The same periods as above."] if is_periodic else words)


def _lengths(periods: simulate.Periods) -> tuple[Figure, str]:
    figure, ax = page.new_figure(4.0)
    simulate.plots.plot_periods(periods, ax)
    return figure, "How long the periods last; the broad line is their mean and its standard error."


def _spikes(diagnosis: simulate.Diagnosis) -> tuple[Figure, str]:
    names = {name for name in ("loss", "norm", "effective_lr") if name in diagnosis.log}
    figure, axes = page.new_figure(2.5 * len(names) + 0.3, len(names), sharex=True, squeeze=False)
    simulate.plots.plot_diagnosis(diagnosis, list(axes[:, 0]), most_points=_MOST_POINTS)
    return figure, "Each spike of the loss is marked by its cause."


def settings(run: xr.Dataset) -> dict[str, str]:
    """Settings of a run, as texts: those of its config that are given, and the attributes of the trajectory.

    Examples
    --------
    >>> settings(xr.Dataset(attrs={"lr": 0.1, "config": '{"model": "mlp", "width": null}'}))
    {'model': 'mlp', 'lr': '0.1'}
    """
    held = {**_config(run.attrs.get("config", "")), **run.attrs}
    return {
        str(name): value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
        for name, value in held.items()
        if name != "config" and value is not None
    }


def _how_to_open(run: xr.Dataset, place: str) -> list[str]:
    rows = f"{run.sizes['step']} rows: {', '.join(sorted(map(str, run.data_vars)))}."
    if not place:
        return [page.paragraphs(f"The trajectory was given as it is, from memory. {rows}")]
    code = f'import simulate\n\nrun = simulate.load("{place}")    # an xarray.Dataset\nprint(run.norm)'
    return [page.paragraphs(rows), page.lines(code)]


def _made_with(run: xr.Dataset) -> str:
    names = ("bnwd", "torch", "numpy")
    told = [f"{name} {run.attrs[f'{name}_version']}" for name in names if f"{name}_version" in run.attrs]
    return f"The run was made with {', '.join(told)}." if told else ""


def probe_of(config: str, optimizer: str, model: simulate.PeriodModel | None = None) -> simulate.PeriodModel | None:
    """The model that predicts a run: the given one, else that of this project's own ConvNet if the run is one of it.

    Parameters
    ----------
    config, optimizer : of the run, as JSON and as text.
    model : of a probe of its network.

    Raises
    ------
    ValueError : the run is part of the probe, or has another optimizer.

    Examples
    --------
    >>> probe_of("", "SGD()") is None
    True
    """
    reference = simulate.PeriodModel.reference()
    if model is None and same_network(config, reference.segments[0].run, RATES_AND_SEEDS | LENGTH_AND_ENGINE):
        model = reference
    if model is None:
        return None
    if any(same_network(config, segment.run, LENGTH_AND_ENGINE) for segment in model.segments):
        raise ValueError("a run that is part of the probe is not predicted by it, which knows the answer")
    if optimizer != model.optimizer:
        raise ValueError(f"the probe is of {model.optimizer}, the run of {optimizer}")
    known = [segment.run for segment in model.segments if segment.run]
    if _config(config) and known and not same_network(config, known[0], RATES_AND_SEEDS | LENGTH_AND_ENGINE):
        raise ValueError("the probe is of another network than the run")
    return model


def same_network(config: str, other: str, free: frozenset[str]) -> bool:
    """Whether two runs have the same settings but for some.

    Parameters
    ----------
    config, other : of the runs, as JSON.
    free : names that do not count.

    Examples
    --------
    >>> own, other = '{"lr": 0.1, "wd": 0.01}', '{"lr": 0.2, "wd": 0.01, "width": 64}'
    >>> same_network(own, other, frozenset({"lr"})), same_network(own, other, frozenset())
    (True, False)
    """
    first, second = _config(config), _config(other)
    try:
        one, two = (RunConfig.from_dict(each).settings_without(free) for each in (first, second))
    except (TypeError, ValueError):
        # none, or of an optimizer, model or setting that is not known here
        return False
    return one == two


def _config(text: str) -> dict[str, Any]:
    try:
        held = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return held if isinstance(held, dict) else {}


def _constants(run: xr.Dataset) -> tuple[float, float]:
    """Learning rate and weight decay of a run in which they are constant."""
    found = []
    for name in ("lr", "wd"):
        values = np.unique(setting(run, name).values)
        if values.size != 1:
            raise ValueError(f"{name} varies in time, so that there is no one value to predict from")
        found.append(float(values[0]))
    return found[0], found[1]


def _settled(run: xr.Dataset) -> xr.Dataset:
    """Rows after the first 2/ηλ steps, if there are any, with gradient norms that are numbers."""
    part = settled_part(check_trajectory(run, "grad_norm", single=True))
    if not part.sizes["step"]:
        raise ValueError("there are no rows after the first 2/ηλ steps, which belong to the beginning")
    with np.errstate(over="ignore"):
        squares = part.grad_norm.values.astype(float) ** 2
    if not (np.isfinite(squares).all() and squares.any()):
        raise ValueError("gradient norms are not finite, or all of them zero")
    return part


def _replayed(run: xr.Dataset) -> xr.Dataset:
    # says what was held fixed, where the law was not at work
    unfixed_optimizer(run)
    replayed = simulate.replay(run)
    if replayed.sizes["step"] < run.sizes["step"]:
        raise ValueError(f"the replayed norm leaves the floating-point range at step {int(replayed.status_step)}")
    return replayed


def _relative_error(values: Any) -> float:
    return checks.relative_error(values) if values.size >= _FEWEST_ROWS else math.nan
