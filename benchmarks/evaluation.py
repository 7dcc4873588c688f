"""Compare the evaluation of a large image set with an epoch of training on it, for ConvNets, on one thread.

The training set has 6144 images and the test set 1228 (here noise), a fifth as in CIFAR-10. Both run alternately in
one process. The ratios are those of medians of the CPU time: per image, and of an evaluation of both sets to an epoch.
"""

import statistics
import sys
import time

import numpy as np
import torch

from empirical.config import RunConfig
from empirical.runs._allocation import reuse_freed_memory
from empirical.runs.preparation import prepare
from empirical.runs.replicas import advance_replicas
from empirical.steps import ENGINES

WIDTHS, STEPS, REPEATED, GOAL = (8, 32), 8, 3, 0.35
TRAINING, TEST, FEW = 6144, 1228, 1024


def images(count, numbers):
    return numbers.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8), numbers.integers(0, 10, count)


def cost(call):
    began = time.process_time()
    call()
    return time.process_time() - began


def measure(width, data):
    """Seconds of an epoch, of an evaluation, and of an evaluation of few samples."""
    setup = prepare(RunConfig(lr=0.1, wd=0.001, model="convnet", width=width, batch_size=128), data=data)
    engine, few = ENGINES[setup.config.engine](setup.problem), setup.data.evenly_spaced(FEW)
    calls = (
        lambda: advance_replicas(engine, [setup], [setup.start], [0], [0], STEPS),
        lambda: setup.evaluate(setup.start),
        lambda: setup.evaluate(setup.start, few),
    )
    for call in calls:
        call()
    rows = [[cost(call) for call in calls] for _ in range(REPEATED)]
    steps, whole, part = (statistics.median(column) for column in zip(*rows, strict=True))
    return steps * TRAINING / (STEPS * setup.batch_size), whole, part


@reuse_freed_memory()
def main():
    torch.set_num_threads(1)
    numbers = np.random.default_rng(0)
    data = (*images(TRAINING, numbers), *images(TEST, numbers))
    reached = {}
    for width in WIDTHS:
        epoch, whole, part = measure(width, data)
        print(f"width {width}: {epoch / TRAINING * 1e6:.0f} us per sample of an epoch", flush=True)
        print(f"width {width}: an evaluation takes {whole / epoch:.2f} epochs, one of {FEW} samples {part / epoch:.2f}")
        ratio = whole / epoch * TRAINING / (TRAINING + TEST)
        print(f"width {width}: evaluation of an image takes {ratio:.2f} of the time of training on it")
        reached[f"width {width}: evaluation of an image <= {GOAL} of training on it"] = ratio <= GOAL
    for goal, holds in reached.items():
        print(f"{goal}: {'reached' if holds else 'NOT reached'}")
    return not all(reached.values())


if __name__ == "__main__":
    sys.exit(main())
