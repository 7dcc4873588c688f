"""Common part of `norm_map` and `norm_ode`: checks of arguments, and assembly of the trajectory."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import xarray as xr

import theory
from simulate.maps import _kernels
from simulate.maps._kernels import GradientSource, NormState
from simulate.maps.gradients import AdversarialGradient, BoundedGradient, GradientRule
from simulate.maps.iteration import (
    IterationPlan,
    IterationResult,
    flow_law,
    initial_norm_state,
    iterate,
    memory_of,
    memory_terms,
    memory_values,
    restart_state,
    trajectory_of_batch,
)
from simulate.maps.layout import BatchLayout, lay_out, place_setting, unlabelled
from simulate.trajectories.contract import NORM_MAX, NORM_MIN, effective_lrs
from theory.arguments import (
    FloatArray,
    check_flag,
    check_integer,
    check_intrinsic_lr,
    check_lr,
    check_real,
    check_wd,
    quote,
)
from theory.destabilization import step_angle
from theory.schedules import schedule_values

_SMALL = 1e-6  # η and λ whose equilibrium has the form of small steps
_SMALLEST_LOWER_END = 1e-150  # of r in units of ηL, from which an adversary raises a norm that could decay for ever


def simulate_norm(
    lr: npt.ArrayLike | theory.Schedule,
    wd: npt.ArrayLike | theory.Schedule,
    grad_norm: npt.ArrayLike | GradientRule | AdversarialGradient,
    *,
    norm: npt.ArrayLike | None,
    steps: int,
    record_every: int | None,
    seed: int | None,
    start: xr.Dataset | None,
    source: str,
    optimizer: theory.Optimizer,
    levels: npt.ArrayLike | None = None,
    exact: bool = True,
    threads: int | None = 1,
) -> xr.Dataset:
    """Check the arguments of `norm_map` (`source` "map") or `norm_ode` ("ode"), lay out the batch and simulate it."""
    steps = check_integer("steps", steps)
    stride = 0 if record_every is None else check_integer("record_every", record_every, at_least=1)
    seed = None if seed is None else check_integer("seed", seed, at_most=2**63 - 1)
    threads = None if threads is None else check_integer("threads", threads, at_least=1)
    rule = cast(Any, grad_norm) if hasattr(grad_norm, "batch_shape") else None
    level_norms = None if levels is None else _check_levels(levels)
    state = None
    checked = {} if callable(wd) else {"wd": check_wd(unlabelled(wd))}
    if start is None:
        check_real("norm", unlabelled(norm), above=0)
        checked["norm"] = check_real("norm", unlabelled(norm), at_least=NORM_MIN, at_most=NORM_MAX)
    elif norm is not None:
        raise ValueError(f"norm must be left out with start, whose last norm is used; got {quote(norm)}")
    else:
        state = restart_state(start, f"norm_{source}", source, optimizer)
        if seed not in (None, start.attrs["seed"]):
            raise ValueError(f"seed must be that of start, {start.attrs['seed']}, or left out; got {seed}")
        seed = int(start.attrs["seed"])
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    begin = 0 if state is None else state.begin
    schedules: dict[str, FloatArray] = {}
    for name, value, check in (("lr", lr, check_lr), ("wd", wd, check_wd)):
        if callable(value):
            schedules[name] = schedule_values(value, name, np.arange(begin, begin + steps))
        elif name == "lr":
            checked["lr"] = check(unlabelled(value))
    checked["grad_norm"] = (
        np.zeros(rule.batch_shape) if rule is not None else check_real("grad_norm", unlabelled(grad_norm), at_least=0)
    )
    _check_exact(exact, bool(schedules or memory_of(optimizer, source)) or rule is not None, record_every)
    # copies, because the trajectory keeps them and the caller may change the originals
    checked = {name: value.copy() for name, value in checked.items()}
    labelled = {
        name: value.copy(data=checked[name])
        for name, value in (("wd", wd), ("norm", norm), ("lr", lr), ("grad_norm", grad_norm))
        if isinstance(value, xr.DataArray)
    }
    layout = lay_out(checked, labelled, start)
    for name, value in (("lr", lr), ("wd", wd)):
        if name in schedules and name in layout.dims:
            raise ValueError(
                f"{name} must not be a schedule in a batch that has a dimension {name!r}, got {quote(value)}"
            )
    if state is None:
        state = initial_norm_state(layout.arrays["norm"], terms=memory_terms(optimizer))
    shape = layout.arrays["grad_norm"].shape
    lrs, wds = (schedules[name] if name in schedules else layout.arrays[name][..., np.newaxis] for name in ("lr", "wd"))
    check_intrinsic_lr(lrs, wds, below=optimizer.intrinsic_lr_limit)
    if isinstance(rule, AdversarialGradient):
        if optimizer != theory.SGD():
            raise ValueError(f"grad_norm must not be adversarial with momentum, only with plain SGD; got {quote(rule)}")
        # that of step 0, also in a run that is continued
        first_lr, first_wd = (
            schedule_values(value, name, np.arange(1))[0] if callable(value) else layout.arrays[name]
            for name, value in (("lr", lr), ("wd", wd))
        )
        gradients = _adversarial_source(rule, np.broadcast_to(first_lr, shape), np.broadcast_to(first_wd, shape))
    else:
        gradients = _gradient_source(rule, layout.arrays["grad_norm"], shape, begin, steps, seed)
    if source == "ode" and flow_law(optimizer).rate_by_gradient < 0 and gradients.low.size and not gradients.low.min():
        raise ValueError(f"grad_norm must be > 0 in norm_ode with {optimizer!r}, got {quote(grad_norm)}")
    crossing = _initial_crossing_times(level_norms, start, state, layout.dims)
    levels = np.empty(0) if level_norms is None else level_norms**2
    updates = np.full(shape, steps)
    plan = IterationPlan(lrs, wds, gradients, updates, steps, stride, optimizer, source, levels, exact, threads)
    result = iterate(state, plan, crossing)
    if (gradients.kind == _kernels.RANDOM and layout.dims) or (start is not None and "walker" in start.coords):
        layout.coords["walker"] = (layout.dims, state.numbers.reshape(shape))
    variables = {} if stride else _statistics(result.rows.statistics, np.maximum(state.ended - begin, 0))
    if level_norms is not None:
        layout.coords["level"] = (("level",), level_norms)
        variables["crossing_time"] = crossing
    attributes = {"seed": seed, "updates": begin + steps}
    return assemble_trajectory(result, state, plan, layout, schedules, attributes, variables)


def assemble_trajectory(
    result: IterationResult,
    state: NormState,
    plan: IterationPlan,
    layout: BatchLayout,
    scheduled: Collection[str],
    attributes: dict[str, Any],
    variables: Mapping[str, FloatArray],
) -> xr.Dataset:
    """Make a trajectory from the result of `iterate`, with further variables of the flattened batch.

    `scheduled` names what varies in time: "lr", "wd" or both.
    """
    shape, dims, step = plan.shape, layout.dims, result.step
    norm = np.sqrt(result.rows.sq_norm).reshape(*shape, step.size)
    lr, wd = (values.reshape(norm.shape) for values in (result.lr, result.wd))
    grad_norm = np.where(np.isnan(norm), np.nan, result.rows.grad_norm.reshape(norm.shape))
    # these overflow near the end of the floating-point range; the status reports it
    with np.errstate(over="ignore", invalid="ignore"):
        effective = effective_lrs(lr, norm, repr(plan.optimizer))
        tangent = effective["effective_lr"] * grad_norm
    memory = memory_of(plan.optimizer, plan.source)
    if memory:
        rotation = result.rows.angles.reshape(norm.shape)
    elif plan.source == "ode":
        rotation = _rotation_of_flow(plan.optimizer, lr, grad_norm, norm)
    else:
        rotation = step_angle(tangent, lr * wd)
    columns = {"norm": norm, "grad_norm": grad_norm, **effective, "rotation": rotation}
    attributes = {"optimizer": repr(plan.optimizer), **attributes}
    for name, planned, recorded in (("lr", plan.lr, lr), ("wd", plan.wd, wd)):
        if name in scheduled:
            columns[name] = planned[step - state.begin] if planned.ndim == 1 else recorded
        else:
            place_setting(layout.coords, attributes, dims, name, np.broadcast_to(planned[..., 0], shape))
    variables = {"final_sq_norm": state.sq_norm, **variables, **memory_values(state, memory)}
    return trajectory_of_batch(
        columns,
        state,
        step=step,
        shape=shape,
        dims=dims,
        source=plan.source,
        final_norm=np.sqrt(state.sq_norm),
        coords=layout.coords,
        last_state={
            # the first axis is that of the flattened batch
            name: (
                (*dims, memory.get(name) or "level")[: len(dims) + values.ndim - 1],
                values.reshape(shape + values.shape[1:]),
            )
            for name, values in variables.items()
        },
        attributes=attributes,
    )


def _rotation_of_flow(rule: theory.Optimizer, lr: FloatArray, grad_norm: FloatArray, norm: FloatArray) -> FloatArray:
    """Rotation per step for small steps: the square root of the growth of ln ρ² times the share of single steps.

    The rest of the growth is the correlation of steps. The share is constant, hence that of a small ηλ at equilibrium.
    """
    small, one = np.asarray(_SMALL), np.asarray(1.0)
    settled = rule.equilibrium_norm(small, small, one)
    decay = 2 / rule.norm_power * rule.norm_rate(small, small, one) * settled**rule.rate_exponent
    share = 2 * rule.equilibrium_turn(small, small, one) / decay
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        growth = np.sqrt(2 / rule.norm_power * share * rule.norm_growth(one, grad_norm))
        return np.asarray(lr * growth * norm ** ((rule.rate_exponent - rule.norm_power) / 2))


def _check_exact(exact: Any, varying: bool, record_every: int | None) -> None:
    check_flag("exact", exact)
    if not exact and varying:
        raise ValueError("exact must be True with a schedule, a rule for grad_norm or momentum, got False")
    if not exact and (record_every is None or record_every % 4):
        raise ValueError(f"record_every must be a multiple of 4 with exact=False, got {quote(record_every)}")


def _check_levels(levels: npt.ArrayLike) -> FloatArray:
    check_real("levels", levels, above=0)
    checked = check_real("levels", levels, at_least=NORM_MIN, at_most=NORM_MAX).copy()
    if checked.ndim != 1:
        raise ValueError(f"levels must be one-dimensional, got shape {checked.shape}")
    return checked


def _gradient_source(
    rule: Any, constant: FloatArray, shape: tuple[int, ...], begin: int, steps: int, seed: int
) -> GradientSource:
    if rule is None:
        return GradientSource(_kernels.PRESCRIBED, constant[..., np.newaxis], constant[..., np.newaxis])
    if isinstance(rule, BoundedGradient):
        return GradientSource(
            _kernels.RANDOM, _constant_in_time(rule.low, shape), _constant_in_time(rule.high, shape), seed
        )
    values = rule.values_for(shape, begin + steps, seed)[..., begin:]
    return GradientSource(_kernels.PRESCRIBED, values, values)


def _adversarial_source(rule: AdversarialGradient, first_lr: FloatArray, wd: FloatArray) -> GradientSource:
    low, high = _constant_in_time(rule.low, wd.shape), _constant_in_time(rule.high, wd.shape)
    if rule.towards == "lower":
        return GradientSource(_kernels.LOWEST, low, high)
    # the lower end of the attracting interval under the learning rate of step 0; where it is 0, a very small norm
    lower_end = theory.norm_bounds(first_lr, wd, low[..., 0], high[..., 0]).lower ** 2
    lower_end = np.maximum(lower_end, _SMALLEST_LOWER_END * first_lr * high[..., 0])
    return GradientSource(_kernels.HIGHEST, low, high, lower_end=lower_end)


def _constant_in_time(values: npt.ArrayLike, shape: tuple[int, ...]) -> FloatArray:
    return np.broadcast_to(np.asarray(values), shape)[..., np.newaxis].copy()


def _initial_crossing_times(
    level_norms: FloatArray | None, start: xr.Dataset | None, state: NormState, dims: tuple[str, ...]
) -> FloatArray:
    """Crossing times known before the first step, inf elsewhere; shape (batch, levels)."""
    if level_norms is None:
        return np.empty((state.sq_norm.size, 0))
    running = (state.code == _kernels.RUNNING)[:, np.newaxis]
    crossing = np.where(running & (state.sq_norm[:, np.newaxis] == level_norms**2), float(state.begin), np.inf)
    if start is not None and "crossing_time" in start.variables:
        earlier_times = start.crossing_time.transpose(*dims, "level").values.reshape(
            state.sq_norm.size, start.level.size
        )
        for level, times in zip(start.level.values, earlier_times.T, strict=True):
            crossing[:, level_norms == level] = times[:, np.newaxis]
    return crossing


def _statistics(sums: FloatArray, updates: npt.NDArray[np.int64]) -> dict[str, FloatArray]:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return {
            "norm_min": np.sqrt(np.where(updates > 0, sums[:, _kernels.LEAST], np.nan)),
            "norm_max": np.sqrt(np.where(updates > 0, sums[:, _kernels.MOST], np.nan)),
            "mean_sq_norm": sums[:, _kernels.SUM] / updates,
            "mean_fourth_norm": sums[:, _kernels.SUM_OF_SQUARES] / updates,
        }
