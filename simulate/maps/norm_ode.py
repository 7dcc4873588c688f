"""The norm in continuous time, dr/dt = -2ηλr + (ηg̃)²/r with r = ρ²: the limit of small steps."""

from __future__ import annotations

import numpy.typing as npt
import xarray as xr

import theory
from simulate.maps.gradients import AdversarialGradient, GradientRule
from simulate.maps.simulation import simulated


def norm_ode(
    lr: npt.ArrayLike | theory.Schedule,
    wd: npt.ArrayLike,
    grad_norm: npt.ArrayLike | GradientRule | AdversarialGradient,
    *,
    norm: npt.ArrayLike | None = None,
    steps: int,
    record_every: int | None = 1,
    seed: int | None = None,
    start: xr.Dataset | None = None,
    levels: npt.ArrayLike | None = None,
) -> xr.Dataset:
    """Solve the norm's differential equation, time counted in steps, with η and g̃ constant within each step.

    r² obeys a linear equation, d(r²)/dt = -4ηλr² + 2(ηg̃)², which is solved in closed form over each step:
    r²(t) = r*² + (r₀²-r*²) exp(-4ηλt) with r*² = ηg̃²/(2λ). Against the exact map `norm_map` its relative error is of
    the order of ηλ; it means nothing where single steps turn the weights far (η̃g̃ ≳ 1).

    Parameters
    ----------
    lr, wd, grad_norm, norm, steps, record_every, seed : as in `norm_map`, for plain SGD.
    start : as in `norm_map`, a trajectory of `norm_ode`; levels that it knows keep their time of crossing.
    levels : norms > 0 whose first crossing is timed, one-dimensional.

    Returns
    -------
    Trajectory as of `norm_map`; `rotation` is the angle η̃g̃ per step of the direction's continuous motion. With
    `levels` it has `crossing_time`, with the dimension `level` after those of the batch: the number of steps, with
    fraction, after which the norm first is at the level, exact within the step; 0 where it starts there, inf where it
    has not come there.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range, or things do not fit together.

    Source: docs/mathematics.md §5; arXiv 2010.02916.

    Examples
    --------
    >>> flow = norm_ode(0.1, 0.01, 2.0, norm=1.0, steps=5000, levels=[1.5, 3.0])
    >>> round(flow.final_norm.item(), 4)  # (0.1·2²/(2·0.01))^¼
    2.1147
    >>> flow.crossing_time.values.round(3).tolist()
    [60.141, inf]
    """
    return simulated(
        lr,
        wd,
        grad_norm,
        norm=norm,
        steps=steps,
        record_every=record_every,
        seed=seed,
        start=start,
        source="ode",
        optimizer=theory.SGD(),
        levels=levels,
    )
