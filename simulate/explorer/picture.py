"""The picture of one setting: trajectory, equilibria, bounds and jumps, and the numbers beside them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from simulate.explorer.quantities import QUANTITIES, Explored, norm_levels
from simulate.plots.style import ONSET, PREDICTED, legend_above
from simulate.plots.trajectory import plot_trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LONG: Any = (0, (9, 2))  # dashes
_LINE = 13  # points
_STYLES: dict[str, Any] = {
    "bound": {"color": "black", "linestyle": "--", "linewidth": 1.0},
    "ends": {"color": PREDICTED, "linestyle": ":", "linewidth": 2.0},
    "rest": {"color": PREDICTED, "linestyle": _LONG, "linewidth": 1.4},
}


def plot_explored(explored: Explored, axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
    """Draw the trajectory with equilibria, bounds and jumps: norm, rotation, and beside them the numbers.

    Parameters
    ----------
    explored : of `explore`.
    axes : three, for norm, rotation and numbers; new ones by default.

    Returns
    -------
    the axes.

    Raises
    ------
    TypeError, ValueError : no `Explored`, or a wrong number of axes.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("Agg")
    >>> from simulate.explorer.quantities import explore
    >>> found = explore(0.5, 0.01, grad_norm_min=1.0, grad_norm_max=4.0, norm=10.0)
    >>> [ax.get_ylabel() for ax in plot_explored(found)][0]
    'norm ρ'
    """
    if not isinstance(explored, Explored):
        raise TypeError(f"explored must be an Explored that explore returned, got {type(explored).__name__}")
    if axes is None:
        from matplotlib import pyplot as plt

        axes = axes_on(plt.figure(figsize=(11, 5.4)))
    drawn_on = list(np.ravel(np.asarray(axes, dtype=object)))
    if len(drawn_on) != 3:
        raise ValueError(f"axes must be 3, for norm, rotation and numbers; got {len(drawn_on)}")
    plot_trajectory(explored.trajectory, drawn_on[:2], variables=["norm", "rotation"])
    if not drawn_on[0].get_shared_x_axes().joined(*drawn_on[:2]):
        drawn_on[0].set_xlabel("step")
    _draw_norm(explored, drawn_on[0])
    _draw_rotation(explored, drawn_on[1])
    _write_numbers(explored, drawn_on[2])
    return drawn_on


def axes_on(figure: Any) -> list[Axes]:
    """Axes for `plot_explored` on a figure.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> len(axes_on(Figure()))
    3
    """
    figure.set_layout_engine("none")
    grid = figure.add_gridspec(
        2,
        2,
        width_ratios=[1.7, 1],
        height_ratios=[1.6, 1],
        left=0.08,
        right=0.99,
        top=0.86,
        bottom=0.1,
        wspace=0.06,
        hspace=0.22,
    )
    top = figure.add_subplot(grid[0, 0])
    top.tick_params(labelbottom=False)
    return [top, figure.add_subplot(grid[1, 0], sharex=top), figure.add_subplot(grid[:, 1])]


def _draw_norm(explored: Explored, ax: Axes) -> None:
    known = {name: value for name, value in explored.values.items() if not isinstance(value, str) and value > 0}
    ax.lines[-1].set_label("simulated")
    norms = explored.trajectory.norm.values
    heights = list(norms[np.isfinite(norms) & (norms > 0)])
    for level in norm_levels(explored.values):
        lines = [ax.axhline(known[name], **_STYLES[level.kind]) for name in level.names]
        # as long as the legend is no wider than the axes
        lines[0].set_label(textwrap.fill(level.words, 22))
        heights += [known[name] for name in level.names]
    jumps_below, all_below = known.get("jump_norm_max", 0.0), known.get("jump_norm_min", 0.0)
    # jumps that lie near below belong into the picture
    least = min(heights) if jumps_below < min(heights) / 3 else min(*heights, jumps_below)
    bottom = least / 1.25
    ax.set_ylim(bottom, max(heights) * 1.25)
    for low, high, hatch, label in (
        (all_below, jumps_below, "//", "large g̃ jump"),
        (0.0, all_below, "xx", "every g̃ jumps"),
    ):
        if high > max(low, bottom):
            green: Any = {"facecolor": (ONSET, 0.15), "edgecolor": (ONSET, 0.6), "linewidth": 0}
            ax.axhspan(max(low, bottom), high, hatch=hatch, label=label, zorder=0, **green)
    legend_above(ax)


def _draw_rotation(explored: Explored, ax: Axes) -> None:
    ax.lines[-1].set_label("simulated")
    ax.set_yscale("linear")
    most = float(np.nanmax(explored.trajectory.rotation.values))
    for name, color, style, label in (
        ("equilibrium_rotation", PREDICTED, _LONG, "at equilibrium"),
        ("jump_angle", ONSET, "-.", "jump"),
    ):
        value = explored.values[name]
        # a jump far above the rotations would press them flat
        if not isinstance(value, str) and (name != "jump_angle" or value <= 5 * most):
            ax.axhline(value, color=color, linestyle=style, linewidth=1.4, label=label)
            most = max(most, value)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("rotation (rad)")
    legend_above(ax)


def _write_numbers(explored: Explored, ax: Axes) -> None:
    ax.axis("off")
    rows: list[tuple[str, str]] = []
    above = ""
    for name, quantity in QUANTITIES.items():
        text = quantity.text(explored.values[name])
        texts = textwrap.wrap("as above" if len(text) > 27 and text == above else text, 27)
        rows += zip([quantity.words, *[""] * (len(texts) - 1)], texts, strict=True)
        above = text
    # each line by itself: those with unusual letters are higher than others
    for number, row in enumerate(rows, 1):
        for place, text, color in zip((0.0, 0.56), row, ("0.25", "black"), strict=True):
            ax.annotate(
                text,
                (place, 1.0),
                (0, -_LINE * number),
                xycoords="axes fraction",
                textcoords="offset points",
                fontsize=8,
                color=color,
            )
    setting = f"η = {explored.lr:.3g}, λ = {explored.wd:.3g}, μ = {explored.momentum:.3g}, δ = {explored.delta:.3g}"
    gradients = f"ℓ = {explored.grad_norm_min:.3g}, L = {explored.grad_norm_max:.3g}, ρ₀ = {explored.norm:.3g}"
    ax.set_title(f"{setting}\n{gradients}", fontsize=9, loc="left")
