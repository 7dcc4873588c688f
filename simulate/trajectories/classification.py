"""Classify a trajectory: at equilibrium, periodic, without a clear period, in its transient, or undetermined."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import xarray as xr

import theory
from simulate.trajectories.contract import FREE, check_trajectory
from simulate.trajectories.feedback import BUFFER_MAX, VARIATION_MAX, FeedbackTest, buffer_steps, find_feedback
from simulate.trajectories.periods import (
    MeasuredPeriods,
    check_and_find,
    periods_of_rows,
    rows_after_transient,
    transient_length,
)
from simulate.trajectories.setting import Setting
from simulate.trajectories.statistics import autocorrelation_time
from simulate.trajectories.verdicts import (
    EQUILIBRIUM,
    OUTSIDE_GROWTH_MAX,
    PERIODIC,
    PERIODS_MIN,
    TRANSIENT,
    UNDETERMINED,
    has_clear_period,
    verdict_from,
)

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_SAMPLES_PER_RELAXATION = 100  # samples per 1/ηλ for the autocorrelation
# At most so much of ln ρ may be lost beyond weight decay: rounding, or a momentum buffer that points inwards.
_EXCESS_DECAY_MAX, _EXCESS_DECAY_MAX_BUFFER = 0.05, 0.5
# A step adds at least 1 - cos θ to ln ρ, and half of the steps add the median or more. So the median is at most twice
# the mean growth. The rest is tolerance.
_TURN_RATIO_MAX = 2.5

_RELAXATIONS_OF_TRANSIENT = 8  # relaxation times of about 1/4ηλ in the transient of 2/ηλ

_NO_TEST = FeedbackTest(math.nan)


@dataclass(frozen=True)
class Classification:
    """Verdict on a trajectory, the numbers behind it, and statistics of ln ρ that need no threshold.

    `str(classification)` is a short form: the verdict, with "T = … ± … steps" if it is "periodic", and with the reason
    if the data do not support one.

    Attributes
    ----------
    verdict : "equilibrium", "periodic", "no clear period", "transient" or "undetermined".
    rotation_ratio : median rotation over its equilibrium value.
    log_norm_sd : standard deviation of ln ρ.
    typical_norm : geometric mean of ρ.
    norm_quantiles : 5, 25, 50, 75 and 95 % quantiles of ρ over the rows.
    autocorrelation_time : steps after which the autocorrelation of ln ρ has fallen to 1/e; NaN if it stays above for
        half of the rows.
    threshold_ratio : mean period at twice the rise over that at the rise. It is inf without periods at twice the rise,
        and NaN without any periods.
    periods : result of `find_periods`.
    feedback : result of the test for feedback. Its score is NaN if there are fewer than 5 periods, or no test was made.
    obstacle : why a verdict on the behaviour is impossible: the run is too short, or contradicts its settings; empty if
        neither.
    """

    verdict: str
    rotation_ratio: float
    log_norm_sd: float
    typical_norm: float
    norm_quantiles: tuple[float, ...]
    autocorrelation_time: float
    threshold_ratio: float
    periods: MeasuredPeriods = field(repr=False)
    feedback: FeedbackTest = field(default=_NO_TEST, repr=False)
    obstacle: str = field(default="", repr=False)

    def __str__(self) -> str:
        if self.verdict == PERIODIC:
            return f"{PERIODIC}, {self.periods}"
        return f"{self.verdict}: {self.obstacle}" if self.obstacle else self.verdict

    @property
    def reason(self) -> str:
        """The numbers that led to the verdict, in one sentence."""
        if self.obstacle:
            return self.obstacle
        # without decay there is no rotation at equilibrium
        has_equilibrium = math.isfinite(self.rotation_ratio)
        rotation = f"median rotation {self.rotation_ratio:.2f} of equilibrium" if has_equilibrium else "no equilibrium"
        spread = f"{rotation}, spread of ln ρ {self.log_norm_sd:.3f}"
        if self.verdict == EQUILIBRIUM:
            return spread
        periods = self.periods
        if periods.count < PERIODS_MIN:
            return f"{spread}, and {periods.count} period{'s' * (periods.count != 1)}"
        if math.isnan(periods.outside_growth):
            return f"{spread}, and {periods.count} periods, but no rate of decay to compare their growth with"
        shares = f"{periods.count} periods, {periods.outside_growth:.0%} of the growth outside their rises"
        if periods.outside_growth > OUTSIDE_GROWTH_MAX:
            return f"{spread}, {shares}"
        if self.verdict in (PERIODIC, UNDETERMINED):
            return f"{spread}, {shares}, {self.feedback}"
        if has_clear_period(periods.outside_growth, self.threshold_ratio):
            why = "gradients that ignore the norm have such periods, too"
            if self.feedback.variation > VARIATION_MAX:
                why = "the periods are irregular"
            return f"{spread}, {shares}, and {why}: {self.feedback}"
        coarse = "no period" if math.isinf(self.threshold_ratio) else f"{self.threshold_ratio * periods.mean:.4g} steps"
        return (
            f"{spread}, {shares}, and a period that depends on the detection threshold: {periods.mean:.4g} steps for "
            f"rises of at least {periods.rise:g}, {coarse} for {2 * periods.rise:g}"
        )


def classify(trajectory: xr.Dataset, *, rise: float = 0.1, discard: int | None = None) -> Classification:
    """Classify a trajectory: at equilibrium, periodic, without a clear period, in its transient, or undetermined.

    - "equilibrium": the median rotation is at least 0.8 of its equilibrium value *and* the standard deviation of ln ρ
      is at most 0.05. (The mean of ρ⁴ is no criterion: it fits the equilibrium formula on periodic runs too.) Without
      weight decay this verdict is impossible.
    - "periodic": the norm oscillates because a low norm causes destabilizations. There are at least 5 periods, at most
      0.9 of the growth of ln ρ is outside the destabilizations, and the period less than doubles if `rise` is doubled.
      A period that doubles only reflects the detection threshold. This condition is dropped if at most 0.25 of the
      growth is outside. The test for feedback has a score of at least 2.33. Of the runs of plain SGD whose gradients
      ignore the norm, fewer than 1 in 100 are called periodic.
    - "transient": the run ends before its initial norm is forgotten, or less than a relaxation time after that with a
      steady norm. If `discard` is given, this verdict is not used.
    - "undetermined": settings do not fit this trajectory, because the norm decreases faster than weight decay allows,
      or the weights rotate farther than the growth of the norm allows. The verdict is also undetermined if the periods
      are clear, but the test for feedback is impossible, as under momentum with a large intrinsic learning rate.
    - "no clear period": everything else.

    Parameters
    ----------
    trajectory : one run with `norm` and `rotation`.
    rise, discard : as in `find_periods`.

    Returns
    -------
    Classification

    Raises
    ------
    TypeError, ValueError : `trajectory` is no single run, an argument is out of range, or fewer than two rows are left
        after `discard`.

    Warns
    -----
    UserWarning : rows are more than 0.01/ηλ steps apart, which biases the periods.

    Source: docs/mathematics.md §2, §5.

    Examples
    --------
    >>> from simulate.maps.norm_map import norm_map
    >>> str(classify(norm_map(0.1, 0.01, 2.0, norm=2.1, steps=5000)))
    'equilibrium'
    """
    check_trajectory(trajectory, "rotation", single=True)
    # without the warning of `find_periods`: the verdict says whether a period is clear
    periods = check_and_find(trajectory, rise, discard)
    settled = rows_after_transient(trajectory, discard)
    if len(settled) < 2:
        return _in_transient(trajectory, periods, discard)
    setting = Setting.of(trajectory)
    lr, wd = (
        np.asarray(values.values[settled] if values.ndim else values.values, dtype=float)
        for values in (setting.lr, setting.wd)
    )
    rule = setting.known_optimizer()
    expected = theory.equilibrium_rotation(lr, wd, grad_norm=_root_mean_square(trajectory, settled), optimizer=rule)
    rotation = trajectory.rotation.values[settled]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = float(np.median(rotation / expected))
    step, log_norm = trajectory.step.values[settled], np.log(trajectory.norm.values[settled])
    obstacle = ""
    if setting.constraint == FREE and np.all((lr * wd >= 0) & (lr * wd < 1)):
        decay = np.broadcast_to(theory.free_decay(1.0, lr * wd, optimizer=rule), step.shape)
        obstacle = _contradiction(step, log_norm, decay, rotation, rule)
    sd = float(log_norm.std())
    coarse = periods_of_rows(trajectory, settled, 2 * periods.rise)
    has_periods = (periods.count > 0, coarse.count > 0)
    threshold_ratio = {(True, True): coarse.mean / periods.mean, (True, False): math.inf}.get(has_periods, math.nan)
    feedback = _NO_TEST
    if periods.count >= PERIODS_MIN and not obstacle:
        feedback = find_feedback(trajectory.isel(step=settled), periods)
    verdict = verdict_from(ratio, sd, periods.count, periods.outside_growth, threshold_ratio, feedback.score)
    if obstacle:
        verdict = UNDETERMINED
    elif (
        verdict == EQUILIBRIUM
        and discard is None
        and (span := int(step[-1] - step[0])) < (transient := transient_length(trajectory)) / _RELAXATIONS_OF_TRANSIENT
    ):
        # within a short time a norm that still changes is steady, too
        verdict, obstacle = TRANSIENT, f"only {span} steps follow the transient; train for {transient} more steps"
    return Classification(
        verdict=verdict,
        rotation_ratio=ratio,
        log_norm_sd=sd,
        typical_norm=math.exp(log_norm.mean()),
        norm_quantiles=tuple(np.exp(np.quantile(log_norm, QUANTILES)).tolist()),
        autocorrelation_time=autocorrelation_time(
            step,
            log_norm,
            1 / (_SAMPLES_PER_RELAXATION * periods.intrinsic_lr) if periods.intrinsic_lr else 1,
        ),
        threshold_ratio=threshold_ratio,
        periods=periods,
        feedback=feedback,
        obstacle=obstacle,
    )


def _in_transient(trajectory: xr.Dataset, periods: MeasuredPeriods, discard: int | None) -> Classification:
    """Classification of a run that ends in its transient. Raise ValueError if it has no transient or no rows."""
    count, needed = trajectory.sizes["step"], transient_length(trajectory)
    trained = int(np.ptp(trajectory.step.values)) + 1 if count else 0
    if discard is not None or not 0 < trained <= needed:
        raise ValueError(
            f"trajectory must have rows left after `discard`, got fewer than two of {count} with a finite norm > 0; "
            f"its first {needed if discard is None else discard} steps are discarded, so train longer, or pass a "
            "smaller discard"
        )
    return Classification(
        TRANSIENT,
        rotation_ratio=math.nan,
        log_norm_sd=math.nan,
        typical_norm=math.nan,
        norm_quantiles=(math.nan,) * len(QUANTILES),
        autocorrelation_time=math.nan,
        threshold_ratio=math.nan,
        periods=periods,
        obstacle="the norm still depends on its initial value, which training forgets after about "
        f"{needed} steps at this lr and wd; the run has {trained}. Train longer or with a larger lr * wd. "
        "Monitor.forecast predicts where the norm goes",
    )


def impossible_decrease(
    step: npt.NDArray[np.int64],
    log_norm: npt.NDArray[np.float64],
    decay: npt.NDArray[np.float64],
    rule: theory.Optimizer,
) -> float:
    """Largest decrease of ln ρ beyond its decay, if steps orthogonal to the weights make it impossible; else 0.

    Examples
    --------
    >>> step, decay = np.arange(100), np.full(100, 0.001)
    >>> round(impossible_decrease(step, -0.002 * step, decay, theory.SGD()), 3)
    0.099
    >>> impossible_decrease(step, -0.001 * step, decay, theory.SGD())
    0.0
    """
    # growth of ln ρ by gradients since the first row: it never decreases if steps are orthogonal to the weights
    growth = np.append(0.0, np.cumsum(np.diff(log_norm) + _decayed(step, decay)))
    excess = float((np.maximum.accumulate(growth) - growth).max())
    return excess if excess > (_EXCESS_DECAY_MAX if rule == theory.SGD() else _EXCESS_DECAY_MAX_BUFFER) else 0.0


def _decayed(step: npt.NDArray[np.int64], decay: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Largest decay of ln ρ between neighbouring rows."""
    largest: npt.NDArray[np.float64] = np.maximum(decay[:-1], decay[1:]) * np.diff(step)
    return largest


def _contradiction(
    step: npt.NDArray[np.int64],
    log_norm: npt.NDArray[np.float64],
    decay: npt.NDArray[np.float64],
    rotation: npt.NDArray[np.float64],
    rule: theory.Optimizer,
) -> str:
    """Say why ln ρ and the rotation are impossible for the decay of ln ρ per step; empty if they are possible."""
    if buffer_steps(rule) * float(decay.mean()) > BUFFER_MAX:
        # the norm may ring
        return ""
    check = "check lr, wd and optimizer, and that this is the norm of the scale-invariant weights"
    if excess := impossible_decrease(step, log_norm, decay, rule):
        decrease = f"ln ρ decreased by {excess:.3g} more than weight decay allows"
        return f"settings do not fit this trajectory: {decrease}; {check}"
    turn = 1 - math.cos(float(np.median(rotation)))
    growth = log_norm[-1] - log_norm[0] + _decayed(step, decay).sum()
    mean_growth = max(growth / (step[-1] - step[0]), float(decay.mean()))
    if rule == theory.SGD() and turn > _TURN_RATIO_MAX * mean_growth > 0:
        return (
            f"settings do not fit this trajectory: half of the steps rotate the weights by {np.median(rotation):.3g} "
            f"or more, so the norm would grow faster; {check}"
        )
    return ""


def _root_mean_square(trajectory: xr.Dataset, rows: npt.NDArray[np.int64]) -> float:
    """Root mean square of g̃, on which the rotation of some optimizers depends; 1 if it is not recorded."""
    with np.errstate(over="ignore"):
        size = float(np.sqrt(np.mean(trajectory.grad_norm.values[rows] ** 2))) if "grad_norm" in trajectory else 1.0
    return size if size > 0 and math.isfinite(size) else 1.0
