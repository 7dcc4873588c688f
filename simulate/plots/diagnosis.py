"""Figures of diagnosed logs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from simulate.diagnosis.diagnosis import Diagnosis
from simulate.diagnosis.rules import (
    BAD_BATCH,
    CLIPPING,
    DATA_ORDER,
    DATA_SHIFT,
    LARGE_UPDATE,
    LR_STEP,
    NORM_DRIVEN,
    OVERFLOW,
    UNKNOWN,
)
from simulate.diagnosis.trends import LASTING_RISE, OSCILLATION, REPETITION, SLOW_RISE, LossTrend
from simulate.plots.style import AXIS_LABELS, axes_for, draw_curve, draw_legend_above, label_log_ticks, main_variables
from simulate.trajectories.contract import effective_lrs
from simulate.trajectories.setting import Setting
from theory.arguments import check_integer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# color (palette of Okabe and Ito) and marker of each cause
_CAUSES = {
    NORM_DRIVEN: ("#D55E00", "^"),
    BAD_BATCH: ("#56B4E9", "v"),
    LR_STEP: ("#009E73", "s"),
    LARGE_UPDATE: ("#0072B2", ">"),
    CLIPPING: ("#BBBBBB", "h"),
    DATA_SHIFT: ("#F0E442", "D"),
    DATA_ORDER: ("#E69F00", "P"),
    OVERFLOW: ("#000000", "X"),
    UNKNOWN: ("#CC79A7", "o"),
}
# hatches of each kind of trend, which need no color
_TRENDS = {SLOW_RISE: "///", LASTING_RISE: "xxx", OSCILLATION: "|||", REPETITION: "..."}
_BAR_HEIGHT, _BAR_DISTANCE = 0.07, 0.03  # of the bar of a trend, in heights of its axes


def plot_diagnosis(
    diagnosis: Diagnosis, axes: Axes | Sequence[Axes] | None = None, *, most_points: int = 4000
) -> Sequence[Axes]:
    """Draw the log of a diagnosis over the steps, with its spikes marked by cause, and its trends by hatched bars.

    Parameters
    ----------
    diagnosis : result of `simulate.diagnose`.
    axes : axes for the loss, and for norm and effective learning rate if the log has them; new ones by default.
    most_points : as in `plot_trajectory`.

    Returns
    -------
    list of Axes

    Raises
    ------
    TypeError, ValueError : `diagnosis` is no diagnosis, or the number of axes is wrong.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("Agg")
    >>> from simulate.diagnosis.diagnosis import diagnose
    >>> len(plot_diagnosis(diagnose({"loss": np.ones(100)})))
    1
    """
    if not isinstance(diagnosis, Diagnosis):
        raise TypeError(f"diagnosis must be a simulate.Diagnosis, got {type(diagnosis).__name__}")
    most_points = check_integer("most_points", most_points, at_least=2)
    log = log_to_draw(diagnosis)
    names = [str(name) for name in log.data_vars]
    all_axes = axes_for(names, axes)
    next_color = _CAUSES[NORM_DRIVEN][0]
    for ax, name in zip(all_axes, names, strict=True):
        finite = log[[name]].where(np.isfinite(log[name]))
        draw_curve(ax, finite, name, most_points, color="0.35")
        for spike in diagnosis.spikes:
            ax.axvspan(spike.step, spike.last_step, color=_CAUSES[spike.cause][0], alpha=0.25, linewidth=0)
        if not math.isnan(diagnosis.next_step):
            ax.axvline(diagnosis.next_step, color=next_color, linestyle="--", linewidth=1)
        if not np.any(finite[name] <= 0):
            ax.set_yscale("log")
            label_log_ticks(ax.yaxis)
        ax.set_ylabel(AXIS_LABELS[name])
        ax.margins(x=0.01)
    top = all_axes[0]
    # a peak that is not finite is drawn as high as the highest finite loss
    highest = log.loss.values[np.isfinite(log.loss.values)].max(initial=-np.inf)
    style: dict[str, Any] = {"markersize": 7, "markeredgecolor": "black", "markeredgewidth": 0.5}
    for cause, (color, marker) in _CAUSES.items():
        spikes = [spike for spike in diagnosis.spikes if spike.cause == cause]
        if spikes:
            peaks = np.fmin([spike.peak_loss for spike in spikes], highest)
            top.plot([spike.step for spike in spikes], peaks, marker, color=color, label=cause, **style)
    if not math.isnan(diagnosis.next_step):
        top.plot([], [], "--", color=next_color, linewidth=1, label="next expected")
    _draw_trends(top, diagnosis.trends)
    if top.get_legend_handles_labels()[0]:
        draw_legend_above(top)
    all_axes[-1].set_xlabel("step")
    return all_axes


def _draw_trends(ax: Axes, trends: Sequence[LossTrend]) -> None:
    """Draw a bar for each trend below the curve, over its steps."""
    if not trends:
        return
    # lower limit of the axis that leaves place for the bars, on its scale
    share = len(trends) * (_BAR_HEIGHT + _BAR_DISTANCE)
    scale = ax.yaxis.get_transform()
    low, high = scale.transform(np.array(ax.get_ylim()))
    ax.set_ylim(bottom=float(scale.inverted().transform(low - (high - low) * share / (1 - share))))
    for place, trend in enumerate(trends):
        bottom = _BAR_DISTANCE + place * (_BAR_HEIGHT + _BAR_DISTANCE)
        ax.axvspan(
            trend.step,
            trend.last_step,
            ymin=bottom,
            ymax=bottom + _BAR_HEIGHT,
            facecolor="0.92",
            edgecolor="black",
            linewidth=0.8,
            hatch=_TRENDS[trend.kind],
            label=trend.kind,
        )


def log_to_draw(diagnosis: Diagnosis) -> xr.Dataset:
    """Variables that `plot_diagnosis` draws, in the order of its axes from the top."""
    log, recorded = diagnosis.log, Setting.of(diagnosis.log).variables
    if "norm" in log and "effective_lr" not in log and "lr" in recorded:
        log = log.assign(effective_lrs(recorded["lr"], log.norm, str(log.attrs.get("optimizer", ""))))
    return log[[name for name in main_variables(log) if name in log]]
