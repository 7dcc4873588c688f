"""A report of a sweep: a row for each run, predictions beside measurements, pictures over its settings."""

from __future__ import annotations

import functools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import simulate
import theory
from empirical.config import RunConfig
from empirical.reports import page
from empirical.reports.comparison import WITHIN_A_NETWORK, Notes, equilibrium, model_for_run
from empirical.sweeps.store import open_sweep, read_configs
from empirical.sweeps.task import FAILED, run_path
from simulate.period_model.calibration import CalibrationRun, fit_balance_law, pool_runs
from simulate.plots.style import MEASURED, ONSET, PREDICTED, label_log_ticks, number_values
from simulate.trajectories.contract import COLLAPSED, DIVERGED
from simulate.trajectories.periods import PERIODIC
from theory.optimizers import format_optimizer

_MOST_READ = 200  # runs of which the gradient norms are read
_FEW_RATES = 8  # each of which has room for its number
_ENDED = (DIVERGED, COLLAPSED, FAILED)
# heads of the columns of summaries that are shown where there are any
_NUMBERS = {
    "mean_norm": "mean norm",
    "rest": "predicted at rest",
    "norm_min": "least norm",
    "norm_max": "largest norm",
    "final_norm": "last norm",
    "train_error": "train error",
    "test_error": "test error",
}
_PREDICTED_PERIODS = {
    "law": "predicted by other ηλ",
    "equal": "predicted by equal ηλ",
    "model": "predicted by the probe",
}


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes
    ----------
    config : its settings.
    varied : those in which the runs of the sweep differ, in words or numbers.
    known : what is known of it, as in `empirical.open_sweep`.
    predicted : numbers that are there: "law", the period by the balance law of the runs at other
        ηλ; "equal", the mean period of runs at the same ηλ and another η; "model", the period by the probe of the
        network; "rest", the equilibrium norm for its own gradient norms, and "mean_norm", the mean that it is about.
    """

    config: RunConfig
    varied: dict[str, Any]
    known: dict[str, Any] = field(repr=False)
    predicted: dict[str, float] = field(default_factory=dict)

    def number(self, name: str) -> float:
        """What is known or predicted by this name; NaN where nothing is."""
        return float(self.known.get(name, self.predicted.get(name, math.nan)))

    @property
    def rate(self) -> float:
        """ηλ, in which roundings do not count; NaN under a schedule."""
        return math.nan if callable(self.config.lr) else float(f"{self.config.lr * self.config.wd:.12g}")

    @functools.cached_property
    def network(self) -> str:
        """Settings but those in which runs of one network differ."""
        return self.config.settings_without(WITHIN_A_NETWORK)

    @property
    def decays(self) -> bool:
        """Whether its weights decay at a rate that depends on ηλ alone."""
        return bool(theory.free_decay(1.0, self.rate, optimizer=self.config.optimizer) > 0)

    @property
    def name(self) -> str:
        """What tells it from the other runs."""
        return ", ".join(f"{name} = {page.plain(value)}" for name, value in self.varied.items()) or "the run"

    @property
    def end(self) -> str:
        """The verdict, or how it ended without one."""
        return str(self.known["status"] if self.known["status"] in _ENDED else self.known["verdict"])


def is_sweep(path: Path) -> bool:
    """Whether a folder is that of a sweep.

    Examples
    --------
    >>> is_sweep(Path("no such folder"))
    False
    """
    try:
        read_configs(path)
    except ValueError:
        return False
    return True


def sweep_runs(path: Path, model: simulate.PeriodModel | None = None) -> tuple[list[SweepRun], tuple[str, ...]]:
    """Runs of a sweep with predictions that do not use their own periods; and why some have none.

    Parameters
    ----------
    path : folder of the sweep.
    model : of a probe of the network; by default that of this project's own ConvNet for runs of it.

    Examples
    --------
    >>> import tempfile
    >>> from empirical.sweeps.grid import grid
    >>> from empirical.sweeps.store import SweepFolder
    >>> folder = SweepFolder(tempfile.mkdtemp())
    >>> word = folder.begin(grid(lr=[0.1, 0.5], wd=0.01))
    >>> [run.varied for run in sweep_runs(folder.path)[0]]
    [{'lr': 0.1}, {'lr': 0.5}]
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
        networks[run.network].append(run)
    unsaid: dict[str, list[SweepRun]] = defaultdict(list)
    for run in runs:
        notes = Notes()
        # at constant rates, within which alone the others tell something
        alike = [other for other in networks[run.network] if 0 < other.rate < 1] if 0 < run.rate < 1 else []
        run.predicted.update(
            law=_law_period(run, [other for other in alike if other.rate != run.rate]),
            equal=_equal_period(run, [other for other in alike if other.rate == run.rate]),
            model=notes.attempt("period by the probe", _model_period, run, model) or math.nan,
        )
        if len(runs) <= _MOST_READ and run.known["status"] not in ("pending", FAILED):
            run.predicted.update(_rest(run, notes))
        for note in dict.fromkeys(notes.told):
            unsaid[note].append(run)
    told = [f"{note} ({_which(refused, runs)})" for note, refused in unsaid.items()]
    if len(runs) > _MOST_READ:
        told.insert(0, f"norm at rest: of more than {_MOST_READ} runs the gradient norms are not read")
    return runs, tuple(told)


def _which(some: Sequence[SweepRun], runs: Sequence[SweepRun]) -> str:
    """Some of the runs in words: a single one by its name."""
    if len(some) == 1:
        return some[0].name
    return f"all {len(runs)} runs" if len(some) == len(runs) else f"{len(some)} of {len(runs)} runs"


def _law_period(run: SweepRun, others: Sequence[SweepRun]) -> float:
    """Period by the balance law of runs at two and more other ηλ; NaN where they make none."""
    # the law is about weights that decay by ηλ in each step
    if not others or theory.free_decay(1.0, run.rate, optimizer=run.config.optimizer) != theory.free_decay(
        1.0, run.rate
    ):
        return math.nan
    calibration_runs = [
        CalibrationRun(
            intrinsic_lr=other.rate,
            count=int(other.number("periods")),
            period=other.number("period"),
            period_stderr=other.number("period_stderr"),
            norm_rise=other.number("norm_rise"),
            outside_growth=other.number("outside_growth"),
            trough_norm=math.nan,
            peak_norm=math.nan,
            verdict=other.known["verdict"],
        )
        for other in others
        if other.known["verdict"] == PERIODIC
    ]
    try:
        seen = pool_runs(calibration_runs)
        return float(fit_balance_law(seen).period(1.0, run.rate)) if len(seen) > 1 else math.nan
    except ValueError:
        return math.nan


def _equal_period(run: SweepRun, others: Sequence[SweepRun]) -> float:
    """Mean period of runs at the same ηλ and another η, which by symmetry have the same; not so of Adam with L2."""
    if not others or not run.config.scale_invariant or not run.decays:
        return math.nan
    same = [
        other.number("period")
        for other in others
        if other.config.lr != run.config.lr and other.known["verdict"] == PERIODIC
    ]
    return float(np.mean(same)) if same else math.nan


def _model_period(run: SweepRun, model: simulate.PeriodModel | None) -> float:
    probe = model_for_run(json.dumps(run.config.to_dict()), format_optimizer(run.config.optimizer), model)
    if probe is None or callable(run.config.lr) or not 0 < run.rate < 1 or not probe.has_law:
        return math.nan
    return float(probe.law.period(run.config.lr, run.config.wd))


def _rest(run: SweepRun, notes: Notes) -> dict[str, float]:
    """Equilibrium norm for the gradient norms of a run, and the mean that it is about."""
    if not Path(run.known["folder"]).is_dir():
        notes.told.append("norm at rest: trajectories were not kept")
        return {}
    trajectory = notes.attempt("trajectory", simulate.load, run.known["folder"])
    lines = None if trajectory is None else notes.attempt("norm at rest", equilibrium, trajectory)
    return {"rest": lines[0].predicted, "mean_norm": lines[0].measured} if lines else {}


def sweep_parts(path: Path, model: simulate.PeriodModel | None = None) -> list[str]:
    """HTML of the report of a sweep.

    Parameters
    ----------
    path, model : as in `sweep_runs`.

    Examples
    --------
    >>> import tempfile
    >>> from empirical.sweeps.grid import grid
    >>> from empirical.sweeps.store import SweepFolder
    >>> folder = SweepFolder(tempfile.mkdtemp())
    >>> word = folder.begin(grid(lr=[0.1, 0.5], wd=0.01))
    >>> sweep_parts(folder.path)[0]
    '<p>2 runs: 2 pending.</p>'
    """
    runs, refused = sweep_runs(path, model)
    notes = Notes()
    notes.told += refused
    pictures = [
        notes.attempt("period against ηλ", _period_picture, runs),
        notes.attempt("verdicts over η and λ", _verdict_picture, runs),
    ]
    ended = [_ending(run) for run in runs if run.known["status"] in _ENDED]
    unsaid = tuple(dict.fromkeys(notes.told))
    return [
        page.paragraphs(_summary(runs)),
        page.section("Runs that diverged, collapsed or failed", page.bullets(ended)) if ended else "",
        page.section("Runs", page.paragraphs(_PREDICTED_FROM), _table(runs)),
        *(picture for picture in pictures if picture),
        page.section("What cannot be said, and why", page.bullets(unsaid)) if unsaid else "",
        page.section("Settings of all runs", page.table("settings", [], _common(runs))),
        page.section(
            "Data",
            page.lines(
                f'import empirical\n\nruns = empirical.open_sweep("{path}")    # an xarray.Dataset\n'
                f'norms = empirical.open_sweep("{path}", traces=True).norm'
            ),
        ),
    ]


_PREDICTED_FROM = (
    "No prediction of a period knows that of its own run. By other ηλ: the balance law of the periodic runs of the "
    "same network at two and more other values of ηλ. By equal ηλ: the mean period of runs at another η, equal by "
    "symmetry. By the probe: the balance law of a probe of the network. The norm predicted at rest knows η, λ and the "
    "mean square of the run’s own gradient norms; beside it is the mean that it is about, (E ρ⁴)^¼ for plain SGD, else "
    "(E ρ²)^½, after the first 2/ηλ steps."
)


def _summary(runs: Sequence[SweepRun]) -> str:
    """How many runs there are, of each status and verdict."""

    def numbers(words: Iterable[str]) -> str:
        return ", ".join(f"{count} {word}" for word, count in Counter(words).items())

    told = f"{page.counted(len(runs), 'run')}: {numbers(run.known['status'] for run in runs)}."
    if not any(run.known["verdict"] for run in runs):
        return told
    return f"{told} Verdicts: {numbers(run.known['verdict'] or 'not judged' for run in runs)}."


def _ending(run: SweepRun) -> str:
    error = str(run.known["error"]).strip().splitlines()
    why = f": {error[-1]}" if error else ""
    return f"{run.name}: {run.known['status']} after {page.counted(int(run.known['status_step']), 'step')}{why}"


def _table(runs: Sequence[SweepRun]) -> str:
    """A row for each run; columns that are empty in all of them are left out."""
    rows = [[*_described(run), *_measured(run)] for run in runs]
    heads = [*runs[0].varied, "status", "steps", "verdict", "period ± error", *_PREDICTED_PERIODS.values(), "T·ηλ"]
    heads += list(_NUMBERS.values())
    kept = [i for i in range(len(heads)) if any(row[i].text not in ("", page.DASH) for row in rows)]
    return page.table("runs of the sweep", [heads[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _described(run: SweepRun) -> list[page.Cell]:
    return [
        page.Cell(page.plain(value))
        # numbers in name alone
        if isinstance(value, bool) or not isinstance(value, (int, float))
        else page.number(value, "g")
        for value in run.varied.values()
    ]


def _measured(run: SweepRun) -> list[page.Cell]:
    status = str(run.known["status"])
    return [
        page.Cell(status, kind="FAILS" if status in _ENDED else ""),
        page.number(run.number("status_step"), "g"),
        page.Cell(str(run.known["verdict"]) or page.DASH),
        page.with_error(run.number("period"), run.number("period_stderr")),
        *(page.number(run.number(name)) for name in _PREDICTED_PERIODS),
        page.number(run.number("period") * run.rate, ".3g"),
        *(page.number(run.number(name)) for name in _NUMBERS),
    ]


def _common(runs: Sequence[SweepRun]) -> list[list[str]]:
    """Settings that are given and the same in all runs."""
    held = [{**run.config.to_dict(), "optimizer": format_optimizer(run.config.optimizer)} for run in runs]
    return [
        [name, page.plain(value)]
        for name, value in held[0].items()
        if value is not None and all(other.get(name) == value for other in held)
    ]


def _period_picture(runs: Sequence[SweepRun]) -> str:
    shown = [run for run in runs if run.known["verdict"] == PERIODIC and run.rate > 0]
    if not shown:
        raise ValueError("no run is periodic at a constant learning rate")
    figure, ax = page.new_figure(4.6)
    rates, periods = np.array([run.rate for run in shown]), np.array([run.number("period") for run in shown])
    ends = np.array([rates.min() / 1.3, rates.max() * 1.3])
    caption = "Mean period of each periodic run with its standard error."
    if rates.min() < rates.max():
        scaled = math.exp(float(np.log(rates * periods).mean()))
        ax.plot(ends, scaled / ends, "--", color=PREDICTED, label=f"T = {scaled:.3g}/ηλ, through their mean")
        caption += " Along the dashed line T·ηλ is the same."
    ax.plot(ends, 0.1 / -np.log1p(-ends), ":", color=ONSET, label="least period for rises of 0.1 in ln ρ")
    law = np.array([run.predicted["law"] for run in shown])
    if np.isfinite(law).any():
        ax.plot(rates, law, "x", color=PREDICTED, markersize=8, label="law of other ηλ")
    errors = np.nan_to_num([run.number("period_stderr") for run in shown])
    ax.errorbar(rates, periods, errors, fmt="o", color=MEASURED, capsize=3, markersize=5, label="measured")
    ax.set_xscale("log")
    ax.set_yscale("log")
    if len(numbered := sorted(set(rates.tolist()))) <= _FEW_RATES:
        number_values(ax.xaxis, numbered)
    label_log_ticks(ax)
    ax.set_xlabel("ηλ")
    ax.set_ylabel("period T in steps")
    ax.legend(fontsize=8, frameon=False)
    return page.figure_section("Period against ηλ", figure, caption)


def _verdict_picture(runs: Sequence[SweepRun]) -> str | None:
    """Most frequent end of the runs at each η and λ, where both vary; failed runs do not count."""
    if not {"lr", "wd"} <= runs[0].varied.keys():
        return None
    if any(math.isnan(run.rate) for run in runs):
        raise ValueError("some learning rates vary in time")
    lr, wd = (sorted({getattr(run.config, name) for run in runs}) for name in ("lr", "wd"))
    if min(*lr, *wd) <= 0:
        raise ValueError("some rates are 0, which has no place on a logarithmic scale")
    verdict, period = np.empty((len(lr), len(wd)), dtype=object), np.full((len(lr), len(wd)), math.nan)
    for i, j in np.ndindex(verdict.shape):
        there = [run for run in runs if (run.config.lr, run.config.wd) == (lr[i], wd[j])]
        ends = Counter(run.end for run in there if run.end not in ("", FAILED))
        verdict[i, j] = ends.most_common(1)[0][0] if ends else ""
        lengths = [run.number("period") for run in there if run.end == PERIODIC]
        period[i, j] = np.mean(lengths) if lengths else math.nan
    if not any(verdict.flat):
        raise ValueError("none is known")
    diagram = xr.Dataset({"verdict": (("lr", "wd"), verdict), "period": (("lr", "wd"), period)}, {"lr": lr, "wd": wd})
    figure, ax = page.new_figure(5.0)
    simulate.plots.plot_phase_diagram(diagram, ax)
    caption = (
        "The most frequent verdict of the runs at each η and λ, or how they ended without one. Numbers: mean T·ηλ of "
        "the periodic ones. Along each line ηλ is the same."
    )
    if not all(verdict.flat):
        caption += " White: settings of which no run has ended yet, or all failed."
    return page.figure_section("Verdicts over η and λ", figure, caption)
