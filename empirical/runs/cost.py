"""Cost of a run: time, measured on some of its steps, and disk space."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from empirical.runs.evaluation import passed_samples
from empirical.runs.folder import format_bytes
from empirical.runs.preparation import Setup
from empirical.runs.replicas import advance_replicas
from empirical.steps import ENGINES

# seconds of steps, and samples of an evaluation, from which the time of a run is estimated
_MEASURED_SECONDS, _MEASURED_SAMPLES = 0.2, 1024


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
        return f"about {format_duration(self.seconds)}, at most {format_bytes(self.disk)} of disk"


def format_duration(seconds: float) -> str:
    """Format a time with two digits.

    Examples
    --------
    >>> format_duration(5000), format_duration(1.2), format_duration(400_000)
    ('1.4 h', '1.2 s', '4.6 days')
    """
    units = ((86_400 * 2, 86_400, "days"), (3600, 3600, "h"), (60, 60, "min"))
    scale, unit = next(((scale, unit) for least, scale, unit in units if seconds >= least), (1, "s"))
    return f"{seconds / scale:.2g} {unit}"


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
    """Estimate the cost of a run from some steps and an evaluation of some samples, which leave no trace."""
    config, engine = setup.config, ENGINES[setup.config.engine](setup.problem)
    count, elapsed = 1, 0.0
    with torch.random.fork_rng():
        # the first call compiles or loads code, so it is not measured
        advance_replicas(engine, [setup], [setup.start], [0], [0], 1)
        while elapsed < _MEASURED_SECONDS and count < steps and 2 * count <= setup.steps_at_once(0):
            count *= 2
            start = time.perf_counter()
            advance_replicas(engine, [setup], [setup.start], [0], [0], count)
            elapsed = time.perf_counter() - start
        few, all_samples = setup.evaluation_data.evenly_spaced(_MEASURED_SAMPLES), setup.evaluation_data
        start = time.perf_counter()
        setup.evaluate(setup.start, few)
        evaluation = (time.perf_counter() - start) * passed_samples(all_samples) / passed_samples(few)
    seconds = elapsed / count * steps + evaluation * (steps // config.evaluate_every + 2)
    return RunCost(seconds, disk_space(setup, steps))
