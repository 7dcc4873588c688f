"""Figure of a claim: statistics by seed with the limits of the rule, and example runs of claim and control."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from empirical.studies.claims.claim import ClaimResult
from empirical.studies.claims.rules import Between, EverySeed
from empirical.studies.claims.statistics import PLAIN_GRADIENT, Trajectories, classify_or_none, plain_grad_norm
from simulate._files import atomic_write
from simulate.plots.style import MEASURED_COLOR, PREDICTED_COLOR, label_log_ticks, number_values
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
_PERIODS, _INTERVALS = 8, 60
_DASHES: Sequence[Any] = ("-", (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
_CONTROL_DASHES: Any = (0, (4, 2))
_NARROW = 3.0


class _Curve(NamedTuple):
    label: str
    run: xr.Dataset
    color: str
    dashes: Any


def write_picture(path: Path, result: ClaimResult, runs: Trajectories, control: Trajectories) -> None:
    """Draw a claim into a PNG file.

    Parameters
    ----------
    path : PNG file.
    result, runs, control : as in `draw_claim`.
    """
    from matplotlib import rc_context

    with rc_context(_STYLE), atomic_write(path) as aside:
        draw_claim(result, runs, control).savefig(aside, format="png", dpi=_DPI, pil_kwargs={"optimize": True})


def draw_claim(result: ClaimResult, runs: Trajectories, control: Trajectories) -> Figure:
    """Draw the statistics by seed with the limits of the rule, and next to them the first run of each group.

    The norm is drawn over the last steps, one panel per run. All panels have equal length and equal logarithmic span,
    so amplitudes can be compared. Other variables are drawn as means over short intervals of the whole run.

    Parameters
    ----------
    result : result of a claim.
    runs, control : trajectories of the claim and of its control.

    Returns
    -------
    matplotlib figure.
    """
    from matplotlib.figure import Figure

    claim = result.claim
    dashes = itertools.cycle(_DASHES)
    curves = [
        _Curve(f"claim: {name}" if len(runs) > 1 else "claim", group[0], MEASURED_COLOR, next(dashes))
        for name, group in runs.items()
    ]
    curves.append(
        _Curve(f"control: {claim.control_name}", control[claim.drawn_group][0], PREDICTED_COLOR, _CONTROL_DASHES)
    )
    panels = claim.drawn_variable == "norm"
    height = 1.2 + 0.95 * len(curves) if panels else 2.6 + 0.2 * len(curves)
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1, 2])[0]
    _draw_seeds(left, result)
    if panels:
        _draw_norms(right, curves)
    else:
        _draw_means(right, curves, claim.drawn_variable)
    figure.suptitle(textwrap.fill(claim.statement, 110))
    return figure


def _draw_seeds(part: SubFigure, result: ClaimResult) -> None:
    ax, rule = part.subplots(), result.claim.rule
    sides = (
        (result.values, result.judgement, MEASURED_COLOR, "o"),
        (result.control_values, result.control, PREDICTED_COLOR, "s"),
    )
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
    verdicts = [textwrap.fill(judgement.verdict, 10) for _, judgement, *_ in sides]
    ax.set_xticks([0, 1], [f"{name}:\n{verdict}" for name, verdict in zip(("claim", "control"), verdicts, strict=True)])
    ax.set_title(textwrap.fill(result.claim.statistic_name, 34))


def _draw_norms(part: SubFigure, curves: Sequence[_Curve]) -> None:
    from matplotlib.ticker import MaxNLocator

    # a control may have no periods
    steps = steps_to_draw([curve.run for curve in curves[:-1]])
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
            # labels at every digit between powers of ten would overlap
            number_values(
                ax.yaxis,
                [tick for tick in MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high) if low < tick < high],
            )
        else:
            label_log_ticks(ax)
    panels[-1].set_xlabel("step, counted from the end of the run")
    part.supylabel(textwrap.fill(axis_label("norm"), _LINE))


def steps_to_draw(runs: Sequence[xr.Dataset]) -> int:
    """Number of last steps that show eight periods of the slowest run; all steps if no run has at least five.

    Examples
    --------
    >>> import simulate
    >>> periodic = simulate.oscillate(0.5, 0.01, steps=8000, seed=0)
    >>> settled = simulate.norm_map(0.1, 0.01, 2.0, norm=2.1, steps=5000)
    >>> 1000 < steps_to_draw([periodic]) < 4000, steps_to_draw([settled])
    (True, 5000)
    """
    results = (classify_or_none(run, run.sizes["step"] // 4) for run in runs)
    periods = [result.periods.mean for result in results if result is not None and result.periods.count >= 5]
    longest = max(run.sizes["step"] for run in runs)
    return min(longest, round(_PERIODS * max(periods))) if periods else longest


def _draw_means(part: SubFigure, curves: Sequence[_Curve], name: str) -> None:
    ax = part.subplots()
    for label, run, color, dashes in curves:
        values = plain_grad_norm(run) if name == PLAIN_GRADIENT else run[name]
        steps = values.sizes["step"]
        # single steps are noise
        line = values.coarsen(step=max(1, steps // _INTERVALS), boundary="trim").mean()
        share = 100 * line.step / steps
        ax.plot(share, line, color=color, linestyle=dashes, linewidth=1.5, label=f"{label} ({steps} steps)")
    ax.set(yscale="log", xlim=(0, 100), xlabel="share of the run, %", ylabel=textwrap.fill(axis_label(name), _LINE))
    label_log_ticks(ax)
    part.legend(*ax.get_legend_handles_labels(), loc="outside upper left")


def axis_label(name: str) -> str:
    """Description of a variable of a trajectory, with its unit.

    Raises
    ------
    ValueError : unknown variable.

    Examples
    --------
    >>> axis_label("loss"), axis_label("rotation")
    ('mini-batch loss', 'angle between the iterates before and after the step (radian)')
    """
    variables = VARIABLES | {PLAIN_GRADIENT: ("loss/weight", "gradient norm ‖∇f‖ of the mini-batch loss")}
    unit, meaning = variables[check_choice("name", name, variables)]
    return meaning if unit in meaning else f"{meaning} ({unit})"
