"""Damaged and hostile files of runs, sweeps, models and checkpoints: an error that names the file, or a warning.

Every number that is read is either the stored one, or it is missing with a warning. Nothing waits for ever, and no
other error than ValueError appears.
"""

import json
import os
import pickle
import shutil
import signal
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import empirical
import simulate
import theory
from empirical.runs.folder import read_checkpoint
from empirical.runs.preparation import prepare
from empirical.runs.snapshots import networks_at
from simulate._files import DamagedFileError, write_json

CONFIG = empirical.RunConfig(lr=0.5, wd=0.02, width=4, steps=24, evaluate_every=8)
READERS = {
    "finished run": simulate.load,
    "killed run": simulate.load,
    "saved batch": simulate.load,
    "sweep": lambda path: empirical.open_sweep(path, traces=True).load(),
    "model": simulate.PeriodModel.load,
}
STORED = Path(__file__).parents[1] / "stored" / "schema_3"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Intact files, by the kind of what they hold."""
    base = tmp_path_factory.mktemp("originals")
    empirical.train(CONFIG, base / "finished run", progress=False)
    shutil.copytree(base / "finished run", base / "killed run")
    shutil.rmtree(base / "killed run" / "trajectory.zarr")
    (base / "killed run" / "status.json").unlink()
    batch = simulate.norm_map([0.1, 0.2], theory.Cosine(0.1, 0.01, steps=40), 2.0, norm=1.0, steps=40)
    simulate.save(batch, base / "saved batch")
    shutil.copytree(STORED / "sweep", base / "sweep")
    simulate.PeriodModel.reference().save(base / "model")
    return base


@pytest.fixture
def place(originals, tmp_path):
    """Give a fresh copy of one kind of files, and what is read from the intact ones."""

    def copy(kind):
        source, target = originals / kind, tmp_path / kind
        if target.is_dir():
            shutil.rmtree(target)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        return target, READERS[kind](target)

    return copy


@contextmanager
def limit(seconds):
    def stop(*_):
        raise TimeoutError(f"no answer after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def files_of(path):
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name != "lock")


def check_reading(kind, path, intact):
    """Read damaged files. Return "same", "warning" or "error"; fail if a number is wrong or the error is no answer."""
    with warnings.catch_warnings(record=True) as caught, limit(60):
        warnings.simplefilter("always")
        try:
            read = READERS[kind](path)
        except ValueError as error:
            message = str(error)
            assert message.startswith("path "), message
            assert str(path) in message, message
            assert "\n" not in message, message
            return "error"
    is_reported = any(str(path) in str(one.message) for one in caught)
    if read.identical(intact) if isinstance(intact, xr.Dataset) else read == intact:
        return "warning" if is_reported else "same"
    # a run whose summary is lost counts as not ended, and is done again
    lost = read.status == "pending" if kind == "sweep" else xr.DataArray(False)
    assert lost.any() or is_reported, f"a difference without a warning: {read} {intact}"
    # what is left out is missing, and all that is there is right
    for name in ("norm", "grad_norm", "loss", "train_loss", "test_error"):
        if name in read:
            part = read[name].isel({d: slice(n) for d, n in intact[name].sizes.items() if d in read[name].dims})
            same = intact[name].isel({dim: slice(size) for dim, size in part.sizes.items()})
            if "step" in part.dims or "eval_step" in part.dims:
                assert ((part == same) | np.isnan(part)).all()
    return "warning"


def flip(file, generator):
    content = bytearray(file.read_bytes())
    position = int(generator.integers(len(content)))
    content[position] ^= 1 << int(generator.integers(8))
    file.write_bytes(content)


@pytest.mark.parametrize(
    "flips", [25, pytest.param(500, marks=[pytest.mark.acceptance, pytest.mark.timeout(3600)])], ids=["few", "many"]
)
@pytest.mark.parametrize("kind", READERS)
def test_a_flipped_bit_is_noticed(place, kind, flips):
    path, intact = place(kind)
    generator, outcomes = np.random.default_rng(0), []
    files = [file for file in files_of(path) if file.suffix != ".pt" and file.stat().st_size]
    if kind == "finished run":
        files = files_of(path / "trajectory.zarr")  # the rest is not read
    for _ in range(flips):
        file = files[int(generator.integers(len(files)))]
        before = file.read_bytes()
        flip(file, generator)
        outcomes.append(check_reading(kind, path, intact))
        file.write_bytes(before)
    # of a sweep one description of each kind is read, and not what the summaries hold
    assert outcomes.count("same") <= (0.8 if kind == "sweep" else 0.2) * flips


@pytest.mark.parametrize("flips", [60, pytest.param(1000, marks=pytest.mark.acceptance)], ids=["few", "many"])
def test_a_flipped_bit_of_a_checkpoint_is_noticed(place, flips):
    path, _ = place("finished run")
    file, start = path / f"checkpoint-{CONFIG.steps:012d}.pt", prepare(CONFIG).start
    step, state, random_state = read_checkpoint(file, start)
    generator, before, outcomes = np.random.default_rng(0), file.read_bytes(), []
    for _ in range(flips):
        flip(file, generator)
        read = read_checkpoint(file, start)
        outcomes.append(read is None)
        if read is not None:
            assert read[0] == step
            assert torch.equal(read[1].weights, state.weights)
            assert torch.equal(read[2], random_state)
        file.write_bytes(before)
    assert any(outcomes)


def test_a_checkpoint_of_an_unknown_form_gives_no_warning(place):
    path, _ = place("finished run")
    file, start = path / f"checkpoint-{CONFIG.steps:012d}.pt", prepare(CONFIG).start
    content = file.read_bytes()
    # the pickle protocol, of which PyTorch warns
    assert content.count(b"\x80\x02") >= 1
    file.write_bytes(content.replace(b"\x80\x02", b"\x80\x1f", 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_checkpoint(file, start)
    assert read is None or read[0] == CONFIG.steps


@pytest.mark.parametrize("flips", [8, pytest.param(200, marks=pytest.mark.acceptance)], ids=["few", "many"])
def test_damaged_networks_are_trained_again(tmp_path, flips):
    steps, generator = [5, 10], np.random.default_rng(0)
    intact = [network.state_dict() for network in networks_at(CONFIG, steps, tmp_path, progress=False)]
    files = [next(tmp_path.glob(f"*-step-{step}.pt")) for step in steps]
    for number in range(flips + 1):
        file = files[number % 2]
        if number == flips:
            # without a digest, as earlier versions wrote it, and with other numbers
            torch.save(intact[1 - number % 2], file)
        else:
            flip(file, generator)
        for network, expected in zip(networks_at(CONFIG, steps, tmp_path, progress=False), intact, strict=True):
            numbers = network.state_dict()
            assert all(torch.equal(numbers[name], expected[name]) for name in expected)


def bomb(file):
    file.write_text("[" * 200_000)


def not_text(file):
    file.write_bytes(b"\xff\xfe" + os.urandom(50))


def empty(file):
    file.write_bytes(b"")


def half(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def missing(file):
    file.unlink()


def pipe(file):
    file.unlink()
    os.mkfifo(file)


def folder(file):
    file.unlink()
    file.mkdir()


def number(file):
    file.write_text("5")


@pytest.mark.parametrize("damage", [bomb, not_text, empty, half, missing, pipe, folder, number])
@pytest.mark.parametrize("kind", READERS)
def test_damaged_files_are_named(place, kind, damage):
    path, intact = place(kind)
    names = [file.relative_to(path) for file in files_of(path)]
    if kind in ("finished run", "sweep", "saved batch"):
        # one of each kind of file, and one chunk
        wanted = ("config.json", "status.json", "sweep.json", "summaries.log", "steps.log", "evaluations.log", "0")
        names = [name for name in names if name.name in wanted or name.as_posix().endswith("zarr/zarr.json")]
        names = list({name.name: name for name in names}.values())
    for name in names if path.is_dir() else [Path()]:
        if name.suffix == ".pt":
            continue
        damage(path / name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = check_reading(kind, path, intact)
        # an empty or missing log is that of a run that had no time to write
        assert outcome in ("error", "warning", "same"), (name, outcome)
        if path.is_dir():
            path, intact = place(kind)


FIELDS = {
    "status.json": [{"status_step": -5}, {"status_step": "x"}, {"status_step": True}, {"status": "excellent"}],
    "config.json": [
        {"first_norm": "x"},
        {"groups": {"a": 1}},
        {"attributes": []},
        {"epochs_per_step": "x"},
        {"schema": "x"},
        {"schema": 99},
        {"schema": None},
        {"config": 3},
        {"checked": 1},
    ],
}


@pytest.mark.parametrize(("name", "change"), [(name, change) for name in FIELDS for change in FIELDS[name]])
def test_fields_of_a_wrong_type_or_range_are_named(place, name, change):
    path, _ = place("finished run")
    shutil.rmtree(path / "trajectory.zarr")
    content = json.loads((path / name).read_text())
    write_json(path / name, {**content, **change})
    with pytest.raises(ValueError, match=r"^path must ") as caught:
        simulate.load(path)
    assert str(path) in str(caught.value)
    if name == "status.json":
        # the advice helps
        assert str(caught.value).endswith("Delete it, and the run counts as interrupted")
        (path / name).unlink()
        assert simulate.load(path).status.item() == "interrupted"


def test_the_error_survives_pickling(tmp_path):
    error = DamagedFileError("path", tmp_path, "a reason", "Some advice")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.path, copy.advice) == (str(error), tmp_path, "Some advice")


def test_a_removed_digest_is_missed(place):
    for kind, name in (("finished run", "config.json"), ("model", ""), ("sweep", "sweep.json")):
        path, intact = place(kind)
        if kind == "finished run":
            shutil.rmtree(path / "trajectory.zarr")
        content = json.loads((path / name).read_text())
        content.pop("digest")
        (path / name).write_text(json.dumps(content))
        assert check_reading(kind, path, intact) == "error"


def test_a_damaged_store_is_replaced_by_the_logs(place):
    path, intact = place("finished run")
    chunk = next((path / "trajectory.zarr" / "norm" / "c").iterdir())
    flip(chunk, np.random.default_rng(1))
    with pytest.warns(UserWarning, match=r"trajectory\.zarr' is damaged \(its digest is another\), and the logs"):
        run = simulate.load(path)
    xr.testing.assert_identical(run, intact)
    # the next command that may write renews the store
    with pytest.warns(UserWarning, match="is damaged"):
        empirical.train(CONFIG, path, progress=False)
    xr.testing.assert_identical(simulate.load(path), intact)
    # with a damaged log too, only the rows before the damage are left, and the run no longer counts as complete
    content = bytearray((path / "steps.log").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "steps.log").write_bytes(content)
    flip(chunk, np.random.default_rng(1))
    with pytest.warns(UserWarning, match="is damaged"):
        run = simulate.load(path)
    assert run.status.item() == "interrupted"
    assert 0 < run.sizes["step"] < 24
    np.testing.assert_array_equal(run.norm, intact.norm[: run.sizes["step"]])


def test_an_added_or_removed_file_of_a_store_is_noticed(place):
    path, _ = place("saved batch")
    (path / "norm" / "c" / "9").mkdir()
    (path / "norm" / "c" / "9" / "9").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^path must lead to intact files, but .*saved batch' is damaged: its digest"):
        simulate.load(path)
    path, _ = place("saved batch")
    next(file for file in (path / "norm" / "c").rglob("*") if file.is_file()).unlink()
    with pytest.raises(ValueError, match=r"is damaged: its files have other sizes"):
        simulate.load(path)


@pytest.mark.parametrize("log", ["steps.log", "evaluations.log"])
@pytest.mark.parametrize("changes", [{}, {"checked": False}], ids=["checked", "unchecked"])
def test_a_huge_log_is_refused_before_it_is_read(place, log, changes):
    path, _ = place("killed run")
    content = json.loads((path / "config.json").read_text())
    write_json(path / "config.json", {**content, **changes})
    with open(path / log, "r+b") as file:
        file.truncate(13 * 10**9)
    with (
        limit(20),
        pytest.raises(ValueError, match=r"^path must .*\.log' is damaged: it has \d+ records for 24 steps"),
    ):
        simulate.load(path)


def test_a_huge_log_of_unknown_length_is_refused(place):
    # without settings only the memory of the machine says what is too much
    path, _ = place("killed run")
    content = json.loads((path / "config.json").read_text())
    write_json(path / "config.json", {**content, "config": {}, "checked": False})
    with open(path / "steps.log", "r+b") as file:
        file.truncate(2**42)
    with limit(60), pytest.raises(ValueError, match=r"^path must leave rows that fit into memory"):
        simulate.load(path)


def test_checkpoints_without_digest_or_of_another_form_are_not_used(place):
    path, _ = place("finished run")
    file, start = path / f"checkpoint-{CONFIG.steps:012d}.pt", prepare(CONFIG).start
    content = torch.load(file, weights_only=True)
    torch.save({**content, "digest": ""}, file)
    assert read_checkpoint(file, start) is None
    torch.save({name: value for name, value in content.items() if name != "digest"}, file)
    assert read_checkpoint(file, start) is None
    torch.save([1, 2], file)
    assert read_checkpoint(file, start) is None
    torch.save(content, file)
    assert read_checkpoint(file, start) is not None
    wider = prepare(empirical.RunConfig(lr=0.5, wd=0.02, width=5, steps=24)).start
    assert read_checkpoint(file, wider) is None
    file.unlink()
    os.mkfifo(file)
    with limit(20):
        assert read_checkpoint(file, start) is None
    # the checkpoint before it is still there, so the run goes on and ends in the same place
    file.unlink()
    longer = empirical.RunConfig(lr=0.5, wd=0.02, width=4, steps=32, evaluate_every=8)
    continued = empirical.train(longer, path, progress=False)
    assert continued.sizes["step"] == 32
