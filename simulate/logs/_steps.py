"""Steps of the rows of a log: restarts, steps that count within epochs, rows that are epochs, rows without steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from theory.arguments import FloatArray

Rows = npt.NDArray[np.bool_]

_LARGEST_STEP = 2.0**53
# A training may restart a few times and keeps most of its steps. A step column that goes back more often, or after
# equally many rows each time, counts something else.
_RESTARTS = 3  # at most
_SHARE_OF_RESTARTS = 0.05  # of the rows, at most
_EPOCH_TOLERANCE = 0.05  # relative uncertainty of a number of steps per epoch, at most
POSITION = "position in epoch"  # column of places such as [50/1000]
STEPS, EPOCHS, ROWS = "steps", "epochs", "rows"


@dataclass
class Steps:
    """Step of each row.

    Attributes
    ----------
    step : numbers; NaN for rows that are left out.
    unit : what one of these steps is: "steps", "epochs" or "rows".
    column : its name in the log; empty if rows were counted.
    epoch_length : steps per epoch; 0 if the log does not determine it.
    remarks : sentences.
    """

    step: FloatArray
    unit: str
    column: str = ""
    epoch_length: int = 0
    remarks: list[str] = field(default_factory=list)


def find_steps(
    candidates: Mapping[str, FloatArray],
    has_loss: Rows,
    rows: Rows,
    epoch: FloatArray | None,
    *,
    epoch_name: str = "epoch",
    totals: Mapping[str, int] | None = None,
    rows_are_epochs: bool = False,
) -> Steps:
    """Find the step of each row; rows with a loss decide whether a column counts steps.

    Parameters
    ----------
    candidates : columns that may be the step, best first.
    has_loss : rows with a loss.
    rows : rows that count if no column is the step.
    epoch : epoch of each row, if the log has one.
    totals : numbers after a slash, by column.

    Raises
    ------
    ValueError : no column is a step, and one has invalid numbers or goes back as no restart does.
    """
    problem: ValueError | None = None
    usable = {}
    for name, step in candidates.items():
        try:
            _check_whole_numbers(step[has_loss], name)
        except ValueError as error:
            problem = problem or error
            continue
        logged = step[has_loss & np.isfinite(step)]
        is_constant = logged.size > 2 and np.ptp(logged) == 0
        if not is_constant and 2 * logged.size >= has_loss.sum():
            usable[name] = step
    for name, step in usable.items():
        try:
            steps = _steps_of_column(step, has_loss, name, epoch)
            if epoch is not None and name != POSITION and POSITION in (totals or {}):
                steps.epoch_length = (totals or {})[POSITION]
            return steps
        except ValueError as error:
            problem = problem or error
    if epoch is not None:
        for name, step in usable.items():
            across = _steps_within_epochs(step, epoch, has_loss, name, (totals or {}).get(name, 0))
            if across is not None:
                return across
    if problem is not None:
        raise problem
    return _steps_without_column(has_loss, count_rows(rows), epoch, epoch_name, rows_are_epochs)


def count_rows(rows: Rows, steps_per_row: int | None = None) -> Steps:
    """Number the rows; they lie `steps_per_row` steps apart, or each is one step."""
    step = np.full(rows.size, np.nan)
    step[rows] = np.arange(rows.sum()) * (steps_per_row or 1)
    return Steps(step, STEPS if steps_per_row else ROWS)


def _check_whole_numbers(step: FloatArray, name: str) -> None:
    finite = np.isfinite(step)
    invalid = step[finite & ((step != np.round(step)) | (np.abs(step) > _LARGEST_STEP))]
    if invalid.size or (step.size and not finite.any()):
        got = f"{invalid[0]:g}" if invalid.size else "none"
        raise ValueError(
            f"step must be of whole numbers, got {got} in column {name!r}. Name the column of steps by `names`, or "
            "number the rows with `steps_by_row`"
        )


def _steps_of_column(step: FloatArray, has_loss: Rows, name: str, epoch: FloatArray | None) -> Steps:
    kept, dropped = last_repetition(step, has_loss, f"column {name!r}")
    remarks = [_format_dropped(dropped)] if dropped else []
    steps = Steps(np.where(kept, step, np.nan), STEPS, name, remarks=remarks)
    if epoch is not None:
        steps.epoch_length = epoch_length(steps.step, epoch, has_loss)
    return steps


def _format_dropped(count: int) -> str:
    rows = "1 row before a restart is" if count == 1 else f"{count} rows before a restart are"
    return f"{rows} left out: later rows repeat the steps."


def last_repetition(step: FloatArray, has_loss: Rows, place: str) -> tuple[Rows, int]:
    """Rows whose step no later row repeats, and how many rows with a loss are not among them.

    Raises
    ------
    ValueError : steps go back more often, or farther, than restarts do.
    """
    rows = np.flatnonzero(has_loss & np.isfinite(step))
    logged = step[rows]
    back = np.flatnonzero(np.diff(logged) < 0) + 1
    # the earliest step that a later row goes back to
    later = np.full(step.size + 1, np.inf)
    later[rows[back]] = logged[back]
    with np.errstate(invalid="ignore"):
        kept: Rows = step < np.minimum.accumulate(later[::-1])[::-1][1:]
    dropped = int((~kept[rows]).sum())
    is_often = back.size > max(_RESTARTS, _SHARE_OF_RESTARTS * logged.size)
    is_regular = back.size >= _RESTARTS and np.ptp(np.diff(back)) <= 1
    if 2 * dropped >= max(logged.size, 1) or is_often or is_regular:
        times = "once" if back.size == 1 else f"{back.size} times"
        first = f"{logged[back[0] - 1]:.0f} to {logged[back[0]]:.0f}"
        raise ValueError(
            f"step must grow, except for a few restarts: in {place} it goes back {times}, first from {first}, and "
            f"{dropped} of {logged.size} rows would be lost. Name a column of steps that grow across epochs by "
            "`names`, or number the rows with `steps_by_row`"
        )
    return kept, dropped


def _steps_within_epochs(step: FloatArray, epoch: FloatArray, has_loss: Rows, name: str, total: int) -> Steps | None:
    """Steps across epochs, from numbers that start again with each epoch; None if they do not."""
    rows = np.flatnonzero(has_loss & np.isfinite(step) & np.isfinite(epoch))
    if rows.size < 2 or (epoch[rows] != np.round(epoch[rows])).any():
        return None
    inner, change = step[rows], np.diff(epoch[rows])
    if not (change > 0).any():
        return None
    first_epoch = 0 if epoch[rows].min() == 0 else 1
    # several lines may be of the same step
    spacing = np.diff(inner)[(change == 0) & (np.diff(inner) > 0)]
    usual_spacing = float(np.median(spacing)) if spacing.size else 1.0
    # numbers from 0 end one row before the length, numbers from 1 at the length
    longest = inner.max() + (usual_spacing if inner.min() == 0 else 0)
    length = int(max(total, longest))
    across = (epoch - first_epoch) * length + step
    try:
        kept, dropped = last_repetition(across, has_loss, f"column {name!r}")
    except ValueError:
        return None
    remarks = [f"The column {name!r} counts within epochs; steps are counted across epochs of {length} steps."]
    if dropped:
        remarks.append(_format_dropped(dropped))
    return Steps(np.where(kept, across, np.nan), STEPS, name, length, remarks)


def _steps_without_column(
    has_loss: Rows, numbered: Steps, epoch: FloatArray | None, epoch_name: str, rows_are_epochs: bool
) -> Steps:
    """Steps of rows without a column of steps: the epoch, if each row is one, or else their number."""
    if epoch is not None and has_loss.any():
        logged = epoch[has_loss]
        if np.isfinite(logged).all() and (logged == np.round(logged)).all():
            kept, dropped = _epochs_that_count(epoch, has_loss)
            if kept is not None and (rows_are_epochs or (np.diff(epoch[kept & has_loss]) == 1).all()):
                remarks = [f"{dropped} epochs before a restart are left out."] if dropped else []
                return Steps(np.where(kept, epoch, np.nan), EPOCHS, epoch_name, remarks=remarks)
            numbered.remarks.append(
                f"The log has no step, and {epoch_name!r} does not grow by one in each row; the rows are numbered."
            )
            return numbered
        if np.isfinite(logged).any():
            numbered.remarks.append(f"The log has no step, and {epoch_name!r} has fractions; the rows are numbered.")
            return numbered
    if rows_are_epochs:
        numbered.unit = EPOCHS
    return numbered


def _epochs_that_count(epoch: FloatArray, has_loss: Rows) -> tuple[Rows | None, int]:
    try:
        return last_repetition(epoch, has_loss, "the epochs")
    except ValueError:
        return None, 0


def epoch_length(step: FloatArray, epoch: FloatArray, has_loss: Rows) -> int:
    """Steps per epoch, from epochs beside steps; 0 if they do not determine it."""
    rows = np.flatnonzero(np.isfinite(step) & np.isfinite(epoch) & has_loss)
    if rows.size < 2:
        return 0
    steps, epochs = step[rows], epoch[rows]
    rise, duration = epochs[-1] - epochs[0], steps[-1] - steps[0]
    if rise <= 0 or duration <= 0 or (np.diff(epochs) < 0).any():
        return 0
    if (epochs != np.round(epochs)).any():
        # fractions are rounded, so the longest distance counts
        length = round(duration / rise)
        off = np.abs(steps - steps[0] - length * (epochs - epochs[0]))
        return length if length >= 1 and off.max() <= max(0.02 * duration, 2) else 0
    starts = steps[1:][np.diff(epochs) == 1]
    if starts.size < 2 or (np.diff(epochs) > 1).any():
        return 0
    length = round((starts[-1] - starts[0]) / (starts.size - 1))
    spacing = float(np.median(np.diff(steps)))
    is_exact = spacing <= 1 or spacing <= _EPOCH_TOLERANCE * length * (starts.size - 1)
    return int(length) if length >= 1 and is_exact else 0


def merge_rows(
    columns: Mapping[str, FloatArray], step: FloatArray
) -> tuple[npt.NDArray[np.int64], dict[str, FloatArray]]:
    """Sort rows by their steps and merge those of one step: the last value of each column counts."""
    rows = np.flatnonzero(np.isfinite(step))
    whole = step[rows].astype(np.int64)
    if (np.diff(whole) > 0).all():
        return whole, {name: values[rows] for name, values in columns.items()}
    merged_step, place = np.unique(whole, return_inverse=True)
    merged = {}
    for name, values in columns.items():
        logged = ~np.isnan(values[rows])
        merged[name] = np.full(merged_step.size, np.nan)
        # of several values for one place NumPy keeps the last
        merged[name][place[logged]] = values[rows][logged]
    return merged_step, merged


def scale_epochs(steps: Steps, steps_per_row: int) -> Steps:
    """Turn epochs into steps."""
    remark = f"Rows are epochs; each counts as {steps_per_row} steps."
    return Steps(steps.step * steps_per_row, STEPS, steps.column, steps_per_row, [*steps.remarks, remark])
