"""Report of a sweep: one row per run with predictions beside measurements, and figures over the settings."""

from __future__ import annotations

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from markupsafe import Markup

import simulate
import theory
from empirical.config import RunConfig
from empirical.reports import page
from empirical.reports.comparison import MAY_DIFFER_IN_A_NETWORK, NoteCollector, equilibrium_comparisons, model_for_run
from empirical.reports.page import Section
from empirical.reports.tables import DASH, Cell, Table, number_cell, number_with_error
from empirical.sweeps.store import open_sweep, read_configs
from empirical.sweeps.task import FAILED, run_path
from simulate.period_model.law import PeriodLaw
from simulate.period_model.summaries import CalibrationRun
from simulate.plots.style import MEASURED_COLOR, ONSET_COLOR, PREDICTED_COLOR, label_log_ticks, number_values
from simulate.trajectories.contract import COLLAPSED, DIVERGED
from simulate.trajectories.setting import Setting
from simulate.trajectories.verdicts import NO_CLEAR_PERIOD, PERIODIC
from theory.optimizers import format_optimizer

_MOST_RUNS_READ = 200  # more runs than this take too long to read, so their gradient norms are not used
_MOST_LABELLED_TICKS = 8  # with more values of ηλ the labels overlap
# column heads of the numbers of a run; columns without any number are left out
_NUMBER_HEADS = {
    "mean_norm": "mean norm",
    "equilibrium": "predicted equilibrium norm",
    "norm_min": "lowest norm",
    "norm_max": "highest norm",
    "final_norm": "final norm",
    "train_error": "train error",
    "test_error": "test error",
}
_PREDICTED_PERIOD_HEADS = {
    "law": "predicted from other ηλ",
    "equal": "predicted from equal ηλ",
    "model": "predicted by the period model",
}


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes
    ----------
    config : settings of the run.
    varied : the settings in which the runs of the sweep differ, as words or numbers.
    summary : results of the run, the variables of `empirical.open_sweep`.
    predicted : available predictions. "law": period by a balance law fitted to runs at other ηλ. "equal": mean period
        of runs at the same ηλ and another η. "model": period by the period model of the network. "equilibrium":
        equilibrium norm for the run's own gradient norms. "mean_norm": the measured mean that it predicts.
    """

    config: RunConfig
    varied: dict[str, Any]
    summary: dict[str, Any] = field(repr=False)
    predicted: dict[str, float] = field(default_factory=dict)

    def number(self, name: str) -> float:
        """Result or prediction of this name; NaN if there is none."""
        return float(self.summary.get(name, self.predicted.get(name, math.nan)))

    @property
    def intrinsic_lr(self) -> float:
        """ηλ rounded to 12 digits, so that equal products compare equal; NaN for a schedule."""
        return math.nan if callable(self.config.lr) else float(f"{self.config.lr * self.config.wd:.12g}")

    @functools.cached_property
    def network(self) -> str:
        """All settings except those in which runs of one network may differ."""
        return self.config.settings_without(MAY_DIFFER_IN_A_NETWORK)

    @property
    def decay(self) -> float:
        """Decay of ln ρ per step without gradients; NaN if it is not known."""
        return float(theory.free_decay(1.0, self.intrinsic_lr, optimizer=self.config.optimizer))

    @property
    def name(self) -> str:
        """The settings that distinguish the run, as text."""
        return ", ".join(f"{name} = {page.format_setting(value)}" for name, value in self.varied.items()) or "the run"

    @property
    def ended_early(self) -> bool:
        """Whether the run diverged, collapsed or failed."""
        return self.summary["status"] in (DIVERGED, COLLAPSED, FAILED)

    @property
    def is_periodic(self) -> bool:
        """Whether the verdict is "periodic"."""
        return bool(self.summary["verdict"] == PERIODIC)

    @property
    def outcome(self) -> str:
        """The verdict, or the status of a run that diverged, collapsed or failed."""
        return str(self.summary["status" if self.ended_early else "verdict"])


def is_sweep(path: Path) -> bool:
    """Whether a folder holds a sweep."""
    try:
        read_configs(path)
    except ValueError:
        return False
    return True


def sweep_runs(path: Path, model: simulate.PeriodModel | None = None) -> tuple[list[SweepRun], tuple[str, ...]]:
    """Read the runs of a sweep, and predict each period without using that period.

    The second result are notes on missing predictions with their reasons. `model` is as in `write_run_report`.
    """
    opened = open_sweep(path)
    configs = {str(run_path(path, config)): config for config in read_configs(path)}
    flat = opened if opened.sizes else opened.expand_dims("run")
    runs = [
        SweepRun(configs[row["folder"]], {str(name): row[name] for name in opened.coords}, row)
        for row in flat.to_dataframe().reset_index().to_dict("records")
    ]
    networks = defaultdict(list)
    for run in runs:
        # the balance law and the symmetry are for constant ηλ < 1 only
        if 0 < run.intrinsic_lr < 1:
            networks[run.network].append(run)
    runs_by_note: dict[str, list[SweepRun]] = defaultdict(list)
    for run in runs:
        notes = NoteCollector()
        same_network = networks[run.network] if 0 < run.intrinsic_lr < 1 else []
        run.predicted.update(
            law=_period_by_law(run, [other for other in same_network if other.intrinsic_lr != run.intrinsic_lr]),
            equal=_period_by_symmetry(run, [other for other in same_network if other.intrinsic_lr == run.intrinsic_lr]),
            model=notes.attempt("period by the period model", _period_by_model, run, model) or math.nan,
        )
        if len(runs) <= _MOST_RUNS_READ and run.summary["status"] not in ("pending", FAILED):
            run.predicted.update(_predict_equilibrium(run, notes))
        for note in dict.fromkeys(notes.texts):
            runs_by_note[note].append(run)
    texts = [f"{note} ({_format_runs(concerned, runs)})" for note, concerned in runs_by_note.items()]
    if len(runs) > _MOST_RUNS_READ:
        texts.insert(0, f"equilibrium norm: not predicted for a sweep of more than {_MOST_RUNS_READ} runs")
    return runs, tuple(texts)


def _format_runs(part: Sequence[SweepRun], runs: Sequence[SweepRun]) -> str:
    """Some of the runs in words: the name of a single run, else a count."""
    if len(part) == 1:
        return part[0].name
    return f"all {len(runs)} runs" if len(part) == len(runs) else f"{len(part)} of {len(runs)} runs"


def _period_by_law(run: SweepRun, others: Sequence[SweepRun]) -> float:
    """Period by a balance law fitted to runs at two or more other ηλ; NaN if it cannot be fitted."""
    # the law assumes that the weights decay by ηλ in each step
    if not others or run.decay != theory.free_decay(1.0, run.intrinsic_lr):
        return math.nan
    calibration_runs = [
        CalibrationRun(
            intrinsic_lr=other.intrinsic_lr,
            count=int(other.number("periods")),
            period=other.number("period"),
            period_stderr=other.number("period_stderr"),
            norm_rise=other.number("norm_rise"),
            outside_growth=other.number("outside_growth"),
            trough_norm=math.nan,
            peak_norm=math.nan,
            verdict=other.summary["verdict"],
        )
        for other in others
        if other.is_periodic
    ]
    try:
        law = PeriodLaw(tuple(calibration_runs))
        has_several = sum(map(len, law.kinds)) > 1
        return float(law.period(1.0, run.intrinsic_lr)) if has_several else math.nan
    except ValueError:
        return math.nan


def _period_by_symmetry(run: SweepRun, others: Sequence[SweepRun]) -> float:
    """Mean period of runs at the same ηλ and another η, equal by symmetry; NaN without them or for Adam with L2."""
    if not others or not run.config.scale_invariant or not run.decay > 0:
        return math.nan
    periods = [other.number("period") for other in others if other.config.lr != run.config.lr and other.is_periodic]
    return float(np.mean(periods)) if periods else math.nan


def _period_by_model(run: SweepRun, model: simulate.PeriodModel | None) -> float:
    period_model = model_for_run(run.config, run.config.optimizer, model)
    if period_model is None or callable(run.config.lr) or not 0 < run.intrinsic_lr < 1 or not period_model.has_law:
        return math.nan
    return float(period_model.law.period(run.config.lr, run.config.wd))


def _predict_equilibrium(run: SweepRun, notes: NoteCollector) -> dict[str, float]:
    """Equilibrium norm for the gradient norms of a run, and the measured mean that it predicts."""
    if not Path(run.summary["folder"]).is_dir():
        notes.texts.append("equilibrium norm: not predicted, because the sweep did not keep its trajectories")
        return {}
    trajectory = notes.attempt("trajectory", simulate.load, run.summary["folder"])
    if trajectory is None:
        return {}
    lines = notes.attempt("equilibrium norm", equilibrium_comparisons, trajectory, Setting.of(trajectory))
    return {"equilibrium": lines[0].predicted, "mean_norm": lines[0].measured} if lines else {}


def sweep_sections(path: Path, model: simulate.PeriodModel | None = None) -> list[Section]:
    """Sections of the report of a sweep; arguments as in `sweep_runs`."""
    runs, missing = sweep_runs(path, model)
    notes = NoteCollector()
    notes.texts += missing
    figures = [
        notes.attempt("period over ηλ", _period_figure, runs),
        notes.attempt("verdicts over η and λ", _verdict_figure, runs),
    ]
    ended, undetermined = [_format_end(run) for run in runs if run.ended_early], list(dict.fromkeys(notes.texts))
    code = (
        f'import empirical\n\nruns = empirical.open_sweep("{path}")    # an xarray.Dataset\n'
        f'norms = empirical.open_sweep("{path}", traces=True).norm'
    )
    sections = [
        Section("", [_summary(runs)]),
        Section("Runs that diverged, collapsed or failed", [ended] if ended else []),
        Section("Runs", [_PREDICTIONS_EXPLAINED, _table(runs)]),
        *(figure for figure in figures if figure is not None),
        Section("Undetermined or uncertain results", [undetermined] if undetermined else []),
        Section("Settings of all runs", [Table([], _common_settings(runs), "settings")]),
        Section("Data", [Markup("<pre>{}</pre>").format(code)]),
    ]
    return [section for section in sections if section.parts]


_PREDICTIONS_EXPLAINED = (
    "Without a clear period, the period is the mean distance of rises of the norm. "
    "No predicted period uses the measured period of the same run. “From other ηλ”: a balance law fitted to the "
    "periodic runs of the same network at two or more other values of ηλ. “From equal ηλ”: the mean period of runs at "
    "another η, which is equal by symmetry. “By the period model”: the balance law of the period model. The predicted "
    "equilibrium norm uses η, λ and the mean square of the run’s own gradient norms. The mean norm is the measured "
    "mean that it predicts: (E ρ⁴)^¼ for plain SGD, else (E ρ²)^½, after the transient."
)


def _summary(runs: Sequence[SweepRun]) -> str:
    """Number of runs, by status and by verdict."""

    def counts(words: Iterable[str]) -> str:
        return ", ".join(f"{count} {word}" for word, count in Counter(words).items())

    text = f"{page.format_count(len(runs), 'run')}: {counts(run.summary['status'] for run in runs)}."
    if not any(run.summary["verdict"] for run in runs):
        return text
    return f"{text} Verdicts: {counts(run.summary['verdict'] or 'none' for run in runs)}."


def _format_end(run: SweepRun) -> str:
    error = str(run.summary["error"]).strip().splitlines()
    reason = f": {error[-1]}" if error else ""
    steps = page.format_count(int(run.summary["status_step"]), "step")
    return f"{run.name}: {run.summary['status']} after {steps}{reason}"


def _table(runs: Sequence[SweepRun]) -> Table:
    """Table with one row per run. Columns without any value are left out."""
    rows = [_named_cells(run) for run in runs]
    kept = [i for i in range(len(rows[0])) if any(row[i][1].text not in ("", DASH) for row in rows)]
    heads = [rows[0][i][0] for i in kept]
    return Table(heads, [[row[i][1] for i in kept] for row in rows], "runs of the sweep")


def _named_cells(run: SweepRun) -> list[tuple[str, Cell]]:
    """Column heads and cells of a run."""

    def setting_cell(value: Any) -> Cell:
        # a bool is an int in Python, but is shown as a word
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number_cell(value, "g") if is_number else Cell(page.format_setting(value))

    # what a run at equilibrium has are rises of its noise
    period = run.number("period") if run.summary["verdict"] in (PERIODIC, NO_CLEAR_PERIOD) else math.nan
    return [
        *((name, setting_cell(value)) for name, value in run.varied.items()),
        ("status", Cell(str(run.summary["status"]), kind="FAILS" if run.ended_early else "")),
        ("steps", number_cell(run.number("status_step"), "g")),
        ("verdict", Cell(str(run.summary["verdict"]) or DASH)),
        ("period ± error", number_with_error(period, run.number("period_stderr"))),
        *((head, number_cell(run.number(name))) for name, head in _PREDICTED_PERIOD_HEADS.items()),
        ("T·ηλ", number_cell(period * run.intrinsic_lr, ".3g")),
        *((head, number_cell(run.number(name))) for name, head in _NUMBER_HEADS.items()),
    ]


def _common_settings(runs: Sequence[SweepRun]) -> list[list[str]]:
    """Settings that are not None and equal in all runs."""
    settings = [{**run.config.to_dict(), "optimizer": format_optimizer(run.config.optimizer)} for run in runs]
    return [
        [name, page.format_setting(value)]
        for name, value in settings[0].items()
        if value is not None and all(other.get(name) == value for other in settings)
    ]


def _period_figure(runs: Sequence[SweepRun]) -> Section:
    periodic = [run for run in runs if run.is_periodic and run.intrinsic_lr > 0]
    if not periodic:
        raise ValueError("not drawn, because no run with a constant learning rate is periodic")
    figure, ax = page.new_figure(4.6)
    intrinsic_lrs = np.array([run.intrinsic_lr for run in periodic])
    periods = np.array([run.number("period") for run in periodic])
    ends = np.array([intrinsic_lrs.min() / 1.3, intrinsic_lrs.max() * 1.3])
    caption = "Mean period of each periodic run with its standard error."
    if intrinsic_lrs.min() < intrinsic_lrs.max():
        scaled = math.exp(float(np.log(intrinsic_lrs * periods).mean()))
        ax.plot(ends, scaled / ends, "--", color=PREDICTED_COLOR, label=f"T = {scaled:.3g}/ηλ, through their mean")
        caption += " T·ηλ is constant along the dashed line."
    ax.plot(ends, 0.1 / -np.log1p(-ends), ":", color=ONSET_COLOR, label="lower bound for a norm rise of 0.1 in ln ρ")
    law = np.array([run.predicted["law"] for run in periodic])
    if np.isfinite(law).any():
        ax.plot(intrinsic_lrs, law, "x", color=PREDICTED_COLOR, markersize=8, label="predicted from other ηλ")
    errors = np.nan_to_num([run.number("period_stderr") for run in periodic])
    style: dict[str, Any] = {"fmt": "o", "color": MEASURED_COLOR, "capsize": 3, "markersize": 5}
    ax.errorbar(intrinsic_lrs, periods, errors, label="measured", **style)
    ax.set(xscale="log", yscale="log", xlabel="ηλ", ylabel="period T in steps")
    if len(ticks := sorted(set(intrinsic_lrs.tolist()))) <= _MOST_LABELLED_TICKS:
        number_values(ax.xaxis, ticks)
    label_log_ticks(ax.yaxis)
    ax.legend(fontsize=8, frameon=False)
    return page.figure_section("Period over ηλ", figure, caption)


def _verdict_figure(runs: Sequence[SweepRun]) -> Section | None:
    """Figure of the most frequent outcome at each η and λ, without failed runs; None unless both vary."""
    if not {"lr", "wd"} <= runs[0].varied.keys():
        return None
    if any(math.isnan(run.intrinsic_lr) for run in runs):
        raise ValueError("not drawn, because the learning rate varies in time in some runs")
    lr, wd = (sorted({getattr(run.config, name) for run in runs}) for name in ("lr", "wd"))
    if min(*lr, *wd) <= 0:
        raise ValueError("not drawn, because the axes are logarithmic and some lr or wd is 0")
    verdict, period = np.empty((len(lr), len(wd)), dtype=object), np.full((len(lr), len(wd)), math.nan)
    for i, j in np.ndindex(verdict.shape):
        cell = [run for run in runs if (run.config.lr, run.config.wd) == (lr[i], wd[j])]
        outcomes = Counter(run.outcome for run in cell if run.outcome not in ("", FAILED))
        verdict[i, j] = outcomes.most_common(1)[0][0] if outcomes else ""
        lengths = [run.number("period") for run in cell if run.outcome == PERIODIC]
        period[i, j] = np.mean(lengths) if lengths else math.nan
    if not any(verdict.flat):
        raise ValueError("not drawn, because no run has ended yet, or all failed")
    diagram = xr.Dataset({"verdict": (("lr", "wd"), verdict), "period": (("lr", "wd"), period)}, {"lr": lr, "wd": wd})
    figure, ax = page.new_figure(5.0)
    simulate.plots.plot_phase_diagram(diagram, ax)
    caption = (
        "Most frequent outcome of the runs at each η and λ: the verdict, or diverged or collapsed. Numbers: mean T·ηλ "
        "of the periodic runs. ηλ is constant along each line."
    )
    if not all(verdict.flat):
        caption += " White: no run has ended yet, or all failed."
    return page.figure_section("Verdicts over η and λ", figure, caption)
