"""Where the norm of a network is heading, from a trajectory that is still growing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

import theory
from simulate.trajectories.contract import check_trajectory, setting
from simulate.trajectories.periods import LOG_NORM_SD_MAX, ROTATION_RATIO_MIN
from theory.arguments import one_real
from theory.optimizers import optimizer_named

SETTLES, FALLS, RISES, SWINGS = "settles", "falls", "rises", "swings"
_WINDOW = 1.0  # relaxations 1/ηλ that are looked back
_BEGINNING = 2.0  # relaxations at the start of a run that belong to its beginning
_AT_REST = 0.1  # |ln ρ/ρ*| of a norm that has arrived


@dataclass(frozen=True)
class Forecast:
    """What the last steps say about the next ones, at constant lr and wd; `str` of it is a few sentences.

    Attributes
    ----------
    heading : "settles": in the last 1/ηλ steps the norm was as quiet, and turned as fast, as at equilibrium, and is at
        `equilibrium_norm`; "swings": after the first 2/ηλ steps it has jumped, by more than δ; else "falls" or "rises",
        to `equilibrium_norm` if g̃ stays what it was.
    norm, grad_norm : the last ρ, and the root-mean-square g̃ of the last 1/ηλ steps (or of all, if they are fewer).
    lr, wd : at the last step.
    equilibrium_norm : ρ* for this g̃.
    steps_to_settle : until ρ would be within 1 % of ρ* with this g̃.
    growth : growth of ln ρ over its decay in the same steps: 1 at rest, 0 in a free fall.
    grad_norm_max, delta : what a jump is reckoned with.
    earliest_jump : steps until a step can turn the weights by 1-cos θ > δ, if g̃ stays below `grad_norm_max`; 0: the
        next step can; inf: none can. Known for plain SGD alone, NaN for others.
    rotation : root-mean-square angle of the last steps, radians; `equilibrium_rotation` what it is at rest.
    wanted_rotation, wd_for_rotation, lr_for_rotation : the wish, and what would give it at rest, one of both changed.
    """

    heading: str
    norm: float
    grad_norm: float
    lr: float
    wd: float
    equilibrium_norm: float
    steps_to_settle: float
    growth: float
    grad_norm_max: float
    delta: float
    earliest_jump: float
    rotation: float
    equilibrium_rotation: float
    wanted_rotation: float | None = None
    wd_for_rotation: float = math.nan
    lr_for_rotation: float = math.nan

    def __str__(self) -> str:
        rest = (
            f"ρ = {self.norm:.4g}, equilibrium ρ* = {self.equilibrium_norm:.4g} at lr = {self.lr:g}, wd = {self.wd:g}."
        )
        gone = f"growth makes up for {self.growth:.0%} of the decay" if self.wd > 0 else "there is no decay"
        told = {
            SETTLES: f"The norm settles: {rest}",
            FALLS: f"The norm falls, {gone}: {rest} With this g̃ it would be there in {self.steps_to_settle:.0f} steps.",
            RISES: f"The norm rises, {gone}: {rest}",
            SWINGS: f"The norm swings, it has jumped before: {rest}",
        }
        parts = [told[self.heading]]
        limit = f"if g̃ stays below {self.grad_norm_max:.4g}"
        if math.isinf(self.earliest_jump):
            parts.append(f"No step can jump (1 - cos θ > {self.delta:g}) {limit}.")
        elif not math.isnan(self.earliest_jump):
            parts.append(
                f"A jump (1 - cos θ > {self.delta:g}) is possible after {self.earliest_jump:.0f} steps, {limit}."
            )
        parts.append(f"Rotation {self.rotation:.3g} radians a step, {self.equilibrium_rotation:.3g} at equilibrium.")
        if self.wanted_rotation is not None:
            parts.append(
                f"For {self.wanted_rotation:g}: wd = {self.wd_for_rotation:.3g} at this lr, or lr = "
                f"{self.lr_for_rotation:.3g} at this wd."
            )
        return " ".join(parts)


def forecast(
    trajectory: xr.Dataset, *, grad_norm_max: float | None = None, delta: float = 0.1, rotation: float | None = None
) -> Forecast:
    """Say where the norm of a trajectory is heading.

    Parameters
    ----------
    trajectory : one run with `grad_norm` and `rotation`, at every step.
    grad_norm_max, delta, rotation : as in `Monitor.forecast`.

    Returns
    -------
    Forecast

    Raises
    ------
    TypeError, ValueError : no such trajectory, fewer than two steps, or an argument is out of range.

    Source: docs/mathematics.md §2, §4, §5, §8.

    Examples
    --------
    >>> import simulate
    >>> found = forecast(simulate.norm_map(0.5, 0.02, 2.0, norm=6.0, steps=40))
    >>> found.heading, round(found.equilibrium_norm, 2), round(found.norm, 2)
    ('falls', 2.66, 4.16)
    """
    check_trajectory(trajectory, "grad_norm", "rotation", single=True)
    delta = one_real("delta", delta, above=0, below=1)
    if trajectory.sizes["step"] < 2:
        raise ValueError(f"trajectory must have at least two steps, got {trajectory.sizes['step']}")
    rates = setting(trajectory, "lr")
    lr = float(rates.values if rates.ndim == 0 else rates.values[-1])
    wd = float(setting(trajectory, "wd").values)
    k = lr * wd
    rule = optimizer_named(str(trajectory.attrs.get("optimizer", "SGD()")))
    norms = np.append(trajectory.norm.values.astype(float), float(trajectory.final_norm))
    gradients, angles = trajectory.grad_norm.values.astype(float), trajectory.rotation.values.astype(float)
    limit = one_real("grad_norm_max", float(gradients.max()) if grad_norm_max is None else grad_norm_max, above=0)
    window = min(len(gradients), max(2, round(_WINDOW / k))) if k > 0 else len(gradients)
    recent = float(np.sqrt(np.mean(gradients[-window:] ** 2)))
    norm = float(norms[-1])
    rest = float(theory.equilibrium_norm(lr, wd, recent, optimizer=rule)) if k > 0 else math.inf
    decay = float(theory.free_decay(lr, wd, optimizer=rule)) if 0 < k < 1 else math.nan
    growth = 1 + float(np.log(norms[-1] / norms[-1 - window])) / (window * decay) if decay > 0 else math.nan
    plain = rule == theory.SGD()
    earliest = math.nan
    if plain and k < 1:
        earliest = float(theory.steps_to_jump(norm, lr, wd, 0.0, limit, delta).earliest)
    wish: dict[str, Any] = {}
    if rotation is not None:
        wanted = one_real("rotation", rotation, above=0, below=math.pi / 2)
        wish = {
            "wanted_rotation": wanted,
            "wd_for_rotation": float(theory.wd_for_rotation(lr, wanted, grad_norm=recent, optimizer=rule)),
            "lr_for_rotation": float(theory.lr_for_rotation(wd, wanted, grad_norm=recent, optimizer=rule))
            if wd > 0
            else math.nan,
        }
    # the way from where it began may begin with a jump
    late = angles[round(_BEGINNING / k) :] if k > 0 else angles[:0]
    expected = float(theory.equilibrium_rotation(lr, wd, grad_norm=recent, optimizer=rule))
    quiet = (
        k > 0
        and window >= _WINDOW / k - 1
        and float(np.median(angles[-window:])) >= ROTATION_RATIO_MIN * expected
        and float(np.log(norms[-window:]).std()) <= LOG_NORM_SD_MAX
        and abs(math.log(norm / rest)) <= _AT_REST
    )
    if (1 - np.cos(late) > delta).any():
        heading = SWINGS
    elif quiet:
        heading = SETTLES
    else:
        heading = FALLS if norms[-1] < norms[-1 - window] else RISES
    return Forecast(
        heading=heading,
        norm=norm,
        grad_norm=recent,
        lr=lr,
        wd=wd,
        equilibrium_norm=rest,
        steps_to_settle=_steps_to_settle(norm, rest, k),
        growth=growth,
        grad_norm_max=limit,
        delta=delta,
        earliest_jump=earliest,
        rotation=float(np.sqrt(np.mean(angles[-window:] ** 2))),
        equilibrium_rotation=expected,
        **wish,
    )


def _steps_to_settle(norm: float, rest: float, k: float) -> float:
    """Until ρ is within 1 %: (ρ/ρ*)⁴ - 1 shrinks by exp(-4ηλ) a step."""
    if k == 0:
        return math.inf
    apart = abs((norm / rest) ** 4 - 1)
    return max(0.0, math.log(apart / 0.04) / (4 * k)) if apart > 0 else 0.0
