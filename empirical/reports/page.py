"""Self-contained HTML pages with tables and figures. They load nothing and can be read without scripts."""

from __future__ import annotations

import html
import io
import json
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import theory
from empirical.reports.tables import DASH as DASH
from empirical.reports.tables import Cell as Cell
from empirical.reports.tables import Table
from empirical.reports.tables import number_cell as number_cell
from empirical.reports.tables import number_with_error as number_with_error
from simulate._files import atomic_write
from simulate.trajectories.contract import versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# On a dark page figures are inverted but keep their hues. On a narrow screen wide figures scroll.
_STYLE = """
:root { color-scheme: light dark; --text: #222; --pale: #5c5c5c; --line: #d8d8d8; --page: #fff; --good: #00664b; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e4e4; --pale: #a8a8a8; --line: #444; --page: #1a1a1a; --good: #5fd0a8; }
  svg { filter: invert(.9) hue-rotate(180deg) brightness(1.4); }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 75rem;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
p, li, figcaption { max-width: 50rem; }
pre { white-space: pre-wrap; font-size: .85rem; max-width: 60rem; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { font-weight: 600; } tbody th { font-weight: normal; } .words { text-align: left; }
tbody .words { min-width: 7.5rem; max-width: 26rem; } td:not(.words) { white-space: nowrap; }
thead th { min-width: 3.2rem; vertical-align: bottom; }
thead button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  text-align: inherit; }
th[aria-sort=ascending] button::after { content: " ▲"; } th[aria-sort=descending] button::after { content: " ▼"; }
td.holds { color: var(--good); } td.FAILS { color: #fff; background: #b3261e; font-weight: bold; }
.scroll { overflow-x: auto; }
figure { margin: 1.5rem 0; }
figure svg { display: block; width: 100%; min-width: 34rem; max-width: 60rem; height: auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption, footer { color: var(--pale); font-size: .9rem; } footer { margin-top: 3rem; font-size: .8rem; }
"""
_SORT = """
for (const head of document.querySelectorAll("table.sortable thead th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  const key = row => row.cells[head.cellIndex].dataset.value ?? row.cells[head.cellIndex].textContent;
  const compare = (a, b) => a - b || (isNaN(a) - isNaN(b)) || (isNaN(a) ? a.localeCompare(b) : 0);
  button.addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0];
    const known = row => key(row) !== "";
    body.append(...[...body.rows].sort((a, b) => (known(b) - known(a)) || sign * compare(key(a), key(b))));
  });
}
"""
_FONTS = re.compile(r'font-family: [^;"]*')
_LONG_NUMBER = re.compile(r"(\.\d\d)\d+")


def table(name: str, heads: Sequence[str], rows: Sequence[Sequence[Cell | str]]) -> str:
    """HTML of a table. With scripts, a click on a column head sorts the rows by value.

    Columns without numbers are aligned to the left.

    Parameters
    ----------
    name : accessible name, for screen readers.
    heads : column heads; empty for a table without head and sorting.
    rows : one cell for each column. The first cell of a row is its head.

    Examples
    --------
    >>> '<td data-value="2.0">2</td>' in table("numbers", ["a", "b"], [["one", number_cell(2.0)]])
    True
    """
    return Table(heads, rows, name).html()


def _scroll_region(name: str, content: str) -> str:
    """Wrap content that may be wider than the page; it scrolls sideways, also by keyboard."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{html.escape(name)}">{content}</div>'


def paragraphs(*texts: str) -> str:
    """HTML of paragraphs of plain text.

    Examples
    --------
    >>> paragraphs("a < b")
    '<p>a &lt; b</p>'
    """
    return "\n".join(f"<p>{html.escape(text)}</p>" for text in texts)


def lead(text: str) -> str:
    """HTML of the most important sentence, in bold.

    Examples
    --------
    >>> lead("a < b")
    '<p><strong>a &lt; b</strong></p>'
    """
    return f"<p><strong>{html.escape(text)}</strong></p>"


def bullets(texts: Sequence[str]) -> str:
    """HTML of a list of plain texts; empty without texts.

    Examples
    --------
    >>> bullets(["a"]), bullets([])
    ('<ul><li>a</li></ul>', '')
    """
    return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>" if texts else ""


def preformatted(text: str) -> str:
    """HTML of a text that keeps its line breaks.

    Examples
    --------
    >>> preformatted("a < b")
    '<pre>a &lt; b</pre>'
    """
    return f"<pre>{html.escape(text)}</pre>"


def section(title: str, *parts: str) -> str:
    r"""HTML of a heading followed by parts of a page.

    Examples
    --------
    >>> section("Data", "<p>none</p>")
    '<h2>Data</h2>\n<p>none</p>'
    """
    return "\n".join([f"<h2>{html.escape(title)}</h2>", *parts])


def format_setting(value: Any) -> str:
    """Setting as text: strings unchanged, other values as JSON.

    Examples
    --------
    >>> format_setting("mlp"), format_setting(True), format_setting([1, 2])
    ('mlp', 'true', '[1, 2]')
    """
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def format_count(number: int, noun: str) -> str:
    """Number and noun, with a plural "s" unless the number is 1.

    Examples
    --------
    >>> format_count(1, "step"), format_count(2, "step")
    ('1 step', '2 steps')
    """
    return f"{number} {noun}{'s' * (number != 1)}"


def new_figure(
    height: float, rows: int = 1, columns: int = 1, *, width: float = 9.5, **shared: Any
) -> tuple[Figure, Any]:
    """Make a figure with axes, without pyplot: no global state and no display.

    Parameters
    ----------
    height, width : size in inches; the default width fits the page.
    rows, columns, shared : arguments of `Figure.subplots`.

    Examples
    --------
    >>> figure, axes = new_figure(3.0, 2, sharex=True)
    >>> len(axes)
    2
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **shared)


def figure_section(title: str, figure: Figure, caption: str) -> str:
    """HTML of a heading, a figure as inline SVG, and its caption.

    Examples
    --------
    >>> "<svg" in figure_section("Nothing", new_figure(1.0)[0], "An empty figure.")
    True
    """
    picture = _scroll_region(title, svg(figure, title))
    return section(title, f"<figure>{picture}<figcaption>{html.escape(caption)}</figcaption></figure>")


def svg(figure: Figure, title: str) -> str:
    """Convert a figure to an SVG element whose ids are unique on the page.

    Parameters
    ----------
    figure : figure of matplotlib.
    title : title of the figure, unique on the page. The ids inside the element begin with it.

    Examples
    --------
    >>> svg(new_figure(1.0)[0], "Empty").startswith('<svg role="img" aria-label="Empty" viewBox=')
    True
    """
    from matplotlib import rc_context

    memory = io.StringIO()
    # text stays text; a fixed salt gives the same page for the same run
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(memory, format="svg", dpi=150, transparent=True, metadata=no_metadata)
    text = memory.getvalue()
    box = re.search(r'viewBox="[^"]*"', text)
    inner = text[text.index(">", text.index("<svg")) + 1 :]
    inner = re.sub(r"<style.*?</style>", "", inner, count=1, flags=re.DOTALL)
    # HTML needs no namespace for links; replace the font list by common fonts
    inner = inner.replace("xlink:href", "href")
    inner = re.sub(r'(?<= d=")[^"]*', lambda path: _LONG_NUMBER.sub(r"\1", path[0]), inner)
    inner = _FONTS.sub("font-family: 'DejaVu Sans', Verdana, sans-serif", inner)
    return f'<svg role="img" aria-label="{html.escape(title)}" {box[0] if box else ""}>{_prefix_ids(inner, title)}'


def _prefix_ids(inner: str, title: str) -> str:
    """Drop unused ids, and begin the others with the title."""
    prefix = re.sub(r"\W+", "-", title.lower())
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", inner))
    inner = re.sub(r' id="([^"]*)"', lambda match: f' id="{prefix}-{match[1]}"' if match[1] in used else "", inner)
    return re.sub(r"(url\(#|href=\"#)", rf"\g<1>{prefix}-", inner)


def write_page(path: Path, title: str, parts: Sequence[str], *, footer: str = "") -> None:
    """Write a page atomically: into a temporary file, which is then renamed.

    Parameters
    ----------
    path : file to write; its folder is made if missing.
    title : title of the page.
    parts : HTML of its parts.
    footer : plain text after the versions.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "page.html"
    >>> write_page(target, "Nothing", [])
    >>> target.read_text(encoding="utf-8")[:15]
    '<!DOCTYPE html>'
    """
    current = versions()
    made_by = (
        f"bnwd {theory.__version__}, Python {current['python_version']}, numpy {current['numpy_version']}, "
        f"{platform.platform()}."
    )
    content = "\n".join(parts)
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>
<main>
{content}
</main>
<footer>{html.escape(" ".join([made_by, footer]).strip())}</footer>
<script>{_SORT}</script>
</body></html>
"""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
