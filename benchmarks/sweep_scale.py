"""What a sweep of 100 000 runs asks of scheduler, command and disk, without the trainings.

The command and the scheduler are the real ones, in processes of their own; 100 workers, all in one process, answer at
once with a summary of the usual size. Printed are processor seconds and memory of each, and what lies on the disk; the
last lines say what that is for 100 nodes of 16 workers. An argument gives another number of runs.
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
from empirical.sweeps import sweep as sweeping
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


def answered(runs, terms, places):
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
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        scheduler = subprocess.Popen([*command, "--no-dashboard", "--scheduler-file", str(file)], **quiet)
        while not file.exists():
            time.sleep(0.1)
        from distributed import Client

        address = Client(scheduler_file=str(file), set_as_default=False).scheduler.address
        workers = subprocess.Popen([sys.executable, str(folder / "workers.py"), address, str(WORKERS)], **quiet)
        own, its = psutil.Process(), psutil.Process(scheduler.pid)
        try:
            time.sleep(5)
            started = time.perf_counter()
            lr, wd = np.geomspace(0.01, 1, count // 100), np.geomspace(0.001, 0.1, 10)
            runs = empirical.grid(lr=list(lr), wd=list(wd), seed=range(10))
            print(f"{len(runs)} settings made and checked in {time.perf_counter() - started:.1f} s")
            sweeping.perform = answered
            before, before_its = processor_seconds(own), processor_seconds(its)
            started = time.perf_counter()
            found = empirical.sweep(runs, folder / "sweep", empirical.dask_executor(file))
            spent = time.perf_counter() - started
            command_seconds, its_seconds = processor_seconds(own) - before, processor_seconds(its) - before_its
            assert (found.status == "complete").all()
            print(f"{len(runs) / spent:.0f} runs a second through the scheduler, all told {spent:.0f} s")
            print(f"processor time a run: scheduler {1000 * its_seconds / len(runs):.2f} ms, command "
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
        everywhere = NODES * PER_NODE
        needed = everywhere / SECONDS_OF_A_RUN
        print(f"{everywhere} workers with runs of {SECONDS_OF_A_RUN:.0f} s end {needed:.0f} a second: the scheduler "
              f"is busy for {needed * its_seconds / len(runs):.0%} of the time, the command for "
              f"{needed * command_seconds / len(runs):.0%}; {len(runs) / needed / 3600:.1f} h in all")  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
