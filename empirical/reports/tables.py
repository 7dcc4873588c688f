"""Tables of results: one description, written as plain text, as Markdown or as HTML."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DASH = "–"
# the page that holds the table brings style and script; without scripts the heads are plain text
_HTML = """\
<div class="scroll" role="region" tabindex="0" aria-label="{{ name }}">\
<table{{ {"class": "sortable" if columns else none} | xmlattr }}>
{%- if columns %}<thead><tr>
{%- for column in columns %}<th{{ column.attributes | xmlattr }}>{{ column.text }}</th>{% endfor -%}
</tr></thead>{% endif %}
<tbody>
{% for row in rows -%}
<tr>
{%- for cell in row %}{% set tag = "th" if loop.first else "td" -%}
<{{ tag }}{{ cell.attributes | xmlattr }}>{{ cell.text }}</{{ tag }}>
{%- endfor -%}
</tr>
{% endfor -%}
</tbody></table></div>"""


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes
    ----------
    text : text of the cell.
    value : number that sorts the column; None sorts by text. NaN comes last.
    kind : CSS class.
    """

    text: str
    value: float | None = None
    kind: str = ""


def number_cell(value: float, form: str = ".4g") -> Cell:
    """Cell with a number; a dash for NaN.

    Examples
    --------
    >>> number_cell(0.123456).text, number_cell(math.nan).text
    ('0.1235', '–')
    """
    return Cell(DASH if math.isnan(value) else format(value, form), float(value))


def number_with_error(value: float, error: float) -> Cell:
    """Cell with a number and its standard error, if known.

    Examples
    --------
    >>> number_with_error(71.25, 2.6).text, number_with_error(71.25, math.nan).text
    ('71.25 ± 2.6', '71.25')
    """
    has_error = not (math.isnan(value) or math.isnan(error))
    return Cell(number_cell(value).text + (f" ± {error:.2g}" if has_error else ""), float(value))


@dataclass(frozen=True)
class Table:
    r"""A table. Columns with a `Cell` that has a value are numbers, aligned to the right; other columns are words.

    Attributes
    ----------
    columns : column heads; empty for a table without heads, which cannot be sorted.
    rows : one cell for each column.
    name : accessible name of the HTML table, for screen readers.

    Examples
    --------
    >>> table = Table(["norm", "value"], [["E|ρ|", number_cell(2.5)], ["ρ₀", number_cell(12.0)]])
    >>> print(table.text())
    norm  value
    E|ρ|    2.5
    ρ₀       12
    >>> print(table.markdown())
    | norm   | value |
    |--------|-------|
    | E\|ρ\| |   2.5 |
    | ρ₀     |    12 |
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    name: str = "table"

    def text(self) -> str:
        """Plain text for terminals. Lines are never wrapped."""
        return self._render(markdown=False)

    def markdown(self) -> str:
        """Table in Markdown."""
        return self._render(markdown=True)

    def html(self) -> str:
        """Accessible HTML. On the pages of `empirical.reports.page` a click on a column head sorts the rows by value.

        The first cell of a row is its head.
        """
        import jinja2

        rows, are_words = self._cells()
        column_classes = ["words" if words else "" for words in are_words]
        heads = [
            {"text": text, "attributes": {"scope": "col", "class": kind or None}}
            for text, kind in zip(self.columns, column_classes, strict=False)
        ]
        body = [
            [
                {"text": cell.text, "attributes": _attributes(cell, place == 0, kind)}
                for place, (cell, kind) in enumerate(zip(row, column_classes, strict=True))
            ]
            for row in rows
        ]
        return str(jinja2.Template(_HTML, autoescape=True).render(name=self.name, columns=heads, rows=body))

    def _cells(self) -> tuple[list[list[Cell]], list[bool]]:
        """Rows of cells, and whether each column holds words."""
        rows = [[Cell(cell) if isinstance(cell, str) else cell for cell in row] for row in self.rows]
        count = len(self.columns) or (len(rows[0]) if rows else 0)
        if any(len(row) != count for row in rows):
            raise ValueError(f"rows must have {count} cells, got {sorted({len(row) for row in rows})}")
        return rows, [all(row[place].value is None for row in rows) for place in range(count)]

    def _render(self, markdown: bool) -> str:
        from rich import box
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        rows, are_words = self._cells()
        style: dict[str, Any] = {"box": box.MARKDOWN} if markdown else {"box": None, "pad_edge": False}
        # Markdown has no table without a head
        grid = RichTable(show_header=bool(self.columns) or markdown, **style)

        def plain(text: str) -> Text:
            # an object of Text, because rich would read "[…]" in a string as markup
            return Text(text.replace("\n", " ").replace("|", r"\|") if markdown else text)

        for place, words in enumerate(are_words):
            head = plain(self.columns[place] if self.columns else "")
            grid.add_column(head, justify="left" if words else "right", no_wrap=True)
        for row in rows:
            grid.add_row(*(plain(cell.text) for cell in row))
        # as wide as any table, whatever the terminal or the notebook is
        console = Console(
            file=io.StringIO(), width=10**6, height=100, color_system=None, force_jupyter=False, force_terminal=False
        )
        with console.capture() as output:
            console.print(grid)
        # the box of Markdown has empty lines at its ends
        return "\n".join(line.rstrip() for line in output.get().splitlines()).strip("\n")


def _attributes(cell: Cell, is_head: bool, column_class: str) -> dict[str, str | None]:
    """Attributes of the HTML of a cell. None leaves out an attribute."""
    return {
        "scope": "row" if is_head else None,
        "class": " ".join(filter(None, [column_class, cell.kind])) or None,
        "data-value": None if cell.value is None else _sort_key(cell.value),
    }


def _sort_key(value: float) -> str:
    """Number in the notation of JavaScript; empty for NaN."""
    return "" if math.isnan(value) else repr(float(value)).replace("inf", "Infinity")
