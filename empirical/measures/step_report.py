"""Numbers and findings about the checked steps of an optimizer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_LEAST_CHECKS = 5  # a finding needs that many checked steps
_STANDARD_ERRORS = 5.0  # and that many standard errors
_DECAY_TOLERANCE = 0.2  # deviation of the weight decay from lr * wd
_ROUNDED_DECAY_TOLERANCE = 0.5  # the same for lr * wd at the resolution of the weights
_UNMOVED_TOLERANCE = 0.1  # share of the weights that did not move
_PINNED_SHARE = 0.5  # share of the steps whose gradient has the same norm
STEP_TOLERANCE = 0.01  # relative deviation of a step: far above rounding, far below another rule or a clipped gradient


@dataclass(frozen=True)
class GroupSteps:
    """Checked steps of one parameter group; NaN where a number does not apply or no step was checked.

    Attributes
    ----------
    index : place of the group in `optimizer.param_groups`.
    optimizer : name of its optimizer.
    checks : number of checked steps.
    intrinsic_lr : mean prescribed decay per step, lr * wd.
    decay_share, decay_share_error : decay that arrived, relative to lr * wd, and its standard error. If decay acts
        through a momentum, the decay that enters the momentum.
    unmoved_share : share of the weights that did not move although the step was not negligible, weighted by lr.
    deviation : distance between the steps and the prescribed ones, relative to the length of the latter.
    reason : why steps were not checked; empty if all were.
    findings : messages about what differs from the settings.
    """

    index: int
    optimizer: str
    checks: int = 0
    intrinsic_lr: float = math.nan
    decay_share: float = math.nan
    decay_share_error: float = math.nan
    unmoved_share: float = math.nan
    deviation: float = math.nan
    reason: str = ""
    findings: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.checks:
            return f"group {self.index}, {self.optimizer}: not checked: {self.reason or 'no step yet'}"
        numbers = (
            f"decay {self.decay_share:.3g} ± {self.decay_share_error:.1g} of lr * wd = {self.intrinsic_lr:.3g}",
            f"{self.unmoved_share:.3g} of the weights unmoved",
            f"deviation {self.deviation:.2g}",
        )
        text = "; ".join(number for number in numbers if "nan" not in number)
        return f"group {self.index}, {self.optimizer}: {self.checks} checks: {text}"


@dataclass(frozen=True)
class StepReport:
    """What `StepCheck` measured.

    Attributes
    ----------
    groups : numbers of each parameter group with watched weights.
    clip_norm, clip_norm_share : gradient norm at which clipping pins the steps, and the share of such steps. NaN if no
        value repeats.
    clip_value, clip_value_share : the same for the largest absolute entry of the gradient.
    findings : messages about what differs from the settings; empty if nothing does.
    faults : those of them that are hardly intended: not about clipping, or about an optimizer with a step of its own.
    """

    groups: tuple[GroupSteps, ...]
    clip_norm: float
    clip_norm_share: float
    clip_value: float
    clip_value_share: float
    findings: tuple[str, ...]
    faults: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([*map(str, self.groups), *self.findings])


@dataclass
class GroupRecord:
    """Sums over the weights of one parameter group, a row for each checked step."""

    optimizer: str = ""
    kind: str = ""
    eps: float = 0.0
    tolerance: float = STEP_TOLERANCE
    reason: str = ""
    dtypes: set[str] = field(default_factory=set)
    rows: list[dict[str, float]] = field(default_factory=list)


def step_report(
    groups: tuple[GroupSteps, ...],
    gradient_norms: Sequence[tuple[float, float, float]],
    changes: Sequence[float],
    has_own_step: bool,
) -> StepReport:
    """Report of groups, norms of gradients (norm, largest entry, resolution) and their changes before the step.

    `has_own_step` : the optimizer is derived from one of PyTorch and has a step of its own.
    """
    norms = np.array(gradient_norms).reshape(-1, 3)
    clip_norm, norm_share = _repeated_limit(norms[:, 0], norms[:, 1], np.maximum(1e-4, 2 * norms[:, 2]))
    clip_value, value_share = _repeated_limit(norms[:, 1], norms[:, 0], 1e-6)
    findings = [
        f"group {steps.index} ({steps.optimizer}): {text}" if len(groups) > 1 else text
        for steps in groups
        for text in steps.findings
    ]
    faults = [] if has_own_step else findings.copy()
    for what, limit, share in (
        ("gradient norm", clip_norm, norm_share),
        ("largest absolute gradient", clip_value, value_share),
    ):
        # Adam, Lion and Muon normalize a common factor of all gradients away
        matters = what != "gradient norm" or any(steps.optimizer.startswith("SGD") for steps in groups)
        if share > _PINNED_SHARE and matters:
            findings.append(
                f"clipping at {limit:.3g} determines the size of the step: the {what} equals it in {share:.0%} of "
                f"{len(norms)} checked steps. The size of the gradient then has no effect; raise the threshold"
            )
    tolerance = max([STEP_TOLERANCE, *(4 * norms[:, 2])])
    if changed := [change for change in changes if abs(change - 1) > tolerance]:
        late = (
            f"in {len(changed)} of {len(changes)} checked steps the gradient norm changed by a factor "
            f"{np.median(changed):.3g} between the record and the step. Record it after everything that changes "
            "gradients (clipping, unscaling). Pass `scale` for gradients that are still scaled, and only for those"
        )
        findings.append(late)
        faults.append(late)
    return StepReport(groups, clip_norm, norm_share, clip_value, value_share, tuple(findings), tuple(faults))


def group_steps(index: int, record: GroupRecord, recent: slice) -> GroupSteps:
    """Return the numbers and findings of one parameter group."""
    columns = row_columns(record.rows[recent])
    if not columns:
        return GroupSteps(index, record.optimizer, reason=record.reason)
    sums = {name: float(column.sum()) for name, column in columns.items()}
    share, error = _ratio(columns["decay"], columns["full_decay"], columns["doubt"])
    steps = GroupSteps(
        index,
        record.optimizer,
        checks=len(columns["lr"]),
        intrinsic_lr=float(columns["intrinsic_lr"].mean()),
        decay_share=share,
        decay_share_error=error,
        unmoved_share=sums["unmoved"] / sums["moves"] if sums["moves"] > 0 else math.nan,
        deviation=math.sqrt(sums["deviation"] / sums["planned"]) if sums["planned"] > 0 else math.nan,
        reason=record.reason,
    )
    if steps.checks < _LEAST_CHECKS:
        return steps
    return dataclasses.replace(steps, findings=tuple(_group_findings(steps, record, sums)))


def _group_findings(steps: GroupSteps, record: GroupRecord, sums: Mapping[str, float]) -> list[str]:
    findings: list[str] = []
    share, error = steps.decay_share, steps.decay_share_error
    tolerance = _ROUNDED_DECAY_TOLERANCE if steps.intrinsic_lr < 2 * record.eps else _DECAY_TOLERANCE
    if abs(share - 1) > max(tolerance, _STANDARD_ERRORS * error):
        what = "does not arrive" if share < _DECAY_TOLERANCE else "arrives in part" if share < 1 else "is too strong"
        advice = ". Check for code that changes the weights or their decay besides the optimizer"
        if steps.intrinsic_lr < record.eps:
            types = "/".join(sorted(record.dtypes))
            remedy = (
                "Keep float32 master weights, or use stochastic rounding" if record.eps > 1e-5 else "Raise lr or wd"
            )
            advice = f" (weights are {types}, whose resolution is {50 * record.eps:.1g} %). {remedy}"
        findings.append(
            f"weight decay {what}: {100 * share:.3g} ± {100 * error:.1g} % of lr * wd = {steps.intrinsic_lr:.3g} "
            f"per step, in {steps.checks} checked steps{advice}"
        )
    if steps.unmoved_share > _UNMOVED_TOLERANCE:
        findings.append(
            f"{steps.unmoved_share:.0%} of the weights did not move in {steps.checks} checked steps, although lr = "
            f"{sums['lr'] / steps.checks:.3g} prescribes steps. Check for masks, and whether "
            f"{'/'.join(sorted(record.dtypes))} resolves such steps"
        )
    # a missing decay has its own message, and so have weights that do not move
    distance = sums["deviation"] - (sums["radial"] if findings else 0.0)
    if steps.unmoved_share > _UNMOVED_TOLERANCE or sums["planned"] == 0:
        return findings
    if distance > record.tolerance**2 * sums["planned"] + sums["rounding"]:
        percent = 100 * math.sqrt(distance / sums["planned"])
        findings.append(
            f"the steps of {steps.optimizer} differ from those of {record.kind} by {percent:.2g} % "
            f"in {steps.checks} checked steps. Check for code that changes the weights, the settings or the state"
        )
    return findings


def _repeated_limit(
    values: np.ndarray[Any, Any], others: np.ndarray[Any, Any], tolerance: np.ndarray[Any, Any] | float
) -> tuple[float, float]:
    """Return the largest value and the share of steps that have it; NaN if these do not differ in `others`."""
    if len(values) < _LEAST_CHECKS:
        return math.nan, math.nan
    limit = float(values.max())
    pinned = values >= limit * (1 - tolerance)
    differ = np.ptp(others[pinned]) > max(1e-3, 10 * float(np.max(tolerance))) * others[pinned].mean()
    return (limit, float(pinned.mean())) if differ and pinned.sum() >= _LEAST_CHECKS else (math.nan, math.nan)


def _ratio(
    parts: np.ndarray[Any, Any], wholes: np.ndarray[Any, Any], doubts: np.ndarray[Any, Any]
) -> tuple[float, float]:
    """Ratio of two sums over steps, and its error: standard error plus the systematic error of the parts."""
    usable = np.isfinite(parts) & (wholes > 0)
    parts, wholes, count = parts[usable], wholes[usable], int(usable.sum())
    if count < 2:
        return math.nan, math.nan
    total = float(wholes.sum())
    share = float(parts.sum()) / total
    scatter = float(np.square(parts - share * wholes).sum())
    return share, (math.sqrt(scatter * count / (count - 1)) + float(doubts[usable].sum())) / total


def row_columns(rows: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray[Any, Any]]:
    """Turn rows into one array per name."""
    return {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {}
