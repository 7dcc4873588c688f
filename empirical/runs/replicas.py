"""Train runs of equal shape as replicas, in the same steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch

from empirical.runs.preparation import Setup
from empirical.steps import Engine, Hyper, TrainingState


def are_replicas(one: Setup, other: Setup) -> bool:
    """Return whether two runs can share steps: they have the same shape and the same frozen parameters."""
    if one.config.shape != other.config.shape or one.problem.layout != other.problem.layout:
        return False
    frozen, others = (
        {name: p for name, p in setup.problem.model.named_parameters() if name not in setup.problem.layout.places}
        for setup in (one, other)
    )
    return frozen.keys() == others.keys() and all(torch.equal(frozen[name], others[name]) for name in frozen)


def advance_replicas(
    engine: Engine,
    setups: Sequence[Setup],
    states: Sequence[TrainingState],
    steps: Sequence[int],
    places: Sequence[int],
    count: int,
) -> list[tuple[TrainingState, npt.NDArray[Any]]]:
    """Advance each of several runs by `count` steps. Unused replicas are filled with copies of the first run.

    The result of a run does not depend on the other runs. Its last bits depend on its place among the replicas,
    because processors handle the numbers in vectors.

    Parameters
    ----------
    engine : engine of any of the runs, for `config.replicas` replicas.
    setups : runs for which `are_replicas` holds, at most as many as `replicas`.
    states : state of each run, one replica each.
    steps : number of the next step of each run.
    places : place of each run among the replicas, 0 … `replicas`-1, all different.
    count : number of steps.

    Returns
    -------
    For each run, the state after the steps and the records, of shape (count,).
    """
    run_indices = [places.index(place) if place in places else 0 for place in range(setups[0].config.replicas)]
    hypers = [setup.hyper(step, count) for setup, step in zip(setups, steps, strict=True)]
    batches = [setup.batches(step, count) for setup, step in zip(setups, steps, strict=True)]
    state, rows = engine.advance(
        TrainingState.join([states[index] for index in run_indices]),
        Hyper.join([hypers[index] for index in run_indices]),
        torch.cat([batches[index] for index in run_indices]),
    )
    return [(state.replica(place), rows[place]) for place in places]
