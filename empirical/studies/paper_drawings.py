"""Draw each figure of the paper from the trajectories of its runs, and the style of all of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

import simulate
import theory
from empirical.config import RunConfig
from empirical.reports.comparison import is_same_network, last_periods, periods_to_draw, stored_config
from empirical.reports.page import new_figure
from empirical.studies.statistics import classify_or_none
from empirical.studies.study import Trajectories
from simulate.period_model.model import simulated_periods
from simulate.plots.style import MEASURED_COLOR, PREDICTED_COLOR, label_log_ticks, mark_onsets, number_values
from simulate.trajectories.setting import Setting
from simulate.trajectories.verdicts import (
    EQUILIBRIUM,
    LOG_NORM_SD_MAX,
    NO_CLEAR_PERIOD,
    PERIODIC,
    ROTATION_RATIO_MIN,
    UNDETERMINED,
)
from theory.arguments import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ONE_COLUMN, TWO_COLUMNS = 3.4, 7.0  # inches
# Journals need embedded fonts and text that stays text.
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.0,
    "lines.markersize": 4,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    # the same drawing gives the same file
    "svg.hashsalt": "bnwd",
}
_PERIODS_SHOWN, _PHASE_PERIODS = 5, 8
# steps drawn, in units of 1/ηλ of the slowest run
_RELAXATIONS_SHOWN = 3.0
# smoothing window as a share of a period; number of arrows on the loop; their length as a share of the loop
_SMOOTHED, _ARROWS, _ARROW_LENGTH = 0.12, 5, 0.08
# periods that the reduced model simulates at each ηλ
_SIMULATED = 1000
_VERDICTS = {
    EQUILIBRIUM: (MEASURED_COLOR, "o"),
    NO_CLEAR_PERIOD: ("0.45", "x"),
    PERIODIC: (PREDICTED_COLOR, "^"),
    UNDETERMINED: ("0.45", "s"),
}
# marker, face, edge and horizontal shift of each learning rate, so that no marker hides another
_LR_MARKERS = (("o", MEASURED_COLOR, MEASURED_COLOR, 0.985), ("s", "white", "black", 1.015))


def draw_training_curves(runs: Trajectories) -> Figure:
    """Draw losses and errors on training and test set over the last periods of the first run."""
    part, periods = last_periods(runs["all"][0], _PERIODS_SHOWN)
    figure, (loss, error) = new_figure(3.0, 2, width=ONE_COLUMN, sharex=True)
    simulate.plots.plot_trajectory(part, [loss], variables=["loss"])
    loss.lines[0].set(alpha=0.35, linewidth=0.6, label="mini-batches")
    loss.plot(part.eval_step, part.test_loss, "--o", color=PREDICTED_COLOR, markersize=2)
    loss.plot(part.eval_step, part.train_loss, color="black", label="training set")
    loss.set(ylabel="loss (nats)", xlabel="")
    error.plot(part.eval_step, 100 * part.test_error, "--o", color=PREDICTED_COLOR, markersize=2, label="test set")
    error.plot(part.eval_step, 100 * part.train_error, color="black", label="training set")
    # shows errors of 0, of one sample in a thousand, and of all samples
    error.set_yscale("symlog", linthresh=1.0, linscale=0.6)
    error.set_ylim(0, 100)
    error.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    error.set(ylabel="error (%)", xlabel="step")
    mark_onsets([loss, error], periods.onsets)
    _add_legend(figure, [loss, error], 2)
    return figure


def draw_norm(runs: Trajectories) -> Figure:
    """Draw norm, effective learning rate and rotation over the last steps of the first run of each group."""
    first_runs = sorted((group[0] for group in runs.values()), key=_intrinsic_lr)
    window = round(_RELAXATIONS_SHOWN / _intrinsic_lr(first_runs[0]))
    figure, axes = new_figure(3.8, 3, len(first_runs), width=TWO_COLUMNS, sharex="col", sharey="row", squeeze=False)
    for column, run in zip(axes.T, first_runs, strict=True):
        part = run.isel(step=slice(-window, None))
        simulate.plots.plot_trajectory(part, list(column), variables=["norm", "effective_lr", "rotation"])
        lr, wd = Setting.of(run).constants()
        level = theory.equilibrium_rotation(lr, wd)
        column[2].axhline(level, color=PREDICTED_COLOR, linestyle="--", linewidth=1.2, label="equilibrium")
        # include periods of the transient
        onsets = periods_to_draw(run, discard=0).onsets
        mark_onsets(column, onsets[onsets >= part.step.values[0]])
        column[0].set_title(f"ηλ = {lr * wd:g}")
    for ax in axes.flat:
        if not ax.get_subplotspec().is_last_row():
            ax.set_xlabel("")
        ax.set_ylabel("")
    for ax, label in zip(axes[:, 0], ("norm ρ", "effective lr η/ρ²", "rotation\n(radians per step)"), strict=True):
        ax.set_ylabel(label)
    _add_legend(figure, [axes[2, 0]], 3)
    return figure


def draw_phase_picture(runs: Trajectories) -> Figure:
    """Draw the phase picture of the first run, and one of its periods with arrows in the direction of training."""
    run = runs["all"][0]
    part, periods = last_periods(run, _PHASE_PERIODS)
    figure, ax = new_figure(2.9, width=ONE_COLUMN)
    simulate.plots.plot_phase(part, ax)
    ax.collections[0].set(alpha=0.5, sizes=[3])
    if periods.count:
        _draw_loop(ax, part, *_median_period(periods.onsets))
    ax.set_xlabel("gradient norm g̃")
    if (axes_legend := ax.get_legend()) is not None:
        axes_legend.remove()
    _add_legend(figure, [ax], 2)
    return figure


def draw_full_batch(runs: Trajectories) -> Figure:
    """Draw norm and loss of the first run over its steps, with the onsets of its periods."""
    run = runs["all"][0]
    figure, axes = new_figure(2.8, 2, width=ONE_COLUMN, sharex=True)
    simulate.plots.plot_trajectory(run, list(axes), variables=["norm", "loss"])
    axes[1].set_ylabel("training loss (nats)")
    mark_onsets(axes, periods_to_draw(run).onsets)
    axes[0].lines[0].set_label("")
    _add_legend(figure, [axes[0]], 1)
    return figure


def _median_period(onsets: np.ndarray) -> tuple[int, int]:
    """First and last step of the period of median length."""
    lengths = np.diff(onsets)
    place = int(np.argsort(lengths, kind="stable")[lengths.size // 2])
    return int(onsets[place]), int(onsets[place + 1])


def _draw_loop(ax: Axes, run: xr.Dataset, begin: int, end: int) -> None:
    """Draw one period as a line of averaged gradient norms, with arrows at equal distances along it."""
    width = max(1, round(_SMOOTHED * (end - begin)))
    logs = run[["grad_norm", "effective_lr"]].map(np.log).rolling(step=width, center=True, min_periods=1).mean()
    period = logs.sel(step=slice(begin, end))
    points = np.stack([period.grad_norm.values, period.effective_lr.values])
    x, y = np.exp(points)
    ax.plot(x, y, color="black", linewidth=1.3, label="one period")
    ax.plot(x[0], y[0], "v", color="white", markeredgecolor="black", markersize=6, label="its onset")
    steps = np.hypot(*(np.diff(points) / np.ptp(points, axis=1, keepdims=True)))
    along = np.concatenate([[0], np.cumsum(steps)]) / steps.sum()
    for share in (np.arange(_ARROWS) + 0.5) / _ARROWS:
        # noise would turn arrows between neighbouring points; the line itself is the shaft
        ends = np.searchsorted(along, [share - _ARROW_LENGTH / 2, share + _ARROW_LENGTH / 2])
        tail, head = np.exp(points[:, np.minimum(ends, x.size - 1)]).T
        style = {"arrowstyle": "-|>", "color": "black", "shrinkA": 0, "shrinkB": 0, "mutation_scale": 12, "lw": 0}
        ax.annotate("", tuple(head), tuple(tail), arrowprops=style)


def measured_periods(runs: Sequence[xr.Dataset]) -> tuple[float, float]:
    """Mean period over seeds and its standard error, in steps.

    Seeds without periods are left out. The mean is NaN if no seed is left, and the error NaN if one is left.
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
    """
    measured = {name: measured_periods(group) for name, group in runs.items()}
    if np.isnan(list(measured.values())).all():
        raise ValueError("no run has a period")
    figure, (left, right) = new_figure(2.7, 1, 2, width=TWO_COLUMNS)
    settings = {name: Setting.of(group[0]) for name, group in runs.items()}
    lrs = sorted({float(setting.lr) for setting in settings.values()}, reverse=True)
    for (marker, face, edge, shift), lr in zip(_LR_MARKERS, lrs, strict=False):
        groups = {setting.intrinsic_lr: name for name, setting in settings.items() if setting.lr == lr}
        x = np.array(sorted(groups))
        means, errors = np.array([measured[groups[intrinsic_lr]] for intrinsic_lr in x]).T
        for ax, unit in ((left, 1.0), (right, x)):
            style = {"fmt": marker, "color": edge, "markerfacecolor": face, "capsize": 2, "zorder": 3}
            ax.errorbar(x * shift, means * unit, errors * unit, label=f"training, η = {lr:g}", **style)
    intrinsic_lrs = [setting.intrinsic_lr for setting in settings.values()]
    _draw_predictions(left, right, np.geomspace(min(intrinsic_lrs), max(intrinsic_lrs), 15), runs)
    left.set(xscale="log", yscale="log", ylabel="period T (steps)")
    label_log_ticks(left.yaxis)
    right.set(xscale="log", ylabel="T·ηλ", ylim=(0, 1.15 * right.get_ylim()[1]))
    for ax in (left, right):
        ax.set_xlabel("ηλ")
        number_values(ax.xaxis, sorted(set(np.round(intrinsic_lrs, 9))))
    left.legend(loc="lower left")
    return figure


def _draw_predictions(left: Axes, right: Axes, x: FloatArray, runs: Trajectories) -> None:
    middle = float(np.sqrt(x[0] * x[-1]))
    # 1/ηλ through the measurement in the middle
    near = min(runs.values(), key=lambda group: abs(np.log(_intrinsic_lr(group[0]) / middle)))
    product = measured_periods(near)[0] * _intrinsic_lr(near[0])
    curves = [(f"{product:.2g}/ηλ", ":", "0.4", product / x)] if np.isfinite(product) else []
    model = simulate.PeriodModel.reference()
    configs = (stored_config(text) for text in (near[0].attrs["config"], model.calibration_runs[0].run))
    if is_same_network(*configs):
        curves += [
            (
                "reduced model",
                "-",
                PREDICTED_COLOR,
                np.array([simulated_periods(model, 1.0, intrinsic_lr, periods=_SIMULATED).mean for intrinsic_lr in x]),
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


def draw_minima(runs: Trajectories) -> Figure:
    """Draw angles between minima over the periods between them, and test errors of single minima and ensembles."""
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


def _intrinsic_lr(run: xr.Dataset) -> float:
    return Setting.of(run).intrinsic_lr


def _add_legend(figure: Figure, axes: Iterable[Axes], columns: int) -> None:
    """Add one legend above all axes, with each label once."""
    entries = [ax.get_legend_handles_labels() for ax in axes]
    by_label = {label: handle for handles, labels in entries for handle, label in zip(handles, labels, strict=True)}
    figure.legend(list(by_label.values()), list(by_label), loc="outside upper center", ncols=columns)
