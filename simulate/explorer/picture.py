"""Figure of one setting: trajectory, equilibria, bounds and angular jumps, with the numbers beside them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from simulate.explorer.quantities import QUANTITIES, Exploration, norm_levels, positive_numbers
from simulate.plots.style import ONSET_COLOR, PREDICTED_COLOR, draw_legend_above
from simulate.plots.trajectory import plot_trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LONG_DASHES: Any = (0, (9, 2))
_LINE_HEIGHT = 13  # points
_STYLES: dict[str, Any] = {
    "bound": {"color": "black", "linestyle": "--", "linewidth": 1.0},
    "ends": {"color": PREDICTED_COLOR, "linestyle": ":", "linewidth": 2.0},
    "rms": {"color": PREDICTED_COLOR, "linestyle": _LONG_DASHES, "linewidth": 1.4},
}


def plot_exploration(exploration: Exploration, axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
    """Draw norm and rotation of the trajectory, with equilibria, bounds and angular jumps, and list the numbers.

    Parameters
    ----------
    exploration : returned by `explore`.
    axes : three axes for norm, rotation and numbers; new ones by default.

    Returns
    -------
    the axes.

    Raises
    ------
    TypeError, ValueError : `exploration` is not an `Exploration`, or there are not three axes.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("Agg")
    >>> from simulate.explorer.quantities import explore
    >>> exploration = explore(0.5, 0.01, grad_norm_min=1.0, grad_norm_max=4.0, norm=10.0)
    >>> [ax.get_ylabel() for ax in plot_exploration(exploration)][0]
    'norm ρ'
    """
    if not isinstance(exploration, Exploration):
        raise TypeError(f"exploration must be an Exploration returned by explore, got {type(exploration).__name__}")
    if axes is None:
        from matplotlib import pyplot as plt

        axes = add_axes(plt.figure(figsize=(11, 5.4)))
    panels = list(np.ravel(np.asarray(axes, dtype=object)))
    if len(panels) != 3:
        raise ValueError(f"axes must be 3, for norm, rotation and numbers; got {len(panels)}")
    plot_trajectory(exploration.trajectory, panels[:2], variables=["norm", "rotation"])
    if not panels[0].get_shared_x_axes().joined(*panels[:2]):
        panels[0].set_xlabel("step")
    _draw_norm(exploration, panels[0])
    _draw_rotation(exploration, panels[1])
    _write_numbers(exploration, panels[2])
    return panels


def add_axes(figure: Any) -> list[Axes]:
    """Add the three axes of `plot_exploration` to a figure."""
    figure.set_layout_engine("none")
    margins = {"left": 0.08, "right": 0.99, "top": 0.86, "bottom": 0.1, "wspace": 0.06, "hspace": 0.22}
    grid = figure.add_gridspec(2, 2, width_ratios=[1.7, 1], height_ratios=[1.6, 1], **margins)
    top = figure.add_subplot(grid[0, 0])
    top.tick_params(labelbottom=False)
    return [top, figure.add_subplot(grid[1, 0], sharex=top), figure.add_subplot(grid[:, 1])]


def _draw_norm(exploration: Exploration, ax: Axes) -> None:
    heights_by_name = positive_numbers(exploration.values)
    ax.lines[-1].set_label("simulated")
    norms = exploration.trajectory.norm.values
    heights = list(norms[np.isfinite(norms) & (norms > 0)])
    for level in norm_levels(exploration.values):
        lines = [ax.axhline(heights_by_name[name], **_STYLES[level.kind]) for name in level.names]
        # wrapped, so that the legend is not wider than the axes
        lines[0].set_label(textwrap.fill(level.words, 22))
        heights += [heights_by_name[name] for name in level.names]
    some_below = heights_by_name.get("angular_jump_norm_max", 0.0)
    all_below = heights_by_name.get("angular_jump_norm_min", 0.0)
    # show the norms of angular jumps if they lie just below the curve
    least = min(heights) if some_below < min(heights) / 3 else min(*heights, some_below)
    bottom = least / 1.25
    ax.set_ylim(bottom, max(heights) * 1.25)
    for low, high, hatch, label in (
        (all_below, some_below, "//", "angular jumps\nat large g̃"),
        (0.0, all_below, "xx", "angular jumps\nat every g̃"),
    ):
        if high > max(low, bottom):
            style: Any = {"facecolor": (ONSET_COLOR, 0.15), "edgecolor": (ONSET_COLOR, 0.6), "linewidth": 0}
            ax.axhspan(max(low, bottom), high, hatch=hatch, label=label, zorder=0, **style)
    draw_legend_above(ax)


def _draw_rotation(exploration: Exploration, ax: Axes) -> None:
    ax.lines[-1].set_label("simulated")
    ax.set_yscale("linear")
    top = float(np.nanmax(exploration.trajectory.rotation.values))
    for name, color, dashes, label in (
        ("equilibrium_rotation", PREDICTED_COLOR, _LONG_DASHES, "at equilibrium"),
        ("angular_jump_rotation", ONSET_COLOR, "-.", "angular jump"),
    ):
        value = exploration.values[name]
        # a threshold far above the rotations would flatten the curve
        if not isinstance(value, str) and (name != "angular_jump_rotation" or value <= 5 * top):
            ax.axhline(value, color=color, linestyle=dashes, linewidth=1.4, label=label)
            top = max(top, value)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("rotation (rad)")
    draw_legend_above(ax)


def _write_numbers(exploration: Exploration, ax: Axes) -> None:
    ax.axis("off")
    rows: list[tuple[str, str]] = []
    previous = ""
    for name, quantity in QUANTITIES.items():
        text = quantity.text(exploration.values[name])
        texts = textwrap.wrap("as above" if len(text) > 27 and text == previous else text, 27)
        rows += zip([quantity.words, *[""] * (len(texts) - 1)], texts, strict=True)
        previous = text
    # one annotation per line: lines with unusual letters are higher
    for number, row in enumerate(rows, 1):
        for place, text, color in zip((0.0, 0.56), row, ("0.25", "black"), strict=True):
            units: Any = {"xycoords": "axes fraction", "textcoords": "offset points"}
            ax.annotate(text, (place, 1.0), (0, -_LINE_HEIGHT * number), **units, fontsize=8, color=color)
    setting = (
        f"η = {exploration.lr:.3g}, λ = {exploration.wd:.3g}, "
        f"μ = {exploration.momentum:.3g}, δ = {exploration.delta:.3g}"
    )
    gradients = f"ℓ = {exploration.grad_norm_min:.3g}, L = {exploration.grad_norm_max:.3g}, ρ₀ = {exploration.norm:.3g}"
    ax.set_title(f"{setting}\n{gradients}", fontsize=9, loc="left")
