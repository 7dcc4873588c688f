"""Causes of a loss spike: rules on the loss, the norm and the steps around it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

import theory
from simulate.diagnosis.log_rows import Rows
from simulate.diagnosis.spikes import (
    EXPECTED_WITHIN,
    MIN_NORM_RISE,
    OUTLIER_RATIOS,
    arrival_row,
    excess_ratio,
    moving_means,
    rows_before,
)
from simulate.diagnosis.step_law import contradiction
from theory.arguments import FloatArray
from theory.optimizers import format_optimizer

NORM_DRIVEN, BAD_BATCH, LR_STEP, DATA_SHIFT, OVERFLOW, UNKNOWN = (
    "norm-driven",
    "bad batch",
    "lr step",
    "data shift",
    "overflow",
    "unknown",
)

LR_RISES = 1.5  # factor of an lr step
_LR_WAITS = EXPECTED_WITHIN  # rows between an lr step and its spike
# Rotation before a spike, over the 95 % quantile of usual rotations.
_ROTATED_FAR = 2.0  # from here, steps rotated the weights unusually far
_ROTATED_AS_USUAL = 1.2  # up to here, rotation was as usual
_ARRIVES = 0.4  # least share of the peak with which a loss caused by the data arrives
# Least excess ratio of a loss caused by the data. A low norm alone raises the loss, and a batch may begin such a spike.
_ABOVE, _ABOVE_AT_LOW_NORM, _FAR_ABOVE = 1.5, 5.0, 10.0
_MIN_GROWTH = 0.015  # least growth of ln ρ in a norm-driven spike
_STEP_TOLERANCE = 0.02  # of ln ρ, deviation from the one-step law
_LEVEL = 0.8  # share of its largest mean at which a loss that stays high begins
_MIN_DECAY, _MIN_DECAY_RATIO = 0.05, 0.2  # of ln ρ, and over decay without gradients: what counts as a decay phase
_DEEP = 0.1  # of ln ρ: deeper than fluctuations at equilibrium
_FREE = 0.3  # ratio to decay without gradients, above which gradients hardly slow the decay
_RETURNS = (5, 20)  # rows after a batch, over which the remaining loss is averaged
_FORGOTTEN, _REMAINS = 0.048, 0.07  # that excess loss over the first: up to here one batch, from here a data shift
_EXPLAINED = (0.7, 1.4)  # share of the growth of ln ρ that the one-step law must explain
_RELAXATIONS = 2.0  # relaxation times in which to look for the last peak of the norm


@dataclass(frozen=True)
class Explanation:
    """Cause of a spike and its evidence; numbers that the log does not contain are NaN.

    Attributes
    ----------
    cause, evidence, advice, norm_decay, decay_ratio, turned_before, growth_explained : as in `simulate.Spike`.
    trough : row with the lowest norm, at which the spike begins; None if the norm was not used.
    """

    cause: str = UNKNOWN
    evidence: tuple[str, ...] = ()
    advice: str = ""
    norm_decay: float = math.nan
    decay_ratio: float = math.nan
    turned_before: float = math.nan
    growth_explained: float = math.nan
    trough: int | None = None

    def with_evidence(self, sentence: str, **changes: Any) -> Explanation:
        """Return a copy with one more sentence of evidence and other changed fields.

        Examples
        --------
        >>> Explanation(evidence=("The loss rose.",)).with_evidence("So did lr.", cause=LR_STEP).evidence
        ('The loss rose.', 'So did lr.')
        """
        return dataclasses.replace(self, evidence=(*self.evidence, sentence), **changes)


def explain_spike(rows: Rows, usual: FloatArray, first: int, last: int) -> Explanation:
    """Find the cause of a spike.

    Parameters
    ----------
    rows : rows of the log.
    usual : their losses, with NaN for short spikes.
    first, last : first and last row of the spike.

    Returns
    -------
    Explanation

    Examples
    --------
    >>> import xarray as xr
    >>> loss = np.random.default_rng(0).uniform(1, 2, 300)
    >>> lr = np.where(np.arange(300) < 250, 0.1, 0.4)
    >>> log = xr.Dataset({"loss": ("step", np.where(np.arange(300) == 252, 9.0, loss)), "lr": ("step", lr)})
    >>> explain_spike(Rows.of(log.assign_coords(step=np.arange(300))), loss, 252, 252).cause
    'lr step'
    """
    loss = rows.loss
    typical, peak = float(np.median(loss[rows_before(max(first, 1))])), float(loss[first : last + 1].max())
    arrival = arrival_row(loss, first, last)
    rotated = _rotation_ratio_before(rows, arrival)
    explanation = Explanation(evidence=(f"The loss rose from {typical:.3g} to {peak:.3g}.",), turned_before=rotated)
    # an lr step that did not make steps rotate the weights farther is not the cause
    if (lr_step := _find_lr_step(rows, arrival)) and not (rows.is_dense and rotated < _ROTATED_AS_USUAL):
        at, factor = lr_step
        return explanation.with_evidence(
            f"The learning rate rose by a factor of {factor:.3g} in the {_LR_WAITS} steps before step "
            f"{rows.step[arrival]}, most at step {rows.step[at]}.",
            cause=LR_STEP,
            advice=_lr_advice(rows, arrival),
        )
    depth, decay_ratio, trough = _last_decay_phase(rows, first)
    explanation = dataclasses.replace(explanation, norm_decay=depth, decay_ratio=decay_ratio, trough=trough)
    if rows.lr is None or rows.wd is None or rows.norm is None or rows.decay is None or rows.rotation is None:
        return explanation
    if math.isnan(rotated):
        return explanation.with_evidence("There are too few steps before it for a comparison.")
    has_decayed = depth >= _MIN_DECAY and decay_ratio >= _FREE
    is_deep = depth >= _DEEP and decay_ratio >= _FREE
    # compare with losses outside spikes
    above = excess_ratio(np.append(usual[:arrival], loss[arrival]), arrival)
    has_arrived_at_once = (
        rows.simulation is None
        and rotated <= (_ROTATED_FAR if above >= _FAR_ABOVE else _ROTATED_AS_USUAL)
        and loss[arrival] >= _ARRIVES * peak
        and _is_level(loss[arrival : last + 1])
        and (above >= _ABOVE_AT_LOW_NORM if is_deep else above >= _ABOVE or _is_mean_an_outlier(loss, arrival))
    )
    if rotated >= _ROTATED_FAR:
        farther = f"a step rotated the weights {rotated:.1f} times as far as the 95 % quantile of usual steps"
        return _explain_by_norm(rows, first, last, explanation.with_evidence(f"Before the loss rose, {farther}."))
    if has_arrived_at_once and rows.is_dense and (row := _find_unlawful_row(rows, arrival)) is not None:
        return explanation.with_evidence(_describe_unlawful_row(rows, row))
    if has_arrived_at_once and rows.is_dense:
        at_once = f"It rose at once, at step {rows.step[arrival]}, after steps with usual rotation."
        return _explain_by_data(rows, first, arrival, explanation.with_evidence(at_once))
    if has_decayed and _norm_rise(rows, trough, first, last) >= MIN_NORM_RISE and not has_arrived_at_once:
        grew = "The norm grew while the loss was high, as it does when steps are too long for the norm."
        return _explain_by_norm(rows, first, last, explanation.with_evidence(grew))
    no_data = f"and a simulation ({rows.simulation}) has no data that could cause it"
    other = "and the loss did not rise at once" if rows.simulation is None else no_data
    return explanation.with_evidence(f"The weights did not rotate unusually far before, {other}.")


def _norm_rise(rows: Rows, trough: int, first: int, last: int) -> float:
    """Growth of ln ρ from the trough to the largest norm in the spike."""
    assert rows.norm is not None
    return float(np.log(rows.norm[first : min(last + 2, rows.norm.size)].max() / rows.norm[trough]))


def _explain_by_norm(rows: Rows, first: int, last: int, explanation: Explanation) -> Explanation:
    """Call the spike norm-driven if the norm decayed before it and grew in it as the one-step law predicts."""
    assert rows.norm is not None
    assert rows.lr is not None
    assert rows.wd is not None
    assert rows.decay_per_step is not None
    assert explanation.trough is not None
    trough, rise = explanation.trough, _norm_rise(rows, explanation.trough, first, last)
    explained = _growth_explained(rows, trough, min(last + 1, rows.norm.size - 1))
    explanation = dataclasses.replace(explanation, growth_explained=explained)
    if not (explanation.norm_decay >= _MIN_DECAY and explanation.decay_ratio >= _MIN_DECAY_RATIO):
        return explanation.with_evidence(
            "But the norm had not decayed before, or far more slowly than by weight decay."
        )
    effective_lr = float(rows.lr[trough] / rows.norm[trough] ** 2)
    explanation = explanation.with_evidence(
        f"The norm had decayed by {-math.expm1(-explanation.norm_decay):.0%}, at {explanation.decay_ratio:.0%} of the "
        f"speed of weight decay alone, and the effective learning rate had risen to {effective_lr:.3g}."
    )
    if not rise >= _MIN_GROWTH:
        return explanation.with_evidence("But the norm did not grow in the spike.")
    explanation = explanation.with_evidence(f"In the spike the norm grew by {math.expm1(rise):.0%}.")
    if not math.isnan(explained):
        if not _EXPLAINED[0] <= explained <= _EXPLAINED[1]:
            reason = "the gradients were clipped, or " if explained > 1 else ""
            return explanation.with_evidence(
                f"But the gradients explain {explained:.0%} of that growth: {reason}something else changed the norm."
            )
        explanation = explanation.with_evidence(f"The gradients explain {explained:.0%} of that growth.")
    span = int(rows.step[-1] - rows.step[0])
    duration = explanation.norm_decay / (explanation.decay_ratio * float(rows.decay_per_step[trough]))
    advice = (
        "Halve the weight decay or the learning rate to about double the time between such spikes. With wd < "
        f"{float(rows.wd[trough]) * duration / span:.2g} a decay of this depth takes longer than this log ({span} "
        "steps)."
    )
    return dataclasses.replace(explanation, cause=NORM_DRIVEN, advice=advice)


def _explain_by_data(rows: Rows, first: int, arrival: int, explanation: Explanation) -> Explanation:
    """Call the spike a bad batch or a data shift, by the share of it that remains some steps later."""
    after = rows.loss[arrival + _RETURNS[0] : arrival + _RETURNS[1] + 1]
    if after.size <= _RETURNS[1] - _RETURNS[0]:
        return explanation.with_evidence("The log ends too soon after it to separate one batch from a lasting change.")
    usual = float(rows.loss[rows_before(first)].mean())
    left = float((after.mean() - usual) / (rows.loss[arrival] - usual))
    explanation = explanation.with_evidence(
        f"{_RETURNS[0]} to {_RETURNS[1]} steps later, {max(left, 0.0):.1%} of it was left."
    )
    if left > _REMAINS:
        advice = f"Check the data and labels from step {rows.step[arrival]} on; lr and wd are probably not the cause."
        return dataclasses.replace(explanation, cause=DATA_SHIFT, advice=advice)
    if left > _FORGOTTEN:
        return explanation.with_evidence("That is more than one batch leaves and less than a data shift leaves.")
    advice = f"Check the batch of step {rows.step[arrival]}; lr and wd are probably not the cause."
    if rows.grad_norm is not None and rows.norm is not None:
        gradients = (rows.grad_norm / rows.norm)[rows_before(first)]
        clip = 2 * float(np.nanquantile(gradients, 0.99))
        if rows.grad_norm[arrival] / rows.norm[arrival] > clip:
            # a trajectory has g̃, and its gradient norm is g̃/ρ
            column = rows.log.grad_norm.attrs.get("column")
            which = "of the scale-invariant weights" if column is None else f"in column {column!r}"
            advice += f" Clipping the gradient norm {which} at {clip:.2g} would have reduced the rotation."
    return dataclasses.replace(explanation, cause=BAD_BATCH, advice=advice)


def _find_unlawful_row(rows: Rows, arrival: int) -> int | None:
    """Row near the arrival at which the norm contradicts the one-step law of plain SGD; None without one."""
    if rows.rule != theory.SGD() or rows.grad_norm is None or rows.norm is None:
        return None
    assert rows.lr is not None
    assert rows.wd is not None
    here = slice(max(arrival - 3, 0), min(arrival + 2, rows.norm.size - 1))
    with np.errstate(all="ignore"):
        predicted = rows.predicted_growth(here)
        measured = np.log(rows.norm[here.start + 1 : here.stop + 1] / rows.norm[here])
        off = np.abs(measured - predicted) > _STEP_TOLERANCE + 0.5 * np.abs(predicted)
    # a norm that was not logged contradicts nothing
    off &= rows.has_norm[here] & rows.has_norm[here.start + 1 : here.stop + 1]
    return here.start + int(np.argmax(off)) if off.any() else None


def _describe_unlawful_row(rows: Rows, row: int) -> str:
    """Say what may have changed the norm at this row; clipping can explain growth that is too small."""
    assert rows.norm is not None
    assert rows.decay is not None
    changed = f"At step {rows.step[row]} the change of the norm contradicts the SGD update"
    if contradiction(rows):
        return f"{changed}, as at many steps of this log."
    measured = float(np.log(rows.norm[row + 1] / rows.norm[row]))
    predicted = float(rows.predicted_growth(slice(row, row + 1))[0])
    clipped = "gradients were clipped after they were logged, or " if -rows.decay[row] <= measured < predicted else ""
    return f"{changed}: {clipped}weights were reset, loaded or rescaled."


def _is_mean_an_outlier(loss: FloatArray, arrival: int) -> bool:
    """Whether the mean of some losses from the arrival on is an outlier."""
    for rows, limit in OUTLIER_RATIOS.items():
        series = moving_means(loss[: arrival + rows], rows)
        if series.size > rows and excess_ratio(series, series.size - 1, rows_before(series.size - rows)) >= limit:
            return True
    return False


def _is_level(loss: FloatArray) -> bool:
    """Whether the mean of the first five losses is about the highest of all such means."""
    means = np.convolve(loss, np.full(5, 0.2), "valid") if loss.size >= 5 else loss[:1]
    return bool(means[0] >= _LEVEL * np.nanmax(means[:30]))


def _rotation_ratio_before(rows: Rows, arrival: int) -> float:
    """Largest rotation of the three steps before the arrival, over the 95 % quantile of usual rotations."""
    if rows.rotation is None:
        return math.nan
    # the ten steps before the spike are not usual any more
    usual = rows.rotation[rows_before(max(arrival - 10, 0))]
    usual = usual[np.isfinite(usual)]
    recent = rows.rotation[max(arrival - 3, 0) : arrival]
    recent = recent[np.isfinite(recent)]
    if usual.size < 20 or not recent.size:
        return math.nan
    quantile = float(np.quantile(usual, 0.95))
    return float(recent.max()) / quantile if quantile > 0 else math.nan


def _last_decay_phase(rows: Rows, first: int) -> tuple[float, float, int]:
    """Depth of the decay phase that ends near this row, its speed over that of decay alone, and its last row."""
    if rows.norm is None or rows.decay is None or not rows.decay[first] > 0:
        return math.nan, math.nan, first
    near = slice(max(first - 20, 0), first + 3)
    trough = near.start + int(np.nanargmin(rows.norm[near]))
    window = rows_before(trough + 1, max(10, min(trough + 1, round(_RELAXATIONS / float(rows.decay[first])))))
    backwards = np.log(rows.norm[window])[::-1]
    # the phase begins after the last rise that is as large as a decay phase
    highest = np.maximum.accumulate(backwards)
    risen = np.flatnonzero(backwards < highest - _MIN_DECAY)
    peak = trough - int(np.argmax(backwards[: int(risen[0]) if risen.size else backwards.size]))
    if peak == trough:
        return 0.0, 0.0, trough
    depth = float(np.log(rows.norm[peak] / rows.norm[trough]))
    return depth, depth / float(rows.decay[peak:trough].sum()), trough


def _growth_explained(rows: Rows, trough: int, end: int) -> float:
    """Growth of ln ρ by the one-step law, over the measured growth from the trough to the top."""
    if rows.rule != theory.SGD() or rows.grad_norm is None or not rows.is_dense or rows.norm is None or end <= trough:
        return math.nan
    assert rows.lr is not None
    assert rows.wd is not None
    top = trough + int(np.argmax(rows.norm[trough : end + 1]))
    if top == trough:
        return math.nan
    return float(rows.predicted_growth(slice(trough, top)).sum() / np.log(rows.norm[top] / rows.norm[trough]))


def _find_lr_step(rows: Rows, arrival: int) -> tuple[int, float] | None:
    """Row at which the learning rate rose most in the rows before, and its factor over the lowest of them."""
    if rows.lr is None or arrival == 0:
        return None
    start = max(arrival - _LR_WAITS, 0)
    recent = rows.lr[start : arrival + 1]
    positive = recent[recent > 0]
    if not positive.size or not recent[-1] >= LR_RISES * float(positive.min()):
        return None
    return start + 1 + int(np.argmax(np.diff(recent))), float(recent[-1] / positive.min())


def _lr_advice(rows: Rows, arrival: int) -> str:
    advice = "A smaller rise rotates the weights less."
    if rows.lr is None or rows.wd is None or rows.rule is None or not 0 < rows.lr[arrival] * rows.wd[arrival] < 1:
        return advice
    decay = theory.free_decay(rows.lr[arrival], rows.wd[arrival], optimizer=rows.rule)
    # NaN for Adam
    if not decay > 0:
        return advice
    return (
        f"Raise the learning rate over about {1 / (2 * decay):.0f} steps, in which ρ² decays by a factor e under "
        f"{format_optimizer(rows.rule)}, so that the norm can follow. Or lower wd by the same factor: ηλ and the "
        "rotation at equilibrium then stay the same."
    )
