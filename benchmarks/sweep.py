"""Measure the cost of sweeps: overhead, throughput of two workers, opening 1000 runs, and a simulated grid.

Two plain processes and a sweep with two workers train the same runs in turn, a few and then many. The difference gives
the time per run. The rest is the time to start and end the command. A run takes about five seconds on one core.
"""

import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

import empirical
import simulate

RUN = empirical.RunConfig(lr=0.5, wd=0.01, width=32, batch_size=32, steps=300_000)
REPEATED, FEW, SOME, MANY = 2, 4, 16, 1000

PLAIN = """
import sys, torch, empirical
torch.set_num_threads(1)
for seed in sys.argv[2:]:
    empirical.train(empirical.RunConfig(**{**eval(sys.argv[1]), "seed": int(seed)}), progress=False)
"""
SWEEP = """
import sys, empirical
if __name__ == "__main__":
    runs = empirical.grid(**eval(sys.argv[1]), seed=[int(seed) for seed in sys.argv[4:]])
    empirical.sweep(runs, sys.argv[2], empirical.dask_executor(workers=int(sys.argv[3])))
"""
SETTINGS = {name: getattr(RUN, name) for name in ("lr", "wd", "width", "batch_size", "steps")}


def time_commands(*commands):
    started = time.perf_counter()
    processes = [subprocess.Popen([sys.executable, *map(str, command)]) for command in commands]
    codes = [process.wait() for process in processes]
    assert not any(codes)
    return time.perf_counter() - started


def write_script(text, folder, name):
    (folder / name).write_text(text)
    return folder / name


def time_plain_and_sweep(folder, runs):
    """Return the wall-clock seconds of `runs` runs in two plain processes, and in a sweep with two workers."""
    plain, in_sweep = write_script(PLAIN, folder, "plain.py"), write_script(SWEEP, folder, "sweep_script.py")
    by_hand = time_commands(*([plain, SETTINGS, *range(first, runs, 2)] for first in range(2)))
    out = tempfile.mkdtemp(dir=folder)
    return by_hand, time_commands([in_sweep, SETTINGS, out, 2, *range(runs)])


def main():
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        few, many = (
            [statistics.mean(times) for times in zip(*pairs, strict=True)]
            for pairs in zip(
                *([time_plain_and_sweep(folder, FEW), time_plain_and_sweep(folder, SOME)] for _ in range(REPEATED)),
                strict=True,
            )
        )
        plain, in_sweep = ((more - less) / (SOME - FEW) for less, more in zip(few, many, strict=True))
        print(f"a run takes {2 * plain:.2f} s in a plain process, {in_sweep / plain - 1:+.1%} in a sweep (goal +5 %)")
        print(f"two workers: throughput {plain / in_sweep:.3f} of two plain processes (goal 0.95)")
        print(f"start and end: {few[0] - FEW * plain:.1f} s, sweep {few[1] - FEW * in_sweep:.1f} s; "
              f"{SOME} runs in total {many[0]:.1f} s, {many[1]:.1f} s")  # fmt: skip

        runs = empirical.grid(lr=list(np.geomspace(0.1, 1, 100)), wd=0.01, width=8, steps=100, seed=range(MANY // 100))
        started = time.perf_counter()
        empirical.sweep(runs, folder / "many", empirical.dask_executor(workers=2))
        elapsed = time.perf_counter() - started
        print(f"{MANY} runs of {runs[0].steps} steps: {1000 * elapsed / MANY:.0f} ms each, two workers")
        started = time.perf_counter()
        opened = empirical.open_sweep(folder / "many", traces=True)
        lazily = time.perf_counter() - started
        assert (opened.status == "complete").all()
        assert opened.norm.shape == (100, MANY // 100, runs[0].steps)
        started = time.perf_counter()
        opened.norm.load()
        print(f"{MANY} runs opened as one data set in {lazily:.2f} s (goal 5 s), {opened.norm.size} norms read in "
              f"{time.perf_counter() - started:.2f} s")  # fmt: skip
        # a second sweep of the same has nothing to do
        started = time.perf_counter()
        empirical.sweep([dataclasses.replace(run) for run in runs], folder / "many")
        print(f"the same sweep again: {time.perf_counter() - started:.2f} s")

    lr, wd = np.geomspace(0.05, 1, 100), np.geomspace(0.01, 0.05, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for model in (simulate.PeriodModel.reference(), simulate.Ratio2D()):
            started = time.perf_counter()
            simulate.phase_diagram(lr, wd, model=model)
            name = type(model).__name__
            print(f"simulated grid of 10 000 cells, {name}: {time.perf_counter() - started:.1f} s (goal 30 s)")


if __name__ == "__main__":
    main()
