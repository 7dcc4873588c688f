"""What a run will take: time, measured on some of its steps, and disk."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from empirical.runs.folder import in_bytes
from empirical.runs.preparation import Setup
from empirical.runs.replicas import advance_replicas
from empirical.steps import ENGINES
from simulate.trajectories.log import checked, evaluation_log, step_record

# of steps, from which the time of a run is told
_MEASURED_SECONDS = 0.2


@dataclass(frozen=True)
class RunCost:
    """What a run will need.

    Attributes
    ----------
    seconds : on this machine, from some measured steps.
    disk : bytes at most.

    Examples
    --------
    >>> print(RunCost(seconds=5000, disk=2_000_000))
    about 1.4 h, at most 2 MB of disk
    """

    seconds: float
    disk: int

    def __str__(self) -> str:
        scale, unit = next((s, u) for s, u in ((3600, "h"), (60, "min"), (1, "s")) if self.seconds >= s or s == 1)
        return f"about {self.seconds / scale:.2g} {unit}, at most {in_bytes(self.disk)} of disk"


def space(setup: Setup, steps: int) -> int:
    """Bytes that a run of so many steps writes at most: logs, their copy in the labelled store, checkpoints.

    Examples
    --------
    >>> from empirical.config import RunConfig
    >>> from empirical.runs.preparation import prepare
    >>> setup = prepare(RunConfig(lr=0.5, wd=0.01, width=8))
    >>> space(setup, 2_000_000) - space(setup, 1_000_000) > 2e8
    True
    """
    state = setup.start
    tensors = (state.weights, *state.slots, *state.buffers.values())
    checkpoint = sum(tensor.numel() * tensor.element_size() for tensor in tensors) + 100_000
    evaluations = (steps // setup.config.evaluate_every + 2) * evaluation_log(setup.described).itemsize
    row = checked(step_record(len(setup.described["groups"]))).itemsize
    # two checkpoints are kept while a third is written
    return 2 * (steps * row + evaluations) + 3 * checkpoint


def cost(setup: Setup, steps: int) -> RunCost:
    """Measure some steps and one evaluation, and leave no trace of them.

    Examples
    --------
    >>> from empirical.config import RunConfig
    >>> from empirical.runs.preparation import prepare
    >>> cost(prepare(RunConfig(lr=0.5, wd=0.01, width=8)), 1000).seconds < 60
    True
    """
    config, engine = setup.config, ENGINES[setup.config.engine](setup.problem)
    count, spent = 1, 0.0
    with torch.random.fork_rng():
        # the first call compiles or loads what the others use
        advance_replicas(engine, [setup], [setup.start], [0], [0], 1)
        while spent < _MEASURED_SECONDS and count < steps:
            count *= 2
            began = time.perf_counter()
            advance_replicas(engine, [setup], [setup.start], [0], [0], count)
            spent = time.perf_counter() - began
        began = time.perf_counter()
        setup.evaluated(setup.start)
        evaluation = time.perf_counter() - began
    seconds = spent / count * steps + evaluation * (steps // config.evaluate_every + 2)
    return RunCost(seconds, space(setup, steps))
