"""Common style of figures: colours, legends, marks, ticks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

# from the palette of Okabe and Ito, which readers with impaired colour vision can distinguish
MEASURED_COLOR, PREDICTED_COLOR, ONSET_COLOR = "#0072B2", "#D55E00", "#009E73"

AXIS_LABELS = {
    "norm": "norm ρ",
    "effective_lr": "effective lr η̃ = η/ρ²",
    "angular_lr": "effective lr η/ρ",
    "loss": "mini-batch loss",
    "grad_norm": "gradient norm g̃",
    "rotation": "rotation θ, radians",
}


def main_variables(trajectory: xr.Dataset) -> tuple[str, ...]:
    """Names of the variables that show a run: loss, norm, and the effective learning rate that suits its optimizer."""
    return ("loss", "norm", "angular_lr" if "angular_lr" in trajectory else "effective_lr")


def mark_onsets(axes: Iterable[Axes], onsets: Iterable[int]) -> None:
    """Mark the onsets of periods with vertical lines; the first has a label."""
    for ax in axes:
        for place, onset in enumerate(onsets):
            label = "onset of a period" if place == 0 else None
            ax.axvline(onset, color=ONSET_COLOR, linewidth=0.8, linestyle=(0, (4, 2)), zorder=0, label=label)


def number_values(axis: Axis, values: Iterable[float]) -> None:
    """Place ticks with numbers at these values of an axis, and nowhere else."""
    places = [float(value) for value in values]
    axis.set_ticks(places, [f"{place:g}" for place in places])
    axis.set_ticks([], minor=True)


def draw_legend_above(*axes: Axes) -> None:
    """Draw one legend for all axes above the first one, where it covers no curve."""
    entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    axes[0].legend(
        entries.values(),
        entries.keys(),
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3 if len(entries) > 4 else 4,
        fontsize=8,
        frameon=False,
        borderaxespad=0.2,
    )


def label_log_ticks(axis: Axis) -> None:
    """Label the ticks of a logarithmic axis with plain numbers, also between the powers of ten if these are few.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> ax = Figure().subplots()
    >>> _ = ax.set(yscale="log", ylim=(3.5, 7.5))
    >>> label_log_ticks(ax.yaxis)
    >>> [ax.yaxis.get_minor_formatter()(value) for value in (4.0, 5.0)]
    ['4', '5']
    """
    from matplotlib.ticker import LogFormatter

    class TickFormatter(LogFormatter):
        labels_all: bool | None = None

        # once for all ticks of an axis, because finding the ticks takes long
        def set_locs(self, locs: Any = None) -> None:
            between = axis.get_ticklocs(minor=True)
            super().set_locs(between)
            low, high = axis.get_view_interval()
            ticks = [tick for tick in (*axis.get_ticklocs(), *between) if low <= tick <= high]
            self.labels_all = sum(bool(LogFormatter.__call__(self, tick)) for tick in ticks) < 2

        def __call__(self, value: float, position: int | None = None) -> str:
            if self.labels_all is None:
                self.set_locs()
            return f"{value:.4g}" if self.labels_all or super().__call__(value, position) else ""

    # the norm often spans less than a decade: ticks between the powers of ten need labels too
    axis.set_major_formatter(TickFormatter(minor_thresholds=(1, 0.4)))
    axis.set_minor_formatter(TickFormatter(minor_thresholds=(1, 0.4)))


def new_axes(count: int, width: float = 9.0, height: float = 2.2) -> Sequence[Axes]:
    """Return axes of a new figure, one below the other, with a common x axis; `height` is that of one, in inches."""
    # importing pyplot takes half a second: only when something is drawn
    from matplotlib import pyplot as plt

    size = (width, height * count)
    figure, axes = plt.subplots(count, 1, sharex=True, figsize=size, squeeze=False, layout="constrained")
    figure.align_ylabels(axes)
    return list(axes[:, 0])


def axes_for(names: Sequence[str], axes: Axes | Sequence[Axes] | None) -> Sequence[Axes]:
    """Return one of the given axes for each name, or new ones; raise ValueError if their number is wrong."""
    if axes is None:
        return new_axes(len(names))
    given = list(np.ravel(np.asarray(axes, dtype=object)))
    if len(given) != len(names):
        raise ValueError(f"axes must be {len(names)}, one for each of {names}; got {len(given)}")
    return given


def draw_curve(ax: Axes, trajectory: xr.Dataset, name: str, most_points: int, **style: Any) -> None:
    """Draw a variable over the steps. Above `most_points` rows, draw the range of values in bins of equal width."""
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
    has_values = np.isfinite(rows).any(axis=1)
    rows, at = rows[has_values], first[has_values]
    ranges = np.stack([np.nanmin(rows, axis=1), np.nanmax(rows, axis=1)], axis=1).ravel()
    ax.plot(np.repeat(at, 2), ranges, **style)
