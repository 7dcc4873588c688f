"""Speed of the reduced model on one core, compared with a Python loop; cost of period statistics and destabilizations.

All variants run in turn in one process. Speeds are steps per second of processor time; ratios are those of medians.
"""

import dataclasses
import math
import random
import statistics
import sys
import time

import numpy as np

from simulate import PeriodModel, period
from simulate.period_model import _kernel
from simulate.period_model.reduced_model import sampling_interval

WALKERS, STEPS, ROUNDS = 1024, 10_000, 7
INTRINSIC_LR = 2e-3
PYTHON_GOAL, STATISTICS_GOAL, NOISE_GOAL, PERIOD_GOAL = 100, 1.25, 1.8, 1.0

model = PeriodModel.reference().reduced_model
steady = dataclasses.replace(model, hazard=(-80.0, model.hazard[1]))


def python_loop(steps=100_000):
    shrink, decay, growth, a, power, b0, b1, b2, spread, peak, peak_sd, duration = model.constants(INTRINSIC_LR)
    generator = random.Random(0)
    x, loss, hazard, until, climb = 2.0, 0.5, 0.0, -1, 0.0
    ready, threshold = x - model.rise, generator.expovariate(1)
    for t in range(steps):
        if t < until:
            x += climb
            if t + 1 == until:
                ready, hazard, threshold = x - model.rise, 0.0, generator.expovariate(1)
            continue
        effective_lr = math.exp(-2 * x)
        if x <= ready:
            hazard += loss * math.exp(a - 2 * power * x)
        turn = effective_lr * loss
        x += shrink + min(growth * turn * turn / 2, -2 * shrink)
        loss /= 1 + decay * turn
        if hazard > threshold:
            rise = b0 + b1 * x + b2 * math.log(loss) + spread * generator.gauss(0, 1) - x
            climb = max(rise, model.rise) / duration
            loss = math.exp(peak + peak_sd * generator.gauss(0, 1))
            until = t + 1 + int(duration)
    return steps


def compiled(with_statistics=False, of=model):
    constants = np.array([of.constants(INTRINSIC_LR)] * WALKERS)
    walkers = np.arange(WALKERS)
    state = of.initial_state(np.full(WALKERS, 2.0), constants, 0, walkers)
    sums = np.zeros((WALKERS if with_statistics else 0, _kernel.STATISTICS))
    if with_statistics:
        sums[:, _kernel.HIGH], sums[:, _kernel.LOW] = -np.inf, np.inf
    look_every = sampling_interval(INTRINSIC_LR)
    began = time.process_time()
    _kernel.iterate_oscillation(
        state, constants, np.uint64(0), walkers, 0, STEPS, 0, np.empty((3, 0, 0)), sums,
        1000, look_every, 10**9, of.rise, of.rise,
    )  # fmt: skip
    return STEPS * WALKERS / (time.process_time() - began)


def in_python():
    began = time.process_time()
    return python_loop() / (time.process_time() - began)


CANDIDATES = {
    "Python loop": in_python,
    "compiled batch": compiled,
    "compiled batch, statistics": lambda: compiled(with_statistics=True),
    "compiled batch, decay only": lambda: compiled(of=steady),
}


def main():
    for call in CANDIDATES.values():
        call()
    rounds = [[call() for call in CANDIDATES.values()] for _ in range(ROUNDS)]
    speeds = {
        name: statistics.median(column) for name, column in zip(CANDIDATES, zip(*rounds, strict=True), strict=True)
    }
    python, plain, counted, decay_only = speeds.values()
    for name, value in speeds.items():
        print(f"{name:28}{value / 1e6:10.1f} M steps/s{value / python:8.1f} x Python")
    period(0.5, 0.004)
    slowest = 0.0
    for intrinsic in (1e-2, 2e-3, 1e-3, 1 / 3000):
        began = time.perf_counter()
        period(0.5, intrinsic / 0.5)
        slowest = max(slowest, time.perf_counter() - began)
    print(f"statistics cost {plain / counted:.2f} x, destabilizations {decay_only / plain:.2f} x")
    print(f"period() takes {slowest:.3f} s at most")
    reached = {
        f"with statistics >= {PYTHON_GOAL} x Python": counted >= PYTHON_GOAL * python,
        f"statistics <= {STATISTICS_GOAL} x": plain <= STATISTICS_GOAL * counted,
        f"destabilizations <= {NOISE_GOAL} x": decay_only <= NOISE_GOAL * plain,
        f"period() <= {PERIOD_GOAL} s": slowest <= PERIOD_GOAL,
    }
    for goal, holds in reached.items():
        print(f"{goal}: {'reached' if holds else 'NOT reached'}")
    return not all(reached.values())


if __name__ == "__main__":
    sys.exit(main())
