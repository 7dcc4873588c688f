"""Figures of trajectories. Each function draws on axes and returns them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

import theory
from simulate.plots.style import (
    AXIS_LABELS,
    MEASURED_COLOR,
    ONSET_COLOR,
    PREDICTED_COLOR,
    axes_for,
    draw_curve,
    draw_legend_above,
    label_log_ticks,
    main_variables,
    mark_onsets,
    new_axes,
)
from simulate.trajectories.contract import FREE, VARIABLES, check_trajectory
from simulate.trajectories.periods import MeasuredPeriods
from simulate.trajectories.setting import Setting
from theory.arguments import FloatArray, check_integer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap


def plot_trajectory(
    trajectory: xr.Dataset,
    axes: Axes | Sequence[Axes] | None = None,
    *,
    variables: Sequence[str] | None = None,
    simulated: xr.Dataset | None = None,
    periods: MeasuredPeriods | None = None,
    levels: Mapping[str, float | xr.DataArray] | None = None,
    most_points: int = 4000,
) -> Sequence[Axes]:
    """Draw variables of one run over the steps, on logarithmic axes one below the other.

    Parameters
    ----------
    trajectory : one run.
    axes : one for each variable; new ones by default.
    variables : names of per-step variables; names that the trajectory lacks are left out. By default loss, norm and
        effective learning rate: `angular_lr` if the trajectory has it, otherwise `effective_lr`.
    simulated : second trajectory, drawn as a dashed curve over the first.
    periods : periods whose onsets are marked.
    levels : predicted equilibrium values by variable: a number, or values along `step`, as of the moving equilibrium
        ρ*(t) under a schedule.
    most_points : a curve with more rows is drawn as the range of its values in bins.

    Returns
    -------
    list of Axes

    Raises
    ------
    TypeError, ValueError : `trajectory` is no single run, the number of axes is wrong, or no variable can be drawn.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("Agg")
    >>> from simulate.maps.norm_map import norm_map
    >>> len(plot_trajectory(norm_map(0.1, 0.01, 2.0, norm=1.0, steps=100)))
    2
    """
    check_trajectory(trajectory, single=True)
    if simulated is not None:
        check_trajectory(simulated, single=True)
    most_points = check_integer("most_points", most_points, at_least=2)
    if variables is None:
        variables = main_variables(trajectory)
    requested = [variables] if isinstance(variables, str) else list(variables)
    names = [name for name in requested if name in trajectory and trajectory[name].dims == ("step",)]
    if not names:
        raise ValueError(f"variables must name at least one that the trajectory has at every step, got {requested}")
    all_axes = axes_for(names, axes)
    label = "measured" if simulated is not None or trajectory.attrs.get("source") == "training" else "simulated"
    for ax, name in zip(all_axes, names, strict=True):
        compared = simulated is not None and name in simulated
        # a broad, pale curve stays visible behind the simulated one
        broad = {"linewidth": 3.0, "alpha": 0.45} if compared else {}
        draw_curve(ax, trajectory, name, most_points, color=MEASURED_COLOR, label=label, **broad)
        if simulated is not None and compared:
            draw_curve(ax, simulated, name, most_points, color=PREDICTED_COLOR, label="simulated", linestyle="--")
        if levels and name in levels:
            _draw_level(ax, levels[name], trajectory.step)
        if periods is not None and periods.onsets.size:
            mark_onsets([ax], periods.onsets)
        if np.any(trajectory[name].values > 0):
            ax.set_yscale("log")
            label_log_ticks(ax.yaxis)
        ax.set_ylabel(AXIS_LABELS.get(name, VARIABLES.get(name, ("", name))[1]))
        ax.margins(x=0)
    all_axes[-1].set_xlabel("step")
    if simulated is not None or levels or periods is not None:
        draw_legend_above(*all_axes)
    return all_axes


def _draw_level(ax: Axes, level: float | xr.DataArray, step: xr.DataArray) -> None:
    """Draw a predicted value at these steps."""
    style: dict[str, Any] = {"color": "black", "linewidth": 1.4, "linestyle": ":", "label": "predicted equilibrium"}
    if isinstance(level, xr.DataArray) and level.dims:
        ax.plot(step, level.reindex_like(step), **style)
    else:
        ax.axhline(float(level), **style)


def plot_phase(trajectory: xr.Dataset, ax: Axes | None = None, *, periods: MeasuredPeriods | None = None) -> Axes:
    """Draw the phase portrait of one run: effective learning rate against gradient norm, both logarithmic.

    On the line η̃g̃ = √(1-(1-ηλ)²) growth balances decay: the norm falls below it and rises above it. The line is drawn
    only for plain SGD with constant η and λ. Other optimizers have no such line.

    Parameters
    ----------
    trajectory : one run.
    ax : axes to draw on; new ones by default.
    periods : periods whose onsets are marked.

    Returns
    -------
    Axes

    Raises
    ------
    TypeError, ValueError : `trajectory` is no single run with `grad_norm` and `effective_lr`.

    Source: arXiv 2106.15739, Figure 3.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("Agg")
    >>> from simulate.maps.norm_map import norm_map
    >>> plot_phase(norm_map(0.1, 0.01, 2.0, norm=1.0, steps=100)).get_xscale()
    'log'
    """
    check_trajectory(trajectory, "grad_norm", "effective_lr", single=True)
    if ax is None:
        (ax,) = new_axes(1, width=6.0, height=4.5)
    grad_norm, effective_lr = trajectory.grad_norm.values, trajectory.effective_lr.values
    shown = trajectory.isel(step=np.isfinite(grad_norm) & np.isfinite(effective_lr) & (grad_norm > 0))
    points = ax.scatter(
        shown.grad_norm,
        shown.effective_lr,
        7,
        shown.step,
        cmap=_step_colormap(),
        alpha=0.7,
        linewidths=0,
        rasterized=True,
    )
    ax.figure.colorbar(points, ax=ax, label="step")
    if shown.sizes["step"]:
        ax.set(xscale="log", yscale="log")
        setting, window = Setting.of(trajectory), ax.get_ylim()
        if _balances_on_a_line(setting):
            ends = np.array([shown.grad_norm.min(), shown.grad_norm.max()])
            balance = theory.equilibrium_effective_lr(1.0, setting.intrinsic_lr, ends)
            ax.plot(ends, balance, ":", color=PREDICTED_COLOR, label="balance of growth and decay")
            ax.set_ylim(window)
    if periods is not None and periods.onsets.size:
        at = trajectory.sel(step=periods.onsets)
        mark: dict[str, Any] = {"marker": "v", "facecolor": "none", "edgecolor": ONSET_COLOR}
        ax.scatter(at.grad_norm, at.effective_lr, 26, label="onset of a period", **mark)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=8, frameon=False)
    ax.set(xlabel="gradient norm g̃ on the unit sphere", ylabel=AXIS_LABELS["effective_lr"])
    return ax


def _balances_on_a_line(setting: Setting) -> bool:
    """Whether growth and decay balance on a line: plain SGD without a constraint, at constant η and λ."""
    is_plain = setting.optimizer == theory.SGD() and setting.constraint == FREE
    is_constant = all(np.unique(values.values).size == 1 for values in (setting.lr, setting.wd))
    return is_plain and is_constant and 0 < setting.intrinsic_lr < 1


def _step_colormap() -> Colormap:
    """Viridis without its palest end, which is hardly visible on white."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["viridis"](np.linspace(0.0, 0.85, 256)))


def plot_periods(periods: MeasuredPeriods, ax: Axes | None = None, *, predicted: MeasuredPeriods | None = None) -> Axes:
    """Draw a histogram of the lengths of periods, with their mean and its standard error.

    Parameters
    ----------
    periods : periods of a run, at least one.
    ax : axes to draw on; new ones by default.
    predicted : periods to compare with, found with the same `rise`; drawn as an outline.

    Returns
    -------
    Axes: in steps; if ηλ > 0, a second scale at the top shows T·ηλ of `periods`.

    Raises
    ------
    TypeError, ValueError : an argument is no `MeasuredPeriods`, has no period, or was found with another `rise`.

    Source: docs/mathematics.md §5.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("Agg")
    >>> from simulate.trajectories.periods import find_periods
    >>> wave = np.exp(np.abs(np.arange(1000) % 100 - 50) / 50)
    >>> run = xr.Dataset({"norm": ("step", wave)}, coords={"step": np.arange(1000)}, attrs={"lr": 0.1, "wd": 0.1})
    >>> plot_periods(find_periods(run, discard=0)).get_ylabel()
    'share of periods'
    """
    from matplotlib.ticker import MaxNLocator

    histograms = {"periods": periods} | ({} if predicted is None else {"predicted": predicted})
    for name, period_set in histograms.items():
        if not isinstance(period_set, MeasuredPeriods):
            raise TypeError(f"{name} must be MeasuredPeriods returned by find_periods, got {type(period_set).__name__}")
        if not period_set.count:
            raise ValueError(f"{name} must hold at least one period, got none at rise={period_set.rise:g}")
        if period_set.rise != periods.rise:
            raise ValueError(f"{name} must have the same rise as periods, {periods.rise:g}, got {period_set.rise:g}")
    if ax is None:
        (ax,) = new_axes(1, width=6.0, height=4.0)
    edges = _whole_bins(np.concatenate([period_set.lengths for period_set in histograms.values()]))
    for name, period_set in histograms.items():
        is_outline, mean, stderr = name == "predicted", period_set.mean, period_set.stderr
        color = PREDICTED_COLOR if is_outline else MEASURED_COLOR
        style: dict[str, Any] = {"histtype": "step", "linewidth": 1.6} if is_outline else {"alpha": 0.45}
        # shares, since the numbers of periods may differ
        shares = np.full(period_set.count, 1 / period_set.count)
        ax.hist(period_set.lengths, edges.tolist(), weights=shares, color=color, **style)
        has_error, decimals = period_set.count > 1, _decimals(stderr)
        spread = f" ± {stderr:.{decimals}f}" if has_error else ""
        word = "predicted " if is_outline else "measured " if predicted is not None else ""
        count = f"{period_set.count} period{'s' if has_error else ''}"
        label = f"{word}mean {mean:.{decimals}f}{spread} steps ({count})"
        ax.axvline(mean, color=color, linestyle="--" if is_outline else "-", linewidth=1.4, label=label)
        if has_error:
            ax.axvspan(mean - stderr, mean + stderr, color=color, alpha=0.25, linewidth=0)
    intrinsic_lr = periods.intrinsic_lr
    if intrinsic_lr > 0:
        scale = (lambda steps: np.multiply(steps, intrinsic_lr), lambda value: np.divide(value, intrinsic_lr))
        top = ax.secondary_xaxis("top", functions=scale)
        top.set_xlabel(f"T·ηλ, ηλ = {intrinsic_lr:.3g}")
    ax.set(xlabel=f"period T in steps, rises of ln ρ ≥ {periods.rise:g}", ylabel="share of periods")
    ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    # space for the legend above the bars
    ax.set_ylim(0, ax.get_ylim()[1] * (1 + 0.1 * (1 + len(histograms))))
    ax.legend(loc="upper right", fontsize=8, frameon=False)
    return ax


def _decimals(error: float) -> int:
    """Number of decimals that shows two significant digits of an error."""
    return int(np.clip(1 - np.floor(np.log10(error)), 0, 6)) if error > 0 else 0


def _whole_bins(lengths: FloatArray) -> FloatArray:
    """Edges of bins that contain equally many possible lengths, given the spacing of the rows."""
    values = np.unique(lengths)
    unit = float(np.gcd.reduce(np.diff(values).astype(np.int64))) if values.size > 1 else 1.0
    width = np.diff(np.histogram_bin_edges(lengths, "auto"))[0]
    width = max(1.0, np.round(width / unit)) * unit
    return np.asarray(np.arange(values[0] - unit / 2, values[-1] + width, width))
