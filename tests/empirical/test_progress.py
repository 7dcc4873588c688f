"""Progress in a log file: lines now and then, for commands only."""

import concurrent.futures
import dataclasses
import re

import pytest

from empirical import RunConfig, _progress, sweep, train

CONFIG = RunConfig(lr=0.5, wd=0.01, width=8, steps=2000)
LINE = r"bnwd: train: [\d.k]+ of [\d.k]+ steps, \d+ %, \S+ left.*"


@pytest.fixture
def command(monkeypatch):
    """As in a command whose output goes to a file, with a line for every change."""
    monkeypatch.setattr(_progress, "_is_command", True)
    monkeypatch.setattr(_progress, "_FIRST_LINE", 0.0)
    monkeypatch.setattr(_progress, "_NEXT_LINE", 0.0)


@pytest.mark.usefixtures("command")
def test_a_run_and_a_sweep_print_lines(tmp_path, capsys):
    train(CONFIG)
    lines = capsys.readouterr().err
    assert "\r" not in lines
    assert len(lines.splitlines()) >= 2
    assert all(re.fullmatch(LINE, line) for line in lines.splitlines() if "train" in line), lines
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        sweep([CONFIG], tmp_path, executor)
    lines = capsys.readouterr().err
    assert "\r" not in lines
    assert any(re.fullmatch(LINE, line) and "runs: " in line for line in lines.splitlines()), lines


@pytest.mark.usefixtures("command")
def test_a_failed_run_writes_over_nothing(tmp_path, capsys):
    bad = dataclasses.replace(CONFIG, samples=5000)  # there are fewer
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        sweep([CONFIG, bad], tmp_path, executor)
    shown = capsys.readouterr().err
    assert "failed: " in shown
    assert "\r" not in shown


@pytest.mark.usefixtures("command")
def test_lines_keep_their_distance(monkeypatch, capsys):
    seconds = [100.0]
    monkeypatch.setattr(_progress, "_FIRST_LINE", 10.0)
    monkeypatch.setattr(_progress, "_NEXT_LINE", 60.0)
    monkeypatch.setattr(_progress.time, "monotonic", lambda: seconds[0])
    with _progress.progress_bar("think", 200, "idea", None) as bar:
        for _ in range(200):
            bar.n += 1
            seconds[0] += 1.0
            bar.refresh()
    printed = [int(re.search(r"(\d+) of 200 ideas", line)[1]) for line in capsys.readouterr().err.splitlines()]
    assert printed == [10, 70, 130, 190]


@pytest.mark.usefixtures("command")
def test_false_prints_nothing(capsys):
    train(CONFIG, progress=False)
    assert not capsys.readouterr().err


@pytest.mark.usefixtures("command")
def test_a_terminal_shows_a_bar(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    train(CONFIG)
    shown = capsys.readouterr().err
    assert "\rtrain: " in shown
    assert "\nbnwd: " not in shown


def test_functions_are_silent_in_a_file(capsys):
    train(CONFIG)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("value", ["yes", 1, [True]])
def test_other_values_are_refused(value):
    with pytest.raises(TypeError, match="progress must be True or False"):
        train(CONFIG, progress=value)
