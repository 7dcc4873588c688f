"""Predictions on trial: networks are probed, and their norms predicted at settings that the probe has not seen."""

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

MARKER, TABLE, MODELS, CALIBRATIONS, REFERENCES = (
    "held_out.json",
    "held_out.csv",
    "models",
    "calibrations",
    "references",
)
# Those of the probes are 0 and 1.
SEEDS = (100, 101)
# Each ηλ at another η, since only their product is to matter.
RATES = {5e-3: 0.2, 1e-3: 1.0, 5e-4: 0.5, 3e-4: 0.3}
_RELAXATIONS = 40  # of a reference at first; it is extended until it has its periods


@dataclass(frozen=True)
class Network:
    """A network that is probed and then trained at other settings.

    Attributes
    ----------
    name : in words.
    settings : of its `RunConfig`.
    blind : whether it was never trained before the method was fixed.
    rates : ηλ of the settings to be predicted, and η of each.
    beyond : whether it is of a kind that the method was not made for.
    lr : η of the probe.
    """

    name: str
    settings: Mapping[str, Any]
    blind: bool = False
    rates: Mapping[float, float] = field(default_factory=lambda: RATES)
    beyond: bool = False
    lr: float = 0.5

    @property
    def kind(self) -> str:
        """What goals it is held to: "mlp", "convnet" or "full batch"; none for what is "beyond" the method."""
        if self.beyond:
            return "beyond"
        if self.settings.get("sampling") == "full_batch":
            return "full batch"
        return str(self.settings["model"])


def _mlp(name: str, width: int, *, blind: bool = False, **settings: Any) -> Network:
    return Network(name, {"model": "mlp", "width": width, **settings}, blind)


def _beyond(name: str, rates: Mapping[float, float], lr: float = 0.5, **settings: Any) -> Network:
    return Network(name, {"model": "mlp", "width": 64, **settings}, True, rates, True, lr)


_FULL_BATCH = {5e-3: 0.2, 1e-3: 1.0, 5e-4: 0.5}
_FEW = {5e-3: 0.2, 1e-3: 1.0}
NETWORKS: Mapping[str, Network] = {
    # those with which the method was developed
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
    # it was blind until it showed that settings at rest spoil the law
    "mnist128": _mlp("MLP 128, 2000 MNIST images", 128, dataset="mnist5k", samples=2000),
    "mlp64-full": Network(
        "MLP 64, full batch",
        {"model": "mlp", "width": 64, "samples": 400, "sampling": "full_batch"},
        False,
        _FULL_BATCH,
    ),
    # those that were first trained for this trial
    "convnet6": Network("ConvNet 6, batch 48", {"model": "convnet", "width": 6, "batch_size": 48}, True),
    "mlp128": _mlp("MLP 128, batch 32", 128, blind=True, batch_size=32),
    "mlp96": _mlp("MLP 96, batch 128", 96, blind=True, batch_size=128),
    "mnist32": _mlp("MLP 32, 500 MNIST images", 32, blind=True, dataset="mnist5k", samples=500),
    "mlp10": _mlp("MLP 10", 10, blind=True),
    "mlp20": _mlp("MLP 20", 20, blind=True),
    "mlp28": _mlp("MLP 28", 28, blind=True),
    "mlp48-batch24": _mlp("MLP 48, batch 24", 48, blind=True, batch_size=24),
    "mlp96-noise": _mlp("MLP 96, 20 % wrong labels", 96, blind=True, label_noise=0.2),
    "mlp48-full": Network(
        "MLP 48, full batch", {"model": "mlp", "width": 48, "samples": 300, "sampling": "full_batch"}, True, _FULL_BATCH
    ),
    "mlp96-full": Network(
        "MLP 96, full batch", {"model": "mlp", "width": 96, "samples": 500, "sampling": "full_batch"}, True, _FULL_BATCH
    ),
    # those that were first trained after the ones above had shown what fails
    "mnist96": _mlp("MLP 96, 3000 MNIST images", 96, blind=True, dataset="mnist5k", samples=3000),
    "mlp80": _mlp("MLP 80, batch 40", 80, blind=True, batch_size=40),
    "convnet5": Network("ConvNet 5, batch 32", {"model": "convnet", "width": 5, "batch_size": 32}, True),
    # other normalization, affine parameters and a free last layer, another optimizer
    "layer64": _beyond("MLP 64, layer normalization", _FEW, normalization="layer"),
    "affine64": _beyond("MLP 64, all weights trained", _FEW, scale_invariant=False),
    "adamw64": _beyond("MLP 64, AdamW", {5e-3: 2e-3, 1e-3: 1e-3}, 1e-3, optimizer=theory.AdamW(dim=1)),
}


@dataclass(frozen=True)
class Measured:
    """What the runs of one setting show together.

    Attributes
    ----------
    verdict, rotation_ratio, log_norm_sd, threshold_ratio, autocorrelation_time : as in `simulate.Classification`.
    periods : number of periods.
    period, period_stderr : steps; the error is from the scatter of periods or of runs, whichever is larger.
    outside_growth : φ.
    norm, trough_norm, peak_norm : typical norm, and that at troughs and peaks.
    seconds : of training.
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


def together(rate: float, runs: Sequence[Mapping[str, float]]) -> Measured:
    """Pool the summaries of the runs of one setting.

    Parameters
    ----------
    rate : ηλ.
    runs : the numbers of their summaries, and their `seconds`.

    Examples
    --------
    >>> run = {"periods": 50, "period": 100.0, "period_stderr": 4.0, "norm_rise": 0.5, "threshold_ratio": 1.2,
    ...        "rotation_ratio": 0.2, "log_norm_sd": 0.3, "seconds": 1.0}
    >>> both = together(0.01, [run, {**run, "period": 110.0}])
    >>> both.verdict, both.period, round(both.period_stderr, 2)
    ('periodic', 105.0, 5.0)
    """

    def column(name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([run.get(name, math.nan) for run in runs], dtype=float)

    def mean(name: str) -> float:
        values = column(name)
        return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan

    counts = np.nan_to_num(column("periods"))
    swung = counts > 0
    number = float(counts.sum())

    def pooled_mean(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
        return float(np.average(values[swung], weights=counts[swung])) if number else math.nan

    period = pooled_mean(column("period"))
    error = outside_growth = threshold_ratio = math.nan
    if number:
        # of a run with one period no scatter is known
        scattered = (counts * column("period_stderr"))[swung]
        within = float(np.sqrt(np.sum(scattered**2))) / number
        between = float(np.std(column("period")[swung], ddof=1)) / math.sqrt(swung.sum()) if swung.sum() > 1 else 0.0
        error = max(within, between) if math.isfinite(within) else math.nan
        outside_growth = 1 - pooled_mean(column("norm_rise")) / (-math.log1p(-rate) * period)
        # periods at twice the rise; a summary leaves out what is infinite
        coarse = float(
            np.nansum(counts / np.where(np.isnan(column("threshold_ratio")), np.inf, column("threshold_ratio")))
        )
        threshold_ratio = number / coarse if coarse else math.inf
    sd = float(np.sqrt(np.mean(column("log_norm_sd") ** 2)))
    return Measured(
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
    """Probe networks, predict their norms at other settings, train there, and hold the one against the other.

    In a script the call belongs under ``if __name__ == "__main__":``, since processes are started.

    Parameters
    ----------
    out : folder: new, or of an earlier call, whose runs are used again.
    networks : names in `empirical.studies.predictions.study.NETWORKS`; all by default, which takes about 40 minutes
        on two cores.
    periods : wanted in each setting, of both its runs together, unless they rest.
    calibration_periods : wanted at each ηλ of a probe.
    executor : of the runs, as in `sweep`.
    progress : show progress bars; by default only in a terminal.

    Returns
    -------
    Dataset along `setting`, with the coordinates `network`, `kind`, `blind`, `lr`, `wd`, and variables `measured_…` and
    `predicted_…` of the same names; `naive_period` is c/(ηλ) with the c of the lower setting of the probe (NaN if it
    rests there), `share_period` the balance law with a power of φ in place of its odds, `reduced_period` that of the
    reduced model, `one_setting_period` that of one calibrated at the lower setting of a probe of two alone.

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
    folder = _claimed(Path(out))
    models = {}
    for name in names:
        models[name] = calibrate(
            lr=NETWORKS[name].lr,
            periods=calibration_periods,
            out=folder / CALIBRATIONS / name,
            executor=executor,
            progress=progress,
            **NETWORKS[name].settings,
        )
        models[name].save(folder / MODELS / f"{name}.json")
    alone = {name: _of_one_setting(folder / CALIBRATIONS / name, models[name]) for name in names}
    runs = {
        (name, rate): _references(NETWORKS[name], rate, lr)
        for name in names
        for rate, lr in NETWORKS[name].rates.items()
    }
    sweep(
        sorted((run for group in runs.values() for run in group), key=_cost, reverse=True),
        folder / REFERENCES,
        executor,
        periods=math.ceil(periods / len(SEEDS)),
        traces=False,
        progress=progress,
    )
    found = read_summaries(folder / REFERENCES)
    failed = [found[run.identity] for group in runs.values() for run in group if found[run.identity].error]
    if failed:
        raise RuntimeError(f"every run must be complete to be compared, but: {failed[0].error}")
    rows = []
    for (name, rate), group in runs.items():
        numbers = [{**found[run.identity].numbers, "seconds": found[run.identity].seconds} for run in group]
        measured = together(rate, numbers)
        rows.append(_row(name, models[name], alone[name], rate, NETWORKS[name].rates[rate], measured))
    table = _table(rows, models)
    with atomic_write(folder / TABLE) as aside:
        table.to_dataframe().to_csv(aside)
    return table


def _claimed(folder: Path) -> Path:
    """Take the folder if it is new, empty or our own."""
    try:
        if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).is_file():
            raise ValueError(f"out must be a new or empty folder or that of an earlier call, got {str(folder)!r}")
        (folder / MODELS).mkdir(parents=True, exist_ok=True)
        write_json(folder / MARKER, {"made_by": "bnwd validate --held-out", "version": theory.__version__})
    except OSError as error:
        raise ValueError(f"out must be a folder that can be written, got {str(folder)!r} ({error.strerror})") from None
    return folder


def _references(network: Network, rate: float, lr: float) -> tuple[RunConfig, ...]:
    return grid(
        lr=lr,
        wd=rate / lr,
        seed=list(SEEDS),
        steps=math.ceil(_RELAXATIONS / rate),
        evaluate_every=10**6,
        **network.settings,
    )


def _cost(run: RunConfig) -> float:
    """About how long a run takes, relative to others: the long ones go first."""
    pixels = 12 if run.dataset == "mnist5k" else 1
    return run.steps * (15 if run.model == "convnet" else (run.width or 64) / 64 * pixels)


def _of_one_setting(runs: Path, model: simulate.PeriodModel) -> simulate.PeriodModel | None:
    """The reduced model from the runs of a probe at the lower of its two settings alone; None without one."""
    rates = sorted({segment.intrinsic_lr for segment in model.calibration_runs}, reverse=True)
    if model.reduced_model is None or len(rates) != 2:
        return None
    trajectories = [simulate.load(place) for place in sorted(runs.glob("runs/*/*"))]
    alone = [each for each in trajectories if math.isclose(mean_intrinsic_lr(each), rates[1], rel_tol=1e-9)]
    found = simulate.PeriodModel.from_runs(alone)
    return None if found.reduced_model is None else found


def _row(
    name: str,
    model: simulate.PeriodModel,
    alone: simulate.PeriodModel | None,
    rate: float,
    lr: float,
    measured: Measured,
) -> dict[str, Any]:
    wd, swinging = rate / lr, None if model.reduced_model is None else model
    with warnings.catch_warnings():
        # what lies outside the range of a model is on trial too
        warnings.simplefilter("ignore", UserWarning)
        expected = model.predict(lr, wd)
        reduced, single = (math.nan if one is None else one.period(lr, wd).mean for one in (swinging, alone))
    naive = share = math.nan
    if model.has_law:
        # the prediction of whoever has runs at one setting: T·ηλ as it was at the lower of the first two
        lower = sorted({segment.intrinsic_lr for segment in model.calibration_runs}, reverse=True)[1]
        there = [segment for segment in model.calibration_runs if segment.intrinsic_lr == lower and segment.count]
        # at rest there is no period to carry over
        if there and any(segment.verdict != EQUILIBRIUM for segment in there):
            mean = np.average([segment.period for segment in there], weights=[segment.count for segment in there])
            naive = float(mean) * lower / rate
        share = fit_balance_law(pool_runs(model.calibration_runs), "share").period(lr, wd)
    interval = expected.interval
    return {
        "network": name,
        "kind": NETWORKS[name].kind,
        "blind": NETWORKS[name].blind,
        "lr": lr,
        "wd": wd,
        **{f"measured_{key}": value for key, value in vars(measured).items()},
        **{f"predicted_{key}": value for key, value in vars(expected).items() if key != "interval"},
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
        # what was measured and what was predicted have one name; all else is some period
        plain = key.removeprefix("measured_").removeprefix("predicted_")
        table[key].attrs["units"] = (
            variable_attributes(plain) or variable_attributes("period" if "period" in key else "norm_rise")
        )["units"]
    return table
