"""The README's Python runs as it stands there, with fewer training steps."""

import re

import pytest
from matplotlib import pyplot as plt

import simulate
from tests.pages import blocks

BLOCKS = blocks("README.md")


def test_blocks_are_short():
    assert [3 < len(block.splitlines()) <= 12 for block in BLOCKS] == [True] * 7


@pytest.mark.parametrize("block", BLOCKS, ids=["predict", "simulate", "period", "train", "own", "sweep", "diagnose"])
def test_block_runs(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("Agg")
    names = {"simulate": simulate, "__name__": "__main__"}
    (tmp_path / "runs").mkdir()
    for name, wd in (("high", 0.02), ("low", 0.004), *([("a", 0.02)] if "diagnose(" in block else [])):
        simulate.save(simulate.oscillate(0.5, wd, steps=round(200 / wd)), tmp_path / "runs" / name)
    exec(block.replace("steps=5000)\nrun", "steps=450)\nrun").replace("steps=5000,", "steps=2000,"), names)
    plt.close("all")
    printed = capsys.readouterr().out
    # a line that ends in "# 7.75: …" has printed 7.75…
    for number in re.findall(r"print.*# (\d+\.\d+)", block):
        assert any(abs(float(n) - float(number)) < 0.006 * float(number) for n in re.findall(r"\d+\.\d+", printed))
