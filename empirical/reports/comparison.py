"""Predictions of theory and simulation for one run, beside its measurements."""

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
# settings in which two runs of one network may differ
MAY_DIFFER_IN_A_NETWORK = _LENGTH_AND_ENGINE | {"lr", "wd", "seed", "data_seed", "init_norm"}

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Comparison:
    """A predicted and a measured value of one quantity. Missing numbers are NaN.

    Attributes
    ----------
    quantity, unit : name of the quantity and its unit.
    predicted, measured : the two values.
    error : standard error of `measured`.
    inputs : what the prediction uses, and what it assumes.
    """

    quantity: str
    predicted: float
    measured: float
    error: float = math.nan
    unit: str = ""
    inputs: str = ""

    @property
    def ratio(self) -> float:
        """Measured value over predicted value; NaN without a prediction."""
        return self.measured / self.predicted if self.predicted and math.isfinite(self.predicted) else math.nan


@dataclass(frozen=True)
class RunComparison:
    """Results of `compare_run`. A result that is undetermined is None or "", and `notes` give the reason.

    Attributes
    ----------
    comparisons : predictions beside measurements.
    classification, diagnosis, replayed : results of `simulate.classify`, `simulate.diagnose` and `simulate.replay`.
    outlook : forecast of the norm, in words.
    prediction : behaviour predicted by the period model, in words.
    notes : undetermined or uncertain results, each with its reason.
    """

    comparisons: tuple[Comparison, ...]
    classification: simulate.Classification | None
    diagnosis: simulate.Diagnosis | None
    replayed: xr.Dataset | None
    outlook: str
    prediction: str
    notes: tuple[str, ...]


def compare_run(run: xr.Dataset, model: simulate.PeriodModel | None = None) -> RunComparison:
    """Compare all available predictions for a run with its measurements.

    Parameters
    ----------
    run : trajectory of one run.
    model : period model, as in `write_run_report`.

    Returns
    -------
    RunComparison

    Raises
    ------
    TypeError, ValueError : `run` is not the trajectory of one run.

    Source: docs/mathematics.md §1, §2, §4, §5.

    Examples
    --------
    >>> comparison = compare_run(simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=2000))
    >>> comparison.classification.verdict, round(comparison.comparisons[0].ratio, 6)
    ('equilibrium', 1.0)
    """
    check_trajectory(run, single=True)
    notes = NoteCollector()
    classification = notes.attempt("verdict", simulate.classify, run)
    replayed = notes.attempt("replay", _replay_whole_run, run)
    comparisons = [
        *(notes.attempt("equilibrium", equilibrium_comparisons, run) or []),
        *(replay_comparisons(run, replayed) if replayed is not None else []),
    ]
    prediction = ""
    if classification is not None and classification.verdict == PERIODIC:
        comparisons += notes.attempt("period", period_comparisons, classification.periods) or []
        if replayed is not None:
            comparisons += (
                notes.attempt("period of the replay", _replay_period_comparison, replayed, classification.periods) or []
            )
    config = run.attrs.get("config", "")
    period_model = notes.attempt("period model", model_for_run, config, str(run.attrs.get("optimizer", "SGD()")), model)
    if period_model is not None:
        rows, prediction = notes.attempt("period model", model_comparisons, run, period_model, classification) or (
            [],
            "",
        )
        comparisons += rows
    outlook = notes.attempt("outlook", lambda: forecast(check_trajectory(run, "final_norm")))
    return RunComparison(
        tuple(comparisons),
        classification,
        notes.attempt("spikes", simulate.diagnose, run),
        replayed,
        "" if outlook is None else str(outlook),
        prediction,
        tuple(dict.fromkeys(notes.texts)),
    )


class NoteCollector:
    """Collect the errors and warnings of calls that may fail, as notes for a report.

    Examples
    --------
    >>> notes = NoteCollector()
    >>> notes.attempt("number", float, "many"), notes.texts
    (None, ["number: could not convert string to float: 'many'"])
    """

    def __init__(self) -> None:
        self.texts: list[str] = []

    def attempt(self, label: str, function: Callable[..., _Result], *arguments: Any) -> _Result | None:
        """Call a function. If it raises ValueError or ArithmeticError, note the reason and return None."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                return function(*arguments)
            # at the ends of the floating-point range some formulas overflow, and some axes cannot be drawn
            except (ValueError, ArithmeticError) as error:
                self.texts.append(f"{label}: {error}")
                return None
            finally:
                self.texts += [
                    f"{label}: {warning.message}" for warning in caught if issubclass(warning.category, UserWarning)
                ]


def equilibrium_comparisons(run: xr.Dataset) -> list[Comparison]:
    """Compare norm and rotation of a run with the equilibrium predicted from its gradient norms.

    Examples
    --------
    >>> run = simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=2000)
    >>> [comparison.unit for comparison in equilibrium_comparisons(run)]
    ['weight', 'radian', 'radian']
    """
    rule, (lr, wd) = parse_optimizer(unconstrained_optimizer(run)), constant_lr_and_wd(run)
    if wd == 0:
        raise ValueError("there is none, because wd = 0: without weight decay the norm never decreases")
    part = settled_rows(run)
    rms, _ = power_mean(part.grad_norm, 2)
    # the formulas predict the mean of this power of the norm
    power = 4 if rule == theory.SGD() else 2
    norm, error = power_mean(part.norm, power)
    inputs = "η, λ, root mean square of g̃ after the first 2/ηλ steps"
    predicted = theory.equilibrium_norm(lr, wd, rms, optimizer=rule)
    mean_formula = "(E ρ⁴)^¼" if power == 4 else "(E ρ²)^½"
    comparisons = [Comparison(f"norm, {mean_formula}", predicted, norm, error, "weight", inputs)]
    if "rotation" not in part:
        return comparisons
    angle = theory.equilibrium_rotation(lr, wd, grad_norm=rms, optimizer=rule)
    angle_inputs = "η, λ" if rule == theory.SGD() else inputs
    rotation = part.rotation.values
    comparisons.append(
        Comparison(
            "rotation per step, median",
            angle,
            float(np.median(rotation)),
            unit="radian",
            inputs=f"{angle_inputs}; assumes equilibrium",
        )
    )
    if rule == theory.SGD() and (rotation < math.pi / 2).all():
        mean = math.acos(math.exp(float(np.log(np.cos(rotation)).mean())))
        words = f"{angle_inputs}; assumes that the norm has no long-term trend"
        comparisons.append(
            Comparison("rotation per step, geometric mean of cos θ", angle, mean, unit="radian", inputs=words)
        )
    return comparisons


def replay_comparisons(run: xr.Dataset, replayed: xr.Dataset) -> list[Comparison]:
    """Compare the measured norm with the replay, which applies the one-step law to the measured gradient norms.

    Examples
    --------
    >>> run = simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=20)
    >>> replay_comparisons(run, simulate.replay(run))[0].ratio
    1.0
    """
    inputs = "first norm, g̃ of each step, η, λ"
    with np.errstate(all="ignore"):
        worst = float(np.fmax.reduce(np.abs(replayed.norm.values / run.norm.values - 1)))
    deviation = Comparison("replay, largest relative deviation of the norm", 0.0, worst, inputs=inputs)
    if "final_norm" not in run:
        return [deviation]
    predicted, measured = (float(trajectory.final_norm) for trajectory in (replayed, run))
    words = "replay, norm after the last step"
    return [Comparison(words, predicted, measured, unit="weight", inputs=inputs), deviation]


def period_comparisons(periods: simulate.MeasuredPeriods) -> list[Comparison]:
    """Compare the mean period of a run with its lower bound.

    Raises
    ------
    ValueError : the optimizer has no known decay per step, so there is no bound.

    Examples
    --------
    >>> gradient = simulate.RecordedGradient(np.where(np.arange(4000) % 150, 0.1, 60.0))
    >>> run = simulate.norm_map(0.5, 0.01, gradient, norm=5.0, steps=4000)
    >>> (bound,) = period_comparisons(simulate.find_periods(run))
    >>> bound.measured > bound.predicted, bound.measured
    (True, 150.0)
    """
    if not periods.decay > 0:
        raise ValueError("there is no lower bound, because the decay per step of this optimizer is not known")
    measured = (periods.mean, periods.stderr, "step")
    words = f"η, λ; assumes a norm rise of {periods.rise:g} in ln ρ, the threshold of detection"
    return [Comparison("period, lower bound", periods.rise / periods.decay, *measured, words)]


def _replay_period_comparison(replayed: xr.Dataset, measured: simulate.MeasuredPeriods) -> list[Comparison]:
    periods = simulate.find_periods(replayed, rise=measured.rise)
    inputs = "first norm, g̃ of each step, η, λ; not the measured norms"
    return [Comparison("period of the replay", periods.mean, measured.mean, measured.stderr, "step", inputs)]


def model_comparisons(
    run: xr.Dataset, model: simulate.PeriodModel, classification: simulate.Classification | None
) -> tuple[list[Comparison], str]:
    """Predict a run by a period model of its network.

    Returns
    -------
    comparisons of the period, empty unless the run is periodic; and the predicted behaviour in words.

    Raises
    ------
    ValueError : lr or wd varies in the run, or the model has no prediction for them.

    Examples
    --------
    >>> run = simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=2000)
    >>> model_comparisons(run, simulate.PeriodModel.reference(), None)[1][:8]
    'periodic'
    """
    lr, wd = constant_lr_and_wd(run)
    prediction = model.predict(lr, wd)
    comparisons = []
    if classification is not None and classification.verdict == PERIODIC and model.has_law:
        measured = (classification.periods.mean, classification.periods.stderr, "step")
        inputs = "η, λ, calibration runs"
        comparisons.append(Comparison("period, balance law", prediction.period, *measured, inputs))
        if model.reduced_model is not None:
            simulated = model.period(lr, wd)
            comparisons.append(Comparison("period, reduced model", simulated.mean, *measured, inputs))
    return comparisons, str(prediction)


def periods_to_draw(run: xr.Dataset, discard: int | None = None) -> simulate.MeasuredPeriods:
    """Find the periods of a run without warnings about unclear ones.

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
    run : trajectory of one run.
    count : largest number of periods.

    Returns
    -------
    part, periods : rows from the first to the last onset of these periods, and the periods. Without any period, the
        whole run.

    Examples
    --------
    >>> part, periods = last_periods(simulate.oscillate(0.5, 0.02, steps=3000), 2)
    >>> periods.count, part.sizes["step"] == int(periods.onsets[-1] - periods.onsets[0] + 1)
    (2, True)
    """
    periods = periods_to_draw(run)
    count = min(count, periods.count)
    if count == 0:
        return run, periods
    last = replace(
        periods,
        onsets=periods.onsets[-count - 1 :],
        lengths=periods.lengths[-count:],
        trough_norms=periods.trough_norms[-count:],
        peak_norms=periods.peak_norms[-count:],
    )
    ends = slice(int(last.onsets[0]), int(last.onsets[-1]))
    part = run.sel(step=ends)
    return (part.sel(eval_step=ends) if "eval_step" in part.dims else part), last


def equilibrium_levels(run: xr.Dataset, gradients: xr.Dataset) -> dict[str, float]:
    """Equilibrium norm and effective learning rate, as `levels` of `simulate.plots.plot_trajectory`.

    Parameters
    ----------
    run : trajectory with the optimizer, lr and wd.
    gradients : trajectory with the gradient norms.


    Examples
    --------
    >>> run = simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=500)
    >>> round(equilibrium_levels(run, run)["norm"], 2)
    2.66
    """
    (lr, wd), rule = constant_lr_and_wd(run), parse_optimizer(unconstrained_optimizer(run))
    rms, _ = power_mean(after_transient(gradients).grad_norm, 2)
    return {
        "norm": theory.equilibrium_norm(lr, wd, rms, optimizer=rule),
        "effective_lr": theory.equilibrium_effective_lr(lr, wd, rms, optimizer=rule),
    }


def model_for_run(
    config: str, optimizer: str, model: simulate.PeriodModel | None = None
) -> simulate.PeriodModel | None:
    """Return the period model that applies to a run.

    Parameters
    ----------
    config, optimizer : configuration (JSON) and optimizer (text) of the run.
    model : period model of the network. By default that of this project's ConvNet, if the run trains it.

    Returns
    -------
    `model` or the default; None if neither applies.

    Raises
    ------
    ValueError : the run is one of the calibration runs, or has another optimizer or network.

    Examples
    --------
    >>> model_for_run("", "SGD()") is None
    True
    """
    reference = simulate.PeriodModel.reference()
    if model is None and is_same_network(config, reference.calibration_runs[0].run):
        model = reference
    if model is None:
        return None
    if any(_equal_except(_LENGTH_AND_ENGINE, config, calibration.run) for calibration in model.calibration_runs):
        raise ValueError("this run is one of the calibration runs, so the period model cannot predict it independently")
    if not equal_up_to_dim(optimizer, repr(model.optimizer)):
        raise ValueError(f"the period model was calibrated with {model.optimizer}, but the run used {optimizer}")
    calibrations = [calibration.run for calibration in model.calibration_runs if calibration.run]
    if parse_config(config) and calibrations and not is_same_network(config, calibrations[0]):
        raise ValueError("the period model was calibrated on another network than that of the run")
    return model


def is_same_network(config: str, other: str) -> bool:
    """Whether two runs train the same network in the same way.

    They may differ in lr, wd, initial norm, seeds, length, engine and evaluation.

    Parameters
    ----------
    config, other : configurations of the runs, as JSON. A text that is not one matches nothing.

    Examples
    --------
    >>> own, other = '{"lr": 0.1, "wd": 0.01}', '{"lr": 0.2, "wd": 0.01, "width": 64}'
    >>> narrower = '{"lr": 0.1, "wd": 0.01, "width": 9}'
    >>> is_same_network(own, other), is_same_network(own, narrower), is_same_network("", "")
    (True, False, False)
    """
    return _equal_except(MAY_DIFFER_IN_A_NETWORK, config, other)


def _equal_except(ignored: frozenset[str], config: str, other: str) -> bool:
    first, second = parse_config(config), parse_config(other)
    try:
        one, two = (RunConfig.from_dict(settings).settings_without(ignored) for settings in (first, second))
    except (TypeError, ValueError):
        # not a configuration, or one with an unknown optimizer, model or setting
        return False
    return one == two


def parse_config(text: str) -> dict[str, Any]:
    """Read the configuration that a trajectory stores as JSON; empty if there is none.

    Examples
    --------
    >>> parse_config('{"model": "mlp"}'), parse_config("")
    ({'model': 'mlp'}, {})
    """
    try:
        config = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return config if isinstance(config, dict) else {}


def constant_lr_and_wd(run: xr.Dataset) -> tuple[float, float]:
    """Learning rate and weight decay of a run, if both are constant.

    Raises
    ------
    ValueError : one of them varies.

    Examples
    --------
    >>> constant_lr_and_wd(simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=1))
    (0.5, 0.02)
    """
    constants = []
    for name in ("lr", "wd"):
        values = np.unique(setting_variable(run, name).values)
        if values.size != 1:
            raise ValueError(f"{name} varies in time, but the prediction needs one value")
        constants.append(float(values[0]))
    return constants[0], constants[1]


def settled_rows(run: xr.Dataset) -> xr.Dataset:
    """Rows after the transient, that is after the first 2/ηλ steps.

    Raises
    ------
    ValueError : there are no such rows, or their gradient norms are not finite or all zero.

    Examples
    --------
    >>> settled_rows(simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=500)).sizes["step"]
    300
    """
    part = after_transient(check_trajectory(run, "grad_norm", single=True))
    if not part.sizes["step"]:
        raise ValueError("the run has no rows after its transient, the first 2/ηλ steps")
    with np.errstate(over="ignore"):
        squares = part.grad_norm.values.astype(float) ** 2
    if not (np.isfinite(squares).all() and squares.any()):
        raise ValueError("the gradient norms after the first 2/ηλ steps are not all finite, or they are all zero")
    return part


def _replay_whole_run(run: xr.Dataset) -> xr.Dataset:
    # raises if the norm or the effective learning rate was fixed, so that the law does not apply
    unconstrained_optimizer(run)
    replayed = simulate.replay(run)
    if replayed.sizes["step"] < run.sizes["step"]:
        raise ValueError(f"the norm leaves the floating-point range at step {int(replayed.status_step)}")
    return replayed


def setting_name(run: xr.Dataset) -> str:
    """Learning rate and weight decay of a run as text.

    Examples
    --------
    >>> setting_name(xr.Dataset(attrs={"lr": 0.5, "wd": 0.01}))
    'η=0.5 λ=0.01'
    """
    return f"η={float(setting_variable(run, 'lr')):g} λ={float(setting_variable(run, 'wd')):g}"
