"""Figures of studies: values by seed and example runs of a claim, the report of a validation, held-out predictions."""

from __future__ import annotations

import itertools
import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

import simulate
import theory
from empirical.reports.comparison import PERIODS_SHOWN, equilibrium_levels, last_periods, setting_name
from empirical.reports.page import new_figure
from empirical.studies.statistics import (
    PLAIN_GRADIENT,
    classify_or_none,
    plain_grad_norm,
    replay_deviation,
)
from empirical.studies.study import Between, EverySeed, Result, Trajectories
from simulate._files import atomic_write
from simulate.period_model.model import simulated_periods
from simulate.plots.style import MEASURED_COLOR, ONSET_COLOR, PREDICTED_COLOR, label_log_ticks, number_values
from simulate.trajectories.contract import VARIABLES
from simulate.trajectories.setting import Setting
from simulate.trajectories.verdicts import PERIODIC
from theory.arguments import check_choice

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

REPLAY_TOLERANCE = 1e-4
_FONT_SIZES = ("font.size", "axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize")
_STYLE: Any = {
    **dict.fromkeys((*_FONT_SIZES, "legend.fontsize", "figure.labelsize"), 9),
    "figure.titlesize": 10,
    "legend.frameon": False,
}
_WIDTH, _DPI, _LINE = 7.8, 150, 28
_PERIODS, _INTERVALS = 8, 60
_DASHES: Sequence[Any] = ("-", (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
_CONTROL_DASHES: Any = (0, (4, 2))
_NARROW = 3.0
_EQUILIBRIUM_STEPS = 2000
_COLUMNS = 2


class _Curve(NamedTuple):
    label: str
    run: xr.Dataset
    color: str
    dashes: Any


def write_picture(path: Path, result: Result, runs: Trajectories, controls: Sequence[Trajectories]) -> None:
    """Draw a claim into a PNG file: `path` with this suffix."""
    from matplotlib import rc_context

    with rc_context(_STYLE), atomic_write(path.with_name(f"{path.name}.png")) as aside:
        picture = draw_claim(result, runs, controls[0])
        picture.savefig(aside, format="png", dpi=_DPI, pil_kwargs={"optimize": True})


def draw_claim(result: Result, runs: Trajectories, control: Trajectories) -> Figure:
    """Draw the values by seed with the limits of the rule, and next to them the first run of each group.

    The norm is drawn over the last steps, one panel per run. All panels have equal length and equal logarithmic span,
    so amplitudes can be compared. Other variables are drawn as means over short intervals of the whole run.
    """
    from matplotlib.figure import Figure

    study = result.study
    dashes = itertools.cycle(_DASHES)
    curves = [
        _Curve(f"claim: {name}" if len(runs) > 1 else "claim", group[0], MEASURED_COLOR, next(dashes))
        for name, group in runs.items()
    ]
    curves.append(
        _Curve(f"control: {study.controls[0].name}", control[study.drawn_group][0], PREDICTED_COLOR, _CONTROL_DASHES)
    )
    panels = study.drawn_variable == "norm"
    height = 1.2 + 0.95 * len(curves) if panels else 2.6 + 0.2 * len(curves)
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1, 2])[0]
    _draw_seeds(left, result)
    if panels:
        _draw_norms(right, curves)
    else:
        _draw_means(right, curves, study.drawn_variable)
    figure.suptitle(textwrap.fill(study.claim, 110))
    return figure


def _draw_seeds(part: SubFigure, result: Result) -> None:
    ax, rule = part.subplots(), result.study.rule
    sides = {"claim": (result, MEASURED_COLOR, "o"), "control": (result.controls[0], PREDICTED_COLOR, "s")}
    for place, (side, color, marker) in enumerate(sides.values()):
        spread = np.linspace(-0.15, 0.15, side.values.size)
        ax.plot(place + spread, side.values, marker, color=color, markersize=6, markerfacecolor="none")
    for limit in [rule.low, rule.high] if isinstance(rule, Between) else [1.0]:
        if np.isfinite(limit):
            ax.axhline(limit, color="0.3", linestyle="--", linewidth=1)
    ax.margins(y=0.1)
    ax.set_xlim(-0.5, 1.5)
    if isinstance(rule, EverySeed):
        ax.set_ylim(-0.1, 1.1)
        ax.set_yticks([0, 1], ["no", "yes"])
    ax.set_xticks([0, 1], [f"{name}:\n{textwrap.fill(side.verdict, 10)}" for name, (side, *_) in sides.items()])
    ax.set_title(textwrap.fill(result.study.statistic_name, 34))


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
            label_log_ticks(ax.yaxis)
    panels[-1].set_xlabel("step, counted from the end of the run")
    part.supylabel(textwrap.fill(axis_label("norm"), _LINE))


def steps_to_draw(runs: Sequence[xr.Dataset]) -> int:
    """Number of last steps that show eight periods of the slowest run; all steps if no run has at least five."""
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
    label_log_ticks(ax.yaxis)
    part.legend(*ax.get_legend_handles_labels(), loc="outside upper left")


def axis_label(name: str) -> str:
    """Description of a variable of a trajectory, with its unit.

    Examples
    --------
    >>> axis_label("loss"), axis_label("rotation")
    ('mini-batch loss', 'angle between the iterates before and after the step (radian)')
    """
    variables = VARIABLES | {PLAIN_GRADIENT: ("loss/weight", "gradient norm ‖∇f‖ of the mini-batch loss")}
    unit, meaning = variables[check_choice("name", name, variables)]
    return meaning if unit in meaning else f"{meaning} ({unit})"


def validation_figures(runs: Mapping[str, xr.Dataset]) -> list[tuple[str, Figure, str]]:
    """Title, picture and caption of each figure of the report, for the runs of the preset "digits"."""
    periodic, small = runs["convnet-high-1"], runs["small-mlp-1"]
    part, periods = last_periods(periodic)
    phase, ax = new_figure(5.5)
    simulate.plots.plot_phase(part, ax, periods=periods)
    # only the end, since the curves of a whole run would look like one broad band
    last_steps = {"step": slice(-_EQUILIBRIUM_STEPS, None)}
    return [
        (
            "A periodic run",
            _run_figure(
                part,
                simulated=simulate.replay(periodic).sel(step=part.step),
                periods=periods,
                levels=equilibrium_levels(periodic, periodic),
            ),
            f"ConvNet on digits, {setting_name(periodic)}: {PERIODS_SHOWN} periods. Weight decay "
            "shrinks the norm, the effective lr grows, training destabilizes (green: detected onsets), and the norm "
            "rises. Dashed: norm simulated from the measured gradient norms alone. Dotted: the predicted equilibrium, "
            "which this run never reaches.",
        ),
        (
            "Phase picture",
            phase,
            "Effective learning rate over gradient norm in the same run. The norm falls below the dotted line and "
            "rises above it. Each period moves up on the left, where gradients are small, destabilizes, and returns on "
            "the right.",
        ),
        (
            "A run at equilibrium",
            _run_figure(
                small.isel(last_steps),
                simulated=simulate.replay(small).isel(last_steps),
                levels=equilibrium_levels(small, runs["small-mlp-2"]),
            ),
            "The last steps of a BN-MLP of width 8, which is too small to fit the data. Its gradients stay noisy, and "
            "the norm settles at the equilibrium predicted from the gradient norms of another seed.",
        ),
        (
            "Envelopes",
            _envelope_figure(small),
            "Interval that the norm cannot leave, given the smallest and largest gradient norm in each window of 1/ηλ "
            "steps.",
        ),
        (
            "One law for the norm",
            _replay_figure(runs),
            "Relative deviation of the measured norm from the law r⁺ = (1-ηλ)² r + (ηg̃)²/r, where r = ρ². "
            "Scale-invariant weights follow the law up to rounding. With PyTorch's default ε of 1e-5 it fails at small "
            "norms. Without normalization it does not apply.",
        ),
        (
            "Symmetry",
            _symmetry_figure(runs),
            "Losses of two runs with equal ηλ. In the second, η is divided by 5, λ multiplied by 5 and ρ₀ divided by "
            "√5. The curves agree for ε = 1e-12 and diverge for ε = 1e-5.",
        ),
    ]


def _run_figure(part: xr.Dataset, **options: Any) -> Figure:
    figure, axes = new_figure(7.5, 3, sharex=True)
    simulate.plots.plot_trajectory(part, list(axes), **options)
    return figure


def _envelope_figure(run: xr.Dataset) -> Figure:
    lr, wd = Setting.of(run).constants()
    window = round(1 / (lr * wd))
    figure, ax = new_figure(3.5)
    first = max(run.sizes["step"] - 6 * window - 1, 0)
    for start in range(first, run.sizes["step"] - window, window):
        part = run.isel(step=slice(start, start + window))
        low, high = float(part.grad_norm.min()), float(part.grad_norm.max())
        steps = np.arange(start, start + window + 1)
        bounds = theory.norm_envelope(window, float(part.norm[0]), lr, wd, low, high)
        ax.fill_between(steps, bounds.lower, bounds.upper, color=PREDICTED_COLOR, alpha=0.2, linewidth=0)
        ax.plot(steps, run.norm.values[steps], color=MEASURED_COLOR, linewidth=1.2)
    ax.set(xlabel="step", ylabel="norm ρ")
    ax.margins(x=0)
    return figure


def _replay_figure(runs: Mapping[str, xr.Dataset]) -> Figure:
    figure, ax = new_figure(4.2)
    styles = {
        "convnet-high-1": ("ConvNet, periodic", MEASURED_COLOR, "-"),
        "small-mlp-1": ("BN-MLP width 8, equilibrium", ONSET_COLOR, "-."),
        "small-norm-default-eps": ("BN-MLP at ρ ≈ 0.1, ε = 1e-5", PREDICTED_COLOR, "--"),
        "unnormalized": ("MLP without normalization", "#000000", ":"),
    }
    for name, (label, color, style) in styles.items():
        deviation = np.maximum.accumulate(replay_deviation(runs[name]))
        ax.plot(np.maximum(deviation, 1e-9), style, color=color, label=label, linewidth=1.5)
    ax.axhline(REPLAY_TOLERANCE, color="#888888", linestyle=":", linewidth=1)
    ax.set(xscale="log", yscale="log", xlabel="step", ylabel="largest relative deviation up to this step")
    ax.set_xlim(left=1)
    ax.legend(fontsize=8, frameon=False)
    return figure


def _symmetry_figure(runs: Mapping[str, xr.Dataset]) -> Figure:
    figure, axes = new_figure(3.8, columns=2, sharey=True)
    for ax, suffix, title in zip(axes, ("", "-default-eps"), ("ε = 1e-12", "ε = 1e-5"), strict=True):
        for which, color, style in (("high", MEASURED_COLOR, "-"), ("low", PREDICTED_COLOR, "--")):
            run = runs[f"symmetry-{which}{suffix}"]
            ax.plot(run.loss.values, color=color, linestyle=style, linewidth=1.2, label=setting_name(run))
        ax.set_title(title, fontsize=10)
        ax.set(yscale="log", xlabel="step")
        ax.legend(fontsize=8, frameon=False)
    axes[0].set_ylabel("mini-batch loss")
    return figure


def draw_held_out(table: xr.Dataset, models: Mapping[str, simulate.PeriodModel], titles: Mapping[str, str]) -> Figure:
    """Draw predicted and measured T·ηλ over ηλ, one panel per network with a balance law.

    Parameters
    ----------
    table : table of `validate_held_out`.
    models, titles : period models and titles of the panels by network.
    """
    from matplotlib.figure import Figure

    names = [name for name in titles if models[name].has_law]
    rows = max(1, math.ceil(len(names) / _COLUMNS))
    figure = Figure(figsize=(8, 2.3 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for ax in axes[len(names) :]:
        ax.set_visible(False)
    for name, ax in zip(names, axes, strict=False):
        _draw_network(ax, models[name], table.isel(setting=np.flatnonzero((table.network == name).values)))
        ax.set_title(titles[name], fontsize=10)
    entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if entries:
        figure.legend(
            list(entries.values()), list(entries), loc="outside upper center", ncols=3, frameon=False, fontsize=10
        )
    return figure


def _draw_network(ax: Any, model: simulate.PeriodModel, part: xr.Dataset) -> None:
    # the law does not apply above its settings, where the network is at equilibrium
    intrinsic_lrs = np.geomspace(2.5e-4, 1.1 * model.law.largest, 40)
    few = intrinsic_lrs[::4]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        predictions = [model.predict(1.0, float(intrinsic_lr)) for intrinsic_lr in intrinsic_lrs]
        reduced = (
            None
            if model.reduced_model is None
            else np.array([simulated_periods(model, 1.0, float(x), periods=400).mean for x in few]) * few
        )
    law = np.array([prediction.period for prediction in predictions]) * intrinsic_lrs
    intervals = [prediction.period_interval for prediction in predictions]
    low, high = (
        np.array([math.nan if i is None else getattr(i, end) for i in intervals]) * intrinsic_lrs
        for end in ("lower", "upper")
    )
    ax.fill_between(intrinsic_lrs, low, high, color=PREDICTED_COLOR, alpha=0.2, linewidth=0, label="90 % interval")
    ax.plot(intrinsic_lrs, law, color=PREDICTED_COLOR, label="balance law")
    if reduced is not None:
        ax.plot(few, reduced, color="#888888", linestyle="--", linewidth=1, label="reduced model")
    points: dict[str, Any] = {"linestyle": "", "markersize": 5}
    label: str | None = "calibration runs"
    for run in model.calibration_runs:
        if run.count > 1:
            y, error = run.period * run.intrinsic_lr, 1.64 * run.period_stderr * run.intrinsic_lr
            ax.errorbar(
                run.intrinsic_lr, y, error, **{**points, "markersize": 4}, color=ONSET_COLOR, marker="s", label=label
            )
        label = None
    clear, at = (part.measured_verdict == PERIODIC).values, (part.lr * part.wd).values
    y, error = part.measured_period.values * at, 1.64 * part.measured_period_stderr.values * at
    for mask, face, label in ((clear, MEASURED_COLOR, "measured"), (~clear, "white", "measured, not periodic")):
        if (mask & (part.measured_periods.values > 1)).any():
            ax.errorbar(
                at[mask], y[mask], error[mask], **points, color=MEASURED_COLOR, marker="o", markerfacecolor=face,
                label=label,
            )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlim=(2.4e-4, 1.3e-2))
    label_log_ticks(ax.yaxis)
    number_values(ax.xaxis, (3e-4, 1e-3, 3e-3, 1e-2))
    ax.tick_params(which="both", labelsize=9)
    ax.set_xlabel("ηλ", fontsize=9)
    ax.set_ylabel("T·ηλ", fontsize=9)
    ax.grid(which="both", axis="y", linewidth=0.3)
