"""Random walks of scale-invariant weights under any optimizer, driven by random gradients without a loss."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xarray as xr

import theory
from simulate.trajectories.contract import COLLAPSED, COMPLETE, DIVERGED, effective_lrs, make_trajectory
from theory.arguments import check_integer, check_intrinsic_lr, check_lr, check_number, check_rows, check_wd
from theory.optimizers import OptimizerLike, check_optimizer, with_dim
from theory.schedules import schedule_values


def random_walk(
    lr: float | theory.Schedule,
    wd: float | theory.Schedule,
    grad_norm: npt.ArrayLike = 1.0,
    *,
    dim: int,
    steps: int,
    optimizer: OptimizerLike = None,
    walkers: int = 16,
    norm: float | None = None,
    record_every: int = 1,
    seed: int = 0,
) -> xr.Dataset:
    """Simulate independent walkers with random gradients orthogonal to their weights.

    The gradient has norm g̃/ρ. Its direction is uniform on the sphere orthogonal to the weights, and independent in
    time. The closed forms in `theory.optimizers` assume the same, and are tested against these walks.

    Parameters
    ----------
    lr : η > 0, or a schedule.
    wd : λ >= 0, or a schedule.
    grad_norm : g̃ > 0 (units of the loss).
    dim : number of weights d >= 2.
    steps : number of updates.
    optimizer : any optimizer of `theory`, or its text form; default `theory.SGD()`.
    walkers : size of the batch.
    norm : ρ at the start; default is the predicted equilibrium norm, or 1 if there is none.
    record_every : record the steps whose number is divisible by it.
    seed : seed of all random numbers.

    Returns
    -------
    Trajectory with the dimensions `batch` (walkers) and `step`: `norm`, `grad_norm`, `effective_lr`, `rotation`, and
    η/ρ as `angular_lr` under Adam, AdamW, Lion and Muon.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or out of range.

    Source: docs/mathematics.md §7.

    Examples
    --------
    >>> walk = random_walk(0.1, 0.1, 2.0, dim=50, steps=400, walkers=4)
    >>> abs(float((walk.norm**4).mean()) ** 0.25 / theory.equilibrium_norm(0.1, 0.1, 2.0) - 1) < 1e-3
    True
    """
    rule = check_optimizer(optimizer)
    rule = rule if getattr(rule, "dim", dim) is not None else with_dim(rule, check_integer("dim", dim, at_least=2))
    gradient_norm = check_number("grad_norm", grad_norm, above=0)
    dim, walkers = check_integer("dim", dim, at_least=2), check_integer("walkers", walkers, at_least=1)
    steps, record_every = check_integer("steps", steps), check_integer("record_every", record_every, at_least=1)
    check_rows("dim", dim, 8)
    check_rows("walkers", walkers, 8 * dim)
    check_rows("steps", steps, 2 + 3 * walkers // record_every)
    lrs, wds = (
        schedule_values(value, name, np.arange(max(steps, 1)))
        if callable(value)
        else np.full(max(steps, 1), check(check_number(name, value)))
        for name, value, check in (("lr", lr, check_lr), ("wd", wd, check_wd))
    )
    check_intrinsic_lr(lrs, wds, below=rule.intrinsic_lr_limit)
    if norm is None:
        equilibrium = theory.equilibrium_norm(lrs[0], wds[0], gradient_norm, optimizer=rule)
        norm = equilibrium if np.isfinite(equilibrium) else 1.0
    start = check_number("norm", norm, above=0)
    generator = np.random.default_rng(check_integer("seed", seed))

    weights = _unit(generator.normal(size=(walkers, dim))) * start
    state = rule.start(weights)
    rows = -(-steps // record_every)
    recorded = {name: np.full((walkers, rows), np.nan) for name in ("norm", "rotation")}
    status, updates = COMPLETE, steps
    lengths = np.full(walkers, start)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for t in range(steps):
            direction = weights / lengths[:, np.newaxis]
            noise = generator.normal(size=(walkers, dim))
            across = _unit(noise - (noise * direction).sum(axis=1, keepdims=True) * direction)
            gradient = across * (gradient_norm / lengths)[:, np.newaxis]
            following, state = rule.update(weights, gradient, state, lrs[t], wds[t])
            after = np.sqrt((following * following).sum(axis=1))
            if not np.isfinite(after).all() or (after == 0).any():
                status, updates = (COLLAPSED if (after == 0).any() else DIVERGED), t
                break
            if t % record_every == 0:
                along = (following * direction).sum(axis=1)
                aside = following - along[:, np.newaxis] * direction
                recorded["norm"][:, t // record_every] = lengths
                recorded["rotation"][:, t // record_every] = np.arctan2(np.sqrt((aside * aside).sum(axis=1)), along)
            weights, lengths = following, after
    step = np.arange(0, updates, record_every)
    columns = {name: values[:, : step.size] for name, values in recorded.items()}
    columns["grad_norm"] = np.full_like(columns["norm"], gradient_norm)
    columns |= effective_lrs(lrs[step], columns["norm"], repr(rule))
    setting = {}
    for name, value, values in (("wd", wd, wds), ("lr", lr, lrs)):
        if callable(value):
            columns[name] = values[step]
        else:
            setting[name] = float(values[0])
    return make_trajectory(
        columns,
        step=step,
        source="random_walk",
        final_norm=lengths,
        status=np.full(walkers, status, dtype=object),
        status_step=np.full(walkers, updates),
        dims=("batch",),
        attributes={"optimizer": repr(rule), "seed": seed, "dim": dim, **setting},
    )


def _unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(vectors / np.sqrt((vectors * vectors).sum(axis=1, keepdims=True)))
