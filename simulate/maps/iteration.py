"""Where a batch of norms stands, and how it is moved on: in which loop, on how many threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

import theory
from simulate.maps import _kernels
from simulate.trajectories.contract import COLLAPSED, COMPLETE, DIVERGED, check_trajectory
from theory.arguments import FloatArray

STATUSES = (COMPLETE, COLLAPSED, DIVERGED)
# steps from which threads are worth their start, and numbers that are prepared at a time
_WORTH_THREADS, _PREPARED = 2**21, 2**20
_PARTS_PER_THREAD = 4  # so that one with little to do helps the others


@dataclass(frozen=True)
class State:
    """Where each trajectory of a batch stands, flat; the arrays are moved on in place.

    Parameters
    ----------
    begin : number of the step before which those that run stand.
    sq_norm, velocity : r, and the parts of the velocity along and across the weights, shape (batch, 2).
    numbers : of the random streams.
    ended, code : step before which each stands, and how it ended.
    """

    begin: int
    sq_norm: FloatArray
    velocity: FloatArray
    numbers: npt.NDArray[np.int64]
    ended: npt.NDArray[np.int64]
    code: npt.NDArray[np.int64]


def fresh(norm: FloatArray, begin: int = 0) -> State:
    """State of weights at rest.

    Examples
    --------
    >>> fresh(np.array([1.0, 2.0])).sq_norm.tolist()
    [1.0, 4.0]
    """
    count = norm.size
    return State(
        begin,
        norm.astype(np.float64).reshape(count) ** 2,
        np.zeros((count, 2)),
        np.arange(count, dtype=np.int64),
        np.full(count, begin, dtype=np.int64),
        np.zeros(count, dtype=np.int64),
    )


def continued(start: Any, name: str, source: str, optimizer: theory.SGD) -> State:
    """State at the end of an earlier run; its arrays are copies.

    Raises
    ------
    TypeError, ValueError : `start` is no trajectory that `name` returned, or one of another optimizer.

    Examples
    --------
    >>> continued(3, "norm_map", "map", theory.SGD())
    Traceback (most recent call last):
    ...
    TypeError: start must be a trajectory that norm_map returned, got int
    """
    if not isinstance(start, xr.Dataset):
        raise TypeError(f"start must be a trajectory that {name} returned, got {type(start).__name__}")
    for attribute, own in {"source": source, "optimizer": repr(optimizer)}.items():
        if start.attrs.get(attribute) != own:
            raise ValueError(f"start must have the {attribute} {own!r}, got {start.attrs.get(attribute)!r}")
    for attribute in ("seed", "updates"):
        if attribute not in start.attrs:
            raise ValueError(f"start must be a trajectory that {name} returned, which says its {attribute}")
    parts = ("final_velocity_along", "final_velocity_across") if optimizer.momentum else ()
    check_trajectory(start, "final_norm", "final_sq_norm", "status", "status_step", *parts)
    dims = start.final_norm.dims

    def flat(variable: str) -> Any:
        # a single run has no dimensions, a setting of a whole batch none of its own
        return start[variable].broadcast_like(start.final_norm).transpose(*dims).values.reshape(-1).copy()

    status = flat("status")
    for one in status:
        if one not in STATUSES:
            raise ValueError(f"start must have the status {', '.join(STATUSES)}, got {one!r}")
    count = status.size
    return State(
        int(start.attrs["updates"]),
        flat("final_sq_norm").astype(np.float64),
        np.stack([flat(part) for part in parts], axis=1) if parts else np.zeros((count, 2)),
        (flat("walker") if "walker" in start.variables else np.arange(count)).astype(np.int64),
        flat("status_step").astype(np.int64),
        np.array([STATUSES.index(one) for one in status], dtype=np.int64),
    )


@dataclass(frozen=True)
class Drive:
    """Where g̃ comes from: given values, or two bounds between which a kernel chooses; (*batch, steps or 1)."""

    kind: int
    low: FloatArray
    high: FloatArray
    seed: int = 0
    rest: FloatArray | None = None


@dataclass(frozen=True)
class Plan:
    """What is to be done from a state on.

    Parameters
    ----------
    rates, decay : η of shape (steps,) or (*batch, steps or 1), and λ of shape batch.
    drive : the gradients.
    updates, steps : updates of each trajectory, shape batch, and the most of them.
    stride : distance of the rows; 0 records statistics instead.
    optimizer, source : rule, and "map" or "ode".
    levels : squared norms whose crossing is timed.
    exact, threads : see `norm_map`.
    """

    rates: FloatArray
    decay: FloatArray
    drive: Drive
    updates: npt.NDArray[np.int64]
    steps: int
    stride: int
    optimizer: theory.SGD
    source: str
    levels: FloatArray = field(default_factory=lambda: np.empty(0))
    exact: bool = True
    threads: int | None = 1


@dataclass(frozen=True)
class Made:
    """What a run has left behind, flat: rows of r, g̃ and (with momentum) angles; statistics; times of crossing."""

    step: npt.NDArray[np.int64]
    rates: FloatArray
    sq_norm: FloatArray
    gradients: FloatArray
    turns: FloatArray
    statistics: FloatArray
    crossing: FloatArray


def move_on(state: State, plan: Plan, crossing: FloatArray) -> Made:
    """Move a state on by a plan, in place, in the fastest loop that does it; `crossing` (batch, levels) too.

    Examples
    --------
    >>> still = fresh(np.array(2.0))
    >>> plan = Plan(np.ones(1), np.zeros(()), Drive(_kernels.GIVEN, np.zeros(1), np.zeros(1)), np.array(3), 3, 1,
    ...             theory.SGD(), "map")
    >>> move_on(still, plan, np.empty((1, 0))).sq_norm.tolist()
    [[4.0, 4.0, 4.0]]
    """
    shape, count, steps, stride, drive = plan.decay.shape, state.sq_norm.size, plan.steps, plan.stride, plan.drive
    first_row = -(-state.begin // stride) if stride else 0
    step = np.arange(first_row * stride, state.begin + steps, stride) if stride else np.arange(0)
    moving = plan.optimizer.momentum > 0

    def per_step(values: FloatArray) -> FloatArray:
        # the batch is flattened before the steps are broadcast, so that constants stay views of one number
        batch = np.broadcast_to(values, (*shape, values.shape[-1])).reshape(count, values.shape[-1])
        return np.broadcast_to(batch, (count, steps))

    rates, low, high = per_step(plan.rates), per_step(drive.low), per_step(drive.high)
    decay, updates = np.array(plan.decay).reshape(count), plan.updates.reshape(count)
    rest = np.ones(count) if drive.rest is None else drive.rest.reshape(count)
    recorded, gradients = np.full((count, step.size), np.nan), np.full((count, step.size), np.nan)
    turns = np.full((count, step.size if moving else 0), np.nan)
    statistics = np.tile([np.inf, 0.0, 0.0, 0.0], (0 if stride else count, 1))
    constant = drive.kind == _kernels.GIVEN and plan.rates.shape[-1] == drive.low.shape[-1] == 1
    constant = constant and plan.source == "map" and steps > 0 and bool((updates == steps).all())
    rows = (stride, first_row)

    def step_by_step(part: slice) -> None:
        _kernels.iterate_norm_map(
            state.sq_norm[part],
            rates[part],
            decay[part],
            low[part],
            high[part],
            rest[part],
            drive.kind,
            drive.seed,
            state.numbers[part],
            state.begin,
            updates[part],
            *rows,
            recorded[part],
            gradients[part],
            statistics[part],
            plan.levels,
            crossing[part],
            state.ended[part],
            state.code[part],
            plan.source == "ode",
        )

    def side_by_side(part: slice) -> None:
        shrink, push = 1.0 - rates[part, 0] * decay[part], rates[part, 0] * low[part, 0]
        ended, code = state.ended[part], state.code[part]
        if not plan.exact:
            _kernels.iterate_constant_by_fours(
                state.sq_norm[part], shrink, push, state.begin, steps, *rows, recorded[part], ended, code
            )
        else:
            before, ran = state.sq_norm[part].copy(), code == _kernels.RUNS
            _kernels.iterate_constant(
                state.sq_norm[part],
                shrink,
                push,
                state.begin,
                steps,
                *rows,
                recorded[part],
                statistics[part],
                ended,
                code,
            )
            # where a trajectory ended its sums have gone on
            for one in np.flatnonzero(ran & (code != _kernels.RUNS)) if statistics.size else ():
                place = part.start + int(one)
                state.sq_norm[place], state.code[place] = before[one], _kernels.RUNS
                step_by_step(slice(place, place + 1))
        gradients[part] = low[part, :1]

    def with_momentum(part: slice) -> None:
        size = part.stop - part.start
        scheduled = plan.rates.shape[-1] > 1
        piece = max(1, _PREPARED // max(1, size)) if scheduled else max(1, steps)
        for begin in range(0, steps, piece):
            now = slice(begin, min(begin + piece, steps))
            known = now if scheduled else slice(0, 1)
            coefficients = linear_rule(plan.optimizer, rates[part, known], decay[part, np.newaxis])
            _kernels.iterate_moments(
                state.sq_norm[part],
                state.velocity[part],
                np.broadcast_to(coefficients, (size, now.stop - now.start, 2, 3)),
                low[part, now],
                high[part, now],
                drive.kind,
                drive.seed,
                state.numbers[part],
                state.begin + begin,
                now.stop - now.start,
                *rows,
                recorded[part],
                gradients[part],
                turns[part],
                statistics[part],
                state.ended[part],
                state.code[part],
            )

    _on_threads(with_momentum if moving else side_by_side if constant else step_by_step, count, steps, plan.threads)
    return Made(step, rates[:, step - state.begin], recorded, gradients, turns, statistics, crossing)


def linear_rule(optimizer: theory.SGD, lr: FloatArray, wd: FloatArray) -> FloatArray:
    """Coefficients with which a rule makes the new weights and velocity of the old ones and the gradient.

    Examples
    --------
    >>> linear_rule(theory.SGD(momentum=0.5), np.array([0.1]), np.array([2.0])).tolist()
    [[[0.8, -0.05, -0.1], [2.0, 0.5, 1.0]]]
    """
    weights, velocity, gradient = np.eye(3)
    moved, (pace,) = optimizer.update(weights, gradient, (velocity,), lr[..., np.newaxis], wd[..., np.newaxis])
    return np.stack(np.broadcast_arrays(moved, pace), axis=-2)


def _on_threads(work: Callable[[slice], None], count: int, steps: int, threads: int | None) -> None:
    """Do the work on whole blocks of the batch; what it gives does not depend on how they are shared out."""
    blocks = -(-count // _kernels.BLOCK)
    if threads is None:
        threads = usable_processors() if count * steps >= _WORTH_THREADS else 1
    threads = min(threads, blocks)
    if threads <= 1:
        work(slice(0, count))
        return
    parts = min(blocks, threads * _PARTS_PER_THREAD)
    ends = [min(blocks * i // parts * _kernels.BLOCK, count) for i in range(parts + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, map(slice, ends, ends[1:])))


def usable_processors() -> int:
    """Processors that this process may use.

    Examples
    --------
    >>> usable_processors() >= 1
    True
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
