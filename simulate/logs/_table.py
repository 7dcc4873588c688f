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
        # numbers of the rows with the same names, and their values
        self._groups: dict[tuple[str, ...], tuple[list[int], list[tuple[Any, ...]]]] = {}
        self.count = 0

    def add(self, names: tuple[str, ...], values: tuple[Any, ...]) -> None:
        """Add a row."""
        group = self._groups.get(names)
        if group is None:
            group = self._groups[names] = ([], [])
        group[0].append(self.count)
        group[1].append(values)
        self.count += 1

    @property
    def names(self) -> list[str]:
        """Names of all rows, not too many."""
        return list(dict.fromkeys(name for names in self._groups for name in names))[:_MOST_NAMES_SEEN]

    def finish(self) -> dict[str, Cells]:
        """Columns of equal length, of the relevant names."""
        columns: dict[str, list[Any]] = {}
        relevance: dict[str, bool] = {}
        for names, (rows, values) in self._groups.items():
            for name, cells in zip(names, zip(*values, strict=True), strict=True):
                if name not in relevance:
                    relevance[name] = self._is_relevant(name)
                if not relevance[name]:
                    continue
                if len(rows) == self.count:
                    columns[name] = list(cells)
                    continue
                column = columns.setdefault(name, [None] * self.count)
                for row, cell in zip(rows, cells, strict=True):
                    column[row] = cell
        return dict(columns)


def format_names(names: Iterable[str]) -> list[str]:
    """Sorted names for a message, not too many."""
    ordered = sorted(names)
    return ordered if len(ordered) <= _MOST_NAMES else [*ordered[:_MOST_NAMES], "…"]
