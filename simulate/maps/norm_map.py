"""The exact map of the norm, r⁺ = (1-ηλ)² r + (ηg̃)²/r, for batches, schedules and recorded gradients."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xarray as xr

import theory
from simulate.maps import _kernels
from simulate.maps.gradients import AdversarialGradient, GradientRule
from simulate.maps.iteration import Drive, Plan, fresh, move_on
from simulate.maps.layout import Layout
from simulate.maps.simulation import assembled, simulated
from simulate.trajectories.contract import check_trajectory, setting_variable


def norm_map(
    lr: npt.ArrayLike | theory.Schedule,
    wd: npt.ArrayLike,
    grad_norm: npt.ArrayLike | GradientRule | AdversarialGradient,
    *,
    norm: npt.ArrayLike | None = None,
    steps: int,
    optimizer: theory.Optimizer | None = None,
    record_every: int | None = 1,
    seed: int | None = None,
    start: xr.Dataset | None = None,
    exact: bool = True,
    threads: int | None = None,
) -> xr.Dataset:
    """Iterate the exact one-step law of the norm, without a network.

    With momentum it is the law of the second moments of weights and velocity under gradients of norm g̃/ρ that are
    orthogonal to both, as random directions are in many dimensions. The velocity starts at zero.

    Parameters
    ----------
    lr : η > 0: number, array, or a schedule such as `theory.Cosine`, asked for the absolute step numbers.
    wd : λ >= 0 with ηλ below the optimizer's limit, 2 for plain SGD.
    grad_norm : g̃ >= 0 (units of the loss), constant in time, or a rule: `RecordedGradient`, `BoundedGradient`, or for
        plain SGD `AdversarialGradient`. Rules too go by the absolute step numbers.
    norm : ρ > 0 at step 0. Numbers and arrays (or DataArrays, whose dimensions are kept) broadcast to the batch.
    steps : number of updates.
    optimizer : `theory.SGD`, with momentum of either kind and decay of either kind; default plain.
    record_every : record the steps whose number is divisible by it; None records no rows, but statistics over all steps
        of this call.
    seed : of random rules; recorded in the result. None takes a fresh one. Each random number is a function of seed,
        place in the batch and step.
    start : trajectory that an earlier call returned for the same optimizer, or some of its batch: the run goes on from
        its last state, with its seed and its step numbers, as if it had not been cut, bit for bit (but its lr, wd and
        grad_norm may be others). `norm` must be left out, `seed` may be. Trajectories that have ended stay as they are.
    exact : False makes four steps with one division, for plain SGD with constant lr, wd and grad_norm, about twice as
        fast. The norm differs by roundings: after a million steps relatively by less than 1e-11 for starts from 0.01 to
        100 equilibrium norms; at ηλ < 1e-6 by up to 3e-11 in a fall from farther above, where single steps round to one
        side, and by up to 1e-10 within 1e-9 of the equilibrium, where either way stalls beside it. `record_every` must
        be a multiple of 4 (None is refused: statistics need every step), and a run that is cut and continued is the
        same bit for bit if it is cut at a multiple of 4.
    threads : that share a batch of more than 256, with the same result; None takes one for each processor that the
        process may use, where the work is worth it.

    Returns
    -------
    Trajectory (see `simulate.trajectories.contract`) with `norm`, `grad_norm`, `effective_lr`, `rotation`. Two and more
    axes are named `lr` or `wd` where just that argument varies along them. A trajectory that leaves the floating-point
    range keeps its rows up to there (in a batch the rest is NaN), with status "diverged" or "collapsed". Without rows
    it has `norm_min`, `norm_max`, `mean_sq_norm`, `mean_fourth_norm` (E[ρ²], E[ρ⁴]) of the norms before each update,
    and memory does not grow with the number of steps. The last state is `final_sq_norm` and, with momentum,
    `final_velocity_along` and `final_velocity_across`; in a batch with random gradients `walker` numbers their streams.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range, or things do not fit together.

    Source: arXiv 2106.15739 §3; docs/mathematics.md §1, §7.

    Examples
    --------
    >>> run = norm_map(0.1, 0.01, 2.0, norm=1.0, steps=5000)
    >>> round(run.final_norm.item(), 4), round(theory.equilibrium_norm(0.1, 0.01, 2.0), 4)
    (2.115, 2.115)
    >>> norm_map(0.1, 0.01, 2.0, steps=3, start=run).step.values.tolist()
    [5000, 5001, 5002]
    """
    rule = theory.SGD() if optimizer is None else optimizer
    if not isinstance(rule, theory.SGD):
        raise ValueError(f"optimizer must be theory.SGD(...), plain or with momentum, got {rule!r}")
    return simulated(
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
    rates = setting_variable(trajectory, "lr")
    if rates.dims == ("step",):
        rates_values = rates.values
    elif "step" in rates.dims:
        rates_values = rates.broadcast_like(norm).transpose(*order).values
    else:
        rates_values = rates.broadcast_like(like).transpose(*dims).values[..., np.newaxis]
    decay = setting_variable(trajectory, "wd")
    if "step" in decay.dims:
        raise ValueError("trajectory must have one weight decay to be replayed; cut it where wd changes")
    decay = decay.broadcast_like(like).transpose(*dims)
    coords = {str(n): (tuple(map(str, c.dims)), c.values) for n, c in like.coords.items() if set(c.dims) <= set(dims)}
    begin, given = int(step[0]), np.asarray(grad_norm.values)
    state = fresh(like.values, begin)
    plan = Plan(
        rates_values,
        decay.values,
        Drive(_kernels.GIVEN, given, given),
        np.asarray((~missing).sum(axis=-1)),
        step.size,
        1,
        theory.SGD(),
        "map",
    )
    made = move_on(state, plan, np.empty((like.size, 0)))
    layout = Layout(dims, {n: c for n, c in coords.items() if n in dims or n in ("lr", "wd", "walker")}, {})
    return assembled(made, state, plan, layout, "step" in rates.dims, {})
