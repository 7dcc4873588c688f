"""Pictures of trajectories; each function draws on given axes and returns them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

import theory
from simulate.plots.style import (
    AXIS_LABELS,
    MEASURED,
    ONSET,
    PREDICTED,
    draw_curve,
    label_log_ticks,
    legend_above,
    mark_onsets,
    new_axes,
)
from simulate.trajectories.contract import VARIABLES, check_trajectory, mean_intrinsic_lr, setting_variable
from simulate.trajectories.periods import MeasuredPeriods
from theory.arguments import FloatArray, check_integer
from theory.optimizers import parse_if_known

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap


def plot_trajectory(
    trajectory: xr.Dataset,
    axes: Axes | Sequence[Axes] | None = None,
    *,
    variables: Sequence[str] = ("loss", "norm", "effective_lr"),
    simulated: xr.Dataset | None = None,
    periods: MeasuredPeriods | None = None,
    levels: dict[str, float] | None = None,
    most_points: int = 4000,
) -> Sequence[Axes]:
    """Draw variables of one run over the steps, on logarithmic axes, one below the other.

    Parameters
    ----------
    trajectory : one run.
    axes : one for each variable; new ones by default.
    variables : names; those that the trajectory lacks (or has not at every step) are left out.
    simulated : a second trajectory, drawn over the first, dashed.
    periods : onsets to be marked.
    levels : predicted constant values, drawn as horizontal lines, by variable.
    most_points : longer curves are drawn as the band between their extremes in as many bins.

    Returns
    -------
    the axes.

    Raises
    ------
    TypeError, ValueError : no single trajectory, a wrong number of axes, or no variable to draw.

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
    wanted = [variables] if isinstance(variables, str) else list(variables)
    shown = [name for name in wanted if name in trajectory and trajectory[name].dims == ("step",)]
    if not shown:
        raise ValueError(f"variables must name at least one that the trajectory has at every step, got {wanted}")
    drawn_on = new_axes(len(shown)) if axes is None else list(np.ravel(np.asarray(axes, dtype=object)))
    if len(drawn_on) != len(shown):
        raise ValueError(f"axes must be {len(shown)}, one for each of {shown}; got {len(drawn_on)}")
    told = "measured" if simulated is not None or trajectory.attrs.get("source") == "training" else "simulated"
    for ax, name in zip(drawn_on, shown, strict=True):
        compared = simulated is not None and name in simulated
        # a curve that is compared is broad and pale, so that it shows behind the other one
        broad = {"linewidth": 3.0, "alpha": 0.45} if compared else {}
        draw_curve(ax, trajectory, name, most_points, color=MEASURED, label=told, **broad)
        if simulated is not None and compared:
            draw_curve(ax, simulated, name, most_points, color=PREDICTED, label="simulated", linestyle="--")
        if levels and name in levels:
            ax.axhline(levels[name], color="black", linewidth=1.4, linestyle=":", label="predicted equilibrium")
        if periods is not None and periods.onsets.size:
            mark_onsets([ax], periods.onsets)
        if np.any(trajectory[name].values > 0):
            ax.set_yscale("log")
            label_log_ticks(ax)
        ax.set_ylabel(AXIS_LABELS.get(name, VARIABLES.get(name, ("", name))[1]))
        ax.margins(x=0)
    drawn_on[-1].set_xlabel("step")
    if simulated is not None or levels or periods is not None:
        legend_above(*drawn_on)
    return drawn_on


def plot_phase(trajectory: xr.Dataset, ax: Axes | None = None, *, periods: MeasuredPeriods | None = None) -> Axes:
    """Draw the phase picture of one run: effective learning rate against gradient norm, both logarithmic.

    The line η̃g̃ = √(1-(1-ηλ)²) is the balance of growth and decay: below it the norm falls, above it the norm rises.
    It is drawn of plain SGD at one η and λ alone: else steps of equal η̃ and g̃ may make the norm fall or rise.

    Parameters
    ----------
    trajectory : one run.
    ax : axes to draw on; new ones by default.
    periods : onsets to be marked.

    Returns
    -------
    the axes.

    Raises
    ------
    TypeError, ValueError : no single trajectory with `grad_norm` and `effective_lr`.

    Source: arXiv 2106.15739, Figure 3 (phase picture).

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
    good = np.isfinite(grad_norm) & np.isfinite(effective_lr) & (grad_norm > 0)
    points = ax.scatter(
        grad_norm[good],
        effective_lr[good],
        c=trajectory.step.values[good],
        s=7,
        cmap=_steps_in_colour(),
        alpha=0.7,
        linewidths=0,
        rasterized=True,
    )
    ax.figure.colorbar(points, ax=ax, label="step")
    if good.any():
        ax.set_xscale("log")
        ax.set_yscale("log")
    if good.any() and _balances_on_a_line(trajectory):
        ends = np.array([grad_norm[good].min(), grad_norm[good].max()])
        window = ax.get_ylim()
        ax.plot(
            ends,
            theory.equilibrium_effective_lr(1.0, mean_intrinsic_lr(trajectory), ends),
            color=PREDICTED,
            linestyle=":",
            label="balance of growth and decay",
        )
        ax.set_ylim(window)
    if periods is not None and periods.onsets.size:
        at = trajectory.sel(step=periods.onsets)
        ax.scatter(
            at.grad_norm,
            at.effective_lr,
            marker="v",
            s=26,
            facecolor="none",
            edgecolor=ONSET,
            label="onset of a period",
        )
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=8, frameon=False)
    ax.set_xlabel("gradient norm g̃ on the unit sphere")
    ax.set_ylabel("effective lr η̃ = η/ρ²")
    return ax


def _balances_on_a_line(trajectory: xr.Dataset) -> bool:
    """Whether the law of its norm is that of plain SGD at one ηλ; no rule is known of what is held fixed."""
    # a coordinate where it is swept
    told = trajectory.coords.get("optimizer", trajectory.attrs.get("optimizer", "SGD()"))
    is_plain = parse_if_known(str(np.asarray(told))) == theory.SGD()
    is_constant = all(np.unique(setting_variable(trajectory, name).values).size == 1 for name in ("lr", "wd"))
    return is_plain and is_constant and 0 < mean_intrinsic_lr(trajectory) < 1


def _steps_in_colour() -> Colormap:
    """Viridis without its palest end, which is hardly seen on white."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["viridis"](np.linspace(0.0, 0.85, 256)))


def plot_periods(periods: MeasuredPeriods, ax: Axes | None = None, *, predicted: MeasuredPeriods | None = None) -> Axes:
    """Draw the histogram of the lengths of periods, with their mean and its standard error.

    Parameters
    ----------
    periods : at least one period.
    ax : axes to draw on; new ones by default.
    predicted : periods of the same `rise` to compare with, drawn as an outline.

    Returns
    -------
    the axes, in steps; a second scale at the top gives T·ηλ of `periods`, where ηλ > 0.

    Raises
    ------
    TypeError, ValueError : no `MeasuredPeriods`, none in them, or found with another `rise`.

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

    shown = {"periods": periods} | ({} if predicted is None else {"predicted": predicted})
    for name, given in shown.items():
        if not isinstance(given, MeasuredPeriods):
            raise TypeError(f"{name} must be Periods that find_periods returned, got {type(given).__name__}")
        if not given.count:
            raise ValueError(f"{name} must hold at least one period, got none at rise={given.rise:g}")
        if given.rise != periods.rise:
            raise ValueError(f"{name} must be found with the rise {periods.rise:g} of periods, got {given.rise:g}")
    if ax is None:
        (ax,) = new_axes(1, width=6.0, height=4.0, layout="constrained")
    edges = _whole_bins(np.concatenate([given.lengths for given in shown.values()]))
    colours = {"periods": MEASURED, "predicted": PREDICTED}
    words = {"periods": "measured" if predicted is not None else "", "predicted": "predicted"}
    for name, given in shown.items():
        outline = name == "predicted"
        style: dict[str, Any] = {"histtype": "step", "linewidth": 1.6} if outline else {"alpha": 0.45}
        # shares, so that numbers of periods need not be equal
        ax.hist(
            given.lengths, edges.tolist(), weights=np.full(given.count, 1 / given.count), color=colours[name], **style
        )
        spread = f" ± {given.stderr:.{_decimals(given.stderr)}f}" if given.count > 1 else ""
        mean = f"{given.mean:.{_decimals(given.stderr)}f}"
        counted = f"{given.count} period{'s' if given.count > 1 else ''}"
        label = f"{words[name]} mean {mean}{spread} steps ({counted})".strip()
        ax.axvline(given.mean, color=colours[name], linestyle="--" if outline else "-", linewidth=1.4, label=label)
        if given.count > 1:
            ax.axvspan(
                given.mean - given.stderr, given.mean + given.stderr, color=colours[name], alpha=0.25, linewidth=0
            )
    intrinsic_lr = periods.intrinsic_lr
    if intrinsic_lr > 0:
        top = ax.secondary_xaxis(
            "top",
            functions=(lambda steps: np.multiply(steps, intrinsic_lr), lambda value: np.divide(value, intrinsic_lr)),
        )
        top.set_xlabel(f"T·ηλ, ηλ = {intrinsic_lr:.3g}")
    ax.set_xlabel(f"period T in steps, rises of ln ρ ≥ {periods.rise:g}")
    ax.set_ylabel("share of periods")
    ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    # room for the legend above the bars
    ax.set_ylim(0, ax.get_ylim()[1] * (1 + 0.1 * (1 + len(shown))))
    ax.legend(loc="upper right", fontsize=8, frameon=False)
    return ax


def _decimals(error: float) -> int:
    """Digits after the point that show two figures of an error."""
    return int(np.clip(1 - np.floor(np.log10(error)), 0, 6)) if error > 0 else 0


def _whole_bins(lengths: FloatArray) -> FloatArray:
    """Edges of bins that hold equally many of the lengths that the recorded rows allow."""
    values = np.unique(lengths)
    unit = float(np.gcd.reduce(np.diff(values).astype(np.int64))) if values.size > 1 else 1.0
    width = np.diff(np.histogram_bin_edges(lengths, "auto"))[0]
    width = max(1.0, np.round(width / unit)) * unit
    return np.asarray(np.arange(values[0] - unit / 2, values[-1] + width, width))
