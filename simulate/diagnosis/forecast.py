"""Where the norm of a network is heading, from a trajectory that is still growing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

import theory
from simulate.trajectories.contract import check_trajectory, setting_variable, unconstrained_optimizer
from simulate.trajectories.periods import LOG_NORM_SD_MAX, ROTATION_RATIO_MIN
from theory.arguments import FloatArray, check_number
from theory.optimizers import parse_if_known

SETTLES, LINGERS, FALLS, RISES, SWINGS = "settles", "lingers", "falls", "rises", "swings"
_WINDOW = 1.0  # relaxations that are looked back
_RECENT = 0.25  # relaxations, and share of a run that is shorter, from which the direction is taken
_BEGINNING = 2.0  # relaxations at the start of a run that belong to its beginning
_AT_REST = 0.1  # |ln ρ/ρ*| of a norm that has arrived
_CHANGED = 0.1  # relative change of ηλ in the window beyond which it counts as no constant
_APART = 0.05  # |ln ρ/ρ*| beyond which ρ lies on one side of ρ*


@dataclass(frozen=True)
class Forecast:
    """What the last steps say about the next ones; `str` of it is a few sentences.

    Attributes
    ----------
    heading : "settles": for a relaxation time the norm was as quiet, and turned as fast, as at equilibrium, and is at
        `equilibrium_norm`; "lingers": it is there and was there a relaxation time ago, but is less quiet or turns less;
        "swings": after the first two of them it has jumped, by more than δ; else "falls" or "rises", as it did in the
        last steps. A relaxation time is one over the decay of ln ρ in a step (`theory.free_decay`), 1/ηλ for plain SGD.
    norm, grad_norm : the last ρ, and the root-mean-square g̃ of the last relaxation time (or of all, if it is longer).
    lr, wd, optimizer : at the last step.
    equilibrium_norm : ρ* for this g̃.
    steps_to_settle : until ρ would be within 1 % of ρ* with this g̃; NaN for Adam, which knows no such rate, and where
        lr or wd changed; too short for AdamW if its β₂ remembers longer than a relaxation time.
    growth : growth of ln ρ over its decay in the last quarter of a relaxation time (of a shorter run, in its last
        quarter): 1 at rest, 0 in a free fall.
    grad_norm_max, delta : what a jump is reckoned with.
    earliest_jump : steps until a step can turn the weights by 1-cos θ > δ, if g̃ stays below `grad_norm_max`; 0: the
        next step can; inf: none can. Known for plain SGD alone, NaN for others.
    rotation : root-mean-square angle of the last steps, radians; `equilibrium_rotation` what it is at rest.
    seen : relaxation times that the run has lasted.
    first_lr, first_wd : before they changed, if they did in the last relaxation time, else `lr` and `wd`.
    wanted_rotation, wd_for_rotation, lr_for_rotation : the wish, and what would give it at rest, one of both changed;
        NaN where they changed by themselves.

    Of an optimizer that `theory` does not know all numbers are NaN that rest on its rule.
    """

    heading: str
    norm: float
    grad_norm: float
    lr: float
    wd: float
    optimizer: str
    equilibrium_norm: float
    steps_to_settle: float
    growth: float
    grad_norm_max: float
    delta: float
    earliest_jump: float
    rotation: float
    equilibrium_rotation: float
    seen: float
    first_lr: float
    first_wd: float
    wanted_rotation: float | None = None
    wd_for_rotation: float = math.nan
    lr_for_rotation: float = math.nan

    @property
    def has_changed(self) -> bool:
        """Whether lr or wd changed in the last relaxation time, so that nothing rests at the last of them."""
        return (self.first_lr, self.first_wd) != (self.lr, self.wd)

    def __str__(self) -> str:
        words = {
            SETTLES: "settles",
            LINGERS: "is about where it would rest, but less quiet than there or turning less",
            FALLS: f"falls{self._gone()}",
            RISES: f"rises{self._gone()}",
            SWINGS: "swings, it has jumped before",
        }
        parts = [f"The norm {words[self.heading]}: {self._rest()}"]
        if self.has_changed:
            changes = [
                f"{name} went from {first:.3g} to {last:.3g}"
                for name, first, last in (("lr", self.first_lr, self.lr), ("wd", self.first_wd, self.wd))
                if first != last
            ]
            parts.append(f"In the last relaxation time {' and '.join(changes)}: it has not come to rest at the last.")
        elif self.heading in (FALLS, RISES):
            parts.append(self._arrival())
        if 0 < self.seen < _WINDOW:
            parts.append(f"It is early: {self.seen:.0%} of one relaxation time were seen.")
        parts.append(self._jump())
        known = math.isfinite(self.equilibrium_rotation)
        rest = f", {self.equilibrium_rotation:.3g} at equilibrium" if known else ""
        parts.append(f"Rotation {self.rotation:.3g} radians a step{rest}.")
        if self.wanted_rotation is not None:
            parts.append(self._wish())
        return " ".join(part for part in parts if part)

    def _rest(self) -> str:
        here = f"at lr = {self.lr:g}, wd = {self.wd:g}"
        if math.isnan(self.equilibrium_norm):
            unknown = "" if self.lr == 0 else f"; no formula is known for {self.optimizer}"
            return f"ρ = {self.norm:.4g} {here}{unknown}."
        if math.isinf(self.equilibrium_norm):
            return f"ρ = {self.norm:.4g} {here}; there is no decay, and so no equilibrium."
        return f"ρ = {self.norm:.4g}, equilibrium ρ* = {self.equilibrium_norm:.4g} for g̃ = {self.grad_norm:.3g} {here}."

    def _gone(self) -> str:
        return "" if math.isnan(self.growth) else f", growth makes up for {self.growth:.0%} of the decay"

    def _arrival(self) -> str:
        apart = math.log(self.norm / self.equilibrium_norm) if 0 < self.equilibrium_norm < math.inf else math.nan
        if math.isnan(apart):
            return ""
        if abs(apart) <= _APART:
            return "It is about there."
        if (apart > 0) == (self.heading == FALLS):
            there = not math.isnan(self.steps_to_settle)
            return f"With this g̃ it would be there in {self.steps_to_settle:.0f} steps." if there else ""
        why = "g̃ changes" if self.optimizer == "SGD()" else "g̃ changes, or gradients depend on those before"
        return f"It is {'below' if apart < 0 else 'above'} that already, for {why}."

    def _jump(self) -> str:
        jump, limit = f"1 - cos θ > {self.delta:g}", f"if g̃ stays below {self.grad_norm_max:.4g}"
        if math.isnan(self.earliest_jump):
            return f"When a step can jump ({jump}) is known for plain SGD alone."
        if math.isinf(self.earliest_jump):
            return f"No step can jump ({jump}) {limit}."
        steps = round(self.earliest_jump)
        when = "at once" if steps == 0 else f"after {steps} step{'s' * (steps > 1)}"
        return f"A jump ({jump}) is possible {when}, {limit}."

    def _wish(self) -> str:
        if self.has_changed:
            return f"While lr or wd changes there is no one of them for {self.wanted_rotation:g}."
        told = [
            f"{name} = {value:.3g} at this {other}"
            for name, value, other in (("wd", self.wd_for_rotation, "lr"), ("lr", self.lr_for_rotation, "wd"))
            if not math.isnan(value)
        ]
        if not told:
            return f"What gives {self.wanted_rotation:g} is not known for {self.optimizer}."
        return f"For {self.wanted_rotation:g}: {', or '.join(told)}, if training is stable there."


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
    delta = check_number("delta", delta, above=0, below=1)
    if trajectory.sizes["step"] < 2:
        raise ValueError(f"trajectory must have at least two steps, got {trajectory.sizes['step']}")
    rates, decays = (_every_step(trajectory, name) for name in ("lr", "wd"))
    lr, wd = float(rates[-1]), float(decays[-1])
    told = unconstrained_optimizer(trajectory)
    rule = parse_if_known(told)
    norms = np.append(trajectory.norm.values.astype(float), float(trajectory.final_norm))
    gradients, angles = trajectory.grad_norm.values.astype(float), trajectory.rotation.values.astype(float)
    if not (np.isfinite(norms).all() and np.isfinite(gradients).all() and gradients.any()):
        raise ValueError("trajectory must have finite norms and gradients, not all of them zero; weights may have gone")
    limit = check_number("grad_norm_max", float(gradients.max()) if grad_norm_max is None else grad_norm_max, above=0)
    fall = _free_decay(rates, decays, rule)
    # where the rule gives no rate of decay, that of the weights themselves
    pace = np.where(np.isnan(fall), rates * decays, fall)
    window = _rows_of(pace, _WINDOW)
    recent = max(2, min(_rows_of(pace, _RECENT), math.ceil(_RECENT * len(pace))))
    typical = float(np.sqrt(np.mean(gradients[-window:] ** 2)))
    norm = float(norms[-1])
    products = (rates * decays)[-window:]
    has_changed = bool(np.ptp(products) > _CHANGED * products[-1])
    rest, expected = _at_rest(lr, wd, typical, rule)
    grown = float(np.log(norms[-1] / norms[-1 - recent]))
    decayed = float(fall[-recent:].sum())
    wish: dict[str, Any] = {}
    if rotation is not None:
        wanted = check_number("rotation", rotation, above=0, below=math.pi / 2)
        wish = {"wanted_rotation": wanted}
        if rule is not None and not has_changed:
            wish["wd_for_rotation"] = float(theory.wd_for_rotation(lr, wanted, grad_norm=typical, optimizer=rule))
            if wd > 0:
                wish["lr_for_rotation"] = float(theory.lr_for_rotation(wd, wanted, grad_norm=typical, optimizer=rule))
    seen = float(pace.sum())
    # the way from where it began may begin with a jump
    late = angles[np.cumsum(pace) >= _BEGINNING]
    is_there = seen >= _WINDOW and not has_changed and abs(math.log(norm / rest)) <= _AT_REST
    quiet = (
        is_there
        and float(np.median(angles[-window:])) >= ROTATION_RATIO_MIN * expected
        and float(np.log(norms[-window:]).std()) <= LOG_NORM_SD_MAX
    )
    if (1 - np.cos(late) > delta).any():
        heading = SWINGS
    elif quiet:
        heading = SETTLES
    elif is_there and abs(math.log(norm / norms[-1 - window])) <= _AT_REST:
        heading = LINGERS
    else:
        heading = FALLS if grown < 0 else RISES
    first = -window if has_changed else -1
    return Forecast(
        heading=heading,
        norm=norm,
        grad_norm=typical,
        lr=lr,
        wd=wd,
        optimizer=told,
        equilibrium_norm=rest,
        steps_to_settle=math.nan if has_changed else _steps_to_settle(norm, rest, rule, _reciprocal(float(fall[-1]))),
        growth=1 + grown / decayed if decayed > 0 else math.nan,
        grad_norm_max=limit,
        delta=delta,
        earliest_jump=float(theory.steps_to_angular_jump(norm, lr, wd, 0.0, limit, delta).earliest)
        if rule == theory.SGD() and lr > 0 and lr * wd < 1
        else math.nan,
        rotation=float(np.sqrt(np.mean(angles[-(recent if has_changed else window) :] ** 2))),
        equilibrium_rotation=expected,
        seen=seen,
        first_lr=float(rates[first]),
        first_wd=float(decays[first]),
        **wish,
    )


def _every_step(trajectory: xr.Dataset, name: str) -> FloatArray:
    found = np.asarray(setting_variable(trajectory, name).values, dtype=np.float64)
    return np.broadcast_to(found, (trajectory.sizes["step"],))


def _free_decay(rates: FloatArray, decays: FloatArray, rule: theory.Optimizer | None) -> FloatArray:
    """Decay of ln ρ in each step; NaN where no rule gives it."""
    products = rates * decays
    if rule is None or products.max() >= 1:
        return np.full(products.shape, math.nan)
    found = np.zeros(products.shape)
    moves = products > 0
    found[moves] = theory.free_decay(rates[moves], decays[moves], optimizer=rule)
    return found


def _rows_of(pace: FloatArray, relaxations: float) -> int:
    """Number of the last rows that make up so many relaxations; all where they do not, or if there is no decay."""
    reached = np.flatnonzero(np.cumsum(pace[::-1]) >= relaxations * (1 - 1e-9))
    return max(2, int(reached[0]) + 1) if reached.size else len(pace)


def _at_rest(lr: float, wd: float, grad_norm: float, rule: theory.Optimizer | None) -> tuple[float, float]:
    """Norm and rotation at equilibrium; NaN where they are not known."""
    if rule is None or lr == 0:
        return math.nan, math.nan
    rest = float(theory.equilibrium_norm(lr, wd, grad_norm, optimizer=rule)) if wd > 0 else math.inf
    return rest, float(theory.equilibrium_rotation(lr, wd, grad_norm=grad_norm, optimizer=rule))


def _reciprocal(decay: float) -> float:
    return 1 / decay if decay > 0 else math.nan if math.isnan(decay) else math.inf


def _steps_to_settle(norm: float, rest: float, rule: theory.Optimizer | None, relaxation: float) -> float:
    """Until ρ is within 1 %: the excess of ρ⁴, or of ρ² where steps have a fixed size, decays 4 or 2 times as fast."""
    if math.isinf(relaxation) or math.isnan(relaxation) or math.isnan(rest):
        return relaxation if math.isinf(relaxation) else math.nan
    power = 2 if isinstance(rule, (theory.AdamW, theory.Lion)) else 4
    apart = abs((norm / rest) ** power - 1)
    return max(0.0, math.log(apart / (0.01 * power)) / power * relaxation) if apart > 0 else 0.0
