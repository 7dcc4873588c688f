"""Diagnose why the loss of a training spiked: causes, evidence, advice, and what the log lacks."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from simulate.diagnosis.law_check import Contradiction, find_contradiction
from simulate.diagnosis.log_rows import Rows, has_values, is_read
from simulate.diagnosis.rules import NORM_DRIVEN, OVERFLOW, THRESHOLDS, UNKNOWN, Explanation, Thresholds, explain
from simulate.diagnosis.spikes import find_spikes, rows_before, spike_features
from simulate.diagnosis.trends import LossTrend, find_trends
from simulate.logs.read import describe_log, read_log
from simulate.trajectories.contract import DIVERGED
from theory.arguments import FloatArray
from theory.optimizers import OptimizerLike

_HOW_TO_LOG = """To know the cause next time, log the norm of the scale-invariant weights:
    import empirical
    monitor = empirical.Monitor(model, optimizer, inputs)
    monitor.before_step(loss)  # in each step, before optimizer.step()
    monitor.after_step()       # and after it; then simulate.diagnose(monitor.trajectory())"""

NO_SPIKES, SEVERAL = "no spikes", "several causes"


@dataclass(frozen=True)
class Spike:
    """One spike of the loss and its cause; numbers that the log does not contain are NaN.

    Attributes
    ----------
    step, last_step : first and last step with a high loss.
    cause : "norm-driven", "large update", "clipping", "bad batch", "data shift", "data order", "lr step", "overflow" or
        "unknown".
    peak_loss, usual_loss : largest loss of the spike, and median loss of the rows before.
    norm_rise : growth of ln ρ in the spike.
    norm_decay : decay of ln ρ from its last peak to the spike.
    decay_ratio : speed of that decay over the speed of weight decay alone.
    effective_lr : η/ρ² where the spike began.
    turned_before : largest rotation of the three steps before the loss was high, over the 95 % quantile of usual
        rotations.
    growth_explained : growth of ln ρ that the gradients explain by the one-step law, over the measured growth.
    evidence : sentences.
    advice : what to do; empty if nothing is advised.
    """

    step: int
    last_step: int
    cause: str
    peak_loss: float
    usual_loss: float
    norm_rise: float
    norm_decay: float
    decay_ratio: float
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
    spikes : spikes in order.
    trends : what the loss does apart from spikes: slow rises, oscillations, repetitions.
    missing : what the log lacks for finding spikes and, if a cause is unknown, for finding causes.
    remarks : what was left out when the log was read, and limits of the diagnosis: the optimizer was assumed, or norms
        contradict its update.
    next_step, next_stderr : expected step of the next norm-driven spike and its uncertainty. NaN if no such spike is
        expected; `next_stderr` is NaN, too, if the estimate uses a single decay phase.
    log : the log that was diagnosed.
    """

    spikes: tuple[Spike, ...]
    trends: tuple[LossTrend, ...]
    missing: tuple[str, ...]
    remarks: tuple[str, ...]
    next_step: float
    next_stderr: float
    log: xr.Dataset = field(repr=False)

    @property
    def description(self) -> str:
        """What was read, and which column was taken for what."""
        return describe_log(self.log)

    @property
    def cause(self) -> str:
        """Cause of more than half of the spikes, else "several causes"; without any, the first trend or "no spikes"."""
        counts = Counter(spike.cause for spike in self.spikes).most_common(1)
        if not counts:
            return self.trends[0].kind if self.trends else NO_SPIKES
        cause, count = counts[0]
        return cause if 2 * count > len(self.spikes) else SEVERAL

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the log for JSON; numbers that are not finite are None.

        Examples
        --------
        >>> result = diagnose({"loss": np.ones(400)}).to_dict()
        >>> result["cause"], result["spikes"], result["next_step"]
        ('no spikes', [], None)
        """
        spikes = [{name: _to_json(value) for name, value in dataclasses.asdict(spike).items()} for spike in self.spikes]
        ends = {"next_step": _to_json(self.next_step), "next_stderr": _to_json(self.next_stderr)}
        texts = {"missing": list(self.missing), "remarks": list(self.remarks)}
        trends = [dataclasses.asdict(trend) for trend in self.trends]
        kinds = {"cause": self.cause, "description": self.description}
        return {**kinds, "spikes": spikes, "trends": trends, **texts, **ends}

    def __str__(self) -> str:
        counts = Counter(spike.cause for spike in self.spikes)
        summary = ", ".join(f"{count} {cause}" for cause, count in counts.most_common())
        lines = [f"{len(self.spikes)} spikes: {summary}" if len(self.spikes) > 1 else f"1 spike: {summary}"]
        if not self.spikes:
            lines = ["no spikes: no loss stands out from the losses before it"]
        lines.insert(0, self.description)
        for cause in counts:
            alike = [spike for spike in self.spikes if spike.cause == cause]
            # the largest one stands for all spikes of this cause
            largest = max(alike, key=lambda spike: spike.peak_loss)
            lines.append(f"  {largest}")
            if len(alike) > 1:
                steps = ", ".join(str(spike.step) for spike in alike if spike is not largest)
                lines.append(f"    also {cause}: step{'s' if len(alike) > 2 else ''} {steps}")
        if not math.isnan(self.next_step):
            basis = " if the norm decays as before" if math.isnan(self.next_stderr) else f" ± {self.next_stderr:.0f}"
            lines.append(f"The next norm-driven spike is expected near step {self.next_step:.0f}{basis}.")
        lines += [f"  {trend}" for trend in self.trends]
        lines += self.remarks
        if self.missing:
            lines.append(f"{'The' if self.spikes else 'But the'} log lacks {'; '.join(self.missing)}.")
        if UNKNOWN in counts and "norm" not in self.log:
            lines.append(_HOW_TO_LOG)
        return "\n".join(lines)


def diagnose(
    log: Any,
    *,
    lr: float | None = None,
    wd: float | None = None,
    optimizer: OptimizerLike = None,
    names: Mapping[str, str] | None = None,
    steps_by_row: bool = False,
    steps_per_row: int | None = None,
) -> Diagnosis:
    """Find the spikes of a training loss and their causes.

    - "overflow": loss, norm or gradient is not finite, or the trajectory ends as "diverged".
    - "lr step": the learning rate rose by half or more within the 30 rows before, and steps then rotated the weights
      farther.
    - "norm-driven": the norm had decayed, and steps rotated the weights unusually far *before* the loss rose. The steps
      are too long for the norm, the norm grows, and the next decay phase begins.
    - "bad batch", "data shift": the loss rose at once, after steps with usual rotation, so the data are the cause.
      After one bad batch the loss returns within some steps; after a change of data or labels it stays high.
    - "unknown": none of these, or the log lacks the columns to decide.

    A simulated trajectory has no data: spikes that are neither norm-driven nor due to the learning rate are unknown.

    Parameters
    ----------
    log : a trajectory, or anything that `read_log` reads: a path, columns by name, a data frame, … Best columns: loss,
        learning rate, norm of the scale-invariant weights and norm of their gradient, all before each step.
    lr, wd, optimizer : settings that the log lacks. The optimizer is an object such as `theory.SGD(momentum=0.9)`, or
        its text form, such as "AdamW". Without it plain SGD is assumed.
    names, steps_by_row, steps_per_row : as in `read_log`; not for trajectories.

    Returns
    -------
    Diagnosis

    Raises
    ------
    TypeError, ValueError : the log does not exist or has no loss, or its steps do not grow.

    Source: docs/diagnosis.md; docs/mathematics.md §1, §5.

    Examples
    --------
    >>> loss = np.random.default_rng(0).uniform(0.1, 0.2, 400)
    >>> loss[300] = np.inf
    >>> print(diagnose({"loss": loss}).spikes[0])
    step 300: overflow. The loss is not finite for 1 step. The usual loss before was 0.155.
    """
    columns: dict[str, Any] = {"names": names, "steps_by_row": steps_by_row, "steps_per_row": steps_per_row}
    return diagnose_run(read_log(log, lr=lr, wd=wd, optimizer=optimizer, **columns))


def diagnose_run(log: xr.Dataset, t: Thresholds = THRESHOLDS) -> Diagnosis:
    """Find the spikes of a log of one run and their causes, by these thresholds."""
    if "loss" not in log:
        raise ValueError(f"log must have the loss of each step, got {sorted(map(str, log.data_vars))}")
    if log.loss.dims != ("step",):
        raise ValueError(f"log must be one run with dimension ('step',), got {dict(log.sizes)}; select one first")
    step = log.step.values
    if not np.issubdtype(step.dtype, np.integer) or (step[1:] <= step[:-1]).any():
        raise ValueError(f"log.step must be whole numbers that grow, got {step}")
    rows = Rows.of(log, t)
    places = find_spikes(rows, t)
    overflows = _find_overflows(rows, t)
    trends = find_trends(rows, [*places, *_overflown_rows(rows)], t)
    contradiction = find_contradiction(rows, t) if places or trends else Contradiction()
    if contradiction.is_by_gradients:
        rows = rows.without_gradients()
    features = spike_features(rows, places, contradicts_law=contradiction.is_serious, t=t)
    spikes = [_make_spike(rows, *place, explain(s, t), t) for place, s in zip(places, features, strict=True)]
    spikes = sorted([*overflows, *spikes], key=lambda spike: spike.step)
    norm_driven = [spike for spike in spikes if spike.cause == NORM_DRIVEN]
    # no spike follows a divergence
    next_step, next_stderr = (math.nan, math.nan) if _has_diverged(log) else _predict_next(rows, norm_driven)
    missing = (*rows.lacking, *rows.limits) if any(spike.cause == UNKNOWN for spike in spikes) else rows.limits
    assumed = "No optimizer was given, so plain SGD is assumed (optimizer=, or --optimizer)."
    limits = ("" if "optimizer" in log.attrs else assumed, contradiction.text) if places or trends else ()
    remarks = (*log.attrs.get("remarks", ()), *limits)
    return Diagnosis(
        tuple(spikes), tuple(trends), missing, tuple(filter(None, remarks)), next_step, next_stderr, rows.log
    )


def _to_json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _find_overflows(rows: Rows, t: Thresholds) -> list[Spike]:
    columns = {"loss": rows.logged_loss, "norm": rows.logged_norm, "gradient": rows.gradient}
    lost = {name: _is_lost(values, is_read(rows.log)) for name, values in columns.items() if has_values(values)}
    overflows = []
    for first, last in _overflown_rows(rows):
        end = last + 1
        names = [name for name, is_lost in lost.items() if is_lost[first]]
        is_final = end == rows.loss.size and end - first > 1
        duration = "from here to the end" if is_final else f"for {end - first} step{'s' if end - first > 1 else ''}"
        sentence = f"The {' and the '.join(names)} {'is' if len(names) == 1 else 'are'} not finite {duration}."
        advice = "Skip steps whose gradients are not finite, as loss scalers do." if is_final else ""
        explanation = Explanation(OVERFLOW, (sentence, *_say_before_overflow(rows, first, t)), advice)
        overflows.append(_make_spike(rows, first, end - 1, explanation, t))
    if _has_diverged(rows.log) and not (overflows and overflows[-1].last_step == rows.step[-1]):
        # the overflow that ends the trajectory has no row there
        last = rows.step.size - 1
        step = int(rows.log.status_step) if "status_step" in rows.log else int(rows.step[last]) + 1
        sentence = "The run diverged at this step: its numbers left the floating-point range, and no rows follow."
        explanation = Explanation(OVERFLOW, (sentence, *_say_before_overflow(rows, last + 1, t)))
        spike = _make_spike(rows, last, last, explanation, t)
        overflows.append(dataclasses.replace(spike, step=step, last_step=step, peak_loss=math.nan))
    return overflows


def _overflown_rows(rows: Rows) -> list[tuple[int, int]]:
    """First and last row of each stretch of rows with a value that is not finite."""
    # a norm that is NaN at a finite loss was not logged
    overflown = ~np.isfinite(rows.logged_loss) | np.isinf(rows.norm) | np.isinf(rows.gradient)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], overflown, [False]]).astype(int)))
    return [(first, end - 1) for first, end in edges.reshape(-1, 2).tolist()]


def _say_before_overflow(rows: Rows, first: int, t: Thresholds) -> list[str]:
    if not first:
        return []
    usual, then = float(np.median(rows.loss[rows_before(first, t.compared_rows)])), rows.loss[first - 1]
    risen = [f"It had already risen to {then:.3g}: check the steps before."] if then > t.overflow_rise * usual else []
    return [f"The usual loss before was {usual:.3g}.", *risen]


def _has_diverged(log: xr.Dataset) -> bool:
    return "status" in log and log.status.ndim == 0 and log.status.item() == DIVERGED


def _is_lost(values: FloatArray, of_log: bool) -> npt.NDArray[np.bool_]:
    """Where values are infinite. In a trajectory also where they are NaN up to the end."""
    if of_log:
        return np.isinf(values)
    last = np.flatnonzero(np.isfinite(values))[-1]
    lost: npt.NDArray[np.bool_] = np.isinf(values) | (np.isnan(values) & (np.arange(values.size) > last))
    return lost


def _make_spike(rows: Rows, first: int, last: int, explanation: Explanation, t: Thresholds) -> Spike:
    numbers = explanation.numbers
    # if the norm was used, the spike begins with its lowest value
    start = int(numbers.get("trough", first))
    norms = rows.norm[start : last + 2]
    with np.errstate(all="ignore"):
        rise = float(np.log(np.nanmax(norms) / norms[0])) if has_values(norms) else math.nan
        effective_lr = float(rows.lr[start] / rows.norm[start] ** 2)
    return Spike(
        step=int(rows.step[first]),
        last_step=int(rows.step[last]),
        cause=explanation.cause,
        peak_loss=float(np.max(rows.logged_loss[first : last + 1])),
        usual_loss=float(np.median(rows.loss[rows_before(first, t.compared_rows)])) if first else math.nan,
        norm_rise=rise,
        norm_decay=numbers.get("norm_decay", math.nan),
        decay_ratio=numbers.get("decay_ratio", math.nan),
        effective_lr=effective_lr,
        turned_before=numbers.get("turned_before", math.nan),
        growth_explained=numbers.get("growth_explained", math.nan),
        evidence=explanation.evidence,
        advice=explanation.advice,
    )


def _predict_next(rows: Rows, spikes: list[Spike]) -> tuple[float, float]:
    """Expected step of the next norm-driven spike, from the distances of spikes or from the last decay phase."""
    if not spikes:
        return math.nan, math.nan
    last = spikes[-1]
    if len(spikes) > 2:
        steps = np.array([spike.step for spike in spikes])
        distances = np.diff(steps)
        due = float(steps[-1] + distances.mean())
        # a spike that is overdue may not come at all
        return (due, float(distances.std(ddof=1))) if due > rows.step[-1] else (math.nan, math.nan)
    trough = math.sqrt(float(rows.lr[np.searchsorted(rows.step, last.step)]) / last.effective_lr)
    decay = last.decay_ratio * float(rows.decay_per_step[-1])
    present = rows.norm[-1]
    if not (np.isfinite(present) and decay > 0 and present > trough):
        return math.nan, math.nan
    return float(rows.step[-1] + math.log(present / trough) / decay), math.nan
