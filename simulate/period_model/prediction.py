"""Prediction of the norm dynamics of a network at one (lr, wd) from its calibration runs: interpolation and intervals.

Intervals of periods are bootstrapped: seeds and periods of the calibration runs are resampled.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import theory
from simulate.period_model.calibration import CalibrationRun, PooledRuns, fit_balance_law, pool_runs
from simulate.period_model.reduced_model import SimulatedPeriods
from simulate.trajectories.classification import PERIODIC, PERIODS_MIN, verdict_from
from simulate.trajectories.feedback import pool_scores
from theory.arguments import FloatArray

_ROTATION_RATIO_MAX = 1.0  # upper limit where a power law extrapolates beyond the equilibrium rotation
_SHARE_MAX = 0.995  # the odds of larger shares are dominated by rounding
_SAMPLES = 400  # bootstrap samples of an interval
# Relative error of the balance law: standard deviation at a calibrated ηλ, and its growth per factor of e to the
# nearest calibrated ηλ. Measured on the networks of docs/validation.md that were used during development.
_LAW_ERROR, _LAW_ERROR_GROWTH = 0.03, 0.035


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

    `str(prediction)` is a short form: the verdict, with period and interval if it is "periodic".

    The period is that of the balance law. In held-out tests it was closer to training than that of the reduced model,
    from which the norms at trough and peak come.

    Attributes
    ----------
    verdict : "equilibrium", "periodic" or "no clear period", by the rules of `simulate.classify`. The score of the test
        for feedback is that of the calibration runs at the lowest ηλ. "undetermined" if the numbers are those of
        periods, but no calibration run was tested.
    period : T of the balance law in steps, also if the verdict is "no clear period".
    period_interval : interval of T; None without a balance law. It combines two errors. The sampling error is
        bootstrapped: seeds and periods of the calibration runs are resampled, and the law is fitted to each sample. The
        error of the law itself is 3 % at a calibrated ηλ, and 3.5 % more per factor of e to the nearest calibrated ηλ
        (standard deviations).
    outside_growth : φ.
    threshold_ratio, rotation_ratio, log_norm_sd, autocorrelation_time : as in `simulate.Classification`.
    norm : geometric mean of ρ.
    trough_norm, peak_norm : geometric mean of ρ at the troughs and at the peaks, from the periods of the reduced model,
        corrected by the calibration runs; NaN without a reduced model.
    effective_lr_at_destabilization : η/ρ² at `trough_norm`, where training destabilizes.

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

    def __str__(self) -> str:
        if self.verdict == PERIODIC and self.period_interval is not None:
            return f"{PERIODIC}, T = {self.period:.4g} steps, {self.period_interval}"
        return self.verdict


def predict_from_runs(
    calibration_runs: tuple[CalibrationRun, ...],
    lr: float,
    wd: float,
    level: float,
    unit: float,
    law: theory.BalanceLaw | None,
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
    if law is not None:
        period = law.period(lr, wd)
        interval = _law_interval(calibration_runs, lr, wd, level)
        outside_growth = float(law.outside_growth_at(np.asarray(intrinsic_lr)))
    if law is not None and intrinsic_lr <= law.reference * (1 + 1e-9):
        runs_with_periods = [run for run in calibration_runs if run.count]
        sd = float(law.norm_rise_at(np.asarray(intrinsic_lr))) * math.exp(
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
    return Prediction(
        verdict=verdict_from(
            rotation_ratio, sd, periods, outside_growth, threshold_ratio, _feedback_score(calibration_runs)
        ),
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


def _law_interval(calibration_runs: tuple[CalibrationRun, ...], lr: float, wd: float, level: float) -> Interval:
    """Interval of the period of the balance law."""
    distance = min(abs(math.log(lr * wd / run.intrinsic_lr)) for run in calibration_runs)
    # another stream than that of the bootstrap samples
    random = np.random.default_rng([0, 1])
    log_errors = random.normal(0, _LAW_ERROR + _LAW_ERROR_GROWTH * distance, _SAMPLES)
    return Interval.of(np.exp(log_errors) * [law.period(lr, wd) for law in resample_laws(calibration_runs)], level)


def resample_runs(calibration_runs: Sequence[CalibrationRun], count: int, seed: int) -> Iterator[list[PooledRuns]]:
    """Resample the seeds, and the periods of each seed, with replacement; yield `count` samples like `pool_runs`."""
    random = np.random.default_rng(seed)
    intrinsic_lrs = [pooled.intrinsic_lr for pooled in pool_runs(calibration_runs)]
    groups = [
        [run for run in calibration_runs if run.intrinsic_lr == intrinsic_lr and run.count]
        for intrinsic_lr in intrinsic_lrs
    ]
    for _ in range(count):
        yield [
            _resample(intrinsic_lr, group, random) for intrinsic_lr, group in zip(intrinsic_lrs, groups, strict=True)
        ]


def _resample(intrinsic_lr: float, group: Sequence[CalibrationRun], random: np.random.Generator) -> PooledRuns:
    lengths, rises = [], []
    for number in random.integers(len(group), size=len(group)):
        run = group[number]
        chosen = random.integers(len(run.lengths), size=len(run.lengths))
        lengths.append(np.asarray(run.lengths)[chosen])
        rises.append(np.asarray(run.rises)[chosen])
    period, norm_rise = float(np.concatenate(lengths).mean()), float(np.concatenate(rises).mean())
    return PooledRuns(intrinsic_lr, sum(part.size for part in lengths), period, norm_rise)


@functools.lru_cache(maxsize=16)
def resample_laws(calibration_runs: tuple[CalibrationRun, ...]) -> list[theory.BalanceLaw]:
    """Balance laws fitted to bootstrap samples. They do not depend on the setting that is predicted."""
    return [fit_balance_law(sample) for sample in resample_runs(calibration_runs, _SAMPLES, seed=0)]
