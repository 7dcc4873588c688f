"""What to expect of the norm of a network at a setting it was not trained at, from the numbers of its probe."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

import theory
from simulate.period_model.calibration import Segment
from simulate.period_model.intervals import Interval
from simulate.period_model.reduced_model import Period
from simulate.trajectories.periods import PERIODIC, PERIODS_MIN, verdict_of
from theory.arguments import FloatArray

_MOST_ROTATION = 1.0  # of its equilibrium value, where a power law would have it grow
_LARGEST_SHARE = 0.995  # beyond which odds are a matter of rounding


@dataclass(frozen=True)
class Expectation:
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
    norm_min, norm_max, effective_lr_max : of the periods of the reduced model; NaN without one.
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
    norm_min: float
    norm_max: float
    effective_lr_max: float

    def __str__(self) -> str:
        if self.verdict == PERIODIC and self.interval is not None:
            return f"{PERIODIC}, T = {self.period:.4g} steps, {self.interval}"
        return self.verdict


def expectation(
    segments: Sequence[Segment],
    lr: float,
    rate: float,
    unit: float,
    law: theory.BalanceLaw | None,
    interval: Interval | None,
    reduced: Period | None,
) -> Expectation:
    """Scale the numbers of a probe to another setting.

    - Where there is a law, and not above the settings it was fitted to, the spread of ln ρ goes with J and its
      autocorrelation time with T: their ratios, and the share of T in T at twice the rise, are interpolated in ln ηλ
      between the settings of the probe and held beyond.
    - Of the rotation over its equilibrium value the odds are interpolated between them, and below them it is a power of
      ηλ. Elsewhere so is the spread, and the autocorrelation time in units of 1/ηλ is interpolated and held.
    - The typical norm keeps its place between the troughs and peaks of the reduced model; without one it is a power.

    Parameters
    ----------
    segments : of the probe.
    lr, rate, unit : η, ηλ, and the unit of the segments' norms at η.
    law, interval, reduced : balance law, its interval and the periods of the reduced model there, where there are any.

    Examples
    --------
    >>> from simulate import PeriodModel
    >>> probe = PeriodModel.reference().segments
    >>> resting = expectation(probe[:1], 0.5, 0.01, 0.5**0.5, None, None, None)
    >>> math.isnan(resting.period)
    True
    """
    period = outside_growth = math.nan
    if law is not None:
        period, outside_growth = float(law.period(lr, rate / lr)), float(law.outside_growth_at(np.asarray(rate)))
    if law is not None and rate <= law.reference * (1 + 1e-9):
        swinging = [each for each in segments if each.count]
        sd = float(law.norm_rise_at(np.asarray(rate))) * math.exp(
            interpolated(swinging, rate, lambda each: math.log(each.log_norm_sd / each.norm_rise))
        )
        memory = period * interpolated(swinging, rate, lambda each: each.autocorrelation_time / each.period)
        share = interpolated(swinging, rate, lambda each: 1 / each.threshold_ratio)
        threshold_ratio = 1 / share if share > 0 else math.inf
    else:
        sd = _power(segments, rate, lambda each: each.log_norm_sd)
        memory = interpolated(segments, rate, lambda each: each.autocorrelation_time * each.intrinsic_lr) / rate
        threshold_ratio = math.nan
    rotation_ratio = _rotation_ratio(segments, rate)
    norm_min = norm_max = effective_lr_max = math.nan
    if reduced is not None:
        norm_min, norm_max, effective_lr_max = reduced.norm_min, reduced.norm_max, reduced.effective_lr_max
        swinging = [each for each in segments if each.is_clear]
        place = interpolated(swinging, rate, lambda each: math.log(each.norm / each.norm_min) / each.norm_rise)
        norm = norm_min * (norm_max / norm_min) ** place
    else:
        norm = unit * _power(segments, rate, lambda each: each.norm)
    return Expectation(
        verdict=verdict_of(
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
        norm_min=norm_min,
        norm_max=norm_max,
        effective_lr_max=effective_lr_max,
    )


def _rotation_ratio(segments: Sequence[Segment], rate: float) -> float:
    if rate < min(each.intrinsic_lr for each in segments) or any(each.rotation_ratio <= 0 for each in segments):
        return min(_power(segments, rate, lambda each: each.rotation_ratio), _MOST_ROTATION)
    # near rest it changes little, far from rest as a power: the odds do both
    odds = math.exp(interpolated(segments, rate, lambda each: _log_odds(each.rotation_ratio)))
    return odds / (1 + odds)


def _log_odds(share: float) -> float:
    kept = min(share, _LARGEST_SHARE)
    return math.log(kept / (1 - kept))


def interpolated(segments: Sequence[Segment], rate: float, number: Callable[[Segment], float]) -> float:
    """Interpolate a number of segments in ln ηλ, between their means at each ηλ, and hold it beyond.

    Parameters
    ----------
    segments : of a probe.
    rate : ηλ.
    number : of a segment; those that do not know it, with NaN, are left out.

    Examples
    --------
    >>> two = [Segment(rate, 10, 60.0, 1.0, 0.5, 0.2, 1.0, 2.0) for rate in (0.01, 0.001)]
    >>> round(interpolated(two, 0.01 / 10**0.5, lambda each: each.intrinsic_lr), 9)
    0.0055
    >>> interpolated(two, 1e-4, lambda each: each.intrinsic_lr)
    0.001
    """
    rates, means = _means(segments, number)
    return float(np.interp(math.log(rate), rates, means)) if rates.size else math.nan


def _power(segments: Sequence[Segment], rate: float, number: Callable[[Segment], float]) -> float:
    """Power law of ηλ from one setting to the next, held above them and gone on with below."""
    rates, means = _means(segments, lambda each: math.log(number(each)) if number(each) > 0 else math.nan)
    if rates.size > 1 and math.log(rate) < rates[0]:
        slope = (means[1] - means[0]) / (rates[1] - rates[0])
        return math.exp(means[0] + slope * (math.log(rate) - rates[0]))
    return math.exp(float(np.interp(math.log(rate), rates, means))) if rates.size else math.nan


def _means(segments: Sequence[Segment], number: Callable[[Segment], float]) -> tuple[FloatArray, FloatArray]:
    """Logarithms of the ηλ at which a number is known, the smallest first, and its mean at each."""
    values: dict[float, list[float]] = {}
    for each in segments:
        value = number(each)
        if not math.isnan(value):
            values.setdefault(each.intrinsic_lr, []).append(value)
    rates = sorted(values)
    return np.log(rates), np.array([np.mean(values[rate]) for rate in rates])
