"""Figures that compare runs: periods over ηλ, verdicts over the width, minima of successive periods."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import xarray as xr

import simulate
from empirical.config import RunConfig
from empirical.measures.minima import successive_minima
from empirical.reports.comparison import is_same_network, stored_config
from empirical.reports.page import new_figure
from empirical.studies.paper_figures.paper_figure import TWO_COLUMNS
from empirical.studies.statistics import classify_or_none
from empirical.studies.study import RunGroups, Trajectories
from simulate.plots.style import MEASURED_COLOR, PREDICTED_COLOR, label_log_ticks, number_values
from simulate.trajectories.contract import mean_intrinsic_lr, setting_variable
from simulate.trajectories.periods import (
    EQUILIBRIUM,
    LOG_NORM_SD_MAX,
    NO_CLEAR_PERIOD,
    PERIODIC,
    ROTATION_RATIO_MIN,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Array = npt.NDArray[np.float64]
_MINIMA, _SIMULATED = 6, 1000
_VERDICTS = {EQUILIBRIUM: (MEASURED_COLOR, "o"), NO_CLEAR_PERIOD: ("0.45", "x"), PERIODIC: (PREDICTED_COLOR, "^")}
# marker, face, edge and horizontal shift of each learning rate, so that no marker hides another
_LR_MARKERS = (("o", MEASURED_COLOR, MEASURED_COLOR, 0.985), ("s", "white", "black", 1.015))


def measured_periods(runs: Sequence[xr.Dataset]) -> tuple[float, float]:
    """Mean period over seeds and its standard error, in steps.

    Seeds without periods are left out. The mean is NaN if no seed is left, and the error NaN if one is left.

    Examples
    --------
    >>> runs = [simulate.oscillate(0.5, 0.01, steps=4000, seed=seed) for seed in range(3)]
    >>> mean, error = measured_periods(runs)
    >>> 0 < error < mean
    True
    """
    results = [result for result in map(classify_or_none, runs) if result is not None and result.periods.count]
    if not results:
        return math.nan, math.nan
    means = np.array([result.periods.mean for result in results])
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(means.size)) if means.size > 1 else math.nan


def draw_periods(runs: Trajectories) -> Figure:
    """Draw the period over ηλ, with errors over the seeds and one marker per learning rate.

    The left panel shows T in steps, the right panel T·ηλ. If the runs are of the network on which
    `simulate.PeriodModel.reference()` was calibrated, its predictions are drawn too.

    Parameters
    ----------
    runs : groups, each of one setting.

    Returns
    -------
    matplotlib figure.

    Raises
    ------
    ValueError : no run has a period.
    """
    measured = {name: measured_periods(group) for name, group in runs.items()}
    if np.isnan(list(measured.values())).all():
        raise ValueError("no run has a period")
    figure, (left, right) = new_figure(2.7, 1, 2, width=TWO_COLUMNS)
    lrs = sorted({float(setting_variable(group[0], "lr")) for group in runs.values()}, reverse=True)
    for (marker, face, edge, shift), lr in zip(_LR_MARKERS, lrs, strict=False):
        groups = {
            mean_intrinsic_lr(group[0]): name for name, group in runs.items() if setting_variable(group[0], "lr") == lr
        }
        x = np.array(sorted(groups))
        means, errors = np.array([measured[groups[intrinsic_lr]] for intrinsic_lr in x]).T
        for ax, unit in ((left, 1.0), (right, x)):
            style = {"fmt": marker, "color": edge, "markerfacecolor": face, "capsize": 2, "zorder": 3}
            ax.errorbar(x * shift, means * unit, errors * unit, label=f"training, η = {lr:g}", **style)
    intrinsic_lrs = [mean_intrinsic_lr(group[0]) for group in runs.values()]
    _draw_predictions(left, right, np.geomspace(min(intrinsic_lrs), max(intrinsic_lrs), 15), runs)
    left.set(xscale="log", yscale="log", ylabel="period T (steps)")
    label_log_ticks(left)
    right.set(xscale="log", ylabel="T·ηλ", ylim=(0, 1.15 * right.get_ylim()[1]))
    for ax in (left, right):
        ax.set_xlabel("ηλ")
        number_values(ax.xaxis, sorted(set(np.round(intrinsic_lrs, 9))))
    left.legend(loc="lower left")
    return figure


def _draw_predictions(left: Axes, right: Axes, x: _Array, runs: Trajectories) -> None:
    middle = float(np.sqrt(x[0] * x[-1]))
    # 1/ηλ through the measurement in the middle
    near = min(runs.values(), key=lambda group: abs(np.log(mean_intrinsic_lr(group[0]) / middle)))
    product = measured_periods(near)[0] * mean_intrinsic_lr(near[0])
    curves = [(f"{product:.2g}/ηλ", ":", "0.4", product / x)] if np.isfinite(product) else []
    model = simulate.PeriodModel.reference()
    configs = (stored_config(text) for text in (near[0].attrs["config"], model.calibration_runs[0].run))
    if is_same_network(*configs):
        curves += [
            (
                "reduced model",
                "-",
                PREDICTED_COLOR,
                np.array([model.period(1.0, intrinsic_lr, periods=_SIMULATED).mean for intrinsic_lr in x]),
            ),
            ("balance law", "--", "black", np.asarray(model.law.period(1.0, x))),
        ]
    for label, style, color, lengths in curves:
        for ax, unit in ((left, 1.0), (right, x)):
            ax.plot(x, lengths * unit, linestyle=style, color=color, label=label)


def draw_width(runs: Trajectories) -> Figure:
    """Draw the spread of ln ρ and the rotation relative to equilibrium over the width, one point per run.

    Markers show the verdict. Dashed lines are the limits of `simulate.classify` for an equilibrium. Runs too short to
    classify are left out.

    Parameters
    ----------
    runs : groups of different widths.

    Returns
    -------
    matplotlib figure.

    Raises
    ------
    ValueError : no run is left.
    """
    classified = [
        (run, result) for group in runs.values() for run in group if (result := classify_or_none(run)) is not None
    ]
    if not classified:
        raise ValueError("every run is too short to classify")
    figure, (left, right) = new_figure(2.5, 1, 2, width=TWO_COLUMNS)
    widths = np.array([RunConfig.from_dict(json.loads(run.attrs["config"])).resolved_width for run, _ in classified])
    results = [result for _, result in classified]
    verdicts = np.array([result.verdict for result in results])
    for ax, name, limit in (
        (left, "log_norm_sd", LOG_NORM_SD_MAX),
        (right, "rotation_ratio", ROTATION_RATIO_MIN),
    ):
        values = np.array([getattr(result, name) for result in results])
        for verdict, (color, marker) in _VERDICTS.items():
            mask = verdicts == verdict
            if mask.any():
                ax.plot(widths[mask], values[mask], marker, color=color, markerfacecolor="none", label=verdict)
        ax.axhline(limit, color="0.4", linestyle="--", linewidth=0.8)
        ax.set(xscale="log", xlabel="width of the network")
        number_values(ax.xaxis, sorted(set(widths.tolist())))
    left.set(ylabel="spread of ln ρ", ylim=(0, None))
    right.set(ylabel="rotation relative to equilibrium", ylim=(0, 1.05))
    left.legend(loc="upper left")
    return figure


def measure_minima(runs: RunGroups, folder: Path) -> Trajectories:
    """Find successive minima in runs of one setting.

    Parameters
    ----------
    runs : group "all" of runs that differ only in their seeds.
    folder : folder for intermediate results, which are reused.

    Returns
    -------
    Group "all" with one dataset, that of `empirical.successive_minima`.
    """
    first = runs["all"][0]
    own = folder / "minima" / f"{first.identity[:12]}-{first.steps}"
    seeds = [run.seed for run in runs["all"]]
    return {"all": [successive_minima(first, periods=_MINIMA, seeds=seeds, points=3, out=own, progress=False)]}


def draw_minima(runs: Trajectories) -> Figure:
    """Draw angles between minima over the periods between them, and test errors of single minima and ensembles.

    Parameters
    ----------
    runs : result of `measure_minima`.

    Returns
    -------
    matplotlib figure.
    """
    (minima,) = runs["all"]
    figure, (left, right) = new_figure(2.5, 1, 2, width=TWO_COLUMNS)
    count = minima.sizes["minimum"]
    apart = np.arange(1, count)
    degrees = np.rad2deg(minima.angle.values)
    pairs = [np.diagonal(degrees, n, axis1=1, axis2=2).ravel() for n in apart]
    for n, values in zip(apart, pairs, strict=True):
        left.plot(np.full(values.size, n), values, "o", color="0.6", markerfacecolor="none", markersize=3)
    left.plot(apart, [values.mean() for values in pairs], "-s", color=MEASURED_COLOR, label="mean")
    left.plot([], [], "o", color="0.6", markerfacecolor="none", markersize=3, label="two minima of one run")
    left.set(xlabel="periods between the minima", ylabel="angle (degrees)", ylim=(0, 95), xticks=apart)
    left.legend(loc="lower right")
    numbers = np.arange(1, count + 1)
    for name, label, style, color, shift in (
        ("test_error", "single minimum", "--o", PREDICTED_COLOR, -0.05),
        ("ensemble_test_error", "ensemble with all earlier ones", "-s", MEASURED_COLOR, 0.05),
    ):
        percent = 100 * minima[name].values
        error = percent.std(axis=0, ddof=1) / np.sqrt(len(percent)) if len(percent) > 1 else None
        right.errorbar(numbers + shift, percent.mean(axis=0), error, fmt=style, color=color, capsize=2, label=label)
    right.set(xlabel="number of the minimum", ylabel="test error (%)", xticks=numbers)
    # space for the legend above the curves
    right.set_ylim(0, 1.35 * right.get_ylim()[1])
    right.legend(loc="upper right")
    return figure
