"""The notebooks run in their short version, and what is stored of the long one belongs to the same text."""

import re
import shutil
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

from theory import derivations

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))
# source of a cell that shows a figure: it draws one, shows the file of one that the package drew, or has sliders
SHOWS = ("plt.subplots", "Image(files", "explorer()")
every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell, kind):
    return [output for output in cell.get("outputs", []) if kind in output.get("data", {})]


def shows_a_figure(cell):
    return any(words in cell.source for words in SHOWS)


def assert_readable(cell):
    """No warnings and no errors; what is no table, formula or widget has lines that end, so that a page is no wider."""
    for output in cell.outputs:
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
        if set(output.get("data", {})) == {"text/plain"}:
            assert max(map(len, output.data["text/plain"].splitlines())) <= 100, output.data


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == [
        "01_theory",
        "02_simulate",
        "03_empirical",
        "04_paper_figures",
        "05_your_training",
    ]


@every
def test_it_runs_and_shows_its_figures(path, monkeypatch, request, tmp_path):
    monkeypatch.setenv("BNWD_FAST", "1")
    if path.stem == "04_paper_figures":
        # a copy: a folder of runs is locked while it is used, and other test processes use it, too
        runs = shutil.copytree(request.getfixturevalue("figures_folder") / "runs", tmp_path / "runs")
        monkeypatch.setenv("BNWD_RUNS", str(runs))
    notebook = jupytext.read(path)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert_readable(cell)
            assert len(shown(cell, "image/png")) == shows_a_figure(cell)


@every
def test_what_is_stored_is_the_long_version_of_the_same_text(path):
    stored = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    text = jupytext.read(path)
    assert [(c.cell_type, c.source) for c in stored.cells] == [(c.cell_type, c.source) for c in text.cells]
    for cell in stored.cells:
        if cell.cell_type == "code":
            assert cell.execution_count
            assert_readable(cell)
            assert len(shown(cell, "image/png")) == shows_a_figure(cell)


def test_every_derivation_is_rendered_in_the_first_one():
    stored = nbformat.read(NOTEBOOKS[0].with_suffix(".ipynb"), as_version=4)
    names = re.findall(r"\bderivations\.(\w+)", "\n".join(code(stored)))
    assert sorted(names) == sorted(derivations.__all__)
    assert sum(len(shown(cell, "text/markdown")) for cell in stored.cells) == len(names)
    # no formula is defined in it: all comes from the packages
    assert "def " not in "".join(code(stored))
