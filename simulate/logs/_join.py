"""Join logs of one run whose columns are in several files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from simulate.logs._column_names import is_epoch, is_step, may_have_meaning, normalize
from simulate.logs._table import Table, format_names
from theory.arguments import quote

_NAMELESS = "value"  # as in the CSV files of TensorBoard, which do not say what it is


def join_tables(tables: Mapping[str, Table], names: Mapping[str, str]) -> Table:
    """Join tables by their steps, as those of a panel for each metric. Rows of one step become one row later.

    Parameters
    ----------
    tables : tables by the path of their file, at least two.
    names : names of columns by meaning; the one of "step" is used.

    Raises
    ------
    ValueError : a table has no steps, or they go back, so that rows of several tables cannot be matched; or a quantity
        is in several tables.
    """
    step_names = _find_steps(tables, names.get("step", ""))
    step_name = names.get("step", "") or next(iter(step_names.values()))
    columns: dict[str, list[Any]] = {step_name: []}
    sources: dict[str, str] = {}
    steps, rows = [], 0
    for path, table in tables.items():
        step = table.numbers(step_names[path])
        logged_steps = step[~np.isnan(step)]
        if (np.diff(logged_steps) < 0).any():
            raise ValueError(
                f"path must be of logs whose steps grow, to join them by step, but those of {quote(path)} go back"
            )
        steps.append(step)
        columns[step_name] += list(table.columns[step_names[path]])
        for name, cells in table.columns.items():
            if is_step(name) or name in (step_name, step_names[path]):
                continue
            if normalize(name) == _NAMELESS:
                raise ValueError(f"path must be of logs that name their quantities, to join them; not so {quote(path)}")
            if name in sources:
                if may_have_meaning(name) and not (is_epoch(name) or "time" in normalize(name)):
                    raise ValueError(
                        f"path must be of logs with different columns, to join them, but {quote(name)} is in "
                        f"{quote(sources[name])} and {quote(path)}"
                    )
                # epochs, times of day, and what nobody reads
                continue
            sources[name] = path
            columns[name] = [None] * rows + list(cells)
        rows += table.count
        for column in columns.values():
            column += [None] * (rows - len(column))
    order = np.argsort(np.concatenate(steps), kind="stable").tolist()
    first, *_ = tables.values()
    return Table(
        {name: [column[row] for row in order] for name, column in columns.items()},
        first.kind,
        f"{len(tables)} logs joined by step, {first.form}",
        remarks=[remark for table in tables.values() for remark in table.remarks],
        names_seen=[name for table in tables.values() for name in table.names_seen],
    )


def _find_steps(tables: Mapping[str, Table], given_name: str) -> dict[str, str]:
    """Name of the column with the steps of each table: one that all tables have, if there is one."""
    candidates = {
        path: [name for name in table.columns if name == given_name]
        or [name for name in table.columns if is_step(name)]
        for path, table in tables.items()
    }
    for path, table in tables.items():
        if not candidates[path]:
            raise ValueError(
                f"path must be of logs with steps, to join them, but {quote(path)} has "
                f"{format_names(list(table.columns))}; name the steps by `names`"
            )
    first, *others = candidates.values()
    common = [name for name in first if all(name in other for other in others)]
    return {path: common[0] if common else names[0] for path, names in candidates.items()}
