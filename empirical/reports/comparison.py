"""What theory and simulation predict of one run, held against what was measured in it."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import xarray as xr

import simulate
import theory
from empirical.config import RunConfig
from simulate.diagnosis.forecast import forecast
from simulate.trajectories.contract import check_trajectory, setting_variable, unconstrained_optimizer
from simulate.trajectories.periods import PERIODIC, after_transient
from simulate.trajectories.statistics import power_mean
from theory.optimizers import equal_up_to_dim, parse_optimizer

PERIODS_SHOWN = 8
_LENGTH_AND_ENGINE = frozenset({"steps", "device", "engine", "replicas", "evaluate_every", "evaluate_batches"})
# Settings in which runs of one network may differ.
WITHIN_A_NETWORK = _LENGTH_AND_ENGINE | {"lr", "wd", "seed", "data_seed", "init_norm"}

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
        "prediction from the probe", model_for_run, config, str(run.attrs.get("optimizer", "SGD()")), model
    )
    if probe is not None:
        lines, expected = notes.attempt("prediction from the probe", model_lines, run, probe, judged) or ([], "")
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
    rule, (lr, wd) = parse_optimizer(unconstrained_optimizer(run)), constant_rates(run)
    if wd == 0:
        raise ValueError("without weight decay there is none: the norm grows as long as there are gradients")
    part = settled_rows(run)
    rms, _ = power_mean(part.grad_norm, 2)
    # the power whose mean the formulas are about
    power = 4 if rule == theory.SGD() else 2
    norm, error = power_mean(part.norm, power)
    inputs = "root mean square of g̃ after the first 2/ηλ steps, η, λ"
    predicted = theory.equilibrium_norm(lr, wd, rms, optimizer=rule)
    about = "(E ρ⁴)^¼" if power == 4 else "(E ρ²)^½"
    found = [Comparison(f"norm, {about}", predicted, norm, error, "weight", inputs)]
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
    with np.errstate(all="ignore"):
        worst = float(np.fmax.reduce(np.abs(replayed.norm.values / run.norm.values - 1)))
    deviation = Comparison("largest relative deviation of the replayed norm", 0.0, worst, inputs=inputs)
    if "final_norm" not in run:
        return [deviation]
    predicted, measured = (float(each.final_norm) for each in (replayed, run))
    words = "norm after the last step, replayed"
    return [Comparison(words, predicted, measured, unit="weight", inputs=inputs), deviation]


def period_lines(periods: simulate.MeasuredPeriods) -> list[Comparison]:
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


def _replayed_period(replayed: xr.Dataset, measured: simulate.MeasuredPeriods) -> list[Comparison]:
    found = simulate.find_periods(replayed, rise=measured.rise)
    inputs = "first norm, g̃ of each step, η, λ; not the measured norms"
    return [Comparison("period of the replayed norm", found.mean, measured.mean, measured.stderr, "step", inputs)]


def model_lines(
    run: xr.Dataset, model: simulate.PeriodModel, judged: simulate.Classification | None
) -> tuple[list[Comparison], str]:
    """Predictions from a probe of the network, trained at other settings, and what it lets expect in words.

    Raises
    ------
    ValueError : the rates of the run vary, or the probe says nothing about them.

    Examples
    --------
    >>> run = simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=2000)
    >>> model_lines(run, simulate.PeriodModel.reference(), None)[1][:8]
    'periodic'
    """
    lr, wd = constant_rates(run)
    expected = model.predict(lr, wd)
    found = []
    if judged is not None and judged.verdict == PERIODIC and model.has_law:
        measured = (judged.periods.mean, judged.periods.stderr, "step")
        found.append(
            Comparison("period, law of the network’s probe", expected.period, *measured, "runs of the probe, η, λ")
        )
        if model.reduced_model is not None:
            own = model.period(lr, wd)
            found.append(
                Comparison("period, reduced model of the probe", own.mean, *measured, "runs of the probe, η, λ")
            )
    return found, str(expected)


def periods_to_draw(run: xr.Dataset, discard: int | None = None) -> simulate.MeasuredPeriods:
    """Periods of a run, without a word on how clear they are.

    Examples
    --------
    >>> periods_to_draw(simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=500)).count
    0
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return simulate.find_periods(run, discard=discard)


def last_periods(run: xr.Dataset, count: int = PERIODS_SHOWN) -> tuple[xr.Dataset, simulate.MeasuredPeriods]:
    """Cut the last periods out of a run.

    Parameters
    ----------
    run : a trajectory.
    count : at most so many.

    Returns
    -------
    part, periods : from the first to the last onset of these periods; the whole run where there is no period.

    Examples
    --------
    >>> part, periods = last_periods(simulate.oscillate(0.5, 0.02, steps=3000), 2)
    >>> periods.count, part.sizes["step"] == int(periods.onsets[-1] - periods.onsets[0] + 1)
    (2, True)
    """
    found = periods_to_draw(run)
    shown = min(count, found.count)
    if shown == 0:
        return run, found
    last = replace(
        found,
        onsets=found.onsets[-shown - 1 :],
        lengths=found.lengths[-shown:],
        trough_norms=found.trough_norms[-shown:],
        peak_norms=found.peak_norms[-shown:],
    )
    ends = slice(int(last.onsets[0]), int(last.onsets[-1]))
    part = run.sel(step=ends)
    return (part.sel(eval_step=ends) if "eval_step" in part.dims else part), last


def predicted_levels(run: xr.Dataset, gradients: xr.Dataset) -> dict[str, float]:
    """Equilibrium of a run for the gradient norms of a trajectory, as levels of `plot_trajectory`.

    Examples
    --------
    >>> run = simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=500)
    >>> round(predicted_levels(run, run)["norm"], 2)
    2.66
    """
    (lr, wd), rule = constant_rates(run), parse_optimizer(unconstrained_optimizer(run))
    rms, _ = power_mean(after_transient(gradients).grad_norm, 2)
    return {
        "norm": theory.equilibrium_norm(lr, wd, rms, optimizer=rule),
        "effective_lr": theory.equilibrium_effective_lr(lr, wd, rms, optimizer=rule),
    }


def model_for_run(
    config: str, optimizer: str, model: simulate.PeriodModel | None = None
) -> simulate.PeriodModel | None:
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
    >>> model_for_run("", "SGD()") is None
    True
    """
    reference = simulate.PeriodModel.reference()
    if model is None and is_of_network(config, reference.calibration_runs[0].run):
        model = reference
    if model is None:
        return None
    if any(_equal_but_for(_LENGTH_AND_ENGINE, config, segment.run) for segment in model.calibration_runs):
        raise ValueError("a run that is part of the probe is not predicted by it, which knows the answer")
    if not equal_up_to_dim(optimizer, model.optimizer):
        raise ValueError(f"the probe is of {model.optimizer}, the run of {optimizer}")
    known = [segment.run for segment in model.calibration_runs if segment.run]
    if held_config(config) and known and not is_of_network(config, known[0]):
        raise ValueError("the probe is of another network than the run")
    return model


def is_of_network(config: str, other: str) -> bool:
    """Whether two runs are of one network and training, and differ at most in rates, seeds, length and engine.

    Parameters
    ----------
    config, other : of the runs, as JSON; those that are none are of no network.

    Examples
    --------
    >>> own, other = '{"lr": 0.1, "wd": 0.01}', '{"lr": 0.2, "wd": 0.01, "width": 64}'
    >>> is_of_network(own, other), is_of_network(own, '{"lr": 0.1, "wd": 0.01, "width": 9}'), is_of_network("", "")
    (True, False, False)
    """
    return _equal_but_for(WITHIN_A_NETWORK, config, other)


def _equal_but_for(free: frozenset[str], config: str, other: str) -> bool:
    first, second = held_config(config), held_config(other)
    try:
        one, two = (RunConfig.from_dict(each).settings_without(free) for each in (first, second))
    except (TypeError, ValueError):
        # none, or of an optimizer, model or setting that is not known here
        return False
    return one == two


def held_config(text: str) -> dict[str, Any]:
    """Settings that a trajectory holds as JSON; none where it holds none.

    Examples
    --------
    >>> held_config('{"model": "mlp"}'), held_config("")
    ({'model': 'mlp'}, {})
    """
    try:
        held = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return held if isinstance(held, dict) else {}


def constant_rates(run: xr.Dataset) -> tuple[float, float]:
    """Learning rate and weight decay of a run in which they are constant.

    Raises
    ------
    ValueError : one of them varies.

    Examples
    --------
    >>> constant_rates(simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=1))
    (0.5, 0.02)
    """
    found = []
    for name in ("lr", "wd"):
        values = np.unique(setting_variable(run, name).values)
        if values.size != 1:
            raise ValueError(f"{name} varies in time, so that there is no one value to predict from")
        found.append(float(values[0]))
    return found[0], found[1]


def settled_rows(run: xr.Dataset) -> xr.Dataset:
    """Rows after the first 2/ηλ steps.

    Raises
    ------
    ValueError : there are none, or their gradient norms are no numbers.

    Examples
    --------
    >>> settled_rows(simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=500)).sizes["step"]
    300
    """
    part = after_transient(check_trajectory(run, "grad_norm", single=True))
    if not part.sizes["step"]:
        raise ValueError("there are no rows after the first 2/ηλ steps, which belong to the beginning")
    with np.errstate(over="ignore"):
        squares = part.grad_norm.values.astype(float) ** 2
    if not (np.isfinite(squares).all() and squares.any()):
        raise ValueError("gradient norms are not finite, or all of them zero")
    return part


def _replayed(run: xr.Dataset) -> xr.Dataset:
    # says what was held fixed, where the law was not at work
    unconstrained_optimizer(run)
    replayed = simulate.replay(run)
    if replayed.sizes["step"] < run.sizes["step"]:
        raise ValueError(f"the replayed norm leaves the floating-point range at step {int(replayed.status_step)}")
    return replayed


def setting_name(run: xr.Dataset) -> str:
    """Learning rate and weight decay of a run in words.

    Examples
    --------
    >>> setting_name(xr.Dataset(attrs={"lr": 0.5, "wd": 0.01}))
    'η=0.5 λ=0.01'
    """
    return f"η={float(setting_variable(run, 'lr')):g} λ={float(setting_variable(run, 'wd')):g}"
