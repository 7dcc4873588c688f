"""Failures of disks, files and other processes, each produced by the operating system."""

import contextlib
import dataclasses
import json
import os
import pickle
import resource
import shutil
import stat
import subprocess
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import simulate
from empirical import RunConfig, StorageError, resume, train
from empirical.runs import loop
from empirical.runs.folder import RunFolder
from empirical.runs.loop import train_runs
from simulate._files import write_json
from simulate.trajectories.folder import CONFIG, STATUS, STEPS, STORE, count_steps
from simulate.trajectories.log import BLOCK_RECORDS, count_records, record_with_check, step_record
from tests.processes import start_process

CONFIG_900 = RunConfig(lr=0.5, wd=0.01, width=8, steps=900, evaluate_every=100)
RECORD = record_with_check(step_record(2))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(CONFIG_900, tmp_path_factory.mktemp("whole") / "run")


@contextlib.contextmanager
def limit_file_size(size):
    """Limit files to `size` bytes: the operating system writes a part and then fails."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def make_killed_run(path, steps, config=CONFIG_900):
    """Make a folder like that of a process that was killed after `steps` steps."""
    train(dataclasses.replace(config, steps=steps), path)
    description = json.loads((path / CONFIG).read_text())
    description["config"]["steps"] = config.steps
    write_json(path / CONFIG, description)
    write_json(path / STATUS, {"status": "running"})
    shutil.rmtree(path / STORE)


@pytest.mark.parametrize("size", [30_000, 30_000 + RECORD.itemsize // 2, 50_123])
def test_no_space_for_the_log(tmp_path, whole, size):
    with (
        limit_file_size(size),
        pytest.raises(StorageError, match=r"File too large .*resume"),
    ):
        train(CONFIG_900, tmp_path / "run")
    partial = simulate.load(tmp_path / "run")
    assert partial.status.item() == "interrupted"
    # every record on disk is there
    assert partial.sizes["step"] == size // RECORD.itemsize
    xr.testing.assert_identical(partial.norm, whole.norm.isel(step=slice(partial.sizes["step"])))
    xr.testing.assert_identical(resume(tmp_path / "run"), whole)


def test_no_space_for_a_checkpoint(tmp_path):
    config = dataclasses.replace(CONFIG_900, width=64, steps=60)
    with limit_file_size(20_000), pytest.raises(StorageError, match="File too large"):
        train(config, tmp_path / "run")
    assert simulate.load(tmp_path / "run").sizes["step"] == 0
    xr.testing.assert_identical(resume(tmp_path / "run"), train(config))


def test_no_space_for_the_store(tmp_path, whole, monkeypatch):
    finish = RunFolder.finish

    def without_space(folder, *arguments):
        with limit_file_size(1000):
            finish(folder, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "finish", without_space)
        with pytest.raises(StorageError, match="File too large"):
            train(CONFIG_900, tmp_path / "run")
    assert not (tmp_path / "run" / STORE).exists()
    # the logs are complete
    np.testing.assert_array_equal(simulate.load(tmp_path / "run").norm, whole.norm)
    xr.testing.assert_identical(resume(tmp_path / "run"), whole)
    assert (tmp_path / "run" / STORE).is_dir()


def test_a_disk_that_is_full(tmp_path, whole):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500k", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user cannot mount a small disk")
    try:
        (disk / "ballast").write_bytes(bytes(100_000))
        # the check before the run passes; the disk fills up later
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(RunFolder, "check_space", lambda *_: (disk / "ballast").write_bytes(bytes(450_000)))
            with pytest.raises(StorageError, match="No space left on device"):
                train(CONFIG_900, disk / "run")
        (disk / "ballast").unlink()
        assert simulate.load(disk / "run").status.item() == "interrupted"
        xr.testing.assert_identical(resume(disk / "run"), whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_run_too_large_for_the_disk_is_rejected_before_it_begins(tmp_path):
    # 3e14 bytes
    huge = dataclasses.replace(CONFIG_900, steps=10**12)
    with pytest.raises(ValueError, match=r"out .*2\d\d TB.*run'"):
        train(huge, tmp_path / "run")
    with pytest.raises(ValueError, match=r"path .*run'"):
        simulate.load(tmp_path / "run")


@contextlib.contextmanager
def ordinary_user():
    """Act as an ordinary user, because permissions do not apply to the superuser."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("kind", ["new run in it", "run to be continued"])
def test_a_folder_that_cannot_be_written(whole, kind):
    place = Path(tempfile.mkdtemp(prefix="bnwd-test-"))
    try:
        path = place / "run"
        if kind == "run to be continued":
            make_killed_run(path, 300)
        for folder in (place, path):
            if folder.exists():
                folder.chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IROTH | stat.S_IXOTH)
        with (
            ordinary_user(),
            pytest.raises(ValueError, match=r"out .*Permission denied"),
        ):
            train(CONFIG_900, path)
        place.chmod(0o700)
        if kind == "run to be continued":
            path.chmod(0o700)
            assert simulate.load(path).sizes["step"] == 300
            xr.testing.assert_identical(resume(path), whole)
    finally:
        shutil.rmtree(place)


# damage to the last records: zeros, as after a crash of the file system; one bit; records in the wrong order
DAMAGES = {
    "zeros": lambda end: bytes(len(end)),
    "a bit": lambda end: end[:-200] + bytes([end[-200] ^ 1]) + end[-199:],
    "the check": lambda end: end[:-1] + bytes([end[-1] ^ 128]),
    "order": lambda end: end[RECORD.itemsize :] + end[: RECORD.itemsize],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_records_at_the_end_of_the_log_are_not_read(tmp_path, whole, damage):
    path = tmp_path / "run"
    make_killed_run(path, 300)
    log = path / STEPS
    content = log.read_bytes()
    end = 3 * RECORD.itemsize
    log.write_bytes(content[:-end] + DAMAGES[damage](content[-end:]))
    with pytest.warns(UserWarning, match=r"steps\.log' is damaged after 29\d records"):
        run = simulate.load(path)
    assert 297 <= run.sizes["step"] < 300
    xr.testing.assert_identical(run.norm, whole.norm.isel(step=slice(run.sizes["step"])))
    # resuming uses the checkpoint before the damage, not the one after it
    with pytest.warns(UserWarning, match="is damaged"):
        resumed = resume(path)
    xr.testing.assert_identical(resumed, whole)


@pytest.mark.parametrize("seed", range(5))
def test_any_changed_byte_of_a_log_is_detected(tmp_path, seed):
    generator = np.random.default_rng(seed)
    make_killed_run(tmp_path / "run", 40)
    log = tmp_path / "run" / STEPS
    content = bytearray(log.read_bytes())
    for _ in range(50):
        place = int(generator.integers(len(content)))
        before = content[place]
        content[place] ^= int(generator.integers(1, 256))
        log.write_bytes(content)
        assert count_records(log, RECORD) == place // RECORD.itemsize
        content[place] = before


def checkpoints(path):
    return sorted(path.glob("checkpoint-*.pt"))


@pytest.mark.parametrize("seed", range(5))
def test_a_checkpoint_with_a_changed_byte_is_skipped(tmp_path, whole, seed):
    generator, path = np.random.default_rng(seed), tmp_path / "run"
    make_killed_run(path, 300)
    newest = checkpoints(path)[-1]
    content = bytearray(newest.read_bytes())
    # in the weights
    at = content.index(torch.load(newest, weights_only=True)["weights"].numpy().tobytes())
    content[at + int(generator.integers(500))] ^= 1
    newest.write_bytes(content)
    xr.testing.assert_identical(resume(path), whole)


def test_a_run_without_an_intact_checkpoint_is_rejected_and_kept(tmp_path, whole):
    path = tmp_path / "run"
    make_killed_run(path, 300)
    for file in checkpoints(path):
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"out .*intact checkpoint"):
        resume(path)
    run = simulate.load(path)
    xr.testing.assert_identical(run.norm, whole.norm.isel(step=slice(300)))


class Trap:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_checkpoint_never_executes_code(tmp_path, whole, form):
    path, sprung = tmp_path / "run", tmp_path / "sprung"
    make_killed_run(path, 300)
    newest = checkpoints(path)[-1]
    if form == "pickle":
        newest.write_bytes(pickle.dumps({"step": 300, "weights": Trap(sprung)}, protocol=2))
    else:
        torch.save({"step": 300, "weights": Trap(sprung)}, newest)
    xr.testing.assert_identical(resume(path), whole)
    assert not sprung.exists()
    # check that the trap works
    torch.load(checkpoints(path)[0], weights_only=True)
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()


def train_until_halted(path, halted, ending, number):
    """Train until a file with this ending is renamed for the given time, then touch a file and wait to be killed."""
    rename, renamed = os.replace, []

    def replace(source, target):
        if str(target).endswith(ending):
            renamed.append(target)
            if len(renamed) == number:
                halted.touch()
                time.sleep(600)
        rename(source, target)

    os.replace = replace
    train(CONFIG_900, path, progress=False)


@pytest.mark.parametrize(
    ("ending", "number"),
    [(".pt", 1), (".pt", 2), ("config.json", 1), ("status.json", 1), ("status.json", 2), (".zarr", 1)],
)
def test_killed_between_writing_and_renaming_a_file(tmp_path, whole, ending, number):
    path, halted = tmp_path / "run", tmp_path / "run.halted"
    process = start_process(train_until_halted, path, halted, ending, number)
    while not halted.exists() and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert halted.exists(), "the run never wrote this file"
    if ending == ".zarr":
        # all steps are in the log
        np.testing.assert_array_equal(simulate.load(path).norm, whole.norm)
    if ending != "config.json":
        assert simulate.load(path).status.item() in ("interrupted", "complete")
    xr.testing.assert_identical(train(CONFIG_900, path), whole)
    assert (path / STORE).is_dir()
    assert not list(path.glob("*.partial"))


def train_for_a_long_time(path):
    train(dataclasses.replace(CONFIG_900, steps=10**6, engine="eager"), path, progress=False)


def test_two_processes_on_a_folder(tmp_path):
    path, messages = tmp_path / "run", tmp_path / "messages"
    process = start_process(train_for_a_long_time, path, messages=messages)
    try:
        while count_steps(path) < 50 and process.is_alive():
            time.sleep(0.01)
        with pytest.raises(ValueError, match=r"out .*another process"):
            resume(path)
        # the first process continues
        before = count_steps(path)
        while count_steps(path) <= before and process.is_alive():
            time.sleep(0.01)
        process.terminate()
        process.join()
        assert "Interrupted" in messages.read_text()
        assert simulate.load(path).status.item() == "interrupted"
    finally:
        process.kill()
        process.join()


def peak_memory(path, steps, monkeypatch):
    """Return the peak memory of a run until its trajectory is on disk."""
    monkeypatch.setattr(loop.simulate, "load", lambda _: None)
    tracemalloc.start()
    try:
        train(dataclasses.replace(CONFIG_900, steps=steps, evaluate_every=10_000), path, progress=False)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        monkeypatch.undo()


def check_memory(folder, steps, monkeypatch):
    train(dataclasses.replace(CONFIG_900, steps=10))
    peaks = [peak_memory(folder / str(n), n, monkeypatch) for n in (2 * BLOCK_RECORDS, steps)]
    assert peaks[1] < 1.1 * peaks[0]
    run = simulate.load(folder / str(steps))
    assert run.sizes["step"] == steps
    # the store, which is written in parts, equals the log
    in_log = simulate.load(folder / str(steps))
    shutil.rmtree(folder / str(steps) / STORE)
    xr.testing.assert_identical(in_log, simulate.load(folder / str(steps)))


def test_a_long_run_takes_no_more_memory_than_a_short_one(tmp_path, monkeypatch):
    check_memory(tmp_path, 3 * BLOCK_RECORDS, monkeypatch)


@pytest.mark.acceptance
def test_a_million_steps_take_no_more_memory_than_a_short_run(tmp_path, monkeypatch):
    check_memory(tmp_path, 10**6, monkeypatch)


@pytest.mark.parametrize("engine", ["eager", "kernel", "replicas"])
def test_the_cost_is_announced_before_the_first_step_and_leaves_no_trace(tmp_path, engine):
    config, costs = dataclasses.replace(CONFIG_900, steps=200, engine=engine), []

    def announce(cost):
        costs.append(cost)
        assert count_steps(tmp_path / "run") == 0

    run = train(config, tmp_path / "run", announce=announce)
    (cost,) = costs
    assert 0 < cost.seconds < 600
    written = sum(file.stat().st_size for file in (tmp_path / "run").rglob("*") if file.is_file())
    assert written <= cost.disk
    xr.testing.assert_identical(run, train(config, tmp_path / "other"))
    for one, other in zip(checkpoints(tmp_path / "run"), checkpoints(tmp_path / "other"), strict=True):
        assert torch.load(one, weights_only=True)["digest"] == torch.load(other, weights_only=True)["digest"]


def test_delayed_records_give_the_same_files(tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG_900, steps=300, evaluate_every=10)
    waiting = []
    append = RunFolder.flush
    monkeypatch.setattr(RunFolder, "flush", lambda folder: (waiting.append(len(folder._waiting)), append(folder)))

    def count_writes(name, pace):
        waiting.clear()
        train_runs([config], [tmp_path / name], [0], lambda config, run: None, lambda: False, pace)
        return sum(count > 0 for count in waiting)

    assert count_writes("at once", 0.0) > 30
    # at the first checkpoint and at the last
    assert count_writes("late", 1000.0) == 2
    files = [sorted(p.name for p in (tmp_path / name).iterdir()) for name in ("at once", "late")]
    assert files[0] == files[1]
    for name in ("steps.log", "evaluations.log"):
        assert (tmp_path / "at once" / name).read_bytes() == (tmp_path / "late" / name).read_bytes()


def test_a_run_killed_after_its_last_checkpoint_keeps_its_last_evaluation(tmp_path):
    # the last evaluation is not a regular one
    config = dataclasses.replace(CONFIG_900, steps=150)
    make_killed_run(tmp_path / "run", 150, config)
    resumed = resume(tmp_path / "run")
    assert resumed.eval_step.values.tolist() == [0, 100, 150]
    assert resumed.identical(train(config))
