"""A claim: what is trained, what is measured, and the rule that decides."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from empirical.config import RunConfig
from empirical.presets import at_paper_scale
from empirical.studies.claims.rules import DecisionRule, Judgement
from empirical.studies.claims.statistics import Statistic, Trajectories

# Runs by group, one per seed. Statistics of two groups pair their runs in this order.
RunGroups = Mapping[str, Sequence[RunConfig]]


@dataclass(frozen=True)
class Claim:
    """One claim, its experiment, and a control that must not pass its rule.

    Attributes
    ----------
    name : a few words with hyphens.
    statement : one sentence.
    source : publication that makes the claim.
    runs : runs to train, by group.
    statistic : returns one number per seed, computed from the trajectories.
    statistic_name : what the number is, with its unit.
    rule, reason : rule that decides, and the reason for its threshold.
    control : runs for which the claim is false, with the same groups.
    control_name : description of the control.
    drawn_group : group of the control whose first run is drawn, next to the first run of each group of the claim.
    drawn_variable : variable of a trajectory to draw, or `statistics.PLAIN_GRADIENT`.
    scale : what the claim would need to hold, where it does not hold at this scale.
    fast : whether the claim is part of the fast subset.
    """

    name: str
    statement: str
    source: str
    runs: RunGroups
    statistic: Statistic
    statistic_name: str
    rule: DecisionRule
    reason: str
    control: RunGroups
    control_name: str
    drawn_group: str
    drawn_variable: str = "norm"
    scale: str = ""
    fast: bool = False

    def at_paper_scale(self) -> Claim:
        """Return the same claim, statistic and rule with runs and control at the scale of the paper, for a GPU.

        Examples
        --------
        >>> from empirical.studies.claims.all_claims import all_claims
        >>> all_claims()[0].at_paper_scale().runs["all"][0].dataset
        'cifar10'
        """
        runs, control = (
            {name: [at_paper_scale(run) for run in group] for name, group in groups.items()}
            for groups in (self.runs, self.control)
        )
        return dataclasses.replace(self, runs=runs, control=control)

    @property
    def all_runs(self) -> list[RunConfig]:
        """Runs of claim and control."""
        return [run for runs in (self.runs, self.control) for group in runs.values() for run in group]


@dataclass(frozen=True)
class ClaimResult:
    """Result of testing a claim.

    Attributes
    ----------
    claim : the claim.
    judgement, control : judgement of the runs and of the control.
    values, control_values : statistic of each seed.
    """

    claim: Claim
    judgement: Judgement
    control: Judgement
    values: npt.NDArray[np.float64] = field(repr=False)
    control_values: npt.NDArray[np.float64] = field(repr=False)


def judge_claim(claim: Claim, runs: Trajectories, control: Trajectories) -> ClaimResult:
    """Compute the statistics of a claim and its control, and apply the rule.

    Parameters
    ----------
    claim : the claim.
    runs, control : trajectories of the runs and of the control, by group.

    Examples
    --------
    >>> import xarray as xr
    >>> from empirical.studies.claims.rules import Between
    >>> rising = {"a": [xr.Dataset({"norm": ("step", [1.0, 1.1 + seed / 100])}) for seed in range(3)]}
    >>> falling = {"a": [xr.Dataset({"norm": ("step", [1.0, 0.9])})] * 3}
    >>> claim = Claim("rises", "The norm rises.", "nobody", {}, lambda runs: [float(r.norm[-1]) for r in runs["a"]],
    ...               "last norm", Between(low=1.0), "the norm starts at 1", {}, "falling", "a")
    >>> result = judge_claim(claim, rising, falling)
    >>> result.judgement.verdict, result.control.verdict
    ('holds', 'fails')
    """
    values, control_values = (
        np.asarray(claim.statistic(trajectories), dtype=np.float64).reshape(-1) for trajectories in (runs, control)
    )
    # a loss that overflowed has no finite mean
    values, control_values = (np.where(np.isfinite(array), array, np.nan) for array in (values, control_values))
    return ClaimResult(claim, claim.rule.judge(values), claim.rule.judge(control_values), values, control_values)
