import dataclasses
import json
import os
import signal
import time

import filelock
import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import empirical
import simulate
import theory
from empirical import RunConfig, load_model, resume, train
from empirical.runs import loop
from empirical.runs.folder import RunFolder
from empirical.runs.preparation import ALL_TRAINED
from simulate._files import write_json
from simulate.trajectories.folder import CONFIG, STATUS, STEPS, STORE, count_steps
from tests.processes import start_process

CONFIG_40 = RunConfig(lr=0.5, wd=0.01, width=8, steps=40, evaluate_every=10)


def test_the_trajectory_follows_the_contract(tmp_path):
    run = train(CONFIG_40, tmp_path / "run")
    assert run.sizes["step"] == 40
    assert run.status.item() == "complete"
    assert run.status_step.item() == 40
    assert run.attrs["lr"] == 0.5
    assert run.attrs["wd"] == 0.01
    assert run.attrs["source"] == "training"
    assert run.attrs["scale_invariant"]
    # the config names the engine that was used
    assert RunConfig.from_dict(json.loads(run.attrs["config"])) == dataclasses.replace(CONFIG_40, engine="kernel")
    assert run.eval_step.values.tolist() == [0, 10, 20, 30, 40]
    assert run.group.values.tolist() == ["linear1.weight", "linear2.weight"]
    np.testing.assert_allclose(run.effective_lr, 0.5 / run.norm**2)
    np.testing.assert_allclose((run.group_norm**2).sum("group"), run.norm**2)
    np.testing.assert_allclose(run.epoch, run.step / 22)
    for name in run.variables:
        if name not in ("group", "status"):
            assert run[name].attrs["units"], name
            assert run[name].attrs["long_name"], name
    xr.testing.assert_identical(run, simulate.load(tmp_path / "run"))
    # rows follow each other: the norm after a step is the norm before the next one (float32 weights, float64 sums)
    following = np.append(run.norm.values[1:], run.final_norm)
    np.testing.assert_allclose(simulate.replay(run).norm.values[1:], following[:-1], rtol=1e-6)


def test_zero_steps():
    run = train(dataclasses.replace(CONFIG_40, steps=0))
    assert run.sizes["step"] == 0
    assert run.final_norm.item() == train(dataclasses.replace(CONFIG_40, steps=1)).norm.values[0]


def test_a_schedule_is_recorded_and_followed():
    schedule = theory.Cosine(0.5, 0.1, steps=40)
    run = train(dataclasses.replace(CONFIG_40, lr=schedule))
    np.testing.assert_array_equal(run.lr, schedule(np.arange(40)))
    assert abs(simulate.replay(run).norm / run.norm - 1).max() < 1e-6


@pytest.mark.parametrize("optimizer", [theory.SGD(), theory.SGD(momentum=0.9), theory.AdamW(dim=576)], ids=repr)
def test_a_longer_run_continues_a_shorter_one(tmp_path, optimizer):
    config = dataclasses.replace(CONFIG_40, lr=0.05, optimizer=optimizer)
    whole = train(dataclasses.replace(config, steps=75), tmp_path / "whole")
    train(dataclasses.replace(config, steps=33), tmp_path / "parts")
    continued = train(dataclasses.replace(config, steps=75), tmp_path / "parts")
    xr.testing.assert_identical(continued, whole)


def test_a_shorter_run_gives_the_first_rows_of_a_longer_one(tmp_path):
    longer = train(CONFIG_40, tmp_path / "run")
    shorter = train(dataclasses.replace(CONFIG_40, steps=15), tmp_path / "run")
    assert shorter.sizes["step"] == shorter.status_step.item() == 15
    assert shorter.final_norm.item() == train(dataclasses.replace(CONFIG_40, steps=15)).final_norm.item()
    xr.testing.assert_identical(train(CONFIG_40, tmp_path / "run"), longer)


def test_without_a_folder_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    train(dataclasses.replace(CONFIG_40, steps=2))
    assert list(tmp_path.iterdir()) == []


def test_another_run_in_the_folder_is_refused_and_kept(tmp_path):
    first = train(CONFIG_40, tmp_path / "run")
    with pytest.raises(ValueError, match=r"wd=0.01.*0.02"):
        train(dataclasses.replace(CONFIG_40, wd=0.02), tmp_path / "run")
    xr.testing.assert_identical(simulate.load(tmp_path / "run"), first)


def test_a_foreign_folder_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"out .*new or empty"):
        train(CONFIG_40, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_as_folder_is_rejected(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"out .*file"):
        train(CONFIG_40, tmp_path / "file")


def test_a_folder_in_use_is_refused(tmp_path):
    train(CONFIG_40, tmp_path / "run")
    with filelock.FileLock(tmp_path / "run" / "lock"), pytest.raises(ValueError, match=r"out .*another process"):
        train(dataclasses.replace(CONFIG_40, steps=50), tmp_path / "run")


def test_bad_settings_write_nothing(tmp_path):
    for config, match in (
        (dataclasses.replace(CONFIG_40, batch_size=5000), "batch_size .*1437.*5000"),
        (dataclasses.replace(CONFIG_40, device="abacus"), "device .*abacus"),
        ("a config", "config .*RunConfig"),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["log cut in a record", "store removed", "last checkpoint damaged"])
def test_damage_of_a_killed_run_is_repaired(tmp_path, damage):
    whole = train(CONFIG_40, tmp_path / "whole")
    path = tmp_path / "run"
    train(dataclasses.replace(CONFIG_40, steps=25), path)
    description = json.loads((path / CONFIG).read_text())
    description["config"]["steps"] = 40
    write_json(path / CONFIG, description)
    write_json(path / STATUS, {"status": "running"})
    if damage == "log cut in a record":
        with open(path / STEPS, "ab") as file:
            file.write(b"half a record")
    elif damage == "last checkpoint damaged":
        last = sorted(path.glob("checkpoint-*.pt"))[-1]
        last.write_bytes(last.read_bytes()[:100])
    # a store that a killed process left would hide the log
    for file in (path / STORE).rglob("*"):
        if file.is_file():
            file.unlink()
    for folder in sorted((path / STORE).rglob("*"), reverse=True):
        folder.rmdir()
    (path / STORE).rmdir()
    assert simulate.load(path).status.item() == "interrupted"
    xr.testing.assert_identical(resume(path), whole)


LONG = RunConfig(lr=0.5, wd=0.01, width=8, steps=3000, evaluate_every=500, engine="eager")
# each takes some seconds
KINDS = {
    "eager": LONG,
    "kernel, mlp": dataclasses.replace(LONG, engine="kernel", width=64, steps=25_000, evaluate_every=5000),
    "kernel, convnet": dataclasses.replace(LONG, engine="kernel", model="convnet", width=4, steps=3000),
}


def train_with_frequent_checkpoints(path, config):
    loop.CHECKPOINT_SECONDS = 0.3
    torch.set_num_threads(1)
    train(config, path, progress=False)


def wait_for_steps(path, count, process):
    while count_steps(path) < count and process.is_alive():
        time.sleep(0.005)


def check_that_kills_leave_no_trace(folder, config, kills):
    generator, path = np.random.default_rng(kills), folder / "run"
    for target in np.sort(generator.integers(config.steps // 100, config.steps * 4 // 5, kills)):
        process = start_process(train_with_frequent_checkpoints, path, config)
        wait_for_steps(path, target, process)
        # at any moment: in a step, while a log or a checkpoint is written
        time.sleep(generator.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run was over before it was killed"
        partial = simulate.load(path)
        assert partial.status.item() == "interrupted"
        assert partial.sizes["step"] >= target
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        resumed = resume(path)
        whole = train(config, folder / "whole")
    finally:
        torch.set_num_threads(threads)
    xr.testing.assert_identical(resumed, whole)
    xr.testing.assert_identical(partial.norm, whole.norm.isel(step=slice(partial.sizes["step"])))
    weights = [load_model(folder / name).state_dict() for name in ("run", "whole")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_gives_the_same_trajectory(tmp_path, kind):
    check_that_kills_leave_no_trace(tmp_path, KINDS[kind], 3)


@pytest.mark.acceptance
@pytest.mark.parametrize("kind", KINDS)
def test_killed_fifty_times_and_resumed_gives_the_same_trajectory(tmp_path, kind):
    check_that_kills_leave_no_trace(tmp_path, KINDS[kind], 50)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_every_step_and_names_its_folder(tmp_path, number):
    path, messages = tmp_path / "run", tmp_path / "messages"
    process = start_process(train_with_frequent_checkpoints, path, LONG, messages=messages)
    wait_for_steps(path, 300, process)
    os.kill(process.pid, number)
    process.join()
    message = messages.read_text()
    assert process.exitcode > 0
    assert "Interrupted" in message
    assert str(path) in message
    run = simulate.load(path)
    assert run.status.item() == "interrupted"
    # nothing is lost: the checkpoint is of the last step
    assert json.loads((path / STATUS).read_text())["status_step"] == run.sizes["step"]
    assert max(int(f.stem.split("-")[1]) for f in path.glob("checkpoint-*.pt")) == run.sizes["step"]


def test_a_running_run_can_be_read(tmp_path):
    path = tmp_path / "run"
    process = start_process(train_with_frequent_checkpoints, path, LONG)
    wait_for_steps(path, 100, process)
    run = simulate.load(path)
    assert run.status.item() == "running"
    assert run.sizes["step"] >= 100
    process.kill()
    process.join()


def test_overflow_ends_with_status_diverged_and_the_rows_before():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(50)
    with pytest.warns(UserWarning, match=r"model .*no scale-invariant"):
        run = train(RunConfig(lr=1.9e6, wd=1e-9, steps=100), model=model)
    assert run.status.item() == "diverged"
    assert run.sizes["step"] == run.status_step.item() < 100
    assert np.isfinite(run.norm).all()
    assert np.isfinite(run.final_norm)
    assert not run.attrs["scale_invariant"]
    assert run.group.values.tolist() == [ALL_TRAINED]


def test_vanishing_weights_end_with_status_collapsed():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(10, 64))

        def forward(self, x):
            return 0.0 * nn.functional.linear(x.flatten(1), self.weight)

    with pytest.warns(UserWarning, match=r"model .*no scale-invariant"):
        run = train(RunConfig(lr=1.0, wd=0.9, steps=200), model=Constant())
    assert run.status.item() == "collapsed"
    assert run.final_norm.item() ** 2 < torch.finfo(torch.float32).tiny
    assert run.sizes["step"] == run.status_step.item() < 200


def test_own_model_and_data(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16, eps=1e-12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))
    inputs, targets = np.random.default_rng(0).normal(size=(200, 6)), np.arange(200) % 3
    config = RunConfig(lr=0.2, wd=0.01, batch_size=20, steps=30, evaluate_every=10)
    before = [p.detach().clone() for p in model.parameters()]
    run = train(config, tmp_path / "run", model=model, data=(inputs, targets))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert run.group.values.tolist() == ["0.weight"]
    assert run.attrs["scale_invariant"]
    assert "test_loss" not in run or run.test_loss.isnull().all()
    assert abs(simulate.replay(run).norm / run.norm - 1).max() < 1e-5
    # dropout and running statistics are part of the state: continuing is exact
    train(dataclasses.replace(config, steps=17), tmp_path / "parts", model=model, data=(inputs, targets))
    continued = train(config, tmp_path / "parts", model=model, data=(inputs, targets))
    xr.testing.assert_identical(continued, run)
    net = load_model(tmp_path / "run", model=model, data=(inputs, targets))
    assert net[1].num_batches_tracked.item() == 30
    with pytest.raises(ValueError, match=r"model .*given"):
        resume(tmp_path / "run")
    with pytest.raises(ValueError, match="other data"):
        train(config, tmp_path / "run", model=model, data=(inputs + 1, targets))


def test_training_of_all_weights():
    config = dataclasses.replace(CONFIG_40, scale_invariant=False)
    run = train(config)
    assert run.group.values.tolist() == ["linear1.weight", "linear2.weight"]
    assert abs(simulate.replay(run).norm / run.norm - 1).max() < 1e-6
    frozen = train(dataclasses.replace(config, other_lr=0.0))
    assert not np.allclose(frozen.loss, run.loss)


def test_init_norm_is_the_norm_of_all_invariant_weights():
    assert train(dataclasses.replace(CONFIG_40, init_norm=2.5, steps=1)).norm[0].item() == pytest.approx(2.5, rel=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_loaded_model_gives_the_last_evaluation(tmp_path, dtype):
    run = train(dataclasses.replace(CONFIG_40, dtype=dtype), tmp_path / "run")
    net = load_model(tmp_path / "run")
    data = empirical.data.load_data("digits", getattr(torch, dtype), torch.device("cpu"))
    assert not net.training
    wrong = (net(data.test_inputs).argmax(1) != data.test_targets).double().mean().item()
    assert wrong == run.test_error.values[-1]
    with pytest.raises(ValueError, match=r"step .*\(0, 40\).*7"):
        load_model(tmp_path / "run", step=7)
    first = load_model(tmp_path / "run", step=0)
    norm = sum(p.double().norm() ** 2 for p in first.parameters() if p.requires_grad).sqrt().item()
    assert norm == pytest.approx(run.norm.values[0], rel=1e-6)


def test_runs_of_equal_seeds_are_equal_and_others_differ():
    first, again = train(CONFIG_40), train(CONFIG_40)
    xr.testing.assert_identical(first, again)
    assert not np.allclose(first.loss, train(dataclasses.replace(CONFIG_40, seed=1)).loss)
    assert not np.allclose(first.loss, train(dataclasses.replace(CONFIG_40, data_seed=1)).loss)


def test_a_trajectory_names_the_optimizer_with_the_number_of_measured_weights():
    config = dataclasses.replace(CONFIG_40, optimizer=theory.AdamW(dim=1, betas=(0.8, 0.9)), steps=3)
    run = train(config)
    assert run.attrs["optimizer"] == "AdamW(dim=576, betas=(0.8, 0.9))"
    assert RunConfig.from_dict(json.loads(run.attrs["config"])).optimizer == config.optimizer


def test_other_folders_are_rejected():
    for function in (resume, load_model):
        with pytest.raises(ValueError, match=r"path .*no such folder"):
            function("no such folder")


def test_training_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    train(dataclasses.replace(CONFIG_40, steps=3))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_that_never_began_leaves_nothing(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("mine", "new/er"):
        RunFolder(tmp_path / name).close()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["lock", "mine", "new"]
    train(CONFIG_40, tmp_path / "new" / "er")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX systems")
def test_signal_handlers_are_restored():
    before = signal.getsignal(signal.SIGINT)
    train(dataclasses.replace(CONFIG_40, steps=3))
    assert signal.getsignal(signal.SIGINT) is before
