"""Tests that every simulator must pass. Add a simulator as an entry of the table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import xarray as xr

import simulate
import theory
from simulate.trajectories.contract import VARIABLES, check_trajectory

STEPS, CUT = 23, 10


@dataclass(frozen=True)
class Simulator:
    """A simulator with its arguments.

    `call` takes them together with steps, record_every and seed. With `start` it takes none of the arguments named in
    `initial`, which define its first state. `restarts` says whether it can continue a trajectory.
    """

    call: Callable[..., xr.Dataset]
    arguments: dict[str, Any]
    initial: tuple[str, ...] = ("norm",)
    restarts: bool = True

    def run(self, steps, start=None, **more):
        arguments = {name: v for name, v in self.arguments.items() if start is None or name not in self.initial}
        more |= {} if start is None else {"start": start}
        # a start brings its own seed
        more |= {"seed": 3} if start is None else {}
        return self.call(**arguments, steps=steps, **more)


def norm_map(lr, wd, grad_norm, norm=1.3, call=simulate.norm_map, **more):
    return Simulator(call, {"lr": lr, "wd": wd, "grad_norm": grad_norm, "norm": norm, **more})


def descend(landscape, lr=0.3, wd=0.02, **more):
    return Simulator(
        simulate.descend, {"landscape": landscape, "lr": lr, "wd": wd, **more}, ("norm", "weights", "walkers")
    )


GENERATOR = np.random.default_rng(0)
INPUTS = GENERATOR.normal(size=(12, 4))
COSINE = theory.Cosine(0.5, 0.1, 20)
RANDOM = simulate.BoundedGradient(0.5, 3.0)
HEAVY, NESTEROV = theory.SGD(0.9), theory.SGD(0.9, nesterov=True, decoupled=True)
# collapses later, collapses at once, diverges
ENDING = {"lr": 0.5, "wd": np.array([0.0, 1.9, 2.0, 1.0]), "norm": np.array([1.0, 1e-148, 1e-3, 2e-154])}
ENDING["grad_norm"] = np.array([1.0, 0.0, 0.0, 100.0])

SIMULATORS = {
    "map": norm_map(0.3, 0.1, 2.0),
    "map, schedule": norm_map(COSINE, 0.1, 2.0),
    "map, recorded": norm_map(0.3, 0.1, simulate.RecordedGradient(GENERATOR.uniform(1, 2, 2 * STEPS))),
    "map, random": norm_map(0.3, 0.1, RANDOM),
    "map, adversary below": norm_map(0.3, 2.0, simulate.AdversarialGradient(0.5, 3.0)),
    "map, adversary above": norm_map(
        # the large step comes after the cut, from a norm that depends on the learning rate of step 0
        theory.Linear(0.5, 0.2, 20),
        0.5,
        simulate.AdversarialGradient(0.05, 20.0, towards="upper"),
        norm=8.0,
    ),
    "map, batch": norm_map(np.array([0.1, 0.2, 0.3]), 0.1, 2.0, np.array([1.0, 2.0, 3.0])),
    "map, random batch": norm_map(np.array([0.1, 0.2, 0.3]), 0.1, RANDOM),
    "map, grid": norm_map(np.array([[0.1], [0.2]]), np.array([0.1, 0.2, 0.3]), 2.0),
    "map, labelled": norm_map(0.1, xr.DataArray([0.1, 0.2], dims="a", coords={"a": [10, 20]}), RANDOM),
    "map, empty batch": norm_map(np.array([]), 0.1, 2.0),
    "map, some end": norm_map(**ENDING),
    "map, some end, schedule": norm_map(**{**ENDING, "lr": theory.Constant(0.5)}),
    "map, heavy ball": norm_map(0.3, 0.1, 2.0, optimizer=HEAVY),
    "map, Nesterov": norm_map(COSINE, np.array([0.1, 0.2]), RANDOM, optimizer=NESTEROV),
    "map, heavy ball, some end": norm_map(**ENDING, optimizer=HEAVY),
    "ode": norm_map(0.3, 0.1, 2.0, call=simulate.norm_ode, levels=[1.4, 1.7, 9.0]),
    "ode, batch": norm_map(COSINE, [0.0, 0.3], RANDOM, [1.0, 5.0], call=simulate.norm_ode, levels=[1.0, 2.0, 4.0]),
    # cannot continue a trajectory, which does not contain the weights
    "random walk": Simulator(simulate.random_walk, {"lr": 0.3, "wd": 0.1, "grad_norm": 2.0, "dim": 7}, restarts=False),
    "random walk, AdamW": Simulator(
        simulate.random_walk,
        {"lr": COSINE, "wd": 0.1, "dim": 7, "walkers": 2, "optimizer": theory.AdamW(dim=7)},
        restarts=False,
    ),
    "descend, ratio": descend(simulate.Ratio2D(), weights=np.array([1.0, 0.1])),
    "descend, quotient": descend(simulate.RayleighQuotient([0.0, 1.0, 2.0]), COSINE, walkers=3, optimizer=HEAVY),
    "descend, sphere": descend(simulate.RayleighQuotient([0.0, 1.0, 2.0]), wd=0.0, fixed="norm", norm=2.0),
    "descend, regression": descend(
        simulate.NormalizedRegression(INPUTS, INPUTS[:, 0], batch_size=3), wd=np.array([0.0, 0.1]), norm=2.0
    ),
    # starts so low that a destabilization occurs before the cut
    "period model": Simulator(simulate.oscillate, {"lr": 0.5, "wd": 0.02, "norm": 1.0}),
    "period model, batch": Simulator(
        simulate.oscillate, {"lr": 0.5, "wd": np.array([0.004, 0.01, 0.02]), "norm": np.array([1.0, 0.5, 9.0])}
    ),
}


RESTARTING = [name for name, simulator in SIMULATORS.items() if simulator.restarts]


@pytest.fixture(params=SIMULATORS, ids=str)
def simulator(request):
    return SIMULATORS[request.param]


def final_state(run):
    """Variables that do not depend on which rows were recorded."""
    return run[[n for n in run.data_vars if "step" not in run[n].dims]].drop_vars("step", errors="ignore")


def test_no_steps_give_no_rows_and_the_start(simulator):
    none, one = simulator.run(0), simulator.run(1)
    assert none.sizes["step"] == 0
    np.testing.assert_array_equal(none.final_norm, one.norm.isel(step=0))
    assert (none.status == "complete").all()
    assert (none.status_step == 0).all()


def test_a_step_is_the_first_of_many(simulator):
    one, two = simulator.run(1), simulator.run(2)
    assert one.step.values.tolist() == [0]
    for name in ("norm", "grad_norm", "effective_lr", "rotation"):
        np.testing.assert_array_equal(one[name].isel(step=0), two[name].isel(step=0), err_msg=name)
    going = two.status == "complete"
    np.testing.assert_array_equal(one.final_norm.where(going), two.norm.isel(step=1).where(going))


@pytest.mark.parametrize("stride", [2, 5, 100])
def test_a_stride_leaves_out_rows_and_nothing_else(simulator, stride):
    xr.testing.assert_identical(
        simulator.run(STEPS, record_every=stride), simulator.run(STEPS).isel(step=slice(None, None, stride))
    )


@pytest.mark.parametrize("simulator", RESTARTING, indirect=True)
@pytest.mark.parametrize("stored", [False, True], ids=["in memory", "stored"])
@pytest.mark.parametrize("stride", [1, 4])
def test_a_run_that_is_cut_continues_bit_for_bit(simulator, stored, stride, tmp_path):
    whole = simulator.run(STEPS, record_every=stride)
    parts = [simulator.run(CUT, record_every=stride)]
    for steps in (0, 1, STEPS - CUT - 1):
        if stored:
            path = tmp_path / str(len(parts))
            simulate.save(parts[-1], path)
            parts.append(simulator.run(steps, start=simulate.load(path), record_every=stride))
        else:
            parts.append(simulator.run(steps, start=parts[-1], record_every=stride))
    assert parts[-1].attrs == whole.attrs
    xr.testing.assert_identical(final_state(parts[-1]), final_state(whole))
    np.testing.assert_array_equal(np.concatenate([part.step for part in parts]), whole.step)
    for name in (n for n in whole.data_vars if "step" in whole[n].dims):
        rows = [part[name].transpose(..., "step").values for part in parts]
        np.testing.assert_array_equal(np.concatenate(rows, axis=-1), whole[name].transpose(..., "step"), err_msg=name)


def arrays_in(value):
    """Return the arrays of an argument and of its attributes."""
    if isinstance(value, xr.DataArray):
        return [value.values]
    if isinstance(value, np.ndarray):
        return [value]
    return [inner for inner in getattr(value, "__dict__", {}).values() if isinstance(inner, np.ndarray)]


def test_arguments_are_neither_changed_nor_kept(simulator):
    arrays = [array for value in simulator.arguments.values() for array in arrays_in(value)]
    before = [array.copy() for array in arrays]
    runs = [simulator.run(STEPS)]
    if simulator.restarts:
        copy = runs[0].copy(deep=True)
        runs.append(simulator.run(STEPS, start=runs[0]))
        xr.testing.assert_identical(runs[0], copy)
        for name in runs[0].data_vars:
            if name in runs[1]:
                assert not np.shares_memory(runs[0][name].values, runs[1][name].values), name
    for array, unchanged in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, unchanged)
        for run in runs:
            for name in run.variables:
                assert not np.may_share_memory(run[name].values, array), name


def test_the_contract_is_kept(simulator):
    run = simulator.run(STEPS)
    check_trajectory(run, "grad_norm", "effective_lr", "rotation", "final_norm", "status", "status_step")
    for name in run.variables:
        if name in VARIABLES:
            assert (run[name].attrs["units"], run[name].attrs["long_name"]) == VARIABLES[name], name
        else:
            # labels of a dimension that the caller has named
            assert run[name].dims == (name,), name
    dims = run.final_norm.dims
    assert run.norm.dims == (*dims, "step")
    assert run.status.dims == run.status_step.dims == dims
    assert run.step.dtype == run.status_step.dtype == np.int64
    for name in ("source", "optimizer", "schema", "seed", "bnwd_version", "numpy_version", "python_version"):
        assert name in run.attrs, name


def test_no_number_is_missing_silently(simulator):
    run = simulator.run(STEPS)
    complete = run.status == "complete"
    for name in ("norm", "grad_norm", "effective_lr", "rotation"):
        assert not (run[name].isnull() & complete).any(), name
    assert np.isfinite(run.final_norm).all()
    # and rows are missing after the end alone
    rows_there = run.norm.notnull().sum("step")
    np.testing.assert_array_equal(rows_there, np.where(complete, STEPS, run.status_step + 1))
    assert set(np.unique(run.status.values.astype(str))) <= {"complete", "collapsed", "diverged"}


def test_the_same_call_gives_the_same_result(simulator):
    xr.testing.assert_identical(simulator.run(STEPS), simulator.run(STEPS))
