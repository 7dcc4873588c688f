"""Figures of single runs: losses, norm and effective learning rate over the steps, and the phase picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

import simulate
import theory
from empirical.reports.comparison import last_periods, periods_to_draw
from empirical.reports.page import new_figure
from empirical.studies.paper_figures.paper_figure import ONE_COLUMN, TWO_COLUMNS, add_figure_legend
from empirical.studies.study import Trajectories
from simulate.plots.style import PREDICTED_COLOR, mark_onsets
from simulate.trajectories.contract import mean_intrinsic_lr, setting_variable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PERIODS_SHOWN, _PHASE_PERIODS = 5, 8
# steps drawn, in units of 1/ηλ of the slowest run
_RELAXATIONS_SHOWN = 3.0
# smoothing window as a share of a period; number of arrows on the loop; their length as a share of the loop
_SMOOTHED, _ARROWS, _ARROW_LENGTH = 0.12, 5, 0.08


def draw_training_curves(runs: Trajectories) -> Figure:
    """Draw losses and errors on training and test set over the last periods of the first run.

    Parameters
    ----------
    runs : group "all" with several evaluations per period.

    Returns
    -------
    matplotlib figure.
    """
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
    add_figure_legend(figure, [loss, error], 2)
    return figure


def draw_norm(runs: Trajectories) -> Figure:
    """Draw norm, effective learning rate and rotation over the last steps of the first run of each group.

    Parameters
    ----------
    runs : groups with different ηλ.

    Returns
    -------
    matplotlib figure.
    """
    first_runs = sorted((group[0] for group in runs.values()), key=mean_intrinsic_lr)
    window = round(_RELAXATIONS_SHOWN / mean_intrinsic_lr(first_runs[0]))
    figure, axes = new_figure(3.8, 3, len(first_runs), width=TWO_COLUMNS, sharex="col", sharey="row", squeeze=False)
    for column, run in zip(axes.T, first_runs, strict=True):
        part = run.isel(step=slice(-window, None))
        simulate.plots.plot_trajectory(part, list(column), variables=["norm", "effective_lr", "rotation"])
        lr, wd = (float(setting_variable(run, name)) for name in ("lr", "wd"))
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
    add_figure_legend(figure, [axes[2, 0]], 3)
    return figure


def draw_phase_picture(runs: Trajectories) -> Figure:
    """Draw the phase picture of the first run, and one of its periods with arrows in the direction of training.

    Parameters
    ----------
    runs : group "all" of periodic runs.

    Returns
    -------
    matplotlib figure.
    """
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
    add_figure_legend(figure, [ax], 2)
    return figure


def draw_full_batch(runs: Trajectories) -> Figure:
    """Draw norm and loss of the first run over its steps, with the onsets of its periods.

    Parameters
    ----------
    runs : group "all" trained with full batches, so that the loss of a step is that of the training set.

    Returns
    -------
    matplotlib figure.
    """
    run = runs["all"][0]
    figure, axes = new_figure(2.8, 2, width=ONE_COLUMN, sharex=True)
    simulate.plots.plot_trajectory(run, list(axes), variables=["norm", "loss"])
    axes[1].set_ylabel("training loss (nats)")
    mark_onsets(axes, periods_to_draw(run).onsets)
    axes[0].lines[0].set_label("")
    add_figure_legend(figure, [axes[0]], 1)
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
