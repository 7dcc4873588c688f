import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import theory
from empirical import RunConfig
from empirical.sweeps.grid import grid
from empirical.sweeps.store import (
    SweepFolder,
    format_goal,
    format_overview,
    open_sweep,
    read_configs,
    read_summaries,
    run_path,
)
from empirical.sweeps.task import summarize_failure

RUNS = grid(lr=[0.1, 0.5], wd=[0.01, 0.02], seed=range(3))


def summary_of(config, status="complete", **numbers):
    return dataclasses.replace(summarize_failure(config, ValueError("bad")), status=status, numbers=numbers)


@pytest.fixture
def folder(tmp_path):
    opened = SweepFolder(tmp_path / "sweep")
    opened.begin(RUNS)
    yield opened
    opened.close()


@settings(deadline=None, max_examples=25)
@given(st.permutations(RUNS), st.integers(0, len(RUNS)))
def test_a_grid_opens_with_its_settings_as_dimensions_at_any_time(tmp_path_factory, runs, done):
    folder = SweepFolder(tmp_path_factory.mktemp("sweep"))
    folder.begin(runs)
    for run in runs[:done]:
        folder.append(summary_of(run, final_norm=run.lr + run.wd + run.seed))
    opened = open_sweep(folder.path)
    assert dict(opened.sizes) == {"lr": 2, "wd": 2, "seed": 3}
    for number, run in enumerate(runs):
        cell = opened.sel(lr=run.lr, wd=run.wd, seed=run.seed)
        assert cell.folder.item() == str(run_path(folder.path, run))
        assert cell.status.item() == ("complete" if number < done else "pending")
        if done:
            expected = run.lr + run.wd + run.seed if number < done else math.nan
            np.testing.assert_equal(cell.final_norm.item(), expected)
    folder.close()


def test_a_list_opens_with_its_settings_as_coordinates(folder):
    folder.begin([*RUNS[:5], RunConfig(lr=0.9, wd=0.01, optimizer=theory.SGD(momentum=0.9))])
    opened = open_sweep(folder.path)
    assert dict(opened.sizes) == {"run": 6}
    assert opened.lr.values.tolist() == [0.1] * 5 + [0.9]
    assert opened.optimizer.values.tolist() == ["SGD()"] * 5 + ["SGD(momentum=0.9)"]


def test_one_run_has_no_dimension(folder):
    folder.begin(RUNS[:1])
    folder.append(summary_of(RUNS[0], final_norm=2.0))
    assert not open_sweep(folder.path).sizes
    assert open_sweep(folder.path).final_norm.item() == 2.0


def test_settings_other_than_numbers(folder):
    rules, models = [theory.SGD(), theory.AdamW(dim=5)], ["mlp", "convnet"]
    schedules = [theory.Constant(0.1), theory.Linear(0.1, 0.01, steps=5)]
    folder.begin(grid(lr=schedules, wd=0.01, optimizer=rules, model=models, width=[4, 8]))
    opened = open_sweep(folder.path)
    assert dict(opened.sizes) == {"lr": 2, "optimizer": 2, "model": 2, "width": 2}
    cell = opened.sel(lr=repr(schedules[1]), optimizer="AdamW(dim=5)", model="convnet", width=8)
    config = RunConfig(lr=schedules[1], wd=0.01, optimizer=rules[1], model="convnet", width=8)
    assert cell.folder.item() == str(run_path(folder.path, config))


def test_the_table_marks_runs_without_a_verdict(folder):
    folder.begin(RUNS[:4])
    assert "verdict" not in format_overview(open_sweep(folder.path))
    folder.append(
        summary_of(RUNS[0]),
        dataclasses.replace(summary_of(RUNS[1]), verdict="periodic"),
        summary_of(RUNS[2], status="failed"),
    )
    lines = format_overview(open_sweep(folder.path)).splitlines()
    assert ["none" in line for line in lines] == [False, True, False, False, False, False]
    assert "periodic" in lines[2]


def test_the_goal_line_counts_runs_that_miss_the_goal(folder):
    folder.begin(RUNS[:6])
    precise = {"period": 100.0, "period_stderr": 4.0, "periods": 50.0}
    folder.append(
        summary_of(RUNS[0], **precise), summary_of(RUNS[1], **{**precise, "period_stderr": 6.0}), summary_of(RUNS[2])
    )
    at_equilibrium = dataclasses.replace(summary_of(RUNS[3], relaxations=31.0), verdict="equilibrium")
    too_early = dataclasses.replace(summary_of(RUNS[4], relaxations=29.0), verdict="equilibrium")
    folder.append(at_equilibrium, too_early)
    # the sixth has not begun
    assert format_goal(folder.path, 0.05, None) == "not reached by 4 of 6 runs; 1 at equilibrium, without periods"
    assert format_goal(folder.path, None, 50) == "not reached by 3 of 6 runs; 1 at equilibrium, without periods"
    assert format_goal(folder.path, 0.05, 51) == "not reached by 5 of 6 runs; 1 at equilibrium, without periods"


def test_the_last_summary_counts(folder):
    folder.append(summary_of(RUNS[0], status="failed"))
    folder.append(summary_of(RUNS[0], final_norm=1.0))
    assert read_summaries(folder.path)[RUNS[0].identity].status == "complete"


def test_every_cut_of_the_log_leaves_whole_summaries(folder):
    for run in RUNS[:3]:
        folder.append(summary_of(run, final_norm=1.0))
    log = folder.path / "summaries.log"
    content = log.read_bytes()
    for length in range(len(content)):
        log.write_bytes(content[:length])
        assert len(read_summaries(folder.path)) == content[:length].count(b"\n")
    folder.begin(RUNS)
    folder.append(summary_of(RUNS[3]))
    assert set(read_summaries(folder.path)) == {run.identity for run in (RUNS[0], RUNS[1], RUNS[3])}


def test_the_settings_of_a_sweep_are_read_back(folder):
    assert read_configs(folder.path) == RUNS
    assert json.loads((folder.path / "sweep.json").read_text())["runs"][0] == [0.1, 0.01, 0]


def test_other_folders_are_rejected(tmp_path, folder):
    with pytest.raises(ValueError, match="another process is writing"):
        SweepFolder(folder.path)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"out.*letters"):
        SweepFolder(tmp_path / "letters")
    with pytest.raises(ValueError, match="out"):
        SweepFolder(tmp_path / "letters" / "a.txt" / "sweep")
    with pytest.raises(ValueError, match="path"):
        open_sweep(tmp_path)
