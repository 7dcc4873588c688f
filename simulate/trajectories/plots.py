"""Pictures of trajectories; each function draws on given axes and returns them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

import theory
from simulate.trajectories.contract import VARIABLES, check_trajectory, intrinsic_lr
from simulate.trajectories.periods import Periods
from theory.arguments import whole_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by colour-blind readers too.
MEASURED, PREDICTED, ONSET = "#0072B2", "#D55E00", "#009E73"
_SHORT = {
    "norm": "norm ρ",
    "effective_lr": "effective lr η̃ = η/ρ²",
    "loss": "mini-batch loss",
    "grad_norm": "gradient norm g̃",
}


def plot_trajectory(
    trajectory: xr.Dataset,
    axes: Axes | Sequence[Axes] | None = None,
    *,
    variables: Sequence[str] = ("loss", "norm", "effective_lr"),
    simulated: xr.Dataset | None = None,
    periods: Periods | None = None,
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
    most_points = whole_number("most_points", most_points, at_least=2)
    wanted = [variables] if isinstance(variables, str) else list(variables)
    shown = [name for name in wanted if name in trajectory and trajectory[name].dims == ("step",)]
    if not shown:
        raise ValueError(f"variables must name at least one that the trajectory has at every step, got {wanted}")
    drawn_on = _new_axes(len(shown)) if axes is None else list(np.ravel(np.asarray(axes, dtype=object)))
    if len(drawn_on) != len(shown):
        raise ValueError(f"axes must be {len(shown)}, one for each of {shown}; got {len(drawn_on)}")
    for ax, name in zip(drawn_on, shown, strict=True):
        compared = simulated is not None and name in simulated
        # a curve that is compared is broad and pale, so that it shows behind the other one
        broad = {"linewidth": 3.0, "alpha": 0.45} if compared else {}
        _curve(ax, trajectory, name, most_points, color=MEASURED, label="measured", **broad)
        if simulated is not None and compared:
            _curve(ax, simulated, name, most_points, color=PREDICTED, label="simulated", linestyle="--")
        if levels and name in levels:
            ax.axhline(levels[name], color=PREDICTED, linewidth=1.2, linestyle=":", label="predicted equilibrium")
        if periods is not None and periods.onsets.size:
            for onset in periods.onsets:
                ax.axvline(onset, color=ONSET, linewidth=0.5, alpha=0.35, zorder=0)
        if np.any(trajectory[name].values > 0):
            ax.set_yscale("log")
            _label_ticks(ax)
        ax.set_ylabel(_SHORT.get(name, VARIABLES.get(name, ("", name))[1]))
        if ax.get_legend_handles_labels()[0] and (simulated is not None or levels):
            ax.legend(loc="upper right", fontsize=8, frameon=False)
        ax.margins(x=0)
    drawn_on[-1].set_xlabel("step")
    return drawn_on


def plot_phase(trajectory: xr.Dataset, ax: Axes | None = None, *, periods: Periods | None = None) -> Axes:
    """Draw the phase picture of one run: effective learning rate against gradient norm, both logarithmic.

    The line η̃g̃ = √(2ηλ) is the balance of growth and decay: below it the norm falls, above it the norm rises.

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
        (ax,) = _new_axes(1, width=6.0, height=4.5)
    grad_norm, effective_lr = trajectory.grad_norm.values, trajectory.effective_lr.values
    good = np.isfinite(grad_norm) & np.isfinite(effective_lr) & (grad_norm > 0)
    points = ax.scatter(
        grad_norm[good],
        effective_lr[good],
        c=trajectory.step.values[good],
        s=7,
        cmap="viridis",
        alpha=0.7,
        linewidths=0,
        rasterized=True,
    )
    ax.figure.colorbar(points, ax=ax, label="step")
    if good.any():
        ax.set_xscale("log")
        ax.set_yscale("log")
    k = intrinsic_lr(trajectory)
    if good.any() and 0 < k < 1:
        ends = np.array([grad_norm[good].min(), grad_norm[good].max()])
        window = ax.get_ylim()
        ax.plot(
            ends,
            theory.equilibrium_effective_lr(1.0, k, ends),
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


def _new_axes(count: int, width: float = 9.0, height: float = 2.2) -> Sequence[Axes]:
    # pyplot takes half a second to import: only those who draw pay for it
    from matplotlib import pyplot as plt

    axes = plt.subplots(count, 1, sharex=True, figsize=(width, height * count), squeeze=False)[1]
    return list(axes[:, 0])


def _label_ticks(ax: Axes) -> None:
    from matplotlib.ticker import LogFormatter

    # the norm often spans less than a decade: number the ticks between the powers of ten too
    for set_formatter in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
        set_formatter(LogFormatter(minor_thresholds=(1, 0.4)))


def _curve(ax: Axes, trajectory: xr.Dataset, name: str, most_points: int, **style: Any) -> None:
    style = {"linewidth": 0.9, **style}
    step, values = trajectory.step.values, trajectory[name].values
    if step.size <= most_points:
        ax.plot(step, values, **style)
        return
    bins = most_points // 2
    size = -(-step.size // bins)
    first = step[::size]
    padded = np.full(first.size * size, np.nan)
    padded[: step.size] = values
    rows = padded.reshape(first.size, size)
    known = np.isfinite(rows).any(axis=1)
    rows, at = rows[known], first[known]
    both = np.stack([np.nanmin(rows, axis=1), np.nanmax(rows, axis=1)], axis=1).ravel()
    ax.plot(np.repeat(at, 2), both, **style)
