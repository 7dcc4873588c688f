"""Join logs of one run whose columns are in several files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simulate.logs._column_names import is_step
from simulate.logs._table import Table, format_names
from theory.arguments import quote


def join_tables(tables: Mapping[str, Table], names: Mapping[str, str]) -> Table:
    """Join tables by their steps, as those of a panel for each metric. Rows of one step become one row later.

    Parameters
    ----------
    tables : tables by the path of their file, at least two.
    names : names of columns by meaning; the one of "step" is used.

    Raises
    ------
    ValueError : a table has no steps, or they go back, so that rows of several tables cannot be matched.
    """
    step_name, steps, rows = "", [], 0
    columns: dict[str, list[Any]] = {}
    for path, table in tables.items():
        own_step = _find_step(path, table, names.get("step", ""))
        step = table.numbers(own_step)
        logged_steps = step[~np.isnan(step)]
        if (np.diff(logged_steps) < 0).any():
            raise ValueError(
                f"path must be of logs whose steps grow, to join them by step, but those of {path!r} go back"
            )
        step_name = step_name or own_step
        steps.append(step)
        for name, cells in table.columns.items():
            column = columns.setdefault(step_name if name == own_step else name, [])
            column += [None] * (rows - len(column)) + list(cells)
        rows += table.count
    order = np.argsort(np.concatenate(steps), kind="stable").tolist()
    for column in columns.values():
        column += [None] * (rows - len(column))
    first, *_ = tables.values()
    return Table(
        {name: [column[row] for row in order] for name, column in columns.items()},
        first.kind,
        f"{len(tables)} logs joined by step, {first.form}",
        remarks=[remark for table in tables.values() for remark in table.remarks],
        names_seen=[name for table in tables.values() for name in table.names_seen],
    )


def _find_step(path: str, table: Table, given_name: str) -> str:
    """Name of the column with the steps."""
    candidates: Sequence[str] = [name for name in table.columns if name == given_name] or [
        name for name in table.columns if is_step(name)
    ]
    if not candidates:
        raise ValueError(
            f"path must be of logs with steps, to join them, but {path!r} has {format_names(list(table.columns))}; "
            f"got step={quote(given_name)} as the name of the steps"
        )
    return candidates[0]
