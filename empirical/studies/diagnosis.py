"""Study of the diagnosis of spikes on labelled runs: `python -m empirical.studies.diagnosis PAGE.md [SET …]`.

The sets are "development", "held-out", "ordinary-development" and "ordinary-held-out"; default: all.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import xarray as xr

import simulate
from empirical._progress import progress_bar
from empirical.reports.tables import Cell, Table
from empirical.studies.derived_logs import LOGS, WRONG_LOGS, contradicts_law, steps_per_number
from empirical.studies.labelled_runs import (
    BAD_EPOCH,
    DIVERGENCE,
    LABELS,
    NOISE,
    IndependentGradients,
    LabelledRun,
    count_spikes,
    development_runs,
    held_out_runs,
    independent_gradients,
    log_independent_gradients,
    spikes_need_decay,
    train_labelled,
)
from empirical.studies.ordinary_runs import is_ordinary, ordinary_development_runs, ordinary_held_out_runs
from empirical.studies.study import Limit, Result, Rule, Study, goals_table, share_with_count, write_page
from simulate.diagnosis.diagnosis import Diagnosis
from simulate.diagnosis.rules import BAD_BATCH, DATA_SHIFT, LR_STEP, NORM_DRIVEN, OVERFLOW, THRESHOLDS, UNKNOWN
from simulate.diagnosis.trends import LASTING_RISE, SLOW_RISE

_COMMAND = "python -m empirical.studies.diagnosis"
RIGHT, WRONG, MISSED = "right", "wrong", "missed"
OUTCOMES = (RIGHT, UNKNOWN, MISSED, WRONG)
NO_EFFECT = "no effect"
DEVELOPMENT, HELD_OUT = "development", "held-out"
ORDINARY_DEVELOPMENT, ORDINARY_HELD_OUT = "ordinary development", "ordinary held-out"
_Case = TypeVar("_Case")
_Answer = TypeVar("_Answer")
_NEAR = (-2, 30)  # steps from an event to the first step of its spike
_MOST = 0.8  # least share of norm-driven spikes in a periodic training
_LAST, _RISEN = 0.1, 1.5  # share of the rows at the end of a run, and least rise of their loss after a slow event
# Causes that are right for a label, if its own name is none or not the only one.
_RIGHT_CAUSES = {
    BAD_EPOCH: {BAD_EPOCH, BAD_BATCH, DATA_SHIFT},
    SLOW_RISE: {SLOW_RISE, DATA_SHIFT},
    DIVERGENCE: {DIVERGENCE, LR_STEP, OVERFLOW},
}
# Causes that are not wrong for a label: a higher learning rate makes the norm drive spikes, too.
_ALLOWED_CAUSES = {DIVERGENCE: {NORM_DRIVEN}}
_SLOW, _SHORT = (SLOW_RISE, DIVERGENCE), (BAD_BATCH, BAD_EPOCH, OVERFLOW)
_LONG_AFTER = 200  # steps after which a short event is not the cause of a spike
_RISES = (SLOW_RISE, LASTING_RISE)
_OTHERS = 9  # further seeds of a network without an event whose loss spikes
_FREE_OF_NORM = {LR_STEP, OVERFLOW}  # causes that need no norm
# outcome for each of `LOGS` and `WRONG_LOGS`, or "no effect", and the spikes of the full log as "spikes"
Outcomes = Mapping[str, str]


def _share_study(runs: str, *, outcome: str, log: str, rule: Rule) -> Study:
    def statistic(results: Sequence[Outcomes]) -> list[float]:
        return [float(result == outcome) for result in _with_effect(results, log)]

    claim = f"{runs} runs, {'full logs' if log == 'full' else log}: {outcome}"
    return Study(
        name="-".join([*([] if runs == HELD_OUT else ["ordinary"]), outcome, *log.replace(",", "").split()]),
        claim=claim,
        source="docs/diagnosis.md",
        statistic=statistic,
        rule=rule,
        form=share_with_count,
        reason="eight to nine in ten causes are to be right; logs without a column must be unknown rather than wrong",
    )


def _studies_of(runs: str, right: float) -> tuple[Study, ...]:
    return (
        _share_study(runs, outcome=RIGHT, log="full", rule=Limit(at_least=right, form=".0%")),
        _share_study(runs, outcome=UNKNOWN, log="full", rule=Limit(at_most=1 - right, form=".0%")),
        *(
            _share_study(runs, outcome=WRONG, log=log, rule=Limit(at_most=0.02, form=".0%"))
            for log in (*LOGS, *WRONG_LOGS)
            if log != "no gradient norm"
        ),
    )


# by the name of their set of runs; trained heads and affine parameters hide more
DIAGNOSIS_STUDIES: Mapping[str, tuple[Study, ...]] = {
    runs: _studies_of(runs, right) for runs, right in ((HELD_OUT, 0.9), (ORDINARY_HELD_OUT, 0.8))
}


# causes of all spikes of independent gradients
INDEPENDENT_STUDY = Study(
    name="norm-driven-independent",
    claim="spikes of gradients that do not depend on the norm: norm-driven",
    source="docs/diagnosis.md",
    statistic=lambda causes: [float(cause == NORM_DRIVEN) for cause in causes],
    rule=Limit(at_most=0.02, form=".0%"),
    form=share_with_count,
    reason="a wrong advice to lower lr or wd costs a training",
)


def diagnosis_outcome(case: LabelledRun, diagnosis: Diagnosis, *, spacing: int = 1, steps_per_number: int = 1) -> str:
    """Compare a diagnosis with the label of its run: "right", "unknown", "missed" or "wrong".

    - Noise: right without spikes; unknown if no spike has a cause; else wrong.
    - Norm-driven: right if at least two spikes, and at least 80 % of all, are norm-driven and the rest is unknown;
      unknown if fewer are; missed without spikes; wrong with any other cause.
    - Event: right if the first spike from two steps before to thirty after the event has its label; missed without such
      a spike. An earlier spike with a cause makes the outcome wrong. It may be norm-driven in networks that are not
      ordinary, or that have norm-driven spikes without the event. In ordinary ones, a cause long after an event of at
      most one epoch is wrong, too.
    - Bad epoch: as an event; "bad batch" and "data shift" are right.
    - Slow rise, divergence: right if the log has a rise that ends after the event, or a spike from the event on has a
      right cause; wrong with a wrong one.

    Parameters
    ----------
    case, diagnosis : run, and the diagnosis of its log or of a derived log.
    spacing : distance of the rows, in numbers of their coordinate `step`.
    steps_per_number : steps that one unit of `step` stands for; the length of an epoch if it counts epochs.
    """
    causes = [spike.cause for spike in diagnosis.spikes]
    named = [cause for cause in causes if cause != UNKNOWN]
    if case.label == NOISE:
        return RIGHT if not causes else WRONG if named else UNKNOWN
    if case.at is None:
        if set(named) - {case.label}:
            return WRONG
        enough = len(named) >= max(2, _MOST * len(causes))
        return RIGHT if enough else UNKNOWN if causes else MISSED
    first, last = _window(case, spacing, steps_per_number)
    right = _RIGHT_CAUSES.get(case.label, {case.label})
    allowed = {UNKNOWN} | _ALLOWED_CAUSES.get(case.label, set())
    early = {spike.cause for spike in diagnosis.spikes if spike.step < first}
    if case.has_norm_driven_spikes or not is_ordinary(case):
        early -= {NORM_DRIVEN}
    if early - allowed:
        return WRONG
    late = {spike.cause for spike in diagnosis.spikes if spike.step > last + _LONG_AFTER / steps_per_number}
    if is_ordinary(case) and case.label in _SHORT and late - {UNKNOWN}:
        return WRONG
    near = [spike.cause for spike in diagnosis.spikes if first <= spike.step <= last]
    if case.label in _SLOW:
        if set(near) - allowed - right:
            return WRONG
        rises = [trend for trend in diagnosis.trends if trend.kind in _RISES and trend.last_step >= first]
        return RIGHT if rises or set(near) & right else UNKNOWN if near else MISSED
    return MISSED if not near else RIGHT if near[0] in right else UNKNOWN if near[0] == UNKNOWN else WRONG


def _window(case: LabelledRun, spacing: int = 1, steps_per_number: int = 1) -> tuple[int, float]:
    """First and last `step` of a derived log at which the spike of an event begins."""
    assert case.at is not None
    if case.label in _SLOW:
        return case.at // steps_per_number, np.inf
    if steps_per_number > 1:
        return case.at // steps_per_number, case.at // steps_per_number + 2
    after = _NEAR[1] + (2 * spacing if spacing > 1 else 0)
    return case.at + _NEAR[0], case.at + after


def has_effect(case: LabelledRun, log: xr.Dataset, *, steps_per_number: int = 1) -> bool:
    """Whether the event shows: a loss above all of the 200 rows before, or one that is not finite.

    It must show where its spike can begin. After a slow rise or a divergence, the loss at the end must be at least 1.5
    times that before the event. An event has no effect if the network is dead by then, its usual losses are as large,
    or no row of the log is near.
    """
    if case.at is None:
        return True
    spacing = int(np.median(np.diff(log.step.values)))
    first, last = _window(case, spacing, steps_per_number)
    loss, step = log.loss.values, log.step.values
    start = int(np.searchsorted(step, first if case.label in _SLOW or steps_per_number > 1 else case.at))
    before = loss[max(start - THRESHOLDS.compared_rows, 0) : start]
    if case.label in _SLOW:
        count = max(1, round(_LAST * loss.size))
        end, usual = loss[-count:], before[-count:]
        return not np.isfinite(loss[start:]).all() or bool(end.mean() >= _RISEN * usual.mean())
    then = loss[start:][step[start:] <= last]
    return not np.isfinite(then).all() or bool(then.max(initial=-np.inf) > before.max(initial=-np.inf))


def judge_diagnoses(
    cases: Sequence[LabelledRun], executor: Executor | None = None, *, progress: bool | None = None
) -> list[Outcomes]:
    """Train labelled runs and test the diagnosis of each log, complete and with columns removed.

    Parameters
    ----------
    cases : runs to train.
    executor : runs the trainings; default: one process per processor.
    progress : show a progress bar; by default only in a terminal.
    """
    return _map(_train_and_judge, cases, "labelled runs", executor, progress)


def find_causes(
    cases: Sequence[IndependentGradients], executor: Executor | None = None, *, progress: bool | None = None
) -> list[list[str]]:
    """Return the causes that the diagnosis finds for the spikes of each log of independent gradients.

    Parameters
    ----------
    cases : gradients to draw.
    executor, progress : as in `judge_diagnoses`.
    """
    return _map(_find_causes, cases, "independent gradients", executor, progress)


def _find_causes(case: IndependentGradients) -> list[str]:
    return [spike.cause for spike in simulate.diagnose(log_independent_gradients(case)).spikes]


def _map(
    work: Callable[[_Case], _Answer],
    cases: Sequence[_Case],
    name: str,
    executor: Executor | None,
    progress: bool | None,
) -> list[_Answer]:
    if executor is None:
        with ProcessPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as own:
            return _map(work, cases, name, own, progress)
    answers = []
    with progress_bar(name, len(cases), "case", progress) as bar:
        for answer in executor.map(work, cases):
            answers.append(answer)
            bar.update()
    return answers


def _train_and_judge(case: LabelledRun) -> Outcomes:
    log = train_labelled(case)
    if is_ordinary(case) and _has_early_norm_driven_spike(case, log):
        quiet = replace(case, label=NOISE, event=None, at=None)
        spikes = spikes_need_decay(quiet, train_labelled(quiet), other_seeds=_OTHERS)
        return judge_log(replace(case, has_norm_driven_spikes=spikes), log)
    if case.label == NOISE and count_spikes(log.loss.values) and spikes_need_decay(case, log, other_seeds=_OTHERS):
        # the network has spikes that end with weight decay, so it is no noise
        outcomes = judge_log(replace(case, label=NORM_DRIVEN), log)
        return {**outcomes, "spikes": f"{outcomes['spikes']}; norm-driven by the control"}
    outcomes = judge_log(case, log)
    if case.label == NORM_DRIVEN and is_ordinary(case) and not spikes_need_decay(case, log):
        return {**dict.fromkeys(outcomes, NO_EFFECT), "spikes": outcomes["spikes"]}
    return outcomes


def _has_early_norm_driven_spike(case: LabelledRun, log: xr.Dataset) -> bool:
    if case.at is None:
        return False
    spikes = simulate.diagnose(log).spikes
    return any(spike.cause == NORM_DRIVEN and spike.step < _window(case)[0] for spike in spikes)


def judge_log(case: LabelledRun, log: xr.Dataset) -> Outcomes:
    """Test the diagnosis of a log of `train_labelled` and of all logs derived from it.

    Examples
    --------
    >>> case = LabelledRun(label="noise", settings={"width": 4, "lr": 0.5, "wd": 0.01, "steps": 60})
    >>> judge_log(case, train_labelled(case))["full"]
    'right'
    """
    outcomes = {name: judge_derived_log(case, log, name)[0] for name in (*LOGS, *WRONG_LOGS)}
    counts = Counter(spike.cause for spike in simulate.diagnose(log).spikes)
    summary = ", ".join(f"{count} {cause}" for cause, count in counts.most_common()) or "none"
    return {**outcomes, "spikes": summary}


def judge_derived_log(case: LabelledRun, log: xr.Dataset, name: str) -> tuple[str, Diagnosis | None]:
    """Return the outcome of one of `LOGS` or `WRONG_LOGS` and its diagnosis, which is None if there is none.

    A log that contradicts the law has the outcome "right" without a cause that depends on the norm, else "wrong". If
    an event has no effect in the log, the outcome is "no effect", or "wrong" with a cause that the run does not have.
    """
    derived = {**LOGS, **WRONG_LOGS}[name](log)
    if not np.isfinite(derived.loss.values).any():
        return NO_EFFECT, None
    per_number = steps_per_number(name, log)
    spacing = int(np.median(np.diff(derived.step.values))) if derived.sizes["step"] > 1 else 1
    diagnosis = simulate.diagnose(derived)
    named = {spike.cause for spike in diagnosis.spikes} - {UNKNOWN}
    right = _RIGHT_CAUSES.get(case.label, {case.label})
    if name in WRONG_LOGS and contradicts_law(derived):
        return WRONG if named - (_FREE_OF_NORM & right) else RIGHT, diagnosis
    if not has_effect(case, derived, steps_per_number=per_number):
        return WRONG if named - right - _ALLOWED_CAUSES.get(case.label, set()) else NO_EFFECT, diagnosis
    outcome = diagnosis_outcome(case, diagnosis, spacing=spacing, steps_per_number=per_number)
    return outcome, diagnosis


def write_diagnosis_page(
    path: Path,
    sets: Mapping[str, tuple[Sequence[LabelledRun], Sequence[Outcomes]]],
    independent: Sequence[tuple[IndependentGradients, Sequence[str]]] = (),
    *,
    command: str = _COMMAND,
) -> list[Result]:
    """Write goals, shares of the runs with an effect by label and by log, and a row for each run.

    Parameters
    ----------
    path : Markdown file.
    sets : labelled runs and their outcomes, by name.
    independent : independent gradients and the causes of their spikes.

    Returns
    -------
    Results of the studies of the held-out sets and of the independent gradients, if they are there.
    """
    results = [
        study.judge(sets[runs][1]) for runs, studies in DIAGNOSIS_STUDIES.items() if runs in sets for study in studies
    ]
    if independent:
        results.append(INDEPENDENT_STUDY.judge([cause for _, causes in independent for cause in causes]))
    tables = [_shares("full logs", {name: _with_effect(outcomes, "full") for name, (_, outcomes) in sets.items()})]
    for name, (cases, outcomes) in sets.items():
        by_label = {
            label: [row for case, row in zip(cases, outcomes, strict=True) if case.label == label] for label in LABELS
        }
        labels = {label: _with_effect(rows, "full") for label, rows in by_label.items() if rows}
        tables.append(_shares(f"{name}: label", labels))
        tables.append(_shares(f"{name}: log", {log: _with_effect(outcomes, log) for log in (*LOGS, *WRONG_LOGS)}))
    for name, (cases, outcomes) in sets.items():
        rows = [_run_cells(case, row) for case, row in zip(cases, outcomes, strict=True)]
        tables.append(Table([f"{name}: settings", "event", "spikes found", "outcome"], rows))
    if independent:
        tables.append(_causes_table(independent))
    goals = [goals_table(results)] if results else []
    write_page(path, command, *(table.markdown() for table in (*goals, *tables)))
    return results


def _with_effect(results: Sequence[Outcomes], log: str) -> list[str]:
    """Outcomes of the runs whose event has an effect."""
    return [row[log] for row in results if row[log] != NO_EFFECT]


def _shares(head: str, outcomes: Mapping[str, Sequence[str]]) -> Table:
    """Number of runs with an effect, and the share of each outcome among them, by row."""
    rows: list[list[Cell | str]] = []
    for name, of_runs in outcomes.items():
        shares = (100 * of_runs.count(outcome) / max(len(of_runs), 1) for outcome in OUTCOMES)
        rows.append([name, _number(len(of_runs), ""), *(_number(share, " %") for share in shares)])
    return Table([head, "runs", *OUTCOMES], rows)


def _causes_table(independent: Sequence[tuple[IndependentGradients, Sequence[str]]]) -> Table:
    """Causes of the spikes of independent gradients, for all intrinsic learning rates together."""
    counts: dict[str, Counter[str]] = {}
    for case, causes in independent:
        counts.setdefault(str(case), Counter()).update(causes)
    columns = (NORM_DRIVEN, BAD_BATCH, DATA_SHIFT, UNKNOWN)
    rows: list[list[Cell | str]] = [
        [kind, *(_number(count[cause], "") for cause in columns)] for kind, count in counts.items()
    ]
    return Table(["gradients that do not depend on the norm", *columns], rows)


def _number(value: float, unit: str) -> Cell:
    return Cell(f"{value:.0f}{unit}", value)


def _run_cells(case: LabelledRun, outcomes: Outcomes) -> list[str]:
    settings = ", ".join(f"{name}={value}" for name, value in case.settings.items() if name != "steps")
    event = case.label if case.event is None else f"{case.label}: {case.event}, step {case.at}"
    return [settings, event, outcomes["spikes"], outcomes["full"]]


def _main(arguments: Sequence[str]) -> None:
    """Train the labelled runs of some sets, draw the independent gradients, and write the page."""
    makers = {
        DEVELOPMENT: development_runs,
        HELD_OUT: held_out_runs,
        ORDINARY_DEVELOPMENT: ordinary_development_runs,
        ORDINARY_HELD_OUT: ordinary_held_out_runs,
    }
    names = {name.replace(" ", "-"): name for name in makers}
    if not arguments or not set(arguments[1:]) <= set(names):
        raise SystemExit(f"usage: {_COMMAND} PAGE.md [{' | '.join(names)}] …")
    chosen = {names[name]: makers[names[name]]() for name in arguments[1:] or names}
    outcomes = {name: (runs, judge_diagnoses(runs)) for name, runs in chosen.items()}
    gradients = independent_gradients()
    independent = list(zip(gradients, find_causes(gradients), strict=True))
    command = " ".join([_COMMAND, "PAGE.md", *arguments[1:]]) if arguments[1:] else _COMMAND
    results = write_diagnosis_page(Path(arguments[0]), outcomes, independent, command=command)
    print(goals_table(results).text())


if __name__ == "__main__":
    _main(sys.argv[1:])
