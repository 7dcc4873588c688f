"""The picture of a phase diagram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from simulate.plots.style import new_axes, number_values
from simulate.trajectories.contract import COLLAPSED, DIVERGED
from simulate.trajectories.periods import EQUILIBRIUM, NO_CLEAR_PERIOD, PERIODIC
from theory.arguments import FloatArray, check_choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of the palette of Okabe and Ito, of different brightness or pattern, so that grey prints tell them apart.
_VERDICTS = {
    EQUILIBRIUM: ("#56B4E9", ""),
    PERIODIC: ("#F0E442", ""),
    NO_CLEAR_PERIOD: ("#CC79A7", "...."),
    COLLAPSED: ("#000000", ""),
    DIVERGED: ("#D55E00", "xxxx"),
}
_NUMBERS_SHOWN = 6
_FEW = 8  # values on an axis, each of which has room for its number


def plot_phase_diagram(diagram: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw which settings of learning rate and weight decay rest, swing in periods, or end.

    Each cell has the colour, and the pattern, of its verdict; those without one stay white. The numbers are T·ηλ of
    periodic cells, of some of them where there are many. Light lines join settings of equal ηλ.

    Parameters
    ----------
    diagram : what `simulate.phase_diagram` returned.
    ax : axes to draw on; new ones by default.

    Returns
    -------
    the axes, logarithmic, with the legend on their right.

    Raises
    ------
    TypeError, ValueError : no such dataset.

    Source: docs/mathematics.md §4, §5, §6.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("Agg")
    >>> from simulate.landscapes import Ratio2D
    >>> from simulate.phase_diagram import phase_diagram
    >>> plot_phase_diagram(phase_diagram([0.1, 1.0], [0.05, 0.1], model=Ratio2D(1.0, 5.0))).get_xscale()
    'log'
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    if not isinstance(diagram, xr.Dataset):
        raise TypeError(f"diagram must be a dataset that phase_diagram returned, got {type(diagram).__name__}")
    for name in ("verdict", "period"):
        if name not in diagram or set(diagram[name].dims) != {"lr", "wd"}:
            raise ValueError(
                f"diagram must have the variable {name!r} along lr and wd, got {sorted(map(str, diagram.variables))}"
            )
    lr, wd = (np.asarray(diagram[name].values, dtype=np.float64) for name in ("lr", "wd"))
    verdicts = diagram.verdict.transpose("wd", "lr").values.astype(object).astype(str)
    scaled = diagram.period.transpose("wd", "lr").values * lr * wd[:, np.newaxis]
    occurring = {check_choice("verdict", str(word), _VERDICTS) for word in np.unique(verdicts) if word}
    if ax is None:
        (ax,) = new_axes(1, width=7.5, height=5.0, layout="constrained")
    ax.set_xscale("log")
    ax.set_yscale("log")
    x_edges, y_edges = _edges(lr), _edges(wd)
    patches = []
    for verdict, (colour, pattern) in _VERDICTS.items():
        if verdict in occurring:
            cells = np.ma.masked_array(np.zeros(verdicts.shape), verdicts != verdict)
            mesh = ax.pcolor(x_edges, y_edges, cells, cmap=ListedColormap([colour]), linewidth=0)
            mesh.set(hatch=pattern or None, edgecolor="0.3", antialiased=False)
            patches.append(Patch(facecolor=colour, hatch=pattern, edgecolor="0.3", linewidth=0.5, label=verdict))
    ax.set_xlim(float(x_edges[0]), float(x_edges[-1]))
    ax.set_ylim(float(y_edges[0]), float(y_edges[-1]))
    numbers = []
    for i in _thinned(wd.size):
        for j in _thinned(lr.size):
            if verdicts[i, j] == PERIODIC and np.isfinite(scaled[i, j]):
                ax.text(lr[j], wd[i], f"{scaled[i, j]:.2g}", ha="center", va="center", fontsize=8)
                numbers.append((lr[j], wd[i]))
    _constant_products(ax, numbers)
    for axis, values in ((ax.xaxis, lr), (ax.yaxis, wd)):
        if values.size <= _FEW:
            number_values(axis, values)
    ax.set_xlabel("learning rate η")
    ax.set_ylabel("weight decay λ")
    ax.legend(
        handles=patches,
        title="numbers: T·ηλ" if numbers else None,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0,
        frameon=False,
        fontsize=9,
        title_fontsize=9,
        alignment="left",
    )
    return ax


def _edges(values: FloatArray) -> FloatArray:
    """Edges of cells around positive values, half way between them on a logarithmic scale."""
    logs = np.log(values)
    half = np.diff(logs) / 2 if logs.size > 1 else np.array([0.5])
    inner = logs[:-1] + half[: logs.size - 1]
    return np.asarray(np.exp(np.concatenate([[logs[0] - half[0]], inner, [logs[-1] + half[-1]]])))


def _thinned(count: int) -> range:
    """Places of some of the cells along an axis, in its middle."""
    stride = -(-count // _NUMBERS_SHOWN)
    return range((count - 1) % stride // 2, count, stride)


def _constant_products(ax: Axes, taken: Sequence[tuple[float, float]]) -> None:
    """Draw lines of ηλ = 1, 0.1, …, each with a label where it is farthest from places that are taken."""
    from matplotlib.patheffects import withStroke

    # seen on black too
    halo = [withStroke(linewidth=1.7, foreground="white", alpha=0.5)]
    (left, right), (low, high) = np.log10(ax.get_xlim()), np.log10(ax.get_ylim())

    def fractions(x: Any, y: Any) -> FloatArray:
        return np.stack([(np.log10(x) - left) / (right - left), (np.log10(y) - low) / (high - low)], axis=-1)

    occupied = fractions(*np.array(taken).T) if len(taken) else np.empty((0, 2))
    for power in range(int(np.ceil(left + low)), int(np.floor(right + high)) + 1):
        ends = 10.0 ** np.array([max(left, power - high), min(right, power - low)])
        ax.plot(ends, 10.0**power / ends, color="0.3", linewidth=0.7, linestyle=(0, (6, 4)), path_effects=halo)
        x = np.geomspace(ends[0], ends[1], 101)
        at = fractions(x, 10.0**power / x)
        # an edge would cut the label
        room = np.concatenate([at, 1 - at], axis=1).min(axis=1) + 0.02
        if len(occupied):
            room = np.minimum(room, np.hypot(*np.moveaxis(at[:, np.newaxis] - occupied, -1, 0)).min(axis=1))
        best = int(np.argmax(room))
        if room[best] > 0.05:
            ax.text(
                x[best],
                10.0**power / x[best],
                f"ηλ = $10^{{{power}}}$",
                ha="center",
                va="center",
                fontsize=7,
                color="0.15",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0},
            )
