"""Run the Python blocks of a documentation page."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def run_page(page, folder, monkeypatch, capsys):
    """Write blocks that begin with a file name to that file. Run the others and compare output with comments."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    for block in blocks(page):
        if name := re.match(r"# (\w+)\.py\n", block):
            # another page may have loaded a module of this name
            sys.modules.pop(name[1], None)
            (folder / f"{name[1]}.py").write_text(block, encoding="utf-8")
            continue
        # an optional package; its own tests are reported as skipped
        if any(f"import {name}" in block and find_spec(name) is None for name in ("lightning", "transformers")):
            continue
        exec(block, {"__name__": "page"})
        printed = capsys.readouterr().out.splitlines()
        comments = re.findall(r"^ *print\(.*\)(?: +# (.+))?$", block, re.MULTILINE)
        assert len(printed) == len(comments), printed
        for line, comment in zip(printed, comments, strict=True):
            if comment:
                assert_same(line, comment.partition(": ")[0])


def assert_same(printed, expected):
    try:
        number = float(expected)
    except ValueError:
        assert printed == expected
    else:
        assert float(printed) == pytest.approx(number, rel=6e-3)
