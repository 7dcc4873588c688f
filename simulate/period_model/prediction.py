"""What to expect of the norm of a network at a setting it was not trained at, from the numbers of its probe."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

import theory
from simulate.period_model.calibration import CalibrationRun
from simulate.period_model.intervals import Interval
from simulate.period_model.reduced_model import PredictedPeriod
from simulate.trajectories.periods import PERIODIC, PERIODS_MIN, verdict_from
from theory.arguments import FloatArray

_MOST_ROTATION = 1.0  # of its equilibrium value, where a power law would have it grow
_LARGEST_SHARE = 0.995  # beyond which odds are a matter of rounding


@dataclass(frozen=True)
class Prediction:
    """What a probe lets expect at one setting; numbers that it says nothing about are NaN.

    `str` of it is the verdict in a few words, as that of a `Classification`.

    Attributes
    ----------
    verdict : "equilibrium", "periodic" or "no clear period", by the rules of `simulate.classify`.
    period : T of the balance law in steps; also where the verdict is that it is not clear.
    interval : of T.
    outside_growth : φ.
    threshold_ratio, rotation_ratio, log_norm_sd, autocorrelation_time : as in `simulate.Classification`.
    norm : geometric mean of ρ.
    trough_norm, peak_norm, effective_lr_max : of the periods of the reduced model; NaN without one.
    """

    verdict: str
    period: float
    interval: Interval | None
    outside_growth: float
    threshold_ratio: float
    rotation_ratio: float
    log_norm_sd: float
    autocorrelation_time: float
    norm: float
    trough_norm: float
    peak_norm: float
    effective_lr_max: float

    def __str__(self) -> str:
        if self.verdict == PERIODIC and self.interval is not None:
            return f"{PERIODIC}, T = {self.period:.4g} steps, {self.interval}"
        return self.verdict


def predict_from_runs(
    calibration_runs: Sequence[CalibrationRun],
    lr: float,
    rate: float,
    unit: float,
    law: theory.BalanceLaw | None,
    interval: Interval | None,
    reduced: PredictedPeriod | None,
) -> Prediction:
    """Scale the numbers of a probe to another setting.

    - Where there is a law, and not above the settings it was fitted to, the spread of ln ρ goes with J and its
      autocorrelation time with T: their ratios, and the share of T in T at twice the rise, are interpolated in ln ηλ
      between the settings of the probe and held beyond.
    - Of the rotation over its equilibrium value the odds are interpolated between them, and below them it is a power of
      ηλ. Elsewhere so is the spread, and the autocorrelation time in units of 1/ηλ is interpolated and held.
    - The typical norm keeps its place between the troughs and peaks of the reduced model; without one it is a power.

    Parameters
    ----------
    calibration_runs : of the probe.
    lr, rate, unit : η, ηλ, and the unit of the segments' norms at η.
    law, interval, reduced : balance law, its interval and the periods of the reduced model there, where there are any.

    Examples
    --------
    >>> from simulate import PeriodModel
    >>> probe = PeriodModel.reference().calibration_runs
    >>> resting = predict_from_runs(probe[:1], 0.5, 0.01, 0.5**0.5, None, None, None)
    >>> math.isnan(resting.period)
    True
    """
    period = outside_growth = math.nan
    if law is not None:
        period, outside_growth = float(law.period(lr, rate / lr)), float(law.outside_growth_at(np.asarray(rate)))
    if law is not None and rate <= law.reference * (1 + 1e-9):
        swinging = [each for each in calibration_runs if each.count]
        sd = float(law.norm_rise_at(np.asarray(rate))) * math.exp(
            interpolate(swinging, rate, lambda each: math.log(each.log_norm_sd / each.norm_rise))
        )
        memory = period * interpolate(swinging, rate, lambda each: each.autocorrelation_time / each.period)
        share = interpolate(swinging, rate, lambda each: 1 / each.threshold_ratio)
        threshold_ratio = 1 / share if share > 0 else math.inf
    else:
        sd = _power(calibration_runs, rate, lambda each: each.log_norm_sd)
        memory = interpolate(calibration_runs, rate, lambda each: each.autocorrelation_time * each.intrinsic_lr) / rate
        threshold_ratio = math.nan
    rotation_ratio = _rotation_ratio(calibration_runs, rate)
    trough_norm = peak_norm = effective_lr_max = math.nan
    if reduced is not None:
        trough_norm, peak_norm, effective_lr_max = reduced.trough_norm, reduced.peak_norm, reduced.effective_lr_max
        swinging = [each for each in calibration_runs if each.is_clear]
        place = interpolate(swinging, rate, lambda each: math.log(each.norm / each.trough_norm) / each.norm_rise)
        norm = trough_norm * (peak_norm / trough_norm) ** place
    else:
        norm = unit * _power(calibration_runs, rate, lambda each: each.norm)
    return Prediction(
        verdict=verdict_from(
            rotation_ratio, sd, 0 if math.isnan(period) else PERIODS_MIN, outside_growth, threshold_ratio
        ),
        period=period,
        interval=interval,
        outside_growth=outside_growth,
        threshold_ratio=threshold_ratio,
        rotation_ratio=rotation_ratio,
        log_norm_sd=sd,
        autocorrelation_time=memory,
        norm=norm,
        trough_norm=trough_norm,
        peak_norm=peak_norm,
        effective_lr_max=effective_lr_max,
    )


def _rotation_ratio(calibration_runs: Sequence[CalibrationRun], rate: float) -> float:
    if rate < min(each.intrinsic_lr for each in calibration_runs) or any(
        each.rotation_ratio <= 0 for each in calibration_runs
    ):
        return min(_power(calibration_runs, rate, lambda each: each.rotation_ratio), _MOST_ROTATION)
    # near rest it changes little, far from rest as a power: the odds do both
    odds = math.exp(interpolate(calibration_runs, rate, lambda each: _log_odds(each.rotation_ratio)))
    return odds / (1 + odds)


def _log_odds(share: float) -> float:
    kept = min(share, _LARGEST_SHARE)
    return math.log(kept / (1 - kept))


def interpolate(
    calibration_runs: Sequence[CalibrationRun], rate: float, number: Callable[[CalibrationRun], float]
) -> float:
    """Interpolate a number of segments in ln ηλ, between their means at each ηλ, and hold it beyond.

    Parameters
    ----------
    calibration_runs : of a probe.
    rate : ηλ.
    number : of a segment; those that do not know it, with NaN, are left out.

    Examples
    --------
    >>> two = [CalibrationRun(rate, 10, 60.0, 1.0, 0.5, 0.2, 1.0, 2.0) for rate in (0.01, 0.001)]
    >>> round(interpolate(two, 0.01 / 10**0.5, lambda each: each.intrinsic_lr), 9)
    0.0055
    >>> interpolate(two, 1e-4, lambda each: each.intrinsic_lr)
    0.001
    """
    rates, means = _means(calibration_runs, number)
    return float(np.interp(math.log(rate), rates, means)) if rates.size else math.nan


def _power(calibration_runs: Sequence[CalibrationRun], rate: float, number: Callable[[CalibrationRun], float]) -> float:
    """Power law of ηλ from one setting to the next, held above them and gone on with below."""
    rates, means = _means(calibration_runs, lambda each: math.log(number(each)) if number(each) > 0 else math.nan)
    if rates.size > 1 and math.log(rate) < rates[0]:
        slope = (means[1] - means[0]) / (rates[1] - rates[0])
        return math.exp(means[0] + slope * (math.log(rate) - rates[0]))
    return math.exp(float(np.interp(math.log(rate), rates, means))) if rates.size else math.nan


def _means(
    calibration_runs: Sequence[CalibrationRun], number: Callable[[CalibrationRun], float]
) -> tuple[FloatArray, FloatArray]:
    """Logarithms of the ηλ at which a number is known, the smallest first, and its mean at each."""
    values: dict[float, list[float]] = {}
    for each in calibration_runs:
        value = number(each)
        if not math.isnan(value):
            values.setdefault(each.intrinsic_lr, []).append(value)
    rates = sorted(values)
    return np.log(rates), np.array([np.mean(values[rate]) for rate in rates])
