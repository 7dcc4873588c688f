"""Put statements on trial: train what they need, judge, and write the page with a picture for each."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from empirical.config import HUB_DATASETS, RunConfig
from empirical.studies.claims.all_claims import all_claims
from empirical.studies.claims.claim import Claim, Outcome, Runs, outcome
from empirical.studies.claims.figures import write_picture
from empirical.studies.claims.rules import HOLDS
from empirical.studies.claims.statistics import Trajectories
from empirical.studies.stored_runs import stored_run, train_missing
from empirical.sweeps.sweep import AnyExecutor
from simulate._files import atomic_write
from simulate.trajectories.contract import versions
from theory.arguments import check_choices

RUNS, NETWORKS, PAGE, PART = "runs", "networks", "claims.md", "claims_asked.md"


def chosen_claims(names: Sequence[str] | None = None, *, fast: bool = False) -> list[Claim]:
    """Choose statements: all, or those that are named; of these all, or the fast ones.

    Raises
    ------
    TypeError, ValueError : there is no such statement, or none is left.

    Examples
    --------
    >>> [claim.name for claim in chosen_claims(["momentum", "sgd-is-periodic"])]
    ['momentum', 'sgd-is-periodic']
    """
    known = {claim.name: claim for claim in all_claims()}
    chosen = [known[name] for name in (known if names is None else check_choices("names", names, known))]
    chosen = [claim for claim in chosen if claim.fast or not fast]
    if not chosen:
        raise ValueError("names must leave at least one statement, got none")
    return chosen


def page_name(chosen: Sequence[Claim]) -> str:
    """Name of the page of some statements, which does not replace that of all.

    Examples
    --------
    >>> page_name(chosen_claims()), page_name(chosen_claims(["momentum"]))
    ('claims.md', 'claims_asked.md')
    """
    return PAGE if len(chosen) == len(all_claims()) else PART


def judge_claims(
    out: str | os.PathLike[str],
    names: Sequence[str] | None = None,
    *,
    fast: bool = False,
    paper_scale: bool = False,
    executor: AnyExecutor | None = None,
    progress: bool | None = None,
) -> list[Outcome]:
    """Put statements of the paper and its neighbours on trial with real training.

    Parameters
    ----------
    out : folder of the runs, which are used again; pictures are written there, and `claims.md`, or `claims_asked.md`
        where these are not all statements.
    names : of the statements; default all.
    fast : only those that need two minutes together.
    paper_scale : the same statements and rules with ConvNets on CIFAR-10 (`empirical.at_paper_scale`), for a GPU: hours
        for each.
    executor : as in `empirical.sweep`.
    progress : show a progress bar; by default only in a terminal.

    Returns
    -------
    Outcomes, in the order of the statements.

    Raises
    ------
    TypeError, ValueError : no such statement, or a folder that cannot be used.
    RuntimeError : a training failed.

    Source: the statements' own; the rules are in `empirical.studies.claims.all_claims`.

    Examples
    --------
    >>> judge_claims("claims", ["everything"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: names must be one of adam-swings, adamw-swings, all-weights-trained, ...; got 'everything'
    """
    chosen = chosen_claims(names, fast=fast)
    if paper_scale:
        chosen = [claim.at_paper_scale() for claim in chosen]
    folder = Path(out)
    runs = (run for claim in chosen for run in claim.all_runs)
    train_missing(runs, folder / RUNS, executor, progress=progress)
    outcomes = []
    for claim in chosen:
        trained, control = _opened(claim.runs, folder / RUNS), _opened(claim.control, folder / RUNS)
        outcomes.append(outcome(claim, trained, control))
        write_picture(folder / f"{claim.name}.png", outcomes[-1], trained, control)
    with atomic_write(folder / page_name(chosen)) as aside:
        aside.write_text(format_page(outcomes), encoding="utf-8")
    return outcomes


def _opened(runs: Runs, folder: Path) -> Trajectories:
    networks = str(folder.parent / NETWORKS)
    return {
        name: [stored_run(folder, run).assign_attrs(folder=networks) for run in group] for name, group in runs.items()
    }


def format_outcomes(outcomes: Sequence[Outcome]) -> str:
    """Lay verdicts out in plain text, a line for each statement.

    Examples
    --------
    >>> format_outcomes([])
    'statement  figure ± error  n  verdict  control'
    """
    lines = [("statement", "figure ± error", "n", "verdict", "control")]
    for each in outcomes:
        figure = f"{each.judged.figure:.3g} ± {each.judged.error:.2g}"
        lines.append((each.claim.name, figure, str(each.judged.count), each.judged.verdict, each.control.verdict))
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return "\n".join("  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def format_page(outcomes: Sequence[Outcome]) -> str:
    """Write the page of all statements in Markdown.

    Examples
    --------
    >>> format_page([]).splitlines()[0]
    '<!-- written by `bnwd claims` -->'
    """
    said = versions()
    lines = [
        "<!-- written by `bnwd claims` -->",
        f"*{datetime.date.today().isoformat()}, bnwd {said['bnwd_version']}, Python {said['python_version']}, "
        f"torch {torch.__version__}.*",
        "",
        "Each statement was put on trial with real training on embedded data. Its rule and threshold were fixed in the "
        "code before the runs and can say no: of a control, for which the statement is not true, it must not say that "
        "it holds. The error is the standard error over n seeds; where the rule is a share, 1 ± 0 is a yes of every "
        "seed. What a figure is, and its limits, stands with the statement.",
        "",
        "| statement | source | figure ± error | n | verdict |",
        "| --- | --- | --- | --- | --- |",
    ]
    for each in outcomes:
        figure = f"{each.judged.figure:.3g} ± {each.judged.error:.2g}"
        lines.append(
            f"| [{each.claim.statement}](#{each.claim.name}) | {each.claim.source} | {figure} | {each.judged.count} "
            f"| **{each.judged.verdict}** |"
        )
    for each in outcomes:
        claim = each.claim
        lines += [
            "",
            f"## {claim.name}",
            "",
            f"{claim.statement} ({claim.source})",
            "",
            f"![{claim.figure_name}]({claim.name}.png)",
            "",
            f"- Trained: {_described(claim.runs)}.",
            f"- Measured: {claim.figure_name}; rule: {claim.rule}. Why: {claim.reason}.",
            f"- Found: {each.judged}. By seed: {', '.join(f'{value:.3g}' for value in each.figures)}.",
            f"- Control, {claim.control_name} ({_described(claim.control)}): {each.control}.",
        ]
        if not any(run.dataset in HUB_DATASETS for run in claim.all_runs):
            at_scale = _described(claim.at_paper_scale().runs)
            lines.append(f"- At the paper's scale, `bnwd claims --paper-scale --name {claim.name}`: {at_scale}.")
        if each.judged.verdict != HOLDS and claim.scale:
            lines.append(f"- What it would take: {claim.scale}.")
    return "\n".join(lines) + "\n"


def _described(runs: Runs) -> str:
    told = []
    for name, group in runs.items():
        first = group[0]
        network = f"{first.model} {first.resolved_width}"
        further = "".join(f", {name} = {value}" for name, value in first.to_dict().items() if name in _unusual(first))
        lr = f"{first.lr:g}" if isinstance(first.lr, float) else repr(first.lr)
        label = "" if len(runs) == 1 else f"{name}: "
        told.append(
            f"{label}{network}, η = {lr}, λ = {first.wd:g}, {first.optimizer!r}, {first.dataset}, "
            f"{first.steps} steps{further}"
        )
    return "; ".join(told)


def _unusual(run: RunConfig) -> set[str]:
    """Names of the settings that are not as by default, without those that are always told or decide nothing."""
    told = {"lr", "wd", "model", "width", "optimizer", "dataset", "steps", "seed", "evaluate_every", "device"}
    ordinary = {f.name: f.default for f in dataclasses.fields(run)}
    return {name for name, value in ordinary.items() if getattr(run, name) != value} - told
