"""What held-out predictions came to: their measures against the goals, a table, and a picture."""

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
from empirical.studies.predictions.study import MODELS, NETWORKS
from simulate.plots.style import MEASURED, ONSET, PREDICTED, label_log_ticks, number_values
from simulate.trajectories.periods import PERIODIC

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE, FIGURE = "held_out.md", "held_out.png"
_LEAST_PERIODS = 60
_COLUMNS = 2
_JUDGED = ["mlp", "convnet"]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """One number that a trial is judged by.

    Attributes
    ----------
    claim : what it is.
    value : number, as text.
    goal : what it was to be, as text.
    reached : whether it is; None where it is only told.
    """

    claim: str
    value: str
    goal: str
    reached: bool | None

    @property
    def verdict(self) -> str:
        """In words: "reached", "MISSED" or "–"."""
        return {True: "reached", False: "MISSED", None: "–"}[self.reached]


def relative_error(table: xr.Dataset, predicted: str, measured: str) -> Array:
    """Predicted over measured, less one.

    Examples
    --------
    >>> table = xr.Dataset({"a": ("setting", [1.1]), "b": ("setting", [1.0])})
    >>> relative_error(table, "a", "b").round(3).tolist()
    [0.1]
    """
    return np.asarray(table[predicted].values / table[measured].values - 1, dtype=np.float64)


def clear_periods(table: xr.Dataset) -> xr.Dataset:
    """Settings whose measured period is clear and known from 60 periods or more, of the kinds the method is made for.

    Examples
    --------
    >>> columns = {"measured_verdict": ["periodic"] * 2, "measured_periods": [80, 20], "kind": ["mlp"] * 2}
    >>> table = xr.Dataset({name: ("setting", values) for name, values in columns.items()})
    >>> clear_periods(table).sizes["setting"]
    1
    """
    kept = (table.measured_verdict == PERIODIC) & (table.measured_periods >= _LEAST_PERIODS)
    return table.isel(setting=np.flatnonzero((kept & table.kind.isin(_JUDGED)).values))


def measures(table: xr.Dataset) -> list[Measure]:
    """Judge the table that `validate_held_out` returns.

    Parameters
    ----------
    table : with any networks; what it has no settings for is left out.

    Returns
    -------
    list of Measure
    """
    found = []
    clear = clear_periods(table)
    for words, part in (("", clear), (", blind networks", clear.isel(setting=np.flatnonzero(clear.blind.values)))):
        if part.sizes["setting"]:
            found += _period_measures(words, part)
    for kind, words, norm_goal, rate_goal in (("mlp", "MLP", 0.15, 0.25), ("convnet", "ConvNet", 0.4, 1.0)):
        part = clear.isel(setting=np.flatnonzero((clear.kind == kind).values))
        if part.sizes["setting"]:
            found += _norm_measures(words, part, norm_goal, rate_goal)
    batched = table.isel(setting=np.flatnonzero(table.kind.isin(_JUDGED).values))
    if batched.sizes["setting"]:
        found += _verdict_measures(batched)
    full = table.isel(setting=np.flatnonzero((table.kind == "full batch").values))
    if full.sizes["setting"]:
        error = np.abs(relative_error(full, "predicted_period", "measured_period"))
        found.append(_measure(f"full batch, worst error of T ({error.size} settings)", error.max(), 0.1))
    return found


def _measure(claim: str, value: float, at_most: float) -> Measure:
    return Measure(claim, f"{value:.1%}", f"≤ {at_most:.0%}", bool(value <= at_most))


def _share(claim: str, good: npt.NDArray[np.bool_], at_least: float | None) -> Measure:
    goal = "–" if at_least is None else f"≥ {at_least:.0%}"
    share = float(good.mean())
    return Measure(
        claim, f"{share:.0%} ({good.sum()} of {good.size})", goal, None if at_least is None else share >= at_least
    )


def _period_measures(words: str, part: xr.Dataset) -> list[Measure]:
    law = np.abs(relative_error(part, "predicted_period", "measured_period"))
    naive, share, reduced = (
        np.abs(relative_error(part, f"{name}_period", "measured_period")) for name in ("naive", "share", "reduced")
    )
    told = np.isfinite(naive)
    low, high = part.predicted_period_lower.values, part.predicted_period_upper.values
    inside = (low <= part.measured_period.values) & (part.measured_period.values <= high)
    noise = float((part.measured_period_stderr / part.measured_period).mean())
    return [
        _measure(f"mean error of T{words} ({law.size} settings)", law.mean(), 0.08),
        Measure(f"stretch: mean error of T{words}", f"{law.mean():.1%}", "≤ 5%", bool(law.mean() <= 0.05)),
        _share(f"T within 20 %{words}", law <= 0.2, 0.9),
        _share(f"stretch: T within 10 %{words}", law <= 0.1, 1.0),
        _measure(f"mean error over that of naive c/(ηλ){words}", law[told].mean() / naive[told].mean(), 0.5),
        Measure(
            f"mean error, worst, of naive c/(ηλ){words} ({told.sum()} settings)",
            f"{naive[told].mean():.1%}, {naive[told].max():.0%}",
            "–",
            None,
        ),
        Measure(f"… of the law in φ, not its odds{words}", f"{share.mean():.1%}, {share.max():.0%}", "–", None),
        Measure(
            f"… of the corrected reduced model{words}",
            f"{np.nanmean(reduced):.1%}, {np.nanmax(reduced):.0%}",
            "–",
            None,
        ),
        Measure(f"… of the balance law{words}", f"{law.mean():.1%}, {law.max():.0%}", "–", None),
        Measure(f"mean standard error of the measurement{words}", f"{noise:.1%}", "–", None),
        *_one_setting(words, part),
        _share(f"measured T in its 90 % interval{words}", inside, 0.8),
        _measure(
            f"median half-width of the interval{words}",
            float(np.median((high - low) / 2 / part.predicted_period.values)),
            0.2,
        ),
    ]


def _one_setting(words: str, part: xr.Dataset) -> list[Measure]:
    """A reduced model from one setting, beside law and naive where there is one."""
    alone, naive, law = (
        np.abs(relative_error(part, f"{name}_period", "measured_period"))
        for name in ("one_setting", "naive", "predicted")
    )
    both = np.isfinite(alone) & np.isfinite(naive)
    if not both.any():
        return []
    told = ", ".join(f"{error[both].mean():.1%}" for error in (alone, naive, law))
    return [Measure(f"a reduced model from one setting, naive, law{words} ({both.sum()} settings)", told, "–", None)]


def _norm_measures(words: str, part: xr.Dataset, norm_goal: float, rate_goal: float) -> list[Measure]:
    trough, peak = (
        np.abs(relative_error(part, f"predicted_{name}", f"measured_{name}")) for name in ("trough_norm", "peak_norm")
    )
    # of the effective learning rate, η/ρ² at the trough, by which factor it is off either way
    factor = np.exp(2 * np.abs(np.log(part.predicted_norm_min.values / part.measured_norm_min.values))) - 1
    known = np.isfinite(trough)
    return [
        _measure(f"worst error of ρ at the troughs, {words} ({known.sum()} settings)", np.nanmax(trough), norm_goal),
        _measure(f"worst error of ρ at the peaks, {words}", np.nanmax(peak), norm_goal),
        Measure(
            f"effective lr at the break, {words}: worst factor",
            f"{1 + np.nanmax(factor):.2f}",
            f"≤ {1 + rate_goal:g}",
            bool(np.nanmax(factor) <= rate_goal),
        ),
    ]


def _verdict_measures(part: xr.Dataset) -> list[Measure]:
    right = (part.predicted_verdict == part.measured_verdict).values
    blind = part.blind.values.astype(bool)
    spread = np.abs(relative_error(part, "predicted_log_norm_sd", "measured_log_norm_sd"))
    found = [
        _share("verdict as measured", right, 0.9),
        *([_share("verdict as measured, blind networks", right[blind], 0.9)] if blind.any() else []),
        _measure("mean error of the spread of ln ρ", float(spread.mean()), 0.2),
        _share("spread of ln ρ within 20 %", spread <= 0.2, None),
    ]
    for name, words in (("norm", "typical ρ"), ("autocorrelation_time", "autocorrelation time of ln ρ")):
        error = np.abs(relative_error(part, f"predicted_{name}", f"measured_{name}"))
        found.append(Measure(f"median error of the {words}", f"{np.nanmedian(error):.1%}", "–", None))
    return found


def format_measures(found: list[Measure]) -> str:
    """Lay measures out in plain text.

    Examples
    --------
    >>> print(format_measures([Measure("mean error of T", "5.0%", "≤ 8%", True)]))
    measure          value  goal  verdict
    mean error of T   5.0%  ≤ 8%  reached
    """
    cells = [["measure", "value", "goal", "verdict"], *([m.claim, m.value, m.goal, m.verdict] for m in found)]
    widths = [max(len(line[i]) for line in cells) for i in range(4)]
    return "\n".join(
        "  ".join(
            c.rjust(w) if 0 < i < 3 else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def write_page(folder: Path, table: xr.Dataset, found: list[Measure]) -> None:
    """Write the page and its picture into the folder of the trial.

    Parameters
    ----------
    folder : that of `validate_held_out`, with the models.
    table, found : its table, and the measures.
    """
    models = {name: simulate.PeriodModel.load(folder / MODELS / f"{name}.json") for name in _names(table)}
    held_out_figure(table, models).savefig(folder / FIGURE, dpi=110)
    (folder / PAGE).write_text(_page(table, found), encoding="utf-8")


def _names(table: xr.Dataset) -> list[str]:
    return list(dict.fromkeys(table.network.values.tolist()))


def held_out_figure(table: xr.Dataset, models: Mapping[str, simulate.PeriodModel]) -> Figure:
    """Draw T·ηλ over ηλ, predicted and measured, a panel for each network with a law.

    Parameters
    ----------
    table : of `validate_held_out`.
    models : by network.
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
    shown = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if shown:
        figure.legend(
            list(shown.values()), list(shown), loc="outside upper center", ncols=3, frameon=False, fontsize=10
        )
    return figure


def _panel(ax: Any, name: str, model: simulate.PeriodModel, part: xr.Dataset) -> None:
    # above the settings of the law the network rests
    rates = np.geomspace(2.5e-4, 1.1 * model.law.reference, 40)
    law = np.array([model.law.period(1.0, rate) for rate in rates]) * rates
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        known = [model.law_interval(1.0, float(rate), draws=200) for rate in rates]
        band = np.array([[each.lower, each.upper] for each in known]) * rates[:, np.newaxis]
        reduced = (
            np.array([model.period(1.0, float(rate), periods=400).mean for rate in rates[::4]]) * rates[::4]
            if model.reduced_model is not None
            else None
        )
    ax.fill_between(rates, band[:, 0], band[:, 1], color=PREDICTED, alpha=0.2, linewidth=0, label="90 % interval")
    ax.plot(rates, law, color=PREDICTED, label="balance law")
    if reduced is not None:
        ax.plot(rates[::4], reduced, color="#888888", linestyle="--", linewidth=1, label="reduced model")
    for segment in model.calibration_runs:
        if segment.count > 1:
            ax.errorbar(
                segment.intrinsic_lr,
                segment.period * segment.intrinsic_lr,
                1.64 * segment.period_stderr * segment.intrinsic_lr,
                color=ONSET,
                marker="s",
                markersize=4,
                linestyle="",
                label="probe" if segment is model.calibration_runs[0] else None,
            )
    clear = (part.measured_verdict == PERIODIC).values
    at = (part.lr * part.wd).values
    for chosen, filled, words in ((clear, MEASURED, "measured"), (~clear, "white", "measured, not clear")):
        if (chosen & (part.measured_periods.values > 1)).any():
            ax.errorbar(
                at[chosen],
                (part.measured_period.values * at)[chosen],
                1.64 * (part.measured_period_stderr.values * at)[chosen],
                color=MEASURED,
                markerfacecolor=filled,
                marker="o",
                markersize=5,
                linestyle="",
                label=words,
            )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(2.4e-4, 1.3e-2)
    label_log_ticks(ax)
    number_values(ax.xaxis, (3e-4, 1e-3, 3e-3, 1e-2))
    ax.tick_params(which="both", labelsize=9)
    ax.set_title(NETWORKS[name].name + (" (blind)" if NETWORKS[name].blind else ""), fontsize=10)
    ax.set_xlabel("ηλ", fontsize=9)
    ax.set_ylabel("T·ηλ", fontsize=9)
    ax.grid(which="both", axis="y", linewidth=0.3)


def _page(table: xr.Dataset, found: list[Measure]) -> str:
    head = "| network | ηλ | verdict: predicted | measured | T·ηλ: law | 90 % | reduced | naive | measured | error |"
    lines = [head, "| --- " * head.count(" | ") + "| --- |"]
    for i in range(table.sizes["setting"]):
        row = table.isel(setting=i)
        lines.append(_line(row))
    measured = "\n".join(f"| {m.claim} | {m.value} | {m.goal} | {m.verdict} |" for m in found)
    made = f"{datetime.date.today().isoformat()}, bnwd {theory.__version__}, Python {platform.python_version()}"
    return f"""<!-- written by `bnwd validate --held-out` -->
*{made}, numpy {np.__version__}.*

| measure | value | goal | verdict |
| --- | --- | --- | --- |
{measured}

![T·ηλ over ηλ: predicted and measured]({FIGURE})

{chr(10).join(lines)}
"""


def _line(row: xr.Dataset) -> str:
    rate = float(row.lr * row.wd)

    def number(name: str, form: str = "{:.3f}", scale: float = rate) -> str:
        value = float(row[name]) * scale
        return "–" if math.isnan(value) else form.format(value)

    error = float(row.predicted_period / row.measured_period - 1)
    interval = f"{number('predicted_period_lower', '{:.2f}')} … {number('predicted_period_upper', '{:.2f}')}"
    name = NETWORKS[row.network.item()].name + (" (blind)" if row.blind else "")
    return (
        f"| {name} | {rate:.0e} | {row.predicted_verdict.item()} | {row.measured_verdict.item()} "
        f"| {number('predicted_period')} | {interval} | {number('reduced_period')} | {number('naive_period')} "
        f"| {number('measured_period')} ± {number('measured_period_stderr')} ({int(row.measured_periods)}) "
        f"| {'–' if math.isnan(error) else f'{error:+.0%}'} |"
    )
