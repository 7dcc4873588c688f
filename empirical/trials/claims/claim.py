"""A statement on trial: what is trained, what is measured, and by which rule it is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from empirical.config import RunConfig
from empirical.trials.claims.figures import Figure, Trajectories
from empirical.trials.claims.rules import Judged, Rule

# By group, a run for each seed; figures pair runs of the same seed.
Runs = Mapping[str, Sequence[RunConfig]]


@dataclass(frozen=True)
class Claim:
    """One statement, its experiment, and a control that its rule must not pass.

    Attributes
    ----------
    name : of one or a few words, with hyphens.
    statement : one sentence.
    source : where it is stated.
    runs : what is trained, by group.
    figure : one number for each seed, from the trajectories.
    figure_name : what it is, with its unit.
    rule, reason : by which it is judged, and why with this threshold.
    control : runs of which the statement is not true, of the same groups.
    control_name : what they are.
    shown : group whose first run is drawn, of claim and control.
    paper : the experiment at the paper's scale, for a GPU; empty where the paper has none.
    scale : what would have to be larger where the statement does not hold here.
    fast : whether it is part of the quick subset.
    """

    name: str
    statement: str
    source: str
    runs: Runs
    figure: Figure
    figure_name: str
    rule: Rule
    reason: str
    control: Runs
    control_name: str
    shown: str
    paper: Sequence[RunConfig] = ()
    scale: str = ""
    fast: bool = False

    @property
    def all_runs(self) -> list[RunConfig]:
        """Runs of claim and control."""
        return [run for runs in (self.runs, self.control) for group in runs.values() for run in group]


@dataclass(frozen=True)
class Outcome:
    """What came out of a claim.

    Attributes
    ----------
    claim : what was on trial.
    judged, control : verdicts of the runs and of the control.
    figures, control_figures : one for each seed.
    """

    claim: Claim
    judged: Judged
    control: Judged
    figures: npt.NDArray[np.float64] = field(repr=False)
    control_figures: npt.NDArray[np.float64] = field(repr=False)


def outcome(claim: Claim, runs: Trajectories, control: Trajectories) -> Outcome:
    """Judge a claim by what was trained.

    Parameters
    ----------
    claim : the statement.
    runs, control : trajectories of its groups.

    Examples
    --------
    >>> import xarray as xr
    >>> from empirical.trials.claims.rules import Between
    >>> steps = {"a": [xr.Dataset({"norm": ("step", [1.0, 1.1 + seed / 100])}) for seed in range(3)]}
    >>> falls = {"a": [xr.Dataset({"norm": ("step", [1.0, 0.9])})] * 3}
    >>> claim = Claim("rises", "The norm rises.", "nobody", {}, lambda runs: [float(r.norm[-1]) for r in runs["a"]],
    ...               "last norm", Between(low=1.0), "it began at 1", {}, "falls", "a")
    >>> found = outcome(claim, steps, falls)
    >>> found.judged.verdict, found.control.verdict
    ('holds', 'does not hold here')
    """
    figures, control_figures = (
        np.asarray(claim.figure(each), dtype=np.float64).reshape(-1) for each in (runs, control)
    )
    return Outcome(claim, claim.rule.judge(figures), claim.rule.judge(control_figures), figures, control_figures)
