import concurrent.futures
import dataclasses
import multiprocessing
import signal
import socket
import subprocess
import sys
import threading
import time

import filelock
import numpy as np
import pytest
import torch
from torch import nn

import simulate
from empirical import RunConfig, grid, train
from empirical.sweeps import sweep as module
from empirical.sweeps import task
from empirical.sweeps.store import open_sweep, read_summaries
from empirical.sweeps.sweep import SweepInterrupted, WorkersLostError, sweep
from empirical.sweeps.task import (
    IN_USE,
    INTERRUPTED,
    Summary,
    SweepLimits,
    SweepOptions,
    run_path,
    summarize_failure,
    train_and_summarize,
)
from empirical.sweeps.workers import dask_executor
from simulate.trajectories.folder import count_steps

RUNS = grid(lr=[0.3, 0.5], wd=0.02, width=8, steps=60, seed=range(2))
LONG = RunConfig(lr=0.5, wd=0.02, width=8, steps=10**7)
IMPATIENT = SweepLimits(folder_wait=0.1, first_delay=1e-3)


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """Results of the runs in one thread."""
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        return sweep(RUNS, tmp_path_factory.mktemp("serial"), executor)


def same_results(results, expected):
    return results.drop_vars(["folder", "seconds"]).identical(expected.drop_vars(["folder", "seconds"]))


@pytest.fixture
def one_thread():
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        yield executor


class Scripted(concurrent.futures.Executor):
    """Ends each task with the next outcome of the script, a status or an error. Then runs tasks normally."""

    def __init__(self, *script):
        self.script, self.handed_out = list(script), []

    def submit(self, function, /, *arguments, **options):
        future = concurrent.futures.Future()
        runs = arguments[0]
        self.handed_out.append(runs)
        outcome = self.script.pop(0) if self.script else None
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        elif outcome is not None:
            summaries = [summarize_failure(run, ValueError("scripted")) for run in runs]
            future.set_result([dataclasses.replace(summary, status=outcome) for summary in summaries])
        else:
            future.set_result(function(*arguments))
        return future


def wait_for_steps(folder, least):
    deadline = time.monotonic() + 60
    while count_steps(folder) < least and time.monotonic() < deadline:
        time.sleep(0.02)
    assert count_steps(folder) >= least


def test_a_sweep_trains_every_run_once(tmp_path):
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        results = sweep(RUNS, tmp_path, executor)
    again = sweep(RUNS, tmp_path, nothing_to_do := Scripted())
    assert (results.status == "complete").all()
    assert again.identical(results)
    assert not nothing_to_do.handed_out
    for run in RUNS:
        folder = results.folder.sel(lr=run.lr, seed=run.seed).item()
        assert simulate.load(folder).identical(train(run))


def test_dask_workers_give_the_same_bits(tmp_path, serial):
    with dask_executor(workers=2) as executor:
        results = sweep(RUNS, tmp_path, executor)
    assert same_results(results, serial)
    for one, other in zip(serial.folder.values.flat, results.folder.values.flat, strict=True):
        assert simulate.load(one).identical(simulate.load(other))


def test_a_pool_of_processes_is_an_executor_too(tmp_path, serial):
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        assert same_results(sweep(RUNS, tmp_path, executor), serial)


def own_network(seed=0):
    class Own(nn.Sequential):
        """A class that workers cannot import."""

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Own(nn.Linear(4, 9), nn.BatchNorm1d(9, eps=1e-12), nn.ReLU(), nn.Linear(9, 2))


OWN_DATA = np.random.default_rng(0).normal(size=(90, 4)), np.arange(90) % 2


def test_workers_train_own_modules_and_arrays(tmp_path, one_thread):
    network = own_network()
    runs = grid(lr=[0.3, 0.5], wd=0.02, steps=40)
    with dask_executor(workers=2) as executor:
        results = sweep(runs, tmp_path, executor, model=network, data=OWN_DATA)
    for run, folder in zip(runs, results.folder.values, strict=True):
        assert simulate.load(folder).identical(train(run, model=network, data=OWN_DATA))
    # a later call reuses them
    logs = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("steps.log")}
    assert len(logs) == 2
    assert same_results(sweep(runs, tmp_path, one_thread, model=network, data=OWN_DATA), results)
    assert logs == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("steps.log")}
    # a folder without traces does not keep the runs, but knows their data too
    for folder, traces in ((tmp_path, True), (tmp_path / "new", False)):
        sweep(runs, folder, one_thread, model=network, data=OWN_DATA, traces=traces)
        for other in ({"data": (OWN_DATA[0] + 1, OWN_DATA[1])}, {"model": own_network(seed=1)}):
            with pytest.raises(ValueError, match="out must hold runs of this model and data"):
                sweep(runs, folder, one_thread, **{"model": network, "data": OWN_DATA, **other})


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"model": nn.Linear, "data": OWN_DATA}, "model must be a torch.nn.Module, got type"),
        ({"model": nn.Linear(3, 2), "data": OWN_DATA}, "model must"),
        ({"data": OWN_DATA[0]}, "data must"),
    ],
)
def test_bad_modules_and_arrays_start_no_run(tmp_path, one_thread, own, message):
    with pytest.raises((TypeError, ValueError), match=message):
        sweep(RUNS, tmp_path / "new", one_thread, **own)
    assert not (tmp_path / "new").exists()


def test_longer_and_shorter_runs_replace_each_other(tmp_path, one_thread):
    for steps in (60, 90, 60):
        runs = [dataclasses.replace(run, steps=steps) for run in RUNS]
        results = sweep(runs, tmp_path, one_thread)
        assert (results.status_step == steps).all()
        for run in runs:
            assert results.final_norm.sel(lr=run.lr, seed=run.seed).item() == train(run).final_norm.item()


def test_a_failed_run_stops_no_other_and_is_tried_again(tmp_path, one_thread, capsys):
    bad = grid(lr=0.3, wd=0.02, model="no_such_module:build", steps=5)
    results = sweep([*bad, *RUNS], tmp_path, one_thread)
    assert results.status.values.tolist() == ["failed"] + ["complete"] * 4
    assert "no_such_module" in results.error.values[0]
    errors = capsys.readouterr().err
    assert f"failed: {bad[0]}" in errors
    assert results.error.values[0].splitlines()[-1] in errors
    sweep([*bad, *RUNS], tmp_path, second := Scripted())
    assert second.handed_out == [bad]


@pytest.mark.parametrize("outcome", [INTERRUPTED, IN_USE, RuntimeError("the worker died")])
def test_a_run_is_retried_after_a_problem_of_its_worker(tmp_path, outcome):
    executor = Scripted(outcome)
    results = sweep(RUNS, tmp_path, executor, limits=IMPATIENT)
    assert (results.status == "complete").all()
    assert executor.handed_out == [*((run,) for run in RUNS), (RUNS[0],)]


@pytest.mark.parametrize(
    ("outcome", "words"),
    [(RuntimeError("the worker died"), "RuntimeError: the worker died"), (INTERRUPTED, "scripted")],
)
def test_retries_end(tmp_path, outcome, words):
    executor = Scripted(*[outcome] * (IMPATIENT.retries + 1))
    results = sweep(RUNS[:1], tmp_path, executor, limits=IMPATIENT)
    assert results.status.item() == "failed"
    assert results.error.item().splitlines()[-1].strip().endswith(words)


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path):
    (summary,) = train_and_summarize(RUNS[:1], SweepOptions(out=tmp_path / "elsewhere"))
    assert summary.status == "failed"
    assert f"out must be a folder that all workers see, but {socket.gethostname()} has no" in summary.error


def test_a_broken_pool_is_reported(tmp_path, one_thread):
    broken = concurrent.futures.process.BrokenProcessPool("a process died")
    executor = Scripted(None, broken, broken, broken)
    with pytest.raises(WorkersLostError, match=r"BrokenProcessPool: a process died"):
        sweep(RUNS, tmp_path, executor)
    assert len(read_summaries(tmp_path)) == 1
    assert (sweep(RUNS, tmp_path, one_thread).status == "complete").all()


def test_results_before_the_loss_of_the_workers_are_kept(tmp_path, one_thread):
    lost = concurrent.futures.CancelledError()
    with pytest.raises(WorkersLostError, match="CancelledError"):
        sweep(RUNS, tmp_path, Scripted(None, lost, None, lost))
    assert set(read_summaries(tmp_path)) == {RUNS[0].identity, RUNS[2].identity}
    assert (sweep(RUNS, tmp_path, one_thread).status == "complete").all()


def test_without_its_session_file_a_sweep_stops_and_goes_on_later(tmp_path, one_thread):
    runs = [dataclasses.replace(LONG, seed=seed) for seed in range(2)]
    stopper = threading.Thread(
        target=lambda: (wait_for_steps(run_path(tmp_path, runs[0]), 200), (tmp_path / "session").unlink())
    )
    stopper.start()
    with pytest.raises(SweepInterrupted, match="no run has ended"):
        sweep(runs, tmp_path, one_thread)
    stopper.join()
    there = simulate.load(run_path(tmp_path, runs[0]))
    assert there.status.item() == "interrupted"
    steps = there.sizes["step"]
    assert (open_sweep(tmp_path).status == "pending").all()
    shorter = dataclasses.replace(runs[0], steps=steps + 50)
    sweep([shorter], tmp_path, one_thread)
    assert simulate.load(run_path(tmp_path, shorter)).identical(train(shorter))


def test_ctrl_c_keeps_what_was_done(tmp_path):
    code = (
        "import sys, concurrent.futures\nfrom empirical import RunConfig\nfrom empirical.sweeps.sweep import sweep\n"
        f"run = RunConfig(lr=0.5, wd=0.02, width=8, steps={LONG.steps})\n"
        "sweep([run], sys.argv[1], concurrent.futures.ThreadPoolExecutor(1))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE, text=True)
    wait_for_steps(run_path(tmp_path, LONG), 200)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert "SweepInterrupted: interrupted (no run has ended)" in message
    assert simulate.load(run_path(tmp_path, LONG)).status.item() == "interrupted"


def test_a_run_waits_for_its_folder_and_gives_up(tmp_path):
    with filelock.FileLock(run_path(tmp_path, LONG) / "lock"):
        (summary,) = train_and_summarize([LONG], SweepOptions(out=tmp_path, limits=IMPATIENT))
    assert summary.status == IN_USE


def test_a_run_is_extended_to_the_requested_precision(tmp_path, one_thread):
    # clearly periodic, whatever the rounding of the processor
    run = RunConfig(lr=0.5, wd=0.004, width=64, steps=1500)
    before = sweep([run], tmp_path / "short", one_thread)
    assert "period_stderr" not in before or before.period_stderr / before.period > 0.1
    results = sweep([run], tmp_path / "sweep", one_thread, until=0.1, max_steps=80_000)
    assert results.period_stderr / results.period <= 0.1
    longer = dataclasses.replace(run, steps=results.status_step.item())
    assert simulate.load(run_path(tmp_path / "sweep", run)).identical(train(longer))
    sweep([run], tmp_path / "sweep", nothing_to_do := Scripted(), until=0.1, max_steps=80_000)
    assert not nothing_to_do.handed_out


def test_a_run_is_extended_to_the_requested_number_of_periods(tmp_path, one_thread):
    # after 500 steps the verdict is equilibrium, which is too early to trust
    run = RunConfig(lr=0.5, wd=0.01, width=64, steps=500)
    results = sweep([run], tmp_path / "sweep", one_thread, periods=20, max_steps=40_000)
    assert 20 <= results.periods.item() < 40
    sweep([run], tmp_path / "sweep", nothing_to_do := Scripted(), periods=20, max_steps=40_000)
    assert not nothing_to_do.handed_out


def test_a_run_at_equilibrium_is_not_extended_further(tmp_path, one_thread):
    run = RunConfig(lr=0.5, wd=0.02, width=4, steps=500)
    results = sweep([run], tmp_path / "sweep", one_thread, periods=10_000, max_steps=10**6)
    assert results.verdict.item() == "equilibrium"
    # it was extended until the verdict could be trusted
    assert 30 <= results.relaxations.item() < 130


@pytest.mark.parametrize("goals", [{"until": 1e-300}, {"periods": 10**9}, {"until": 0.5, "periods": 10**9}])
@pytest.mark.parametrize("steps", [0, 1, 7])
@pytest.mark.parametrize("numbers", [{}, {"period": 1.0, "period_stderr": 1e300}])
def test_an_extension_ends_at_its_limit(tmp_path, steps, numbers, goals):
    options, lengths = SweepOptions(out=tmp_path, max_steps=1000, **goals), []
    while steps is not None and len(lengths) < 100:
        summary = Summary(
            identity="", steps=steps, status="complete", status_step=steps, seconds=0.0, numbers=dict(numbers)
        )
        lengths.append(steps)
        steps = task.extended_steps(summary, options, 10)
    assert lengths == sorted(set(lengths))  # otherwise it would never end
    assert lengths[-1] == 1000


def test_an_extended_run_that_diverged_is_done(tmp_path):
    summary = Summary(identity="", steps=400, status="diverged", status_step=250, seconds=0.0)
    config = RunConfig(lr=0.3, wd=0.02, steps=100)
    assert summary.satisfies(config, SweepOptions(out=tmp_path, until=0.1, max_steps=1000))
    # a shorter run ends before
    assert not summary.satisfies(config, SweepOptions(out=tmp_path))
    assert summary.satisfies(dataclasses.replace(config, steps=9000), SweepOptions(out=tmp_path))


def test_without_traces_only_summaries_stay(tmp_path, one_thread):
    results = sweep(RUNS, tmp_path, one_thread, traces=False)
    assert (results.status == "complete").all()
    assert not list(tmp_path.glob("runs/*/*"))
    sweep(RUNS, tmp_path, nothing_to_do := Scripted(), traces=False)
    assert not nothing_to_do.handed_out
    # a process that was killed while it deleted one
    half = run_path(tmp_path, RUNS[0])
    (half.with_name(half.name + ".dropped") / "rest").mkdir(parents=True)
    sweep(RUNS, tmp_path, nothing_to_do, traces=False)
    assert not list(tmp_path.glob("runs/*/*"))


def test_a_run_is_deleted_only_when_its_summary_is_safe(tmp_path, one_thread, monkeypatch):
    monkeypatch.setattr(module.SweepFolder, "append", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sweep(RUNS, tmp_path, one_thread, traces=False)
    assert [path for path in tmp_path.glob("runs/*/*") if simulate.load(path).status.item() == "complete"]


def test_a_scheduler_that_does_not_answer_changes_nothing(tmp_path, one_thread):
    before = sweep(RUNS, tmp_path, one_thread)
    with pytest.raises(ValueError, match=r"scheduler.*'tcp://127\.0\.0\.1:1'"):
        sweep(grid(lr=[0.7], wd=0.02, width=8, steps=5), tmp_path, dask_executor("tcp://127.0.0.1:1", timeout=0.5))
    assert open_sweep(tmp_path).identical(before)


def test_evaluations_of_another_step_are_left_out(tmp_path, one_thread):
    sweep(RUNS, tmp_path, one_thread)
    shorter = [dataclasses.replace(run, steps=40) for run in RUNS]
    assert "test_error" not in sweep(shorter, tmp_path, one_thread)
    assert sweep(RUNS, tmp_path, one_thread).test_error.notnull().all()


def test_each_run_has_a_limit_of_its_own(tmp_path):
    summary = Summary(identity="", steps=900, status="complete", status_step=900, seconds=0.0)
    options = SweepOptions(out=tmp_path, periods=10**9)
    assert task.extended_steps(summary, options, 100) == 1000
    assert task.extended_steps(summary, options, 10_000) == 3600


def test_runs_of_a_sweep_have_few_files(tmp_path, one_thread):
    results = sweep(RUNS[:1], tmp_path, one_thread)
    assert len(list((run_path(tmp_path, RUNS[0])).rglob("*"))) <= 7
    assert results.folder.item() == str(run_path(tmp_path, RUNS[0]))


UNGUARDED = """
import sys
from empirical import calibrate, grid, sweep
runs = grid(lr=[0.3, 0.5], wd=0.02, width=8, steps=20)
{call}
print("done")
"""


def test_a_script_without_main_guard_gets_an_error(tmp_path):
    script = tmp_path / "script.py"
    # `calibrate` calls `sweep`
    script.write_text(UNGUARDED.format(call="calibrate('mlp', width=8, periods=20, out=sys.argv[1])"))
    process = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "sweep")], capture_output=True, text=True, timeout=300, check=False
    )
    lines = process.stderr.splitlines()
    guard = 'must be called under `if __name__ == "__main__":` in a script'
    assert (process.returncode, process.stdout) == (1, "")
    # several workers may write at once
    assert f"RuntimeError: sweep {guard}" in process.stderr
    assert lines[-1].startswith("RuntimeError: processes here did not start")
    assert guard in lines[-1]
    assert "distributed" not in process.stderr
    assert process.stderr.count("Traceback") == 1
    assert not list((tmp_path / "sweep").glob("s*"))


def test_a_script_with_main_guard_runs(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED.format(call='if __name__ == "__main__":\n    sweep(runs, sys.argv[1])'))
    process = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "sweep")], capture_output=True, text=True, timeout=300, check=False
    )
    assert process.returncode == 0, process.stderr
    assert (open_sweep(tmp_path / "sweep").status == "complete").all()


def test_invalid_input_starts_no_run(tmp_path):
    with pytest.raises(ValueError, match=r"until.* 5\.0"):
        sweep(RUNS, tmp_path / "new", until=5.0)
    for options in ({"until": 0}, {"periods": 0}, {"max_steps": 5}, {"threads": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            sweep(RUNS, tmp_path / "new", **options)
    with pytest.raises(TypeError, match="executor must be"):
        sweep(RUNS, tmp_path / "new", executor=5)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scheduler": "tcp://127.0.0.1:1", "workers": 2}, "workers must be None"),
        ({"workers": 0}, "workers"),
        ({"timeout": 0}, "timeout"),
        ({"resources": {"GPU": 1}}, "resources must be None"),
        ({"scheduler": "no such file"}, "existing file"),
    ],
)
def test_invalid_options_of_dask_executor_are_rejected(options, words):
    with pytest.raises(ValueError, match=words), dask_executor(**options):
        pass
