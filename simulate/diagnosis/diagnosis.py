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
from simulate.diagnosis.causes import (
    BAD_BATCH,
    DATA_SHIFT,
    LR_RISES,
    LR_STEP,
    NORM_DRIVEN,
    OVERFLOW,
    UNKNOWN,
    Verdict,
    judge,
)
from simulate.diagnosis.log_rows import Rows
from simulate.diagnosis.spikes import before, find_spikes, leave_out
from simulate.diagnosis.step_law import contradiction
from simulate.diagnosis.training_log import read_log, refuse_names, training_log, with_settings
from simulate.trajectories.contract import DIVERGED
from theory.arguments import FloatArray

__all__ = [
    "BAD_BATCH",
    "DATA_SHIFT",
    "LR_STEP",
    "NORM_DRIVEN",
    "NO_SPIKES",
    "OVERFLOW",
    "SEVERAL",
    "UNKNOWN",
    "Diagnosis",
    "Spike",
    "diagnose",
]

NO_SPIKES, SEVERAL = "no spikes", "several causes"

_RISEN = 10.0  # times the usual loss, before numbers overflow


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

    - "overflow": loss, norm or gradient is no finite number any more, or the trajectory ends as "diverged".
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
    names : of the columns, as in `training_log`; only where the log is no trajectory.

    Returns
    -------
    Diagnosis

    Raises
    ------
    TypeError, ValueError : there is no such log, it has no loss, or its steps do not go on.

    Source: docs/diagnosis.md; docs/mathematics.md §1, §5.

    Examples
    --------
    >>> quiet = np.random.default_rng(0).uniform(0.1, 0.2, 400)
    >>> quiet[300] = np.inf
    >>> print(diagnose({"loss": quiet}).spikes[0])
    step 300: overflow. The loss is not finite from here, for 1 step. The loss before was 0.155.
    """
    if isinstance(log, xr.Dataset):
        refuse_names(names)
        held = with_settings(_one_run(log), lr=lr, wd=wd, optimizer=optimizer)
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
    spikes = _overflows(rows) + [_spike(rows, *place, judge(rows, usual, *place)) for place in places]
    spikes.sort(key=lambda spike: spike.step)
    alike = [spike for spike in spikes if spike.cause == NORM_DRIVEN]
    # nothing comes after what diverged
    next_step, next_stderr = (math.nan, math.nan) if _has_diverged(rows.log) else _next(rows, alike)
    missing = rows.missing if any(spike.cause == UNKNOWN for spike in spikes) else rows.limits
    remarks = _remarks(rows) if any(spike.cause != OVERFLOW for spike in spikes) else ()
    return Diagnosis(tuple(spikes), missing, remarks, next_step, next_stderr, rows.log)


def _one_run(log: xr.Dataset) -> xr.Dataset:
    if "step" not in log.dims or any(log[name].dims != ("step",) for name in ("loss",) if name in log):
        raise ValueError(f"log must be one run with dimension ('step',), got {dict(log.sizes)}; select one first")
    step = log.step.values
    if not np.issubdtype(step.dtype, np.integer) or (step[1:] <= step[:-1]).any():
        raise ValueError(f"log.step must be whole numbers that grow, got {step}")
    return log


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
        expected = np.flatnonzero((old > 0) & (rows.lr[1:end] >= LR_RISES * old)) + 1
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
        advice = "A check of the gradients before each step, as loss scalers make, would have left the weights alone."
        verdict = Verdict(OVERFLOW, (*evidence, *_before_overflow(rows, first)), advice if to_the_end else "")
        found.append(_spike(rows, first, end - 1, verdict))
    return [*found, _diverged(rows)] if _has_diverged(rows.log) and not bad[-1] else found


def _before_overflow(rows: Rows, first: int) -> list[str]:
    if not first:
        return []
    usual, then = float(np.median(rows.loss[before(first)])), rows.loss[first - 1]
    risen = [f"It had risen to {then:.3g} already: see what comes before."] if then > _RISEN * usual else []
    return [f"The loss before was {usual:.3g}.", *risen]


def _has_diverged(log: xr.Dataset) -> bool:
    return "status" in log and log.status.ndim == 0 and log.status.item() == DIVERGED


def _diverged(rows: Rows) -> Spike:
    """The overflow that ends a trajectory, of which it has no numbers."""
    last = rows.step.size - 1
    step = int(rows.log.status_step) if "status_step" in rows.log else int(rows.step[last]) + 1
    told = "The run diverged at this step: its numbers left the range of floating point, and no rows follow."
    verdict = Verdict(OVERFLOW, (told, *_before_overflow(rows, last + 1)))
    return dataclasses.replace(_spike(rows, last, last, verdict), step=step, last_step=step, peak_loss=math.nan)


def _lost(values: FloatArray) -> npt.NDArray[np.bool_]:
    """Where numbers are infinite, or none to the end: none that numbers follow may not have been logged."""
    finite = np.flatnonzero(np.isfinite(values))
    last = int(finite[-1]) if finite.size else -1
    lost: npt.NDArray[np.bool_] = np.isinf(values) | (np.isnan(values) & (np.arange(values.size) > last))
    return lost


def _spike(rows: Rows, first: int, last: int, verdict: Verdict) -> Spike:
    start = first if verdict.trough is None else verdict.trough
    effective = rise = math.nan
    if rows.norm is not None:
        grown = rows.norm[start : min(last + 2, rows.norm.size)]
        with np.errstate(all="ignore"):
            rise = float(np.log(np.nanmax(grown) / grown[0])) if np.isfinite(grown).any() else math.nan
            effective = math.nan if rows.lr is None else float(rows.lr[start] / rows.norm[start] ** 2)
    return Spike(
        step=int(rows.step[first]),
        last_step=int(rows.step[last]),
        cause=verdict.cause,
        peak_loss=float(np.max(rows.logged_loss[first : last + 1])),
        usual_loss=float(np.median(rows.loss[before(first)])) if first else math.nan,
        norm_rise=rise,
        fall=verdict.fall,
        fall_rate=verdict.fall_rate,
        effective_lr=effective,
        turned_before=verdict.turned_before,
        growth_explained=verdict.growth_explained,
        evidence=verdict.evidence,
        advice=verdict.advice,
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
    assert rows.decay_per_step is not None
    assert rows.lr is not None
    trough = math.sqrt(float(rows.lr[np.searchsorted(rows.step, last.step)]) / last.effective_lr)
    rate = last.fall_rate * float(rows.decay_per_step[-1])
    present = rows.norm[-1]
    if not (np.isfinite(present) and rate > 0 and present > trough):
        return math.nan, math.nan
    return float(rows.step[-1] + math.log(present / trough) / rate), math.nan
