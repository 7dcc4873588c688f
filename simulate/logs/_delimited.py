"""Tables in text: CSV with any delimiter, columns separated by blanks, numbers without a line of names."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulate.logs._cells import has_decimal_commas, is_number
from simulate.logs._column_names import has_meaning
from simulate.logs._table import Cells, Table
from theory.arguments import FloatArray, quote

_DELIMITERS = (",", ";", "\t", "|")
_BLANKS = " "
NUMBERS_ALONE = "numbers without names"
_COMMENT = re.compile(r"\s*(?:#|//|%(?!\s*\d))")
_RULE = re.compile(r"[\s+\-=|:─━═┏┓┗┛┌┐└┘┳┻┬┴╇╈┼╋├┤┡┩┠┨]+")
_BARS = str.maketrans("│┃║", "|||")  # of tables that are drawn
_LINES_BEFORE = 60  # at most, before the line of names
_LINES_AFTER = 12  # compared with the line of names
_SHARE_SKIPPED = 0.05  # of the lines, at most
_LEAST_MILLISECONDS = 1e11
_LONG = 1000  # lines
_INDEX_NAME = "Unnamed: 0"


@dataclass(frozen=True)
class _Header:
    """Names of a table, its delimiter and its first row; numbers may have no names."""

    first: int
    delimiter: str
    names: tuple[str, ...]


def read_delimited(text: str) -> Table | None:
    """Read a table; None if the text has none.

    Raises
    ------
    ValueError : names are repeated, or lines have different numbers of cells.
    """
    lines = (text.translate(_BARS) if "│" in text or "║" in text else text).splitlines()
    header = _find_header(lines)
    if header is None:
        return None
    names = list(header.names)
    form = "table separated by blanks" if header.delimiter == _BLANKS and len(names) > 1 else "CSV file"
    if names and (regular := _read_regular_rows(lines, header)) is not None:
        return Table(regular, "csv", form, names_seen=names)
    rows, numbers = _read_rows(lines, header)
    if not rows:
        return None
    names, rows, has_index = _match_names(names, rows)
    if repeated := next((name for name in names if name and names.count(name) > 1), None):
        raise ValueError(f"path must have different column names, got {quote(repeated)} more than once")
    rows, remarks = _drop_ragged_rows(rows, numbers, len(names), is_whole=text.endswith(("\n", "\r")))
    columns: dict[str, Cells] = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)) if rows else {}
    columns.pop("", None)
    if header.delimiter != "," and has_decimal_commas([list(cells) for cells in columns.values()]):
        columns = {name: [_with_point(cell) for cell in cells] for name, cells in columns.items()}
        remarks.append("Numbers have a decimal comma.")
    table = Table(columns, "csv", form, remarks, names_seen=[name for name in names if name])
    if not header.names:
        table.form = NUMBERS_ALONE
        _name_numbers(table)
    # pandas prints NaN for values that were not logged
    table.is_nan_unclear = has_index and header.delimiter == _BLANKS
    if table.is_nan_unclear:
        table.form = "data frame that was printed"
        table.columns = {
            name: ["" if cell == "NaN" else cell for cell in cells] for name, cells in table.columns.items()
        }
        table.is_nan_unclear = False
    return table


def _read_regular_rows(lines: Sequence[str], header: _Header) -> dict[str, Cells] | None:
    """Columns of a long table without quotes whose lines all have the same number of cells, with pandas; or None."""
    rows = lines[header.first :]
    commas = len(header.names) - 1
    if (
        len(rows) < _LONG
        or header.delimiter in (_BLANKS, "|")
        or len(set(header.names)) <= commas
        or "" in header.names
    ):
        return None
    delimiter = header.delimiter
    if any(line.count(delimiter) != commas or '"' in line or "#" in line for line in rows):
        return None
    import pandas

    body = io.StringIO("\n".join(rows))
    # texts, because a cell may be empty, and nan and inf are lost values
    options: dict[str, Any] = {"na_filter": False, "dtype": object, "index_col": False, "skipinitialspace": True}
    frame = pandas.read_csv(body, sep=delimiter, header=None, names=list(header.names), **options)
    return {name: frame[name].tolist() for name in header.names}


def _with_point(cell: str) -> str:
    return cell.replace(".", "").replace(",", ".") if "," in cell else cell


def _split(line: str, delimiter: str) -> list[str]:
    if delimiter == _BLANKS:
        return line.split()
    if delimiter == "|":
        return [cell.strip() for cell in line.strip().strip("|").split("|")]
    return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])


def _is_skipped(line: str) -> bool:
    return not line.strip() or _COMMENT.match(line) is not None or _RULE.fullmatch(line) is not None


def _find_header(lines: Sequence[str]) -> _Header | None:
    """Find the line of names: the first one that is followed by rows of equally many numbers.

    A line with a usual name counts before others, which may be words before the table.
    """
    return _find_line_of_names(lines, has_meaning) or _find_line_of_names(lines, bool)


def _find_line_of_names(lines: Sequence[str], is_usual: Callable[[str], bool]) -> _Header | None:
    at = [number for number, line in enumerate(lines[: 4 * _LINES_BEFORE]) if not _is_skipped(line)]
    for order, number in enumerate(at[:_LINES_BEFORE]):
        following = [lines[row] for row in at[order + 1 : order + 1 + _LINES_AFTER]]
        for delimiter in (*_DELIMITERS, _BLANKS):
            cells = [cell.strip() for cell in _split(lines[number], delimiter)]
            if delimiter != _BLANKS and len(cells) < 2:
                continue
            if _are_numbers(cells):
                if _is_table_of_numbers(cells, following, delimiter):
                    return _Header(number, delimiter, _names_in_comment(lines, number, len(cells), delimiter))
                continue
            if _are_names(cells) and any(map(is_usual, cells)) and _fits(cells, following, delimiter):
                return _Header(number + 1, delimiter, tuple(cells))
    return None


def _are_numbers(cells: Sequence[str]) -> bool:
    return all(map(is_number, cells)) and any(cell.strip() for cell in cells)


def _is_table_of_numbers(cells: Sequence[str], following: Sequence[str], delimiter: str) -> bool:
    """Whether this is the first row of a table without names: all next lines are such rows, too."""
    rows = [_split(line, delimiter) for line in following[:-1] or following]
    return all(len(row) == len(cells) and _are_numbers(row) for row in rows)


def _are_names(cells: Sequence[str]) -> bool:
    """Whether cells may be names: texts without numbers or values after them."""
    if any(is_number(cell) and cell for cell in cells) or not any(cells):
        return False
    # a line of text such as "step: 1, loss: 2" has no names only
    return not any(re.search(r"[:=]\s*[+-]?[.\d]", cell) for cell in cells)


def _fits(names: Sequence[str], following: Sequence[str], delimiter: str) -> bool:
    """Whether the next lines are rows of these names: equally many cells, and numbers in most rows."""
    if not following:
        return False
    if len(names) == 1 and not has_meaning(names[0]):
        return False
    rows = [[cell.strip() for cell in _split(line, delimiter)] for line in following]
    rows = [row for row in rows if row != list(names)]
    fitting = [row for row in rows if len(row) in (len(names), len(names) + 1)]
    if 2 * len(fitting) < len(rows) or not fitting:
        return False
    width = len(names)
    with_numbers = [row for row in fitting if 2 * sum(map(is_number, row[:width])) >= min(width, 3) - 1]
    has_number = [row for row in fitting if any(is_number(cell) and cell for cell in row)]
    is_table = 2 * len(with_numbers) >= len(fitting) and 2 * len(has_number) >= len(fitting)
    # in words of a sentence, separated by blanks, at least one must be the name of a column
    return is_table and (delimiter != _BLANKS or any(map(has_meaning, names)))


def _names_in_comment(lines: Sequence[str], number: int, width: int, delimiter: str) -> tuple[str, ...]:
    """Names in the comment before a table of numbers, as `numpy.savetxt` writes them."""
    for line in reversed(lines[:number]):
        if not line.strip():
            continue
        if _COMMENT.match(line) is None:
            return ()
        cells = [cell.strip() for cell in _split(line.strip().lstrip("#/% "), delimiter)]
        if len(cells) != width:
            cells = line.strip().lstrip("#/% ").replace(",", " ").split()
        return tuple(cells) if len(cells) == width and _are_names(cells) else ()
    return ()


def _read_rows(lines: Sequence[str], header: _Header) -> tuple[list[list[str]], list[int]]:
    """Rows after the names, and the numbers of their lines."""
    rows: list[list[str]] = []
    numbers: list[int] = []
    names = list(header.names)
    first_name = names[0] if names else None
    try:
        for number, row in _split_lines(lines, header.first, header.delimiter):
            # a restarted training may write the names again
            is_header = row and row[0].strip() == first_name and [cell.strip() for cell in row] == names
            if row and any(row) and not is_header:
                rows.append(row)
                numbers.append(number)
    except csv.Error as error:
        raise ValueError(f"path must be a table with cells in quotes or without, got {error}") from None
    return rows, numbers


def _split_lines(lines: Sequence[str], first: int, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    if delimiter in (_BLANKS, "|"):
        for number in range(first, len(lines)):
            if not _is_skipped(lines[number]):
                yield number + 1, _split(lines[number], delimiter)
        return
    kept = (line for line in lines[first:] if not line.startswith("#"))
    reader = csv.reader(kept, delimiter=delimiter, skipinitialspace=True)
    for row in reader:
        yield first + reader.line_num, row


def _match_names(names: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]], bool]:
    """Add the name of an index that has none, and names of columns without any; whether there was an index."""
    widths = [len(row) for row in rows[:1000]]
    usual = max(set(widths), key=widths.count)
    if not names:
        return [f"column {number + 1}" for number in range(usual)], rows, False
    if usual == len(names) + 1:
        if all(not row[-1].strip() for row in rows[:100] if len(row) == usual):
            return [*names, ""], rows, False
        return ["", *names], rows, True
    if names[0] in ("", _INDEX_NAME):
        return ["", *names[1:]], rows, False
    return names, rows, False


def _drop_ragged_rows(
    rows: list[list[str]], numbers: list[int], width: int, *, is_whole: bool
) -> tuple[list[list[str]], list[str]]:
    """Leave out the last row if it is still being written, and a few rows with another number of cells."""
    remarks = []
    if rows and len(rows[-1]) < width:
        rows, numbers = rows[:-1], numbers[:-1]
        if not is_whole:
            remarks.append("The last line is incomplete and was skipped.")
    ragged = [at for at, row in enumerate(rows) if len(row) != width]
    for at in list(ragged):
        if len(rows[at]) > width and not any(cell.strip() for cell in rows[at][width:]):
            rows[at] = rows[at][:width]
            ragged.remove(at)
    if len(ragged) > _SHARE_SKIPPED * len(rows):
        raise ValueError(
            f"path must have {width} cells in each line, got {len(rows[ragged[0]])} in line {numbers[ragged[0]]}"
        )
    if ragged:
        left_out = set(ragged)
        rows = [row for at, row in enumerate(rows) if at not in left_out]
        lines = "1 line was" if len(ragged) == 1 else f"{len(ragged)} lines were"
        remarks.append(f"{lines} skipped, with another number of cells (first line {numbers[ragged[0]]}).")
    return rows, remarks


def _is_metric_file(time: FloatArray, value: FloatArray, step: FloatArray) -> bool:
    """Whether three columns are milliseconds since 1970, a value and a step."""
    is_step = bool((step == step.round()).all() and (step[1:] >= step[:-1]).all())
    return bool((time > _LEAST_MILLISECONDS).all()) and is_step and not np.isnan(value).all()


def _name_numbers(table: Table) -> None:
    """Name the columns of a table without names: one is the loss; of two the first may be the step."""
    cells = list(table.columns.values())
    first = table.numbers(next(iter(table.columns)))
    counts = len(cells) == 2 and bool((first == first.round()).all() and (first[1:] > first[:-1]).all())
    if len(cells) == 1:
        table.columns = {"loss": cells[0]}
        table.remarks.append("The file has one column without a name; it is taken for the loss.")
    elif len(cells) == 3 and _is_metric_file(*(table.numbers(name) for name in table.columns)):
        table.columns = {"step": cells[2], "loss": cells[1]}
        table.form = "metric file of MLflow"
        table.remarks.append("The file has times, values and steps without names; the values are taken for the loss.")
    elif counts:
        table.columns = {"step": cells[0], "loss": cells[1]}
        table.remarks.append("The file has two columns without names; they are taken for step and loss.")
