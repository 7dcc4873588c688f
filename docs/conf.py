"""Settings of the documentation site, which `make docs` builds from the root of the repository.

Pages are those that are read on a forge: README, docs, notebooks as they are stored. What is taken from the code, that
is the reference of the three packages, the derivations and the help of the commands, is made while the site is built.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import latex2mathml.converter
import ziamath
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import simulate  # noqa: E402
import theory  # noqa: E402
from theory import derivations  # noqa: E402

project = "bnwd"
copyright = "The bnwd developers, Apache-2.0"
version = release = theory.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
root_doc = "README"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/**", "notebooks/*.ipynb"]
# folders that need not be looked into
exclude_patterns = [".*", "**/.ipynb_checkpoints", "build", "dist", "report", "runs", "sweeps", "held_out", "claims"]
exclude_patterns += ["theory", "simulate", "empirical", "tests", "benchmarks", "*.egg-info"]

CONTENTS = {
    "Start": ["docs/getting_started", "docs/questions", "docs/glossary"],
    "How to": [
        "docs/your_training",
        "docs/explorer",
        "docs/diagnosis",
        "docs/logs",
        "docs/training",
        "docs/data",
        "docs/sweeps",
        "docs/norm_control",
        "docs/effective_lr",
        "docs/transfer",
        "docs/curvature",
        "docs/add_a_*",
        "docs/add_an_*",
    ],
    "Mathematics": ["docs/mathematics", "docs/derivations", "notebooks/*"],
    "Validation": ["docs/paper", "docs/validation", "docs/held_out", "docs/diagnosis_study", "docs/claims/*"],
    "Reference": ["docs/api/theory", "docs/api/simulate", "docs/api/empirical", "docs/cli"],
    "About": ["docs/limits", "docs/architecture", "SECURITY", "CONTRIBUTING", "CHANGELOG"],
}

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
# code is written with plain quotation marks
smartquotes = False
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
# widgets need a script from elsewhere; `simulate.explorer.explorer` stores a picture and its words beside its own
nb_ipywidgets_js = {}
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autodoc_type_aliases = {"npt.ArrayLike": "ArrayLike"}
autodoc_type_aliases |= {name: name for name in ("ArrayLike", "FloatArray", "Number", "OptimizerLike")}
python_maximum_signature_line_length = 90
python_use_unqualified_type_names = True
add_module_names = False

html_theme = "furo"
html_title = f"bnwd {release}"
# STIX Two Math comes with ziamath: browsers have no good font for formulas of their own everywhere
html_static_path = ["_static", str(Path(ziamath.__file__).parent / "fonts")]
html_css_files = ["site.css"]
html_extra_path = ["_extra"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_copy_source = False


# --- pages -----------------------------------------------------------------------------------------------------------


def complete_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Add to a page, as it is read, what a forge does without: contents, a title, what the code says of itself."""
    text = source[0]
    if docname == root_doc:
        text += "".join(contents())
    elif docname == "docs/cli":
        text = text.replace("<!-- commands -->", "\n".join(command_help()))
    elif docname == "docs/derivations":
        text = text.replace("<!-- derivations -->", "\n".join(all_derivations()))
    elif docname.startswith("docs/") and not docname.startswith("docs/api/") and not re.search(r"^# ", text, re.M):
        text = f"# {docname.rpartition('/')[2].replace('_', ' ').capitalize()}\n\n{text}"
    source[0] = text


def contents() -> Iterator[str]:
    """Yield the parts of the list of all pages."""
    for caption, pages in CONTENTS.items():
        # a glob may find nothing
        there = [page for page in pages if "*" not in page or list(ROOT.glob(f"{page}.*"))]
        yield f"\n\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {caption}\n\n" + "\n".join(there) + "\n```\n"


def command_help() -> Iterator[str]:
    """Yield what each command prints when it is asked for help."""
    import typer
    from typer.testing import CliRunner

    from empirical.cli.main import app

    names: list[list[str]] = [[], *([name] for name in typer.main.get_command(app).commands)]
    for name in names:
        result = CliRunner().invoke(app, [*name, "--help"], prog_name="bnwd", terminal_width=100, max_content_width=100)
        yield f"## bnwd {' '.join(name)}\n\n```text\n{result.output.strip()}\n```\n"


def all_derivations() -> Iterator[str]:
    """Yield a part for each module of `theory.derivations`, in the order of the sections of the mathematics."""
    by_module: dict[str, list[str]] = {}
    for name in derivations.__all__:
        by_module.setdefault(derivations._MODULES[name], []).append(name)

    about = {module: inspect.getdoc(import_module(f"theory.derivations._{module}")) or "" for module in by_module}
    for module in sorted(by_module, key=lambda module: (int(re.search(r"§(\d+)", about[module])[1]), module)):
        title, sections = re.match(r"(.*?)[.:]? \(docs/mathematics.md (.*?)\)", about[module]).groups()
        yield f"## {title} ([{sections}](mathematics.md))\n"
        for name in by_module[module]:
            yield f"### `{name}`\n\n{getattr(derivations, name)._repr_markdown_()}\n"


# a cell of one number, or a few, with what belongs to them
NUMBERS = re.compile(r"[≤≥<>±+−-]? ?\d[\d ,.:;e%±≤≥×/()+−–-]{0,30}(\(\d+ of \d+\))?")
# between a number and its sign
JOINT = re.compile(r"(?<=\d) ?(?=%)|(?<=\d) (?=± \d)|(?<=[±≤≥]) (?=\d)")


def keep_numbers_whole(app: Sphinx, document: nodes.document) -> None:
    """Let no line end within a number; all pages write 97 %, whatever wrote them."""
    for entry in document.findall(nodes.entry):
        if NUMBERS.fullmatch(entry.astext().strip()):
            entry["classes"].append("number")
    for text in list(document.findall(nodes.Text)):
        if not isinstance(text.parent, (nodes.literal, nodes.math, nodes.FixedTextElement)):
            text.parent.replace(text, nodes.Text(JOINT.sub("\N{NO-BREAK SPACE}", text)))


# --- docstrings ------------------------------------------------------------------------------------------------------

EXAMPLES = (".. rubric:: Examples", "", ".. code-block:: pycon", "")
ITEMS = ("Parameters", "Attributes", "Returns", "Yields", "Raises", "Warns")


def docstring_to_rst(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Turn "name : text" under underlined headings into fields, and plain text into text without markup."""
    lines[:] = list(_fields([*lines, ""]))


def _fields(lines: list[str]) -> Iterator[str]:
    heading = ""
    for number, (line, following) in enumerate(pairwise(lines)):
        if re.fullmatch(r"-{3,}", following) and line in (*ITEMS, "Examples"):
            heading = line
            yield from EXAMPLES if line == "Examples" else [f":{line}:"]
        elif heading and re.fullmatch(r"-{3,}", line):
            continue
        elif heading == "Examples":
            yield f"    {line}"
        elif not line.strip():
            if not _goes_on(heading, next(filter(None, lines[number:]), "")):
                heading = ""
            yield ""
        elif heading:
            yield from _item(line)
        else:
            yield re.sub(r"^Source: ", ":Source: ", _escaped(line))


def _goes_on(heading: str, following: str) -> bool:
    """Whether the text after an empty line still belongs to the heading: what is returned may have paragraphs."""
    return following.startswith(" ") or (heading == "Returns" and not following.startswith("Source: "))


def _item(line: str) -> Iterator[str]:
    if named := re.match(r"(\S.*?) : (.*)", line):
        # each name ends the paragraph before it
        yield from ["", f"    **{_escaped(named[1])}**", f"        {_escaped(named[2])}"]
    else:
        yield f"    {_escaped(line)}"


def _escaped(line: str) -> str:
    """Plain text in reStructuredText: only what stands in backticks is code, and links are links."""
    text, *rest = re.split(r"(`[^`]+`)", line)
    out = _linked(text)
    for code, after in zip(rest[::2], rest[1::2], strict=True):
        inner = code.strip("`")
        out += f":py:obj:`{inner}`" if re.fullmatch(r"[\w.]+(\(\))?", inner) else f"``{inner}``"
        # markup must end before a word goes on
        out += ("\\" if re.match(r"\w", after) else "") + _linked(after)
    return out


def _linked(text: str) -> str:
    def page(found: re.Match[str]) -> str:
        return f":doc:`{found[1].replace('_', ' ')} </docs/{found[1]}>`"

    parts = re.split(r"(docs/\w+\.md)", text)
    out = "".join(
        re.sub(r"docs/(\w+)\.md", page, part) if odd % 2 else re.sub(r"([\\*_|])", r"\\\1", part)
        for odd, part in enumerate(parts)
    )
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"`arXiv \1 <https://arxiv.org/abs/\1>`__", out)


def readable_signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, result: str | None
) -> tuple[str | None, str | None]:
    """Write defaults that are made anew, and aliases of types, as a reader would."""
    if signature is not None:
        signature = re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", signature.replace("<factory>", "..."))
    return signature, result


def skip_field_aliases(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out the fields of named tuples, of which Python says their numbers only."""
    return True if (inspect.getdoc(obj) or "").startswith("Alias for field number") else None


# --- formulas --------------------------------------------------------------------------------------------------------


# what latex2mathml leaves to the browser: bars that open and close, signs after an opening bracket, ordinary symbols
BARS = {r"\lvert": r"\left|", r"\rvert": r"\right|", r"\lVert": r"\left\|", r"\rVert": r"\right\|"}
SPACING = [
    (r'((?:<mo stretchy="false"|form="prefix")>[^<]*</mo><mo)(>&#x02212;)', r'\1 form="prefix"\2'),
    # ‖ has no size between that of the line and twice it
    (r'stretchy="true"( [^>]*>&#x02016;)', r'stretchy="false"\1'),
    (r"<mo>&#x0002F;</mo>", '<mo lspace="0" rspace="0">&#x0002F;</mo>'),
    (r"<mo>&#x0221E;</mo>", "<mi>&#x0221E;</mi>"),
]


def formula(latex: str, display: str) -> str:
    """Return MathML, which browsers show without a script."""
    for bar, pair in BARS.items():
        latex = latex.replace(bar, pair)
    mathml = latex2mathml.converter.convert(latex, display=display)
    for found, better in SPACING:
        mathml = re.sub(found, better, mathml)
    return mathml


def inline_formula(translator: HTML5Translator, node: nodes.math) -> None:
    """Write a formula that stands in a line of text."""
    translator.body.append(formula(node.astext(), "inline"))
    raise nodes.SkipNode


def display_formula(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula that stands by itself."""
    translator.body.append(f'<div class="formula">{formula(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode


def write_explorer(app: Sphinx, failure: Exception | None) -> None:
    """Write the page that docs/explorer shows in a frame."""
    if failure is None and app.builder.format == "html" and app.config.with_explorer:
        simulate.write_explorer_page(Path(app.outdir) / "explorer.html")


def setup(app: Sphinx) -> None:
    """Connect the above to Sphinx."""
    # half of the time of a build; tests leave it out
    app.add_config_value("with_explorer", True, "html", bool)
    app.connect("source-read", complete_page)
    app.connect("doctree-read", keep_numbers_whole)
    app.connect("build-finished", write_explorer)
    app.connect("autodoc-process-docstring", docstring_to_rst)
    app.connect("autodoc-process-signature", readable_signature)
    app.connect("autodoc-skip-member", skip_field_aliases)
    app.add_html_math_renderer("mathml", (inline_formula, None), (display_formula, None))
