"""Forecast of the weight norm, from a trajectory that is still growing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr

import theory
from simulate.trajectories.classification import LOG_NORM_SD_MAX, ROTATION_RATIO_MIN
from simulate.trajectories.contract import check_trajectory
from simulate.trajectories.setting import Setting
from theory.arguments import FloatArray, check_number

SETTLES, STAYS_NEAR, DECREASES, INCREASES, OSCILLATES = "settles", "stays near", "falls", "rises", "oscillates"
_WINDOW = 1.0  # relaxation times over which the forecast looks back
_RECENT = 0.25  # relaxation times over which the direction is measured; of a shorter run, the share of its steps
_BEGINNING = 2.0  # relaxation times at the start of a run, in which angular jumps do not count
_NEAR_EQUILIBRIUM = 0.1  # |ln ρ/ρ*| below which the norm is at equilibrium
_CHANGED = 0.1  # relative change of ηλ in the window above which ηλ is not constant
_APART = 0.05  # |ln ρ/ρ*| above which ρ lies clearly on one side of ρ*


@dataclass(frozen=True)
class Forecast:
    """Where the norm is heading; `str` of it is a few sentences.

    A relaxation time is one over the decay of ln ρ per step (`theory.free_decay`): 1/ηλ for plain SGD. Numbers that
    depend on the optimizer are NaN for an optimizer that `theory` does not know.

    Attributes
    ----------
    heading : "settles": the norm is at `equilibrium_norm`, and for one relaxation time it varied as little and rotated
        as fast as at equilibrium. "stays near": the norm is at `equilibrium_norm` now and was there one relaxation
        time ago, but varies more or rotates less. "oscillates": an angular jump occurred after the first two
        relaxation times. Else "falls" or "rises", as in the last steps.
    norm, grad_norm : last ρ, and root-mean-square g̃ of the last relaxation time (of all steps, if there are fewer).
    lr, wd, optimizer : at the last step.
    equilibrium_norm : ρ* for this g̃.
    steps_to_settle : steps until ρ is within 1 % of ρ*, at this g̃. NaN for Adam, whose decay is not known, and where
        lr or wd changed. Too short for AdamW if the memory of β₂ exceeds a relaxation time.
    growth : growth of ln ρ over its decay, in the last quarter of a relaxation time or of a shorter run. 1 at
        equilibrium, 0 without gradients.
    grad_norm_max, delta : upper bound of g̃ and threshold δ for `earliest_angular_jump`.
    earliest_angular_jump : steps until an angular jump is possible, if g̃ stays below `grad_norm_max`. 0: in the next
        step; inf: never. NaN except for plain SGD.
    rotation, equilibrium_rotation : root-mean-square angle of the last steps, and its value at equilibrium, radians.
    observed_relaxation_times : length of the run in relaxation times.
    first_lr, first_wd : lr and wd one relaxation time ago if they changed since, else `lr` and `wd`.
    wanted_rotation : rotation that the caller asked for.
    wd_for_rotation, lr_for_rotation : wd at this lr, and lr at this wd, with this rotation at equilibrium. NaN where lr
        or wd changed.
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
    earliest_angular_jump: float
    rotation: float
    equilibrium_rotation: float
    observed_relaxation_times: float
    first_lr: float
    first_wd: float
    wanted_rotation: float | None = None
    wd_for_rotation: float = math.nan
    lr_for_rotation: float = math.nan

    @property
    def has_changed(self) -> bool:
        """Whether lr or wd changed in the last relaxation time, so that the norm cannot be at equilibrium yet."""
        return (self.first_lr, self.first_wd) != (self.lr, self.wd)

    def __str__(self) -> str:
        growth = "" if math.isnan(self.growth) else f" (growth is {self.growth:.0%} of decay)"
        words = {
            SETTLES: "settles",
            STAYS_NEAR: "stays near equilibrium, but varies more or rotates less than there",
            DECREASES: f"falls{growth}",
            INCREASES: f"rises{growth}",
            OSCILLATES: "oscillates, with angular jumps",
        }
        parts = [f"The norm {words[self.heading]}: {self._equilibrium_in_words()}"]
        if self.has_changed:
            changes = [
                f"{name} went from {first:.3g} to {last:.3g}"
                for name, first, last in (("lr", self.first_lr, self.lr), ("wd", self.first_wd, self.wd))
                if first != last
            ]
            parts.append(
                f"In the last relaxation time {' and '.join(changes)}: the norm has not reached the new equilibrium."
            )
        elif self.heading in (DECREASES, INCREASES):
            parts.append(self._arrival_in_words())
        if 0 < self.observed_relaxation_times < _WINDOW:
            parts.append(f"The run is short: {self.observed_relaxation_times:.0%} of one relaxation time.")
        parts.append(self._angular_jump_in_words())
        has_equilibrium = math.isfinite(self.equilibrium_rotation)
        equilibrium = f" ({self.equilibrium_rotation:.3g} at equilibrium)" if has_equilibrium else ""
        parts.append(f"Rotation: {self.rotation:.3g} radians per step{equilibrium}.")
        if self.wanted_rotation is not None:
            parts.append(self._settings_in_words())
        return " ".join(part for part in parts if part)

    def _equilibrium_in_words(self) -> str:
        here = f"at lr = {self.lr:g}, wd = {self.wd:g}"
        if math.isnan(self.equilibrium_norm):
            reason = "" if self.lr == 0 else f"; its equilibrium is not known for {self.optimizer}"
            return f"ρ = {self.norm:.4g} {here}{reason}."
        if math.isinf(self.equilibrium_norm):
            return f"ρ = {self.norm:.4g} {here}; without weight decay there is no equilibrium."
        return f"ρ = {self.norm:.4g}, equilibrium ρ* = {self.equilibrium_norm:.4g} for g̃ = {self.grad_norm:.3g} {here}."

    def _arrival_in_words(self) -> str:
        apart = math.log(self.norm / self.equilibrium_norm) if 0 < self.equilibrium_norm < math.inf else math.nan
        if math.isnan(apart):
            return ""
        if abs(apart) <= _APART:
            return "It is close to ρ*."
        if (apart > 0) == (self.heading == DECREASES):
            is_finite = not math.isnan(self.steps_to_settle)
            return f"At this g̃ it reaches ρ* in {self.steps_to_settle:.0f} steps." if is_finite else ""
        why = "g̃ changes" if self.optimizer == "SGD()" else "g̃ changes or successive gradients are correlated"
        return f"It is already {'below' if apart < 0 else 'above'} ρ*, perhaps because {why}."

    def _angular_jump_in_words(self) -> str:
        condition, limit = f"1 - cos θ > {self.delta:g}", f"for g̃ up to {self.grad_norm_max:.4g}"
        if math.isnan(self.earliest_angular_jump):
            return f"The earliest angular jump ({condition}) is known for plain SGD only."
        if math.isinf(self.earliest_angular_jump):
            return f"No angular jump ({condition}) is possible {limit}."
        steps = round(self.earliest_angular_jump)
        when = "in the next step" if steps == 0 else f"after {steps} step{'s' * (steps > 1)}"
        return f"An angular jump ({condition}) is possible {when}, {limit}."

    def _settings_in_words(self) -> str:
        if self.has_changed:
            return f"While lr or wd changes, no single value gives a rotation of {self.wanted_rotation:g}."
        settings = [
            f"{name} = {value:.3g} at this {other}"
            for name, value, other in (("wd", self.wd_for_rotation, "lr"), ("lr", self.lr_for_rotation, "wd"))
            if not math.isnan(value)
        ]
        if not settings:
            return f"Settings for a rotation of {self.wanted_rotation:g} are not known for {self.optimizer}."
        return f"For a rotation of {self.wanted_rotation:g} set {', or '.join(settings)}, if training is stable there."


def forecast(
    trajectory: xr.Dataset, *, grad_norm_max: float | None = None, delta: float = 0.1, rotation: float | None = None
) -> Forecast:
    """Predict where the norm of a trajectory is heading.

    The trajectory is one run without constraint, with `grad_norm` and `rotation` at every step. Arguments are those of
    `Monitor.forecast`. Source: docs/mathematics.md §2, §4, §5, §8.

    Raises
    ------
    TypeError, ValueError : it is not such a run, has fewer than two steps, or has norms or gradients that are not
        finite; or an argument is out of range.
    """
    check_trajectory(trajectory, "grad_norm", "rotation", single=True)
    delta = check_number("delta", delta, above=0, below=1)
    if rotation is not None:
        rotation = check_number("rotation", rotation, above=0, below=math.pi / 2)
    steps = trajectory.sizes["step"]
    if steps < 2:
        raise ValueError(f"trajectory must have at least two steps, got {steps}")
    setting = Setting.of(trajectory)
    setting.check_free()
    rule = setting.optimizer
    lrs, wds = (np.broadcast_to(np.asarray(value, dtype=np.float64), (steps,)) for value in (setting.lr, setting.wd))
    lr, wd = float(lrs[-1]), float(wds[-1])
    norms = np.append(trajectory.norm.values.astype(float), float(trajectory.final_norm))
    gradients, angles = trajectory.grad_norm.values.astype(float), trajectory.rotation.values.astype(float)
    if not (np.isfinite(norms).all() and np.isfinite(gradients).all() and gradients.any()):
        raise ValueError(
            "trajectory must have finite norms and gradients that are not all zero; was a weight removed or reshaped?"
        )
    limit = check_number("grad_norm_max", float(gradients.max()) if grad_norm_max is None else grad_norm_max, above=0)
    intrinsic_lrs, norm = lrs * wds, float(norms[-1])
    decays = np.full(steps, math.nan)
    if rule is not None and intrinsic_lrs.max() < 1:
        decays = np.where(intrinsic_lrs > 0, theory.free_decay(1.0, intrinsic_lrs, optimizer=rule), 0.0)
    # where the decay of the norm is not known, use that of each weight
    pace = np.where(np.isnan(decays), intrinsic_lrs, decays)
    relaxation_times = float(pace.sum())
    window = _count_last_rows(pace, _WINDOW)
    recent = max(2, min(_count_last_rows(pace, _RECENT), math.ceil(_RECENT * steps)))
    grad_norm = float(np.sqrt(np.mean(gradients[-window:] ** 2)))
    has_changed = bool(np.ptp(intrinsic_lrs[-window:]) > _CHANGED * intrinsic_lrs[-1])
    equilibrium_norm = equilibrium_rotation = wd_for_rotation = lr_for_rotation = math.nan
    if rule is not None and lr > 0:
        equilibrium_norm = float(theory.equilibrium_norm(lr, wd, grad_norm, optimizer=rule)) if wd > 0 else math.inf
        equilibrium_rotation = float(theory.equilibrium_rotation(lr, wd, grad_norm=grad_norm, optimizer=rule))
    if rule is not None and rotation is not None and not has_changed:
        wd_for_rotation = float(theory.wd_for_rotation(lr, rotation, grad_norm=grad_norm, optimizer=rule))
        if wd > 0:
            lr_for_rotation = float(theory.lr_for_rotation(wd, rotation, grad_norm=grad_norm, optimizer=rule))
    log_growth, decayed = float(np.log(norm / norms[-1 - recent])), float(decays[-recent:].sum())
    # the transient may contain an angular jump
    late_angles = angles[np.cumsum(pace) >= _BEGINNING]
    is_there = (
        relaxation_times >= _WINDOW and not has_changed and abs(math.log(norm / equilibrium_norm)) <= _NEAR_EQUILIBRIUM
    )
    is_settled = (
        is_there
        and float(np.median(angles[-window:])) >= ROTATION_RATIO_MIN * equilibrium_rotation
        and float(np.log(norms[-window:]).std()) <= LOG_NORM_SD_MAX
    )
    if (1 - np.cos(late_angles) > delta).any():
        heading = OSCILLATES
    elif is_settled:
        heading = SETTLES
    elif is_there and abs(math.log(norm / norms[-1 - window])) <= _NEAR_EQUILIBRIUM:
        heading = STAYS_NEAR
    else:
        heading = DECREASES if log_growth < 0 else INCREASES
    has_bound = rule == theory.SGD() and lr > 0 and lr * wd < 1
    first = -window if has_changed else -1
    return Forecast(
        heading=heading,
        norm=norm,
        grad_norm=grad_norm,
        lr=lr,
        wd=wd,
        optimizer=setting.optimizer_text,
        equilibrium_norm=equilibrium_norm,
        steps_to_settle=math.nan if has_changed else _steps_to_settle(norm, equilibrium_norm, rule, float(decays[-1])),
        growth=1 + log_growth / decayed if decayed > 0 else math.nan,
        grad_norm_max=limit,
        delta=delta,
        earliest_angular_jump=float(theory.steps_to_angular_jump(norm, lr, wd, 0.0, limit, delta).earliest)
        if has_bound
        else math.nan,
        rotation=float(np.sqrt(np.mean(angles[-(recent if has_changed else window) :] ** 2))),
        equilibrium_rotation=equilibrium_rotation,
        observed_relaxation_times=relaxation_times,
        first_lr=float(lrs[first]),
        first_wd=float(wds[first]),
        wanted_rotation=rotation,
        wd_for_rotation=wd_for_rotation,
        lr_for_rotation=lr_for_rotation,
    )


def _count_last_rows(pace: FloatArray, relaxation_times: float) -> int:
    """Count the last rows that span this many relaxation times; all rows if they span fewer or there is no decay."""
    reached = np.flatnonzero(np.cumsum(pace[::-1]) >= relaxation_times * (1 - 1e-9))
    return max(2, int(reached[0]) + 1) if reached.size else len(pace)


def _steps_to_settle(norm: float, equilibrium_norm: float, rule: theory.Optimizer | None, decay: float) -> float:
    """Steps until ρ is within 1 % of ρ*.

    The excess of ρ⁴ decays 4 times as fast as ln ρ; where steps have a fixed size, that of ρ² decays 2 times as fast.
    """
    if decay <= 0:
        return math.inf
    if math.isnan(decay) or math.isnan(equilibrium_norm):
        return math.nan
    power = 2 if isinstance(rule, (theory.AdamW, theory.Lion)) else 4
    apart = abs((norm / equilibrium_norm) ** power - 1)
    return max(0.0, math.log(apart / (0.01 * power)) / power * (1 / decay)) if apart > 0 else 0.0
