"""Tables in long form, with the name and the value of one metric in each row: turned into one column per metric."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from simulate.logs._cells import NUMBER
from simulate.logs._column_names import (
    METRIC_NAMES,
    METRIC_VALUES,
    PHASE_NAMES,
    RUN_NAMES,
    TRAINING_WORDS,
    is_epoch,
    is_loss,
    is_step,
    normalize,
)
from simulate.logs._table import Cells, Table, format_names

_MOST_METRICS = 200
# step, metric and value, as of build-nanogpt
_STEP_NAME_VALUE = re.compile(rf"\s*(\d+)\s+([A-Za-z_][\w/.\-]*)\s+({NUMBER}|nan|-?inf)\s*", re.IGNORECASE)


def read_long_lines(text: str) -> Table | None:
    """Read lines with a step, the name of a metric and its value; None if a line differs or no metric is a loss."""
    lines = [line for line in text.splitlines() if line.strip()]
    matches = []
    for number, line in enumerate(lines):
        match = _STEP_NAME_VALUE.fullmatch(line)
        if match is not None:
            matches.append(match)
        elif number < len(lines) - 1 or text.endswith("\n"):
            return None
    metrics = [match[2] for match in matches]
    columns = _spread(metrics, [match[3] for match in matches])
    losses = [name for name in columns if is_loss(name)]
    splits = [name for name in columns if normalize(name) in TRAINING_WORDS]
    if not losses and len(splits) != 1:
        return None
    table = Table(
        {"step": [match[1] for match in matches], **columns},
        "csv",
        "lines with step, metric and value",
        names_seen=["step", *columns],
    )
    if not losses:
        table.columns["train_loss"] = table.columns.pop(splits[0])
        table.original_names["train_loss"] = splits[0]
        table.remarks.append(f"The file does not name its quantity; the metric {splits[0]!r} is taken for the loss.")
    if len(matches) < len(lines):
        table.remarks.append("The last line is incomplete and was skipped.")
    return table


def name_of_metric(record: Mapping[str, object]) -> str:
    """Name of the metric whose value a dict in long form has; empty if it is not in long form.

    Examples
    --------
    >>> name_of_metric({"step": 1, "name": "train_loss", "value": 2.3})
    'train_loss'
    """
    by_name = {normalize(str(name)): value for name, value in record.items()}
    metric = next((by_name[name] for name in METRIC_NAMES if name in by_name), "")
    return metric if isinstance(metric, str) and any(name in by_name for name in METRIC_VALUES) else ""


def spread_metrics(table: Table, given: Collection[str]) -> None:
    """Turn a table with a column of names and one of values into a table with one column per metric, if one is a loss.

    Parameters
    ----------
    given : columns that the user has named; the table stays as it is if the values are among them.

    Raises
    ------
    ValueError : the rows are of several runs.
    """
    by_name = {normalize(name): name for name in table.columns}
    names = next((by_name[name] for name in METRIC_NAMES if name in by_name), None)
    values = next((by_name[name] for name in METRIC_VALUES if name in by_name), None)
    if names is None or values is None or values in given:
        return
    metrics = table.columns[names]
    if not all(metric is None or isinstance(metric, str) for metric in metrics) or len(set(metrics)) > _MOST_METRICS:
        return
    # other rows, as of the settings, have no metric
    columns = _spread([metric or "" for metric in metrics], table.columns[values])
    columns.pop("", None)
    if not any(map(is_loss, columns)):
        return
    for name, cells in table.columns.items():
        runs = {str(cell) for cell in cells} if normalize(name) in RUN_NAMES else ()
        if len(runs) > 1:
            raise ValueError(
                f"path must be the log of one run, got {len(runs)} runs in column {name!r}: "
                f"{', '.join(format_names(runs))}. Keep the rows of one run"
            )
    kept = {
        name: cells
        for name, cells in table.columns.items()
        if is_step(name) or is_epoch(name) or normalize(name) in PHASE_NAMES
    }
    # the column of names may have the name of a phase
    kept.pop(names, None)
    table.columns = {**{name: cells for name, cells in kept.items() if name not in columns}, **columns}
    table.names_seen = [*(name for name in table.names_seen if name != values), *columns]
    is_comet = (normalize(names), normalize(values)) == ("metric_name", "metric_value")
    table.kind, table.form = "named", "Comet metrics" if is_comet else "table of metrics in long form"
    # a metric has no value in the rows of others
    table.is_nan_unclear = False


def _spread(metrics: Sequence[str], values: Cells) -> dict[str, Cells]:
    """Column of each metric, with None in the rows of others."""
    columns: dict[str, list[object]] = {}
    for row, (metric, value) in enumerate(zip(metrics, values, strict=True)):
        columns.setdefault(metric, [None] * len(metrics))[row] = value
    return dict(columns)
