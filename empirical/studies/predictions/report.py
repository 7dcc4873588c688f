"""Report of held-out predictions: metrics with their goals, a table of settings, and a figure."""

from __future__ import annotations

import datetime
import math
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

import simulate
import theory
from empirical.studies.predictions.study import MODELS_FOLDER, NETWORKS
from simulate.plots.style import MEASURED_COLOR, ONSET_COLOR, PREDICTED_COLOR, label_log_ticks, number_values
from simulate.trajectories.periods import PERIODIC

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAGE, _PICTURE = "held_out.md", "held_out.png"
_PERIODS_NEEDED = 60
_COLUMNS = 2
_KINDS_WITH_GOALS = ["mlp", "convnet"]
_Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """One number that summarizes the study, with its goal.

    Attributes
    ----------
    claim : name of the metric.
    value : number, as text.
    goal : goal, as text.
    reached : whether the goal is reached; None without a goal.
    """

    claim: str
    value: str
    goal: str
    reached: bool | None

    @property
    def verdict(self) -> str:
        """One of "reached", "MISSED" and "–" (no goal)."""
        return {True: "reached", False: "MISSED", None: "–"}[self.reached]


def _relative_error(table: xr.Dataset, predicted: str, measured: str) -> _Array:
    """Predicted over measured, minus 1."""
    return np.asarray(table[predicted].values / table[measured].values - 1, dtype=np.float64)


def clear_settings(table: xr.Dataset) -> xr.Dataset:
    """Return the settings with a clear measured period, at least 60 periods and a kind of network that has goals.

    Examples
    --------
    >>> columns = {"measured_verdict": ["periodic"] * 2, "measured_periods": [80, 20], "kind": ["mlp"] * 2}
    >>> table = xr.Dataset({name: ("setting", values) for name, values in columns.items()})
    >>> clear_settings(table).sizes["setting"]
    1
    """
    is_clear = (table.measured_verdict == PERIODIC) & (table.measured_periods >= _PERIODS_NEEDED)
    return table.isel(setting=np.flatnonzero((is_clear & table.kind.isin(_KINDS_WITH_GOALS)).values))


def metrics(table: xr.Dataset) -> list[Metric]:
    """Compute the metrics of the table that `validate_held_out` returns.

    Parameters
    ----------
    table : table with any networks. Metrics without a setting are left out.

    Returns
    -------
    list of Measure
    """
    results = []
    clear = clear_settings(table)
    for words, part in (("", clear), (", held-out networks", clear.isel(setting=np.flatnonzero(clear.blind.values)))):
        if part.sizes["setting"]:
            results += _period_metrics(words, part)
    for kind, words, norm_goal, lr_goal in (("mlp", "MLP", 0.15, 0.25), ("convnet", "ConvNet", 0.4, 1.0)):
        part = clear.isel(setting=np.flatnonzero((clear.kind == kind).values))
        if part.sizes["setting"]:
            results += _norm_metrics(words, part, norm_goal, lr_goal)
    batched = table.isel(setting=np.flatnonzero(table.kind.isin(_KINDS_WITH_GOALS).values))
    if batched.sizes["setting"]:
        results += _verdict_metrics(batched)
    full = table.isel(setting=np.flatnonzero((table.kind == "full batch").values))
    if full.sizes["setting"]:
        error = np.abs(_relative_error(full, "predicted_period", "measured_period"))
        results.append(_error_metric(f"full batch, worst error of T ({error.size} settings)", error.max(), 0.1))
    return results


def _error_metric(claim: str, value: float, at_most: float) -> Metric:
    return Metric(claim, f"{value:.1%}", f"≤ {at_most:.0%}", bool(value <= at_most))


def _share_metric(claim: str, good: npt.NDArray[np.bool_], at_least: float | None) -> Metric:
    goal = "–" if at_least is None else f"≥ {at_least:.0%}"
    share = float(good.mean())
    return Metric(
        claim, f"{share:.0%} ({good.sum()} of {good.size})", goal, None if at_least is None else share >= at_least
    )


def _period_metrics(words: str, part: xr.Dataset) -> list[Metric]:
    law = np.abs(_relative_error(part, "predicted_period", "measured_period"))
    naive, share, reduced = (
        np.abs(_relative_error(part, f"{name}_period", "measured_period")) for name in ("naive", "share", "reduced")
    )
    has_naive = np.isfinite(naive)
    low, high = part.predicted_period_lower.values, part.predicted_period_upper.values
    inside = (low <= part.measured_period.values) & (part.measured_period.values <= high)
    noise = float((part.measured_period_stderr / part.measured_period).mean())
    return [
        _error_metric(f"mean error of T{words} ({law.size} settings)", law.mean(), 0.08),
        Metric(f"stretch: mean error of T{words}", f"{law.mean():.1%}", "≤ 5%", bool(law.mean() <= 0.05)),
        _share_metric(f"T within 20 %{words}", law <= 0.2, 0.9),
        _share_metric(f"stretch: T within 10 %{words}", law <= 0.1, 1.0),
        _error_metric(
            f"mean error relative to naive c/(ηλ){words}", law[has_naive].mean() / naive[has_naive].mean(), 0.5
        ),
        Metric(
            f"mean and worst error of naive c/(ηλ){words} ({has_naive.sum()} settings)",
            f"{naive[has_naive].mean():.1%}, {naive[has_naive].max():.0%}",
            "–",
            None,
        ),
        Metric(
            f"mean and worst error of the law in φ, not its odds{words}",
            f"{share.mean():.1%}, {share.max():.0%}",
            "–",
            None,
        ),
        Metric(
            f"mean and worst error of the corrected reduced model{words}",
            f"{np.nanmean(reduced):.1%}, {np.nanmax(reduced):.0%}",
            "–",
            None,
        ),
        Metric(f"mean and worst error of the balance law{words}", f"{law.mean():.1%}, {law.max():.0%}", "–", None),
        Metric(f"mean standard error of the measurement{words}", f"{noise:.1%}", "–", None),
        *_single_setting_metrics(words, part),
        _share_metric(f"measured T in its 90 % interval{words}", inside, 0.8),
        _error_metric(
            f"median half-width of the interval{words}",
            float(np.median((high - low) / 2 / part.predicted_period.values)),
            0.2,
        ),
    ]


def _single_setting_metrics(words: str, part: xr.Dataset) -> list[Metric]:
    """Errors of a reduced model calibrated at one setting, with those of the naive prediction and the law."""
    single, naive, law = (
        np.abs(_relative_error(part, f"{name}_period", "measured_period"))
        for name in ("one_setting", "naive", "predicted")
    )
    both = np.isfinite(single) & np.isfinite(naive)
    if not both.any():
        return []
    errors = ", ".join(f"{error[both].mean():.1%}" for error in (single, naive, law))
    name = f"mean error of T: reduced model from one setting, naive, law{words} ({both.sum()} settings)"
    return [Metric(name, errors, "–", None)]


def _norm_metrics(words: str, part: xr.Dataset, norm_goal: float, lr_goal: float) -> list[Metric]:
    trough, peak = (
        np.abs(_relative_error(part, f"predicted_{name}", f"measured_{name}")) for name in ("trough_norm", "peak_norm")
    )
    # factor by which the effective learning rate at the trough, η/ρ², is too large or too small
    factor = np.exp(2 * np.abs(np.log(part.predicted_trough_norm.values / part.measured_trough_norm.values))) - 1
    has_norms = np.isfinite(trough)
    return [
        _error_metric(
            f"worst error of ρ at troughs, {words} ({has_norms.sum()} settings)", np.nanmax(trough), norm_goal
        ),
        _error_metric(f"worst error of ρ at peaks, {words}", np.nanmax(peak), norm_goal),
        Metric(
            f"effective lr at the onset, {words}: worst factor",
            f"{1 + np.nanmax(factor):.2f}",
            f"≤ {1 + lr_goal:g}",
            bool(np.nanmax(factor) <= lr_goal),
        ),
    ]


def _verdict_metrics(part: xr.Dataset) -> list[Metric]:
    right = (part.predicted_verdict == part.measured_verdict).values
    held_out = part.blind.values.astype(bool)
    spread = np.abs(_relative_error(part, "predicted_log_norm_sd", "measured_log_norm_sd"))
    results = [
        _share_metric("correct verdict", right, 0.9),
        *([_share_metric("correct verdict, held-out networks", right[held_out], 0.9)] if held_out.any() else []),
        _error_metric("mean error of the spread of ln ρ", float(spread.mean()), 0.2),
        _share_metric("spread of ln ρ within 20 %", spread <= 0.2, None),
    ]
    for name, words in (("norm", "typical ρ"), ("autocorrelation_time", "autocorrelation time of ln ρ")):
        error = np.abs(_relative_error(part, f"predicted_{name}", f"measured_{name}"))
        results.append(Metric(f"median error of the {words}", f"{np.nanmedian(error):.1%}", "–", None))
    return results


def format_metrics(results: list[Metric]) -> str:
    """Return metrics as a plain-text table.

    Examples
    --------
    >>> print(format_metrics([Metric("mean error of T", "5.0%", "≤ 8%", True)]))
    metric           value  goal  verdict
    mean error of T   5.0%  ≤ 8%  reached
    """
    cells = [["metric", "value", "goal", "verdict"], *([m.claim, m.value, m.goal, m.verdict] for m in results)]
    widths = [max(len(line[i]) for line in cells) for i in range(4)]
    return "\n".join(
        "  ".join(
            c.rjust(w) if 0 < i < 3 else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def write_held_out_page(folder: Path, table: xr.Dataset, results: list[Metric]) -> None:
    """Write the page and its figure into the folder of the study.

    Parameters
    ----------
    folder : folder of `validate_held_out`, with the models.
    table, results : its table and the metrics.
    """
    models = {name: simulate.PeriodModel.load(folder / MODELS_FOLDER / f"{name}.json") for name in _names(table)}
    draw_held_out(table, models).savefig(folder / _PICTURE, dpi=110)
    (folder / _PAGE).write_text(_page(table, results), encoding="utf-8")


def _names(table: xr.Dataset) -> list[str]:
    return list(dict.fromkeys(table.network.values.tolist()))


def draw_held_out(table: xr.Dataset, models: Mapping[str, simulate.PeriodModel]) -> Figure:
    """Draw predicted and measured T·ηλ over ηλ, one panel per network with a balance law.

    Parameters
    ----------
    table : table of `validate_held_out`.
    models : period models by network.
    """
    from matplotlib.figure import Figure

    names = [name for name in _names(table) if models[name].has_law]
    rows = max(1, math.ceil(len(names) / _COLUMNS))
    figure = Figure(figsize=(8, 2.3 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for ax in axes[len(names) :]:
        ax.set_visible(False)
    for name, ax in zip(names, axes, strict=False):
        _panel(ax, name, models[name], table.isel(setting=np.flatnonzero((table.network == name).values)))
    entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if entries:
        figure.legend(
            list(entries.values()), list(entries), loc="outside upper center", ncols=3, frameon=False, fontsize=10
        )
    return figure


def _panel(ax: Any, name: str, model: simulate.PeriodModel, part: xr.Dataset) -> None:
    # the law does not apply above its settings, where the network is at equilibrium
    intrinsic_lrs = np.geomspace(2.5e-4, 1.1 * model.law.reference, 40)
    law = np.array([model.law.period(1.0, intrinsic_lr) for intrinsic_lr in intrinsic_lrs]) * intrinsic_lrs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        intervals = [model.law_interval(1.0, float(intrinsic_lr), draws=200) for intrinsic_lr in intrinsic_lrs]
        band = np.array([[interval.lower, interval.upper] for interval in intervals]) * intrinsic_lrs[:, np.newaxis]
        reduced = (
            np.array([model.period(1.0, float(intrinsic_lr), periods=400).mean for intrinsic_lr in intrinsic_lrs[::4]])
            * intrinsic_lrs[::4]
            if model.reduced_model is not None
            else None
        )
    ax.fill_between(
        intrinsic_lrs, band[:, 0], band[:, 1], color=PREDICTED_COLOR, alpha=0.2, linewidth=0, label="90 % interval"
    )
    ax.plot(intrinsic_lrs, law, color=PREDICTED_COLOR, label="balance law")
    if reduced is not None:
        ax.plot(intrinsic_lrs[::4], reduced, color="#888888", linestyle="--", linewidth=1, label="reduced model")
    for run in model.calibration_runs:
        if run.count > 1:
            ax.errorbar(
                run.intrinsic_lr,
                run.period * run.intrinsic_lr,
                1.64 * run.period_stderr * run.intrinsic_lr,
                color=ONSET_COLOR,
                marker="s",
                markersize=4,
                linestyle="",
                label="calibration runs" if run is model.calibration_runs[0] else None,
            )
    clear = (part.measured_verdict == PERIODIC).values
    at = (part.lr * part.wd).values
    for mask, face, label in ((clear, MEASURED_COLOR, "measured"), (~clear, "white", "measured, no clear period")):
        if (mask & (part.measured_periods.values > 1)).any():
            ax.errorbar(
                at[mask],
                (part.measured_period.values * at)[mask],
                1.64 * (part.measured_period_stderr.values * at)[mask],
                color=MEASURED_COLOR,
                markerfacecolor=face,
                marker="o",
                markersize=5,
                linestyle="",
                label=label,
            )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(2.4e-4, 1.3e-2)
    label_log_ticks(ax)
    number_values(ax.xaxis, (3e-4, 1e-3, 3e-3, 1e-2))
    ax.tick_params(which="both", labelsize=9)
    ax.set_title(NETWORKS[name].name + (" (held-out)" if NETWORKS[name].held_out else ""), fontsize=10)
    ax.set_xlabel("ηλ", fontsize=9)
    ax.set_ylabel("T·ηλ", fontsize=9)
    ax.grid(which="both", axis="y", linewidth=0.3)


def _page(table: xr.Dataset, results: list[Metric]) -> str:
    head = "| network | ηλ | predicted verdict | measured | T·ηλ: law | 90 % | reduced | naive | measured | error |"
    lines = [head, "| --- " * head.count(" | ") + "| --- |"]
    for i in range(table.sizes["setting"]):
        row = table.isel(setting=i)
        lines.append(_line(row))
    metric_lines = "\n".join(f"| {m.claim} | {m.value} | {m.goal} | {m.verdict} |" for m in results)
    source = f"{datetime.date.today().isoformat()}, bnwd {theory.__version__}, Python {platform.python_version()}"
    return f"""<!-- written by `bnwd validate --held-out` -->
*{source}, numpy {np.__version__}.*

| metric | value | goal | verdict |
| --- | --- | --- | --- |
{metric_lines}

![Predicted and measured T·ηλ over ηλ]({_PICTURE})

{chr(10).join(lines)}
"""


def _line(row: xr.Dataset) -> str:
    intrinsic_lr = float(row.lr * row.wd)

    def number(name: str, form: str = "{:.3f}", scale: float = intrinsic_lr) -> str:
        value = float(row[name]) * scale
        return "–" if math.isnan(value) else form.format(value)

    error = float(row.predicted_period / row.measured_period - 1)
    interval = f"{number('predicted_period_lower', '{:.2f}')} … {number('predicted_period_upper', '{:.2f}')}"
    name = NETWORKS[row.network.item()].name + (" (held-out)" if row.blind else "")
    return (
        f"| {name} | {intrinsic_lr:.0e} | {row.predicted_verdict.item()} | {row.measured_verdict.item()} "
        f"| {number('predicted_period')} | {interval} | {number('reduced_period')} | {number('naive_period')} "
        f"| {number('measured_period')} ± {number('measured_period_stderr')} ({int(row.measured_periods)}) "
        f"| {'–' if math.isnan(error) else f'{error:+.0%}'} |"
    )
