"""Test claims: train their runs, apply their rules, and write a page with a figure for each claim."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from empirical.config import HUB_DATASETS, RunConfig
from empirical.studies.claims.all_claims import all_claims
from empirical.studies.claims.claim import Claim, ClaimResult, RunGroups, judge_claim
from empirical.studies.claims.figures import write_picture
from empirical.studies.claims.rules import FAILS, HOLDS, UNDECIDED
from empirical.studies.claims.statistics import Trajectories
from empirical.studies.stored_runs import load_stored_run, train_missing
from empirical.sweeps.sweep import AnyExecutor
from simulate._files import atomic_write
from simulate.trajectories.contract import versions
from theory.arguments import check_choices

RUNS_SUBFOLDER, NETWORKS_SUBFOLDER, CLAIMS_PAGE, PARTIAL_PAGE = "runs", "networks", "claims.md", "claims_asked.md"


def choose_claims(names: Sequence[str] | None = None, *, fast: bool = False) -> list[Claim]:
    """Choose claims by name (default: all), optionally only the fast ones.

    Raises
    ------
    TypeError, ValueError : unknown name, or no claim is left.

    Examples
    --------
    >>> [claim.name for claim in choose_claims(["momentum", "sgd-is-periodic"])]
    ['momentum', 'sgd-is-periodic']
    """
    by_name = {claim.name: claim for claim in all_claims()}
    chosen = [by_name[name] for name in (by_name if names is None else check_choices("names", names, by_name))]
    chosen = [claim for claim in chosen if claim.fast or not fast]
    if not chosen:
        raise ValueError("names must select at least one claim, but none of these is fast")
    return chosen


def page_name(chosen: Sequence[Claim]) -> str:
    """File name of the page: `claims.md` for all claims, `claims_asked.md` for a selection.

    Examples
    --------
    >>> page_name(choose_claims()), page_name(choose_claims(["momentum"]))
    ('claims.md', 'claims_asked.md')
    """
    return CLAIMS_PAGE if len(chosen) == len(all_claims()) else PARTIAL_PAGE


def judge_claims(
    out: str | os.PathLike[str],
    names: Sequence[str] | None = None,
    *,
    fast: bool = False,
    paper_scale: bool = False,
    executor: AnyExecutor | None = None,
    progress: bool | None = None,
) -> list[ClaimResult]:
    """Test claims of the paper and of related work by training networks.

    Parameters
    ----------
    out : folder for runs, figures and the page. Runs found there are reused. The page is `claims.md` for all claims and
        `claims_asked.md` for a selection.
    names : names of claims; default all.
    fast : test only the claims that take two minutes in total.
    paper_scale : test the same claims and rules with ConvNets on CIFAR-10 (`empirical.at_paper_scale`). This needs a
        GPU and takes hours per claim.
    executor : as in `empirical.sweep`.
    progress : show a progress bar; by default only in a terminal.

    Returns
    -------
    One result per claim, in order.

    Raises
    ------
    TypeError, ValueError : unknown claim, or a folder that cannot be used.
    RuntimeError : a training failed.

    Source: each claim names its publication; the rules are in `empirical.studies.claims.all_claims`.

    Examples
    --------
    >>> judge_claims("claims", ["everything"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: names must be one of adam-oscillates, adamw-oscillates, all-weights-trained, ...; got 'everything'
    """
    chosen = choose_claims(names, fast=fast)
    if paper_scale:
        chosen = [claim.at_paper_scale() for claim in chosen]
    folder = Path(out)
    runs = (run for claim in chosen for run in claim.all_runs)
    train_missing(runs, folder / RUNS_SUBFOLDER, executor, progress=progress)
    results = []
    for claim in chosen:
        trained, control = (
            _load_groups(claim.runs, folder / RUNS_SUBFOLDER),
            _load_groups(claim.control, folder / RUNS_SUBFOLDER),
        )
        results.append(judge_claim(claim, trained, control))
        write_picture(folder / f"{claim.name}.png", results[-1], trained, control)
    with atomic_write(folder / page_name(chosen)) as aside:
        aside.write_text(format_page(results), encoding="utf-8")
    return results


def _load_groups(runs: RunGroups, folder: Path) -> Trajectories:
    networks = str(folder.parent / NETWORKS_SUBFOLDER)
    return {
        name: [load_stored_run(folder, run).assign_attrs(folder=networks) for run in group]
        for name, group in runs.items()
    }


def format_verdicts(results: Sequence[ClaimResult]) -> str:
    """Return a plain-text table of verdicts, one line per claim.

    Examples
    --------
    >>> format_verdicts([])
    'claim  statistic ± error  n  verdict  control'
    """
    lines = [("claim", "statistic ± error", "n", "verdict", "control")]
    for result in results:
        judgement = result.judgement
        number = f"{judgement.mean:.3g} ± {judgement.error:.2g}"
        lines.append((result.claim.name, number, str(judgement.count), judgement.verdict, result.control.verdict))
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return "\n".join("  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def format_page(results: Sequence[ClaimResult]) -> str:
    """Return the page of verdicts in Markdown.

    Examples
    --------
    >>> format_page([]).splitlines()[0]
    '<!-- written by `bnwd claims` -->'
    """
    installed = versions()
    lines = [
        "<!-- written by `bnwd claims` -->",
        f"*{datetime.date.today().isoformat()}, bnwd {installed['bnwd_version']}, "
        f"Python {installed['python_version']}, torch {torch.__version__}.*",
        "",
        "Each claim was tested by training networks on embedded data. Its rule and threshold were fixed in the code "
        "before the runs. Each claim has a control, for which it is false: there the rule must not hold. The error is "
        "the standard error over n seeds. For a share, 1 ± 0 means that every seed has the property. A claim is "
        "undecided if its seeds disagree, or if the interval of its statistic contains the threshold. The section of a "
        "claim explains its statistic and its limits.",
        "",
        _count_verdicts(results),
        "",
        "| claim | source | rule | statistic ± error | n | verdict |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        claim, judgement = result.claim, result.judgement
        number = f"{judgement.mean:.3g} ± {judgement.error:.2g}"
        lines.append(
            f"| [{claim.statement}](#{claim.name}) | {claim.source} | {claim.rule} | {number} | {judgement.count} "
            f"| **{judgement.verdict}** |"
        )
    for result in results:
        claim = result.claim
        lines += [
            "",
            f"## {claim.name}",
            "",
            f"{claim.statement} ({claim.source})",
            "",
            f"![{claim.statistic_name}]({claim.name}.png)",
            "",
            f"- Runs: {_describe(claim.runs)}.",
            f"- Statistic: {claim.statistic_name}.",
            f"- Rule: {claim.rule}. Reason: {claim.reason}.",
            f"- Result: {result.judgement}. By seed: {', '.join(f'{value:.3g}' for value in result.values)}.",
            f"- Control: {claim.control_name} ({_describe(claim.control)}). Result: {result.control}; "
            "it must not hold.",
        ]
        if not any(run.dataset in HUB_DATASETS for run in claim.all_runs):
            at_scale = _describe(claim.at_paper_scale().runs)
            lines.append(f"- At the scale of the paper, `bnwd claims --paper-scale --name {claim.name}`: {at_scale}.")
        if result.judgement.verdict != HOLDS and claim.scale:
            lines.append(f"- What the claim would need to hold: {claim.scale}.")
    return "\n".join(lines) + "\n"


def _count_verdicts(results: Sequence[ClaimResult]) -> str:
    """Number of claims by verdict, in a sentence."""
    verdicts = Counter(result.judgement.verdict for result in results)
    return (
        f"Of {len(results)} claims, {verdicts[HOLDS]} hold, {verdicts[FAILS]} fail and {verdicts[UNDECIDED]} are "
        "undecided. All networks and data sets are small; see *Runs* of each claim."
    )


def _describe(runs: RunGroups) -> str:
    descriptions = []
    for name, group in runs.items():
        first = group[0]
        network = f"{first.model} {first.resolved_width}"
        other_settings = "".join(
            f", {name} = {value}" for name, value in first.to_dict().items() if name in _unusual(first)
        )
        lr = f"{first.lr:g}" if isinstance(first.lr, float) else repr(first.lr)
        label = "" if len(runs) == 1 else f"{name}: "
        descriptions.append(
            f"{label}{network}, η = {lr}, λ = {first.wd:g}, {first.optimizer!r}, {first.dataset}, "
            f"{first.steps} steps{other_settings}"
        )
    return "; ".join(descriptions)


def _unusual(run: RunConfig) -> set[str]:
    """Names of settings that differ from the default, without those that are always listed or have no effect."""
    listed = {"lr", "wd", "model", "width", "optimizer", "dataset", "steps", "seed", "evaluate_every", "device"}
    defaults = {f.name: f.default for f in dataclasses.fields(run)}
    return {name for name, value in defaults.items() if getattr(run, name) != value} - listed
