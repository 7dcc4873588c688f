"""Measure the load of a sweep of 100 000 runs on scheduler, command and disk, without training.

The command and the scheduler are the real ones, in separate processes. 100 workers in one process answer at once, with
a summary of the usual size. The output lists processor seconds and memory of each process, and the files on disk. The
last lines give the load for 100 nodes of 16 workers. An optional argument sets the number of runs.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

import empirical
from empirical.sweeps import sweep as sweep_module
from empirical.sweeps.task import Summary

WORKERS, NODES, PER_NODE, SECONDS_OF_A_RUN = 100, 100, 16, 60.0

MANY_WORKERS = """
import asyncio, sys
from distributed import Worker
async def main():
    options = {"nthreads": 1, "memory_limit": 0, "dashboard_address": None}
    async def one(number):
        async with Worker(sys.argv[1], name=number, **options) as worker:
            await worker.finished()
    await asyncio.gather(*(one(number) for number in range(int(sys.argv[2]))))
asyncio.run(main())
"""


def answer_at_once(runs, options, places):
    numbers = ["final_norm", "norm_min", "norm_max", "train_loss", "train_error", "test_loss", "test_error"]
    numbers += ["periods", "period", "period_stderr", "rotation_ratio", "log_norm_sd"]
    return tuple(
        Summary(
            identity=run.identity,
            steps=run.steps,
            status="complete",
            status_step=run.steps,
            seconds=1.0,
            numbers=dict.fromkeys(numbers, 1 / 3),
            verdict="periodic",
        )
        for run in runs
    )


def processor_seconds(process):
    times = process.cpu_times()
    return times.user + times.system


def main(count):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "workers.py").write_text(MANY_WORKERS)
        file = folder / "scheduler.json"
        command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--host", "127.0.0.1"]
        no_output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        scheduler = subprocess.Popen([*command, "--no-dashboard", "--scheduler-file", str(file)], **no_output)
        while not file.exists():
            time.sleep(0.1)
        from distributed import Client

        address = Client(scheduler_file=str(file), set_as_default=False).scheduler.address
        workers = subprocess.Popen([sys.executable, str(folder / "workers.py"), address, str(WORKERS)], **no_output)
        own, its = psutil.Process(), psutil.Process(scheduler.pid)
        try:
            time.sleep(5)
            started = time.perf_counter()
            lr, wd = np.geomspace(0.01, 1, count // 100), np.geomspace(0.001, 0.1, 10)
            runs = empirical.grid(lr=list(lr), wd=list(wd), seed=range(10))
            print(f"{len(runs)} settings built and checked in {time.perf_counter() - started:.1f} s")
            sweep_module.train_and_summarize = answer_at_once
            before, before_its = processor_seconds(own), processor_seconds(its)
            started = time.perf_counter()
            results = empirical.sweep(runs, folder / "sweep", empirical.dask_executor(file))
            elapsed = time.perf_counter() - started
            command_seconds, its_seconds = processor_seconds(own) - before, processor_seconds(its) - before_its
            assert (results.status == "complete").all()
            print(f"{len(runs) / elapsed:.0f} runs per second through the scheduler, {elapsed:.0f} s in total")
            print(f"processor time per run: scheduler {1000 * its_seconds / len(runs):.2f} ms, command "
                  f"{1000 * command_seconds / len(runs):.2f} ms")  # fmt: skip
            print(
                f"memory: scheduler {its.memory_info().rss / 1e6:.0f} MB, command {own.memory_info().rss / 1e6:.0f} MB"
            )
            for name in ("sweep.json", "summaries.log"):
                print(f"{name}: {os.path.getsize(folder / 'sweep' / name) / 1e6:.1f} MB")
            started = time.perf_counter()
            empirical.open_sweep(folder / "sweep")
            print(f"opened in {time.perf_counter() - started:.1f} s")
            started = time.perf_counter()
            empirical.sweep(runs, folder / "sweep", empirical.dask_executor(file))
            print(f"the same command again, nothing to do: {time.perf_counter() - started:.1f} s")
        finally:
            workers.kill()
            scheduler.kill()
        workers_in_all = NODES * PER_NODE
        runs_per_second = workers_in_all / SECONDS_OF_A_RUN
        print(f"{workers_in_all} workers with runs of {SECONDS_OF_A_RUN:.0f} s end {runs_per_second:.0f} runs per "
              f"second: the scheduler is busy for {runs_per_second * its_seconds / len(runs):.0%} of the time, "
              f"the command for {runs_per_second * command_seconds / len(runs):.0%}; "
              f"{len(runs) / runs_per_second / 3600:.1f} h in total")  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
