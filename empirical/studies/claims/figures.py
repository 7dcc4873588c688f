"""Picture of a claim: its figures by seed with the limits of its rule, and first runs of claim and control."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from empirical.studies.claims.claim import Outcome
from empirical.studies.claims.rules import Between, EverySeed
from empirical.studies.claims.statistics import GRADIENT, Trajectories, classified, plain_gradient
from simulate._files import atomic_write
from simulate.plots.style import MEASURED, PREDICTED, label_log_ticks, number_values
from simulate.trajectories.contract import VARIABLES
from theory.arguments import check_choice

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "figure.labelsize": 9,
    "figure.titlesize": 10,
    "legend.frameon": False,
}
_WIDTH, _DPI, _LINE = 7.8, 150, 28
_PERIODS, _STRETCHES = 8, 60
_DASHES: Sequence[Any] = ("-", (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
_CONTROL_DASHES: Any = (0, (4, 2))
_NARROW = 3.0


class _Curve(NamedTuple):
    label: str
    run: xr.Dataset
    color: str
    dashes: Any


def write_picture(path: Path, found: Outcome, runs: Trajectories, control: Trajectories) -> None:
    """Draw a claim into a PNG file.

    Parameters
    ----------
    path : of the file.
    found, runs, control : as in `draw`.
    """
    from matplotlib import rc_context

    with rc_context(_STYLE), atomic_write(path) as aside:
        draw(found, runs, control).savefig(aside, format="png", dpi=_DPI, pil_kwargs={"optimize": True})


def draw(found: Outcome, runs: Trajectories, control: Trajectories) -> Figure:
    """Draw figures by seed with the limits of the rule, and beside them what the claim is about, of first runs.

    The norm is drawn over the last steps, a panel for each run, all of them of equal length and equal logarithmic span:
    what swings less looks so. Anything else is drawn in means over stretches of the whole run.

    Parameters
    ----------
    found : outcome of a claim.
    runs, control : its trajectories.

    Returns
    -------
    matplotlib figure.
    """
    from matplotlib.figure import Figure

    claim = found.claim
    dashes = itertools.cycle(_DASHES)
    curves = [
        _Curve(f"claim: {name}" if len(runs) > 1 else "claim", group[0], MEASURED, next(dashes))
        for name, group in runs.items()
    ]
    curves.append(_Curve(f"control: {claim.control_name}", control[claim.shown][0], PREDICTED, _CONTROL_DASHES))
    panels = claim.drawn == "norm"
    height = 1.2 + 0.95 * len(curves) if panels else 2.6 + 0.2 * len(curves)
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1, 2])[0]
    _draw_seeds(left, found)
    if panels:
        _draw_ends(right, curves)
    else:
        _draw_levels(right, curves, claim.drawn)
    figure.suptitle(textwrap.fill(claim.statement, 110))
    return figure


def _draw_seeds(part: SubFigure, found: Outcome) -> None:
    ax, rule = part.subplots(), found.claim.rule
    sides = ((found.figures, found.judged, MEASURED, "o"), (found.control_figures, found.control, PREDICTED, "s"))
    for place, (values, _, color, marker) in enumerate(sides):
        spread = np.linspace(-0.15, 0.15, values.size)
        ax.plot(place + spread, values, marker, color=color, markersize=6, markerfacecolor="none")
    for limit in [rule.low, rule.high] if isinstance(rule, Between) else [1.0]:
        if np.isfinite(limit):
            ax.axhline(limit, color="0.3", linestyle="--", linewidth=1)
    ax.margins(y=0.1)
    ax.set_xlim(-0.5, 1.5)
    if isinstance(rule, EverySeed):
        ax.set_ylim(-0.1, 1.1)
        ax.set_yticks([0, 1], ["no", "yes"])
    verdicts = [textwrap.fill(judged.verdict, 10) for _, judged, *_ in sides]
    ax.set_xticks([0, 1], [f"{name}:\n{said}" for name, said in zip(("claim", "control"), verdicts, strict=True)])
    ax.set_title(textwrap.fill(found.claim.figure_name, 34))


def _draw_ends(part: SubFigure, curves: Sequence[_Curve]) -> None:
    from matplotlib.ticker import MaxNLocator

    # a control may have no periods
    steps = last_steps([curve.run for curve in curves[:-1]])
    panels = part.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for ax, curve in zip(panels, curves, strict=True):
        norm = curve.run.norm[-steps:]
        ax.plot(norm.step - curve.run.sizes["step"], norm, color=curve.color, linewidth=0.9)
        ax.set(yscale="log", xlim=(-steps, 0))
        ax.set_title(curve.label, loc="left", pad=3)
    limits = np.log([ax.get_ylim() for ax in panels])
    half = np.ptp(limits, axis=1).max() / 2
    for ax, middle in zip(panels, limits.mean(axis=1), strict=True):
        low, high = np.exp([middle - half, middle + half])
        ax.set_ylim(low, high)
        if high < _NARROW * low:
            # all the digits between the powers of ten would not have room
            number_values(
                ax.yaxis,
                [tick for tick in MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high) if low < tick < high],
            )
        else:
            label_log_ticks(ax)
    panels[-1].set_xlabel("step, counted from the end of the run")
    part.supylabel(textwrap.fill(axis_label("norm"), _LINE))


def last_steps(runs: Sequence[xr.Dataset]) -> int:
    """How many last steps show eight periods of the slowest of these runs; all steps where none has five and more.

    Examples
    --------
    >>> import simulate
    >>> swinging = simulate.oscillate(0.5, 0.01, steps=8000, seed=0)
    >>> resting = simulate.norm_map(0.1, 0.01, 2.0, norm=2.1, steps=5000)
    >>> 1000 < last_steps([swinging]) < 4000, last_steps([resting])
    (True, 5000)
    """
    judged = (classified(run, run.sizes["step"] // 4) for run in runs)
    periods = [each.periods.mean for each in judged if each is not None and each.periods.count >= 5]
    longest = max(run.sizes["step"] for run in runs)
    return min(longest, round(_PERIODS * max(periods))) if periods else longest


def _draw_levels(part: SubFigure, curves: Sequence[_Curve], name: str) -> None:
    ax = part.subplots()
    for label, run, color, dashes in curves:
        values = plain_gradient(run) if name == GRADIENT else run[name]
        steps = values.sizes["step"]
        # single steps are noise
        line = values.coarsen(step=max(1, steps // _STRETCHES), boundary="trim").mean()
        share = 100 * line.step / steps
        ax.plot(share, line, color=color, linestyle=dashes, linewidth=1.5, label=f"{label} ({steps} steps)")
    ax.set(yscale="log", xlim=(0, 100), xlabel="share of the run, %", ylabel=textwrap.fill(axis_label(name), _LINE))
    label_log_ticks(ax)
    part.legend(*ax.get_legend_handles_labels(), loc="outside upper left")


def axis_label(name: str) -> str:
    """Meaning of a variable of a trajectory, with its unit where the meaning does not name it.

    Raises
    ------
    ValueError : there is no such variable.

    Examples
    --------
    >>> axis_label("loss"), axis_label("rotation")
    ('mini-batch loss', 'angle between the iterates before and after the step (radian)')
    """
    known = VARIABLES | {GRADIENT: ("loss/weight", "gradient norm ‖∇f‖ of the mini-batch loss")}
    unit, meaning = known[check_choice("name", name, known)]
    return meaning if unit in meaning else f"{meaning} ({unit})"
