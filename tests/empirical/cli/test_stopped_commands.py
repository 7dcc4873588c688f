"""Long commands are stopped at random times: no process stays, no step is lost, and the same command goes on."""

import concurrent.futures
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import simulate
from empirical import calibrate, calibration
from empirical.runs.folder import StorageError
from empirical.sweeps.sweep import SweepInterrupted, WorkersLostError
from simulate.trajectories.folder import count_steps

SWEEP = """
[run]
wd = 0.01
width = 16
steps = 20_000_000
[grid]
lr = [0.3, 0.5]
"""
CALIBRATE = ("calibrate", "--model", "mlp", "--width", "64", "--until", "periods=40", "--out", "model.json")
ENDLESS = {
    "train": ("train", "--width", "64", "--lr", "0.5", "--wd", "0.01", "--steps", "20000000", "--out", "run"),
    "sweep": ("sweep", "sweep.toml", "--out", "sweep"),
    "validate": ("validate", "--out", "report"),
    "figures": ("figures", "--out", "figures"),
    "claims": ("claims", "--name", "sgd-is-periodic", "--out", "claims"),
    "paper": ("paper", "figure-2", "--dataset", "digits", "--width", "4", "--samples", "1437", "--out", "paper"),
}
# steps that are written between two stops, at most seconds until all processes have ended
STEPS, SECONDS = 50, 10.0


def start(folder, command):
    return subprocess.Popen(
        [sys.executable, "-c", "from empirical.cli.main import run_command_line; run_command_line()", *command],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell lets background tests ignore Ctrl-C, and their child processes would inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def processes_of(session):
    """Living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, own = stat.read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(own) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found


def written_steps(folder):
    return {log.parent: count_steps(log.parent) for log in folder.rglob("steps.log")}


def saved_steps(folder):
    """Step of the last checkpoint of each run."""
    files = sorted(folder.rglob("checkpoint-*.pt"))
    return {file.parent: int(file.stem.partition("-")[2]) for file in files}


def stop_once(folder, command, number, delay):
    """Start a command, stop it with a signal when it has trained, and return its message; None if it ended before."""
    before, saved = written_steps(folder), saved_steps(folder)
    process = start(folder, command)
    while sum(written_steps(folder).values()) < sum(before.values()) + STEPS and process.poll() is None:
        time.sleep(0.1)
    time.sleep(delay)
    if process.poll() is not None:
        _, message = process.communicate()
        assert process.returncode == 0, message
        return None
    # Ctrl-C in a terminal reaches all processes
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    stopped = time.monotonic()
    _, message = process.communicate(timeout=60)
    assert process.returncode in (-number if number == signal.SIGKILL else 130, 0), message
    # workers may complain about the death of the command that started them
    assert number == signal.SIGKILL or "Traceback" not in message
    while left := processes_of(process.pid):
        assert time.monotonic() - stopped < SECONDS, left
        time.sleep(0.1)
    after = written_steps(folder)
    # a killed run goes on from its checkpoint
    assert all(after.get(run, 0) >= steps for run, steps in saved.items())
    assert {simulate.load(run).status.item() for run, steps in after.items() if steps} <= {"interrupted", "complete"}
    return message


def stop_often(folder, command, count, longest):
    generator = random.Random(count)
    messages = []
    for _ in range(count):
        number = generator.choice([signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
        message = stop_once(folder, command, number, generator.uniform(0, longest))
        if message is None:
            break
        messages += [message] if number != signal.SIGKILL else []
    return messages


def test_a_calibration_is_killed_and_interrupted_and_goes_on(tmp_path):
    stop_once(tmp_path, CALIBRATE, signal.SIGKILL, 0.0)
    message = stop_once(tmp_path, CALIBRATE, signal.SIGINT, 0.0)
    assert message is not None, "the calibration is too short for this test"
    assert "model.runs" in message
    process = start(tmp_path, CALIBRATE)
    _, message = process.communicate(timeout=120)
    assert process.returncode == 0, message
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        undisturbed = calibrate("mlp", width=64, periods=40, executor=executor)
    undisturbed.save(tmp_path / "undisturbed.json")
    one, other = (json.loads((tmp_path / name).read_text()) for name in ("model.json", "undisturbed.json"))
    assert one == other


@pytest.mark.acceptance
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ENDLESS)
def test_fifty_stops(tmp_path, name):
    (tmp_path / "sweep.toml").write_text(SWEEP)
    messages = stop_often(tmp_path, ENDLESS[name], 50, 3.0)
    assert all("continue" in message or "resumed" in message for message in messages)


ERRORS = {
    "stopped": lambda folder: SweepInterrupted(folder, {}),
    "workers lost": lambda folder: WorkersLostError(f"the workers are gone; results are in {folder}"),
    "disk full": lambda folder: StorageError(folder / "run", "No space left on device"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_what_is_deleted_is_not_promised(monkeypatch, kind):
    raised = []

    def interrupted(configs, folder, *_, **__):
        raised.append(ERRORS[kind](Path(folder)))
        raised.append(folder)
        raise raised[0]

    monkeypatch.setattr(calibration, "sweep", interrupted)
    with pytest.raises((KeyboardInterrupt, RuntimeError), match=r"; nothing is kept, pass out=") as caught:
        calibrate("mlp", width=8, periods=20, progress=False)
    assert caught.value is raised[0]
    assert str(raised[1]) not in str(caught.value)
