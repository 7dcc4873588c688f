"""Cost of a run: time, measured on some of its steps, and disk space."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from empirical.runs.folder import format_bytes
from empirical.runs.preparation import Setup
from empirical.runs.replicas import advance_replicas
from empirical.steps import ENGINES

# seconds of steps from which the time of a run is estimated
_MEASURED_SECONDS = 0.2


@dataclass(frozen=True)
class RunCost:
    """Time and disk space that a run needs.

    Attributes
    ----------
    seconds : estimated time on this machine, measured on some steps.
    disk : upper bound in bytes.

    Examples
    --------
    >>> print(RunCost(seconds=5000, disk=2_000_000))
    about 1.4 h, at most 2 MB of disk
    """

    seconds: float
    disk: int

    def __str__(self) -> str:
        scale, unit = next((s, u) for s, u in ((3600, "h"), (60, "min"), (1, "s")) if self.seconds >= s or s == 1)
        return f"about {self.seconds / scale:.2g} {unit}, at most {format_bytes(self.disk)} of disk"


def disk_space(setup: Setup, steps: int) -> int:
    """Return an upper bound, in bytes, of what a run of `steps` steps writes: logs, labelled store and checkpoints."""
    state = setup.start
    tensors = (state.weights, *state.slots, *state.buffers.values())
    checkpoint = sum(tensor.numel() * tensor.element_size() for tensor in tensors) + 100_000
    evaluations = (steps // setup.config.evaluate_every + 2) * setup.description.evaluation_log.itemsize
    row = setup.description.step_log.itemsize
    # two checkpoints are kept while a third is written
    return 2 * (steps * row + evaluations) + 3 * checkpoint


def measure_cost(setup: Setup, steps: int) -> RunCost:
    """Estimate the cost of a run from some steps and one evaluation, which leave no trace."""
    config, engine = setup.config, ENGINES[setup.config.engine](setup.problem)
    count, elapsed = 1, 0.0
    with torch.random.fork_rng():
        # the first call compiles or loads code, so it is not measured
        advance_replicas(engine, [setup], [setup.start], [0], [0], 1)
        while elapsed < _MEASURED_SECONDS and count < steps:
            count *= 2
            start = time.perf_counter()
            advance_replicas(engine, [setup], [setup.start], [0], [0], count)
            elapsed = time.perf_counter() - start
        start = time.perf_counter()
        setup.evaluate(setup.start)
        evaluation = time.perf_counter() - start
    seconds = elapsed / count * steps + evaluation * (steps // config.evaluate_every + 2)
    return RunCost(seconds, disk_space(setup, steps))
