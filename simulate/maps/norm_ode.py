"""Norm in continuous time, the limit of small steps: dr/dt = -2ηλr + (ηg̃)²/r with r = ρ²."""

from __future__ import annotations

import numpy.typing as npt
import xarray as xr

import theory
from simulate.maps.gradients import AdversarialGradient, GradientRule
from simulate.maps.simulation import simulate_norm


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
    """Solve the differential equation of the norm with η and g̃ constant within each step.

    Time is counted in steps. r² obeys the linear equation d(r²)/dt = -4ηλr² + 2(ηg̃)², which has a closed form over
    each step: r²(t) = r*² + (r₀²-r*²) exp(-4ηλt) with r*² = ηg̃²/(2λ). The relative difference from the exact map
    `norm_map` is of order ηλ. The equation does not apply where single steps rotate the weights far (η̃g̃ ≳ 1).

    Parameters
    ----------
    lr, wd, grad_norm, norm, steps, record_every, seed : as in `norm_map`, for plain SGD.
    start : as in `norm_map`, a trajectory of `norm_ode`. Levels of `start` keep their crossing times.
    levels : norms > 0 whose first crossing is timed, one-dimensional.

    Returns
    -------
    Trajectory as of `norm_map`; `rotation` is η̃g̃, the angle by which the direction moves per step. With `levels` it
    has `crossing_time`, whose last dimension is `level`: the time in steps at which the norm first reaches the level,
    exact within the step. It is 0 if the norm starts at the level and inf if it has not reached it.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or out of range, or arguments do not fit together.

    Source: docs/mathematics.md §5; arXiv 2010.02916.

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
        optimizer=theory.SGD(),
        levels=levels,
    )
