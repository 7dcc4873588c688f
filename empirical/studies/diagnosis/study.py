"""Judge the diagnosis of spikes on labelled runs: `python -m empirical.studies.diagnosis.study PAGE.md`."""

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
from simulate.diagnosis.spikes import LOOKED_BACK
from simulate.trajectories.contract import versions

RIGHT, WRONG, MISSED = "right", "wrong", "missed"
OUTCOMES = (RIGHT, UNKNOWN, MISSED, WRONG)
NO_EFFECT = "no effect"
_NEAR = (-2, 30)  # steps from an event in which its spike begins
_MOST = 0.8  # share of the spikes of a periodic training that must be norm-driven


def _without(*names: str) -> Callable[[xr.Dataset], xr.Dataset]:
    def lacking(log: xr.Dataset) -> xr.Dataset:
        kept = {key: value for key, value in log.attrs.items() if key not in names}
        return log.drop_vars(names, errors="ignore").drop_attrs().assign_attrs(kept)

    return lacking


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


def outcome(case: LabelledRun, found: Diagnosis) -> str:
    """Judge a diagnosis by what was made to happen.

    - Noise: right without spikes, unknown if no spike has a cause.
    - Norm-driven: right if there are two such spikes and more, and eight in ten, and the rest is unknown; unknown if
      fewer have a cause; missed without spikes.
    - An event: right if the first spike that begins from two steps before to thirty after it has its label;
      missed if there is none. A cause for a spike before it is wrong, if it is not that of a norm that falls.

    Parameters
    ----------
    case : what was trained.
    found : its diagnosis.

    Returns
    -------
    str : "right", "unknown", "missed" or "wrong".

    Examples
    --------
    >>> import numpy as np
    >>> quiet = np.random.default_rng(0).uniform(1, 2, 400)
    >>> outcome(LabelledRun("noise", {}), simulate.diagnose({"loss": quiet}))
    'right'
    """
    causes = [spike.cause for spike in found.spikes]
    known = [cause for cause in causes if cause != UNKNOWN]
    if case.label == NOISE:
        return RIGHT if not causes else WRONG if known else UNKNOWN
    if case.at is None:
        if set(known) - {case.label}:
            return WRONG
        enough = len(known) >= max(2, _MOST * len(causes))
        return RIGHT if enough else UNKNOWN if causes else MISSED
    early = {spike.cause for spike in found.spikes if spike.step < case.at + _NEAR[0]}
    if early - {UNKNOWN, NORM_DRIVEN}:
        return WRONG
    near = [s.cause for s in found.spikes if case.at + _NEAR[0] <= s.step <= case.at + _NEAR[1]]
    return MISSED if not near else {case.label: RIGHT, UNKNOWN: UNKNOWN}.get(near[0], WRONG)


def judge_diagnoses(
    cases: Sequence[LabelledRun], executor: Executor | None = None, *, progress: bool | None = None
) -> list[dict[str, str]]:
    """Train cases and judge the diagnosis of each log, whole and lacking.

    Parameters
    ----------
    cases : what to train.
    executor : of processes; by default one for each processor.
    progress : show a progress bar; by default only in a terminal.

    Returns
    -------
    list of the outcome for each of `LOGS`, or "no effect", in the order of the cases; and "spikes": what was found.

    Examples
    --------
    >>> import concurrent.futures
    >>> with concurrent.futures.ThreadPoolExecutor(1) as here:
    ...     (judged,) = judge_diagnoses([LabelledRun("noise", {"width": 4, "lr": 0.5, "wd": 0.02, "steps": 300})], here)
    >>> judged["full"], judged["loss alone"]
    ('right', 'right')
    """
    hidden = None if progress is None else not progress
    if executor is None:
        with ProcessPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as own:
            return list(tqdm(own.map(_judged, cases), "labelled runs", len(cases), disable=hidden))
    return list(tqdm(executor.map(_judged, cases), "labelled runs", len(cases), disable=hidden))


def has_effect(case: LabelledRun, log: xr.Dataset) -> bool:
    """Whether what was made to happen shows: within 30 steps a loss above all of the 200 before, or none at all.

    A network can be dead by then, or its usual losses as large.

    Parameters
    ----------
    case : what was to happen.
    log : of its training.

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
    return not np.isfinite(then).all() or bool(then.max() > loss[max(case.at - LOOKED_BACK, 0) : case.at].max())


def _judged(case: LabelledRun) -> dict[str, str]:
    return judged_log(case, train_labelled(case))


def judged_log(case: LabelledRun, log: xr.Dataset) -> dict[str, str]:
    """Judge the diagnosis of a log, whole and lacking.

    Parameters
    ----------
    case : what was made to happen.
    log : of its training.

    Examples
    --------
    >>> log = simulate.training_log({"loss": np.random.default_rng(0).uniform(1, 2, 400)})
    >>> judged_log(LabelledRun("noise", {}), log)["full"]
    'right'
    """
    found = {name: simulate.diagnose(lacking(log)) for name, lacking in LOGS.items()}
    counts = Counter(spike.cause for spike in found["full"].spikes)
    told = ", ".join(f"{count} {cause}" for cause, count in counts.most_common()) or "none"
    judged = {name: outcome(case, each) if has_effect(case, log) else NO_EFFECT for name, each in found.items()}
    return {**judged, "spikes": told}


def format_outcomes(trials: Mapping[str, tuple[Sequence[LabelledRun], Sequence[Mapping[str, str]]]]) -> str:
    """Write the outcomes as Markdown: shares of the runs with an effect, by label and by log, and every case.

    Parameters
    ----------
    trials : cases and their outcomes, by name.

    Examples
    --------
    >>> case = LabelledRun("noise", {"width": 4})
    >>> page = format_outcomes({"few": ([case], [{name: "right" for name in LOGS} | {"spikes": "none"}])})
    >>> "| few | 1 | 100 % | 0 % | 0 % | 0 % |" in page
    True
    """
    lines = [
        f"*bnwd {versions()['bnwd_version']}, Python {versions()['python_version']}, torch {torch.__version__}.*",
        "",
        f"| full logs | runs | {' | '.join(OUTCOMES)} |",
        "| --- " * 6 + "|",
    ]
    for name, (_, judged) in trials.items():
        lines.append(f"| {name} | {_shares([each['full'] for each in judged])} |")
    for name, (cases, judged) in trials.items():
        lines += ["", f"| {name}: label | runs | {' | '.join(OUTCOMES)} |", "| --- " * 6 + "|"]
        for label in LABELS:
            of_it = [each["full"] for case, each in zip(cases, judged, strict=True) if case.label == label]
            if of_it:
                lines.append(f"| {label} | {_shares(of_it)} |")
        lines += ["", f"| {name}: log | runs | {' | '.join(OUTCOMES)} |", "| --- " * 6 + "|"]
        lines += [f"| {log} | {_shares([each[log] for each in judged])} |" for log in LOGS]
    for name, (cases, judged) in trials.items():
        lines += ["", f"| {name}: settings | made to happen | spikes found | outcome |", "| --- " * 4 + "|"]
        for case, each in zip(cases, judged, strict=True):
            made = case.label if case.event is None else f"{case.label}: {case.event}, step {case.at}"
            lines.append(f"| {_settings(case.settings)} | {made} | {each['spikes']} | {each['full']} |")
    return "\n".join(lines) + "\n"


def _shares(outcomes: Sequence[str]) -> str:
    """Number of runs with an effect, and shares of them."""
    counted = [each for each in outcomes if each != NO_EFFECT]
    shares = (f"{counted.count(each) / max(len(counted), 1):.0%}".replace("%", " %") for each in OUTCOMES)
    return " | ".join([str(len(counted)), *shares])


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items() if name != "steps")


def main(arguments: Sequence[str]) -> None:
    """Train all labelled runs and write the page."""
    if len(arguments) != 1:
        raise SystemExit("usage: python -m empirical.studies.diagnosis.study PAGE.md")
    trials = {"development": development_runs(), "held out": held_out_runs()}
    judged = {name: (cases, judge_diagnoses(cases)) for name, cases in trials.items()}
    page = "<!-- written by `python -m empirical.studies.diagnosis.study` -->\n" + format_outcomes(judged)
    Path(arguments[0]).write_text(page)


if __name__ == "__main__":
    main(sys.argv[1:])
