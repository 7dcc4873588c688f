"""Forecast of the weight norm, from the norms of a run so far."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

import theory
from simulate.diagnosis._forecast_words import (
    DECREASES,
    FROZEN,
    INCREASES,
    OSCILLATES,
    SETTLES,
    STAYS_NEAR,
    forecast_words,
)
from simulate.diagnosis._lrs_ahead import LearningRatesAhead, ScheduleLike
from simulate.diagnosis._norm_growth import (
    GrowthLaw,
    MeasuredGrowth,
    equilibrium_of,
    measure_recent_growth,
    norms_ahead,
)
from simulate.trajectories.contract import check_trajectory
from simulate.trajectories.periods import zigzag
from simulate.trajectories.setting import Setting
from simulate.trajectories.verdicts import LOG_NORM_SD_MAX, ROTATION_RATIO_MIN
from theory.arguments import FloatArray, check_number
from theory.optimizers import rotation_limit

_WINDOW = 1.0  # memories over which the forecast looks back
_RECENT = 0.25  # memories over which the direction is measured; of a shorter run, the share of its steps
# least rise of ln ρ, least number of rises of an oscillation, and memories in which they occur
_RISE, _RISES_MIN, _RISES_MEMORIES = 0.2, 2, 8.0
_BEGINNING = 2.0  # memories at the start of a run, in which angular jumps do not count
_NEAR_EQUILIBRIUM = 0.1  # |ln ρ/ρ*| below which the norm is at equilibrium
_CHANGED = 0.1  # relative change of ηλ in the window above which ηλ is not constant
_FROZEN_LR = 0.01  # share of the largest lr of the run below which lr may be negligible
_FROZEN_CHANGE = 1e-3  # change of ln ρ in the remaining steps below which lr is negligible
_FROZEN_ROWS = 10  # last rows that measure this change


@dataclass(frozen=True)
class Forecast:
    """Where the norm is heading; `str` of it is a few sentences.

    The memory of weight decay is one over the decay of ln ρ per step (`theory.memory`): 1/ηλ for plain SGD. What
    depends on the law of the optimizer, or on a variable that the trajectory lacks, is NaN without it.

    Attributes
    ----------
    heading : "settles": the norm is at `equilibrium_norm`, and for one memory it varied as little as at
        equilibrium and, for plain SGD, rotated as fast. "stays near": the norm is at `equilibrium_norm` now and was
        there one memory ago, but varies more or rotates less. "oscillates": after the first two memories an
        angular jump occurred, or `norm_rises` is at least 2 and the norm varies more than at equilibrium. "frozen":
        lr is 0, or negligible. Else "falls" or "rises", as in the last steps.
    norm, grad_norm : last ρ, and root-mean-square g̃ of the last memory (of all steps, if there are fewer).
    lr, wd, optimizer : at the last step.
    observed_steps, stride : number of steps of the run so far, and number of steps between its rows.
    equilibrium_norm : ρ* at the present lr and wd, from the measured growth of the norm (docs/curvature.md). For Adam
        and optimizers of your own it is that of `theory` for g̃. inf without weight decay.
    equilibrium_norm_error : standard error of ρ*; NaN if ρ* is not measured.
    equilibrium_obstacle : why ρ* is NaN; else empty.
    steps_to_decide : number of further steps after which ρ* may be known, if it is undetermined in so few steps.
    steps_to_settle : steps at the present lr until ρ is within 1 % of ρ*. NaN for Adam, and if frozen.
    steps_left, norm_at_end : number of steps that are left, and norm after them under the schedule. None and NaN
        without `steps_left` and `schedule`.
    growth : growth of ln ρ over its decay, in the last quarter of a memory or of a shorter run. 1 at
        equilibrium, 0 without gradients.
    grad_norm_max, delta : upper bound of g̃ and threshold δ of angular jumps.
    angular_jump_norm : norm below which a step with `grad_norm_max` is an angular jump, for plain SGD.
    angular_jump_share : share of the recorded steps whose g̃ would give an angular jump at the present norm.
    steps_to_angular_jump_norm : steps until the norm is below `angular_jump_norm`: 0 now, inf never.
    earliest_angular_jump : lower bound of the steps until an angular jump, for any gradients with g̃ up to
        `grad_norm_max`. 0: in the next step; inf: never. NaN except for plain SGD.
    rotation, equilibrium_rotation : root-mean-square angle of the last steps, and its value at equilibrium for
        independent gradients, radians.
    observed_memories : length of the run in memories.
    first_lr, first_wd : lr and wd one memory ago if they changed since, else `lr` and `wd`.
    wanted_rotation : rotation that the caller asked for.
    highest_lr : highest lr from now to the end of the schedule; the present one without a schedule.
    wd_for_rotation, lr_for_rotation : wd at `highest_lr`, and lr at this wd, with this rotation at equilibrium.
    norm_rises : number of rises of ln ρ by 0.2, each after a decrease by as much, in the last eight memories but not in
        the first one. 0 if lr or wd doubled or halved meanwhile, because the norm follows them.
    has_angular_jump : whether an angular jump occurred after the first two memories.
    grad_norm_steps : number of last steps of which `grad_norm` is the root mean square.
    """

    heading: str
    norm: float
    grad_norm: float
    lr: float
    wd: float
    optimizer: str
    observed_steps: int
    stride: int
    equilibrium_norm: float
    equilibrium_norm_error: float
    equilibrium_obstacle: str
    steps_to_decide: float
    steps_to_settle: float
    steps_left: int | None
    norm_at_end: float
    growth: float
    grad_norm_max: float
    delta: float
    angular_jump_norm: float
    angular_jump_share: float
    steps_to_angular_jump_norm: float
    earliest_angular_jump: float
    rotation: float
    equilibrium_rotation: float
    observed_memories: float
    first_lr: float
    first_wd: float
    recorded_rows: int = 0
    has_schedule: bool = False
    is_observed_maximum: bool = False
    wanted_rotation: float | None = None
    highest_lr: float = math.nan
    wd_for_rotation: float = math.nan
    lr_for_rotation: float = math.nan
    norm_rises: int = 0
    has_angular_jump: bool = False
    grad_norm_steps: int = 0

    @property
    def has_changed(self) -> bool:
        """Whether lr or wd changed in the last memory, so that the norm cannot be at equilibrium yet."""
        return (self.first_lr, self.first_wd) != (self.lr, self.wd)

    def __str__(self) -> str:
        return forecast_words(self)


@dataclass(frozen=True)
class _Rows:
    """Columns of a run. `norms` are those before each row and after the last one."""

    norms: FloatArray
    lrs: FloatArray
    wds: FloatArray
    distances: FloatArray  # number of steps of each row
    gradients: FloatArray | None
    angles: FloatArray | None
    last_step: int

    @property
    def steps(self) -> int:
        """Number of steps of the run so far."""
        return int(self.distances.sum())

    @property
    def mean_lrs(self) -> FloatArray:
        """Mean lr of the steps of each row, if it changes linearly from row to row."""
        return self.lrs + np.diff(self.lrs, append=self.lrs[-1]) * (1 - 1 / self.distances) / 2

    @classmethod
    def of(cls, trajectory: xr.Dataset, setting: Setting) -> _Rows:
        """Read the columns. Raise ValueError if they are not those of a run that can be forecast."""
        rows = trajectory.sizes["step"]
        if rows < 2:
            raise ValueError(f"trajectory must have at least two rows, got {rows}; forecasts need at least two steps")
        steps = trajectory.step.values.astype(np.int64)
        strides = np.diff(steps)
        if strides[0] < 1 or (strides != strides[0]).any():
            row = int(np.argmax((strides != strides[0]) | (strides < 1)))
            raise ValueError(
                f"trajectory must have a constant stride of steps >= 1, got steps {steps[0]}, {steps[1]}, … and "
                f"{steps[row]}, {steps[row + 1]} at row {row}"
            )
        norms = np.append(trajectory.norm.values.astype(float), float(trajectory.final_norm))
        if not (np.isfinite(norms).all() and (norms > 0).all()):
            raise ValueError(
                f"trajectory must have finite norms > 0, got {norms[~(np.isfinite(norms) & (norms > 0))][0]}; was a "
                "weight removed or reshaped?"
            )
        gradients, angles = (
            trajectory[name].values.astype(float) if name in trajectory else None for name in ("grad_norm", "rotation")
        )
        if gradients is not None and not (np.isfinite(gradients).all() and gradients.any()):
            raise ValueError(
                "trajectory must have finite gradients that are not all zero. Frozen weights have none; or was "
                "a weight removed or reshaped?"
            )
        lrs, wds = (np.broadcast_to(np.asarray(v, dtype=np.float64), (rows,)) for v in (setting.lr, setting.wd))
        # final_norm is the norm one step after the last row
        distances = np.append(strides, 1).astype(float)
        return cls(norms, lrs, wds, distances, gradients, angles, int(steps[-1]))


def forecast(
    trajectory: xr.Dataset,
    *,
    grad_norm_max: float | None = None,
    delta: float = 0.1,
    rotation: float | None = None,
    steps_left: int | None = None,
    schedule: ScheduleLike | None = None,
    obstacle: str = "",
) -> Forecast:
    """Predict where the norm of a run, or of one scale-invariant group, is heading.

    Parameters
    ----------
    trajectory : one run without constraint, with `norm` and `final_norm`, and perhaps `grad_norm` and `rotation`. Its
        rows have a constant stride of steps. `final_norm` is the norm one step after the last row.
    grad_norm_max : upper bound of g̃ for angular jumps; default: the largest recorded g̃.
    delta : threshold δ of an angular jump, a step with 1 - cos θ > δ.
    rotation : angle per step in radians, below π/2, for which the forecast suggests lr or wd.
    steps_left : number of steps that are left. Without a schedule lr stays as it is.
    schedule : learning rate as a function of the step number, in the numbers of the coordinate `step`. Only its ratios
        to the value at the last recorded step count. A function needs `steps_left`, except for `theory.Cosine` and
        `theory.Linear`. Or a sequence of the learning rates ahead, or factors, with the present one first.
    obstacle : why the norm does not obey the law of its optimizer. Then the equilibrium is undetermined.

    Raises
    ------
    TypeError, ValueError : the trajectory is not such a run, has fewer than two rows, or has norms or gradients that
        are not finite; or an argument is out of range.

    Source: docs/mathematics.md §2, §4, §5, §8; docs/curvature.md.

    Examples
    --------
    >>> from simulate.maps.norm_map import norm_map
    >>> run = norm_map(theory.Cosine(0.5, 0.001, steps=400), 0.02, 2.0, norm=4.0, steps=100)
    >>> result = forecast(run, schedule=theory.Cosine(0.5, 0.001, steps=400))
    >>> result.steps_left, round(result.norm_at_end, 1)
    (300, 2.0)
    """
    check_trajectory(trajectory, "final_norm", single=True)
    delta = check_number("delta", delta, above=0, below=1)
    if rotation is not None:
        rotation = check_number("rotation", rotation, above=0, below=math.pi / 2)
    if grad_norm_max is not None:
        grad_norm_max = check_number("grad_norm_max", grad_norm_max, above=0)
    setting = Setting.of(trajectory)
    setting.check_free()
    rows = _Rows.of(trajectory, setting)
    remainder = LearningRatesAhead.of(float(rows.lrs[-1]), rows.last_step, steps_left, schedule)
    rule, law = setting.optimizer, GrowthLaw.of(setting.optimizer, setting.optimizer_text)
    if obstacle:
        rule, law = None, None
    norms, distances = rows.norms, rows.distances
    lr, wd, norm = float(rows.lrs[-1]), float(rows.wds[-1]), float(norms[-1])
    intrinsic_lrs = rows.lrs * rows.wds
    decays = _free_decay(rule, law, intrinsic_lrs)
    # where the decay of the norm is not known, use that of each weight
    pace = np.where(np.isnan(decays), intrinsic_lrs, decays) * distances
    window = _count_last_rows(pace, _WINDOW)
    recent = max(2, min(_count_last_rows(pace, _RECENT), math.ceil(_RECENT * pace.size)))
    has_changed = bool(np.ptp(intrinsic_lrs[-window:]) > _CHANGED * intrinsic_lrs[-1])
    grad_norm = math.nan
    if rows.gradients is not None:
        grad_norm = float(np.sqrt(np.mean(rows.gradients[-window:] ** 2)))
    is_frozen = _is_frozen(rows, remainder)
    growth = MeasuredGrowth()
    if law is not None:
        growth = measure_recent_growth(norms, rows.mean_lrs, rows.wds, distances, law, window)
    equilibrium_norm, reason = math.nan, f"undetermined, because {obstacle}"
    if not obstacle:
        equilibrium_norm, reason = _equilibrium(setting, law, growth, norm, lr, wd, grad_norm)
    angle, angles = math.nan, rows.angles
    if angles is not None:
        angle = float(np.sqrt(np.mean(angles[-(recent if has_changed else window) :] ** 2)))
    log_growth, decayed = float(np.log(norm / norms[-1 - recent])), float((decays * distances)[-recent:].sum())
    path = np.empty(0)
    if law is not None and not math.isnan(growth.constant):
        path = norms_ahead(norm, growth.constant, wd, remainder.lrs, remainder.distances, law)
    norm_at_end = math.nan
    if remainder.steps is not None:
        norm_at_end = norm if is_frozen or remainder.steps == 0 else float(path[-1]) if path.size else math.nan
    first = -window if has_changed else -1
    result = Forecast(
        heading="",
        norm=norm,
        grad_norm=grad_norm,
        lr=lr,
        wd=wd,
        optimizer=setting.optimizer_text,
        observed_steps=rows.steps,
        stride=int(distances[0]),
        equilibrium_norm=equilibrium_norm,
        equilibrium_norm_error=equilibrium_norm * growth.error / growth.constant / law.power
        if law is not None and math.isfinite(equilibrium_norm)
        else math.nan,
        equilibrium_obstacle=reason,
        steps_to_decide=growth.more_steps,
        steps_to_settle=math.nan
        if is_frozen
        else _steps_to_settle(norm, equilibrium_norm, _power(rule, law), float(decays[-1])),
        steps_left=remainder.steps,
        norm_at_end=norm_at_end,
        growth=1 + log_growth / decayed if decayed > 0 else math.nan,
        grad_norm_max=math.nan,
        delta=delta,
        angular_jump_norm=math.nan,
        angular_jump_share=math.nan,
        steps_to_angular_jump_norm=math.nan,
        earliest_angular_jump=math.nan,
        rotation=angle,
        equilibrium_rotation=_equilibrium_rotation(rule, lr, wd, grad_norm),
        observed_memories=float(pace.sum()),
        first_lr=float(rows.lrs[first]),
        first_wd=float(rows.wds[first]),
        recorded_rows=rows.lrs.size,
        has_schedule=remainder.has_schedule,
        norm_rises=_count_rises(rows, pace),
        has_angular_jump=angles is not None and bool((1 - np.cos(angles[np.cumsum(pace) >= _BEGINNING]) > delta).any()),
        grad_norm_steps=int(distances[-window:].sum()),
    )
    result = replace(result, heading=_heading(result, rows, rule, window, recent, is_frozen))
    if rows.gradients is not None or grad_norm_max is not None:
        result = _with_angular_jump(result, rows, rule, remainder, path, grad_norm_max)
    return result if rotation is None else _with_settings(result, rule, remainder, rotation, is_frozen)


def _free_decay(rule: theory.Optimizer | None, law: GrowthLaw | None, intrinsic_lrs: FloatArray) -> FloatArray:
    """Decay of ln ρ per step at each row; NaN where it is not known."""
    if law is None and rule is not None:
        # of Adam it is NaN; of an optimizer of the user's own it is that of each weight
        law = GrowthLaw(4, 0.0, rule)
    return np.full(intrinsic_lrs.size, math.nan) if law is None else law.decay(intrinsic_lrs)


def _power(rule: theory.Optimizer | None, law: GrowthLaw | None) -> float:
    """Power p of the norm that relaxes exponentially; 2 if directions do not depend on the size of gradients."""
    if law is not None:
        return law.power
    return math.nan if rule is None else 2 / rule.norm_exponent


def _equilibrium(
    setting: Setting, law: GrowthLaw | None, growth: MeasuredGrowth, norm: float, lr: float, wd: float, grad_norm: float
) -> tuple[float, str]:
    """ρ* at the present lr and wd, and why it is NaN."""
    rule = setting.optimizer
    if lr == 0:
        return math.nan, "undetermined, because the learning rate is 0"
    if law is None and rule is None:
        return math.nan, f"not known for {setting.optimizer_text}"
    if wd == 0:
        return math.inf, ""
    if law is not None:
        if growth.obstacle:
            return math.nan, growth.obstacle
        return equilibrium_of(norm, growth.constant, lr, wd, law), ""
    assert rule is not None
    if math.isnan(grad_norm):
        return math.nan, f"not known for {rule} without the gradient norms"
    if lr * wd >= rule.intrinsic_lr_limit:
        return math.nan, f"not known for lr * wd = {lr * wd:.3g}: it must be below {rule.intrinsic_lr_limit:g}"
    return float(theory.equilibrium_norm(lr, wd, grad_norm, optimizer=rule)), ""


def _equilibrium_rotation(rule: theory.Optimizer | None, lr: float, wd: float, grad_norm: float) -> float:
    """Angle per step at equilibrium for independent gradients; NaN where it is not known."""
    if rule is None or lr == 0 or lr * wd >= rotation_limit(rule):
        return math.nan
    if not math.isnan(grad_norm):
        return float(theory.equilibrium_rotation(lr, wd, grad_norm=grad_norm, optimizer=rule))
    # only that of Adam depends on g̃
    return math.nan if isinstance(rule, theory.Adam) else float(theory.equilibrium_rotation(lr, wd, optimizer=rule))


def _is_frozen(rows: _Rows, remainder: LearningRatesAhead) -> bool:
    """Whether lr is 0 or negligible: it has fallen, and what is left of it hardly changes the norm.

    Without `steps_left` as many steps are considered as the run has.
    """
    lr = rows.lrs[-1]
    if lr == 0:
        return not remainder.lrs.any()
    if lr > _FROZEN_LR * rows.lrs.max():
        return False
    ahead = float((remainder.lrs * remainder.distances).sum()) if remainder.steps is not None else lr * rows.steps
    count = min(_FROZEN_ROWS, rows.lrs.size)
    change = np.abs(np.diff(np.log(rows.norms[-count - 1 :]))).sum()
    return bool(change / (rows.lrs * rows.distances)[-count:].sum() * ahead < _FROZEN_CHANGE)


def _heading(
    result: Forecast,
    rows: _Rows,
    rule: theory.Optimizer | None,
    window: int,
    recent: int,
    is_frozen: bool,
) -> str:
    if is_frozen:
        return FROZEN
    norms, norm = rows.norms, result.norm
    varies = float(np.log(norms[-window:]).std()) > LOG_NORM_SD_MAX
    if result.has_angular_jump or (varies and result.norm_rises >= _RISES_MIN):
        return OSCILLATES
    is_there = (
        result.observed_memories >= _WINDOW
        and not result.has_changed
        and abs(math.log(norm / result.equilibrium_norm)) <= _NEAR_EQUILIBRIUM
    )
    # of other optimizers the rotation at equilibrium depends on correlations of gradients
    rotates = (
        rows.angles is None
        or rule != theory.SGD()
        or float(np.median(rows.angles[-window:])) >= ROTATION_RATIO_MIN * result.equilibrium_rotation
    )
    if is_there and rotates and not varies:
        return SETTLES
    if is_there and abs(math.log(norm / norms[-1 - window])) <= _NEAR_EQUILIBRIUM:
        return STAYS_NEAR
    return DECREASES if norm < norms[-1 - recent] else INCREASES


def _count_rises(rows: _Rows, pace: FloatArray) -> int:
    """Count the recent rises of the norm; 0 if they may be those of lr or wd."""
    begin = max(int(np.searchsorted(np.cumsum(pace), 1.0)), pace.size - _count_last_rows(pace, _RISES_MEMORIES))
    settings = (rows.lrs[begin:], rows.wds[begin:])
    if any(not values.size or values.max() >= 2 * values.min() for values in settings):
        return 0
    troughs, _ = zigzag(np.log(rows.norms[begin:]), _RISE)
    return len(troughs)


def _count_last_rows(pace: FloatArray, memories: float) -> int:
    """Count the last rows that span this many memories; all rows if they span fewer or there is no decay."""
    reached = np.flatnonzero(np.cumsum(pace[::-1]) >= memories * (1 - 1e-9))
    return max(2, int(reached[0]) + 1) if reached.size else len(pace)


def _steps_to_settle(norm: float, equilibrium_norm: float, power: float, decay: float) -> float:
    """Steps until ρ is within 1 % of ρ*; the excess of ρ^p decays p times as fast as ln ρ."""
    if decay == 0:
        return math.inf
    if math.isnan(decay) or math.isnan(equilibrium_norm):
        return math.nan
    apart = abs((norm / equilibrium_norm) ** power - 1)
    return max(0.0, math.log(apart / (0.01 * power)) / power * (1 / decay)) if apart > 0 else 0.0


def _with_angular_jump(
    result: Forecast,
    rows: _Rows,
    rule: theory.Optimizer | None,
    remainder: LearningRatesAhead,
    path: FloatArray,
    grad_norm_max: float | None,
) -> Forecast:
    """Add when angular jumps are possible, for plain SGD."""
    limit = float(rows.gradients.max()) if grad_norm_max is None and rows.gradients is not None else grad_norm_max
    assert limit is not None
    result = replace(result, grad_norm_max=limit, is_observed_maximum=grad_norm_max is None)
    lr, wd, norm = result.lr, result.wd, result.norm
    if rule != theory.SGD() or lr == 0 or lr * wd >= 1:
        return result
    needed = float(theory.angular_jump_norm(lr, wd, limit, result.delta))
    share = math.nan
    if rows.gradients is not None:
        # ρ² at which a step is an angular jump is proportional to g̃
        share = float(np.mean(rows.gradients * (needed / norm) ** 2 > limit))
    steps = math.nan
    if norm < needed:
        steps = 0.0
    elif remainder.has_schedule and path.size:
        possible = (remainder.lrs > 0) & (remainder.lrs * wd < 1)
        norms_needed = theory.angular_jump_norm(
            np.where(possible, remainder.lrs, lr), np.where(possible, wd, 0.0), limit, result.delta
        )
        below = np.flatnonzero(possible & (path < norms_needed))
        steps = float(np.cumsum(remainder.distances)[below[0]]) if below.size else math.inf
    elif result.equilibrium_norm >= needed:
        steps = math.inf
    elif result.equilibrium_norm < needed:
        here, there, end = (1.0, *((value / norm) ** 4 for value in (needed, result.equilibrium_norm)))
        steps = math.ceil(math.log((here - end) / (there - end)) / (4 * float(theory.free_decay(lr, wd))))
        if remainder.steps is not None and steps > remainder.steps:
            steps = math.inf
    return replace(
        result,
        angular_jump_norm=needed,
        angular_jump_share=share,
        steps_to_angular_jump_norm=steps,
        earliest_angular_jump=float(theory.steps_to_angular_jump(norm, lr, wd, 0.0, limit, result.delta).earliest),
    )


def _with_settings(
    result: Forecast, rule: theory.Optimizer | None, remainder: LearningRatesAhead, rotation: float, is_frozen: bool
) -> Forecast:
    """Add the settings for a rotation, at the highest lr that is ahead."""
    highest = max(result.lr, float(remainder.lrs.max(initial=0.0)))
    result = replace(result, wanted_rotation=rotation, highest_lr=highest)
    needs_gradient = isinstance(rule, theory.Adam)
    if rule is None or is_frozen or (needs_gradient and math.isnan(result.grad_norm)):
        return result
    # only Adam needs g̃
    gradient = 1.0 if math.isnan(result.grad_norm) else result.grad_norm
    wd, lr = math.nan, math.nan
    if highest > 0:
        wd = float(theory.wd_for_rotation(highest, rotation, grad_norm=gradient, optimizer=rule))
    if result.wd > 0:
        lr = float(theory.lr_for_rotation(result.wd, rotation, grad_norm=gradient, optimizer=rule))
    return replace(result, wd_for_rotation=wd, lr_for_rotation=lr)
