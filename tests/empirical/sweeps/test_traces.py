"""Trajectories of a sweep as one data set, whose values are read when they are used."""

import concurrent.futures
import dataclasses
import warnings

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import simulate
import theory
from empirical import grid, open_sweep, sweep
from empirical.sweeps import traces
from empirical.sweeps.store import SweepFolder
from empirical.sweeps.task import SweepOptions, run_path, train_and_summarize
from simulate.trajectories.contract import VARIABLES

RUNS = grid(lr=[0.3, 0.5], wd=0.02, width=8, steps=60, seed=range(3), evaluate_every=25)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A sweep under way: one run is shorter, one has no summary yet, one has not begun."""
    place = tmp_path_factory.mktemp("sweep")
    folder = SweepFolder(place)
    folder.begin([dataclasses.replace(run, steps=60) for run in RUNS])
    for number, run in enumerate(RUNS[:-1]):
        run = dataclasses.replace(run, steps={1: 40}.get(number, 60))
        (summary,) = train_and_summarize([run], SweepOptions(out=place))
        # one run has no summary yet
        if number != 2:
            folder.append(summary)
    folder.close()
    return place


def same_rows(opened, expected):
    for name in expected.data_vars:
        if "step" in expected[name].dims:
            rows = opened[name].isel(step=slice(expected.sizes["step"]))
            np.testing.assert_array_equal(rows.values, expected[name].values, err_msg=name)
            assert opened[name].isel(step=slice(expected.sizes["step"], None)).isnull().all()
        elif "eval_step" in expected[name].dims:
            np.testing.assert_array_equal(opened[name].sel(eval_step=expected.eval_step).values, expected[name].values)
    return True


def test_every_run_has_its_own_rows(path):
    opened = open_sweep(path, traces=True)
    assert dict(opened.sizes) == {"lr": 2, "seed": 3, "step": 60, "group": 2, "eval_step": 5}
    assert opened.eval_step.values.tolist() == [0, 25, 40, 50, 60]
    for run in RUNS[:-1]:
        assert same_rows(opened.sel(lr=run.lr, seed=run.seed), simulate.load(run_path(path, run)))
    assert opened.norm.sel(lr=0.5, seed=2).isnull().all()
    assert opened.status.values.tolist() == [["complete", "complete", "pending"], ["complete", "complete", "pending"]]


def test_variables_and_attributes_are_those_of_the_contract(path):
    opened, run = open_sweep(path, traces=True), simulate.load(run_path(path, RUNS[0]))
    assert {str(name) for name in run.data_vars} <= {str(name) for name in opened.data_vars}
    for name in opened.variables:
        if name in VARIABLES:
            assert opened[name].attrs == dict(zip(("units", "long_name"), VARIABLES[name], strict=True)), name
    assert opened.norm.dims == ("lr", "seed", "step")
    assert opened.group_norm.dims == ("lr", "seed", "step", "group")
    assert "lr" not in opened.attrs
    assert (opened.attrs["wd"], opened.attrs["optimizer"], opened.attrs["source"]) == (0.02, "SGD()", "training")


def test_a_selected_run_can_be_classified_like_any_trajectory(tmp_path):
    rules = [theory.SGD(), theory.SGD(momentum=0.5)]
    runs = grid(lr=0.5, wd=0.02, width=8, steps=600, optimizer=rules, seed=[0, 1])
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        sweep(runs, tmp_path, executor)
    opened = open_sweep(tmp_path, traces=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for run in runs:
            run_rows = opened.sel(optimizer=str(run.optimizer), seed=run.seed)
            expected = simulate.load(run_rows.folder.item())
            selected, loaded = simulate.classify(run_rows), simulate.classify(expected)
            assert (selected.verdict, selected.rotation_ratio) == (loaded.verdict, loaded.rotation_ratio)
            np.testing.assert_array_equal(selected.periods.onsets, loaded.periods.onsets)


def test_runs_that_differ_by_a_constraint(tmp_path):
    common = {"lr": 0.02, "wd": 0.5, "width": 8, "steps": 600, "optimizer": theory.SGD(momentum=0.5)}
    runs = grid(**common, fixed=[None, "effective_lr"])
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        summaries = sweep(runs, tmp_path, executor)
    assert (summaries.verdict != "").all()
    opened = open_sweep(tmp_path, traces=True)
    assert opened.attrs["optimizer"] == "SGD(momentum=0.5)"
    assert opened.constraint.values.tolist() == ["none", "fixed effective lr"]
    for number in range(2):
        classification = simulate.classify(opened.isel(fixed=number))
        assert classification.rotation_ratio == summaries.rotation_ratio.values[number]


ADAM = {"lr": 0.01, "wd": 0.5, "steps": 420, "batch_size": 16}


def same_verdict(trajectory, expected):
    first, second = simulate.classify(trajectory), simulate.classify(expected)
    return (first.verdict, first.rotation_ratio) == (second.verdict, second.rotation_ratio)


def sweep_of_optimizers(path, **settings):
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        sweep(grid(**{**ADAM, **settings}), path, executor)
    return open_sweep(path, traces=True)


def test_optimizers_that_are_swept_are_named_as_in_the_trajectories(tmp_path):
    # predictions for Adam depend on the number of weights, not on the dim that was passed
    opened = sweep_of_optimizers(tmp_path, width=4, optimizer=[theory.Adam(dim=1), theory.SGD(momentum=0.5)])
    loaded = [simulate.load(folder) for folder in opened.folder.values]
    assert opened.optimizer.values.tolist() == [run.attrs["optimizer"] for run in loaded]
    assert opened.optimizer.values.tolist() == ["Adam(dim=272)", "SGD(momentum=0.5)"]
    assert open_sweep(tmp_path).optimizer.values.tolist() == ["Adam(dim=1)", "SGD(momentum=0.5)"]
    for name, run in zip(opened.optimizer.values, loaded, strict=True):
        assert same_verdict(opened.sel(optimizer=name), run)


def test_one_optimizer_for_several_widths_is_named_for_each(tmp_path):
    opened = sweep_of_optimizers(tmp_path, width=[4, 5], optimizer=theory.Adam(dim=1))
    assert opened.optimizer.dims == ("width",)
    for width in (4, 5):
        run = simulate.load(opened.folder.sel(width=width).item())
        assert opened.optimizer.sel(width=width).item() == run.attrs["optimizer"] != "Adam(dim=1)"
        assert same_verdict(opened.sel(width=width), run)


@pytest.mark.parametrize(
    "settings",
    [
        {"width": [4, 5], "optimizer": [theory.Adam(dim=1), theory.SGD()]},
        {"width": 4, "optimizer": [theory.Adam(dim=1), theory.Adam(dim=2)]},
    ],
)
def test_labels_stay_if_names_are_not_unique(tmp_path, settings):
    opened = sweep_of_optimizers(tmp_path, steps=5, **settings)
    assert opened.optimizer.values.tolist() == [str(rule) for rule in settings["optimizer"]]


def test_a_list_of_runs_names_the_optimizer_of_each(tmp_path):
    runs = [
        *grid(**{**ADAM, "steps": 5}, width=[4, 5], optimizer=theory.AdamW(dim=1)),
        *grid(**{**ADAM, "steps": 5}, width=4, optimizer=theory.SGD()),
    ]
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        sweep(runs, tmp_path, executor)
    opened = open_sweep(tmp_path, traces=True)
    assert opened.optimizer.dims == ("run",)
    loaded = [simulate.load(folder).attrs["optimizer"] for folder in opened.folder.values]
    assert opened.optimizer.values.tolist() == loaded
    assert loaded[2] == "SGD()"


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_selecting_before_reading_is_selecting_after(path, data):
    opened = open_sweep(path, traces=True)
    name = data.draw(st.sampled_from(["norm", "effective_lr", "group_rotation", "train_loss"]))
    lazy, loaded = opened[name], opened[name].load().copy()
    for _ in range(data.draw(st.integers(1, 2))):
        selected = {}
        for dim, size in loaded.sizes.items():
            choice = st.one_of(
                st.integers(-size, size - 1),
                st.slices(size),
                st.lists(st.integers(-size, size - 1), max_size=4).map(lambda chosen: np.array(chosen, dtype=int)),
            )
            if size and data.draw(st.booleans()):
                selected[dim] = data.draw(choice)
        lazy, loaded = lazy.isel(selected), loaded.isel(selected)
    xr.testing.assert_identical(lazy.load(), loaded)


def test_only_used_values_are_read(path, monkeypatch):
    calls = []

    def recording_read(file, record, start=0, stop=None):
        calls.append((file.parent.name, start, stop))
        return read(file, record, start, stop)

    read = traces.read_records
    monkeypatch.setattr(traces, "read_records", recording_read)
    opened = open_sweep(path, traces=True)
    assert opened.norm.sizes["step"] == 60
    assert not calls
    opened.norm.sel(lr=0.3, seed=0).isel(step=slice(10, 20, 3)).load()
    assert calls == [(RUNS[0].identity, 10, 20)]


def test_sweeps_of_different_networks(tmp_path):
    runs = grid(lr=theory.Cosine(0.5, 0.1, 10), wd=0.02, width=4, steps=10, model=["mlp", "convnet"], seed=[0, 1])
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        sweep(runs, tmp_path, executor)
    opened = open_sweep(tmp_path, traces=True)
    assert "group" not in opened.dims
    np.testing.assert_allclose(opened.lr.sel(model="mlp", seed=0), runs[0].lr(np.arange(10)))
    for run in runs:
        norm = opened.norm.sel(model=run.model, seed=run.seed).values
        np.testing.assert_array_equal(norm, simulate.load(run_path(tmp_path, run)).norm.values)


def test_a_sweep_without_a_row_opens_too(tmp_path):
    folder = SweepFolder(tmp_path)
    folder.begin(RUNS)
    folder.close()
    assert open_sweep(tmp_path, traces=True).identical(open_sweep(tmp_path))
    train_and_summarize([dataclasses.replace(RUNS[0], steps=0)], SweepOptions(out=tmp_path))
    assert open_sweep(tmp_path, traces=True).norm.sizes["step"] == 0
