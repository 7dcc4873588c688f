"""Columns of a log as they were read, before their meaning is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from simulate.logs._cells import to_numbers
from theory.arguments import FloatArray

_MOST_NAMES = 20
_MOST_NAMES_SEEN = 200

Cells = Sequence[Any] | npt.NDArray[Any]


@dataclass
class Table:
    """Columns of equal length, and how they were written.

    Attributes
    ----------
    columns : cells by name: texts, numbers or None.
    kind : "csv", "json", "text", "events" or "memory".
    form : what a description calls the log unless the logger is recognized.
    remarks : sentences about the reading.
    names_seen : all names in the log, also of columns that cannot have a meaning.
    is_nan_unclear : whether a NaN may mean that nothing was logged.
    rows_are_epochs : whether each row is an epoch, whatever its columns.
    totals : numbers after a slash, as of "step 10/400".
    original_names : names in the log of columns that were renamed.
    """

    columns: dict[str, Cells]
    kind: str
    form: str
    remarks: list[str] = field(default_factory=list)
    names_seen: Sequence[str] = ()
    is_nan_unclear: bool = False
    rows_are_epochs: bool = False
    totals: dict[str, int] = field(default_factory=dict)
    original_names: dict[str, str] = field(default_factory=dict)
    _numbers: dict[str, FloatArray] = field(default_factory=dict, repr=False)

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values()), ()))

    def numbers(self, name: str) -> FloatArray:
        """Numbers of a column: NaN if not logged, inf if lost."""
        if name not in self._numbers:
            numbers, are_percentages = to_numbers(self.columns[name])
            if are_percentages:
                self.remarks.append(f"The column {name!r} has percentages; they are divided by 100.")
            self._numbers[name] = np.where(np.isneginf(numbers), np.inf, numbers)
        return self._numbers[name]

    def set_numbers(self, name: str, numbers: FloatArray) -> None:
        """Replace the numbers of a column."""
        self._numbers[name] = numbers

    def select(self, rows: npt.NDArray[np.bool_]) -> None:
        """Keep these rows only."""
        at = np.flatnonzero(rows).tolist()
        self.columns = {name: [cells[row] for row in at] for name, cells in self.columns.items()}
        self._numbers = {name: numbers[rows] for name, numbers in self._numbers.items()}


class RowCollector:
    """Rows with different names, put together to columns; a row without a name has None there."""

    def __init__(self, is_relevant: Callable[[str], bool]) -> None:
        self._is_relevant = is_relevant
        self._relevance: dict[str, bool] = {}
        self.columns: dict[str, list[Any]] = {}
        self.names_seen: dict[str, None] = {}
        self.count = 0

    def add(self, pairs: Iterable[tuple[str, Any]]) -> None:
        """Add a row; of a name that it has twice the first value counts."""
        count, columns, relevance = self.count, self.columns, self._relevance
        for name, value in pairs:
            relevant = relevance.get(name)
            if relevant is None:
                relevant = relevance[name] = self._is_relevant(name)
                if len(self.names_seen) < _MOST_NAMES_SEEN:
                    self.names_seen[name] = None
            if not relevant:
                continue
            column = columns.get(name)
            if column is None:
                column = columns[name] = []
            if len(column) <= count:
                if len(column) < count:
                    column.extend([None] * (count - len(column)))
                column.append(value)
        self.count = count + 1

    def finish(self) -> dict[str, Cells]:
        """Columns of equal length."""
        for column in self.columns.values():
            column.extend([None] * (self.count - len(column)))
        return dict(self.columns)


def format_names(names: Iterable[str]) -> list[str]:
    """Sorted names for a message, not too many."""
    ordered = sorted(names)
    return ordered if len(ordered) <= _MOST_NAMES else [*ordered[:_MOST_NAMES], "…"]
