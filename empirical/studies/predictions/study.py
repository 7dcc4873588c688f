"""Test predictions: calibrate networks at few settings, predict others, train there and compare."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import simulate
import theory
from empirical.calibration import calibrate
from empirical.config import RunConfig
from empirical.sweeps.grid import grid
from empirical.sweeps.store import read_summaries
from empirical.sweeps.sweep import AnyExecutor, sweep
from simulate._files import atomic_write, write_json
from simulate.period_model.calibration import fit_balance_law, pool_runs
from simulate.trajectories.contract import mean_intrinsic_lr, variable_attributes
from simulate.trajectories.periods import EQUILIBRIUM, PERIODS_MIN, verdict_from
from theory.arguments import check_choice, check_integer

_MARKER, _TABLE, MODELS_FOLDER, _CALIBRATIONS, _REFERENCES = (
    "held_out.json",
    "held_out.csv",
    "models",
    "calibrations",
    "references",
)
# The seeds of calibration runs are 0 and 1.
SEEDS = (100, 101)
# η of each ηλ; they differ, since only ηλ should matter.
_LR_BY_INTRINSIC_LR = {5e-3: 0.2, 1e-3: 1.0, 5e-4: 0.5, 3e-4: 0.3}
_RELAXATIONS = 40  # initial length of a reference run, which is extended until it has enough periods


@dataclass(frozen=True)
class Network:
    """A network that is calibrated and then trained at other settings.

    Attributes
    ----------
    name : name for people.
    settings : settings of its `RunConfig`.
    held_out : whether it was first trained after the method was fixed.
    lr_by_intrinsic_lr : ηλ of the settings to predict, and the η of each.
    beyond : whether the method was not developed for this kind of network.
    lr : η of the calibration runs.
    """

    name: str
    settings: Mapping[str, Any]
    held_out: bool = False
    lr_by_intrinsic_lr: Mapping[float, float] = field(default_factory=lambda: _LR_BY_INTRINSIC_LR)
    beyond: bool = False
    lr: float = 0.5

    @property
    def kind(self) -> str:
        """Kind of network, which sets its goals: "mlp", "convnet", "full batch", or "beyond" for no goals."""
        if self.beyond:
            return "beyond"
        if self.settings.get("sampling") == "full_batch":
            return "full batch"
        return str(self.settings["model"])


def _mlp(name: str, width: int, *, held_out: bool = False, **settings: Any) -> Network:
    return Network(name, {"model": "mlp", "width": width, **settings}, held_out)


def _beyond(name: str, lr_by_intrinsic_lr: Mapping[float, float], lr: float = 0.5, **settings: Any) -> Network:
    return Network(name, {"model": "mlp", "width": 64, **settings}, True, lr_by_intrinsic_lr, True, lr)


_FULL_BATCH = {5e-3: 0.2, 1e-3: 1.0, 5e-4: 0.5}
_FEW = {5e-3: 0.2, 1e-3: 1.0}
NETWORKS: Mapping[str, Network] = {
    # used to develop the method
    "convnet8": Network("ConvNet 8", {"model": "convnet", "width": 8}),
    "mlp64": _mlp("MLP 64", 64),
    "mlp256": _mlp("MLP 256", 256),
    "mnist64": _mlp("MLP 64, 1000 MNIST images", 64, dataset="mnist5k", samples=1000),
    "mnist64-all": _mlp("MLP 64, all MNIST images", 64, dataset="mnist5k"),
    "mlp16": _mlp("MLP 16", 16),
    "mlp24": _mlp("MLP 24", 24),
    "mlp32": _mlp("MLP 32", 32),
    "mlp64-batch16": _mlp("MLP 64, batch 16", 64, batch_size=16),
    "mlp64-noise": _mlp("MLP 64, 10 % wrong labels", 64, label_noise=0.1),
    "mlp64-deep": _mlp("MLP 64, 3 layers", 64, depth=3),
    # no longer held-out: the method was changed after it showed that settings at equilibrium bias the law
    "mnist128": _mlp("MLP 128, 2000 MNIST images", 128, dataset="mnist5k", samples=2000),
    "mlp64-full": Network(
        "MLP 64, full batch",
        {"model": "mlp", "width": 64, "samples": 400, "sampling": "full_batch"},
        False,
        _FULL_BATCH,
    ),
    # first trained for this study
    "convnet6": Network("ConvNet 6, batch 48", {"model": "convnet", "width": 6, "batch_size": 48}, True),
    "mlp128": _mlp("MLP 128, batch 32", 128, held_out=True, batch_size=32),
    "mlp96": _mlp("MLP 96, batch 128", 96, held_out=True, batch_size=128),
    "mnist32": _mlp("MLP 32, 500 MNIST images", 32, held_out=True, dataset="mnist5k", samples=500),
    "mlp10": _mlp("MLP 10", 10, held_out=True),
    "mlp20": _mlp("MLP 20", 20, held_out=True),
    "mlp28": _mlp("MLP 28", 28, held_out=True),
    "mlp48-batch24": _mlp("MLP 48, batch 24", 48, held_out=True, batch_size=24),
    "mlp96-noise": _mlp("MLP 96, 20 % wrong labels", 96, held_out=True, label_noise=0.2),
    "mlp48-full": Network(
        "MLP 48, full batch", {"model": "mlp", "width": 48, "samples": 300, "sampling": "full_batch"}, True, _FULL_BATCH
    ),
    "mlp96-full": Network(
        "MLP 96, full batch", {"model": "mlp", "width": 96, "samples": 500, "sampling": "full_batch"}, True, _FULL_BATCH
    ),
    # first trained after the networks above had shown what fails
    "mnist96": _mlp("MLP 96, 3000 MNIST images", 96, held_out=True, dataset="mnist5k", samples=3000),
    "mlp80": _mlp("MLP 80, batch 40", 80, held_out=True, batch_size=40),
    "convnet5": Network("ConvNet 5, batch 32", {"model": "convnet", "width": 5, "batch_size": 32}, True),
    # another normalization, affine parameters with a trained last layer, another optimizer
    "layer64": _beyond("MLP 64, layer normalization", _FEW, normalization="layer"),
    "affine64": _beyond("MLP 64, all weights trained", _FEW, scale_invariant=False),
    "adamw64": _beyond("MLP 64, AdamW", {5e-3: 2e-3, 1e-3: 1e-3}, 1e-3, optimizer=theory.AdamW(dim=1)),
}


@dataclass(frozen=True)
class MeasuredSetting:
    """Numbers measured in the runs of one setting, pooled.

    Attributes
    ----------
    verdict, rotation_ratio, log_norm_sd, threshold_ratio, autocorrelation_time : as in `simulate.Classification`.
    periods : number of periods.
    period, period_stderr : mean period and its standard error (steps). The error is the larger of those from the
        scatter of periods and of runs.
    outside_growth : φ.
    norm, trough_norm, peak_norm : typical norm, norm at troughs and at peaks.
    seconds : training time.
    """

    verdict: str
    rotation_ratio: float
    log_norm_sd: float
    threshold_ratio: float
    autocorrelation_time: float
    periods: float
    period: float
    period_stderr: float
    outside_growth: float
    norm: float
    trough_norm: float
    peak_norm: float
    seconds: float


def pool_summaries(intrinsic_lr: float, runs: Sequence[Mapping[str, float]]) -> MeasuredSetting:
    """Pool the summaries of the runs of one setting.

    Parameters
    ----------
    intrinsic_lr : ηλ.
    runs : numbers of their summaries, and their `seconds`.

    Examples
    --------
    >>> run = {"periods": 50, "period": 100.0, "period_stderr": 4.0, "norm_rise": 0.5, "threshold_ratio": 1.2,
    ...        "rotation_ratio": 0.2, "log_norm_sd": 0.3, "seconds": 1.0}
    >>> both = pool_summaries(0.01, [run, {**run, "period": 110.0}])
    >>> both.verdict, both.period, round(both.period_stderr, 2)
    ('periodic', 105.0, 5.0)
    """

    def column(name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([run.get(name, math.nan) for run in runs], dtype=float)

    def mean(name: str) -> float:
        values = column(name)
        return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan

    counts = np.nan_to_num(column("periods"))
    has_periods = counts > 0
    number = float(counts.sum())

    def pooled_mean(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
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
        coarse = float(
            np.nansum(counts / np.where(np.isnan(column("threshold_ratio")), np.inf, column("threshold_ratio")))
        )
        threshold_ratio = number / coarse if coarse else math.inf
    sd = float(np.sqrt(np.mean(column("log_norm_sd") ** 2)))
    return MeasuredSetting(
        verdict=verdict_from(mean("rotation_ratio"), sd, number / len(runs), outside_growth, threshold_ratio),
        rotation_ratio=mean("rotation_ratio"),
        log_norm_sd=sd,
        threshold_ratio=threshold_ratio,
        autocorrelation_time=mean("autocorrelation_time"),
        periods=number,
        period=period,
        period_stderr=error,
        outside_growth=outside_growth,
        norm=float(np.exp(np.mean(np.log(column("typical_norm"))))),
        trough_norm=float(np.exp(pooled_mean(np.log(column("trough_norm"))))),
        peak_norm=float(np.exp(pooled_mean(np.log(column("peak_norm"))))),
        seconds=float(column("seconds").sum()),
    )


def validate_held_out(
    out: str | os.PathLike[str] = "held_out",
    networks: Sequence[str] | None = None,
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
    networks : names in `empirical.studies.predictions.study.NETWORKS`; default all, which takes about 40 minutes on
        two cores.
    periods : number of periods per setting, in both its runs together, unless they are at equilibrium.
    calibration_periods : number of periods at each ηλ of the calibration.
    executor : runs the trainings, as in `sweep`.
    progress : show progress bars; by default only in a terminal.

    Returns
    -------
    Dataset along `setting` with coordinates `network`, `kind`, `blind` (held-out network), `lr` and `wd`. Variables
    `measured_…` and `predicted_…` have the same names. Further predictions of the period:

    - `naive_period` : c/(ηλ), with c from the second-largest ηλ of the calibration; NaN at equilibrium.
    - `share_period` : balance law with a power of φ instead of a power of its odds.
    - `reduced_period` : reduced model.
    - `one_setting_period` : reduced model calibrated only at the lower of two settings.

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
    ValueError: networks must be one of adamw64, affine64, convnet5, convnet6, ...; got 'mlp7'
    """
    names = [check_choice("networks", name, NETWORKS) for name in (NETWORKS if networks is None else networks)]
    if not names:
        raise ValueError("networks must name at least one network, got none")
    check_integer("periods", periods, at_least=2 * PERIODS_MIN)
    folder = _prepare_folder(Path(out))
    models = {}
    for name in names:
        models[name] = calibrate(
            lr=NETWORKS[name].lr,
            periods=calibration_periods,
            out=folder / _CALIBRATIONS / name,
            executor=executor,
            progress=progress,
            **NETWORKS[name].settings,
        )
        models[name].save(folder / MODELS_FOLDER / f"{name}.json")
    single_models = {name: _single_setting_model(folder / _CALIBRATIONS / name, models[name]) for name in names}
    runs = {
        (name, intrinsic_lr): _reference_runs(NETWORKS[name], intrinsic_lr, lr)
        for name in names
        for intrinsic_lr, lr in NETWORKS[name].lr_by_intrinsic_lr.items()
    }
    sweep(
        sorted((run for group in runs.values() for run in group), key=_cost, reverse=True),
        folder / _REFERENCES,
        executor,
        periods=math.ceil(periods / len(SEEDS)),
        traces=False,
        progress=progress,
    )
    summaries = read_summaries(folder / _REFERENCES)
    failed = [summaries[run.identity] for group in runs.values() for run in group if summaries[run.identity].error]
    if failed:
        raise RuntimeError(f"a training failed: {failed[0].error}")
    rows = []
    for (name, intrinsic_lr), group in runs.items():
        numbers = [{**summaries[run.identity].numbers, "seconds": summaries[run.identity].seconds} for run in group]
        measured = pool_summaries(intrinsic_lr, numbers)
        lr = NETWORKS[name].lr_by_intrinsic_lr[intrinsic_lr]
        rows.append(_row(name, models[name], single_models[name], intrinsic_lr, lr, measured))
    table = _table(rows, models)
    with atomic_write(folder / _TABLE) as aside:
        table.to_dataframe().to_csv(aside)
    return table


def _prepare_folder(folder: Path) -> Path:
    """Create the folder, or accept an empty one or that of an earlier call."""
    try:
        if folder.exists() and any(folder.iterdir()) and not (folder / _MARKER).is_file():
            raise ValueError(f"out must be a new or empty folder or that of an earlier call, got {str(folder)!r}")
        (folder / MODELS_FOLDER).mkdir(parents=True, exist_ok=True)
        write_json(folder / _MARKER, {"made_by": "bnwd validate --held-out", "version": theory.__version__})
    except OSError as error:
        raise ValueError(f"out must be a folder that can be written, got {str(folder)!r} ({error.strerror})") from None
    return folder


def _reference_runs(network: Network, intrinsic_lr: float, lr: float) -> tuple[RunConfig, ...]:
    return grid(
        lr=lr,
        wd=intrinsic_lr / lr,
        seed=list(SEEDS),
        steps=math.ceil(_RELAXATIONS / intrinsic_lr),
        evaluate_every=10**6,
        **network.settings,
    )


def _cost(run: RunConfig) -> float:
    """Approximate relative duration of a run; long runs start first."""
    pixels = 12 if run.dataset == "mnist5k" else 1
    return run.steps * (15 if run.model == "convnet" else (run.width or 64) / 64 * pixels)


def _single_setting_model(runs: Path, model: simulate.PeriodModel) -> simulate.PeriodModel | None:
    """Period model of the lower of two settings alone; None without two settings or without a reduced model."""
    intrinsic_lrs = sorted({run.intrinsic_lr for run in model.calibration_runs}, reverse=True)
    if model.reduced_model is None or len(intrinsic_lrs) != 2:
        return None
    trajectories = [simulate.load(folder) for folder in sorted(runs.glob("runs/*/*"))]
    lower = [run for run in trajectories if math.isclose(mean_intrinsic_lr(run), intrinsic_lrs[1], rel_tol=1e-9)]
    single = simulate.PeriodModel.from_runs(lower)
    return None if single.reduced_model is None else single


def _row(
    name: str,
    model: simulate.PeriodModel,
    single_model: simulate.PeriodModel | None,
    intrinsic_lr: float,
    lr: float,
    measured: MeasuredSetting,
) -> dict[str, Any]:
    wd, with_reduced_model = intrinsic_lr / lr, None if model.reduced_model is None else model
    with warnings.catch_warnings():
        # predictions outside the calibrated range are tested too
        warnings.simplefilter("ignore", UserWarning)
        prediction = model.predict(lr, wd)
        reduced, single = (
            math.nan if one is None else one.period(lr, wd).mean for one in (with_reduced_model, single_model)
        )
    naive = share = math.nan
    if model.has_law:
        # assume the same T·ηλ as at the second-largest calibrated ηλ
        lower = sorted({run.intrinsic_lr for run in model.calibration_runs}, reverse=True)[1]
        lower_runs = [run for run in model.calibration_runs if run.intrinsic_lr == lower and run.count]
        # a run at equilibrium has no period
        if lower_runs and any(run.verdict != EQUILIBRIUM for run in lower_runs):
            mean = np.average([run.period for run in lower_runs], weights=[run.count for run in lower_runs])
            naive = float(mean) * lower / intrinsic_lr
        share = fit_balance_law(pool_runs(model.calibration_runs), "share").period(lr, wd)
    interval = prediction.interval
    return {
        "network": name,
        "kind": NETWORKS[name].kind,
        "blind": NETWORKS[name].held_out,
        "lr": lr,
        "wd": wd,
        **{f"measured_{key}": value for key, value in vars(measured).items()},
        **{f"predicted_{key}": value for key, value in vars(prediction).items() if key != "interval"},
        "predicted_period_lower": interval.lower if interval else math.nan,
        "predicted_period_upper": interval.upper if interval else math.nan,
        "naive_period": naive,
        "share_period": share,
        "reduced_period": reduced,
        "one_setting_period": single,
    }


def _table(rows: Sequence[Mapping[str, Any]], models: Mapping[str, simulate.PeriodModel]) -> xr.Dataset:
    columns = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        if isinstance(values[0], str):
            array = np.empty(len(values), dtype=object)
            array[:] = values
            columns[key] = ("setting", array)
        else:
            columns[key] = ("setting", np.asarray(values))
    coords = ("network", "kind", "blind", "lr", "wd")
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
