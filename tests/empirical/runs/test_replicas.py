"""Replicas give the same bits as runs trained alone, whatever the other replicas are."""

import concurrent.futures
import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import simulate
import theory
from empirical import RunConfig, grid, train
from empirical.runs import loop
from empirical.runs.loop import Interrupted, train_runs
from empirical.sweeps.sweep import group_into_tasks, replica_places, sweep
from empirical.sweeps.task import SweepOptions, run_path, train_and_summarize

RUNS = grid(lr=[0.3, 0.5], wd=0.02, width=8, steps=60, seed=range(3), replicas=4, evaluate_every=25)


@pytest.fixture
def one_thread():
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        yield executor


def never():
    return False


def alone_at(place, run, folder):
    """Train one run alone, at its place among the replicas."""
    (trajectory,) = train_runs([run], [folder / run.identity], [place], lambda config, trajectory: trajectory, never)
    return trajectory


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return {run.identity: alone_at(place % 4, run, folder) for place, run in enumerate(RUNS)}


def same(run, folder, alone):
    xr.testing.assert_identical(simulate.load(folder), alone[run.identity])
    return True


def test_a_sweep_of_replicas_gives_the_bits_of_each_run_alone(tmp_path, one_thread, alone):
    assert [len(task) for task in group_into_tasks(RUNS, replica_places(RUNS))] == [4, 2]
    results = sweep(RUNS, tmp_path, one_thread)
    assert (results.status == "complete").all()
    assert all(same(run, run_path(tmp_path, run), alone) for run in RUNS)
    assert results.seconds.min() > 0


@settings(deadline=None, max_examples=5)
@given(st.data())
def test_the_bits_do_not_depend_on_earlier_calls_or_other_replicas(tmp_path_factory, alone, data):
    path = tmp_path_factory.mktemp("sweep")
    places = replica_places(RUNS)
    for run in RUNS:
        # some were begun, by themselves, or not at all
        if steps := data.draw(st.sampled_from([0, 0, 7, 25, 60])):
            train_and_summarize([dataclasses.replace(run, steps=steps)], SweepOptions(out=path), [places[run.identity]])
    order = data.draw(st.permutations(RUNS))
    for task in group_into_tasks(order, places):
        train_and_summarize(task, SweepOptions(out=path), [places[run.identity] for run in task])
    for run in RUNS:
        loaded = simulate.load(run_path(path, run))
        xr.testing.assert_identical(loaded, alone[run.identity])


def test_runs_of_different_lengths_end_at_their_own_steps(tmp_path, alone):
    runs = [dataclasses.replace(run, steps=steps) for run, steps in zip(RUNS, (60, 10, 0, 33), strict=False)]
    folders = [tmp_path / str(number) for number in range(len(runs))]
    lengths = train_runs(runs, folders, range(4), lambda config, run: run.sizes["step"], never)
    assert lengths == [60, 10, 0, 33]
    same(RUNS[0], folders[0], alone)
    for place, (run, folder) in enumerate(zip(runs, folders, strict=True)):
        xr.testing.assert_identical(simulate.load(folder), alone_at(place, run, tmp_path))


def test_a_checkpoint_holds_one_replica_only(tmp_path):
    runs = [dataclasses.replace(run, width=64, steps=5, replicas=8) for run in RUNS]
    folders = [tmp_path / str(number) for number in range(len(runs))]
    train_runs(runs, folders, range(len(runs)), lambda config, run: None, never)
    weights = 2 * 64 * 64 * 4
    for folder in folders:
        sizes = [file.stat().st_size for file in folder.glob("checkpoint-*.pt")]
        # with the state of the random numbers and what torch adds
        assert len(sizes) == 2
        assert all(weights < size < weights + 100_000 for size in sizes)


def test_a_run_that_was_begun_keeps_its_place(tmp_path):
    narrow = [dataclasses.replace(run, width=3) for run in RUNS[:3]]
    expected = [alone_at(place, run, tmp_path / "alone") for place, run in zip((2, 0, 1), narrow, strict=True)]
    folders = [tmp_path / str(number) for number in range(3)]
    shorter = [dataclasses.replace(run, steps=10) for run in narrow]
    train_runs(shorter, folders, [2, 0, 1], lambda config, run: None, never)
    # two of them at the same place
    train_runs(narrow, folders, [0, 0, 3], lambda config, run: None, never)
    for folder, run in zip(folders, expected, strict=True):
        xr.testing.assert_identical(simulate.load(folder), run)


def test_a_diverging_run_does_not_affect_the_others(tmp_path):
    free = {"normalization": "none", "scale_invariant": False, "width": 8, "steps": 40, "replicas": 3}
    runs = [RunConfig(lr=lr, wd=0.0, **free) for lr in (0.1, 1e30, 0.05)]
    results = train_and_summarize(runs, SweepOptions(out=tmp_path), range(3))
    assert [summary.status for summary in results] == ["complete", "diverged", "complete"]
    for place, run in enumerate(runs):
        assert simulate.load(run_path(tmp_path, run)).identical(alone_at(place, run, tmp_path / "alone"))


def test_an_error_affects_one_run_only(tmp_path, monkeypatch):
    bad = RunConfig(lr=0.3, wd=0.02, model="no_such_module:build", steps=5, replicas=4)
    other = train(RUNS[3], tmp_path / "folder")
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "folder"]
    # the last folder holds another run
    first, second, third = train_runs([RUNS[0], bad, RUNS[1]], folders, range(3), lambda config, run: run, never)
    assert first.status.item() == "complete"
    assert "no_such_module" in str(second)
    assert "holds another" in str(third)
    assert simulate.load(folders[2]).identical(other)


def test_a_full_disk_is_reported_for_all_runs_that_had_not_ended(tmp_path, monkeypatch):
    runs = [dataclasses.replace(RUNS[0], steps=5), RUNS[1], RUNS[2]]
    append = loop.RunFolder.append_steps

    def full(folder, records):
        if folder.path.name == "2" and len(records) and folder.path.joinpath("steps.log").exists():
            raise OSError(28, "No space left on device")
        append(folder, records)

    monkeypatch.setattr(loop.RunFolder, "append_steps", full)
    # the first run ends before the disk is full
    monkeypatch.setattr(loop, "_FIRST_CHUNK", 5)
    folders = [tmp_path / str(number) for number in range(3)]
    results = train_runs(runs, folders, range(3), lambda config, run: run.status.item(), never)
    assert results[0] == "complete"
    assert all(isinstance(error, loop.StorageError) for error in results[1:])
    monkeypatch.undo()
    again = train_runs(runs, folders, range(3), lambda config, run: run, never)
    for place, (run, there) in enumerate(zip(runs, again, strict=True)):
        assert there.identical(alone_at(place, run, tmp_path / "alone"))


def test_all_runs_can_be_resumed_after_a_stop(tmp_path):
    folders = [tmp_path / str(number) for number in range(4)]
    answers = iter([False, True])
    longer = [dataclasses.replace(run, steps=10**6) for run in RUNS[:4]]
    results = train_runs(longer, folders, range(4), lambda config, run: run, lambda: next(answers))
    assert all(isinstance(error, Interrupted) for error in results)
    steps = {error.step for error in results}
    assert steps == {simulate.load(folder).sizes["step"] for folder in folders}
    for place, (run, folder) in enumerate(zip(RUNS, folders, strict=False)):
        (step,) = steps
        longer = dataclasses.replace(run, steps=step + 10)
        assert train(longer, folder).identical(alone_at(place, longer, tmp_path / "alone"))


def test_replicas_must_have_equal_frozen_weights(tmp_path):
    # frozen biases and heads are drawn by the seed here
    common = {"scale_invariant": False, "other_lr": 0.0, "width": 8, "steps": 10, "replicas": 2}
    runs = [RunConfig(lr=0.1, wd=0.01, seed=seed, **common) for seed in range(2)]
    train_and_summarize(runs, SweepOptions(out=tmp_path), range(2))
    for place, run in enumerate(runs):
        assert simulate.load(run_path(tmp_path, run)).identical(alone_at(place, run, tmp_path / "alone"))


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "convnet", "optimizer": theory.SGD(momentum=0.9)},
        {"model": "convnet", "normalization": "group", "scale_invariant": False, "optimizer": theory.AdamW(dim=1)},
        {"normalization": "layer", "fixed": "norm", "wd": 0.0},
        {"engine": "eager", "sampling": "full_batch"},
        {"dtype": "bfloat16", "evaluate_batches": True},
        {"lr": theory.Cosine(0.1, 0.01, steps=12), "micro_batch": 16},
    ],
    ids=str,
)
def test_replicas_of_other_settings(tmp_path, settings):
    common = {"lr": 0.05, "wd": 0.02, "width": 4, "steps": 12, "batch_size": 32, "replicas": 3, **settings}
    runs = [RunConfig(seed=seed, init_norm=1.0 + seed, **common) for seed in range(3)]
    assert len(group_into_tasks(runs, replica_places(runs))) == 1
    assert {summary.status for summary in train_and_summarize(runs, SweepOptions(out=tmp_path), range(3))} == {
        "complete"
    }
    for place, run in enumerate(runs):
        assert simulate.load(run_path(tmp_path, run)).identical(alone_at(place, run, tmp_path / "alone"))


def test_replicas_are_nearly_the_run_by_itself():
    run = dataclasses.replace(RUNS[0], steps=20, dtype="float64")
    together, single = train(run), train(dataclasses.replace(run, replicas=1))
    np.testing.assert_allclose(together.norm, single.norm, rtol=1e-10)
    assert run.identity != dataclasses.replace(run, replicas=1).identity


def test_networks_that_draw_random_numbers_are_refused():
    dropping = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10, eps=1e-12), nn.Dropout(0.5))
    arrays = torch.randn(99, 8, 8), torch.arange(99) % 10
    config = RunConfig(lr=0.1, wd=0.01, steps=3, replicas=2)
    with pytest.raises(ValueError, match=r"replicas.*random numbers"):
        train(config, model=dropping, data=arrays)
    train(dataclasses.replace(config, replicas=1), model=dropping, data=arrays)
    train(config, model=dropping[:-1], data=arrays)


@pytest.mark.parametrize(("settings", "words"), [({"engine": "kernel"}, "kernel"), ({"augmentation": 1}, "random")])
def test_settings_that_replicas_reject(settings, words):
    with pytest.raises(ValueError, match=rf"replicas must be 1 .*{words}"):
        RunConfig(lr=0.1, wd=0.01, replicas=2, **settings)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.booleans()), max_size=12))
def test_tasks_contain_every_run_once(drawn):
    runs = [
        RunConfig(lr=0.1, wd=0.01, seed=number, replicas=replicas, width=width, dtype="float64" if wide else "float32")
        for number, (replicas, width, wide) in enumerate(drawn)
    ]
    places = replica_places(runs)
    tasks = group_into_tasks(runs, places)
    assert sorted(run.seed for task in tasks for run in task) == list(range(len(runs)))
    for task in tasks:
        assert len({run.shape for run in task}) == 1
        assert len({places[run.identity] for run in task}) == len(task) <= task[0].replicas
    # no two tasks could be merged
    small = [task[0].shape for task in tasks if len(task) < task[0].replicas]
    assert len(small) == len(set(small))
