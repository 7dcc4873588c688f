"""Speed of the norm map for many trajectories on one core, compared with a Python loop and with NumPy in place.

All candidates run in turn in one process. The speed is the median number of steps per second of processor time. The
gain from threads is a ratio of wall-clock times, which is meaningful on an idle machine only.
"""

import statistics
import sys
import time

import numpy as np

from simulate import norm_map
from simulate.maps import _kernels
from simulate.maps.iteration import initial_norm_state, usable_processors

COUNT, STEPS, ROUNDS = 4096, 4000, 7
PYTHON_GOAL, NUMPY_GOAL, SINGLE_GOAL, FOURS_GOAL, THREADS_GOAL = 60, 1.9, 7, 190, 1.8

generator = np.random.default_rng(0)
shrink = 1 - np.exp(generator.uniform(-9, -3, COUNT))
push = generator.uniform(0.5, 2, COUNT)
start = np.full(COUNT, 3.0)


def python_loop(steps=200_000):
    r, a, b = 3.0, float(shrink[0] ** 2), float(push[0] ** 2)
    for _ in range(steps):
        r = a * r + b / r
    return steps


def numpy_in_place(steps=STEPS // 4):
    r, a, b, quotient = start.copy(), shrink**2, push**2, np.empty(COUNT)
    for _ in range(steps):
        np.divide(b, r, out=quotient)
        np.multiply(a, r, out=r)
        np.add(r, quotient, out=r)
    return steps * COUNT


def compiled(count=COUNT, steps=STEPS, with_statistics=False, kernel=_kernels.iterate_constant):
    none = np.empty((count, 0))
    rows = _kernels.Rows(0, 0, none, none, none, np.zeros((count if with_statistics else 0, 4)))
    kernel(initial_norm_state(start[:count]), shrink[:count], push[:count], steps, rows)
    return steps * count


def by_fours(count=COUNT, steps=STEPS):
    return compiled(count, steps, kernel=_kernels.iterate_constant_by_fours)


CANDIDATES = {
    "Python loop": python_loop,
    "NumPy, in place": numpy_in_place,
    "compiled batch": compiled,
    "compiled batch, statistics": lambda: compiled(with_statistics=True),
    "compiled, one trajectory": lambda: compiled(1, 400_000),
    "four steps at a time": by_fours,
    "four at a time, one": lambda: by_fours(1, 400_000),
}


def speed(call):
    began = time.process_time()
    steps = call()
    return steps / (time.process_time() - began)


def seconds(threads, steps=100 * STEPS):
    began = time.perf_counter()
    norm_map(0.1, (1 - shrink) / 0.1, 10 * push, norm=1.0, steps=steps, record_every=steps, threads=threads)
    return time.perf_counter() - began


def thread_speedup():
    """Median speed-up of two threads over one, measured in alternating runs."""
    seconds(2, STEPS)
    return statistics.median(seconds(1) / seconds(2) for _ in range(ROUNDS))


def main():
    for call in CANDIDATES.values():
        call()
    rounds = [[speed(call) for call in CANDIDATES.values()] for _ in range(ROUNDS)]
    speeds = {
        name: statistics.median(column) for name, column in zip(CANDIDATES, zip(*rounds, strict=True), strict=True)
    }
    python, numpy = speeds["Python loop"], speeds["NumPy, in place"]
    for name, value in speeds.items():
        print(f"{name:28}{value / 1e6:10.1f} M steps/s{value / python:8.1f} x Python{value / numpy:8.2f} x NumPy")
    goals = {
        f"batch >= {PYTHON_GOAL} x Python": speeds["compiled batch"] >= PYTHON_GOAL * python,
        f"batch >= {NUMPY_GOAL} x NumPy": speeds["compiled batch"] >= NUMPY_GOAL * numpy,
        f"one trajectory >= {SINGLE_GOAL} x Python": speeds["compiled, one trajectory"] >= SINGLE_GOAL * python,
        f"four steps at a time >= {FOURS_GOAL} x Python": speeds["four steps at a time"] >= FOURS_GOAL * python,
    }
    if usable_processors() > 1:
        speedup = thread_speedup()
        print(f"two threads{speedup:38.2f} x one")
        goals[f"two threads >= {THREADS_GOAL} x one"] = speedup >= THREADS_GOAL
    for goal, is_reached in goals.items():
        print(f"{goal}: {'reached' if is_reached else 'NOT reached'}")
    return not all(goals.values())


if __name__ == "__main__":
    sys.exit(main())
