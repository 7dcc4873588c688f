"""Where the norm of a network is heading, from a trajectory that is still growing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

import theory
from simulate.trajectories.contract import check_trajectory, setting, unfixed_optimizer
from simulate.trajectories.periods import LOG_NORM_SD_MAX, ROTATION_RATIO_MIN
from theory.arguments import one_real
from theory.optimizers import optimizer_if_known

SETTLES, FALLS, RISES, SWINGS = "settles", "falls", "rises", "swings"
_WINDOW = 1.0  # relaxations that are looked back
_BEGINNING = 2.0  # relaxations at the start of a run that belong to its beginning
_AT_REST = 0.1  # |ln ρ/ρ*| of a norm that has arrived


@dataclass(frozen=True)
class Forecast:
    """What the last steps say about the next ones, at constant lr and wd; `str` of it is a few sentences.

    Attributes
    ----------
    heading : "settles": for a relaxation time the norm was as quiet, and turned as fast, as at equilibrium, and is at
        `equilibrium_norm`; "swings": after the first two of them it has jumped, by more than δ; else "falls" or
        "rises", to `equilibrium_norm` if g̃ stays what it was. A relaxation time is one over the decay of ln ρ in a step
        (`theory.free_decay`), 1/ηλ for plain SGD.
    norm, grad_norm : the last ρ, and the root-mean-square g̃ of the last relaxation time (or of all, if it is longer).
    lr, wd : at the last step.
    equilibrium_norm : ρ* for this g̃.
    steps_to_settle : until ρ would be within 1 % of ρ* with this g̃; NaN for Adam, which knows no such rate, and too
        short for AdamW if its β₂ remembers longer than a relaxation time.
    growth : growth of ln ρ over its decay in the same steps: 1 at rest, 0 in a free fall.
    grad_norm_max, delta : what a jump is reckoned with.
    earliest_jump : steps until a step can turn the weights by 1-cos θ > δ, if g̃ stays below `grad_norm_max`; 0: the
        next step can; inf: none can. Known for plain SGD alone, NaN for others.
    rotation : root-mean-square angle of the last steps, radians; `equilibrium_rotation` what it is at rest.
    wanted_rotation, wd_for_rotation, lr_for_rotation : the wish, and what would give it at rest, one of both changed.

    Of an optimizer that `theory` does not know all numbers are NaN that rest on its rule.
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
        gone = "there is no decay" if self.wd == 0 else f"growth makes up for {self.growth:.0%} of the decay"
        told = {
            SETTLES: f"The norm settles: {rest}",
            FALLS: f"The norm falls, {gone}: {rest} {self._arrival()}",
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

    def _arrival(self) -> str:
        if not self.norm > self.equilibrium_norm:
            return "It is below that already: gradients are not independent of those before, as ρ* assumes."
        return f"With this g̃ it would be there in {self.steps_to_settle:.0f} steps."


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
    TypeError, ValueError : no such trajectory, fewer than two steps, norms or gradients that are not finite, something
        held fixed, or an argument is out of range.

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
    rule = optimizer_if_known(unfixed_optimizer(trajectory))
    norms = np.append(trajectory.norm.values.astype(float), float(trajectory.final_norm))
    gradients, angles = trajectory.grad_norm.values.astype(float), trajectory.rotation.values.astype(float)
    if not (np.isfinite(norms).all() and np.isfinite(gradients).all() and gradients.any()):
        raise ValueError("trajectory must have finite norms and gradients, not all of them zero; weights may have gone")
    limit = one_real("grad_norm_max", float(gradients.max()) if grad_norm_max is None else grad_norm_max, above=0)
    decay = float(theory.free_decay(lr, wd, optimizer=rule)) if rule is not None and 0 < k < 1 else math.nan
    # where the rule gives no rate of decay, that of the weights themselves
    pace = decay if decay > 0 else k
    window = min(len(gradients), max(2, round(_WINDOW / pace))) if k > 0 else len(gradients)
    recent = float(np.sqrt(np.mean(gradients[-window:] ** 2)))
    norm = float(norms[-1])
    rest = expected = math.nan
    if rule is not None:
        rest = float(theory.equilibrium_norm(lr, wd, recent, optimizer=rule)) if k > 0 else math.inf
        expected = float(theory.equilibrium_rotation(lr, wd, grad_norm=recent, optimizer=rule))
    growth = 1 + float(np.log(norms[-1] / norms[-1 - window])) / (window * decay) if decay > 0 else math.nan
    earliest = math.nan
    if rule == theory.SGD() and k < 1:
        earliest = float(theory.steps_to_jump(norm, lr, wd, 0.0, limit, delta).earliest)
    wish: dict[str, Any] = {}
    if rotation is not None:
        wanted = one_real("rotation", rotation, above=0, below=math.pi / 2)
        wish = {"wanted_rotation": wanted}
    if rotation is not None and rule is not None:
        wish |= {
            "wd_for_rotation": float(theory.wd_for_rotation(lr, wanted, grad_norm=recent, optimizer=rule)),
            "lr_for_rotation": float(theory.lr_for_rotation(wd, wanted, grad_norm=recent, optimizer=rule))
            if wd > 0
            else math.nan,
        }
    # the way from where it began may begin with a jump
    late = angles[round(_BEGINNING / pace) :] if k > 0 else angles[:0]
    quiet = (
        k > 0
        and window >= _WINDOW / pace - 1
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
        steps_to_settle=_steps_to_settle(norm, rest, rule, math.inf if k == 0 else 1 / decay),
        growth=growth,
        grad_norm_max=limit,
        delta=delta,
        earliest_jump=earliest,
        rotation=float(np.sqrt(np.mean(angles[-window:] ** 2))),
        equilibrium_rotation=expected,
        **wish,
    )


def _steps_to_settle(norm: float, rest: float, rule: theory.Optimizer | None, relaxation: float) -> float:
    """Until ρ is within 1 %: the excess of ρ⁴, or of ρ² where steps have a fixed size, decays 4 or 2 times as fast."""
    if math.isinf(relaxation) or math.isnan(relaxation) or math.isnan(rest):
        return relaxation if math.isinf(relaxation) else math.nan
    power = 2 if isinstance(rule, (theory.AdamW, theory.Lion)) else 4
    apart = abs((norm / rest) ** power - 1)
    return max(0.0, math.log(apart / (0.01 * power)) / power * relaxation) if apart > 0 else 0.0
