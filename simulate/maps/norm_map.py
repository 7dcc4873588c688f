"""The exact map of the norm, r⁺ = (1-ηλ)² r + (ηg̃)²/r, for batches, schedules and recorded gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import xarray as xr

import theory
from simulate.maps import kernels
from simulate.maps.gradients import AdversarialGradient, BoundedGradient, GradientRule
from simulate.trajectories.contract import (
    COLLAPSED,
    COMPLETE,
    DIVERGED,
    NORM_MAX,
    NORM_MIN,
    VARIABLES,
    check_trajectory,
    make_trajectory,
    setting,
)
from theory.arguments import FloatArray, broadcast, intrinsic_lr, learning_rate, real, weight_decay, whole_number
from theory.destabilization import step_angle
from theory.schedules import learning_rates


def norm_map(
    lr: npt.ArrayLike | theory.Schedule,
    wd: npt.ArrayLike,
    grad_norm: npt.ArrayLike | GradientRule | AdversarialGradient,
    *,
    norm: npt.ArrayLike,
    steps: int,
    optimizer: theory.Optimizer | None = None,
    record_every: int | None = 1,
    seed: int | None = None,
) -> xr.Dataset:
    """Iterate the exact one-step law of the norm, without a network.

    Parameters
    ----------
    lr : η > 0: number, array, or a schedule such as `theory.Cosine`.
    wd : λ >= 0 with ηλ < 2.
    grad_norm : g̃ >= 0 (units of the loss), constant in time, or a rule: `RecordedGradient`, `BoundedGradient`,
        `AdversarialGradient`.
    norm : ρ > 0 at step 0. Numbers and arrays (or DataArrays, whose dimensions are kept) broadcast to the batch.
    steps : number of updates.
    optimizer : plain `theory.SGD()`, the default.
    record_every : record rows 0, k, 2k, …; None records no rows, but statistics over all steps.
    seed : of random rules; recorded in the result. None takes a fresh one.

    Returns
    -------
    Trajectory (see `simulate.trajectories.contract`) with `norm`, `grad_norm`, `effective_lr`, `rotation`. Two and more
    axes are named `lr` or `wd` where just that argument varies along them. A trajectory that leaves the floating-point
    range keeps its rows up to there (in a batch the rest is NaN), with status "diverged" or "collapsed". Without rows
    it has `norm_min`, `norm_max`, `mean_sq_norm`, `mean_fourth_norm` (E[ρ²], E[ρ⁴]) of the norms before each update,
    and memory does not grow with the number of steps.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range, or shapes do not broadcast.

    Source: arXiv 2106.15739 §3; docs/mathematics.md §1.

    Examples
    --------
    >>> run = norm_map(0.1, 0.01, 2.0, norm=1.0, steps=5000)
    >>> round(run.final_norm.item(), 4), round(theory.equilibrium_norm(0.1, 0.01, 2.0), 4)
    (2.115, 2.115)
    """
    if repr(optimizer or theory.SGD()) != repr(theory.SGD()):
        raise ValueError(f"optimizer must be theory.SGD(), got {optimizer!r}")
    return simulated(lr, wd, grad_norm, norm=norm, steps=steps, record_every=record_every, seed=seed, source="map")


def simulated(
    lr: npt.ArrayLike | theory.Schedule,
    wd: npt.ArrayLike,
    grad_norm: npt.ArrayLike | GradientRule | AdversarialGradient,
    *,
    norm: npt.ArrayLike,
    steps: int,
    record_every: int | None,
    seed: int | None,
    source: str,
) -> xr.Dataset:
    """Check the arguments of `norm_map` and `norm_ode`, lay out the batch, and run it; `source` is "map" or "ode".

    Examples
    --------
    >>> simulated(0.1, 0.01, 2.0, norm=1.0, steps=3, record_every=1, seed=0, source="map").norm.size
    3
    """
    steps = whole_number("steps", steps)
    stride = 0 if record_every is None else whole_number("record_every", record_every, at_least=1)
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    seed = whole_number("seed", seed)
    rule = cast(Any, grad_norm) if hasattr(grad_norm, "batch_shape") else None
    real("norm", norm, above=0)
    checked = {"wd": weight_decay(wd), "norm": real("norm", norm, at_least=NORM_MIN, at_most=NORM_MAX)}
    rates: FloatArray | None = None
    if callable(lr):
        rates = learning_rates(lr, 0, steps)
    else:
        checked["lr"] = learning_rate(lr)
    checked["grad_norm"] = (
        np.zeros(rule.batch_shape)
        if rule is not None
        else real("grad_norm", cast(npt.ArrayLike, grad_norm), at_least=0)
    )
    # the trajectory keeps these, the caller may change his own
    checked = {name: value.copy() for name, value in checked.items()}
    labelled = {
        name: value.copy(data=checked[name])
        for name, value in (("wd", wd), ("norm", norm), ("lr", lr), ("grad_norm", grad_norm))
        if isinstance(value, xr.DataArray)
    }
    dims, coords, arrays = _labelled_layout(checked, labelled) if labelled else _batch_layout(checked)
    decay, start = arrays["wd"], arrays["norm"]
    if rates is None:
        rates = arrays["lr"][..., np.newaxis]
    intrinsic_lr(rates, decay[..., np.newaxis])
    drive = _drive(rule, arrays["grad_norm"], start.shape, steps, seed)
    updates = np.full(start.shape, steps)
    return _run(rates, decay, drive, start, updates, steps, stride, dims, coords, {"seed": seed}, source)


class _Drive(NamedTuple):
    """Where g̃ comes from: given values, or two bounds between which a kernel chooses; (*batch, steps or 1)."""

    kind: int
    low: FloatArray
    high: FloatArray
    seed: int = 0


def _drive(rule: Any, constant: FloatArray, shape: tuple[int, ...], steps: int, seed: int) -> _Drive:
    if rule is None:
        return _Drive(kernels.GIVEN, constant[..., np.newaxis], constant[..., np.newaxis])
    if isinstance(rule, (BoundedGradient, AdversarialGradient)):
        low, high = (np.broadcast_to(np.asarray(end), shape)[..., np.newaxis].copy() for end in (rule.low, rule.high))
        if isinstance(rule, BoundedGradient):
            return _Drive(kernels.RANDOM, low, high, seed)
        return _Drive(kernels.LOWEST if rule.towards == "lower" else kernels.HIGHEST, low, high)
    values = rule.values_for(shape, steps, seed)
    return _Drive(kernels.GIVEN, values, values)


def replay(trajectory: xr.Dataset) -> xr.Dataset:
    """Feed a measured trajectory's own g̃_t, lr and wd to the one-step law, from its first norm.

    Where the law holds, the replayed norm equals the measured one up to rounding over the whole run.

    Parameters
    ----------
    trajectory : one run or a batch with `norm` and `grad_norm` at every step (stride 1).

    Returns
    -------
    Trajectory with the same steps. A batch member that has NaN rows at its end is replayed up to there.

    Raises
    ------
    TypeError, ValueError : no trajectory, rows are missing, or an unknown optimizer.

    Source: docs/mathematics.md §1.

    Examples
    --------
    >>> run = norm_map(0.1, 0.01, 2.0, norm=1.0, steps=100)
    >>> float(abs(replay(run).norm / run.norm - 1).max()) < 1e-12
    True
    """
    check_trajectory(trajectory, "grad_norm")
    step = trajectory.step.values
    if step.size == 0:
        raise ValueError("trajectory must have at least one row to be replayed, got none")
    if np.any(np.diff(step) != 1):
        raise ValueError("trajectory must have every step (record_every=1) to be replayed; rows are missing")
    if trajectory.attrs.get("optimizer", "SGD()") != "SGD()":
        raise ValueError(f"trajectory must be of optimizer SGD() to be replayed, got {trajectory.attrs['optimizer']}")
    dims = tuple(str(d) for d in trajectory.norm.dims if d != "step")
    order = (*dims, "step")
    norm, grad_norm = trajectory.norm.transpose(*order), trajectory.grad_norm.transpose(*order)
    like = norm.isel(step=0, drop=True)
    missing = np.isnan(grad_norm.values)
    if np.any(missing[..., :-1] & ~missing[..., 1:]):
        raise ValueError("trajectory must have g̃ at every step to be replayed; grad_norm is NaN before a later value")
    rates = setting(trajectory, "lr")
    if rates.dims == ("step",):
        rates_values = rates.values
    elif "step" in rates.dims:
        rates_values = rates.broadcast_like(norm).transpose(*order).values
    else:
        rates_values = rates.broadcast_like(like).transpose(*dims).values[..., np.newaxis]
    decay = setting(trajectory, "wd").broadcast_like(like).transpose(*dims)
    coords = {str(n): (tuple(map(str, c.dims)), c.values) for n, c in like.coords.items() if set(c.dims) <= set(dims)}
    replayed = _run(
        rates_values,
        decay.values,
        _Drive(kernels.GIVEN, grad_norm.values, grad_norm.values),
        like.values,
        np.asarray((~missing).sum(axis=-1)),
        step.size,
        1,
        dims,
        {n: c for n, c in coords.items() if n in dims or n in ("lr", "wd")},
        {},
    )
    return replayed.assign_coords(step=trajectory.step[: replayed.sizes["step"]])


def _run(
    rates: FloatArray,
    decay: FloatArray,
    drive: _Drive,
    start: FloatArray,
    updates: npt.NDArray[np.int64],
    steps: int,
    stride: int,
    dims: Sequence[str],
    coords: dict[str, tuple[Sequence[str], Any]],
    attributes: dict[str, Any],
    source: str = "map",
) -> xr.Dataset:
    shape = start.shape
    count = int(np.prod(shape))
    rows = -(-steps // stride) if stride else 0
    sq_norm = (start.astype(np.float64) ** 2).reshape(count)
    recorded, gradients = np.full((count, rows), np.nan), np.full((count, rows), np.nan)
    statistics = np.zeros((0 if stride else count, 4))
    ended, code = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)

    def per_step(values: FloatArray) -> FloatArray:
        # the batch is flattened before the steps are broadcast, so that constants stay views of one number
        batch = np.broadcast_to(values, (*shape, values.shape[-1])).reshape(count, values.shape[-1])
        return np.broadcast_to(batch, (count, steps))

    flat_decay = np.array(decay).reshape(count)
    all_rates, low, high = per_step(rates), per_step(drive.low), per_step(drive.high)
    rest = np.ones(count)
    if drive.kind == kernels.HIGHEST and steps:
        # the lower end of the attracting interval under the first learning rate
        rest = theory.norm_bounds(all_rates[:, 0], flat_decay, low[:, 0], high[:, 0]).lower ** 2

    def step_by_step(chosen: Any) -> None:
        sums = statistics[chosen] if statistics.size else np.zeros((count, 4))[chosen]
        kernels.iterate_norm_map(
            sq_norm[chosen],
            all_rates[chosen],
            flat_decay[chosen],
            low[chosen],
            high[chosen],
            rest[chosen],
            drive.kind,
            drive.seed,
            0,
            updates.reshape(count)[chosen],
            stride,
            recorded[chosen],
            gradients[chosen],
            sums,
            ended[chosen],
            code[chosen],
            source == "ode",
        )

    constant = source == "map" and drive.kind == kernels.GIVEN and rates.shape[-1] == drive.low.shape[-1] == 1
    if constant and steps and (updates == steps).all():
        shrink, push = 1.0 - all_rates[:, 0] * flat_decay, all_rates[:, 0] * low[:, 0]
        began = sq_norm.copy()
        kernels.iterate_constant(sq_norm, shrink, push, steps, stride, recorded, statistics, ended, code)
        gradients[...] = low[:, :1]
        if statistics.size:
            # where a trajectory ended the sums have gone on
            for one in np.flatnonzero(code):
                sq_norm[one] = began[one]
                step_by_step(slice(one, one + 1))
    else:
        step_by_step(slice(None))
    step = np.arange(0, steps, stride) if stride else np.arange(0)
    norm = np.sqrt(recorded).reshape(*shape, rows)
    alive = ~np.isnan(norm)
    lr = np.broadcast_to(all_rates[:, step].reshape(*shape, rows), norm.shape)
    grad_norm = np.where(alive, gradients.reshape(*shape, rows), np.nan)
    # near the end of the floating-point range these overflow; the status tells
    with np.errstate(over="ignore", invalid="ignore"):
        effective_lr = lr / norm**2
        turn = effective_lr * grad_norm
    columns = {
        "norm": norm,
        "grad_norm": grad_norm,
        "effective_lr": effective_lr,
        "rotation": turn if source == "ode" else step_angle(turn, lr * decay[..., np.newaxis]),
    }
    coords = dict(coords)
    attributes = {"optimizer": "SGD()", **attributes}
    if rates.shape[-1] == 1:
        _place(coords, attributes, dims, "lr", np.broadcast_to(rates[..., 0], shape))
    else:
        columns["lr"] = rates[step] if rates.ndim == 1 else lr
    _place(coords, attributes, dims, "wd", decay)
    status = np.array([COMPLETE, COLLAPSED, DIVERGED], dtype=object)[code].reshape(shape)
    if not shape:
        last = int(np.searchsorted(step, ended[0], side="right")) if code[0] else rows
        columns = {name: values[:last] for name, values in columns.items()}
        step = step[:last]
    trajectory = make_trajectory(
        columns,
        step=step,
        source=source,
        final_norm=np.sqrt(sq_norm).reshape(shape),
        status=status,
        status_step=ended.reshape(shape),
        dims=dims,
        coords=coords,
        attributes=attributes,
    )
    return trajectory if stride else _with_statistics(trajectory, statistics.reshape(*shape, 4), ended.reshape(shape))


def _with_statistics(trajectory: xr.Dataset, sums: FloatArray, made: npt.NDArray[Any]) -> xr.Dataset:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        values = {
            "norm_min": np.sqrt(np.where(made > 0, sums[..., kernels.LEAST], np.nan)),
            "norm_max": np.sqrt(np.where(made > 0, sums[..., kernels.MOST], np.nan)),
            "mean_sq_norm": sums[..., kernels.SUM] / made,
            "mean_fourth_norm": sums[..., kernels.SUM_OF_SQUARES] / made,
        }
    dims = trajectory.final_norm.dims
    described = {
        name: (dims, value, dict(zip(("units", "long_name"), VARIABLES[name], strict=True)))
        for name, value in values.items()
    }
    return trajectory.assign(described)


def _place(
    coords: dict[str, Any], attributes: dict[str, Any], dims: Sequence[str], name: str, values: FloatArray
) -> None:
    """Put a setting where the contract wants it: attribute of one run, coordinate of a batch."""
    if not dims:
        attributes[name] = float(values)
    elif name not in coords:
        coords[name] = (dims, values)


_Layout = tuple[tuple[str, ...], dict[str, tuple[Sequence[str], Any]], dict[str, FloatArray]]


def _labelled_layout(given: Mapping[str, FloatArray], labelled: Mapping[str, xr.DataArray]) -> _Layout:
    """Dimensions and coordinates of the batch to which numbers and DataArrays broadcast, and the broadcast values."""
    first = next(iter(labelled))
    for name in given:
        if name not in labelled and given[name].ndim:
            raise TypeError(f"{name} must be a number or a DataArray when {first} is a DataArray")
        if name in labelled and "step" in labelled[name].dims:
            raise ValueError(f"{name} must be constant in time, got a DataArray with the dimension 'step'")
    try:
        arrays = xr.broadcast(*xr.align(*(labelled.get(n, xr.DataArray(v)) for n, v in given.items()), join="exact"))
    except ValueError as error:
        raise ValueError(f"coordinates of {', '.join(labelled)} must agree: {error}") from None
    dims = tuple(map(str, arrays[0].dims))
    coords: dict[str, tuple[Sequence[str], Any]] = {}
    for dim in dims:
        if dim in arrays[0].coords:
            coords[dim] = ((dim,), arrays[0].coords[dim].values)
        elif dim in labelled and labelled[dim].dims == (dim,):
            coords[dim] = ((dim,), given[dim])
    return dims, coords, {name: array.values for name, array in zip(given, arrays, strict=True)}


def _batch_layout(given: Mapping[str, FloatArray]) -> _Layout:
    """Dimensions and coordinates of the batch to which plain arrays broadcast, and the broadcast values."""
    shape = broadcast(**given)[0].shape
    arrays = {name: np.broadcast_to(value, shape) for name, value in given.items()}
    if len(shape) < 2:
        return ("batch",)[: len(shape)], {}, arrays
    dims, coords = [], dict[str, tuple[Sequence[str], Any]]()
    for axis, size in enumerate(shape):
        varying = [n for n, v in given.items() if size > 1 and _size_along(v.shape, axis, len(shape)) > 1]
        if varying in (["lr"], ["wd"]) and given[varying[0]].size == size:
            dims.append(varying[0])
            coords[varying[0]] = ((varying[0],), given[varying[0]].ravel())
        else:
            dims.append(f"batch_{axis}")
    return tuple(dims), coords, arrays


def _size_along(shape: tuple[int, ...], axis: int, ndim: int) -> int:
    own = axis - (ndim - len(shape))
    return shape[own] if own >= 0 else 1
