"""Sweeps on a scheduler and workers in separate processes that are killed."""

import concurrent.futures
import os
import signal
import subprocess
import sys
import time

import pytest

import simulate
from empirical import dask_executor, open_sweep, read_sweep, sweep
from empirical.sweeps.store import read_summaries
from empirical.sweeps.task import run_path
from simulate.trajectories.folder import count_steps
from tests.empirical.sweeps.clusters import Cluster, kill_at_random, wait_until

# frequent evaluations, because a run writes its records in parts that end with an evaluation
SMALL = """
[run]
wd = 0.02
width = 8
batch_size = 32
evaluate_every = 500
steps = {steps}
[grid]
lr = [0.3, 0.5]
seed = [0, 1, 2]
"""

TWENTY_FOUR = """
[run]
batch_size = 32
evaluate_every = 5000
[[runs]]
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A scheduler and two workers, which declare a resource."""
    opened = Cluster(tmp_path_factory.mktemp("cluster"), options=("--resources", "GPU=1"))
    yield opened
    opened.close()


def bnwd_sweep(file, out, *options, **process):
    command = [
        sys.executable,
        "-c",
        "from empirical.cli.main import run_command_line; run_command_line()",
        "sweep",
        str(file),
        "--out",
        str(out),
    ]
    return subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell lets background tests ignore Ctrl-C, and their child processes would inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **process,
    )


def write_file(tmp_path, text):
    file = tmp_path / "sweep.toml"
    file.write_text(text)
    return file


def check_equal_to_a_serial_sweep(runs, out, serial):
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        expected = sweep(runs, serial, executor)
    results = open_sweep(out)
    assert (results.status == "complete").all()
    assert results.drop_vars(["folder", "seconds"]).identical(expected.drop_vars(["folder", "seconds"]))
    for run in runs:
        assert simulate.load(run_path(out, run)).identical(simulate.load(run_path(serial, run)))


def check_a_sweep_with_accidents(tmp_path, cluster, text, kills, every):
    file, out = write_file(tmp_path, text), tmp_path / "sweep"
    runs = read_sweep(file)
    first = bnwd_sweep(file, out, "--scheduler", cluster.address)
    wait_until(lambda: any(count_steps(run_path(out, run)) for run in runs))
    before = kill_at_random(cluster, first, kills // 2, seed=0, every=every)
    wait_until(lambda: any(count_steps(run_path(out, run)) for run in runs))
    assert first.poll() is None, "the sweep is too short for this test"
    cluster.kill_scheduler()
    _, message = first.communicate(timeout=120)
    assert first.returncode == 1
    assert message.strip().startswith("bnwd: the workers are gone")
    assert len(message.strip().splitlines()) == 1
    done = len(read_summaries(out))
    assert done < len(runs)
    second = bnwd_sweep(file, out, "--scheduler", cluster.address)
    after = kill_at_random(cluster, second, kills - kills // 2, seed=1, every=every)
    table, message = second.communicate(timeout=600)
    assert second.returncode == 0, message
    assert before + after == kills, "the sweep is too short for this test"
    assert f"{len(runs)} complete" in table
    check_equal_to_a_serial_sweep(runs, out, tmp_path / "serial")


def test_workers_and_scheduler_are_killed(tmp_path, cluster):
    check_a_sweep_with_accidents(tmp_path, cluster, SMALL.format(steps=5000), kills=2, every=1.0)


@pytest.mark.acceptance
@pytest.mark.timeout(1800)
def test_twenty_four_trainings_with_five_kills_and_a_lost_scheduler(tmp_path, cluster):
    kinds = {
        "mlp": 'model = "mlp"\nwidth = 32\nsteps = 500000',
        "momentum": 'model = "mlp"\nwidth = 16\nsteps = 12000\noptimizer = "SGD(momentum=0.9)"',
        "convnet": 'model = "convnet"\nwidth = 4\nsteps = 12000',
    }
    rows = [
        f"{kind}\nlr = {lr}\nwd = {wd}\nseed = {seed}\n"
        for kind in kinds.values()
        for lr in (0.05, 0.1)
        for wd in (0.01, 0.02)
        for seed in (0, 1)
    ]
    check_a_sweep_with_accidents(tmp_path, cluster, TWENTY_FOUR + "[[runs]]\n".join(rows), kills=5, every=8.0)


def test_a_new_command_takes_over_the_runs_of_a_killed_one(tmp_path, cluster):
    file, out = write_file(tmp_path, SMALL.format(steps=10**7)), tmp_path / "sweep"
    runs = read_sweep(file)
    killed = bnwd_sweep(file, out, "--scheduler", cluster.address)
    wait_until(lambda: sum(count_steps(run_path(out, run)) > 0 for run in runs) == 2)
    killed.kill()
    killed.communicate()
    # runs continue in the workers until the sweep is started again, here with fewer steps
    shorter = write_file(tmp_path, SMALL.format(steps=2000))
    again = bnwd_sweep(shorter, out, "--scheduler", cluster.address)
    _, message = again.communicate(timeout=120)
    assert again.returncode == 0, message
    for run in read_sweep(shorter):
        assert count_steps(run_path(out, run)) >= 2000
    serial = tmp_path / "serial"
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        expected = sweep(read_sweep(shorter), serial, executor)
    assert (open_sweep(out).final_norm == expected.final_norm).all()


@pytest.mark.parametrize("after", [1.0, 5.0])
def test_ctrl_c_in_a_terminal_ends_a_local_sweep_cleanly(tmp_path, after):
    file, out = write_file(tmp_path, SMALL.format(steps=10**7)), tmp_path / "sweep"
    process = bnwd_sweep(file, out, "--workers", "2", start_new_session=True)
    if after > 2:
        wait_until(lambda: sum(count_steps(run_path(out, run)) > 0 for run in read_sweep(file)) == 2)
    else:
        time.sleep(after)
    # as in a terminal: the signal goes to all processes at once
    os.killpg(process.pid, signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert message.strip().splitlines()[-1].startswith("bnwd: interrupted")
    assert "Traceback" not in message
    if after > 2:
        begun = [run_path(out, run) for run in read_sweep(file) if count_steps(run_path(out, run))]
        assert [simulate.load(folder).status.item() for folder in begun] == ["interrupted"] * 2


def test_runs_go_where_their_resources_are(cluster):
    with dask_executor(cluster.address, resources={"GPU": 1}) as executor:
        assert executor.submit(pow, 2, 3).result(60) == 8
    with dask_executor(cluster.address, resources={"TPU": 1}) as executor:
        waiting = executor.submit(pow, 2, 3)
        assert not concurrent.futures.wait([waiting], timeout=2).done
