"""This version opens and continues what earlier versions stored: tests/stored has runs of each schema."""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import empirical
import simulate
from simulate.trajectories.contract import SCHEMA
from simulate.trajectories.folder import RunDescription
from simulate.trajectories.log import read_records

STORED = Path(__file__).parents[2] / "stored"
# norm and loss before the last step of the runs, according to the version and the machine that stored them
LAST = {
    1: (2.7519933891239403, 1.5139604471623898),
    2: (2.75199332383678, 1.513960275799036),
    3: (2.7519933891239403, 1.5139604471623898),
}
TEST_ERRORS = [0.65, 0.66388889]
schemas = pytest.mark.parametrize("schema", LAST)
pytestmark = pytest.mark.filterwarnings("ignore:.* has no digests, so damage to its files may go unnoticed")


def test_every_schema_is_stored():
    assert list(LAST) == list(range(1, SCHEMA + 1))


@pytest.fixture
def stored(schema, tmp_path):
    """Copy the stored runs, since opening a run may write its lock."""
    shutil.copytree(STORED / f"schema_{schema}", tmp_path / "stored")
    return tmp_path / "stored"


@pytest.mark.filterwarnings("default")
@schemas
def test_a_missing_digest_is_reported(stored, schema):
    for name in ("finished", "killed"):
        expected = pytest.warns(UserWarning, match="has no digests") if schema < 3 else contextlib.nullcontext()
        with expected:
            simulate.load(stored / name)


@schemas
@pytest.mark.parametrize(("name", "status"), [("finished", "complete"), ("killed", "interrupted")])
def test_a_run_opens(stored, schema, name, status):
    run = simulate.load(stored / name)
    assert (run.status.item(), run.sizes["step"], run.sizes["eval_step"]) == (status, 30, 4)
    assert (run.norm.values[-1], run.loss.values[-1]) == LAST[schema]
    assert {name: run.attrs[name] for name in ("schema", "optimizer", "constraint")} == {
        "schema": SCHEMA, "optimizer": "SGD()", "constraint": "none",
    }  # fmt: skip
    assert abs(simulate.replay(run).norm / run.norm - 1).max() < 1e-6


@schemas
@pytest.mark.parametrize("name", ["finished", "killed"])
def test_a_run_is_continued(stored, schema, name):
    config = empirical.RunConfig(lr=0.5, wd=0.02, width=4, steps=40, evaluate_every=10)
    run = empirical.train(config, stored / name, progress=False)
    assert (run.status.item(), run.sizes["step"]) == ("complete", 40)
    assert run.norm.values[29] == LAST[schema][0]
    assert float(run.norm[30]) == pytest.approx(LAST[schema][0], rel=0.1)
    assert json.loads((stored / name / "config.json").read_text())["schema"] == SCHEMA


@schemas
def test_a_run_without_checksums_is_continued_without(stored):
    # the first runs had none, and a log keeps the format that it began with
    config = empirical.RunConfig(lr=0.5, wd=0.02, width=4, steps=40, evaluate_every=10)
    expected = empirical.train(config, stored / "finished", progress=False)
    description = RunDescription.read(stored / "killed")
    for name, record in (("steps.log", description.step_log), ("evaluations.log", description.evaluation_log)):
        (stored / "killed" / name).write_bytes(read_records(stored / "killed" / name, record).tobytes())
    dataclasses.replace(description, checked=False).write(stored / "killed")
    assert empirical.train(config, stored / "killed", progress=False).identical(expected)
    assert not RunDescription.read(stored / "killed").checked


@schemas
@pytest.mark.parametrize("is_stored", [True, False], ids=["store", "logs"])
def test_a_constraint_opens(stored, is_stored):
    # in schema 1 the optimizer's text named it
    if not is_stored:
        shutil.rmtree(stored / "fixed" / "trajectory.zarr")
    run = simulate.load(stored / "fixed")
    assert (run.attrs["optimizer"], run.attrs["constraint"]) == ("SGD()", "fixed norm")
    assert float(run.norm.max() / run.norm.min()) == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match=r"without a constraint.*'fixed norm'"):
        simulate.replay(run)


@schemas
def test_a_sweep_opens(stored, schema):
    sweep = empirical.open_sweep(stored / "sweep")
    assert sweep.wd.values.tolist() == [0.01, 0.02]
    np.testing.assert_allclose(sweep.test_error, TEST_ERRORS, rtol=1e-6)
    assert float(empirical.open_sweep(stored / "sweep", traces=True).norm.sel(wd=0.02)[-1]) == LAST[schema][0]


@schemas
def test_the_old_name_of_norm_rise_in_a_sweep(stored):
    log = stored / "sweep" / "summaries.log"
    summaries = [json.loads(line) for line in log.read_text().splitlines()]
    for summary in summaries:
        summary["numbers"]["jump"] = 0.5
        summary.pop("check", None)
    log.write_text("".join(json.dumps(summary) + "\n" for summary in summaries))
    sweep = empirical.open_sweep(stored / "sweep")
    assert sweep.norm_rise.values.tolist() == [0.5, 0.5]
    assert "jump" not in sweep.variables


def test_the_old_name_of_norm_rise_in_a_dataset(tmp_path):
    diagram = xr.Dataset({"jump": (("lr", "wd"), [[0.5, 0.7]])}, attrs={"schema": SCHEMA})
    simulate.save(diagram, tmp_path / "diagram")
    loaded = simulate.load(tmp_path / "diagram")
    assert list(loaded.variables) == ["norm_rise"]
    assert loaded.norm_rise.values.tolist() == [[0.5, 0.7]]
