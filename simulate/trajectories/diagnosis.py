"""Why the loss of a training spiked: what its log shows, what it lacks, and what would change it."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import xarray as xr

import theory
from simulate.trajectories.log_rows import Rows
from simulate.trajectories.spikes import (
    EXPECTED_WITHIN,
    OUTLIERS,
    RISE,
    arrival,
    before,
    find_spikes,
    leave_out,
    means,
    standing_out,
)
from simulate.trajectories.step_law import contradiction
from simulate.trajectories.training_log import read_log, training_log, with_settings
from theory.arguments import FloatArray
from theory.optimizers import optimizer_text

NORM_DRIVEN, BAD_BATCH, LR_STEP, DATA_SHIFT, OVERFLOW, UNKNOWN = (
    "norm-driven",
    "bad batch",
    "lr step",
    "data shift",
    "overflow",
    "unknown",
)
NO_SPIKES, SEVERAL = "no spikes", "several causes"

_LR_RISES = 1.5  # factor by which a learning rate steps up
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
_RISEN = 10.0  # times the usual loss, before numbers overflow
_RELAXATIONS = 2.0  # that are looked back for the last peak of the norm


@dataclass(frozen=True)
class Spike:
    """One spike of the loss and what it comes from; NaN where the log does not tell.

    Attributes
    ----------
    step, last_step : of the first and last row with a high loss.
    cause : "norm-driven", "bad batch", "lr step", "data shift", "overflow" or "unknown".
    peak_loss, usual_loss : largest loss, and the median of the rows before.
    norm_rise : growth of ln ρ in it.
    fall, fall_rate : of ln ρ from its last peak until then, and its speed over that of decay alone.
    effective_lr : η/ρ² where it began.
    turned_before : largest rotation of the three steps before the loss was high, over that of the quickest of usual
        steps (of which one in twenty is quicker).
    growth_explained : what the law of a step makes of the gradients, over `norm_rise`.
    evidence : sentences.
    advice : what would change it; empty where nothing is known.
    """

    step: int
    last_step: int
    cause: str
    peak_loss: float
    usual_loss: float
    norm_rise: float
    fall: float
    fall_rate: float
    effective_lr: float
    turned_before: float
    growth_explained: float
    evidence: tuple[str, ...] = field(repr=False)
    advice: str = field(repr=False)

    def __str__(self) -> str:
        return f"step {self.step}: {self.cause}. " + " ".join(self.evidence + ((self.advice,) if self.advice else ()))


@dataclass(frozen=True)
class Diagnosis:
    """Spikes of a log and their causes; `print` it.

    Attributes
    ----------
    spikes : in order.
    missing : what the log lacks: for spikes to be seen and, where one is unknown, for causes to be told apart.
    remarks : what the causes rest on: an optimizer that was not given, norms that contradict their law.
    next_step, next_stderr : where the next norm-driven spike is expected, and how uncertain that is; NaN without one,
        the error too where there is but one fall to tell from.
    log : what was looked at.
    """

    spikes: tuple[Spike, ...]
    missing: tuple[str, ...]
    remarks: tuple[str, ...]
    next_step: float
    next_stderr: float
    log: xr.Dataset = field(repr=False)

    @property
    def cause(self) -> str:
        """The cause of more than half of the spikes; "several causes" if none is, "no spikes" without any."""
        counts = Counter(spike.cause for spike in self.spikes).most_common(1)
        if not counts:
            return NO_SPIKES
        cause, count = counts[0]
        return cause if 2 * count > len(self.spikes) else SEVERAL

    def to_dict(self) -> dict[str, Any]:
        """Everything but the log, for JSON: what is not finite is None.

        Examples
        --------
        >>> diagnose({"loss": np.ones(400)}).to_dict()
        {'cause': 'no spikes', 'spikes': [], 'missing': [], 'remarks': [], 'next_step': None, 'next_stderr': None}
        """
        spikes = [{name: _plain(value) for name, value in dataclasses.asdict(spike).items()} for spike in self.spikes]
        ends = {"next_step": _plain(self.next_step), "next_stderr": _plain(self.next_stderr)}
        texts = {"missing": list(self.missing), "remarks": list(self.remarks)}
        return {"cause": self.cause, "spikes": spikes, **texts, **ends}

    def __str__(self) -> str:
        counts = Counter(spike.cause for spike in self.spikes)
        told = ", ".join(f"{count} {cause}" for cause, count in counts.most_common())
        lines = [f"{len(self.spikes)} spikes: {told}" if len(self.spikes) > 1 else f"1 spike: {told}"]
        if not self.spikes:
            lines = ["no spikes: no loss stands out from those before it"]
        for cause in counts:
            alike = [spike for spike in self.spikes if spike.cause == cause]
            # what is said of one holds for those like it
            chosen = max(alike, key=lambda spike: spike.peak_loss)
            lines.append(f"  {chosen}")
            if len(alike) > 1:
                steps = ", ".join(str(spike.step) for spike in alike if spike is not chosen)
                lines.append(f"    {cause} too: step{'s' if len(alike) > 2 else ''} {steps}")
        if not math.isnan(self.next_step):
            around = ", from one fall like the last" if math.isnan(self.next_stderr) else f" ± {self.next_stderr:.0f}"
            lines.append(f"The next norm-driven spike is expected about step {self.next_step:.0f}{around}.")
        lines += self.remarks
        if self.missing:
            lines.append(f"{'The' if self.spikes else 'But the'} log lacks {'; '.join(self.missing)}.")
        return "\n".join(lines)


def diagnose(
    log: xr.Dataset | str | os.PathLike[str] | Mapping[str, npt.ArrayLike],
    *,
    lr: float | None = None,
    wd: float | None = None,
    optimizer: theory.Optimizer | None = None,
    names: Mapping[str, str] | None = None,
) -> Diagnosis:
    """Say where the loss of a training spiked, and whether the norm of the weights, the data or a setting did it.

    - "overflow": loss, norm or gradient is no finite number any more.
    - "lr step": the learning rate rose by half or more within the 30 rows before, and steps turned the weights farther.
    - "norm-driven": the norm had fallen, and the weights turned unusually far in the steps *before* the loss was high:
      the step is too long for the norm, the norm grows, and the next fall begins.
    - "bad batch", "data shift": the loss was high at once, after steps as usual, so it came from the data. After one
      batch it is back within some steps; what stays high is a change of the data, or of their labels.
    - "unknown": none of these, or the log lacks what would tell.

    A simulated trajectory has no data: what is not norm-driven there, or of the learning rate, is unknown.

    Parameters
    ----------
    log : a trajectory or a log of `training_log`; the path of a CSV file, of TensorBoard's files, or of a run; or
        columns by name. Best with loss, learning rate, norm of the scale-invariant weights and norm of their gradient,
        all before each step.
    lr, wd, optimizer : where the log does not say them; without any, the optimizer is taken for plain SGD.
    names : of the columns, as in `training_log`.

    Returns
    -------
    Diagnosis

    Raises
    ------
    TypeError, ValueError : there is no such log, or it has no loss.

    Source: docs/diagnosis.md; docs/mathematics.md §1, §5.

    Examples
    --------
    >>> quiet = np.random.default_rng(0).uniform(0.1, 0.2, 400)
    >>> quiet[300] = np.inf
    >>> print(diagnose({"loss": quiet}).spikes[0])
    step 300: overflow. The loss is not finite from here, for 1 step. The loss before was 0.155.
    """
    if isinstance(log, xr.Dataset):
        held = with_settings(log, lr=lr, wd=wd, optimizer=optimizer)
        if "step" not in held.dims or any(held[name].dims != ("step",) for name in ("loss",) if name in held):
            raise ValueError(f"log must be one run with dimension ('step',), got {dict(held.sizes)}; select one first")
    elif isinstance(log, (str, os.PathLike)):
        held = read_log(log, lr=lr, wd=wd, optimizer=optimizer, names=names)
    else:
        held = training_log(cast(Mapping[str, npt.ArrayLike], log), lr=lr, wd=wd, optimizer=optimizer, names=names)
    if "loss" not in held:
        raise ValueError(f"log must have the loss of each step, got {sorted(map(str, held.data_vars))}")
    rows = Rows.of(held)
    places = _spikes(rows)
    usual = rows.loss.copy()
    leave_out(usual, places)
    spikes = _overflows(rows) + [_judged(rows, usual, first, last) for first, last in places]
    spikes.sort(key=lambda spike: spike.step)
    next_step, next_stderr = _next(rows, [spike for spike in spikes if spike.cause == NORM_DRIVEN])
    missing = rows.missing if any(spike.cause == UNKNOWN for spike in spikes) else rows.limits
    remarks = _remarks(rows) if any(spike.cause != OVERFLOW for spike in spikes) else ()
    return Diagnosis(tuple(spikes), missing, remarks, next_step, next_stderr, rows.log)


def _remarks(rows: Rows) -> tuple[str, ...]:
    assumed = "No optimizer was given (optimizer=, or --optimizer): it was taken for plain SGD."
    return tuple(filter(None, ("" if "optimizer" in rows.log.attrs else assumed, contradiction(rows))))


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _spikes(rows: Rows) -> list[tuple[int, int]]:
    end = rows.loss.size
    if rows.norm is not None and not np.isfinite(rows.norm).all():
        # nothing comes after weights that are no numbers
        end = int(np.flatnonzero(np.isfinite(rows.norm))[-1]) + 1
    expected = np.array([], dtype=int)
    if rows.lr is not None:
        old = rows.lr[: max(end - 1, 0)]
        expected = np.flatnonzero((old > 0) & (rows.lr[1:end] >= _LR_RISES * old)) + 1
    return find_spikes(
        rows.loss[:end],
        None if rows.norm is None else rows.norm[:end],
        None if rows.decay is None else rows.decay[:end],
        expected,
    )


def _overflows(rows: Rows) -> list[Spike]:
    columns = {"loss": rows.logged_loss, "norm": rows.logged_norm, "gradient": rows.grad_norm}
    lost = {name: _lost(values) for name, values in columns.items() if values is not None}
    bad = ~np.isfinite(rows.logged_loss)
    if rows.norm is not None:
        # one that is finite again, at a loss that is, was not logged
        bad |= np.isinf(rows.norm)
    if rows.grad_norm is not None:
        bad |= np.isinf(rows.grad_norm)
    found = []
    edges = np.flatnonzero(np.diff(np.concatenate([[False], bad, [False]]).astype(int)))
    for first, end in edges.reshape(-1, 2).tolist():
        what = [name for name, gone in lost.items() if gone[first]]
        to_the_end = end == rows.loss.size and end - first > 1
        lasts = "to the end" if to_the_end else f"for {end - first} step{'s' if end - first > 1 else ''}"
        evidence = [f"The {' and the '.join(what)} {'is' if len(what) == 1 else 'are'} not finite from here, {lasts}."]
        advice = ""
        if first:
            usual = float(np.median(rows.loss[before(first)]))
            evidence.append(f"The loss before was {usual:.3g}.")
            if rows.loss[first - 1] > _RISEN * usual:
                evidence.append(f"It had risen to {rows.loss[first - 1]:.3g} already: see what comes before.")
        if to_the_end:
            advice = (
                "A check of the gradients before each step, as loss scalers make, would have left the weights alone."
            )
        found.append(_spike(rows, first, end - 1, OVERFLOW, evidence, advice))
    return found


def _lost(values: FloatArray) -> npt.NDArray[np.bool_]:
    """Where numbers are infinite, or none to the end: none that numbers follow may not have been logged."""
    finite = np.flatnonzero(np.isfinite(values))
    last = int(finite[-1]) if finite.size else -1
    lost: npt.NDArray[np.bool_] = np.isinf(values) | (np.isnan(values) & (np.arange(values.size) > last))
    return lost


def _judged(rows: Rows, usual: FloatArray, first: int, last: int) -> Spike:
    loss = rows.loss
    typical, peak = float(np.median(loss[before(max(first, 1))])), float(loss[first : last + 1].max())
    arrives = arrival(loss, first, last)
    turned = _turned_before(rows, arrives)
    fall, fall_rate, trough = _fall(rows, first)
    rise = math.nan
    if rows.norm is not None:
        rise = float(np.log(rows.norm[first : min(last + 2, rows.norm.size)].max() / rows.norm[trough]))
    told = [f"The loss rose from {typical:.3g} to {peak:.3g}."]
    # a rise that has not made steps turn the weights farther is no reason
    if (stepped := _lr_step(rows, arrives)) and not (rows.is_dense and turned < _TURNED_SOME):
        at, factor = stepped
        told.append(
            f"The learning rate had risen by a factor of {factor:.3g} in the {_LR_WAITS} steps before step "
            f"{rows.step[arrives]}, most at step {rows.step[at]}."
        )
        return _spike(rows, first, last, LR_STEP, told, _advice_lr(rows, arrives), turned=turned)
    numbers: dict[str, Any] = {"fall": fall, "fall_rate": fall_rate, "turned": turned, "trough": trough}
    if rows.lr is None or rows.wd is None or rows.norm is None or rows.decay is None or rows.rotation is None:
        return _spike(rows, first, last, UNKNOWN, told, "", **numbers)
    if math.isnan(turned):
        told.append("There are too few steps before it to compare with.")
        return _spike(rows, first, last, UNKNOWN, told, "", **numbers)
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
        told.append(
            f"Before it was high, a step turned the weights {turned:.1f} times as far as the quickest of usual steps."
        )
        return _from_the_weights(rows, first, last, told, numbers, rise)
    if arrived and rows.is_dense and (row := _unlawful(rows, arrives)) is not None:
        told.append(_set_anew(rows, row))
        return _spike(rows, first, last, UNKNOWN, told, "", **numbers)
    if arrived and rows.is_dense:
        told.append(f"It came at once, at step {rows.step[arrives]}, after steps that turned the weights as usual.")
        return _from_the_data(rows, first, last, arrives, told, numbers)
    if fell and rise >= RISE and not arrived:
        told.append("While it was high the norm grew, as it does when steps are too long for it.")
        return _from_the_weights(rows, first, last, told, numbers, rise)
    without_data = f"and a simulation ({rows.simulation}) has no data that could have done it"
    other = "nor did it come at once" if rows.simulation is None else without_data
    told.append(f"Neither had the weights turned unusually before, {other}.")
    return _spike(rows, first, last, UNKNOWN, told, "", **numbers)


def _from_the_weights(
    rows: Rows, first: int, last: int, told: list[str], numbers: dict[str, Any], rise: float
) -> Spike:
    assert rows.norm is not None
    assert rows.lr is not None
    assert rows.wd is not None
    assert rows.decay is not None
    trough = numbers["trough"]
    explained = _growth_explained(rows, trough, min(last + 1, rows.norm.size - 1))
    if not (numbers["fall"] >= _FALL and numbers["fall_rate"] >= _FALL_RATE):
        told.append("But the norm had not fallen before, or far slower than by decay.")
        return _spike(rows, first, last, UNKNOWN, told, "", explained=explained, **numbers)
    effective = float(rows.lr[trough] / rows.norm[trough] ** 2)
    told.append(
        f"The norm had fallen by {-math.expm1(-numbers['fall']):.0%}, at {numbers['fall_rate']:.0%} of the speed of "
        f"decay alone, and the effective learning rate had risen to {effective:.3g}."
    )
    if not rise >= _GREW:
        told.append("But it did not grow in the spike.")
        return _spike(rows, first, last, UNKNOWN, told, "", explained=explained, **numbers)
    if rise > 0:
        told.append(f"In the spike the norm grew by {math.expm1(rise):.0%}.")
    if not math.isnan(explained) and rise > 0:
        if not _EXPLAINED[0] <= explained <= _EXPLAINED[1]:
            reason = "they were clipped, or " if explained > 1 else ""
            told.append(
                f"But the gradients explain {explained:.0%} of that: {reason}the norm was changed by something else."
            )
            return _spike(rows, first, last, UNKNOWN, told, "", explained=explained, **numbers)
        told.append(f"The law of a step explains {explained:.0%} of it.")
    span = int(rows.step[-1] - rows.step[0])
    gap = span / max(rows.step.size - 1, 1)
    takes = numbers["fall"] / (numbers["fall_rate"] * float(rows.decay[trough])) * gap
    advice = (
        "Half the weight decay, or half the learning rate, about doubles the time between such spikes; with wd < "
        f"{float(rows.wd[trough]) * takes / span:.2g} a fall of this depth takes longer than this log ({span} steps)."
    )
    return _spike(rows, first, last, NORM_DRIVEN, told, advice, explained=explained, **numbers)


def _from_the_data(rows: Rows, first: int, last: int, arrives: int, told: list[str], numbers: dict[str, Any]) -> Spike:
    after = rows.loss[arrives + _RETURNS[0] : arrives + _RETURNS[1] + 1]
    if after.size <= _RETURNS[1] - _RETURNS[0]:
        told.append("The log ends too soon after it to tell one batch from a change that lasts.")
        return _spike(rows, first, last, UNKNOWN, told, "", **numbers)
    usual = float(rows.loss[before(first)].mean())
    left = float((after.mean() - usual) / (rows.loss[arrives] - usual))
    told.append(f"{_RETURNS[0]} to {_RETURNS[1]} steps after it, {max(left, 0.0):.1%} of it was left.")
    if left > _REMAINS:
        advice = f"See what data, or labels, came from step {rows.step[arrives]} on; lr and wd did not do this."
        return _spike(rows, first, last, DATA_SHIFT, told, advice, **numbers)
    if left > _FORGOTTEN:
        told.append("That is between what one batch leaves and what a change of the data does.")
        return _spike(rows, first, last, UNKNOWN, told, "", **numbers)
    advice = f"See the batch of step {rows.step[arrives]}; lr and wd did not do this."
    if rows.grad_norm is not None and rows.norm is not None:
        gradients = (rows.grad_norm / rows.norm)[before(first)]
        clip = 2 * float(np.nanquantile(gradients, 0.99))
        if rows.grad_norm[arrives] / rows.norm[arrives] > clip:
            # of a trajectory it is g̃/ρ
            column = rows.log.grad_norm.attrs.get("column")
            which = "that of the scale-invariant weights" if column is None else f"that in column {column!r}"
            advice += f" Gradients clipped at a norm of {clip:.2g}, {which}, would have turned the weights less."
    return _spike(rows, first, last, BAD_BATCH, told, advice, **numbers)


def _spike(
    rows: Rows,
    first: int,
    last: int,
    cause: str,
    evidence: list[str],
    advice: str,
    *,
    fall: float = math.nan,
    fall_rate: float = math.nan,
    turned: float = math.nan,
    explained: float = math.nan,
    trough: int | None = None,
) -> Spike:
    start = first if trough is None else trough
    effective = rise = math.nan
    if rows.norm is not None:
        grown = rows.norm[start : min(last + 2, rows.norm.size)]
        with np.errstate(all="ignore"):
            rise = float(np.log(np.nanmax(grown) / grown[0])) if np.isfinite(grown).any() else math.nan
            effective = math.nan if rows.lr is None else float(rows.lr[start] / rows.norm[start] ** 2)
    return Spike(
        step=int(rows.step[first]),
        last_step=int(rows.step[last]),
        cause=cause,
        peak_loss=float(np.max(rows.logged_loss[first : last + 1])),
        usual_loss=float(np.median(rows.loss[before(first)])) if first else math.nan,
        norm_rise=rise,
        fall=fall,
        fall_rate=fall_rate,
        effective_lr=effective,
        turned_before=turned,
        growth_explained=explained,
        evidence=tuple(evidence),
        advice=advice,
    )


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
    if not known.size or not recent[-1] >= _LR_RISES * float(known.min()):
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
        f"{optimizer_text(rows.rule)}, the norm can follow; with wd smaller by as much, lr wd and the rotation at rest "
        "stay as they were."
    )


def _next(rows: Rows, spikes: list[Spike]) -> tuple[float, float]:
    """Step of the next norm-driven spike: from their distances, or from one fall like the last."""
    if not spikes:
        return math.nan, math.nan
    last = spikes[-1]
    steps = np.array([spike.step for spike in spikes])
    if len(spikes) > 2:
        apart = np.diff(steps)
        due = float(steps[-1] + apart.mean())
        # what has not come in time may not come at all
        return (due, float(apart.std(ddof=1))) if due > rows.step[-1] else (math.nan, math.nan)
    assert rows.norm is not None
    assert rows.decay is not None
    assert rows.lr is not None
    trough = math.sqrt(float(rows.lr[np.searchsorted(rows.step, last.step)]) / last.effective_lr)
    rate = last.fall_rate * float(rows.decay[-1])
    present = rows.norm[-1]
    if not (np.isfinite(present) and rate > 0 and present > trough):
        return math.nan, math.nan
    gap = float(rows.step[-1] - rows.step[-2]) if rows.step.size > 1 else 1.0
    return float(rows.step[-1] + math.log(present / trough) / rate * gap), math.nan
