"""Logs in memory: columns, data frames, lists of dicts, histories of Hugging Face and Keras, trajectories."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from simulate.logs._cells import to_number
from simulate.logs._column_names import NAMES, is_epoch, is_step, normalize
from simulate.logs._json import records_to_table
from simulate.logs._steps import Rows
from simulate.logs._table import Cells, Table
from theory.arguments import FloatArray


def read_object(source: Any) -> Table | xr.Dataset:
    """Read a log in memory; a trajectory is returned as it is.

    Raises
    ------
    TypeError, ValueError : the object is of another type, or its columns differ in length or have several dimensions.
    """
    if isinstance(source, xr.Dataset):
        return source
    state = getattr(source, "state", None)
    for owner in (source, state):
        if isinstance(history := getattr(owner, "log_history", None), Sequence):
            return records_to_table(history, lambda name: True, form="Hugging Face log history", kind="memory")
    if isinstance(history := getattr(source, "history", None), Mapping):
        return _read_keras(history)
    if isinstance(source, Mapping) and _is_keras_history(source):
        return _read_keras(source)
    if hasattr(source, "columns") and hasattr(source, "__getitem__"):
        return _read_columns(_columns_of_frame(source), "data frame")
    if hasattr(source, "keys"):
        return _read_columns({str(name): source[name] for name in source.keys()}, "columns in memory")  # noqa: SIM118
    if isinstance(source, Sequence) and not isinstance(source, (str, bytes)) and _are_records(source):
        return records_to_table(source, lambda name: True, form="list of dicts", kind="memory")
    raise TypeError(
        "source must be a path, a mapping of names to numbers, a data frame, a list of dicts or a history, "
        f"got {type(source).__name__}"
    )


def _are_records(source: Sequence[Any]) -> bool:
    return bool(source) and all(isinstance(row, Mapping) for row in source)


def _is_keras_history(source: Mapping[Any, Any]) -> bool:
    """Whether lists have names such as loss and val_loss, and no step."""
    names = [str(name) for name in source]
    has_pair = any(f"val_{name}" in names for name in names)
    are_lists = all(isinstance(values, list) for values in source.values())
    return has_pair and are_lists and not any(is_step(name) or is_epoch(name) for name in names)


def _read_keras(history: Mapping[Any, Any]) -> Table:
    table = _read_columns({str(name): history[name] for name in history}, "Keras history")
    table.rows_are_epochs = True
    return table


def _columns_of_frame(frame: Any) -> dict[str, Any]:
    columns = {str(name): frame[name] for name in frame.columns}
    index = getattr(frame, "index", None)
    name = getattr(index, "name", None)
    # an index with a name is a column, such as the step
    return {str(name): index, **columns} if name is not None and str(name) not in columns else columns


def _read_columns(columns: Mapping[str, Any], form: str) -> Table:
    raw = {name: _to_floats(values) for name, values in columns.items()}
    if nested := next((name for name, values in raw.items() if values.ndim > 1), None):
        raise ValueError(f"columns must have one dimension, got the shape {raw[nested].shape} of column {nested!r}")
    count = max((values.size for values in raw.values()), default=0)
    raw = {name: values if values.ndim else np.repeat(values, count) for name, values in raw.items()}
    lengths = {name: values.size for name, values in raw.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns must be of one length, got {lengths}")
    texts = {name: _texts(columns[name], count) for name in raw if np.isnan(raw[name]).all()}
    cells: dict[str, Cells] = {name: texts.get(name) or values for name, values in raw.items()}
    return Table(cells, "memory", form, names_seen=list(raw), is_nan_unclear=True)


def _to_floats(values: npt.ArrayLike) -> FloatArray:
    """Numbers of a column; a text, such as the name of a phase, becomes NaN."""
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError, RuntimeError):
        cells = np.asarray(values, dtype=object)
        return np.array([_unclear_number(cell) for cell in cells.flat], dtype=float).reshape(cells.shape)


def _unclear_number(cell: Any) -> float:
    """Number of a cell in memory, where a NaN may stand for a value that was not logged."""
    return math.nan if isinstance(cell, float) and math.isnan(cell) else to_number(cell)


def _texts(values: Any, count: int) -> list[str] | None:
    """Texts of a column without numbers, such as the phase of each row."""
    try:
        cells = list(values)
    except TypeError:
        return None
    return cells if len(cells) == count and any(isinstance(cell, str) for cell in cells) else None


def find_lost_values(table: Table, names: Mapping[str, str]) -> Rows:
    """Decide which NaNs of a loss in memory are lost losses: those up to the end, unless nothing was logged there.

    No loss was logged in rows that were written for something else: another column, which is empty in the rows with a
    loss, has a value there. Nor was it logged after the last row of a loss that is logged at some rows only.

    Returns
    -------
    rows that were not written for something else; none if this is not known.
    """
    nothing = np.zeros(table.count, dtype=bool)
    if not table.is_nan_unclear or "loss" not in names:
        return nothing
    has_loss = ~np.isnan(table.numbers(names["loss"]))
    if not has_loss.any():
        return nothing
    other = _rows_of_other_values(table, names, has_loss)
    loss = table.numbers(names["loss"])
    table.set_numbers(names["loss"], _with_lost_end(loss, np.flatnonzero(~other)))
    return ~other


def _rows_of_other_values(table: Table, names: Mapping[str, str], has_loss: Rows) -> Rows:
    other = np.zeros(has_loss.size, dtype=bool)
    for name in table.columns:
        if name in names.values() or normalize(name) in NAMES["epoch"] or normalize(name) in NAMES["step"]:
            continue
        has_value = ~np.isnan(table.numbers(name))
        if not (has_value & has_loss).any():
            other |= has_value
    return other


def _with_lost_end(numbers: FloatArray, rows: npt.NDArray[np.int64]) -> FloatArray:
    """Numbers whose missing end is lost, if it is longer than every gap before."""
    logged = np.flatnonzero(~np.isnan(numbers[rows]))
    if not logged.size:
        return numbers
    end = rows[logged[-1] + 1 :]
    longest_gap = int(np.diff(logged).max() - 1) if logged.size > 1 else 0
    if not end.size or end.size <= longest_gap:
        return numbers
    completed = numbers.copy()
    completed[end] = np.inf
    return completed
