"""The site is built without a warning, its links lead somewhere, and it shows all that is public."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import empirical
import simulate
import theory
from empirical.cli.main import app
from theory import derivations

ROOT = Path(__file__).parents[1]
NEEDED = ("sphinx", "myst_nb", "furo", "latex2mathml", "ziamath", "lightning")
MISSING = [name for name in NEEDED if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the site needs {', '.join(MISSING)}: pip install 'bnwd[docs]'")


class Page(HTMLParser):
    """What a page links to, what it loads, the names that links can lead to, its code, its cells that are numbers."""

    def __init__(self, path):
        super().__init__()
        self.path, self.links, self.loads, self.ids, self.formulas, self.text = path, [], [], set(), 0, ""
        self.code, self.numbers, self.into = [], [], None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        self.formulas += tag == "math"
        if tag == "pre" or (tag == "td" and "number" in given.get("class", "").split()):
            self.into = self.code if tag == "pre" else self.numbers
            self.into.append("")
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(given["href"])
        elif given.get("src"):
            self.loads.append(given["src"])

    def handle_endtag(self, tag):
        if tag in ("pre", "td"):
            self.into = None

    def handle_data(self, data):
        self.text += data
        if self.into:
            self.into[-1] += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "-b", "html"]
    # tests/simulate/explorer makes and checks the page of the explorer
    command += ["-D", "with_explorer=0"]
    done = subprocess.run([*command, "-c", "docs", ".", out], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (out / "explorer.html").exists()
    (out / "explorer.html").write_text("<title>Explorer</title>", encoding="utf-8")
    return {path.relative_to(out).as_posix(): Page(path) for path in out.rglob("*.html")}


def test_each_page_of_the_documentation_is_there(site):
    sources = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("docs/api/*.rst"), *ROOT.glob("notebooks/*.ipynb")]
    pages = {path.relative_to(ROOT).with_suffix(".html").as_posix() for path in sources}
    assert pages | {"index.html", "README.html", "CHANGELOG.html"} <= set(site)


def test_every_link_and_picture_leads_somewhere(site):
    pages = {page.path.resolve(): page for page in site.values()}
    broken = []
    for name, page in site.items():
        for link in (*page.links, *page.loads):
            parts = urlsplit(link)
            if parts.scheme or link.startswith("//"):
                continue
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path.resolve()
            anchor = unquote(parts.fragment)
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].ids):
                broken.append(f"{name}: {link}")
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(site):
    loads = [load for page in site.values() for load in page.loads]
    assert [load for load in loads if re.match(r"\w+:|//", load) and not load.startswith("data:")] == []
    out = site["README.html"].path.parent
    elsewhere = re.compile(r"(?:url\(|@import)\s*['\"]?(?:https?:|//)")
    assert [path for path in out.rglob("*.css") if elsewhere.search(path.read_text(encoding="utf-8"))] == []


def test_links_are_of_the_web(site):
    assert {urlsplit(link).scheme for page in site.values() for link in page.links} <= {"", "http", "https"}


def test_code_is_as_wide_as_a_page_at_most(site):
    code = {name: page.code for name, page in site.items() if name.startswith(("README", "docs/"))}
    assert [(name, line) for name in code for each in code[name] for line in each.splitlines() if len(line) > 120] == []


def test_numbers_are_not_broken_over_lines(site):
    assert {"0.21", "6.9\N{NO-BREAK SPACE}%"} <= set(site["docs/validation.html"].numbers)
    # a cell with a standard error and a number of periods
    assert any(re.fullmatch(r"0\.\d+\xa0±\xa0.*\(\d+\)", text) for text in site["docs/held_out.html"].numbers)
    assert {"87\N{NO-BREAK SPACE}%", "264"} <= set(site["docs/diagnosis_study.html"].numbers)
    for name in ("docs/validation.html", "docs/held_out.html", "docs/diagnosis_study.html"):
        assert not re.search(r"\d ?%", site[name].text), name


def drawing():
    return [name for name in vars(simulate.plots) if name.startswith("plot_")]


@pytest.mark.parametrize("floor", [theory, simulate, empirical], ids=lambda floor: floor.__name__)
def test_every_public_name_is_in_the_reference(floor, site):
    names = {f"{floor.__name__}.{name}" for name in floor.__all__} - {"theory.__version__", "simulate.plots"}
    if floor is simulate:
        names |= {f"simulate.plots.{name}" for name in drawing()}
    assert names - site[f"docs/api/{floor.__name__}.html"].ids == set()


def test_docstrings_are_laid_out(site):
    for floor in ("theory", "simulate", "empirical"):
        text = site[f"docs/api/{floor}.html"].text
        assert text.count("Parameters:") > 10
        assert not re.search(r"-{5,}|``|\\\*|Source: docs/", text)


def test_every_derivation_is_shown_with_its_formulas(site):
    page = site["docs/derivations.html"]
    known = [getattr(derivations, name) for name in derivations.__all__]
    assert [each.title for each in known if each.title not in page.text] == []
    assert page.formulas >= sum(len(each) for each in known)


def test_no_formula_is_left_as_it_was_written(site):
    for name in ("docs/mathematics.html", "docs/derivations.html", "notebooks/01_theory.html"):
        assert site[name].formulas > 20
        assert not re.search(r"\$|\\[a-z]{3,}", re.sub(r"(?s)#.*?\n|[\"'].*?[\"']", "", site[name].text)), name


def test_every_command_is_there_with_its_help(site):
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert [name for name in names if f"Usage: bnwd {name}" not in site["docs/cli.html"].text] == []
