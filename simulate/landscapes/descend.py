"""Training on a landscape: SGD with weight decay on a scale-invariant loss, compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

import theory
from simulate.landscapes import _kernels
from simulate.landscapes._kernels import WalkerState
from simulate.landscapes.landscapes import NormalizedRegression, Ratio2D, RayleighQuotient, ScaleInvariantLoss
from simulate.maps.iteration import check_start, flat_copy, status_codes, trajectory_of_batch
from simulate.maps.layout import Coords, place_setting, unlabelled
from simulate.trajectories.contract import CONSTRAINTS, NORM_MAX, NORM_MIN
from theory.arguments import (
    FloatArray,
    check_integer,
    check_intrinsic_lr,
    check_lr,
    check_real,
    check_rows,
    check_wd,
    quote,
)
from theory.optimizers import OptimizerLike, check_optimizer
from theory.schedules import learning_rates

_FIXED = {None: _kernels.FREE, "norm": _kernels.FIXED_NORM, "effective_lr": _kernels.FIXED_EFFECTIVE_LR}


def descend(
    landscape: ScaleInvariantLoss,
    lr: npt.ArrayLike | theory.Schedule,
    wd: npt.ArrayLike,
    *,
    steps: int,
    seed: int = 0,
    optimizer: OptimizerLike = None,
    walkers: int = 1,
    norm: npt.ArrayLike = 1.0,
    weights: npt.ArrayLike | None = None,
    fixed: str | None = None,
    record_every: int = 1,
    start: xr.Dataset | None = None,
) -> xr.Dataset:
    """Train on a scale-invariant loss with SGD and weight decay.

    Parameters
    ----------
    landscape : `Ratio2D`, `RayleighQuotient` or `NormalizedRegression`.
    lr : η > 0: number, one for each walker, or a schedule such as `theory.Cosine`, evaluated at the absolute step
        number.
    wd : λ >= 0: number or one for each walker, with ηλ below the optimizer's limit, 2 for plain SGD.
    steps : number of updates.
    seed : seed of the random start and of the mini-batches. Each random number is a function of seed, walker and step,
        so a walker behaves the same in any batch.
    optimizer : `theory.SGD`, with either kind of momentum and of weight decay, or its text form; default plain SGD.
    walkers : size of the batch. The result has the dimension `batch` if it is above 1, or if lr, wd, norm or weights
        have an axis of walkers.
    norm : ρ > 0 of a start in a random direction: number or one for each walker.
    weights : initial weights, shape (d,) or (walkers, d), used as they are; leave out `norm` then.
    fixed : None, or the quantity that stays constant:

        - "norm": after each step the weights (not the velocity) are rescaled to their initial norm; wd must be 0. This
          is training on a sphere at the constant effective learning rate η/ρ².
        - "effective_lr": the optimizer receives the gradient times ρ², with the norm before the step; weight decay and
          lr act as usual. A plain step is x⁺ = (1-ηλ)x - ηρ²∇f(x), and η is the effective learning rate. The norm is
          free. Without weight decay it grows by √(1+(ηg̃)²) each step and finally overflows. The directions of plain
          SGD without weight decay are those of "norm" at norm 1.
    record_every : record the steps whose number is divisible by it.
    start : trajectory that an earlier call returned for the same landscape, optimizer and `fixed`, or some of its
        walkers. The run continues from its last state, with its seed and step numbers, bit for bit as if it had not
        been cut. lr and wd may differ. Leave out `walkers`, `norm` and `weights`; `seed` is optional. Walkers that have
        ended stay unchanged.

    Returns
    -------
    Trajectory (see `simulate.trajectories.contract`) with `norm`, `grad_norm` (of the mini-batch loss, without weight
    decay), `effective_lr`, `rotation`, `loss` (of the mini-batch), `radial_defect`, and `lr` if it varies in time. The
    last state is `final_weights`, with momentum `final_velocity`, with a fixed norm `held_norm`. A walker whose squared
    norm leaves the range of normal floating-point numbers keeps its rows up to that step (in a batch the rest is NaN).
    It has the status "diverged" or "collapsed" and its last valid state; the angle of a step that overflows is NaN. A
    run with `fixed` names it in its attribute `constraint`, because it obeys another one-step law.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or out of range, or arguments do not fit together.

    Source: docs/mathematics.md §1, §2, §4; arXiv 2209.03695 for the sphere.

    Examples
    --------
    >>> from simulate.landscapes import RayleighQuotient
    >>> run = descend(RayleighQuotient([0.0, 1.0, 2.0]), 0.1, 0.0, steps=500)
    >>> run.norm.dims, round(run.loss.values[-1].item(), 12), run.status.item()
    (('step',), 0.0, 'complete')
    >>> more = descend(RayleighQuotient([0.0, 1.0, 2.0]), 0.1, 0.0, steps=10, start=run)
    >>> more.step.values[0].item()
    500
    """
    if not isinstance(landscape, (NormalizedRegression, Ratio2D, RayleighQuotient)):
        raise TypeError(
            f"landscape must be a NormalizedRegression, Ratio2D or RayleighQuotient, got {type(landscape).__name__}"
        )
    rule = check_optimizer(optimizer)
    if not isinstance(rule, theory.SGD):
        raise ValueError(f"optimizer must be a theory.SGD, got {quote(rule)}")
    if not (fixed is None or isinstance(fixed, str)) or fixed not in _FIXED:
        raise ValueError(f"fixed must be one of None, 'norm', 'effective_lr'; got {quote(fixed)}")
    steps, record_every = check_integer("steps", steps), check_integer("record_every", record_every, at_least=1)
    seed = check_integer("seed", seed, at_most=2**63 - 1)
    walkers = check_integer("walkers", walkers, at_least=1)
    check_rows("walkers", walkers, 4 * landscape.dim)
    decay = check_wd(wd)
    if fixed == "norm" and decay.any():
        raise ValueError(f"wd must be 0 with fixed='norm', got {quote(wd)}")
    law = {"optimizer": repr(rule), "constraint": CONSTRAINTS[fixed], "landscape": repr(landscape)}

    if start is None:
        lr_shape = () if callable(lr) else np.shape(lr)
        shape, state = _initial_state(landscape, walkers, norm, weights, seed, lr_shape, decay.shape)
    else:
        if walkers != 1 or weights is not None or not np.array_equal(norm, 1.0):
            raise ValueError("walkers, norm and weights must be left out with start, which determines them")
        state = _restart_state(start, law, rule, fixed, seed)
        shape = start.final_norm.shape
    begin, count, dims = state.begin, state.code.size, ("batch",)[: len(shape)]
    schedule = np.ascontiguousarray(learning_rates(lr, begin, begin + steps)) if callable(lr) else np.empty(0)
    lrs = np.ones(count) if callable(lr) else _per_walker("lr", check_lr(lr), shape)
    decays = _per_walker("wd", decay, shape)
    check_intrinsic_lr(schedule[:, np.newaxis] if callable(lr) else lrs, decays, below=rule.intrinsic_lr_limit)

    check_rows("steps", steps // record_every, len(_kernels.COLUMNS) * count)
    step = np.arange(-(-begin // record_every) * record_every, begin + steps, record_every)
    recorded = np.full((len(_kernels.COLUMNS), count, step.size), np.nan)
    compiled_rule = _kernels.Rule(float(rule.momentum), rule.nesterov, rule.decoupled, _FIXED[fixed])
    _kernels.iterate_descent(
        landscape.parts(), state, compiled_rule, lrs, schedule, decays, steps, record_every, recorded
    )
    columns = dict(zip(_kernels.COLUMNS, recorded.reshape(len(recorded), *shape, step.size), strict=True))
    attributes: dict[str, Any] = {**law, "seed": state.seed, "updates": begin + steps}
    coords: Coords = {"walker": (dims, state.numbers.reshape(shape))}
    if callable(lr):
        columns["lr"] = schedule[step - begin]
    else:
        place_setting(coords, attributes, dims, "lr", lrs.reshape(shape))
    place_setting(coords, attributes, dims, "wd", decays.reshape(shape))
    last_state = {"final_weights": ((*dims, "weight"), state.weights.reshape(*shape, -1))}
    if rule.momentum:
        last_state["final_velocity"] = ((*dims, "weight"), state.velocity.reshape(*shape, -1))
    if fixed == "norm":
        last_state["held_norm"] = (dims, state.held_norm.reshape(shape))
    return trajectory_of_batch(
        columns,
        state,
        step=step,
        shape=shape,
        dims=dims,
        source="landscape",
        final_norm=np.sqrt((state.weights * state.weights).sum(axis=1)),
        coords=coords,
        last_state=last_state,
        attributes=attributes,
    )


def _initial_state(
    landscape: ScaleInvariantLoss,
    walkers: int,
    norm: npt.ArrayLike,
    weights: npt.ArrayLike | None,
    seed: int,
    lr_shape: tuple[int, ...],
    wd_shape: tuple[int, ...],
) -> tuple[tuple[int, ...], WalkerState]:
    """Shape of the batch and state before the first step, whose arrays are never those of the caller."""
    check_real("norm", norm, above=0)
    norms = check_real("norm", norm, at_least=NORM_MIN, at_most=NORM_MAX)
    initial = None if weights is None else check_real("weights", unlabelled(weights))
    shapes = {"lr": lr_shape, "wd": wd_shape, "norm": norms.shape}
    if initial is not None:
        if not np.array_equal(norms, 1.0):
            raise ValueError(f"norm must be left out with weights, whose norm it would be, got {quote(norm)}")
        if initial.ndim not in (1, 2) or initial.shape[-1] != landscape.dim:
            raise ValueError(
                f"weights must have the shape ({landscape.dim},) or (walkers, {landscape.dim}), got {initial.shape}"
            )
        shapes["weights"] = initial.shape[:-1]
    if walkers > 1:
        shapes["walkers"] = (walkers,)
    for argument, shape in shapes.items():
        if len(shape) > 1:
            raise ValueError(f"{argument} must be a number or have one value for each walker, got shape {shape}")
    try:
        batch = np.broadcast_shapes(*shapes.values())
    except ValueError:
        listed = ", ".join(f"{argument} {shape}" for argument, shape in shapes.items())
        raise ValueError(f"shapes must broadcast together, got {listed}") from None
    numbers = np.arange(batch[0] if batch else 1)
    count = numbers.size
    start_weights = np.empty((count, landscape.dim))
    if initial is None:
        _kernels.random_directions(seed, numbers, start_weights)
        lengths = np.sqrt((start_weights * start_weights).sum(axis=1))
        start_weights *= (np.broadcast_to(norms, count) / lengths)[:, np.newaxis]
    else:
        start_weights[...] = initial
    with np.errstate(over="ignore"):
        lengths = np.sqrt((start_weights * start_weights).sum(axis=1))
    check_real("norm of weights", lengths, at_least=NORM_MIN * (1 - 1e-12), at_most=NORM_MAX)
    ended, code = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    return batch, WalkerState(0, seed, start_weights, np.zeros_like(start_weights), lengths, numbers, ended, code)


def _restart_state(
    start: xr.Dataset, law: dict[str, str], rule: theory.SGD, fixed: str | None, seed: int
) -> WalkerState:
    """State at the end of an earlier run. The arrays are copies."""
    needed = ["final_weights", "walker"]
    needed += ["final_velocity"] if rule.momentum else []
    needed += ["held_norm"] if fixed == "norm" else []
    check_start(start, "descend", {"source": "landscape", **law}, *needed)
    if seed not in (0, start.attrs["seed"]):
        raise ValueError(f"seed must be that of start, {start.attrs['seed']}, or left out; got {seed}")
    if start.final_norm.dims not in ((), ("batch",)):
        raise ValueError(f"start must be one run or have the dimension 'batch', got {start.final_norm.dims}")
    weights = flat_copy(start, "final_weights", "weight").astype(np.float64)
    return WalkerState(
        int(start.attrs["updates"]),
        int(start.attrs["seed"]),
        weights,
        flat_copy(start, "final_velocity", "weight") if rule.momentum else np.zeros_like(weights),
        flat_copy(start, "held_norm") if fixed == "norm" else np.ones(len(weights)),
        flat_copy(start, "walker").astype(np.int64),
        flat_copy(start, "status_step").astype(np.int64),
        status_codes(start),
    )


def _per_walker(name: str, values: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """New array with one value for each walker."""
    count = shape[0] if shape else 1
    if values.shape not in ((), (1,), (count,)) or (values.ndim and not shape):
        raise ValueError(f"{name} must be a number or have one value for each of {count} walkers, got {values.shape}")
    return np.array(np.broadcast_to(values, (count,)))
