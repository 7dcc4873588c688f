"""Study of the diagnosis of spikes on labelled runs: `python -m empirical.studies.diagnosis PAGE.md`."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

import simulate
from empirical.reports.tables import Cell, Table
from empirical.studies.labelled_runs import (
    LABELS,
    NOISE,
    IndependentGradients,
    LabelledRun,
    development_runs,
    held_out_runs,
    independent_gradients,
    log_independent_gradients,
    train_labelled,
)
from empirical.studies.study import Limit, Result, Rule, Study, goals_table, share_with_count, write_page
from simulate.diagnosis.diagnosis import Diagnosis
from simulate.diagnosis.rules import BAD_BATCH, DATA_SHIFT, NORM_DRIVEN, THRESHOLDS, UNKNOWN

RIGHT, WRONG, MISSED = "right", "wrong", "missed"
OUTCOMES = (RIGHT, UNKNOWN, MISSED, WRONG)
NO_EFFECT, HELD_OUT = "no effect", "held-out"
_Case = TypeVar("_Case")
_Answer = TypeVar("_Answer")
_NEAR = (-2, 30)  # steps from an event to the first step of its spike
_MOST = 0.8  # least share of norm-driven spikes in a periodic training


def _without(*names: str) -> Callable[[xr.Dataset], xr.Dataset]:
    def remove(log: xr.Dataset) -> xr.Dataset:
        kept = {key: value for key, value in log.attrs.items() if key not in names}
        return log.drop_vars(names, errors="ignore").drop_attrs().assign_attrs(kept)

    return remove


def _every(rows: int) -> Callable[[xr.Dataset], xr.Dataset]:
    return lambda log: log.isel(step=slice(None, None, rows))


LOGS: Mapping[str, Callable[[xr.Dataset], xr.Dataset]] = {
    "full": lambda log: log,
    "no gradient norm": _without("grad_norm"),
    "no norm": _without("norm", "grad_norm"),
    "no learning rate": _without("lr"),
    "no weight decay": _without("wd"),
    "loss alone": _without("norm", "grad_norm", "lr", "wd"),
    "every 5th step": _every(5),
    "every 20th step": _every(20),
}
# outcome for each of `LOGS`, or "no effect", and the spikes of the full log as "spikes"
Outcomes = Mapping[str, str]


def _share_study(*, outcome: str, log: str, rule: Rule) -> Study:
    def statistic(results: Sequence[Outcomes]) -> list[float]:
        return [float(result == outcome) for result in _with_effect(results, log)]

    claim = f"{HELD_OUT} runs, {'full logs' if log == 'full' else log}: {outcome}"
    return Study(
        name=f"{outcome}-{log}".replace(" ", "-"),
        claim=claim,
        source="docs/diagnosis.md",
        statistic=statistic,
        rule=rule,
        form=share_with_count,
        reason="about nine in ten causes are to be right; logs without a column must be unknown rather than wrong",
    )


DIAGNOSIS_STUDIES: tuple[Study, ...] = (
    _share_study(outcome=RIGHT, log="full", rule=Limit(at_least=0.9, form=".0%")),
    _share_study(outcome=UNKNOWN, log="full", rule=Limit(at_most=0.1, form=".0%")),
    *(
        _share_study(outcome=WRONG, log=log, rule=Limit(at_most=0.02, form=".0%"))
        for log in LOGS
        if log not in ("full", "no gradient norm")
    ),
)


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


def diagnosis_outcome(case: LabelledRun, diagnosis: Diagnosis) -> str:
    """Compare a diagnosis with the label of its run: "right", "unknown", "missed" or "wrong".

    - Noise: right without spikes; unknown if no spike has a cause; else wrong.
    - Norm-driven: right if at least two spikes, and at least 80 % of all, are norm-driven and the rest is unknown;
      unknown if fewer are; missed without spikes; wrong with any other cause.
    - Event: right if the first spike from two steps before to thirty after the event has its label; missed without such
      a spike. An earlier spike with a cause other than norm-driven makes the outcome wrong.
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
    early = {spike.cause for spike in diagnosis.spikes if spike.step < case.at + _NEAR[0]}
    if early - {UNKNOWN, NORM_DRIVEN}:
        return WRONG
    near = [spike.cause for spike in diagnosis.spikes if case.at + _NEAR[0] <= spike.step <= case.at + _NEAR[1]]
    return MISSED if not near else {case.label: RIGHT, UNKNOWN: UNKNOWN}.get(near[0], WRONG)


def has_effect(case: LabelledRun, log: xr.Dataset) -> bool:
    """Whether the event shows within 30 steps: a loss above all of the 200 before, or one that is not finite.

    An event has no effect if the network is dead by then or its usual losses are as large.
    """
    if case.at is None:
        return True
    loss = log.loss.values
    then = loss[case.at : case.at + _NEAR[1] + 1]
    return not np.isfinite(then).all() or bool(
        then.max() > loss[max(case.at - THRESHOLDS.compared_rows, 0) : case.at].max()
    )


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
    hidden = None if progress is None else not progress
    if executor is None:
        with ProcessPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as own:
            return _map(work, cases, name, own, progress)
    return list(tqdm(executor.map(work, cases), name, len(cases), disable=hidden))


def _train_and_judge(case: LabelledRun) -> Outcomes:
    return judge_log(case, train_labelled(case))


def judge_log(case: LabelledRun, log: xr.Dataset) -> Outcomes:
    """Test the diagnosis of a log, complete and with columns removed.

    Examples
    --------
    >>> log = simulate.read_log({"loss": np.random.default_rng(0).uniform(1, 2, 400)})
    >>> judge_log(LabelledRun(label="noise", settings={}), log)["full"]
    'right'
    """
    diagnoses = {name: simulate.diagnose(remove(log)) for name, remove in LOGS.items()}
    counts = Counter(spike.cause for spike in diagnoses["full"].spikes)
    summary = ", ".join(f"{count} {cause}" for cause, count in counts.most_common()) or "none"
    shows = has_effect(case, log)
    outcomes = {
        name: diagnosis_outcome(case, diagnosis) if shows else NO_EFFECT for name, diagnosis in diagnoses.items()
    }
    return {**outcomes, "spikes": summary}


def write_diagnosis_page(
    path: Path,
    sets: Mapping[str, tuple[Sequence[LabelledRun], Sequence[Outcomes]]],
    independent: Sequence[tuple[IndependentGradients, Sequence[str]]] = (),
) -> list[Result]:
    """Write goals, shares of the runs with an effect by label and by log, and a row for each run.

    Parameters
    ----------
    path : Markdown file.
    sets : labelled runs and their outcomes, by name.
    independent : independent gradients and the causes of their spikes.

    Returns
    -------
    Results of the studies of the set "held-out" and of the independent gradients, if they are there.
    """
    results = [study.judge(sets[HELD_OUT][1]) for study in DIAGNOSIS_STUDIES] if HELD_OUT in sets else []
    if independent:
        results.append(INDEPENDENT_STUDY.judge([cause for _, causes in independent for cause in causes]))
    tables = [_shares("full logs", {name: _with_effect(outcomes, "full") for name, (_, outcomes) in sets.items()})]
    for name, (cases, outcomes) in sets.items():
        by_label = {
            label: [row for case, row in zip(cases, outcomes, strict=True) if case.label == label] for label in LABELS
        }
        labels = {label: _with_effect(rows, "full") for label, rows in by_label.items() if rows}
        tables.append(_shares(f"{name}: label", labels))
        tables.append(_shares(f"{name}: log", {log: _with_effect(outcomes, log) for log in LOGS}))
    for name, (cases, outcomes) in sets.items():
        rows = [_run_cells(case, row) for case, row in zip(cases, outcomes, strict=True)]
        tables.append(Table([f"{name}: settings", "event", "spikes found", "outcome"], rows))
    if independent:
        tables.append(_causes_table(independent))
    goals = [goals_table(results)] if results else []
    write_page(path, "python -m empirical.studies.diagnosis", *(table.markdown() for table in (*goals, *tables)))
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
    """Train all labelled runs, draw the independent gradients, and write the page."""
    if len(arguments) != 1:
        raise SystemExit("usage: python -m empirical.studies.diagnosis PAGE.md")
    sets = {"development": development_runs(), HELD_OUT: held_out_runs()}
    outcomes = {name: (runs, judge_diagnoses(runs)) for name, runs in sets.items()}
    gradients = independent_gradients()
    independent = list(zip(gradients, find_causes(gradients), strict=True))
    print(goals_table(write_diagnosis_page(Path(arguments[0]), outcomes, independent)).text())


if __name__ == "__main__":
    _main(sys.argv[1:])
