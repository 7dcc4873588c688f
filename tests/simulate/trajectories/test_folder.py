import os

import filelock
import numpy as np
import pytest
import xarray as xr

import simulate
import theory
from simulate import BoundedGradient, RecordedGradient, load, norm_map, save
from simulate._files import LOCK, atomic_write, is_locked, read_json, write_json
from simulate.trajectories.contract import SCHEMA, VARIABLES
from simulate.trajectories.folder import CONFIG, EVALS, STATUS, STEPS, STORE, count_steps, store_run
from simulate.trajectories.log import (
    BLOCK_RECORDS,
    count_records,
    evaluation_record,
    read_records,
    record_with_check,
    records_with_checks,
    step_record,
)

EVALUATION_RECORD = evaluation_record()
GROUPS = ["conv1.weight", "conv2.weight"]
FIRST_NORM = 3.0


def _ended():
    recorded = np.ones((3, 700))
    recorded[1], recorded[2, 2] = 0.0, 1e200
    return norm_map(0.5, 1.0, RecordedGradient(recorded), norm=1.0, steps=700)


TRAJECTORIES = {
    "one run": lambda: norm_map(0.1, 0.01, BoundedGradient(1.0, 2.0), norm=1.0, steps=50, seed=0),
    "one row": lambda: norm_map(0.1, 0.01, 2.0, norm=1.0, steps=1),
    "no rows": lambda: norm_map(0.1, 0.01, 2.0, norm=1.0, steps=0),
    "strided": lambda: norm_map(0.1, 0.01, 2.0, norm=1.0, steps=50, record_every=7),
    "schedule": lambda: norm_map(theory.Cosine(0.5, 0.1, steps=50), 0.01, 2.0, norm=1.0, steps=50),
    "batch with NaN rows": _ended,
    "grid": lambda: norm_map([[0.1], [0.2]], [0.01, 0.02, 0.03], 2.0, norm=1.0, steps=5),
    "empty batch": lambda: norm_map([], 0.01, 2.0, norm=1.0, steps=5),
    "labels": lambda: norm_map(xr.DataArray([0.1, 0.2], dims="a", coords={"a": [3, 5]}), 0, 2.0, norm=1.0, steps=5),
    "part of a batch": lambda: _ended().isel(batch=2, step=slice(1, 4)),
    "strange numbers": lambda: norm_map(0.1, 0.01, 2.0, norm=1.0, steps=3).assign_attrs(
        a=float("nan"), b=float("inf"), c=True, d=[1, 2.5, "ρ"], e=2**60, f=0.1 + 0.2
    ),
}


def assert_same(one, other):
    xr.testing.assert_identical(one, other)
    assert list(one.attrs) == list(other.attrs)
    for key, value in one.attrs.items():
        assert type(other.attrs[key]) is type(value), key
    for name in one.variables:
        assert one[name].dtype == other[name].dtype, name
        assert one[name].attrs == other[name].attrs, name


class TestAtomicWrite:
    @pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
    def test_the_old_file_stays_if_writing_fails(self, stop, tmp_path):
        (tmp_path / "page").write_text("before")

        def write():
            with atomic_write(tmp_path / "page") as aside:
                aside.write_text("half")
                raise stop

        with pytest.raises(stop):
            write()
        assert os.listdir(tmp_path) == ["page"]
        assert (tmp_path / "page").read_text() == "before"

    def test_a_half_written_folder_is_removed(self, tmp_path):
        def write():
            with atomic_write(tmp_path / "store") as aside:
                (aside / "below").mkdir(parents=True)
                raise ValueError("stop")

        with pytest.raises(ValueError, match="stop"):
            write()
        assert os.listdir(tmp_path) == []

    def test_an_occupied_path_raises(self, tmp_path):
        (tmp_path / "taken").mkdir()
        with pytest.raises(OSError, match="taken"), atomic_write(tmp_path / "taken") as aside:
            aside.write_text("whole")
        assert os.listdir(tmp_path) == ["taken"]


class TestSaveAndLoad:
    @pytest.mark.parametrize("make", TRAJECTORIES.values(), ids=TRAJECTORIES)
    def test_loading_returns_what_was_saved(self, make, tmp_path):
        trajectory = make()
        save(trajectory, tmp_path / "run.zarr")
        loaded = load(tmp_path / "run.zarr")
        if "a" in trajectory.attrs:
            # NaN is not equal to itself
            assert np.isnan(loaded.attrs["a"])
            trajectory, loaded = (t.assign_attrs(a=0.0) for t in (trajectory, loaded))
        assert_same(trajectory, loaded)

    def test_saving_a_loaded_trajectory(self, tmp_path):
        trajectory = _ended()
        save(trajectory, tmp_path / "first")
        save(load(tmp_path / "first"), tmp_path / "second")
        assert_same(load(tmp_path / "second"), trajectory)

    def test_a_loaded_trajectory_can_be_replayed_and_changed(self, tmp_path):
        trajectory = TRAJECTORIES["one run"]()
        save(trajectory, tmp_path / "run")
        loaded = load(str(tmp_path / "run"))
        assert_same(simulate.replay(trajectory), simulate.replay(loaded))
        loaded.norm[0] = 7.0
        assert loaded.norm[0] == 7.0

    def test_parent_folders_are_created_and_no_other_files(self, tmp_path):
        save(TRAJECTORIES["one run"](), tmp_path / "a" / "b" / "run")
        assert os.listdir(tmp_path / "a" / "b") == ["run"]

    def test_path_as_text(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        save(TRAJECTORIES["one run"](), "run")
        assert load("run").sizes["step"] == 50

    def test_files_of_an_interrupted_save_are_replaced(self, tmp_path):
        (tmp_path / "run.partial").mkdir()
        (tmp_path / "run.partial" / "junk").write_text("junk")
        save(TRAJECTORIES["one run"](), tmp_path / "run")
        assert os.listdir(tmp_path) == ["run"]

    @pytest.mark.parametrize("kind", ["store", "folder", "file"])
    def test_nothing_is_overwritten(self, kind, tmp_path):
        target, trajectory = tmp_path / "run", TRAJECTORIES["one run"]()
        if kind == "store":
            save(trajectory, target)
        elif kind == "folder":
            target.mkdir()
        else:
            target.write_text("precious")
        with pytest.raises(ValueError, match=r"^path must not exist yet, got .*run"):
            save(TRAJECTORIES["no rows"](), target)
        if kind == "store":
            assert_same(load(target), trajectory)
        elif kind == "file":
            assert target.read_text() == "precious"

    def test_a_saved_trajectory_is_replaced_if_asked(self, tmp_path, monkeypatch):
        first, second = TRAJECTORIES["one run"](), TRAJECTORIES["no rows"]()
        save(first, tmp_path / "run", overwrite=True)
        # the old one is kept if the new one cannot be written
        with monkeypatch.context() as patched:
            patched.setattr(xr.Dataset, "to_zarr", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                save(second, tmp_path / "run", overwrite=True)
        assert_same(load(tmp_path / "run"), first)
        save(second, tmp_path / "run", overwrite=True)
        assert_same(load(tmp_path / "run"), second)
        assert os.listdir(tmp_path) == ["run"]

    def test_a_link_to_a_trajectory_stays_a_link(self, tmp_path):
        save(TRAJECTORIES["one run"](), tmp_path / "run")
        (tmp_path / "link").symlink_to(tmp_path / "run")
        second = TRAJECTORIES["no rows"]()
        save(second, tmp_path / "link", overwrite=True)
        assert (tmp_path / "link").is_symlink()
        assert_same(load(tmp_path / "run"), second)

    @pytest.mark.parametrize("kind", ["other store", "store with notes"])
    def test_other_stores_are_kept(self, kind, tmp_path):
        target = tmp_path / "run"
        if kind == "other store":
            xr.Dataset({"a": ("step", [1.0])}).to_zarr(target, consolidated=False)
        else:
            save(TRAJECTORIES["one run"](), target)
            (target / "notes.txt").write_text("precious")
        before = sorted(target.rglob("*"))
        with pytest.raises(ValueError, match=r"^path must be a saved trajectory or not exist yet"):
            save(TRAJECTORIES["no rows"](), target, overwrite=True)
        assert sorted(target.rglob("*")) == before

    @pytest.mark.parametrize("kind", ["folder", "file"])
    def test_nothing_else_is_replaced(self, kind, tmp_path):
        if kind == "file":
            (tmp_path / "run").write_text("precious")
        else:
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "config.json").write_text("precious")
        with pytest.raises(ValueError, match=r"^path must be a saved trajectory or not exist yet, got .*run"):
            save(TRAJECTORIES["one run"](), tmp_path / "run", overwrite=True)
        assert "precious" in (tmp_path / "run" / ("" if kind == "file" else "config.json")).read_text()

    @pytest.mark.parametrize("value", [None, 3, np.ones(3), xr.DataArray([1.0])], ids=str)
    def test_no_trajectory(self, value, tmp_path):
        with pytest.raises(TypeError, match=rf"^trajectory must be an xarray\.Dataset, got {type(value).__name__}"):
            save(value, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("kind", ["nothing", "empty folder", "file", "half a store"])
    def test_loading_something_else(self, kind, tmp_path):
        target = tmp_path / "run"
        if kind == "empty folder":
            target.mkdir()
        elif kind == "file":
            target.write_text("no trajectory")
        elif kind == "half a store":
            (target / "norm").mkdir(parents=True)
        with pytest.raises(ValueError, match=r"^path must be.*folder, got .*run"):
            load(target)

    @pytest.mark.parametrize("schema", [SCHEMA + 1, None, "1"])
    def test_unknown_schemas_are_refused(self, schema, tmp_path):
        attributes = {} if schema is None else {"schema": schema}
        save(xr.Dataset({"norm": ("step", [1.0])}, attrs=attributes), tmp_path / "run")
        with pytest.raises(ValueError, match=rf"path must hold a trajectory of schema <= {SCHEMA}, got {schema!r} in"):
            load(tmp_path / "run")


def step_records(count):
    """Records with different numbers in every field."""
    records = np.zeros(count, dtype=step_record(len(GROUPS)))
    for number, name in enumerate(records.dtype.names):
        shape = records[name].shape
        records[name] = number + np.arange(1, 1 + records[name].size).reshape(shape) / 1000
    records["lr"] = 0.5
    return records


def evaluation_records(steps):
    records = np.zeros(len(steps), dtype=EVALUATION_RECORD)
    for number, name in enumerate(EVALUATION_RECORD.names):
        records[name] = number + np.arange(len(steps)) / 10
    records["eval_step"] = steps
    return records


@pytest.fixture
def folder(tmp_path):
    """Write the files of a run folder without training."""

    def write(*, rows=10, evaluated=(0, 4, 8), status=None, schema=SCHEMA, attributes=None, epochs_per_step=0.25):
        path = tmp_path / "run"
        path.mkdir()
        attributes = {"lr": 0.5, "wd": 0.01, "optimizer": "SGD()"} if attributes is None else attributes
        config = {
            "schema": schema,
            "groups": GROUPS,
            "attributes": attributes,
            "first_norm": FIRST_NORM,
            "epochs_per_step": epochs_per_step,
        }
        write_json(path / "config.json", config)
        (path / "steps.log").write_bytes(step_records(rows).tobytes())
        (path / "evaluations.log").write_bytes(evaluation_records(evaluated).tobytes())
        (path / "lock").touch()
        if status is not None:
            write_json(path / "status.json", status)
        return path

    return write


def check_rows(run, rows):
    """Check that the rows of a loaded run are those that `folder` wrote."""
    records = step_records(rows)
    assert run.sizes["step"] == rows
    assert run.step.values.tolist() == list(range(rows))
    for name in records.dtype.names:
        if name not in ("lr", "next_norm"):
            np.testing.assert_array_equal(run[name], records[name], err_msg=name)
            assert run[name].dims == (("step", "group") if name.startswith("group_") else ("step",))
    np.testing.assert_allclose(run.effective_lr, 0.5 / run.norm**2, rtol=1e-15)
    assert run.final_norm.item() == (records["next_norm"][-1] if rows else FIRST_NORM)
    assert run.status_step.item() == rows


class TestRunFolder:
    def test_file_names_are_the_layout(self):
        assert (CONFIG, STATUS, STEPS, EVALS, STORE, LOCK) == (
            "config.json",
            "status.json",
            "steps.log",
            "evaluations.log",
            "trajectory.zarr",
            "lock",
        )

    def test_running(self, folder):
        path = folder(status={"status": "running"})
        with filelock.FileLock(path / "lock"):
            assert is_locked(path)
            run = load(path)
        assert run.status.item() == "running"
        check_rows(run, 10)

    def test_killed(self, folder):
        path = folder(status={"status": "running"})
        run = load(path)
        assert run.status.item() == "interrupted"
        check_rows(run, 10)
        # reading leaves the folder free
        assert not is_locked(path)

    def test_killed_before_its_status_was_written(self, folder):
        assert load(folder()).status.item() == "interrupted"

    def test_killed_and_its_lock_removed(self, folder):
        path = folder(status={"status": "running"})
        (path / "lock").unlink()
        assert load(path).status.item() == "interrupted"

    def test_interrupted(self, folder):
        run = load(folder(status={"status": "interrupted", "status_step": 10}))
        assert run.status.item() == "interrupted"
        check_rows(run, 10)

    @pytest.mark.parametrize("word", ["complete", "diverged", "collapsed"])
    @pytest.mark.parametrize("steps", [10, 6, 0])
    def test_finished_keeps_the_steps_of_its_status(self, folder, word, steps):
        run = load(folder(status={"status": word, "status_step": steps}))
        assert run.status.item() == word
        check_rows(run, steps)
        assert run.eval_step.values.tolist() == [step for step in (0, 4, 8) if step <= steps]

    def test_a_locked_finished_run_is_complete(self, folder):
        path = folder(status={"status": "complete", "status_step": 10})
        with filelock.FileLock(path / "lock"):
            assert load(path).status.item() == "complete"

    @pytest.mark.parametrize("cut", [1, 8, 127])
    def test_an_incomplete_record_is_left_out(self, folder, cut):
        path = folder(status={"status": "running"}, evaluated=(0, 4, 9, 10))
        size = step_record(len(GROUPS)).itemsize
        with open(path / "steps.log", "r+b") as file:
            file.truncate(10 * size - min(cut, size - 1))
        run = load(path)
        check_rows(run, 9)
        assert count_steps(path) == 9
        # the evaluation at step 10 belongs to a lost step
        assert run.eval_step.values.tolist() == [0, 4, 9]

    @pytest.mark.parametrize("rows", [10, 1, 0])
    def test_the_store_of_a_run_holds_what_its_logs_hold(self, folder, rows):
        path = folder(rows=rows, evaluated=(0,), status={"status": "complete", "status_step": rows})
        from_logs = load(path)
        store_run(path)
        for name in (STEPS, EVALS):
            (path / name).unlink()
        assert_same(load(path), from_logs)

    @pytest.mark.parametrize("field", ["attributes", "groups", "first_norm", "epochs_per_step"])
    def test_settings_without_a_needed_field_are_damaged(self, folder, field):
        path = folder()
        config = read_json(path / CONFIG, "path")
        del config[field]
        write_json(path / CONFIG, config)
        with pytest.raises(ValueError, match=rf"path must .*{field}"):
            load(path)

    def test_an_incomplete_evaluation_is_left_out(self, folder):
        path = folder(evaluated=(0, 4, 8))
        with open(path / "evaluations.log", "r+b") as file:
            file.truncate(3 * EVALUATION_RECORD.itemsize - 1)
        assert load(path).eval_step.values.tolist() == [0, 4]

    def test_evaluations_beyond_the_last_row_are_left_out(self, folder):
        run = load(folder(evaluated=(0, 5, 10, 11, 50)))
        assert run.eval_step.values.tolist() == [0, 5, 10]
        expected = evaluation_records((0, 5, 10, 11, 50))[:3]
        for name in EVALUATION_RECORD.names[1:]:
            assert run[name].dims == ("eval_step",)
            np.testing.assert_array_equal(run[name], expected[name])

    def test_without_evaluations(self, folder):
        path = folder(evaluated=())
        assert "eval_step" not in load(path).dims
        (path / "evaluations.log").unlink()
        assert "train_loss" not in load(path)

    @pytest.mark.parametrize("missing", [True, False])
    def test_without_rows(self, folder, missing):
        path = folder(rows=0, evaluated=(0,))
        if missing:
            (path / "steps.log").unlink()
        run = load(path)
        check_rows(run, 0)
        assert run.eval_step.values.tolist() == [0]
        assert count_steps(path) == 0

    def test_it_follows_the_contract(self, folder):
        run = load(folder())
        assert run.group.values.tolist() == GROUPS
        np.testing.assert_array_equal(run.epoch, 0.25 * np.arange(10))
        assert run.attrs["source"] == "training"
        assert run.attrs["schema"] == SCHEMA
        assert (run.attrs["lr"], run.attrs["wd"], run.attrs["optimizer"]) == (0.5, 0.01, "SGD()")
        assert "lr" not in run.variables
        for name in run.variables:
            assert (run[name].attrs["units"], run[name].attrs["long_name"]) == VARIABLES[name], name

    def test_a_schedule_is_a_variable(self, folder):
        run = load(folder(attributes={"wd": 0.01}))
        assert run.lr.values.tolist() == [0.5] * 10
        assert "lr" not in run.attrs

    def test_without_epochs(self, folder):
        assert "epoch" not in load(folder(epochs_per_step=None)).variables

    @pytest.mark.parametrize("schema", [SCHEMA + 1, 99, None, "1"])
    def test_newer_schemas_are_refused(self, folder, schema):
        with pytest.raises(ValueError, match=rf"path must hold a trajectory of schema <= {SCHEMA}, got {schema!r} in"):
            load(folder(schema=schema))

    def test_the_store_of_a_finished_run_is_preferred(self, folder):
        path = folder(status={"status": "complete", "status_step": 10})
        trajectory = load(path)
        save(trajectory, path / "trajectory.zarr")
        (path / "steps.log").unlink()
        assert_same(load(path), trajectory)

    def test_a_loaded_run_can_be_saved(self, folder, tmp_path):
        run = load(folder())
        save(run, tmp_path / "saved")
        assert_same(load(tmp_path / "saved"), run)


@pytest.mark.parametrize("rows", [0, 1, BLOCK_RECORDS - 1, BLOCK_RECORDS, BLOCK_RECORDS + 1])
@pytest.mark.parametrize("damage", [False, True])
def test_the_number_of_records_is_that_of_the_sound_ones(tmp_path, rows, damage):
    record, path = record_with_check(EVALUATION_RECORD), tmp_path / "log"
    data = bytearray(records_with_checks(np.zeros(rows, EVALUATION_RECORD), 0).tobytes())
    if damage and rows:
        data[record.itemsize * (rows // 2)] ^= 1
    path.write_bytes(data)
    sound = rows // 2 if damage else rows
    assert count_records(path, record) == len(read_records(path, record)) == sound


class TestPieces:
    def test_only_complete_records_are_read(self, tmp_path):
        log, records = tmp_path / "log", step_records(5)
        log.write_bytes(records.tobytes() + b"half a record")
        np.testing.assert_array_equal(read_records(log, records.dtype), records)

    def test_records_have_no_padding(self):
        # seven numbers of the step and three for each group, 8 bytes each
        for groups in (0, 1, 5):
            assert step_record(groups).itemsize == 8 * (7 + 3 * groups)
        assert EVALUATION_RECORD.itemsize == 8 * 5

    def test_json_is_written_atomically(self, tmp_path):
        target = tmp_path / "status.json"
        write_json(target, {"status": "running"})
        with pytest.raises(TypeError):
            write_json(target, {"status": object()})
        assert read_json(target, "path") == {"status": "running"}
        write_json(target, {"status": "complete"})
        assert read_json(target, "path") == {"status": "complete"}
        assert os.listdir(tmp_path) == ["status.json"]

    def test_locks(self, tmp_path):
        assert not is_locked(tmp_path)
        with filelock.FileLock(tmp_path / LOCK):
            assert is_locked(tmp_path)
        assert not is_locked(tmp_path)
