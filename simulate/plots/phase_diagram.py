"""Figure of a phase diagram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from simulate.plots.style import new_axes, number_values
from simulate.trajectories.contract import COLLAPSED, DIVERGED
from simulate.trajectories.verdicts import EQUILIBRIUM, NO_CLEAR_PERIOD, PERIODIC, TRANSIENT, UNDETERMINED
from theory.arguments import FloatArray, check_choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# color (palette of Okabe and Ito) and hatch of each verdict; they differ in grey prints too
_VERDICTS = {
    EQUILIBRIUM: ("#56B4E9", ""),
    PERIODIC: ("#F0E442", ""),
    NO_CLEAR_PERIOD: ("#CC79A7", "...."),
    TRANSIENT: ("#999999", "----"),
    UNDETERMINED: ("#FFFFFF", "////"),
    COLLAPSED: ("#000000", ""),
    DIVERGED: ("#D55E00", "xxxx"),
}
_MAX_NUMBERS = 6  # numbers in cells along an axis
_MAX_TICKS = 8  # values on an axis up to which every one has a tick label


def plot_phase_diagram(diagram: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw at which learning rates and weight decays runs are at equilibrium, are periodic, or end early.

    The colour and pattern of a cell show its verdict; cells without one stay white. Numbers in periodic cells are T·ηλ;
    with many cells only some have a number. Dashed lines connect settings of equal ηλ.

    Parameters
    ----------
    diagram : result of `simulate.phase_diagram`.
    ax : axes to draw on; new ones by default.

    Returns
    -------
    Axes: logarithmic, with the legend on their right.

    Raises
    ------
    TypeError, ValueError : `diagram` is no phase diagram.

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
        raise TypeError(f"diagram must be a dataset returned by phase_diagram, got {type(diagram).__name__}")
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
        (ax,) = new_axes(1, width=7.5, height=5.0)
    x_edges, y_edges = _edges(lr), _edges(wd)
    ax.set(xscale="log", yscale="log", xlabel="learning rate η", ylabel="weight decay λ")
    patches = []
    for verdict, (colour, pattern) in _VERDICTS.items():
        if verdict in occurring:
            cells = np.ma.masked_array(np.zeros(verdicts.shape), verdicts != verdict)
            mesh = ax.pcolor(x_edges, y_edges, cells, cmap=ListedColormap([colour]), linewidth=0)
            mesh.set(hatch=pattern or None, edgecolor="0.3", antialiased=False)
            patches.append(Patch(facecolor=colour, hatch=pattern, edgecolor="0.3", linewidth=0.5, label=verdict))
    ax.set(xlim=(x_edges[0], x_edges[-1]), ylim=(y_edges[0], y_edges[-1]))
    numbers = []
    for i in _places_of_numbers(wd.size):
        for j in _places_of_numbers(lr.size):
            if verdicts[i, j] == PERIODIC and np.isfinite(scaled[i, j]):
                ax.text(lr[j], wd[i], f"{scaled[i, j]:.2g}", ha="center", va="center", fontsize=8)
                numbers.append((lr[j], wd[i]))
    _draw_lines_of_equal_product(ax, numbers)
    for axis, values in ((ax.xaxis, lr), (ax.yaxis, wd)):
        if values.size <= _MAX_TICKS:
            number_values(axis, values)
    title = "numbers: T·ηλ" if numbers else None
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0}
    ax.legend(handles=patches, title=title, frameon=False, fontsize=9, title_fontsize=9, alignment="left", **place)
    return ax


def _edges(values: FloatArray) -> FloatArray:
    """Edges of cells around positive values, halfway between them on a logarithmic scale."""
    logs = np.log(values)
    half = np.diff(logs) / 2 if logs.size > 1 else np.array([0.5])
    inner = logs[:-1] + half[: logs.size - 1]
    return np.asarray(np.exp(np.concatenate([[logs[0] - half[0]], inner, [logs[-1] + half[-1]]])))


def _places_of_numbers(count: int) -> range:
    """Indices along an axis of the cells that have a number, symmetric about its middle."""
    stride = -(-count // _MAX_NUMBERS)
    return range((count - 1) % stride // 2, count, stride)


def _draw_lines_of_equal_product(ax: Axes, taken: Sequence[tuple[float, float]]) -> None:
    """Draw lines of ηλ = 1, 0.1, …, with each label as far as possible from the numbers at `taken`."""
    from matplotlib.patheffects import withStroke

    # visible on black too
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
        # distance to the edges, which would cut the label
        distance = np.concatenate([at, 1 - at], axis=1).min(axis=1) + 0.02
        if len(occupied):
            distance = np.minimum(distance, np.hypot(*np.moveaxis(at[:, np.newaxis] - occupied, -1, 0)).min(axis=1))
        best = int(np.argmax(distance))
        if distance[best] > 0.05:
            label, box = (
                f"ηλ = $10^{{{power}}}$",
                {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0},
            )
            style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7, "color": "0.15", "bbox": box}
            ax.text(x[best], 10.0**power / x[best], label, **style)
