"""Predictions of theory and simulation for one run, beside its measurements."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import xarray as xr

import simulate
import theory
from empirical.config import RunConfig
from empirical.reports.page import format_setting
from simulate.diagnosis.forecast import Forecast, forecast
from simulate.period_model.model import simulated_periods
from simulate.trajectories.contract import FREE, check_trajectory
from simulate.trajectories.periods import after_transient, transient_length
from simulate.trajectories.setting import Setting
from simulate.trajectories.statistics import power_mean
from simulate.trajectories.verdicts import PERIODIC
from theory.optimizers import with_dim

PERIODS_SHOWN = 8
_LENGTH_AND_ENGINE = frozenset({"steps", "device", "engine", "replicas"})
_LENGTH_AND_ENGINE |= {"evaluate_every", "evaluation_samples", "evaluate_batches"}
# settings in which two runs of one network may differ
MAY_DIFFER_IN_A_NETWORK = _LENGTH_AND_ENGINE | {"lr", "wd", "seed", "data_seed", "init_norm"}

_Result = TypeVar("_Result")
_Level = TypeVar("_Level", float, xr.DataArray)


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
    """What the report of a run shows. A result that is undetermined is None or empty, and `notes` give the reason.

    Attributes
    ----------
    run : the trajectory.
    title : model and data set, lr, wd, and optimizer and constraint unless they are the usual ones.
    settings : settings as text: those set in the configuration, and the attributes of the trajectory.
    comparisons : predictions beside measurements.
    classification, diagnosis, replayed : results of `simulate.classify`, `simulate.diagnose` and `simulate.replay`.
    periods : periods of the run; None unless it is periodic.
    last : the rows of the last periods, and these periods; None unless the run is periodic.
    levels : ρ* of the forecast and η/ρ*², as `levels` of `simulate.plots.plot_trajectory`.
    outlook : forecast of the norm, in words.
    prediction : behaviour predicted by the period model, in words.
    notes : undetermined or uncertain results, each with its reason.
    """

    run: xr.Dataset
    title: str
    settings: dict[str, str]
    comparisons: tuple[Comparison, ...]
    classification: simulate.Classification | None
    periods: simulate.MeasuredPeriods | None
    last: tuple[xr.Dataset, simulate.MeasuredPeriods] | None
    diagnosis: simulate.Diagnosis | None
    replayed: xr.Dataset | None
    levels: Mapping[str, float | xr.DataArray]
    outlook: str
    prediction: str
    notes: tuple[str, ...]


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


def compare_run(run: xr.Dataset, model: simulate.PeriodModel | None = None) -> RunComparison:
    """Compare all available predictions for a run with its measurements.

    Examples
    --------
    >>> comparison = compare_run(simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=2000))
    >>> comparison.classification.verdict, round(comparison.comparisons[0].ratio, 6)
    ('equilibrium', 1.0)
    """
    notes, setting, settings = NoteCollector(), Setting.of(run), _settings(run)
    classification = notes.attempt("verdict", simulate.classify, run)
    is_periodic = classification is not None and classification.verdict == PERIODIC
    periods = classification.periods if classification is not None and is_periodic else None
    replayed = notes.attempt("replay", _replay_whole_run, run, setting)
    comparisons = notes.attempt("equilibrium", equilibrium_comparisons, run, setting) or []
    if replayed is not None:
        comparisons += _replay_comparisons(run, replayed)
    if periods is not None:
        comparisons += notes.attempt("period", _period_bound, periods) or []
        if replayed is not None:
            comparisons += notes.attempt("period of the replay", _replay_period, replayed, periods) or []
    model_rows, prediction = notes.attempt("period model", _model_comparisons, run, setting, periods, model) or ([], "")
    outlook = notes.attempt("outlook", forecast, run)
    levels: Mapping[str, float | xr.DataArray] = {}
    if outlook is not None and (comparisons or setting.lr.dims or setting.wd.dims):
        levels = notes.attempt("predicted equilibrium", _forecast_levels, outlook, run, setting) or {}
    return RunComparison(
        run=run,
        title=_title(run, setting, settings),
        settings=settings,
        comparisons=(*comparisons, *model_rows),
        classification=classification,
        periods=periods,
        last=None if periods is None else last_periods(run, periods=periods),
        diagnosis=notes.attempt("spikes", simulate.diagnose, run),
        replayed=replayed,
        levels=levels,
        outlook="" if outlook is None else str(outlook),
        prediction=prediction,
        notes=tuple(dict.fromkeys(notes.texts)),
    )


def _settings(run: xr.Dataset) -> dict[str, str]:
    config = {}
    with suppress(json.JSONDecodeError):
        config = json.loads(run.attrs.get("config", ""))
    settings = {**(config if isinstance(config, dict) else {}), **run.attrs}
    return {
        str(name): format_setting(value) for name, value in settings.items() if name != "config" and value is not None
    }


def _title(run: xr.Dataset, setting: Setting, settings: dict[str, str]) -> str:
    words = [settings.get("source", "trajectory")]
    if {"model", "dataset"} <= settings.keys():
        words = [f"{settings['model']} on {settings['dataset']}"]
    with suppress(ValueError):
        words.append(setting_name(run))
    words += [setting.optimizer_text] if setting.optimizer_text != "SGD()" else []
    return ", ".join(words + ([setting.constraint] if setting.constraint != FREE else []))


def equilibrium_comparisons(run: xr.Dataset, setting: Setting) -> list[Comparison]:
    """Compare norm and rotation of a run with the equilibrium that theory predicts from its gradient norms.

    The ρ* of a forecast is measured from the growth of the norm instead, and at the end of the run.
    """
    rule, (lr, wd) = setting.law(), setting.constants()
    if wd == 0:
        raise ValueError("there is none, because wd = 0: without weight decay the norm never decreases")
    part = after_transient(check_trajectory(run, "grad_norm", single=True))
    if not part.sizes["step"]:
        raise ValueError(f"the run has no rows after its transient, the first {transient_length(run)} steps")
    with np.errstate(over="ignore"):
        squares = part.grad_norm.values.astype(float) ** 2
    if not (np.isfinite(squares).all() and squares.any()):
        raise ValueError("the gradient norms after the transient are not all finite, or they are all zero")
    rms, _ = power_mean(part.grad_norm, 2)
    # the formulas predict the mean of this power of the norm
    power, mean_formula = (4, "(E ρ⁴)^¼") if rule == theory.SGD() else (2, "(E ρ²)^½")
    norm, error = power_mean(part.norm, power)
    inputs = f"η, λ, root mean square of g̃ after the first {transient_length(run)} steps"
    if rule != theory.SGD():
        inputs += "; assumes independent gradients"
    predicted = theory.equilibrium_norm(lr, wd, rms, optimizer=rule)
    comparisons = [Comparison(f"norm by theory, {mean_formula}", predicted, norm, error, "weight", inputs)]
    if "rotation" not in part:
        return comparisons
    angle = theory.equilibrium_rotation(lr, wd, grad_norm=rms, optimizer=rule)
    angles = {"rotation per step, median": (float(np.median(part.rotation)), "equilibrium")}
    if rule == theory.SGD() and (part.rotation.values < math.pi / 2).all():
        mean = math.acos(math.exp(float(np.log(np.cos(part.rotation.values)).mean())))
        angles["rotation per step, geometric mean of cos θ"] = (mean, "that the norm has no long-term trend")
    angle_inputs = "η, λ" if rule == theory.SGD() else inputs
    return comparisons + [
        Comparison(quantity, angle, measured, unit="radian", inputs=f"{angle_inputs}; assumes {assumption}")
        for quantity, (measured, assumption) in angles.items()
    ]


def _replay_whole_run(run: xr.Dataset, setting: Setting) -> xr.Dataset:
    # under a constraint the law does not apply
    setting.check_free()
    replayed = simulate.replay(run)
    if replayed.sizes["step"] < run.sizes["step"]:
        raise ValueError(f"the norm leaves the floating-point range at step {int(replayed.status_step)}")
    return replayed


def _replay_comparisons(run: xr.Dataset, replayed: xr.Dataset) -> list[Comparison]:
    """Compare the measured norm with the replay, which applies the one-step law to the measured gradient norms."""
    inputs = "first norm, g̃ of each step, η, λ"
    with np.errstate(all="ignore"):
        worst = float(np.fmax.reduce(np.abs(replayed.norm.values / run.norm.values - 1)))
    comparisons = [Comparison("replay, largest relative deviation of the norm", 0.0, worst, inputs=inputs)]
    if "final_norm" in run:
        final = (float(replayed.final_norm), float(run.final_norm))
        comparisons.insert(0, Comparison("replay, norm after the last step", *final, unit="weight", inputs=inputs))
    return comparisons


def _period_bound(periods: simulate.MeasuredPeriods) -> list[Comparison]:
    """Compare the mean period of a run with its lower bound."""
    if not periods.decay > 0:
        raise ValueError("there is no lower bound, because the decay per step of this optimizer is not known")
    inputs = f"η, λ; assumes a norm rise of {periods.rise:g} in ln ρ, the threshold of detection"
    return [_period_comparison("period, lower bound", periods.rise / periods.decay, periods, inputs)]


def _replay_period(replayed: xr.Dataset, periods: simulate.MeasuredPeriods) -> list[Comparison]:
    predicted = simulate.find_periods(replayed, rise=periods.rise).mean
    inputs = "first norm, g̃ of each step, η, λ; not the measured norms"
    return [_period_comparison("period of the replay", predicted, periods, inputs)]


def _model_comparisons(
    run: xr.Dataset, setting: Setting, periods: simulate.MeasuredPeriods | None, model: simulate.PeriodModel | None
) -> tuple[list[Comparison], str]:
    """Periods predicted by a period model, beside those of a periodic run, and the predicted behaviour in words."""
    text = str(run.attrs.get("config", ""))
    config = stored_config(text)
    if model is not None and text and config is None:
        raise ValueError("the run has a configuration that this version does not know")
    chosen = model_for_run(config, setting.optimizer, model)
    if chosen is None:
        return [], ""
    setting.check_free()
    lr, wd = setting.constants()
    prediction = chosen.predict(lr, wd)
    comparisons = []
    if periods is not None and chosen.has_law:
        inputs = "η, λ, calibration runs"
        comparisons.append(_period_comparison("period, balance law", prediction.period, periods, inputs))
        if chosen.reduced_model is not None:
            simulated = simulated_periods(chosen, lr, wd).mean
            comparisons.append(_period_comparison("period, reduced model", simulated, periods, inputs))
    return comparisons, str(prediction)


def _period_comparison(quantity: str, predicted: float, periods: simulate.MeasuredPeriods, inputs: str) -> Comparison:
    return Comparison(quantity, predicted, periods.mean, periods.stderr, "step", inputs)


def _forecast_levels(outlook: Forecast, run: xr.Dataset, setting: Setting) -> Mapping[str, float | xr.DataArray]:
    """Equilibrium values of a forecast. Under a schedule they move with lr, wd and the recent gradient norms."""
    if not (math.isfinite(outlook.equilibrium_norm) and outlook.equilibrium_norm > 0):
        return {}
    if not (setting.lr.dims or setting.wd.dims):
        return _levels(outlook.lr, outlook.equilibrium_norm)
    if "grad_norm" not in run:
        return {}
    rule, stride = setting.law(), max(1.0, float(np.median(np.diff(run.step))))
    lr, wd = (xr.broadcast(value, run.step)[0] for value in (setting.lr, setting.wd))
    is_positive = (lr * wd > 0).values
    times = np.ones(is_positive.size)
    times[is_positive] = theory.relaxation_time(lr.values[is_positive], wd.values[is_positive], optimizer=rule)
    gradients = recent_rms(run.grad_norm, np.ceil(times / stride))
    # without decay or gradients there is no equilibrium
    has_equilibrium = is_positive & (gradients > 0) & np.isfinite(gradients)
    lr, wd, gradients = lr[has_equilibrium], wd[has_equilibrium], gradients[has_equilibrium]
    return _levels(lr, lr.copy(data=theory.equilibrium_norm(lr.values, wd.values, gradients, optimizer=rule)))


def recent_rms(values: npt.ArrayLike, counts: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Root mean square of the last values at each place, of as many as `counts` says.

    Examples
    --------
    >>> recent_rms([1.0, 7.0, 1.0, 1.0], [1, 2, 2, 9]).tolist()
    [1.0, 5.0, 5.0, 3.605551275463989]
    """
    sums = np.square(np.asarray(values, dtype=float))
    lengths_left = np.minimum(np.maximum(counts, 1), np.arange(1, sums.size + 1)).astype(int)
    lengths, totals, ends, size = lengths_left.copy(), np.zeros(sums.size), np.arange(sums.size), 1
    # sums over 1, 2, 4, … values are put together, because differences of sums from the start lose digits
    while size <= lengths_left.max(initial=0):
        is_part = (lengths_left & size) > 0
        totals[is_part] += sums[ends[is_part]]
        ends[is_part] -= size
        sums = sums + np.concatenate([np.zeros(min(size, sums.size)), sums[:-size]])
        size *= 2
    return np.asarray(np.sqrt(totals / lengths))


def _levels(lr: _Level, norm: _Level) -> dict[str, _Level]:
    return {"norm": norm, "effective_lr": lr / norm / norm, "angular_lr": lr / norm}


def equilibrium_levels(run: xr.Dataset, gradients: xr.Dataset) -> dict[str, float]:
    """Equilibrium norm and effective learning rate of a run for the gradient norms of a run, perhaps another one."""
    setting = Setting.of(run)
    (lr, wd), rule = setting.constants(), setting.law()
    rms, _ = power_mean(after_transient(gradients).grad_norm, 2)
    return _levels(lr, theory.equilibrium_norm(lr, wd, rms, optimizer=rule))


def periods_to_draw(run: xr.Dataset, discard: int | None = None) -> simulate.MeasuredPeriods:
    """Find the periods of a run without warnings about unclear ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return simulate.find_periods(run, discard=discard)


def last_periods(
    run: xr.Dataset, count: int = PERIODS_SHOWN, periods: simulate.MeasuredPeriods | None = None
) -> tuple[xr.Dataset, simulate.MeasuredPeriods]:
    """Rows from the first to the last onset of the last periods, at most `count`, and these periods.

    Without any period they are the whole run. `periods` are found by default.
    """
    if periods is None:
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


def model_for_run(
    config: RunConfig | None, optimizer: theory.Optimizer | None, model: simulate.PeriodModel | None = None
) -> simulate.PeriodModel | None:
    """Return `model`, by default that of this project's ConvNet if the run trains it, else None.

    Raises
    ------
    ValueError : the run is one of the calibration runs, or has another optimizer or network.
    """
    reference = simulate.PeriodModel.reference()
    if model is None and is_same_network(config, stored_config(reference.calibration_runs[0].run)):
        model = reference
    if model is None:
        return None
    calibrations = [calibration.run for calibration in model.calibration_runs if calibration.run]
    if any(_equal_except(_LENGTH_AND_ENGINE, config, stored_config(run)) for run in calibrations):
        raise ValueError("this run is one of the calibration runs, so the period model cannot predict it independently")
    # training does not depend on `dim`
    if optimizer is None or with_dim(optimizer, 1) != with_dim(model.optimizer, 1):
        used = "an unknown optimizer" if optimizer is None else optimizer
        raise ValueError(f"the period model was calibrated with {model.optimizer}, but the run used {used}")
    if config is not None and calibrations and not is_same_network(config, stored_config(calibrations[0])):
        raise ValueError("the period model was calibrated on another network than that of the run")
    return model


def stored_config(text: str) -> RunConfig | None:
    """Configuration that a run stores as JSON; None if there is none, or one that this version does not know.

    Examples
    --------
    >>> stored_config('{"lr": 0.1, "wd": 0.01}').lr, stored_config('{"model": "mlp"}'), stored_config("")
    (0.1, None, None)
    """
    try:
        return RunConfig.from_dict(json.loads(text))
    except (AttributeError, TypeError, ValueError):
        return None


def is_same_network(config: RunConfig | None, other: RunConfig | None) -> bool:
    """Whether two runs train the same network in the same way; None equals nothing.

    They may differ in lr, wd, initial norm, seeds, length, engine and evaluation.
    """
    return _equal_except(MAY_DIFFER_IN_A_NETWORK, config, other)


def _equal_except(ignored: frozenset[str], config: RunConfig | None, other: RunConfig | None) -> bool:
    if config is None or other is None:
        return False
    return config.settings_without(ignored) == other.settings_without(ignored)


def setting_name(run: xr.Dataset) -> str:
    """Learning rate and weight decay of a run as text. Raise ValueError if one of them varies.

    Examples
    --------
    >>> setting_name(xr.Dataset(attrs={"lr": 0.5, "wd": 0.01}))
    'η=0.5 λ=0.01'
    """
    lr, wd = Setting.of(run).constants()
    return f"η={lr:g} λ={wd:g}"
