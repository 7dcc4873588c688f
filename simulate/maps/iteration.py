"""State of a batch of norms, and its iteration: choice of the compiled loop and of the number of threads."""

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
# least number of steps of the batch for which threads pay off, and number of coefficients prepared at a time
_MIN_STEPS_FOR_THREADS, _PREPARED = 2**21, 2**20
_PARTS_PER_THREAD = 4  # so that threads that finish early take over work


@dataclass(frozen=True)
class NormState:
    """State of each trajectory of a flattened batch. `iterate` updates the arrays in place.

    Parameters
    ----------
    begin : number of the next step of the running trajectories.
    sq_norm : r = ρ², shape (batch,).
    velocity : components of the velocity along and across the weights, shape (batch, 2).
    numbers : numbers of the random streams.
    ended : next step of each trajectory; if it has ended, the step whose update failed.
    code : status of each trajectory, an index of `STATUSES`.
    """

    begin: int
    sq_norm: FloatArray
    velocity: FloatArray
    numbers: npt.NDArray[np.int64]
    ended: npt.NDArray[np.int64]
    code: npt.NDArray[np.int64]


def initial_norm_state(norm: FloatArray, begin: int = 0) -> NormState:
    """State of weights with the given norm and no velocity.

    Examples
    --------
    >>> initial_norm_state(np.array([1.0, 2.0])).sq_norm.tolist()
    [1.0, 4.0]
    """
    count = norm.size
    return NormState(
        begin,
        norm.astype(np.float64).reshape(count) ** 2,
        np.zeros((count, 2)),
        np.arange(count, dtype=np.int64),
        np.full(count, begin, dtype=np.int64),
        np.zeros(count, dtype=np.int64),
    )


def restart_state(start: Any, name: str, source: str, optimizer: theory.SGD) -> NormState:
    """State at the end of an earlier run. The arrays are copies.

    Raises
    ------
    TypeError, ValueError : `start` is not a trajectory returned by `name`, or has another optimizer.

    Examples
    --------
    >>> restart_state(3, "norm_map", "map", theory.SGD())
    Traceback (most recent call last):
    ...
    TypeError: start must be a trajectory that norm_map returned, got int
    """
    if not isinstance(start, xr.Dataset):
        raise TypeError(f"start must be a trajectory that {name} returned, got {type(start).__name__}")
    for attribute, expected in {"source": source, "optimizer": repr(optimizer)}.items():
        if start.attrs.get(attribute) != expected:
            raise ValueError(f"start must have the {attribute} {expected!r}, got {start.attrs.get(attribute)!r}")
    for attribute in ("seed", "updates"):
        if attribute not in start.attrs:
            raise ValueError(f"start must be a trajectory that {name} returned, with the attribute {attribute!r}")
    parts = ("final_velocity_along", "final_velocity_across") if optimizer.momentum else ()
    check_trajectory(start, "final_norm", "final_sq_norm", "status", "status_step", *parts)
    dims = start.final_norm.dims

    def flat(variable: str) -> Any:
        # a single run has no dimensions, and neither has a setting shared by the batch
        return start[variable].broadcast_like(start.final_norm).transpose(*dims).values.reshape(-1).copy()

    status = flat("status")
    for value in status:
        if value not in STATUSES:
            raise ValueError(f"start must have the status {', '.join(STATUSES)}, got {value!r}")
    count = status.size
    return NormState(
        int(start.attrs["updates"]),
        flat("final_sq_norm").astype(np.float64),
        np.stack([flat(part) for part in parts], axis=1) if parts else np.zeros((count, 2)),
        (flat("walker") if "walker" in start.variables else np.arange(count)).astype(np.int64),
        flat("status_step").astype(np.int64),
        np.array([STATUSES.index(value) for value in status], dtype=np.int64),
    )


@dataclass(frozen=True)
class GradientSource:
    """Source of g̃: prescribed values, or bounds between which a kernel chooses.

    Parameters
    ----------
    kind : PRESCRIBED, RANDOM, LOWEST or HIGHEST of the kernels.
    low, high : values or bounds, shape (*batch, steps or 1).
    seed : seed of random values.
    lower_end : lower end of the attracting interval, as r, for HIGHEST.
    """

    kind: int
    low: FloatArray
    high: FloatArray
    seed: int = 0
    lower_end: FloatArray | None = None


@dataclass(frozen=True)
class IterationPlan:
    """Settings of an iteration.

    Parameters
    ----------
    lr, wd : η of shape (steps,) or (*batch, steps or 1), and λ of shape batch.
    gradients : source of g̃.
    updates, steps : number of updates of each trajectory, shape batch, and their maximum.
    stride : record the steps whose number is divisible by it; 0 records statistics instead.
    optimizer, source : optimizer, and "map" or "ode".
    levels : squared norms whose crossing is timed.
    exact, threads : see `norm_map`.
    """

    lr: FloatArray
    wd: FloatArray
    gradients: GradientSource
    updates: npt.NDArray[np.int64]
    steps: int
    stride: int
    optimizer: theory.SGD
    source: str
    levels: FloatArray = field(default_factory=lambda: np.empty(0))
    exact: bool = True
    threads: int | None = 1


@dataclass(frozen=True)
class IterationResult:
    """Output of an iteration for a flattened batch.

    Parameters
    ----------
    step : numbers of the recorded steps.
    lr, sq_norm, grad_norm : η, r and g̃ at these steps, shape (batch, rows).
    angles : rotations with momentum, else of shape (batch, 0).
    statistics : statistics of r, if no rows are recorded.
    crossing : crossing times, shape (batch, levels).
    """

    step: npt.NDArray[np.int64]
    lr: FloatArray
    sq_norm: FloatArray
    grad_norm: FloatArray
    angles: FloatArray
    statistics: FloatArray
    crossing: FloatArray


def iterate(state: NormState, plan: IterationPlan, crossing: FloatArray) -> IterationResult:
    """Advance a state by the fastest suitable loop. It changes `state` and `crossing` (batch, levels) in place.

    Examples
    --------
    >>> state = initial_norm_state(np.array(2.0))
    >>> no_gradient = GradientSource(_kernels.PRESCRIBED, np.zeros(1), np.zeros(1))
    >>> plan = IterationPlan(np.ones(1), np.zeros(()), no_gradient, np.array(3), 3, 1, theory.SGD(), "map")
    >>> iterate(state, plan, np.empty((1, 0))).sq_norm.tolist()
    [[4.0, 4.0, 4.0]]
    """
    shape, count, steps, stride, source = plan.wd.shape, state.sq_norm.size, plan.steps, plan.stride, plan.gradients
    first_row = -(-state.begin // stride) if stride else 0
    step = np.arange(first_row * stride, state.begin + steps, stride) if stride else np.arange(0)
    has_momentum = plan.optimizer.momentum > 0

    def per_step(values: FloatArray) -> FloatArray:
        # flatten the batch before broadcasting along the steps, so that constants stay views of one number
        batch = np.broadcast_to(values, (*shape, values.shape[-1])).reshape(count, values.shape[-1])
        return np.broadcast_to(batch, (count, steps))

    lrs, low, high = per_step(plan.lr), per_step(source.low), per_step(source.high)
    wds, updates = np.array(plan.wd).reshape(count), plan.updates.reshape(count)
    lower_end = np.ones(count) if source.lower_end is None else source.lower_end.reshape(count)
    recorded, grad_norms = np.full((count, step.size), np.nan), np.full((count, step.size), np.nan)
    angles = np.full((count, step.size if has_momentum else 0), np.nan)
    statistics = np.tile([np.inf, 0.0, 0.0, 0.0], (0 if stride else count, 1))
    constant = source.kind == _kernels.PRESCRIBED and plan.lr.shape[-1] == source.low.shape[-1] == 1
    constant = constant and plan.source == "map" and steps > 0 and bool((updates == steps).all())
    rows = (stride, first_row)

    def step_by_step(part: slice) -> None:
        _kernels.iterate_norm_map(
            state.sq_norm[part],
            lrs[part],
            wds[part],
            low[part],
            high[part],
            lower_end[part],
            source.kind,
            source.seed,
            state.numbers[part],
            state.begin,
            updates[part],
            *rows,
            recorded[part],
            grad_norms[part],
            statistics[part],
            plan.levels,
            crossing[part],
            state.ended[part],
            state.code[part],
            plan.source == "ode",
        )

    def side_by_side(part: slice) -> None:
        shrink, push = 1.0 - lrs[part, 0] * wds[part], lrs[part, 0] * low[part, 0]
        ended, code = state.ended[part], state.code[part]
        if not plan.exact:
            _kernels.iterate_constant_by_fours(
                state.sq_norm[part], shrink, push, state.begin, steps, *rows, recorded[part], ended, code
            )
        else:
            before, was_running = state.sq_norm[part].copy(), code == _kernels.RUNNING
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
            # the sums of a trajectory that ended went on: repeat it step by step
            for member in np.flatnonzero(was_running & (code != _kernels.RUNNING)) if statistics.size else ():
                index = part.start + int(member)
                state.sq_norm[index], state.code[index] = before[member], _kernels.RUNNING
                step_by_step(slice(index, index + 1))
        grad_norms[part] = low[part, :1]

    def with_momentum(part: slice) -> None:
        size = part.stop - part.start
        scheduled = plan.lr.shape[-1] > 1
        chunk_size = max(1, _PREPARED // max(1, size)) if scheduled else max(1, steps)
        for begin in range(0, steps, chunk_size):
            chunk = slice(begin, min(begin + chunk_size, steps))
            lr_steps = chunk if scheduled else slice(0, 1)
            coefficients = linear_rule(plan.optimizer, lrs[part, lr_steps], wds[part, np.newaxis])
            _kernels.iterate_moments(
                state.sq_norm[part],
                state.velocity[part],
                np.broadcast_to(coefficients, (size, chunk.stop - chunk.start, 2, 3)),
                low[part, chunk],
                high[part, chunk],
                source.kind,
                source.seed,
                state.numbers[part],
                state.begin + begin,
                chunk.stop - chunk.start,
                *rows,
                recorded[part],
                grad_norms[part],
                angles[part],
                statistics[part],
                state.ended[part],
                state.code[part],
            )

    _on_threads(
        with_momentum if has_momentum else side_by_side if constant else step_by_step, count, steps, plan.threads
    )
    return IterationResult(step, lrs[:, step - state.begin], recorded, grad_norms, angles, statistics, crossing)


def linear_rule(optimizer: theory.SGD, lr: FloatArray, wd: FloatArray) -> FloatArray:
    """Coefficients of old weights, old velocity and gradient in the new weights and velocity.

    Examples
    --------
    >>> linear_rule(theory.SGD(momentum=0.5), np.array([0.1]), np.array([2.0])).tolist()
    [[[0.8, -0.05, -0.1], [2.0, 0.5, 1.0]]]
    """
    weights, velocity, gradient = np.eye(3)
    new_weights, (new_velocity,) = optimizer.update(
        weights, gradient, (velocity,), lr[..., np.newaxis], wd[..., np.newaxis]
    )
    return np.stack(np.broadcast_arrays(new_weights, new_velocity), axis=-2)


def _on_threads(work: Callable[[slice], None], count: int, steps: int, threads: int | None) -> None:
    """Run `work` on whole blocks of the batch. The result does not depend on the number of threads."""
    blocks = -(-count // _kernels.BLOCK)
    if threads is None:
        threads = usable_processors() if count * steps >= _MIN_STEPS_FOR_THREADS else 1
    threads = min(threads, blocks)
    if threads <= 1:
        work(slice(0, count))
        return
    parts = min(blocks, threads * _PARTS_PER_THREAD)
    ends = [min(blocks * i // parts * _kernels.BLOCK, count) for i in range(parts + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, map(slice, ends, ends[1:])))


def usable_processors() -> int:
    """Number of processors that this process may use.

    Examples
    --------
    >>> usable_processors() >= 1
    True
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
