"""Pictures of trajectories; each function draws on given axes and returns them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

import theory
from simulate.trajectories.contract import COLLAPSED, DIVERGED, VARIABLES, check_trajectory, intrinsic_lr, setting
from simulate.trajectories.diagnosis import (
    BAD_BATCH,
    DATA_SHIFT,
    LR_STEP,
    NORM_DRIVEN,
    OVERFLOW,
    UNKNOWN,
    Diagnosis,
)
from simulate.trajectories.periods import EQUILIBRIUM, NO_CLEAR_PERIOD, PERIODIC, Periods
from theory.arguments import FloatArray, choice, whole_number
from theory.optimizers import optimizer_if_known

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import Colormap

# Okabe and Ito's colours, told apart by colour-blind readers too.
MEASURED, PREDICTED, ONSET = "#0072B2", "#D55E00", "#009E73"
# Of the same palette, of different brightness or pattern, so that grey prints tell them apart.
_VERDICTS = {
    EQUILIBRIUM: ("#56B4E9", ""),
    PERIODIC: ("#F0E442", ""),
    NO_CLEAR_PERIOD: ("#CC79A7", "...."),
    COLLAPSED: ("#000000", ""),
    DIVERGED: ("#D55E00", "xxxx"),
}
# Different in shape too.
_CAUSES = {
    NORM_DRIVEN: ("#D55E00", "^"),
    BAD_BATCH: ("#56B4E9", "v"),
    LR_STEP: ("#009E73", "s"),
    DATA_SHIFT: ("#F0E442", "D"),
    OVERFLOW: ("#000000", "X"),
    UNKNOWN: ("#CC79A7", "o"),
}
_NUMBERS_SHOWN = 6
_FEW = 8  # values on an axis, each of which has room for its number
_SHORT = {
    "norm": "norm ρ",
    "effective_lr": "effective lr η̃ = η/ρ²",
    "loss": "mini-batch loss",
    "grad_norm": "gradient norm g̃",
    "rotation": "rotation θ, radians",
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
    told = "measured" if simulated is not None or trajectory.attrs.get("source") == "training" else "simulated"
    for ax, name in zip(drawn_on, shown, strict=True):
        compared = simulated is not None and name in simulated
        # a curve that is compared is broad and pale, so that it shows behind the other one
        broad = {"linewidth": 3.0, "alpha": 0.45} if compared else {}
        _curve(ax, trajectory, name, most_points, color=MEASURED, label=told, **broad)
        if simulated is not None and compared:
            _curve(ax, simulated, name, most_points, color=PREDICTED, label="simulated", linestyle="--")
        if levels and name in levels:
            ax.axhline(levels[name], color="black", linewidth=1.4, linestyle=":", label="predicted equilibrium")
        if periods is not None and periods.onsets.size:
            mark_onsets([ax], periods.onsets)
        if np.any(trajectory[name].values > 0):
            ax.set_yscale("log")
            label_log_ticks(ax)
        ax.set_ylabel(_SHORT.get(name, VARIABLES.get(name, ("", name))[1]))
        ax.margins(x=0)
    drawn_on[-1].set_xlabel("step")
    if simulated is not None or levels or periods is not None:
        legend_above(*drawn_on)
    return drawn_on


def mark_onsets(axes: Iterable[Axes], onsets: Iterable[int]) -> None:
    """Mark where periods begin, the first with a label.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> ax = Figure().subplots()
    >>> mark_onsets([ax], [3, 7])
    >>> [line.get_xdata()[0] for line in ax.lines]
    [3, 7]
    """
    for ax in axes:
        for place, onset in enumerate(onsets):
            label = "onset of a period" if place == 0 else None
            ax.axvline(onset, color=ONSET, linewidth=0.8, linestyle=(0, (4, 2)), zorder=0, label=label)


def number_values(axis: Axis, values: Iterable[float]) -> None:
    """Number the values that occur on an axis, and nothing between.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> ax = Figure().subplots()
    >>> ax.set_xscale("log")
    >>> number_values(ax.xaxis, [0.25, 0.5])
    >>> [text.get_text() for text in ax.get_xticklabels()]
    ['0.25', '0.5']
    """
    places = [float(value) for value in values]
    axis.set_ticks(places, [f"{place:g}" for place in places])
    axis.set_ticks([], minor=True)


def legend_above(*axes: Axes) -> None:
    """Draw one legend for all axes, above the first, where it hides nothing.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> top, bottom = Figure().subplots(2)
    >>> _ = top.plot([1, 2], label="measured"), bottom.plot([1, 2], label="measured")
    >>> legend_above(top, bottom)
    >>> [text.get_text() for text in top.get_legend().get_texts()]
    ['measured']
    """
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


def plot_phase(trajectory: xr.Dataset, ax: Axes | None = None, *, periods: Periods | None = None) -> Axes:
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
        (ax,) = _new_axes(1, width=6.0, height=4.5)
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
            theory.equilibrium_effective_lr(1.0, intrinsic_lr(trajectory), ends),
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
    is_plain = optimizer_if_known(str(np.asarray(told))) == theory.SGD()
    is_constant = all(np.unique(setting(trajectory, name).values).size == 1 for name in ("lr", "wd"))
    return is_plain and is_constant and 0 < intrinsic_lr(trajectory) < 1


def _steps_in_colour() -> Colormap:
    """Viridis without its palest end, which is hardly seen on white."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["viridis"](np.linspace(0.0, 0.85, 256)))


def plot_periods(periods: Periods, ax: Axes | None = None, *, predicted: Periods | None = None) -> Axes:
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
    TypeError, ValueError : no `Periods`, none in them, or found with another `rise`.

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
        if not isinstance(given, Periods):
            raise TypeError(f"{name} must be Periods that find_periods returned, got {type(given).__name__}")
        if not given.count:
            raise ValueError(f"{name} must hold at least one period, got none at rise={given.rise:g}")
        if given.rise != periods.rise:
            raise ValueError(f"{name} must be found with the rise {periods.rise:g} of periods, got {given.rise:g}")
    if ax is None:
        (ax,) = _new_axes(1, width=6.0, height=4.0, layout="constrained")
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
    k = periods.intrinsic_lr
    if k > 0:
        top = ax.secondary_xaxis(
            "top", functions=(lambda steps: np.multiply(steps, k), lambda value: np.divide(value, k))
        )
        top.set_xlabel(f"T·ηλ, ηλ = {k:.3g}")
    ax.set_xlabel(f"period T in steps, rises of ln ρ ≥ {periods.rise:g}")
    ax.set_ylabel("share of periods")
    ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    # room for the legend above the bars
    ax.set_ylim(0, ax.get_ylim()[1] * (1 + 0.1 * (1 + len(shown))))
    ax.legend(loc="upper right", fontsize=8, frameon=False)
    return ax


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
    occurring = {choice("verdict", str(word), _VERDICTS) for word in np.unique(verdicts) if word}
    if ax is None:
        (ax,) = _new_axes(1, width=7.5, height=5.0, layout="constrained")
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


def plot_diagnosis(
    diagnosis: Diagnosis, axes: Axes | Sequence[Axes] | None = None, *, most_points: int = 4000
) -> Sequence[Axes]:
    """Draw the log of a diagnosis over the steps, its spikes marked by their cause.

    Parameters
    ----------
    diagnosis : of `simulate.diagnose`.
    axes : one for the loss, and one each for norm and effective learning rate if the log has them; new ones by default.
    most_points : as in `plot_trajectory`.

    Returns
    -------
    the axes.

    Raises
    ------
    TypeError, ValueError : no diagnosis, or a wrong number of axes.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("Agg")
    >>> from simulate.trajectories.diagnosis import diagnose
    >>> len(plot_diagnosis(diagnose({"loss": np.ones(100)})))
    1
    """
    if not isinstance(diagnosis, Diagnosis):
        raise TypeError(f"diagnosis must be a simulate.Diagnosis, got {type(diagnosis).__name__}")
    most_points = whole_number("most_points", most_points, at_least=2)
    log = drawn_log(diagnosis)
    shown = [str(name) for name in log.data_vars]
    drawn_on = _new_axes(len(shown), layout="constrained") if axes is None else list(np.ravel(np.asarray(axes, object)))
    if len(drawn_on) != len(shown):
        raise ValueError(f"axes must be {len(shown)}, one for each of {shown}; got {len(drawn_on)}")
    for ax, name in zip(drawn_on, shown, strict=True):
        _curve(ax, log[[name]].where(np.isfinite(log[name])), name, most_points, color="0.35")
        for spike in diagnosis.spikes:
            ax.axvspan(spike.step, spike.last_step, color=_CAUSES[spike.cause][0], alpha=0.25, linewidth=0)
        if not math.isnan(diagnosis.next_step):
            ax.axvline(diagnosis.next_step, color=_CAUSES[NORM_DRIVEN][0], linestyle="--", linewidth=1)
        if np.all(log[name].values[np.isfinite(log[name].values)] > 0):
            ax.set_yscale("log")
            label_log_ticks(ax)
        ax.set_ylabel(_SHORT[name])
        ax.margins(x=0.01)
    top = drawn_on[0]
    for cause, (color, marker) in _CAUSES.items():
        seen = [spike for spike in diagnosis.spikes if spike.cause == cause]
        if seen:
            highest = np.nanmax(np.where(np.isfinite(log.loss.values), log.loss.values, np.nan))
            peaks = [min(spike.peak_loss, highest) if spike.peak_loss == spike.peak_loss else highest for spike in seen]
            at = [spike.step for spike in seen]
            top.plot(
                at, peaks, marker, color=color, markersize=7, markeredgecolor="black", markeredgewidth=0.5, label=cause
            )
    if not math.isnan(diagnosis.next_step):
        top.plot([], [], "--", color=_CAUSES[NORM_DRIVEN][0], linewidth=1, label="next expected")
    if top.get_legend_handles_labels()[0]:
        legend_above(top)
    drawn_on[-1].set_xlabel("step")
    return drawn_on


def drawn_log(diagnosis: Diagnosis) -> xr.Dataset:
    """What `plot_diagnosis` draws, a variable for each of its axes, from the top.

    Examples
    --------
    >>> from simulate.trajectories.diagnosis import diagnose
    >>> log = {"loss": np.ones(100), "norm": np.full(100, 2.0), "lr": np.full(100, 0.1)}
    >>> list(drawn_log(diagnose(log)))
    ['loss', 'norm', 'effective_lr']
    """
    log = diagnosis.log
    if "norm" in log and "effective_lr" not in log and ("lr" in log.variables or "lr" in log.attrs):
        log = log.assign(effective_lr=setting(log, "lr") / log.norm**2)
    return log[[name for name in ("loss", "norm", "effective_lr") if name in log]]


def _new_axes(count: int, width: float = 9.0, height: float = 2.2, layout: str | None = None) -> Sequence[Axes]:
    # pyplot takes half a second to import: only those who draw pay for it
    from matplotlib import pyplot as plt

    axes = plt.subplots(count, 1, sharex=True, figsize=(width, height * count), squeeze=False, layout=layout)[1]
    return list(axes[:, 0])


def label_log_ticks(ax: Axes) -> None:
    """Number the ticks of a logarithmic y axis in full, between the powers of ten too where these are few.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> ax = Figure().subplots()
    >>> _ = ax.set(yscale="log", ylim=(3.5, 7.5))
    >>> label_log_ticks(ax)
    >>> [ax.yaxis.get_minor_formatter()(value) for value in (4.0, 5.0)]
    ['4', '5']
    """
    from matplotlib.ticker import FuncFormatter, LogFormatter

    # the norm often spans less than a decade: number the ticks between the powers of ten too, with all their digits
    chosen = LogFormatter(minor_thresholds=(1, 0.4))
    chosen.set_axis(ax.yaxis)

    def text(value: float, position: int | None = None) -> str:
        between = ax.yaxis.get_ticklocs(minor=True)
        chosen.set_locs(between)
        low, high = ax.get_ylim()
        numbered = [each for each in (*ax.yaxis.get_ticklocs(), *between) if low <= each <= high and chosen(each)]
        return f"{value:.4g}" if len(numbered) < 2 or chosen(value, position) else ""

    ax.yaxis.set_major_formatter(FuncFormatter(text))
    ax.yaxis.set_minor_formatter(FuncFormatter(text))


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
