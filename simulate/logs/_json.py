"""Logs in JSON: whole documents, lines, and dicts of Python that a training printed."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simulate.logs._column_names import is_epoch, is_loss, is_step
from simulate.logs._content import foreign_file
from simulate.logs._long_form import name_of_metric
from simulate.logs._table import Cells, RowCollector, Table
from simulate.logs._text import position_in_text

_HF_STATE = "Hugging Face trainer state"
# keys under which documents keep their rows or columns
_INNER_KEYS = ("log_history", "history", "logs", "log", "metrics", "records", "data", "results", "train", "training")
_FLAT_OBJECT = re.compile(r"\{[^{}]*\}")
# numbers in the name of their type, as in np.float64(0.5) or tensor(0.5, device='cuda:0')
_WRAPPED = re.compile(r"(?:(?:np|numpy|torch|jnp|jax|tf)\.)?[A-Za-z_]\w*\(\s*([^()]*?)\s*(?:,[^()]*)?\)")
_BARE_WORD = re.compile(r"(?<![\w'\".])([+-]?)(nan|inf)(?![\w'\"])")
_MOST_LEVELS = 4
_PLAIN_TYPES = (int, float, str, bool, type(None))
_DECODER = json.JSONDecoder()
_MOST_BROKEN = 0.5  # share of lines with braces that are no dicts, at most


def read_json(path: Path, text: str, is_relevant: Callable[[str], bool]) -> Table | None:
    """Read a JSON document, JSON lines or lines with dicts of Python; None if the text has none.

    Raises
    ------
    ValueError : the document is JSON but has no log.
    """
    if "{" not in text and not text.lstrip().startswith("["):
        return None
    start = text.lstrip()[:1]
    if start in ("{", "["):
        try:
            document = json.loads(text)
        except json.JSONDecodeError:
            pass
        except RecursionError:
            raise foreign_file(path, "JSON with too many levels", "Write the log as CSV") from None
        else:
            return _read_document(path, document, is_relevant)
    table = _read_lines(text, is_relevant)
    if table is None and start in ("{", "["):
        table = _read_broken_document(text, is_relevant)
    return table


def _read_document(path: Path, document: Any, is_relevant: Callable[[str], bool]) -> Table:
    if isinstance(document, dict) and {"cells", "nbformat"} <= set(document):
        raise foreign_file(path, "a Jupyter notebook", "Save the printed log as text, or the history as CSV")
    table = _table_of_losses(document) or _find_table(document, is_relevant, _MOST_LEVELS)
    if table is None:
        keys = list(document)[:10] if isinstance(document, dict) else type(document).__name__
        advice = "A log is a list of dicts, a dict of lists, or one dict in each line"
        raise foreign_file(path, f"JSON without rows of a log ({keys})", advice)
    return table


def _table_of_losses(document: Any) -> Table | None:
    """Table of a list of numbers, which are the losses; None if there are only whole numbers or others."""
    if not isinstance(document, list) or not all(row is None or _is_number(row) for row in document):
        return None
    if not any(isinstance(row, float) for row in document):
        return None
    table = Table({"loss": document}, "json", "list of numbers in JSON", names_seen=["loss"])
    table.remarks.append("The file has one list without a name; it is taken for the loss.")
    return table


def _find_table(document: Any, is_relevant: Callable[[str], bool], levels: int) -> Table | None:
    if isinstance(document, dict):
        return _table_of_dict(document, is_relevant, levels)
    if not isinstance(document, list) or not document:
        return None
    if all(isinstance(row, dict) for row in document):
        return records_to_table(document, is_relevant, form="list of dicts in JSON")
    if all(isinstance(row, list) and len(row) == 3 for row in document) and _is_number(document[0][0]):
        columns: dict[str, Cells] = dict(
            zip(("Wall time", "Step", "Value"), map(list, zip(*document, strict=True)), strict=True)
        )
        return Table(columns, "csv", "TensorBoard download", names_seen=list(columns))
    return None


def _table_of_dict(document: dict[str, Any], is_relevant: Callable[[str], bool], levels: int) -> Table | None:
    if isinstance(document.get("log_history"), list):
        return records_to_table(document["log_history"], is_relevant, form=_HF_STATE, is_named=True)
    if isinstance(names := document.get("columns"), list) and isinstance(rows := document.get("data"), list):
        cells: list[list[Any]] = [list(column) for column in zip(*rows, strict=True)]
        return Table(dict(zip(map(str, names), cells, strict=False)), "json", "data frame in JSON", names_seen=names)
    columns = {str(name): values for name, values in document.items() if _is_column(values)}
    is_long = bool(columns) and max(map(len, columns.values())) > 1
    if is_long and any(map(is_loss, columns)):
        return _table_of_columns(columns)
    if document and all(isinstance(row, dict) for row in document.values()):
        first = next(iter(document.values()))
        if all(re.fullmatch(r"-?\d+", str(key)) for key in first) and first:
            # columns of a data frame, by name and row
            return _table_of_columns({str(name): list(column.values()) for name, column in document.items()})
        if all(re.fullmatch(r"-?\d+", str(key)) for key in document):
            return records_to_table(list(document.values()), is_relevant, form="dict of rows in JSON")
    if levels:
        keys = [*(key for key in _INNER_KEYS if key in document), *(key for key in document if key not in _INNER_KEYS)]
        for key in keys:
            if isinstance(document[key], (dict, list)):
                table = _find_table(document[key], is_relevant, levels - 1)
                if table is not None and any(map(is_loss, table.columns)):
                    return table
    return _table_of_columns(columns) if is_long and any(map(is_relevant, columns)) else None


def _table_of_columns(columns: Mapping[str, list[Any]]) -> Table:
    """Table of columns of the most frequent length."""
    lengths = [len(values) for values in columns.values()]
    usual = max(set(lengths), key=lambda length: (lengths.count(length), length))
    losses = [len(values) for name, values in columns.items() if is_loss(name)]
    count = losses[0] if losses else usual
    cells: dict[str, Cells] = {name: values for name, values in columns.items() if len(values) == count}
    are_epochs = any(f"val_{name}" in columns for name in columns) and not any(map(is_step, columns))
    form = "Keras history" if are_epochs else "dict of lists in JSON"
    table = Table(cells, "json", form, names_seen=list(columns), rows_are_epochs=are_epochs)
    if len(cells) < len(columns):
        others = [name for name in columns if name not in cells]
        table.remarks.append(f"Columns of another length than the loss are left out: {', '.join(map(repr, others))}.")
    return table


def _is_column(values: Any) -> bool:
    return (
        isinstance(values, list) and bool(values) and all(v is None or isinstance(v, (int, float, str)) for v in values)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def records_to_table(
    records: Sequence[Any],
    is_relevant: Callable[[str], bool],
    *,
    form: str,
    kind: str = "json",
    is_named: bool = False,
) -> Table:
    """Table of a list of dicts.

    Parameters
    ----------
    form : what a description calls it.
    is_named : whether this is the name of the logger, which its columns then do not decide.
    """
    collector = RowCollector(is_relevant)
    for record in records:
        if isinstance(record, Mapping):
            collector.add(*_names_and_values(record))
    return Table(collector.finish(), "named" if is_named else kind, form, names_seen=collector.names)


def _names_and_values(record: Mapping[Any, Any]) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Names and values of a dict, also of those in it."""
    values = tuple(record.values())
    if all(type(value) in _PLAIN_TYPES for value in values) and all(type(name) is str for name in record):
        return tuple(record), values
    flat = dict(_flatten(record))
    return tuple(flat), tuple(flat.values())


def _flatten(record: Mapping[Any, Any], prefix: str = "", levels: int = 3) -> Iterator[tuple[str, Any]]:
    """Names and values of a dict; names of inner dicts are joined by slashes."""
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            if levels:
                yield from _flatten(value, f"{name}/", levels - 1)
        elif isinstance(value, list) and is_step(name) and len(value) >= 2:
            # epoch and iteration, as of DLLogger
            yield from zip((f"{prefix}epoch", f"{prefix}iteration"), value, strict=False)
        else:
            yield name, value


def _read_lines(text: str, is_relevant: Callable[[str], bool]) -> Table | None:
    """Read dicts in lines, which may begin with the words of a logger."""
    collector = RowCollector(is_relevant)
    dicts = broken = rows_with_loss = 0
    is_last_broken = False
    is_python = False
    for line in text.splitlines():
        at = line.find("{")
        while at >= 0:
            record, end, is_json = _parse_dict(line, at)
            is_last_broken = record is None
            if record is None:
                broken += 1
                break
            if record:
                dicts += 1
                is_python = is_python or not is_json
                names, values = _names_and_values(record)
                if at and not any(is_step(name) or is_epoch(name) for name in names):
                    for name, value in position_in_text(line[:at]):
                        names, values = (*names, name), (*values, value)
                rows_with_loss += any(map(is_loss, names)) or is_loss(name_of_metric(record))
                collector.add(names, values)
            # several dicts may follow each other in a line
            at = line.find("{", end)
    skipped = broken - is_last_broken
    if not rows_with_loss or skipped > _MOST_BROKEN * (dicts + broken):
        return None
    form = "dicts of Python in lines" if is_python else "JSON lines"
    table = Table(collector.finish(), "json", form, names_seen=collector.names)
    if is_last_broken:
        table.remarks.append("The last line is incomplete and was skipped.")
    if skipped:
        table.remarks.append(f"{skipped} lines with braces are no dicts and were skipped.")
    return table


def _parse_dict(text: str, start: int = 0) -> tuple[dict[str, Any] | None, int, bool]:
    """Dict that starts at a place in a text, where it ends, and whether it is JSON."""
    try:
        record, end = _DECODER.raw_decode(text, start)
        return (record if isinstance(record, dict) else None), end, True
    except (json.JSONDecodeError, RecursionError):
        pass
    end = text.rfind("}") + 1
    if not end:
        return None, len(text), False
    body = text[start:end]
    if "(" in body:
        body = _WRAPPED.sub(r"\1", body)
    body = _BARE_WORD.sub(r"'\1\2'", body)
    try:
        record = ast.literal_eval(body)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None, len(text), False
    return (record if isinstance(record, dict) else None), end, False


def _read_broken_document(text: str, is_relevant: Callable[[str], bool]) -> Table | None:
    """Read the complete dicts of a document that ends in the middle."""
    table = records_to_table(list(_flat_objects(text)), is_relevant, form="list of dicts in JSON")
    if not any(map(is_loss, table.columns)):
        return None
    if '"log_history"' in text:
        table.kind, table.form = "named", _HF_STATE
    table.remarks.append("The file ends in the middle; its complete rows were read.")
    return table


def _flat_objects(text: str) -> Iterable[dict[str, Any]]:
    for match in _FLAT_OBJECT.finditer(text):
        record, _, _ = _parse_dict(match.group())
        if record:
            yield record
