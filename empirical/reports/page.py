"""Self-contained HTML pages with tables and figures. They load nothing and can be read without scripts."""

from __future__ import annotations

import io
import json
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

import theory
from empirical.reports.tables import Table
from simulate._files import atomic_write
from simulate.trajectories.contract import versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FONTS = re.compile(r'font-family: [^;"]*')
_LONG_NUMBER = re.compile(r"(\.\d\d)\d+")


@dataclass(frozen=True)
class SvgFigure:
    """A figure as an SVG element, and its caption."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes
    ----------
    title : heading, unique on the page; "" for none.
    parts : a text is a paragraph, a list is a list of plain texts, and `markupsafe.Markup` is HTML.
    """

    title: str
    parts: Sequence[str | list[str] | Table | SvgFigure]


def figure_section(title: str, figure: Figure, caption: str) -> Section:
    """Section with one figure. The title is also its accessible name, and begins the ids inside the SVG element."""
    return Section(title, [SvgFigure(svg(figure, title), caption)])


def format_setting(value: Any) -> str:
    """Setting as text: strings unchanged, other values as JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def format_count(number: int, noun: str) -> str:
    """Number and noun, with a plural "s" unless the number is 1."""
    return f"{number} {noun}{'s' * (number != 1)}"


def new_figure(
    height: float, rows: int = 1, columns: int = 1, *, width: float = 9.5, **shared: Any
) -> tuple[Figure, Any]:
    """Make a figure with axes, without pyplot: no global state and no display. Sizes are in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **shared)


def svg(figure: Figure, title: str) -> str:
    """Convert a figure to an SVG element. Its ids begin with the title, so that they are unique on the page."""
    from markupsafe import escape
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
    return f'<svg role="img" aria-label="{escape(title)}" {box[0] if box else ""}>{_prefix_ids(inner, title)}'


def _prefix_ids(inner: str, title: str) -> str:
    """Drop unused ids, and begin the others with the title."""
    prefix = re.sub(r"\W+", "-", title.lower())
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", inner))
    inner = re.sub(r' id="([^"]*)"', lambda match: f' id="{prefix}-{match[1]}"' if match[1] in used else "", inner)
    return re.sub(r"(url\(#|href=\"#)", rf"\g<1>{prefix}-", inner)


def write_html_page(path: Path, title: str, sections: Sequence[Section], *, footer: str = "") -> None:
    """Write a page atomically; its folder is made if missing. The footer follows the versions of the packages.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "page.html"
    >>> write_html_page(target, "a < b", [Section("Data", ["none", ["one", "two"]])])
    >>> [line for line in target.read_text(encoding="utf-8").splitlines() if line.startswith(("<h", "<p>", "<ul>"))][1:]
    ['<h1>a &lt; b</h1>', '<h2>Data</h2>', '<p>none</p>', '<ul><li>one</li><li>two</li></ul>']
    """
    current = versions()
    made_by = (
        f"bnwd {theory.__version__}, Python {current['python_version']}, numpy {current['numpy_version']}, "
        f"{platform.platform()}."
    )
    source = (resources.files("empirical.reports") / "page.html").read_text(encoding="utf-8")
    template = jinja2.Template(source, autoescape=True, trim_blocks=True)
    page = template.render(title=title, sections=sections, footer=f"{made_by} {footer}".strip())
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(page + "\n", encoding="utf-8")
