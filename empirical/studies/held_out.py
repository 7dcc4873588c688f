"""Held-out predictions: calibrate networks at few settings, predict others, train there and compare."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

import simulate
import theory
from empirical.calibration import calibrate
from empirical.config import RunConfig
from empirical.reports.tables import DASH, Table
from empirical.studies.figures import draw_held_out
from empirical.studies.statistics import shuffle_gradients
from empirical.studies.study import (
    NO_RULE,
    Limit,
    Numbers,
    Result,
    Study,
    folder_errors,
    goals_table,
    prepare_folder,
    share_with_count,
    train_missing,
    write_page,
)
from empirical.sweeps.grid import grid
from empirical.sweeps.sweep import AnyExecutor
from simulate._files import atomic_write
from simulate.period_model.law import PeriodLaw, Slopes, fit_slopes
from simulate.period_model.model import simulated_periods
from simulate.period_model.prediction import Interval
from simulate.period_model.reduced_model import Trend
from simulate.period_model.summaries import CalibrationRun, pool_runs
from simulate.trajectories.contract import variable_attributes
from simulate.trajectories.setting import Setting
from simulate.trajectories.verdicts import (
    EQUILIBRIUM,
    PERIODIC,
    PERIODS_MIN,
    UNDETERMINED,
    has_clear_period,
    pool_scores,
    verdict_from,
)
from theory.arguments import check_choice, check_integer, check_items, check_path, quote

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_Array = npt.NDArray[np.float64]

_MADE_BY = "bnwd validate --held-out"
_MARKER, _TABLE, _PAGE, _PICTURE = "held_out.json", "held_out.csv", "held_out.md", "held_out.png"
_MODELS, _CALIBRATIONS, _REFERENCES = "models", "calibrations", "references"
# The seeds of calibration runs are 0 and 1.
SEEDS = (100, 101)
# η of each ηλ; they differ, since only ηλ should matter.
_LR_BY_INTRINSIC_LR = {5e-3: 0.2, 1e-3: 1.0, 5e-4: 0.5, 3e-4: 0.3}
_RELAXATIONS = 40  # initial length of a reference run, which is extended until it has enough periods
_PERIODS_NEEDED = 60
_LEVEL = 0.9  # of intervals
_FAMILY_SETTINGS = 4  # least number of settings for goals of a family
_PART_PERIODS, _BLOCK_SHARES = (8, 15, 30, 45), (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
_PREDICTED_COLUMNS = ("network", "ηλ", "predicted verdict", "measured", "T·ηλ: law", "90 %", "reduced", "naive")


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network that is calibrated and then trained at other settings.

    Attributes
    ----------
    name : name for people.
    settings : settings of its `RunConfig`.
    held_out : whether it was first trained after the method was fixed.
    lr_by_intrinsic_lr : ηλ of the settings to predict, and the η of each.
    lr : η of the calibration runs.
    calibration_periods : number of periods at each ηλ of the calibration; None for that of the study.
    """

    name: str
    settings: Mapping[str, Any]
    held_out: bool = False
    lr_by_intrinsic_lr: Mapping[float, float] = field(default_factory=lambda: _LR_BY_INTRINSIC_LR)
    lr: float = 0.5
    calibration_periods: int | None = None

    @property
    def family(self) -> str:
        """Family of networks: what differs from scale-invariant MLPs with batch normalization under plain SGD."""
        settings = self.settings
        model = "ConvNet" if settings["model"] == "convnet" else "MLP"
        if settings.get("optimizer") is not None:
            return _optimizer_name(settings["optimizer"])
        if settings.get("sampling") == "full_batch":
            return "full batch"
        if not settings.get("scale_invariant", True):
            return "all weights trained"
        if settings.get("normalization", "batch") != "batch":
            return f"{settings['normalization']} normalization"
        return model if settings.get("dataset", "digits") == "digits" else f"{model}, other data"

    @property
    def title(self) -> str:
        """Name, with a mark for held-out networks."""
        return self.name + (" (held-out)" if self.held_out else "")


def _optimizer_name(rule: theory.Optimizer) -> str:
    return "momentum" if isinstance(rule, theory.SGD) else type(rule).__name__


def _mlp(*, width: int, words: str = "", held_out: bool = False, **settings: Any) -> Network:
    return Network(name=f"MLP {width}{words}", settings={"model": "mlp", "width": width, **settings}, held_out=held_out)


def _mnist(*, width: int, samples: int, held_out: bool = False) -> Network:
    words = f", {samples} MNIST images"
    return _mlp(width=width, words=words, held_out=held_out, dataset="mnist5k", samples=samples)


def _convnet(*, width: int, words: str = "", held_out: bool = False, **settings: Any) -> Network:
    settings = {"model": "convnet", "width": width, **settings}
    return Network(name=f"ConvNet {width}{words}", settings=settings, held_out=held_out)


def _full_batch(*, width: int, samples: int, held_out: bool = False) -> Network:
    return Network(
        name=f"MLP {width}, full batch",
        settings={"model": "mlp", "width": width, "samples": samples, "sampling": "full_batch"},
        held_out=held_out,
        lr_by_intrinsic_lr={5e-3: 0.2, 1e-3: 1.0, 5e-4: 0.5},
    )


def _other(
    *,
    words: str,
    width: int = 64,
    held_out: bool = True,
    lr: float = 0.5,
    lrs: tuple[float, float] = (0.2, 1.0),
    **settings: Any,
) -> Network:
    """Network of another family, whose steps take longer: fewer settings and periods."""
    return Network(
        name=f"MLP {width}, {words}",
        settings={"model": "mlp", "width": width, **settings},
        held_out=held_out,
        lr_by_intrinsic_lr=dict(zip((5e-3, 1e-3), lrs, strict=True)),
        lr=lr,
        calibration_periods=60,
    )


NETWORKS: Mapping[str, Network] = {
    # used to develop the method
    "convnet4": _convnet(width=4),
    "mlp64": _mlp(width=64),
    "mlp256": _mlp(width=256),
    "mnist64": _mnist(width=64, samples=1000),
    "mnist64-all": _mlp(width=64, words=", all MNIST images", dataset="mnist5k"),
    "mlp16": _mlp(width=16),
    "mlp24": _mlp(width=24),
    "mlp32": _mlp(width=32),
    "mlp64-batch16": _mlp(width=64, words=", batch 16", batch_size=16),
    "mlp64-noise": _mlp(width=64, words=", 10 % wrong labels", label_noise=0.1),
    "mlp64-deep": _mlp(width=64, words=", 3 layers", depth=3),
    # no longer held-out: the method was changed after it showed that settings at equilibrium bias the law
    "mnist128": _mnist(width=128, samples=2000),
    "mlp64-full": _full_batch(width=64, samples=400),
    # first trained for this study
    "convnet3": _convnet(width=3, words=", batch 48", held_out=True, batch_size=48),
    "mlp128": _mlp(width=128, words=", batch 32", held_out=True, batch_size=32),
    "mlp96": _mlp(width=96, words=", batch 128", held_out=True, batch_size=128),
    "mnist32": _mnist(width=32, samples=500, held_out=True),
    "mlp10": _mlp(width=10, held_out=True),
    "mlp20": _mlp(width=20, held_out=True),
    "mlp28": _mlp(width=28, held_out=True),
    "mlp48-batch24": _mlp(width=48, words=", batch 24", held_out=True, batch_size=24),
    "mlp96-noise": _mlp(width=96, words=", 20 % wrong labels", held_out=True, label_noise=0.2),
    "mlp48-full": _full_batch(width=48, samples=300, held_out=True),
    "mlp96-full": _full_batch(width=96, samples=500, held_out=True),
    # first trained after the networks above had shown what fails
    "mnist96": _mnist(width=96, samples=3000, held_out=True),
    "mlp80": _mlp(width=80, words=", batch 40", held_out=True, batch_size=40),
    "convnet6": _convnet(width=6, words=", batch 32", held_out=True, batch_size=32),
    # other families, with which the method was developed further
    "layer64": _other(words="layer normalization", held_out=False, normalization="layer"),
    "group64": _other(words="group normalization", held_out=False, normalization="group"),
    "affine64": _other(words="all weights trained", held_out=False, scale_invariant=False),
    "adamw64": _other(words="AdamW", held_out=False, lr=1e-3, lrs=(2e-3, 1e-3), optimizer=theory.AdamW(dim=1)),
    # first trained after that
    "group48": _other(words="group normalization", width=48, normalization="group"),
    "weight128": _other(words="weight normalization", width=128, normalization="weight"),
    "affine128": _other(words="all weights trained", width=128, scale_invariant=False),
    "adamw128": _other(words="AdamW", width=128, lr=1e-3, lrs=(2e-3, 1e-3), optimizer=theory.AdamW(dim=1)),
    "momentum64": _other(
        words="decoupled momentum 0.5", optimizer=theory.SGD(momentum=0.5, decoupled=True), lr=0.3, lrs=(0.1, 0.5)
    ),
    "mlp40": _mlp(width=40, held_out=True),
    "mlp192": _mlp(width=192, words=", batch 48", held_out=True, batch_size=48),
    "mnist48": _mnist(width=48, samples=700, held_out=True),
    "convnet4-batch128": _convnet(width=4, words=", batch 128", held_out=True, batch_size=128),
    "mlp128-full": _full_batch(width=128, samples=350, held_out=True),
}


def pool_summaries(intrinsic_lr: float, runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Pool the numbers of the summaries of all runs of one setting, and their `seconds`.

    The error of the period is the larger of those from the scatter of periods and of runs.
    """

    def column(name: str) -> _Array:
        return np.array([run.get(name, math.nan) for run in runs], dtype=float)

    def mean(name: str) -> float:
        values = column(name)
        return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan

    counts = np.nan_to_num(column("periods"))
    has_periods = counts > 0
    number = float(counts.sum())

    def pooled_mean(values: _Array) -> float:
        return float(np.average(values[has_periods], weights=counts[has_periods])) if number else math.nan

    period = pooled_mean(column("period"))
    error = outside_growth = threshold_ratio = math.nan
    if number:
        # the scatter of a single period is unknown
        scattered = (counts * column("period_stderr"))[has_periods]
        within = float(np.sqrt(np.sum(scattered**2))) / number
        between = (
            float(np.std(column("period")[has_periods], ddof=1)) / math.sqrt(has_periods.sum())
            if has_periods.sum() > 1
            else 0.0
        )
        error = max(within, between) if math.isfinite(within) else math.nan
        outside_growth = 1 - pooled_mean(column("norm_rise")) / (-math.log1p(-intrinsic_lr) * period)
        # number of periods at twice the threshold; a summary omits an infinite ratio
        ratios = column("threshold_ratio")
        coarse = float(np.nansum(counts / np.where(np.isnan(ratios), np.inf, ratios)))
        threshold_ratio = number / coarse if coarse else math.inf
    sd = float(np.sqrt(np.mean(column("log_norm_sd") ** 2)))
    feedback_score = pool_scores(column("feedback_score").tolist())
    return {
        "verdict": verdict_from(
            mean("rotation_ratio"), sd, number / len(runs), outside_growth, threshold_ratio, feedback_score
        ),
        "feedback_score": feedback_score,
        "rotation_ratio": mean("rotation_ratio"),
        "log_norm_sd": sd,
        "threshold_ratio": threshold_ratio,
        "autocorrelation_time": mean("autocorrelation_time"),
        "periods": number,
        "period": period,
        "period_stderr": error,
        "outside_growth": outside_growth,
        "norm": float(np.exp(np.mean(np.log(column("typical_norm"))))),
        "trough_norm": float(np.exp(pooled_mean(np.log(column("trough_norm"))))),
        "peak_norm": float(np.exp(pooled_mean(np.log(column("peak_norm"))))),
        "seconds": float(column("seconds").sum()),
    }


def validate_held_out(
    out: str | os.PathLike[str] = "held_out",
    networks: Sequence[str] | Mapping[str, Network] | None = None,
    *,
    periods: int = 60,
    calibration_periods: int = 100,
    executor: AnyExecutor | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Calibrate networks, predict their norms at other settings, train there, and compare.

    In a script, call this under ``if __name__ == "__main__":``, since it starts processes.

    Parameters
    ----------
    out : new folder, or that of an earlier call, whose runs are reused.
    networks : names in `empirical.studies.held_out.NETWORKS`, or such networks by name. Default: all of them, which
        takes about two hours on two cores.
    periods : number of periods per setting, in both its runs together, unless they are at equilibrium.
    calibration_periods : number of periods at each ηλ of the calibration.
    executor : runs the trainings, as in `sweep`.
    progress : show progress bars; by default only in a terminal.

    Returns
    -------
    Dataset along `setting` with coordinates `network`, `family`, `blind` (held-out network), `lr` and `wd`. Variables
    `measured_…` and `predicted_…` have the same names. Further predictions of the period:

    - `naive_period` : c/(ηλ), with c from the second-largest ηλ of the calibration; NaN at equilibrium.
    - `line_period` : J linear in ln ηλ, and a power law of the odds of φ.
    - `reduced_period` : reduced model.
    - `one_setting_period` : reduced model calibrated only at the lower of two settings.
    - `other_families_period` : the law with typical slopes of all other families; NaN if these are too few.
    - `other_families_period_lower`, `other_families_period_upper` : its 90 % interval.

    Raises
    ------
    TypeError, ValueError : an argument is out of range, or a folder that cannot be used.
    RuntimeError : a run failed.

    Source: docs/validation.md.

    Examples
    --------
    >>> validate_held_out(networks=["mlp7"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: networks must be one of adamw128, adamw64, affine128, affine64, ...; got 'mlp7'
    """
    if not isinstance(networks, Mapping):
        names = NETWORKS if networks is None else networks
        networks = {name: NETWORKS[check_choice("networks", name, NETWORKS)] for name in check_items("networks", names)}
    if not networks:
        raise ValueError("networks must name at least one network, got none")
    if not all(isinstance(network, Network) for network in networks.values()):
        raise TypeError(f"networks must be names or a mapping to Network, got {quote(networks)}")
    check_integer("periods", periods, at_least=2 * PERIODS_MIN)
    folder = check_path("out", out)
    prepare_folder(folder, _MARKER, _MADE_BY)
    with folder_errors(folder):
        (folder / _MODELS).mkdir(exist_ok=True)
    models, single_models = {}, {}
    for name, network in networks.items():
        models[name] = calibrate(
            lr=network.lr,
            periods=network.calibration_periods or calibration_periods,
            out=folder / _CALIBRATIONS / name,
            executor=executor,
            progress=progress,
            **network.settings,
        )
        models[name].save(folder / _MODELS / f"{name}.json")
        single_models[name] = _single_setting_model(folder / _CALIBRATIONS / name, models[name])
    runs = {
        (name, intrinsic_lr): _reference_runs(network, intrinsic_lr, lr)
        for name, network in networks.items()
        for intrinsic_lr, lr in network.lr_by_intrinsic_lr.items()
    }
    summaries = train_missing(
        (run for group in runs.values() for run in group),
        folder / _REFERENCES,
        executor,
        periods=math.ceil(periods / len(SEEDS)),
        traces=False,
        progress=progress,
    )
    rows = []
    for (name, intrinsic_lr), group in runs.items():
        numbers = [{**summaries[run.identity].numbers, "seconds": summaries[run.identity].seconds} for run in group]
        network, lr = networks[name], networks[name].lr_by_intrinsic_lr[intrinsic_lr]
        rows.append(
            {
                "network": name,
                "family": network.family,
                "blind": network.held_out,
                "lr": lr,
                "wd": intrinsic_lr / lr,
                **_add_prefix("measured", pool_summaries(intrinsic_lr, numbers)),
                **_predictions(models[name], single_models[name], lr, intrinsic_lr),
            }
        )
    for row, prediction in zip(rows, predict_from_other_families(rows, models), strict=True):
        row |= prediction
    table = _table(rows, models)
    with atomic_write(folder / _TABLE) as aside:
        table.to_dataframe().to_csv(aside)
    return table


def _reference_runs(network: Network, intrinsic_lr: float, lr: float) -> tuple[RunConfig, ...]:
    return grid(
        lr=lr,
        wd=intrinsic_lr / lr,
        seed=list(SEEDS),
        steps=math.ceil(_RELAXATIONS / intrinsic_lr),
        evaluate_every=10**6,
        **network.settings,
    )


def _single_setting_model(runs: Path, model: simulate.PeriodModel) -> simulate.PeriodModel | None:
    """Period model of the lower of two settings alone; None without two settings or without a reduced model."""
    intrinsic_lrs = sorted({run.intrinsic_lr for run in model.calibration_runs}, reverse=True)
    if model.reduced_model is None or len(intrinsic_lrs) != 2:
        return None
    trajectories = [simulate.load(folder) for folder in sorted(runs.glob("runs/*/*"))]
    lower = [run for run in trajectories if math.isclose(Setting.of(run).intrinsic_lr, intrinsic_lrs[1], rel_tol=1e-9)]
    single = simulate.PeriodModel.from_runs(lower)
    return None if single.reduced_model is None else single


def _add_prefix(prefix: str, numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}_{key}": value for key, value in numbers.items()}


def _predictions(
    model: simulate.PeriodModel, single_model: simulate.PeriodModel | None, lr: float, intrinsic_lr: float
) -> dict[str, Any]:
    """Predictions of a network at one setting."""
    wd, with_reduced_model = intrinsic_lr / lr, None if model.reduced_model is None else model
    with warnings.catch_warnings():
        # predictions outside the calibrated range are tested too
        warnings.simplefilter("ignore", UserWarning)
        prediction = model.predict(lr, wd)
        reduced, single = (
            math.nan if one is None else simulated_periods(one, lr, wd).mean
            for one in (with_reduced_model, single_model)
        )
    naive = line = math.nan
    if model.has_law:
        # assume the same T·ηλ as at the second-largest calibrated ηλ
        lower = sorted({run.intrinsic_lr for run in model.calibration_runs}, reverse=True)[1]
        lower_runs = [run for run in model.calibration_runs if run.intrinsic_lr == lower and run.count]
        # a run at equilibrium has no period
        if lower_runs and any(run.verdict != EQUILIBRIUM for run in lower_runs):
            mean = np.average([run.period for run in lower_runs], weights=[run.count for run in lower_runs])
            naive = float(mean) * lower / intrinsic_lr
        line = line_period(model.calibration_runs, lr, wd)
    interval = prediction.period_interval
    return {
        **_add_prefix("predicted", {key: value for key, value in vars(prediction).items() if key != "period_interval"}),
        "predicted_period_lower": interval.lower if interval else math.nan,
        "predicted_period_upper": interval.upper if interval else math.nan,
        "naive_period": naive,
        "line_period": line,
        "reduced_period": reduced,
        "one_setting_period": single,
    }


def predict_from_other_families(
    rows: Sequence[Mapping[str, Any]], models: Mapping[str, simulate.PeriodModel]
) -> list[dict[str, float]]:
    """Predict the period of each row by a law whose typical slopes come from the networks of other families."""
    families = {row["network"]: row["family"] for row in rows}
    slopes: dict[str, Slopes | None] = {}
    for family in families.values():
        laws = [models[name].law for name, other in families.items() if other != family and models[name].has_law]
        try:
            slopes[family] = fit_slopes(laws)
        except ValueError:  # too few networks
            slopes[family] = None
    predictions = []
    for row in rows:
        model, typical, period = models[row["network"]], slopes[row["family"]], math.nan
        interval = Interval(math.nan, math.nan, _LEVEL)
        if typical is not None and model.has_law:
            law = PeriodLaw(model.calibration_runs, typical)
            period = float(law.period(row["lr"], row["wd"]))
            interval = Interval.of(law.sample_periods(row["lr"], row["wd"]), _LEVEL)
        predictions.append(
            {
                "other_families_period": period,
                "other_families_period_lower": interval.lower,
                "other_families_period_upper": interval.upper,
            }
        )
    return predictions


def line_period(calibration_runs: Sequence[CalibrationRun], lr: float, wd: float) -> float:
    """Period with J linear in ln ηλ, and the odds of φ a power of ηλ, fitted to all settings.

    NaN where the line is not positive: J can change by a factor of 10 between two settings.
    """
    pooled = pool_runs(calibration_runs)
    relative = [setting.intrinsic_lr / pooled[0].intrinsic_lr for setting in pooled]
    norm_rises = [setting.norm_rise for setting in pooled]
    line = norm_rises if len(pooled) == 1 else np.polyfit(np.log(relative), norm_rises, 1)
    here = lr * wd / pooled[0].intrinsic_lr
    norm_rise = float(np.polyval(line, math.log(here)))
    shares = [min(max(setting.outside_growth, 0.01), 0.98) for setting in pooled]
    odds = Trend.through(relative, [share / (1 - share) for share in shares])
    return norm_rise * (1 + odds.at(here)) / -math.log1p(-lr * wd) if norm_rise > 0 else math.nan


def _table(rows: Sequence[Mapping[str, Any]], models: Mapping[str, simulate.PeriodModel]) -> xr.Dataset:
    columns = {}
    for key, first in rows[0].items():
        values = np.array([row[key] for row in rows], dtype=object if isinstance(first, str) else None)
        columns[key] = ("setting", values)
    coords = ("network", "family", "blind", "lr", "wd")
    table = xr.Dataset(
        {key: value for key, value in columns.items() if key not in coords},
        {key: columns[key] for key in coords},
        {
            "source": "held_out",
            "version": theory.__version__,
            "law": json.dumps({name: repr(model.law) for name, model in models.items() if model.has_law}),
        },
    )
    for key in map(str, table.variables):
        # a measured and a predicted variable share one name; all others are periods
        plain = key.removeprefix("measured_").removeprefix("predicted_")
        table[key].attrs["units"] = (
            variable_attributes(plain) or variable_attributes("period" if "period" in key else "norm_rise")
        )["units"]
    return table


def select_settings(table: xr.Dataset, part: str) -> xr.Dataset:
    """Return the settings of one part of the table whose prediction is not undetermined.

    "clear" has a clear measured period and at least 60 periods, "clear, held-out" is that part of the held-out
    networks, and "clear: MLP" that of one family.
    """
    words, _, family = part.partition(": ")
    chosen = table.predicted_verdict != UNDETERMINED
    if "clear" in words:
        chosen = chosen & (table.measured_verdict == PERIODIC) & (table.measured_periods >= _PERIODS_NEEDED)
    if "held-out" in words:
        chosen = chosen & table.blind
    if family:
        chosen = chosen & (table.family == family)
    return table.isel(setting=np.flatnonzero(chosen.values))


def numbers_by_setting(table: xr.Dataset) -> dict[str, _Array]:
    """Relative errors of all predictions, |predicted/measured - 1|, and further numbers of each setting."""
    period = table.measured_period.values
    numbers = {
        name: np.abs(table[f"{name}_period"].values / period - 1)
        for name in ("predicted", "naive", "line", "reduced", "one_setting", "other_families")
    }
    for name in ("trough_norm", "peak_norm", "log_norm_sd", "norm", "autocorrelation_time"):
        numbers[name] = np.abs(table[f"predicted_{name}"].values / table[f"measured_{name}"].values - 1)
    low, high = table.predicted_period_lower.values, table.predicted_period_upper.values
    numbers["inside"] = (low <= period) & (period <= high)
    others = [table[f"other_families_period_{end}"].values for end in ("lower", "upper")]
    inside = (others[0] <= period) & (period <= others[1])
    numbers["inside_other_families"] = np.where(np.isfinite(others[0]), inside, np.nan)
    numbers["half_width"] = (high - low) / 2 / table.predicted_period.values
    numbers["noise"] = table.measured_period_stderr.values / period
    numbers["right_verdict"] = table.predicted_verdict.values == table.measured_verdict.values
    # factor by which the effective learning rate at the trough, η/ρ², is too large or too small
    trough_ratio = table.predicted_trough_norm.values / table.measured_trough_norm.values
    numbers["onset_factor"] = np.exp(2 * np.abs(np.log(trough_ratio)))
    return numbers


def _percents(result: Result) -> str:
    return ", ".join(f"{value:.1%}" for value in result.values)


def _mean_and_worst(result: Result) -> str:
    return f"{result.statistic:.1%}, {result.values.max():.0%}"


def _metric(
    *,
    claim: str,
    part: str,
    of: str,
    rule: Limit = NO_RULE,
    form: Callable[[Result], str] = lambda result: f"{result.statistic:.1%}",
    finite: bool = False,
    within: float | None = None,
    count: bool = False,
) -> Study:
    """Study of a number of each setting in a part of the table.

    Only finite numbers count with `finite`. The value is a share with `within`: of errors up to this one. `count` adds
    the number of settings to the claim.
    """

    def statistic(table: xr.Dataset) -> Numbers:
        numbers = numbers_by_setting(select_settings(table, part))[of]
        values = [float(number if within is None else number <= within) for number in numbers]
        finite_values = [value for value in values if math.isfinite(value)] if finite else values
        # a goal without any prediction is missed; a number without a goal is left out
        values = [math.nan] if values and not finite_values and rule.has_goal else finite_values
        return Numbers(values=values, note=f"{len(values)} settings" if count else "")

    return _study(claim=claim, statistic=statistic, rule=rule, form=form)


def _study(**fields: Any) -> Study:
    return Study(name=fields["claim"].replace(" ", "-"), source="docs/validation.md", **fields)


def _mean_errors(part: str, *names: str) -> Callable[[xr.Dataset], Numbers]:
    """Mean errors of several predictions, in the settings in which the first two are finite."""

    def statistic(table: xr.Dataset) -> Numbers:
        errors = [numbers_by_setting(select_settings(table, part))[name] for name in names]
        both = np.isfinite(errors[0]) & np.isfinite(errors[1])
        values = [float(error[both].mean()) for error in errors] if both.any() else []
        return Numbers(values=values, note=f"{both.sum()} settings")

    return statistic


def _error_ratio(part: str, prediction: str, naive: str, at_least: int = 1) -> Callable[[xr.Dataset], list[float]]:
    """Mean error of a prediction over that of the naive one, if enough settings have a naive one."""

    def statistic(table: xr.Dataset) -> list[float]:
        numbers = numbers_by_setting(select_settings(table, part))
        has_naive = np.isfinite(numbers[naive])
        return (
            [float(numbers[prediction][has_naive].mean() / numbers[naive][has_naive].mean())]
            if has_naive.sum() >= at_least
            else []
        )

    return statistic


def _count_undetermined(table: xr.Dataset) -> Numbers:
    number = int((table.predicted_verdict == UNDETERMINED).sum())
    return Numbers(values=[float(number)], note=f"of {table.sizes['setting']}")


def _error_goal(limit: float, summary: str = "mean") -> Limit:
    return Limit(at_most=limit, summary=summary, form=".0%")


def _share_goal(limit: float) -> dict[str, Any]:
    return {"rule": Limit(at_least=limit, form=".0%"), "form": share_with_count}


def _period_studies(part: str, words: str) -> list[Study]:
    worst: dict[str, Any] = {"part": part, "form": _mean_and_worst, "finite": True}
    law: dict[str, Any] = {"part": part, "of": "predicted"}
    return [
        _metric(claim=f"mean error of T{words}", rule=_error_goal(0.07), count=True, **law),
        _metric(claim=f"stretch: mean error of T{words}", rule=_error_goal(0.05), **law),
        _metric(claim=f"T within 15 %{words}", within=0.15, **_share_goal(0.9), **law),
        _metric(claim=f"stretch: T within 12 %{words}", within=0.12, **_share_goal(1.0), **law),
        _study(
            claim=f"mean error relative to naive c/(ηλ){words}",
            statistic=_error_ratio(part, "predicted", "naive"),
            rule=_error_goal(0.5),
            form=_percents,
        ),
        _metric(claim=f"mean and worst error of naive c/(ηλ){words}", of="naive", count=True, **worst),
        _metric(claim=f"mean and worst error with J linear in ln ηλ{words}", of="line", **worst),
        _metric(claim=f"mean and worst error of the corrected reduced model{words}", of="reduced", **worst),
        _metric(claim=f"mean and worst error of the balance law{words}", of="predicted", **worst),
        _metric(claim=f"mean standard error of the measurement{words}", part=part, of="noise", finite=True),
        _study(
            claim=f"mean error of T: reduced model from one setting, naive, law{words}",
            statistic=_mean_errors(part, "one_setting", "naive", "predicted"),
            form=_percents,
        ),
        _metric(claim=f"measured T in its 90 % interval{words}", part=part, of="inside", **_share_goal(0.85)),
        _metric(
            claim=f"mean error of T, typical slopes from other families{words}",
            part=part,
            of="other_families",
            rule=_error_goal(0.07),
            finite=True,
        ),
        _metric(
            claim=f"measured T in the 90 % interval from other families{words}",
            part=part,
            of="inside_other_families",
            finite=True,
            **_share_goal(0.85),
        ),
        _metric(
            claim=f"median half-width of the interval{words}",
            part=part,
            of="half_width",
            rule=_error_goal(0.2, "median"),
        ),
    ]


def _norm_studies(*, part: str, words: str, norm_goal: float, factor_goal: float) -> list[Study]:
    errors: dict[str, Any] = {"part": part, "finite": True, "rule": _error_goal(norm_goal, "largest")}
    return [
        _metric(claim=f"worst error of ρ at troughs, {words}", of="trough_norm", count=True, **errors),
        _metric(claim=f"worst error of ρ at peaks, {words}", of="peak_norm", **errors),
        _metric(
            claim=f"effective lr at the onset, {words}: worst factor",
            part=part,
            of="onset_factor",
            finite=True,
            rule=Limit(at_most=factor_goal, summary="largest"),
            form=lambda result: f"{result.statistic:.2f}",
        ),
    ]


def _family_studies() -> Iterator[Study]:
    """Error of T, and its ratio to that of naive c/(ηλ), in each family."""
    for family in dict.fromkeys(network.family for network in NETWORKS.values()):
        part = f"clear: {family}"
        yield _metric(claim=f"mean error of T, {family}", part=part, of="predicted", finite=True, count=True)
        yield _study(
            claim=f"mean error relative to naive c/(ηλ), {family}",
            statistic=_error_ratio(part, "predicted", "naive", at_least=_FAMILY_SETTINGS),
            rule=_error_goal(0.5),
            form=_percents,
        )


_SPREAD: Mapping[str, Any] = {"part": "all", "of": "log_norm_sd"}
_MEDIAN: Mapping[str, Any] = {"part": "all", "finite": True, "rule": Limit(summary="median")}
HELD_OUT_STUDIES: tuple[Study, ...] = (
    *_period_studies("clear", ""),
    *_period_studies("clear, held-out", ", held-out networks"),
    *_family_studies(),
    *_norm_studies(part="clear: MLP", words="MLP", norm_goal=0.15, factor_goal=1.25),
    *_norm_studies(part="clear: ConvNet", words="ConvNet", norm_goal=0.4, factor_goal=2.0),
    _metric(claim="correct verdict", part="all", of="right_verdict", **_share_goal(0.9)),
    _metric(claim="correct verdict, held-out networks", part="all, held-out", of="right_verdict", **_share_goal(0.9)),
    _metric(claim="mean error of the spread of ln ρ", rule=_error_goal(0.2), **_SPREAD),
    _metric(claim="spread of ln ρ within 20 %", within=0.2, form=share_with_count, **_SPREAD),
    _metric(claim="median error of the typical ρ", of="norm", **_MEDIAN),
    _metric(claim="median error of the autocorrelation time of ln ρ", of="autocorrelation_time", **_MEDIAN),
    _metric(
        claim="full batch, worst error of T",
        part="clear: full batch",
        of="predicted",
        rule=_error_goal(0.1, "largest"),
        count=True,
    ),
    _study(
        claim="settings whose period is predicted as undetermined",
        statistic=_count_undetermined,
        form=lambda result: f"{result.statistic:.0f}",
    ),
)


def judge_held_out(table: xr.Dataset) -> list[Result]:
    """Judge the table that `validate_held_out` returns. Studies without a setting are left out."""
    results = [study.judge(table) for study in HELD_OUT_STUDIES]
    return [result for result in results if result.values.size]


def feedback_table(folder: Path, networks: Sequence[str]) -> Table:
    """Table of the calibration runs, parts of them and runs without feedback that are called periodic.

    - Runs with clear periods, by all rules of `simulate.classify` but the test for feedback.
    - Parts of periodic runs, by their number of periods.
    - Gradient norms of periodic runs of plain SGD in random order, by the length of the blocks that stay together.

    Parameters
    ----------
    folder : folder of the study.
    networks : names of networks with calibration runs in it.
    """
    rows: dict[str, list[bool]] = {}

    def count(name: str, run: xr.Dataset, **options: Any) -> bool:
        is_periodic = simulate.classify(run, **options).verdict == PERIODIC
        rows.setdefault(name, []).append(is_periodic)
        return is_periodic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for path in (path for name in networks for path in sorted((folder / _CALIBRATIONS / name).glob("runs/*/*"))):
            run = simulate.load(path)
            whole = simulate.classify(run)
            periods, is_clear = whole.periods, has_clear_period(whole.periods.outside_growth, whole.threshold_ratio)
            is_candidate = periods.count >= PERIODS_MIN and is_clear and whole.verdict != EQUILIBRIUM
            if not (is_candidate and count("clear periods", run)):
                continue
            for number in _PART_PERIODS:
                for begin, end in zip(periods.onsets[:-1:number], periods.onsets[number::number], strict=False):
                    # some rows beside the troughs, so that both are found
                    beside = (end - begin) // (10 * number)
                    part = run.sel(step=slice(begin - beside, end + beside))
                    count(f"parts with {number} periods", part, discard=0)
            if Setting.of(run).optimizer == theory.SGD():
                for share in _BLOCK_SHARES:
                    shuffled = shuffle_gradients(run, max(1, round(share * periods.mean)))
                    count(f"blocks of {share:g} T in random order" if share else "gradients in random order", shuffled)
    cells = [
        [name, str(len(verdicts)), str(sum(verdicts)), f"{np.mean(verdicts):.0%}"] for name, verdicts in rows.items()
    ]
    return Table(["calibration runs", "number", "called periodic", "share"], cells)


def write_held_out_page(
    folder: Path, table: xr.Dataset, results: Sequence[Result], networks: Mapping[str, Network] = NETWORKS
) -> Figure:
    """Write the page and its figure into the folder of the study, which holds the models. Return the figure."""
    titles = {name: networks[name].title for name in dict.fromkeys(table.network.values.tolist())}
    models = {name: simulate.PeriodModel.load(folder / _MODELS / f"{name}.json") for name in titles}
    figure = draw_held_out(table, models, titles)
    figure.savefig(folder / _PICTURE, dpi=110)
    settings = [table.isel(setting=i) for i in range(table.sizes["setting"])]
    write_page(
        folder / _PAGE,
        _MADE_BY,
        goals_table(results).markdown(),
        f"![Predicted and measured T·ηλ over ηλ]({_PICTURE})",
        "Test for feedback ([mathematics.md](mathematics.md) §5):",
        feedback_table(folder, list(titles)).markdown(),
        "Settings:",
        Table(
            [*_PREDICTED_COLUMNS, "measured", "error"],
            [_setting_cells(row, titles[row.network.item()]) for row in settings],
        ).markdown(),
    )
    return figure


def _setting_cells(row: xr.Dataset, title: str) -> list[str]:
    intrinsic_lr = float(row.lr * row.wd)

    def number(name: str, form: str = ".3f") -> str:
        value = float(row[name]) * intrinsic_lr
        return DASH if math.isnan(value) else f"{value:{form}}"

    error = float(row.predicted_period / row.measured_period - 1)
    return [
        title,
        f"{intrinsic_lr:.0e}",
        row.predicted_verdict.item(),
        row.measured_verdict.item(),
        number("predicted_period"),
        f"{number('predicted_period_lower', '.2f')} … {number('predicted_period_upper', '.2f')}",
        number("reduced_period"),
        number("naive_period"),
        f"{number('measured_period')} ± {number('measured_period_stderr')} ({int(row.measured_periods)})",
        DASH if math.isnan(error) else f"{error:+.0%}",
    ]
