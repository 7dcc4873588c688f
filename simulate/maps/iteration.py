"""State of a batch of norms, and its iteration: choice of the compiled loop and of the number of threads."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import xarray as xr

import theory
from simulate.maps import _kernels
from simulate.maps._kernels import Flow, GradientSource, NormState, Rows
from simulate.trajectories.contract import COLLAPSED, COMPLETE, DIVERGED, check_trajectory, make_trajectory
from theory.adaptive import OddDirection
from theory.arguments import FloatArray, check_rows, quote
from theory.optimizers import check_norm_law

_STATUSES = (COMPLETE, COLLAPSED, DIVERGED)  # in the order of the codes of the compiled loops
# least number of steps of the batch for which threads pay off, and number of coefficients prepared at a time
_MIN_STEPS_FOR_THREADS, _PREPARED = 2**21, 2**20
_PARTS_PER_THREAD = 4  # so that threads that finish early take over work
_Arrays = TypeVar("_Arrays", NormState, GradientSource, Rows)


def initial_norm_state(norm: FloatArray, begin: int = 0, terms: int = 2) -> NormState:
    """State of weights with the given norm and no velocity, which has a number of terms."""
    count = norm.size
    numbers, ended, code = np.arange(count), np.full(count, begin), np.zeros(count, dtype=np.int64)
    velocity = np.zeros((count, terms))
    return NormState(
        begin, norm.astype(np.float64).reshape(count) ** 2, velocity, np.zeros(count), numbers, ended, code
    )


def check_start(start: Any, name: str, attributes: Mapping[str, str], *needed: str) -> None:
    """Check that a run to be continued has these attributes and variables, as results of the function `name` have."""
    if not isinstance(start, xr.Dataset):
        raise TypeError(f"start must be a trajectory that {name} returned, got {type(start).__name__}")
    for attribute, expected in attributes.items():
        if start.attrs.get(attribute) != expected:
            raise ValueError(f"start must have the {attribute} {expected!r}, got {quote(start.attrs.get(attribute))}")
    for attribute in ("seed", "updates"):
        if attribute not in start.attrs:
            raise ValueError(f"start must be a trajectory that {name} returned, with the attribute {attribute!r}")
    check_trajectory(start, "final_norm", "status", "status_step", *needed, argument="start")
    for status in start.status.values.reshape(-1):
        if status not in _STATUSES:
            raise ValueError(f"start must have the status {', '.join(_STATUSES)}, got {quote(status)}")


def flat_copy(start: xr.Dataset, variable: str, *inner: str) -> Any:
    """Values of a last state with one axis for the whole batch, and one for each of the dimensions `inner`."""
    # a single run has no dimensions, and neither has a setting shared by the batch
    values = start[variable]
    values = values if inner else values.broadcast_like(start.final_norm)
    values = values.transpose(*start.final_norm.dims, *inner)
    return np.array(values.values.reshape(-1, *values.shape[values.ndim - len(inner) :]), order="C")


def status_codes(start: xr.Dataset) -> npt.NDArray[np.int64]:
    """Indices in `_STATUSES`."""
    return np.array([_STATUSES.index(status) for status in flat_copy(start, "status")], dtype=np.int64)


def trajectory_of_batch(
    columns: dict[str, FloatArray],
    state: Any,
    *,
    step: npt.NDArray[np.int64],
    shape: tuple[int, ...],
    final_norm: FloatArray,
    **more: Any,
) -> xr.Dataset:
    """Make a trajectory from columns (*shape, rows) and a last state with `ended` and `code`, which are flattened.

    A single run that has ended keeps its rows up to that step. `more` goes to `make_trajectory`.
    """
    if not shape and state.code[0]:
        rows = int(np.searchsorted(step, state.ended[0], side="right"))
        columns, step = {name: values[:rows] for name, values in columns.items()}, step[:rows]
    return make_trajectory(
        columns,
        step=step,
        final_norm=final_norm.reshape(shape),
        status=np.array(_STATUSES, dtype=object)[state.code].reshape(shape),
        status_step=state.ended.reshape(shape),
        **more,
    )


_ALONG, _ACROSS, _MEAN_SQUARE = "final_velocity_along", "final_velocity_across", "final_mean_square"
_STEP_MEMORY, _MOMENTUM_SIZE = "final_step_memory", "final_momentum_size"


def memory_terms(optimizer: theory.Optimizer) -> int:
    """Numbers in the velocity of a state: one for each term of the correlation of directions, or two.

    Examples
    --------
    >>> memory_terms(theory.AdamW()), memory_terms(theory.Lion(dim=10, betas=(0.5, 0.5)))
    (2, 64)
    """
    return optimizer.direction_law()[0].size if isinstance(optimizer, OddDirection) else 2


def memory_of(optimizer: theory.Optimizer, source: str = "map") -> dict[str, str]:
    """Variables of the last state that hold the memory of an optimizer, and the dimension that each has, or "".

    Examples
    --------
    >>> memory_of(theory.SGD()), memory_of(theory.AdamW(), "ode")
    ({}, {})
    >>> list(memory_of(theory.AdamW()))
    ['final_velocity_along', 'final_velocity_across', 'final_mean_square']
    """
    if source == "ode":
        return {}
    if isinstance(optimizer, OddDirection):
        return {_STEP_MEMORY: "term", _MOMENTUM_SIZE: ""}
    if isinstance(optimizer, (theory.Adam, theory.AdamW)):
        return {_ALONG: "", _ACROSS: "", _MEAN_SQUARE: ""}
    has_velocity = isinstance(optimizer, theory.SGD) and optimizer.momentum > 0
    return {_ALONG: "", _ACROSS: ""} if has_velocity else {}


def memory_values(state: NormState, names: Collection[str]) -> dict[str, FloatArray]:
    """Values of the variables that `memory_of` names."""
    values = {_MEAN_SQUARE: state.square, _MOMENTUM_SIZE: state.square, _STEP_MEMORY: state.velocity}
    values |= {_ALONG: state.velocity[:, 0], _ACROSS: state.velocity[:, -1]}
    return {name: values[name] for name in names}


def restart_state(start: Any, name: str, source: str, optimizer: theory.Optimizer) -> NormState:
    """State at the end of an earlier run of the function `name`. The arrays are copies."""
    parts = memory_of(optimizer, source)
    check_start(start, name, {"source": source, "optimizer": repr(optimizer)}, "final_sq_norm", *parts)
    count = start.final_norm.size
    state = initial_norm_state(flat_copy(start, "final_norm"), int(start.attrs["updates"]), memory_terms(optimizer))
    if (kept := start.sizes.get("term", state.velocity.shape[1])) != state.velocity.shape[1]:
        raise ValueError(f"start must have {state.velocity.shape[1]} terms in final_step_memory, got {kept}")
    for part, target in memory_values(state, parts).items():
        target[...] = flat_copy(start, part, *filter(None, (parts[part],)))
    return state._replace(
        sq_norm=flat_copy(start, "final_sq_norm").astype(np.float64),
        numbers=(flat_copy(start, "walker") if "walker" in start.variables else np.arange(count)).astype(np.int64),
        ended=flat_copy(start, "status_step").astype(np.int64),
        code=status_codes(start),
    )


def flow_law(rule: theory.Optimizer) -> Flow:
    """Law of the norm for small steps, as powers of η, λ and g̃.

    Raises
    ------
    ValueError : the optimizer has no such law, or its law has another form.

    Examples
    --------
    >>> flow_law(theory.SGD()), flow_law(theory.AdamW(dim=100, betas=(0.0, 0.9999999))).growth_by_gradient
    (Flow(power=4.0, rate_exponent=0.0, rate=4.0, rate_by_gradient=0.0, growth=2.0, growth_by_gradient=1.0), 0.0)
    """
    check_norm_law(rule)

    def values(lr: float, wd: float, grad_norm: float) -> tuple[float, float]:
        lr_, wd_, gradient = (np.asarray(value) for value in (lr, wd, grad_norm))
        return float(rule.norm_rate(lr_, wd_, gradient)), float(rule.norm_growth(lr_, gradient))

    (rate, growth), (rate_at_two, growth_at_two) = values(1.0, 1.0, 1.0), values(1.0, 1.0, 2.0)
    by_gradient = math.log2(rate_at_two / rate), math.log2(growth_at_two / growth) / 2
    flow = Flow(float(rule.norm_power), float(rule.rate_exponent), rate, by_gradient[0], growth, by_gradient[1])
    expected = rate * 0.03 * 3.0 ** by_gradient[0], growth * (0.3 * 3.0 ** by_gradient[1]) ** 2
    if not np.allclose(values(0.3, 0.1, 3.0), expected, rtol=1e-9, atol=0):
        raise ValueError(
            f"optimizer must have a norm_rate proportional to ηλ and a norm_growth proportional to η², each with a "
            f"power of the gradient norm; got {quote(rule)}"
        )
    return flow


@dataclass(frozen=True)
class IterationPlan:
    """Settings of an iteration.

    Parameters
    ----------
    lr, wd : η and λ of shape (steps,) or (*batch, steps or 1).
    gradients : source of g̃.
    updates, steps : number of updates of each trajectory, of the shape of the batch, and their maximum.
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
    optimizer: theory.Optimizer
    source: str
    levels: FloatArray = field(default_factory=lambda: np.empty(0))
    exact: bool = True
    threads: int | None = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the batch."""
        return self.updates.shape


@dataclass(frozen=True)
class IterationResult:
    """Numbers of the recorded steps, η and λ there of shape (batch, rows), and the rows of the flattened batch."""

    step: npt.NDArray[np.int64]
    lr: FloatArray
    wd: FloatArray
    rows: Rows


def _part(arrays: _Arrays, part: slice) -> _Arrays:
    """Part of the batch."""
    parts: Any = {name: value[part] for name, value in arrays._asdict().items() if isinstance(value, np.ndarray)}
    return arrays._replace(**parts)


def iterate(state: NormState, plan: IterationPlan, crossing: FloatArray) -> IterationResult:
    """Advance a state by the fastest suitable loop. It changes `state` and `crossing` (batch, levels) in place."""
    shape, count, steps, stride = plan.shape, state.sq_norm.size, plan.steps, plan.stride
    first_row = -(-state.begin // stride) if stride else 0
    check_rows("steps", steps // stride if stride else 0, 2 * count)
    step = np.arange(first_row * stride, state.begin + steps, stride) if stride else np.arange(0)
    has_memory = bool(memory_of(plan.optimizer, plan.source))
    flow = flow_law(plan.optimizer) if plan.source == "ode" else flow_law(theory.SGD())
    scheduled = plan.lr.shape[-1] > 1 or plan.wd.shape[-1] > 1

    def per_step(values: FloatArray) -> FloatArray:
        # flatten the batch before broadcasting along the steps, so that constants stay views of one number
        batch = np.broadcast_to(values, (*shape, values.shape[-1])).reshape(count, values.shape[-1])
        return np.broadcast_to(batch, (count, steps))

    kind, low, high, seed, lower_end = plan.gradients
    lower_ends = np.ones(count) if lower_end is None else lower_end.reshape(count)
    source = GradientSource(kind, per_step(low), per_step(high), seed, lower_ends)
    lrs, wds, updates = per_step(plan.lr), per_step(plan.wd), plan.updates.reshape(count)
    rows = Rows(
        stride,
        first_row,
        np.full((count, step.size), np.nan),
        np.full((count, step.size), np.nan),
        np.full((count, step.size if has_memory else 0), np.nan),
        np.tile([np.inf, 0.0, 0.0, 0.0], (0 if stride else count, 1)),
    )
    constant = kind == _kernels.PRESCRIBED and not scheduled and low.shape[-1] == 1
    constant = constant and plan.source == "map" and steps > 0 and bool((updates == steps).all())

    def step_by_step(part: slice) -> None:
        _kernels.iterate_norm_map(
            _part(state, part), lrs[part], wds[part], _part(source, part), updates[part], _part(rows, part),
            plan.levels, crossing[part], plan.source == "ode", flow,
        )  # fmt: skip

    def side_by_side(part: slice) -> None:
        shrink, push = 1.0 - lrs[part, 0] * wds[part, 0], lrs[part, 0] * source.low[part, 0]
        batch, batch_rows = _part(state, part), _part(rows, part)
        if plan.exact:
            before, was_running = batch.sq_norm.copy(), batch.code == _kernels.RUNNING
            _kernels.iterate_constant(batch, shrink, push, steps, batch_rows)
            # the sums of a trajectory that ended went on: repeat it step by step
            for member in np.flatnonzero(was_running & (batch.code != _kernels.RUNNING)) if not stride else ():
                batch.sq_norm[member], batch.code[member] = before[member], _kernels.RUNNING
                step_by_step(slice(part.start + int(member), part.start + int(member) + 1))
        else:
            _kernels.iterate_constant_by_fours(batch, shrink, push, steps, batch_rows)
        rows.grad_norm[part] = source.low[part, :1]

    def with_momentum(part: slice) -> None:
        size, batch, batch_source = part.stop - part.start, _part(state, part), _part(source, part)
        chunk_size = max(1, _PREPARED // max(1, size)) if scheduled else max(1, steps)
        for begin in range(0, steps, chunk_size):
            chunk = slice(begin, min(begin + chunk_size, steps))
            chunk_steps = chunk.stop - chunk.start
            in_time = chunk if scheduled else slice(0, 1)
            assert isinstance(plan.optimizer, theory.SGD)
            coefficients = linear_rule(plan.optimizer, lrs[part, in_time], wds[part, in_time])
            _kernels.iterate_moments(
                batch._replace(begin=state.begin + begin),
                np.broadcast_to(coefficients, (size, chunk_steps, 2, 3)),
                batch_source._replace(low=batch_source.low[:, chunk], high=batch_source.high[:, chunk]),
                chunk_steps,
                _part(rows, part),
            )

    def adaptively(part: slice) -> None:
        assert isinstance(plan.optimizer, (theory.Adam, theory.AdamW))
        rule = plan.optimizer.moment_law()
        _kernels.iterate_adaptive(
            _part(state, part), lrs[part], wds[part], rule, _part(source, part), steps, _part(rows, part)
        )

    def along_directions(part: slice) -> None:
        assert isinstance(plan.optimizer, OddDirection)
        series, rule = plan.optimizer.direction_law()
        _kernels.iterate_directions(
            _part(state, part), lrs[part], wds[part], series, rule, _part(source, part), steps, _part(rows, part)
        )

    loop = side_by_side if constant else step_by_step
    if has_memory and isinstance(plan.optimizer, OddDirection):
        loop = along_directions
    elif has_memory:
        loop = with_momentum if isinstance(plan.optimizer, theory.SGD) else adaptively
    _on_threads(loop, count, steps, plan.threads)
    at = step - state.begin
    return IterationResult(step, lrs[:, at], wds[:, at], rows)


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
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
