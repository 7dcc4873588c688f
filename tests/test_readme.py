"""The README's Python runs as it stands there, with fewer training steps."""

import re
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot as plt
from torch import nn

import simulate

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_there_are_four_blocks_of_about_ten_lines():
    assert [4 < len(block.splitlines()) <= 12 for block in BLOCKS] == [True] * 4


@pytest.mark.parametrize("block", BLOCKS, ids=["predict", "simulate", "period", "train"])
def test_block_runs(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("Agg")
    names = {
        "simulate": simulate,
        "my_module": nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)),
        "inputs": torch.randn(128, 1, 8, 8),
        "targets": torch.arange(128) % 10,
    }
    (tmp_path / "runs").mkdir()
    for name, wd in (("high", 0.02), ("low", 0.004)):
        simulate.save(simulate.oscillate(0.5, wd, steps=round(200 / wd)), tmp_path / "runs" / name)
    exec(block.replace("steps=5000)\nrun", "steps=450)\nrun").replace("steps=5000,", "steps=2000,"), names)
    plt.close("all")
    printed = capsys.readouterr().out
    # a line that ends in "# 7.75: …" has printed 7.75…
    for number in re.findall(r"print.*# (\d+\.\d+)", block):
        assert any(abs(float(n) - float(number)) < 0.006 * float(number) for n in re.findall(r"\d+\.\d+", printed))
