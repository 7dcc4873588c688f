"""Figures that compare runs: periods over ηλ, rest and periods over the width, minima of successive periods."""

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
from empirical.reports.comparison import is_of_network
from empirical.reports.page import new_figure
from empirical.studies.claims.claim import Runs
from empirical.studies.claims.statistics import Trajectories, classified
from empirical.studies.paper_figures.paper_figure import TWO_COLUMNS
from simulate.plots.style import MEASURED, PREDICTED, label_log_ticks, number_values
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

Array = npt.NDArray[np.float64]
_MINIMA, _SIMULATED = 6, 1000
_VERDICTS = {EQUILIBRIUM: (MEASURED, "o"), NO_CLEAR_PERIOD: ("0.45", "x"), PERIODIC: (PREDICTED, "^")}
# on which periods depend, beside ηλ
# marker, face, edge, and where it stands, so that none hides another
_RATES_MARKED = (("o", MEASURED, MEASURED, 0.985), ("s", "white", "black", 1.015))


def measured_periods(runs: Sequence[xr.Dataset]) -> tuple[float, float]:
    """Mean of the mean periods of seeds that have any, in steps, and its standard error; NaN of none and of one.

    Examples
    --------
    >>> runs = [simulate.oscillate(0.5, 0.01, steps=4000, seed=seed) for seed in range(3)]
    >>> mean, error = measured_periods(runs)
    >>> 0 < error < mean
    True
    """
    judged = [each for each in map(classified, runs) if each is not None and each.periods.count]
    if not judged:
        return math.nan, math.nan
    means = np.array([each.periods.mean for each in judged])
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(means.size)) if means.size > 1 else math.nan


def draw_periods(runs: Trajectories) -> Figure:
    """Period over ηλ, with errors over the seeds and a marker for each learning rate.

    On the left it is in steps, on the right times ηλ. The predictions of `simulate.PeriodModel.reference()` are drawn
    where the runs are of the network that it was calibrated on.

    Parameters
    ----------
    runs : each group of one setting.

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
    rates = sorted({float(setting_variable(group[0], "lr")) for group in runs.values()}, reverse=True)
    for (marker, face, edge, shift), rate in zip(_RATES_MARKED, rates, strict=False):
        groups = {
            mean_intrinsic_lr(group[0]): name
            for name, group in runs.items()
            if setting_variable(group[0], "lr") == rate
        }
        x = np.array(sorted(groups))
        means, errors = np.array([measured[groups[k]] for k in x]).T
        for ax, unit in ((left, 1.0), (right, x)):
            style = {"fmt": marker, "color": edge, "markerfacecolor": face, "capsize": 2, "zorder": 3}
            ax.errorbar(x * shift, means * unit, errors * unit, label=f"training, η = {rate:g}", **style)
    together = [mean_intrinsic_lr(group[0]) for group in runs.values()]
    _draw_predictions(left, right, np.geomspace(min(together), max(together), 15), runs)
    left.set(xscale="log", yscale="log", ylabel="period T (steps)")
    label_log_ticks(left)
    right.set(xscale="log", ylabel="T·ηλ", ylim=(0, 1.15 * right.get_ylim()[1]))
    for ax in (left, right):
        ax.set_xlabel("ηλ")
        number_values(ax.xaxis, sorted(set(np.round(together, 9))))
    left.legend(loc="lower left")
    return figure


def _draw_predictions(left: Axes, right: Axes, x: Array, runs: Trajectories) -> None:
    middle = float(np.sqrt(x[0] * x[-1]))
    # through what was measured in the middle
    near = min(runs.values(), key=lambda group: abs(np.log(mean_intrinsic_lr(group[0]) / middle)))
    product = measured_periods(near)[0] * mean_intrinsic_lr(near[0])
    curves = [(f"{product:.2g}/ηλ", ":", "0.4", product / x)] if np.isfinite(product) else []
    model = simulate.PeriodModel.reference()
    if is_of_network(next(iter(runs.values()))[0].attrs["config"], model.calibration_runs[0].run):
        curves += [
            (
                "reduced model",
                "-",
                PREDICTED,
                np.array([model.period(1.0, rate, periods=_SIMULATED).mean for rate in x]),
            ),
            ("balance law", "--", "black", np.asarray(model.law.period(1.0, x))),
        ]
    for label, style, color, lengths in curves:
        for ax, unit in ((left, 1.0), (right, x)):
            ax.plot(x, lengths * unit, linestyle=style, color=color, label=label)


def draw_width(runs: Trajectories) -> Figure:
    """Spread of ln ρ and rotation over that of equilibrium, over the width, a point for each run by its verdict.

    Dashed: what `simulate.classify` asks of an equilibrium. Runs that ended before it could judge them are left out.

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
    every = [(run, judged) for group in runs.values() for run in group if (judged := classified(run)) is not None]
    if not every:
        raise ValueError("every run ended before it could be judged")
    figure, (left, right) = new_figure(2.5, 1, 2, width=TWO_COLUMNS)
    widths = np.array([RunConfig.from_dict(json.loads(run.attrs["config"])).resolved_width for run, _ in every])
    found = [judged for _, judged in every]
    verdicts = np.array([each.verdict for each in found])
    for ax, name, limit in (
        (left, "log_norm_sd", LOG_NORM_SD_MAX),
        (right, "rotation_ratio", ROTATION_RATIO_MIN),
    ):
        values = np.array([getattr(each, name) for each in found])
        for verdict, (color, marker) in _VERDICTS.items():
            chosen = verdicts == verdict
            if chosen.any():
                ax.plot(widths[chosen], values[chosen], marker, color=color, markerfacecolor="none", label=verdict)
        ax.axhline(limit, color="0.4", linestyle="--", linewidth=0.8)
        ax.set(xscale="log", xlabel="width of the network")
        number_values(ax.xaxis, sorted(set(widths.tolist())))
    left.set(ylabel="spread of ln ρ", ylim=(0, None))
    right.set(ylabel="rotation over that of equilibrium", ylim=(0, 1.05))
    left.legend(loc="upper left")
    return figure


def measure_minima(runs: Runs, folder: Path) -> Trajectories:
    """Successive minima of runs of one setting.

    Parameters
    ----------
    runs : with the group "all", that differ in their seeds alone.
    folder : of what is kept, to be used again.

    Returns
    -------
    the same group, of the one dataset that `empirical.successive_minima` gives.
    """
    first = runs["all"][0]
    own = folder / "minima" / f"{first.identity[:12]}-{first.steps}"
    seeds = [run.seed for run in runs["all"]]
    return {"all": [successive_minima(first, periods=_MINIMA, seeds=seeds, points=3, out=own, progress=False)]}


def draw_minima(runs: Trajectories) -> Figure:
    """Angles between minima by the number of periods between them, and test errors of one and of the first n together.

    Parameters
    ----------
    runs : of `measure_minima`.

    Returns
    -------
    matplotlib figure.
    """
    (found,) = runs["all"]
    figure, (left, right) = new_figure(2.5, 1, 2, width=TWO_COLUMNS)
    count = found.sizes["minimum"]
    apart = np.arange(1, count)
    degrees = np.rad2deg(found.angle.values)
    pairs = [np.diagonal(degrees, n, axis1=1, axis2=2).ravel() for n in apart]
    for n, values in zip(apart, pairs, strict=True):
        left.plot(np.full(values.size, n), values, "o", color="0.6", markerfacecolor="none", markersize=3)
    left.plot(apart, [values.mean() for values in pairs], "-s", color=MEASURED, label="mean")
    left.plot([], [], "o", color="0.6", markerfacecolor="none", markersize=3, label="two minima of one run")
    left.set(xlabel="periods between the minima", ylabel="angle (degrees)", ylim=(0, 95), xticks=apart)
    left.legend(loc="lower right")
    numbers = np.arange(1, count + 1)
    for name, label, style, color, shift in (
        ("test_error", "the minimum alone", "--o", PREDICTED, -0.05),
        ("ensemble_test_error", "with all before it", "-s", MEASURED, 0.05),
    ):
        percent = 100 * found[name].values
        error = percent.std(axis=0, ddof=1) / np.sqrt(len(percent)) if len(percent) > 1 else None
        right.errorbar(numbers + shift, percent.mean(axis=0), error, fmt=style, color=color, capsize=2, label=label)
    right.set(xlabel="number of the minimum", ylabel="test error (%)", xticks=numbers)
    # room for the legend over the curves
    right.set_ylim(0, 1.35 * right.get_ylim()[1])
    right.legend(loc="upper right")
    return figure
