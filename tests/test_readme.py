"""Blocks of README and getting started run as scripts, and one after the other in a notebook, with fewer steps."""

import os
import re
import subprocess
import sys
from functools import cache

import nbformat
import pytest
from nbclient import NotebookClient

from tests.pages import ROOT, assert_same, blocks

PAGES = ("README.md", "docs/getting_started.md")
# fewer steps, where what is printed does not depend on them
SHORTER = {"steps=5000)": "steps=3000)", "steps=2000)": "steps=40)", "periods=40": "periods=20"}
BLOCKS = [(page, number) for page in PAGES for number in range(len(blocks(page)))]
MARK, NEXT_BLOCK = "\x1e", "\x1d"
PRINT = f"""import builtins
def print(*values):
    builtins.print({MARK!r}, *values, sep="", flush=True) if len(values) == 1 else builtins.print({MARK!r}, *values)
"""


def shortened(page, number):
    block = blocks(page)[number]
    for long, short in SHORTER.items():
        block = block.replace(long, short)
    return block


def promised_value(comment):
    """What a comment such as "# 7.75: where the norm settles" or "# + equilibrium" says is printed; "" for words."""
    text = comment.removeprefix("+ ")
    value = text.partition(": ")[0]
    return value if ": " in text or " " not in text or text[0] in "([" else ""


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 90
    assert all(words in text for words in ("pip install", "make validate", "make test", "download.pytorch.org/whl/cpu"))
    marked = [line for line in blocks("README.md")[0].splitlines() if "# +" in line]
    assert len(marked) == 6, "six lines in the reader's own loop"


@pytest.fixture(scope="module")
def run_blocks(tmp_path_factory):
    """Run the blocks of a page, each as a script of its own, in one process that imports the packages once."""

    @cache
    def run(page):
        folder, calls = tmp_path_factory.mktemp("blocks"), ["import runpy\n"]
        (folder / "marked.py").write_text(PRINT, encoding="utf-8")
        for number in range(len(blocks(page))):
            script = f"block{number}.py"
            (folder / script).write_text(f"from marked import print\n{shortened(page, number)}", encoding="utf-8")
            calls.append(f"runpy.run_path({script!r}, run_name='__main__')\nprint({NEXT_BLOCK!r}, flush=True)\n")
        (folder / "page.py").write_text("".join(calls), encoding="utf-8")
        environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
        return subprocess.run([sys.executable, "page.py"], cwd=folder, env=environment, capture_output=True, text=True)

    return run


@pytest.mark.parametrize(("page", "number"), BLOCKS)
def test_block_runs_as_a_script(page, number, run_blocks):
    done = run_blocks(page)
    # with the name of the block that failed
    assert done.returncode == 0, done.stderr[-3000:]
    comments = re.findall(r"^ *print\(.*\)(?: +# (.+))?$", shortened(page, number), re.MULTILINE)
    outputs = done.stdout.split(NEXT_BLOCK)[number].split(MARK)[1:]
    assert len(outputs) == len(comments)
    for output, value in zip(outputs, map(promised_value, comments), strict=True):
        if value:
            words, expected = (re.findall(r"[^\s\[\](),']+", text) for text in (output, value))
            for word, other in zip(words, expected, strict=True):
                assert_same(word, other)


@pytest.mark.parametrize("page", [PAGES[0], pytest.param(PAGES[1], marks=pytest.mark.acceptance)])
def test_blocks_run_in_a_notebook(page, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cells = [nbformat.v4.new_code_cell(shortened(page, number)) for number in range(len(blocks(page)))]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert all(cell.execution_count for cell in notebook.cells)
    assert not [output for cell in notebook.cells for output in cell.outputs if output.output_type == "error"]
