"""Prediction of the norm dynamics of a network at one (lr, wd) from its calibration runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from simulate.period_model.law import PeriodLaw
from simulate.period_model.summaries import CalibrationRun
from simulate.trajectories.verdicts import (
    NO_CLEAR_PERIOD,
    PERIODIC,
    PERIODS_MIN,
    UNDETERMINED,
    pool_scores,
    verdict_from,
)
from theory.arguments import FloatArray

if TYPE_CHECKING:
    from simulate.period_model.reduced_model import SimulatedPeriods

_ROTATION_RATIO_MAX = 1.0  # upper limit where a power law extrapolates beyond the equilibrium rotation
_SHARE_MAX = 0.995  # the odds of larger shares are dominated by rounding


@dataclass(frozen=True)
class Interval:
    """Interval of a predicted period.

    Attributes
    ----------
    lower, upper : ends in steps.
    level : share of repeated calibrations whose prediction would lie within the ends.

    Examples
    --------
    >>> print(Interval(90.0, 120.0, 0.9))
    90 … 120 steps (90 %)
    """

    lower: float
    upper: float
    level: float

    def __str__(self) -> str:
        return f"{self.lower:.4g} … {self.upper:.4g} steps ({self.level:.0%})".replace("%", " %")

    @classmethod
    def of(cls, values: npt.ArrayLike, level: float) -> Interval:
        """Return the interval that leaves out equal shares of the values at both ends.

        Examples
        --------
        >>> print(Interval.of(range(101), 0.9))
        5 … 95 steps (90 %)
        """
        lower, upper = np.quantile(np.asarray(values, dtype=float), [(1 - level) / 2, (1 + level) / 2])
        return cls(float(lower), float(upper), level)


@dataclass(frozen=True)
class Prediction:
    """Predicted behaviour at one (lr, wd). Fields that the model cannot predict are NaN.

    `str(prediction)` is a short form: the verdict, with period and interval unless it is "equilibrium", or the reason
    if it is "undetermined".

    The period is that of `PeriodModel.law`. In held-out tests it was closer to training than that of the reduced model,
    from which the norms at trough and peak come.

    Attributes
    ----------
    verdict : "equilibrium", "periodic" or "no clear period", by the rules of `simulate.classify`. The score of the test
        for feedback is that of the calibration runs at the lowest ηλ. "undetermined" if the calibration runs do not
        say which; `reason` says why.
    period : T of the law in steps, also if the verdict is "no clear period".
    period_interval : interval of T; None without a law or where it is undetermined. It combines the error of the
        calibration runs, whose seeds and periods are resampled, with that of the law (`PeriodModel.law`).
    outside_growth : φ.
    threshold_ratio, rotation_ratio, log_norm_sd, autocorrelation_time : as in `simulate.Classification`.
    norm : geometric mean of ρ.
    trough_norm, peak_norm : geometric mean of ρ at the troughs and at the peaks, from the periods of the reduced model,
        corrected by the calibration runs; NaN without a reduced model.
    effective_lr_at_destabilization : η/ρ² at `trough_norm`, where training destabilizes.
    reason : reason of the verdict "undetermined", and what to calibrate next; otherwise "".

    Source: docs/mathematics.md §5; docs/validation.md, for the errors.

    Examples
    --------
    >>> from simulate import PeriodModel
    >>> prediction = PeriodModel.reference().predict(0.5, 0.004)
    >>> prediction.period_interval.lower < prediction.period < prediction.period_interval.upper
    True
    """

    verdict: str
    period: float
    period_interval: Interval | None
    outside_growth: float
    threshold_ratio: float
    rotation_ratio: float
    log_norm_sd: float
    autocorrelation_time: float
    norm: float
    trough_norm: float
    peak_norm: float
    effective_lr_at_destabilization: float
    reason: str = ""

    def __str__(self) -> str:
        if self.verdict == PERIODIC and self.period_interval is not None:
            return f"{PERIODIC}, T = {self.period:.4g} steps, {self.period_interval}"
        if self.reason:
            return f"{self.verdict}: {self.reason}"
        if self.verdict == NO_CLEAR_PERIOD and self.period_interval is not None:
            return f"{NO_CLEAR_PERIOD}, the norm rises every {self.period:.4g} steps on average, {self.period_interval}"
        return self.verdict


def predict_from_runs(
    calibration_runs: tuple[CalibrationRun, ...],
    lr: float,
    wd: float,
    level: float,
    unit: float,
    law: PeriodLaw | None,
    simulated: SimulatedPeriods | None,
) -> Prediction:
    """Predict the behaviour at one setting from the numbers of calibration runs.

    Numbers are interpolated in ln ηλ, and constant beyond the calibration runs unless stated otherwise.

    - Spread of ln ρ, its autocorrelation time, and threshold ratio, up to the largest ηλ of the balance law: the
      ratios to J and to T, and the inverse of the threshold ratio, are interpolated.
    - Without a law, or above that ηλ: the spread is a power law below the calibration runs, and the autocorrelation
      time is interpolated in units of 1/ηλ.
    - Rotation ratio r: its odds r/(1-r) are interpolated; below the calibration runs it follows a power law.
    - Typical norm: its relative position between the trough and the peak of the reduced model is interpolated. Without
      a reduced model it is a power law below the calibration runs.

    Parameters
    ----------
    level : probability of the interval of the period.
    unit : unit of norms at η, see `norm_unit`.
    law, simulated : balance law, and the corrected periods of the reduced model at this setting, or None.
    """
    intrinsic_lr = lr * wd
    period = outside_growth = math.nan
    interval = None
    reason = "" if law is None else law.obstacle(lr, wd)
    if law is not None and not reason:
        period = law.period(lr, wd)
        interval = Interval.of(law.sample_periods(lr, wd), level)
        outside_growth = float(law.outside_growth_at(intrinsic_lr))
    if law is not None and intrinsic_lr <= law.largest * (1 + 1e-9):
        runs_with_periods = [run for run in calibration_runs if run.count]
        sd = float(law.norm_rise_at(intrinsic_lr)) * math.exp(
            interpolate(runs_with_periods, intrinsic_lr, lambda run: math.log(run.log_norm_sd / run.norm_rise))
        )
        time = interpolate(runs_with_periods, intrinsic_lr, lambda run: run.autocorrelation_time / run.period)
        autocorrelation_time = period * time
        share = interpolate(runs_with_periods, intrinsic_lr, lambda run: 1 / run.threshold_ratio)
        threshold_ratio = 1 / share if share > 0 else math.inf
    else:
        sd = _power_law(calibration_runs, intrinsic_lr, lambda run: run.log_norm_sd)
        time = interpolate(calibration_runs, intrinsic_lr, lambda run: run.autocorrelation_time * run.intrinsic_lr)
        autocorrelation_time = time / intrinsic_lr
        threshold_ratio = math.nan
    rotation_ratio = _rotation_ratio(calibration_runs, intrinsic_lr)
    trough_norm = peak_norm = math.nan
    if simulated is not None:
        trough_norm, peak_norm = simulated.trough_norm, simulated.peak_norm
        clear_runs = [run for run in calibration_runs if run.is_clear]
        position = interpolate(
            clear_runs, intrinsic_lr, lambda run: math.log(run.norm / run.trough_norm) / run.norm_rise
        )
        norm = trough_norm * (peak_norm / trough_norm) ** position
    else:
        norm = unit * _power_law(calibration_runs, intrinsic_lr, lambda run: run.norm)
    periods = 0 if math.isnan(period) else PERIODS_MIN
    score = _feedback_score(calibration_runs)
    verdict = verdict_from(rotation_ratio, sd, periods, outside_growth, threshold_ratio, score)
    if reason:
        verdict = UNDETERMINED
    elif verdict == UNDETERMINED:
        reason = "no calibration run is long enough for the test for feedback; calibrate with more periods"
    return Prediction(
        verdict=verdict,
        period=period,
        period_interval=interval,
        outside_growth=outside_growth,
        threshold_ratio=threshold_ratio,
        rotation_ratio=rotation_ratio,
        log_norm_sd=sd,
        autocorrelation_time=autocorrelation_time,
        norm=norm,
        trough_norm=trough_norm,
        peak_norm=peak_norm,
        effective_lr_at_destabilization=lr / trough_norm**2,
        reason=reason,
    )


def _feedback_score(calibration_runs: Sequence[CalibrationRun]) -> float:
    """Pooled score at the lowest ηλ at which runs were tested for feedback; NaN if none was."""
    tested = [run for run in calibration_runs if not math.isnan(run.feedback_score)]
    lowest = min((run.intrinsic_lr for run in tested), default=math.nan)
    return pool_scores([run.feedback_score for run in tested if run.intrinsic_lr == lowest])


def _rotation_ratio(calibration_runs: Sequence[CalibrationRun], intrinsic_lr: float) -> float:
    if intrinsic_lr < min(run.intrinsic_lr for run in calibration_runs) or any(
        run.rotation_ratio <= 0 for run in calibration_runs
    ):
        return min(_power_law(calibration_runs, intrinsic_lr, lambda run: run.rotation_ratio), _ROTATION_RATIO_MAX)
    # nearly constant close to equilibrium, a power law far from it: the odds describe both
    odds = math.exp(interpolate(calibration_runs, intrinsic_lr, lambda run: _log_odds(run.rotation_ratio)))
    return odds / (1 + odds)


def _log_odds(share: float) -> float:
    clipped = min(share, _SHARE_MAX)
    return math.log(clipped / (1 - clipped))


def interpolate(
    calibration_runs: Sequence[CalibrationRun], intrinsic_lr: float, number: Callable[[CalibrationRun], float]
) -> float:
    """Interpolate a number of calibration runs in ln ηλ, averaged at each ηλ and constant beyond them.

    Runs where the number is NaN are left out.
    """
    log_lrs, means = _mean_numbers(calibration_runs, number)
    return float(np.interp(math.log(intrinsic_lr), log_lrs, means)) if log_lrs.size else math.nan


def _power_law(
    calibration_runs: Sequence[CalibrationRun], intrinsic_lr: float, number: Callable[[CalibrationRun], float]
) -> float:
    """Interpolate ln(number) in ln ηλ: extrapolated below the calibration runs, constant above them."""
    log_lrs, means = _mean_numbers(calibration_runs, lambda run: math.log(number(run)) if number(run) > 0 else math.nan)
    if log_lrs.size > 1 and math.log(intrinsic_lr) < log_lrs[0]:
        slope = (means[1] - means[0]) / (log_lrs[1] - log_lrs[0])
        return math.exp(means[0] + slope * (math.log(intrinsic_lr) - log_lrs[0]))
    return math.exp(float(np.interp(math.log(intrinsic_lr), log_lrs, means))) if log_lrs.size else math.nan


def _mean_numbers(
    calibration_runs: Sequence[CalibrationRun], number: Callable[[CalibrationRun], float]
) -> tuple[FloatArray, FloatArray]:
    """Logarithms of ηλ in increasing order, and the mean of a number at each; NaN is left out."""
    values: dict[float, list[float]] = {}
    for run in calibration_runs:
        value = number(run)
        if not math.isnan(value):
            values.setdefault(run.intrinsic_lr, []).append(value)
    intrinsic_lrs = sorted(values)
    return np.log(intrinsic_lrs), np.array([np.mean(values[intrinsic_lr]) for intrinsic_lr in intrinsic_lrs])
