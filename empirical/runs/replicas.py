"""Runs of equal shape as replicas in the same training steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch

from empirical.runs.preparation import Setup
from empirical.steps import Engine, Hyper, State


def are_replicas(one: Setup, other: Setup) -> bool:
    """Tell whether two runs can be trained by the same steps: of one shape, and what is not trained is equal.

    Examples
    --------
    >>> from empirical.config import RunConfig
    >>> from empirical.runs.preparation import prepare
    >>> first, second = (prepare(RunConfig(lr=0.5, wd=0.01, width=8, seed=seed)) for seed in range(2))
    >>> are_replicas(first, second)
    True
    """
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
    states: Sequence[State],
    steps: Sequence[int],
    places: Sequence[int],
    count: int,
) -> list[tuple[State, npt.NDArray[Any]]]:
    """Make so many steps of each of some runs; the places among the replicas that they leave are filled with the first.

    What becomes of a run does not depend on the others, but its last bits on its place, by the way in which numbers lie
    in the registers of the processor.

    Parameters
    ----------
    engine : of any of them, for `replicas` of its configuration.
    setups : runs for which `are_replicas` holds, at most as many as `replicas`.
    states : where each of them is, of one replica.
    steps : the number of the next step of each.
    places : of each among the replicas, 0 … `replicas`-1, all different.
    count : number of steps.

    Returns
    -------
    State after the steps, and records of shape (count,), of each run.

    Examples
    --------
    >>> from empirical.config import RunConfig
    >>> from empirical.runs.preparation import prepare
    >>> from empirical.steps import ENGINES
    >>> setup = prepare(RunConfig(lr=0.5, wd=0.01, width=8, replicas=3))
    >>> engine = ENGINES[setup.config.engine](setup.problem)
    >>> ((state, rows),) = advance_replicas(engine, [setup], [setup.start], [0], places=[2], count=5)
    >>> state.weights.shape[0], rows.shape
    (1, (5,))
    """
    filled = [places.index(place) if place in places else 0 for place in range(setups[0].config.replicas)]
    hypers = [setup.hyper(step, count) for setup, step in zip(setups, steps, strict=True)]
    batches = [setup.batches(step, count) for setup, step in zip(setups, steps, strict=True)]
    state, rows = engine.advance(
        State.joined([states[k] for k in filled]),
        Hyper.joined([hypers[k] for k in filled]),
        torch.cat([batches[k] for k in filled]),
    )
    return [(state.replica(place), rows[place]) for place in places]
