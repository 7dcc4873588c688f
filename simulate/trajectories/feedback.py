"""Test whether a low norm causes the destabilizations, or gradients that ignore the norm drive it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy import fft, special

import theory
from simulate._compilation import compile_cached
from simulate.trajectories.contract import FREE
from simulate.trajectories.periods import MeasuredPeriods, zigzag
from simulate.trajectories.setting import Setting

SURROGATES = 99
# measured on periodic networks: variation 0.24 to 0.43, response from -0.04 to 0.8 with 50 periods or more
VARIATION_MAX, VARIATION_SMALL, RESPONSE_MIN = 0.5, 0.2, -0.2
_SPACING = 0.02  # distance of samples, in units of the time in which weight decay alone reduces ln ρ by 1
_SPACING_MAX = 0.1  # if rows lie farther apart, they do not resolve the growth in a destabilization
_SAMPLES_MAX = 8000  # so many last samples are used, about 160/ηλ steps
_MEMORY = 3.0  # mean periods over which surrogates keep the correlations of the run
# If the buffer remembers a larger share of the decay time, it prolongs rises, which surrogates lack.
BUFFER_MAX = 0.03
_DEVIATION_MIN = 1e-3  # smaller differences of the statistics have no meaning
_PERIODS_MIN = 4  # fewest periods of a surrogate whose statistics are used
_SURROGATES_NEEDED = 0.5  # share of surrogates that must have so many

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FeedbackTest:
    """Comparison of a run with surrogates, in which gradients do not depend on the norm.

    A surrogate has gradients with the same distribution and the same correlations in time as the run, but in an order
    that ignores the norm. The law of the norm turns them into a trajectory. Three statistics are compared:

    - variation: standard deviation of the period over its mean. Feedback makes periods regular.
    - response: correlation of ln(peak norm) with the logarithm of the effective learning rate at the onset. Under
      feedback, a larger effective learning rate causes a stronger destabilization, so the response is positive. If
      gradients ignore the norm, a trajectory that starts a rise at a lower norm ends it at a lower norm.
    - contrast: logarithm of the spread of ln ρ at the troughs over that at the peaks. Under feedback, destabilizations
      begin at similar norms, or end at similar norms wherever they begin.

    Attributes
    ----------
    score : sum of the differences to the means of the surrogates, each in standard deviations of the surrogates. A
        smaller variation and both signs of the contrast count as positive. The sum is standardized by the sums of the
        surrogates. It is at most 0 if the variation exceeds 0.5. The same holds if the variation exceeds 0.2 and the
        response is below -0.2. NaN if the test is impossible.
    variation, response, contrast : statistics of the run.
    surrogate_variation, surrogate_response, surrogate_contrast : their means over the surrogates.
    reason : why the test is impossible, and what would decide; empty if it was made.

    Source: docs/mathematics.md §5.

    Examples
    --------
    >>> print(FeedbackTest(math.nan, reason="rows lie 50 steps apart; log every 10 steps or more often"))
    no test for feedback: rows lie 50 steps apart; log every 10 steps or more often
    """

    score: float
    variation: float = math.nan
    response: float = math.nan
    contrast: float = math.nan
    surrogate_variation: float = math.nan
    surrogate_response: float = math.nan
    surrogate_contrast: float = math.nan
    reason: str = field(default="", repr=False)

    def __str__(self) -> str:
        if self.reason:
            return f"no test for feedback: {self.reason}"
        return (
            f"feedback score {self.score:.1f} (variation of the period {self.variation:.2f}, without feedback "
            f"{self.surrogate_variation:.2f}; response of the peaks {self.response:.2f}, without "
            f"{self.surrogate_response:.2f}; contrast {self.contrast:.2f}, without {self.surrogate_contrast:.2f})"
        )


def find_feedback(trajectory: xr.Dataset, periods: MeasuredPeriods) -> FeedbackTest:
    """Test one run for feedback, from the norms of the rows in which the periods were found.

    The growth of ρ between samples gives the gradients that drive the norm: b = ρᵢ²(ρᵢ₊₁² - aρᵢ²) for SGD, and
    b = ρᵢ₊₁² - aρᵢ² for optimizers that normalize the gradient, where a is the factor of decay of ρ². Surrogates are
    amplitude-adjusted Fourier transforms of b (Theiler et al. 1992). They keep its distribution, and its correlations
    over three periods.

    Parameters
    ----------
    trajectory : rows of one run after its transient.
    periods : its periods.

    Examples
    --------
    >>> from simulate.period_model.model import oscillate
    >>> from simulate.trajectories.periods import after_transient, find_periods
    >>> run = oscillate(0.5, 0.01, steps=20_000)
    >>> find_feedback(after_transient(run), find_periods(run)).score > 2.33
    True
    """
    step, log_norm = trajectory.step.values.astype(np.float64), np.log(trajectory.norm.values.astype(np.float64))
    setting = Setting.of(trajectory)
    if setting.constraint != FREE:
        return FeedbackTest(math.nan, reason=f"the run has the constraint {setting.constraint!r}")
    if not periods.decay > 0:
        return FeedbackTest(math.nan, reason="the decay of the norm without gradients is unknown")
    if buffer_steps(setting.optimizer) * periods.decay > BUFFER_MAX:
        return FeedbackTest(
            math.nan,
            reason="the momentum buffer prolongs rises of the norm; a run with a smaller lr * wd can be tested",
        )
    distance = float(np.median(np.diff(step)))
    if distance > 1 and distance * periods.decay > _SPACING_MAX:
        largest = max(1, math.floor(_SPACING_MAX / periods.decay))
        return FeedbackTest(
            math.nan, reason=f"rows lie {distance:.0f} steps apart; log every {largest} steps or more often"
        )
    spacing = distance * max(1, math.floor(_SPACING / (periods.decay * distance)))
    samples = np.arange(step[0], step[-1] + 1, spacing)
    # a length whose Fourier transform is fast
    count = fft.prev_fast_len(min(samples.size - 1, _SAMPLES_MAX), real=True)
    samples = samples[-count - 1 :]
    # the unit of the weights is free
    sq_norm = np.exp(2 * np.interp(samples, step, log_norm - log_norm.mean()))
    is_sgd = isinstance(setting.optimizer, theory.SGD)
    kept = math.exp(-2 * periods.decay * spacing)
    drive = find_drive(sq_norm, kept, is_sgd)
    measured = _statistics(np.log(sq_norm[:-1]) / 2, periods.rise)
    surrogates = np.array(
        [
            _statistics(driven_log_norm(surrogate, kept, is_sgd, sq_norm[0]), periods.rise)
            for surrogate in _surrogates(drive, _MEMORY * periods.mean / spacing)
        ]
    )
    surrogates = surrogates[np.isfinite(surrogates).all(axis=1)]
    if len(surrogates) < _SURROGATES_NEEDED * SURROGATES or not np.isfinite(measured).all():
        return FeedbackTest(
            math.nan, reason=f"only {len(surrogates)} of {SURROGATES} surrogates have enough periods; train longer"
        )
    means, deviations = surrogates.mean(axis=0), np.maximum(surrogates.std(axis=0), _DEVIATION_MIN)
    sums = _towards_feedback((surrogates - means) / deviations)
    difference = float(_towards_feedback((measured - means) / deviations) - sums.mean())
    score = difference / max(float(sums.std()), _DEVIATION_MIN)
    variation, response, _ = measured
    if variation > VARIATION_MAX or (response < RESPONSE_MIN and variation > VARIATION_SMALL):
        score = min(score, 0.0)
    return FeedbackTest(score, *measured.tolist(), *means.tolist())


def _towards_feedback(differences: _Array) -> _Array:
    """Sum of standardized differences of variation, response and contrast, with the signs that feedback gives them."""
    variation, response, contrast = differences.T
    return np.asarray(response - variation + np.abs(contrast))


def buffer_steps(optimizer: theory.Optimizer | None) -> float:
    """Steps that a momentum buffer remembers; 0 without one."""
    return 1 / (1 - optimizer.momentum) if isinstance(optimizer, theory.SGD) and optimizer.momentum else 0.0


def _surrogates(drive: _Array, memory: float) -> Iterator[_Array]:
    """Yield series with the values of `drive` and, up to `memory` samples, about its autocorrelation."""
    random, count = np.random.default_rng(0), drive.size
    order = np.argsort(drive)
    gaussian = np.empty(count)
    gaussian[order] = special.ndtri((np.arange(count) + 0.5) / count)
    lags = np.minimum(np.arange(count), count - np.arange(count))
    covariance = fft.irfft(np.abs(fft.rfft(gaussian)) ** 2, count) * np.exp(-((lags / memory) ** 2) / 2)
    amplitude = np.sqrt(np.maximum(fft.rfft(covariance).real, 0))
    surrogate = np.empty(count)
    for _ in range(SURROGATES):
        phases = np.exp(2j * np.pi * random.random(amplitude.size))
        surrogate[np.argsort(fft.irfft(amplitude * phases, count))] = drive[order]
        yield surrogate


def find_drive(sq_norm: _Array, kept: float, is_sgd: bool) -> _Array:
    """Drive of each step of ρ², the inverse of `driven_log_norm`."""
    growth = sq_norm[1:] - kept * sq_norm[:-1]
    return growth * sq_norm[:-1] if is_sgd else growth


@compile_cached()
def driven_log_norm(drive: Any, kept: float, is_sgd: bool, first: float) -> Any:
    """Ln ρ under given gradients: ρ² becomes kept·ρ² + drive/ρ² for SGD, kept·ρ² + drive for other optimizers."""
    log_norm = np.empty(drive.size)
    sq_norm = first
    for i in range(drive.size):
        log_norm[i] = np.log(sq_norm) / 2
        growth = drive[i] / sq_norm if is_sgd else drive[i]
        # a negative drive must not end the trajectory
        sq_norm = max(kept * sq_norm + growth, kept * kept * sq_norm)
    return log_norm


@compile_cached()
def _statistics(log_norm: Any, rise: float) -> Any:
    """Variation of the period, response of the peaks and contrast of troughs to peaks; NaN with too few periods."""
    troughs, peaks = zigzag(log_norm, rise)
    count = troughs.size - 1
    result = np.full(3, np.nan)
    if count >= _PERIODS_MIN:
        lengths = np.diff(troughs).astype(np.float64)
        result[0] = lengths.std() / lengths.mean()
        trough, peak = log_norm[troughs[:-1]], log_norm[peaks[:count]]
        covariance = ((trough - trough.mean()) * (peak - peak.mean())).mean()
        # spreads far below the threshold of detection are not distinguished from none
        least = (rise / 10) ** 2
        trough_variance, peak_variance = trough.var() + least, peak.var() + least
        result[1] = -covariance / np.sqrt(trough_variance * peak_variance)
        result[2] = np.log(trough_variance / peak_variance) / 2
    return result
