"""A statement on trial: what is trained, what is measured, and by which rule it is judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from empirical.config import RunConfig
from empirical.presets import at_paper_scale
from empirical.studies.claims.rules import Judged, Rule
from empirical.studies.claims.statistics import Figure, Trajectories

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
    shown : group of the control whose first run is drawn, beside the first of each group of the claim.
    drawn : what of it: a variable of a trajectory, or `figures.GRADIENT`.
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
    drawn: str = "norm"
    scale: str = ""
    fast: bool = False

    def at_paper_scale(self) -> Claim:
        """The same statement, figure and rule, with claim and control at the scale of the paper, for a GPU.

        Examples
        --------
        >>> from empirical.studies.claims.all_claims import all_claims
        >>> all_claims()[0].at_paper_scale().runs["all"][0].dataset
        'cifar10'
        """
        runs, control = (
            {name: [at_paper_scale(run) for run in group] for name, group in each.items()}
            for each in (self.runs, self.control)
        )
        return dataclasses.replace(self, runs=runs, control=control)

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
    >>> from empirical.studies.claims.rules import Between
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
    # of a loss that overflowed no mean can be told
    figures, control_figures = (np.where(np.isfinite(each), each, np.nan) for each in (figures, control_figures))
    return Outcome(claim, claim.rule.judge(figures), claim.rule.judge(control_figures), figures, control_figures)
