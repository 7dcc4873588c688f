"""Law of the norm for batches, schedules and recorded gradients, with r = ρ².

The exact one-step law is r⁺ = (1-ηλ)² r + (ηg̃)²/r. Its limit of small steps is dr/dt = -2ηλr + (ηg̃)²/r.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xarray as xr

import theory
from simulate.maps import _kernels
from simulate.maps._kernels import GradientSource
from simulate.maps.gradients import AdversarialGradient, GradientRule
from simulate.maps.iteration import IterationPlan, initial_norm_state, iterate
from simulate.maps.layout import BatchLayout
from simulate.maps.simulation import assemble_trajectory, simulate_norm
from simulate.trajectories.contract import check_trajectory
from simulate.trajectories.setting import Setting
from theory.arguments import quote
from theory.optimizers import OptimizerLike, check_optimizer


def norm_map(
    lr: npt.ArrayLike | theory.Schedule,
    wd: npt.ArrayLike | theory.Schedule,
    grad_norm: npt.ArrayLike | GradientRule | AdversarialGradient,
    *,
    norm: npt.ArrayLike | None = None,
    steps: int,
    optimizer: OptimizerLike = None,
    record_every: int | None = 1,
    seed: int | None = None,
    start: xr.Dataset | None = None,
    exact: bool = True,
    threads: int | None = None,
) -> xr.Dataset:
    """Iterate the exact one-step law of the norm, without a network.

    With momentum, iterate the law of the second moments of weights and velocity. It assumes gradients of norm g̃/ρ that
    are orthogonal to both, as random directions are in many dimensions. The velocity starts at zero. Under Adam and
    AdamW the velocity is the mean gradient, and the mean square of the gradients follows the norm with its delay. Under
    Lion and Muon steps are correlated through their momentum, by the arcsine laws of docs/mathematics.md §7.

    Parameters
    ----------
    lr : η > 0: number, array, or a schedule such as `theory.Cosine`, evaluated at the absolute step number.
    wd : λ >= 0 with ηλ below the optimizer's limit, 2 for plain SGD: number, array or schedule.
    grad_norm : g̃ >= 0 (units of the loss), constant in time, or a rule: `RecordedGradient`, `BoundedGradient`, or for
        plain SGD `AdversarialGradient`. Rules use the absolute step number too.
    norm : ρ > 0 at step 0. Numbers, arrays and DataArrays broadcast to the batch; DataArrays keep their dimensions.
    steps : number of updates.
    optimizer : `theory.SGD`, with either kind of momentum and of weight decay, `theory.Adam`, `AdamW` or `Lion` with
        `dim`, `theory.Muon` with `rows` and `columns`, or its text form; default plain SGD.
    record_every : record the steps whose number is divisible by it. None records no rows, but statistics over all steps
        of this call.
    seed : seed of random rules, stored in the result; None takes a new one. Each random number is a function of seed,
        position in the batch and step.
    start : trajectory that an earlier call returned for the same optimizer, or part of its batch. The run continues
        from its last state, with its seed and step numbers, bit for bit as if it had not been cut. lr, wd and grad_norm
        may differ. Leave out `norm`; `seed` is optional. Trajectories that have ended stay unchanged.
    exact : False computes four steps with one division, about twice as fast, for plain SGD with constant lr, wd and
        grad_norm. The result differs by rounding: after a million steps by less than 1e-11 (relative) for starts from
        0.01 to 100 equilibrium norms. Two cases at ηλ < 1e-6 are less accurate. Decay from farther above differs by up
        to 3e-11, because single steps round to one side. Within 1e-9 of the equilibrium the difference is up to 1e-10,
        because both ways stall beside it. `record_every` must be a multiple of 4; None is not possible, since
        statistics need every step. A run cut at a multiple of 4 continues bit for bit.
    threads : number of threads that share a batch of more than 256; it does not change the result. None uses all
        available processors if the work is large enough.

    Returns
    -------
    Trajectory (see `simulate.trajectories.contract`) with `norm`, `grad_norm`, `effective_lr`, `rotation`, and η/ρ as
    `angular_lr` under Adam, AdamW, Lion and Muon. In a batch with two or more axes, an axis is named `lr` or `wd` if
    only that argument varies along it. A trajectory that leaves the floating-point range keeps its rows up to that step
    (in a batch the rest is NaN) and has the status "diverged" or "collapsed". Without rows the result has `norm_min`,
    `norm_max`, `mean_sq_norm`, `mean_fourth_norm` (E[ρ²], E[ρ⁴]) of the norms before each update, and memory does not
    grow with the number of steps. The last state is `final_sq_norm` and the memory of the optimizer:
    `final_velocity_along` and `final_velocity_across`, under Adam and AdamW `final_mean_square`, and under Lion and
    Muon `final_step_memory` and `final_momentum_size`. In a batch with random gradients, `walker` numbers the random
    streams.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or out of range, or arguments do not fit together.

    Source: arXiv 2106.15739 §3; docs/mathematics.md §1, §7.

    Examples
    --------
    >>> run = norm_map(0.1, 0.01, 2.0, norm=1.0, steps=5000)
    >>> round(run.final_norm.item(), 4), round(theory.equilibrium_norm(0.1, 0.01, 2.0), 4)
    (2.115, 2.115)
    >>> norm_map(0.1, 0.01, 2.0, steps=3, start=run).step.values.tolist()
    [5000, 5001, 5002]
    """
    rule = check_optimizer(optimizer)
    if not isinstance(rule, (theory.SGD, theory.Adam, theory.AdamW, theory.Lion, theory.Muon)):
        raise ValueError(
            f"optimizer must be theory.SGD, Adam, AdamW, Lion or Muon, since other laws of the norm are not known step "
            f"by step; got {quote(rule)}. Use random_walk"
        )
    return simulate_norm(
        lr,
        wd,
        grad_norm,
        norm=norm,
        steps=steps,
        record_every=record_every,
        seed=seed,
        start=start,
        source="map",
        optimizer=rule,
        exact=exact,
        threads=threads,
    )


def norm_ode(
    lr: npt.ArrayLike | theory.Schedule,
    wd: npt.ArrayLike | theory.Schedule,
    grad_norm: npt.ArrayLike | GradientRule | AdversarialGradient,
    *,
    norm: npt.ArrayLike | None = None,
    steps: int,
    optimizer: OptimizerLike = None,
    record_every: int | None = 1,
    seed: int | None = None,
    start: xr.Dataset | None = None,
    levels: npt.ArrayLike | None = None,
) -> xr.Dataset:
    """Solve the differential equation of the norm with η and g̃ constant within each step.

    Time is counted in steps. Under plain SGD r² obeys the linear equation d(r²)/dt = -4ηλr² + 2(ηg̃)², which has a
    closed form over each step: r²(t) = r*² + (r₀²-r*²) exp(-4ηλt) with r*² = ηg̃²/(2λ). Under AdamW, Lion and Muon r
    obeys a linear equation, and ρ³ does under Adam if ρ is taken from the start of the step in its rate. The relative
    difference from the exact map `norm_map` is of order ηλ. The equation does not apply where single steps rotate the
    weights far (η̃g̃ ≳ 1), or where the norm changes much within the memory of the optimizer.

    Parameters
    ----------
    lr, wd, grad_norm, norm, steps, record_every, seed : as in `norm_map`. g̃ must be > 0 under `theory.Adam`.
    optimizer : any optimizer of `theory` that has a law for small steps, or its text form; default plain SGD.
    start : as in `norm_map`, a trajectory of `norm_ode`. Levels of `start` keep their crossing times.
    levels : norms > 0 whose first crossing is timed, one-dimensional.

    Returns
    -------
    Trajectory as of `norm_map`; `rotation` is the angle by which the direction moves per step, η̃g̃ under plain SGD.
    With `levels` it has `crossing_time`, whose last dimension is `level`: the time in steps at which the norm first
    reaches the level, exact within the step. It is 0 if the norm starts at the level and inf if it has not reached it.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or out of range, or arguments do not fit together.

    Source: docs/mathematics.md §5, §9; arXiv 2010.02916.

    Examples
    --------
    >>> flow = norm_ode(0.1, 0.01, 2.0, norm=1.0, steps=5000, levels=[1.5, 3.0])
    >>> round(flow.final_norm.item(), 4)  # (0.1·2²/(2·0.01))^¼
    2.1147
    >>> flow.crossing_time.values.round(3).tolist()
    [60.141, inf]
    """
    return simulate_norm(
        lr,
        wd,
        grad_norm,
        norm=norm,
        steps=steps,
        record_every=record_every,
        seed=seed,
        start=start,
        source="ode",
        optimizer=check_optimizer(optimizer),
        levels=levels,
    )


def replay(trajectory: xr.Dataset) -> xr.Dataset:
    """Drive the one-step law by the g̃_t, lr and wd of a measured trajectory, starting at its first norm.

    Where the law holds, the replayed norm equals the measured norm up to rounding over the whole run.

    Parameters
    ----------
    trajectory : one run or a batch with `norm` and `grad_norm` at every step (record_every=1).

    Returns
    -------
    Trajectory with the same steps. Batch members with NaN rows at the end are replayed up to these rows.

    Raises
    ------
    TypeError, ValueError : not a trajectory, missing rows, or an optimizer other than plain SGD.

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
    setting = Setting.of(trajectory)
    if setting.optimizer != theory.SGD():
        raise ValueError(f"trajectory must be of optimizer SGD() to be replayed, got {setting.optimizer_text}")
    setting.check_free()
    dims = tuple(str(d) for d in trajectory.norm.dims if d != "step")
    order = (*dims, "step")
    norm, grad_norm = trajectory.norm.transpose(*order), trajectory.grad_norm.transpose(*order)
    like = norm.isel(step=0, drop=True)
    missing = np.isnan(grad_norm.values)
    if np.any(missing[..., :-1] & ~missing[..., 1:]):
        raise ValueError("trajectory must have g̃ at every step to be replayed; grad_norm is NaN before a later value")

    def in_time(value: xr.DataArray) -> npt.NDArray[np.float64]:
        if value.dims == ("step",):
            return np.asarray(value.values)
        if "step" in value.dims:
            return np.asarray(value.broadcast_like(norm).transpose(*order).values)
        return np.asarray(value.broadcast_like(like).transpose(*dims).values[..., np.newaxis])

    lrs, wds = in_time(setting.lr), in_time(setting.wd)
    scheduled = [name for name, value in (("lr", setting.lr), ("wd", setting.wd)) if "step" in value.dims]
    coords = {str(n): (tuple(map(str, c.dims)), c.values) for n, c in like.coords.items() if set(c.dims) <= set(dims)}
    begin, gradients = int(step[0]), np.asarray(grad_norm.values)
    state = initial_norm_state(like.values, begin)
    plan = IterationPlan(
        lrs,
        wds,
        GradientSource(_kernels.PRESCRIBED, gradients, gradients),
        np.asarray((~missing).sum(axis=-1)),
        step.size,
        1,
        theory.SGD(),
        "map",
    )
    result = iterate(state, plan, np.empty((like.size, 0)))
    layout = BatchLayout(dims, {n: c for n, c in coords.items() if n in dims or n in ("lr", "wd", "walker")}, {})
    return assemble_trajectory(result, state, plan, layout, scheduled, {}, {})
