"""Test the diagnosis of spikes on labelled runs: `python -m empirical.studies.diagnosis.study PAGE.md`."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

import simulate
from empirical.studies.diagnosis.labelled_runs import (
    LABELS,
    NOISE,
    LabelledRun,
    development_runs,
    held_out_runs,
    train_labelled,
)
from simulate.diagnosis.diagnosis import NORM_DRIVEN, UNKNOWN, Diagnosis
from simulate.diagnosis.rules import THRESHOLDS
from simulate.trajectories.contract import versions

RIGHT, WRONG, MISSED = "right", "wrong", "missed"
OUTCOMES = (RIGHT, UNKNOWN, MISSED, WRONG)
NO_EFFECT = "no effect"
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


def diagnosis_outcome(case: LabelledRun, diagnosis: Diagnosis) -> str:
    """Compare a diagnosis with the label of its run.

    - Noise: right without spikes; unknown if no spike has a cause; else wrong.
    - Norm-driven: right if at least two spikes, and at least 80 % of all, are norm-driven and the rest is unknown;
      unknown if fewer are; missed without spikes; wrong with any other cause.
    - Event: right if the first spike from two steps before to thirty after the event has its label; missed without such
      a spike. An earlier spike with a cause other than norm-driven makes the outcome wrong.

    Parameters
    ----------
    case : the labelled run.
    diagnosis : diagnosis of its log.

    Returns
    -------
    str : "right", "unknown", "missed" or "wrong".

    Examples
    --------
    >>> import numpy as np
    >>> loss = np.random.default_rng(0).uniform(1, 2, 400)
    >>> diagnosis_outcome(LabelledRun("noise", {}), simulate.diagnose({"loss": loss}))
    'right'
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


def judge_diagnoses(
    cases: Sequence[LabelledRun], executor: Executor | None = None, *, progress: bool | None = None
) -> list[dict[str, str]]:
    """Train labelled runs and test the diagnosis of each log, complete and with columns removed.

    Parameters
    ----------
    cases : runs to train.
    executor : runs the trainings; default: one process per processor.
    progress : show a progress bar; by default only in a terminal.

    Returns
    -------
    list of dict, one per case: outcome or "no effect" for each of `LOGS`, and the spikes of the full log as "spikes".

    Examples
    --------
    >>> import concurrent.futures
    >>> with concurrent.futures.ThreadPoolExecutor(1) as here:
    ...     (result,) = judge_diagnoses([LabelledRun("noise", {"width": 4, "lr": 0.5, "wd": 0.02, "steps": 300})], here)
    >>> result["full"], result["loss alone"]
    ('right', 'right')
    """
    hidden = None if progress is None else not progress
    if executor is None:
        with ProcessPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as own:
            return list(tqdm(own.map(_train_and_judge, cases), "labelled runs", len(cases), disable=hidden))
    return list(tqdm(executor.map(_train_and_judge, cases), "labelled runs", len(cases), disable=hidden))


def has_effect(case: LabelledRun, log: xr.Dataset) -> bool:
    """Whether the event shows within 30 steps: a loss above all of the 200 before, or one that is not finite.

    An event has no effect if the network is dead by then or its usual losses are as large.

    Parameters
    ----------
    case : the labelled run.
    log : log of its training.

    Examples
    --------
    >>> log = xr.Dataset({"loss": ("step", [1.0, 2.0, 1.0, 3.0])})
    >>> has_effect(LabelledRun("bad batch", {}, "one label", 2), log), has_effect(LabelledRun("noise", {}), log)
    (True, True)
    """
    if case.at is None:
        return True
    loss = log.loss.values
    then = loss[case.at : case.at + _NEAR[1] + 1]
    return not np.isfinite(then).all() or bool(
        then.max() > loss[max(case.at - THRESHOLDS.compared_rows, 0) : case.at].max()
    )


def _train_and_judge(case: LabelledRun) -> dict[str, str]:
    return judge_log(case, train_labelled(case))


def judge_log(case: LabelledRun, log: xr.Dataset) -> dict[str, str]:
    """Test the diagnosis of a log, complete and with columns removed.

    Parameters
    ----------
    case : the labelled run.
    log : log of its training.

    Examples
    --------
    >>> log = simulate.training_log({"loss": np.random.default_rng(0).uniform(1, 2, 400)})
    >>> judge_log(LabelledRun("noise", {}), log)["full"]
    'right'
    """
    diagnoses = {name: simulate.diagnose(remove(log)) for name, remove in LOGS.items()}
    counts = Counter(spike.cause for spike in diagnoses["full"].spikes)
    summary = ", ".join(f"{count} {cause}" for cause, count in counts.most_common()) or "none"
    outcomes = {
        name: diagnosis_outcome(case, diagnosis) if has_effect(case, log) else NO_EFFECT
        for name, diagnosis in diagnoses.items()
    }
    return {**outcomes, "spikes": summary}


def format_diagnosis_outcomes(studies: Mapping[str, tuple[Sequence[LabelledRun], Sequence[Mapping[str, str]]]]) -> str:
    """Format outcomes as Markdown: shares of the runs with an effect, by label and by log, and a row for each run.

    Parameters
    ----------
    studies : labelled runs and their outcomes, by name.

    Examples
    --------
    >>> case = LabelledRun("noise", {"width": 4})
    >>> page = format_diagnosis_outcomes({"few": ([case], [{name: "right" for name in LOGS} | {"spikes": "none"}])})
    >>> "| few | 1 | 100 % | 0 % | 0 % | 0 % |" in page
    True
    """
    lines = [
        f"*bnwd {versions()['bnwd_version']}, Python {versions()['python_version']}, torch {torch.__version__}.*",
        "",
        f"| full logs | runs | {' | '.join(OUTCOMES)} |",
        "| --- " * 6 + "|",
    ]
    for name, (_, results) in studies.items():
        lines.append(f"| {name} | {_shares([outcomes['full'] for outcomes in results])} |")
    for name, (cases, results) in studies.items():
        lines += ["", f"| {name}: label | runs | {' | '.join(OUTCOMES)} |", "| --- " * 6 + "|"]
        for label in LABELS:
            of_label = [outcomes["full"] for case, outcomes in zip(cases, results, strict=True) if case.label == label]
            if of_label:
                lines.append(f"| {label} | {_shares(of_label)} |")
        lines += ["", f"| {name}: log | runs | {' | '.join(OUTCOMES)} |", "| --- " * 6 + "|"]
        lines += [f"| {log} | {_shares([outcomes[log] for outcomes in results])} |" for log in LOGS]
    for name, (cases, results) in studies.items():
        lines += ["", f"| {name}: settings | event | spikes found | outcome |", "| --- " * 4 + "|"]
        for case, outcomes in zip(cases, results, strict=True):
            event = case.label if case.event is None else f"{case.label}: {case.event}, step {case.at}"
            lines.append(f"| {_settings(case.settings)} | {event} | {outcomes['spikes']} | {outcomes['full']} |")
    return "\n".join(lines) + "\n"


def _shares(outcomes: Sequence[str]) -> str:
    """Number of runs with an effect, and the share of each outcome among them."""
    counted = [outcome for outcome in outcomes if outcome != NO_EFFECT]
    shares = (f"{counted.count(outcome) / max(len(counted), 1):.0%}".replace("%", " %") for outcome in OUTCOMES)
    return " | ".join([str(len(counted)), *shares])


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items() if name != "steps")


def _main(arguments: Sequence[str]) -> None:
    """Train all labelled runs and write the page."""
    if len(arguments) != 1:
        raise SystemExit("usage: python -m empirical.studies.diagnosis.study PAGE.md")
    sets = {"development": development_runs(), "held-out": held_out_runs()}
    studies = {name: (cases, judge_diagnoses(cases)) for name, cases in sets.items()}
    page = "<!-- written by `python -m empirical.studies.diagnosis.study` -->\n" + format_diagnosis_outcomes(studies)
    Path(arguments[0]).write_text(page)


if __name__ == "__main__":
    _main(sys.argv[1:])
