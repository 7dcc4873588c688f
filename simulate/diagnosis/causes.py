"""What tells the causes of a spike apart: rules on the loss, the norm and the steps around it."""

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
    OUTLIERS,
    RISE,
    arrival,
    before,
    means,
    standing_out,
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

LR_RISES = 1.5  # factor by which a learning rate steps up
_LR_WAITS = EXPECTED_WITHIN  # rows that a spike may come after it
_TURNED = 2.0  # times the usual rotation of the quickest steps, by which weights that are on their way out turn
_TURNED_SOME = 1.2  # the same, up to which they turn as usual
_ARRIVES = 0.4  # share of its peak with which a loss that comes from the data arrives
# How far it stands out, at least. Falling norms make losses jump by themselves, and a batch may begin it.
_ABOVE, _ABOVE_IN_A_FALL, _FAR_ABOVE = 1.5, 5.0, 10.0
_GREW = 0.015  # of ln ρ in a spike, at least
_LAWFUL = 0.02  # of ln ρ, by which a step may be off its law
_LEVEL = 0.8  # share of its largest mean at which a loss that stays high begins
_FALL, _FALL_RATE = 0.05, 0.2  # of ln ρ, and as a share of its decay: what counts as a fall
_DEEP = 0.1  # of ln ρ: a fall that rest does not make
_FREE = 0.3  # the same share, of a fall that growth hardly hinders
_RETURNS = (5, 20)  # rows after a batch, in which a network has forgotten it, or not
_FORGOTTEN, _REMAINS = 0.048, 0.07  # their mean loss above the usual, in units of the first
_EXPLAINED = (0.7, 1.4)  # of the growth of ln ρ, by the law of a step
_RELAXATIONS = 2.0  # that are looked back for the last peak of the norm


@dataclass(frozen=True)
class Verdict:
    """A cause and what it rests on; NaN where the log does not tell.

    Attributes
    ----------
    cause, evidence, advice, fall, fall_rate, turned_before, growth_explained : as of `simulate.Spike`.
    trough : row with the lowest norm, at which the spike begins; None where no norm was looked at.
    """

    cause: str = UNKNOWN
    evidence: tuple[str, ...] = ()
    advice: str = ""
    fall: float = math.nan
    fall_rate: float = math.nan
    turned_before: float = math.nan
    growth_explained: float = math.nan
    trough: int | None = None

    def adding(self, sentence: str, **changes: Any) -> Verdict:
        """Add to the evidence, and change what follows from it.

        Examples
        --------
        >>> Verdict(evidence=("The loss rose.",)).adding("So did lr.", cause=LR_STEP).evidence
        ('The loss rose.', 'So did lr.')
        """
        return dataclasses.replace(self, evidence=(*self.evidence, sentence), **changes)


def judge(rows: Rows, usual: FloatArray, first: int, last: int) -> Verdict:
    """Tell the cause of a spike.

    Parameters
    ----------
    rows : of the log.
    usual : its losses, those of short spikes NaN.
    first, last : rows of the spike.

    Returns
    -------
    Verdict

    Examples
    --------
    >>> import xarray as xr
    >>> loss = np.random.default_rng(0).uniform(1, 2, 300)
    >>> lr = np.where(np.arange(300) < 250, 0.1, 0.4)
    >>> log = xr.Dataset({"loss": ("step", np.where(np.arange(300) == 252, 9.0, loss)), "lr": ("step", lr)})
    >>> judge(Rows.of(log.assign_coords(step=np.arange(300))), loss, 252, 252).cause
    'lr step'
    """
    loss = rows.loss
    typical, peak = float(np.median(loss[before(max(first, 1))])), float(loss[first : last + 1].max())
    arrives = arrival(loss, first, last)
    turned = _turned_before(rows, arrives)
    seen = Verdict(evidence=(f"The loss rose from {typical:.3g} to {peak:.3g}.",), turned_before=turned)
    # a rise that has not made steps turn the weights farther is no reason
    if (stepped := _lr_step(rows, arrives)) and not (rows.is_dense and turned < _TURNED_SOME):
        at, factor = stepped
        return seen.adding(
            f"The learning rate had risen by a factor of {factor:.3g} in the {_LR_WAITS} steps before step "
            f"{rows.step[arrives]}, most at step {rows.step[at]}.",
            cause=LR_STEP,
            advice=_advice_lr(rows, arrives),
        )
    fall, fall_rate, trough = _fall(rows, first)
    seen = dataclasses.replace(seen, fall=fall, fall_rate=fall_rate, trough=trough)
    if rows.lr is None or rows.wd is None or rows.norm is None or rows.decay is None or rows.rotation is None:
        return seen
    if math.isnan(turned):
        return seen.adding("There are too few steps before it to compare with.")
    fell = fall >= _FALL and fall_rate >= _FREE
    deep = fall >= _DEEP and fall_rate >= _FREE
    # from losses that are no part of a spike
    above = standing_out(np.append(usual[:arrives], loss[arrives]), arrives)
    arrived = (
        rows.simulation is None
        and turned <= (_TURNED if above >= _FAR_ABOVE else _TURNED_SOME)
        and loss[arrives] >= _ARRIVES * peak
        and _is_level(loss[arrives : last + 1])
        and (above >= _ABOVE_IN_A_FALL if deep else above >= _ABOVE or _means_stand_out(loss, arrives))
    )
    if turned >= _TURNED:
        farther = f"a step turned the weights {turned:.1f} times as far as the quickest of usual steps"
        return _from_the_weights(rows, first, last, seen.adding(f"Before it was high, {farther}."))
    if arrived and rows.is_dense and (row := _unlawful(rows, arrives)) is not None:
        return seen.adding(_set_anew(rows, row))
    if arrived and rows.is_dense:
        at_once = f"It came at once, at step {rows.step[arrives]}, after steps that turned the weights as usual."
        return _from_the_data(rows, first, arrives, seen.adding(at_once))
    if fell and _grown(rows, trough, first, last) >= RISE and not arrived:
        grew = "While it was high the norm grew, as it does when steps are too long for it."
        return _from_the_weights(rows, first, last, seen.adding(grew))
    without_data = f"and a simulation ({rows.simulation}) has no data that could have done it"
    other = "nor did it come at once" if rows.simulation is None else without_data
    return seen.adding(f"Neither had the weights turned unusually before, {other}.")


def _grown(rows: Rows, trough: int, first: int, last: int) -> float:
    """Growth of ln ρ from the trough to the largest norm in the spike."""
    assert rows.norm is not None
    return float(np.log(rows.norm[first : min(last + 2, rows.norm.size)].max() / rows.norm[trough]))


def _from_the_weights(rows: Rows, first: int, last: int, seen: Verdict) -> Verdict:
    assert rows.norm is not None
    assert rows.lr is not None
    assert rows.wd is not None
    assert rows.decay_per_step is not None
    assert seen.trough is not None
    trough, rise = seen.trough, _grown(rows, seen.trough, first, last)
    explained = _growth_explained(rows, trough, min(last + 1, rows.norm.size - 1))
    seen = dataclasses.replace(seen, growth_explained=explained)
    if not (seen.fall >= _FALL and seen.fall_rate >= _FALL_RATE):
        return seen.adding("But the norm had not fallen before, or far slower than by decay.")
    effective = float(rows.lr[trough] / rows.norm[trough] ** 2)
    seen = seen.adding(
        f"The norm had fallen by {-math.expm1(-seen.fall):.0%}, at {seen.fall_rate:.0%} of the speed of decay alone, "
        f"and the effective learning rate had risen to {effective:.3g}."
    )
    if not rise >= _GREW:
        return seen.adding("But it did not grow in the spike.")
    seen = seen.adding(f"In the spike the norm grew by {math.expm1(rise):.0%}.")
    if not math.isnan(explained):
        if not _EXPLAINED[0] <= explained <= _EXPLAINED[1]:
            reason = "they were clipped, or " if explained > 1 else ""
            return seen.adding(
                f"But the gradients explain {explained:.0%} of that: {reason}the norm was changed by something else."
            )
        seen = seen.adding(f"The law of a step explains {explained:.0%} of it.")
    span = int(rows.step[-1] - rows.step[0])
    takes = seen.fall / (seen.fall_rate * float(rows.decay_per_step[trough]))
    advice = (
        "Half the weight decay, or half the learning rate, about doubles the time between such spikes; with wd < "
        f"{float(rows.wd[trough]) * takes / span:.2g} a fall of this depth takes longer than this log ({span} steps)."
    )
    return dataclasses.replace(seen, cause=NORM_DRIVEN, advice=advice)


def _from_the_data(rows: Rows, first: int, arrives: int, seen: Verdict) -> Verdict:
    after = rows.loss[arrives + _RETURNS[0] : arrives + _RETURNS[1] + 1]
    if after.size <= _RETURNS[1] - _RETURNS[0]:
        return seen.adding("The log ends too soon after it to tell one batch from a change that lasts.")
    usual = float(rows.loss[before(first)].mean())
    left = float((after.mean() - usual) / (rows.loss[arrives] - usual))
    seen = seen.adding(f"{_RETURNS[0]} to {_RETURNS[1]} steps after it, {max(left, 0.0):.1%} of it was left.")
    if left > _REMAINS:
        advice = f"See what data, or labels, came from step {rows.step[arrives]} on; lr and wd did not do this."
        return dataclasses.replace(seen, cause=DATA_SHIFT, advice=advice)
    if left > _FORGOTTEN:
        return seen.adding("That is between what one batch leaves and what a change of the data does.")
    advice = f"See the batch of step {rows.step[arrives]}; lr and wd did not do this."
    if rows.grad_norm is not None and rows.norm is not None:
        gradients = (rows.grad_norm / rows.norm)[before(first)]
        clip = 2 * float(np.nanquantile(gradients, 0.99))
        if rows.grad_norm[arrives] / rows.norm[arrives] > clip:
            # of a trajectory it is g̃/ρ
            column = rows.log.grad_norm.attrs.get("column")
            which = "that of the scale-invariant weights" if column is None else f"that in column {column!r}"
            advice += f" Gradients clipped at a norm of {clip:.2g}, {which}, would have turned the weights less."
    return dataclasses.replace(seen, cause=BAD_BATCH, advice=advice)


def _unlawful(rows: Rows, arrives: int) -> int | None:
    """Row near the arrival at which the norm of plain SGD did not do what the law of a step says."""
    if rows.rule != theory.SGD() or rows.grad_norm is None or rows.norm is None:
        return None
    assert rows.lr is not None
    assert rows.wd is not None
    here = slice(max(arrives - 3, 0), min(arrives + 2, rows.norm.size - 1))
    with np.errstate(all="ignore"):
        law = rows.lawful_growth(here)
        measured = np.log(rows.norm[here.start + 1 : here.stop + 1] / rows.norm[here])
        off = np.abs(measured - law) > _LAWFUL + 0.5 * np.abs(law)
    # a norm that was not logged is anywhere between
    off &= rows.has_norm[here] & rows.has_norm[here.start + 1 : here.stop + 1]
    return here.start + int(np.argmax(off)) if off.any() else None


def _set_anew(rows: Rows, row: int) -> str:
    """What a norm that is off its law says; one that grew, but less, may have had gradients that were clipped."""
    assert rows.norm is not None
    assert rows.decay is not None
    changed = f"At step {rows.step[row]} the norm changed as the law of a step does not explain"
    if contradiction(rows):
        return f"{changed}, as at many steps of this log."
    grown = float(np.log(rows.norm[row + 1] / rows.norm[row]))
    lawful = float(rows.lawful_growth(slice(row, row + 1))[0])
    clipped = "gradients were clipped after they were logged, or " if -rows.decay[row] <= grown < lawful else ""
    return f"{changed}: {clipped}weights were set anew, loaded or scaled."


def _means_stand_out(loss: FloatArray, arrives: int) -> bool:
    """Whether the mean of some losses from there on is an outlier."""
    for rows, limit in OUTLIERS.items():
        series = means(loss[: arrives + rows], rows)
        if series.size > rows and standing_out(series, series.size - 1, before(series.size - rows)) >= limit:
            return True
    return False


def _is_level(loss: FloatArray) -> bool:
    """Whether the mean of five losses is at the start about as high as it ever gets."""
    means = np.convolve(loss, np.full(5, 0.2), "valid") if loss.size >= 5 else loss[:1]
    return bool(means[0] >= _LEVEL * np.nanmax(means[:30]))


def _turned_before(rows: Rows, arrives: int) -> float:
    if rows.rotation is None:
        return math.nan
    # what leads to the spike is not usual any more
    usual = rows.rotation[before(max(arrives - 10, 0))]
    usual = usual[np.isfinite(usual)]
    recent = rows.rotation[max(arrives - 3, 0) : arrives]
    recent = recent[np.isfinite(recent)]
    if usual.size < 20 or not recent.size:
        return math.nan
    quickest = float(np.quantile(usual, 0.95))
    return float(recent.max()) / quickest if quickest > 0 else math.nan


def _fall(rows: Rows, first: int) -> tuple[float, float, int]:
    """Depth and speed of the fall that ends with the lowest norm near this row, and that row."""
    if rows.norm is None or rows.decay is None or not rows.decay[first] > 0:
        return math.nan, math.nan, first
    near = slice(max(first - 20, 0), first + 3)
    trough = near.start + int(np.nanargmin(rows.norm[near]))
    looked = before(trough + 1, max(10, min(trough + 1, round(_RELAXATIONS / float(rows.decay[first])))))
    back = np.log(rows.norm[looked])[::-1]
    # back to where it had last risen by as much as counts as a fall
    highest = np.maximum.accumulate(back)
    risen = np.flatnonzero(back < highest - _FALL)
    peak = trough - int(np.argmax(back[: int(risen[0]) if risen.size else back.size]))
    if peak == trough:
        return 0.0, 0.0, trough
    fall = float(np.log(rows.norm[peak] / rows.norm[trough]))
    return fall, fall / float(rows.decay[peak:trough].sum()), trough


def _growth_explained(rows: Rows, trough: int, end: int) -> float:
    if rows.rule != theory.SGD() or rows.grad_norm is None or not rows.is_dense or rows.norm is None or end <= trough:
        return math.nan
    assert rows.lr is not None
    assert rows.wd is not None
    top = trough + int(np.argmax(rows.norm[trough : end + 1]))
    if top == trough:
        return math.nan
    return float(rows.lawful_growth(slice(trough, top)).sum() / np.log(rows.norm[top] / rows.norm[trough]))


def _lr_step(rows: Rows, arrives: int) -> tuple[int, float] | None:
    """Row of the largest rise of the learning rate shortly before, and the factor since its least value."""
    if rows.lr is None or arrives == 0:
        return None
    start = max(arrives - _LR_WAITS, 0)
    recent = rows.lr[start : arrives + 1]
    known = recent[recent > 0]
    if not known.size or not recent[-1] >= LR_RISES * float(known.min()):
        return None
    return start + 1 + int(np.argmax(np.diff(recent))), float(recent[-1] / known.min())


def _advice_lr(rows: Rows, arrives: int) -> str:
    advice = "A smaller rise turns the weights less."
    if rows.lr is None or rows.wd is None or rows.rule is None or not 0 < rows.lr[arrives] * rows.wd[arrives] < 1:
        return advice
    decay = theory.free_decay(rows.lr[arrives], rows.wd[arrives], optimizer=rows.rule)
    # of Adam it is not known
    if not decay > 0:
        return advice
    return (
        f"Raised over some {1 / (2 * decay):.0f} steps, in which the squared norm decays by a factor e under "
        f"{format_optimizer(rows.rule)}, the norm can follow; with wd smaller by as much, lr wd and the rotation "
        "at equilibrium stay as they were."
    )
