"""Statistics of correlated series."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

_BLOCKS = 20


def autocorrelation_time(step: npt.ArrayLike, values: npt.ArrayLike, least_gap: float = 1.0) -> float:
    """Number of steps after which the autocorrelation of a series has fallen to 1/e.

    Parameters
    ----------
    step, values : step numbers and values of the rows, in order.
    least_gap : the series is sampled about every `least_gap` steps.

    Examples
    --------
    >>> step = np.arange(100_000)
    >>> round(autocorrelation_time(step, np.cos(2 * np.pi * step / 1000)))  # arccos(1/e)·1000/2π
    190
    """
    steps, series = np.asarray(step, dtype=float), np.asarray(values, dtype=float)
    if series.size < 4:
        return math.nan
    gap = float(np.median(np.diff(steps)))
    every = max(1, int(least_gap / gap))
    correlation = autocorrelation(series[::every])
    fallen = np.flatnonzero(correlation < math.exp(-1))
    if not fallen.size:
        return math.nan
    last = int(fallen[0])
    above, below = correlation[last - 1], correlation[last]
    return float((last - 1 + (above - math.exp(-1)) / (above - below)) * every * gap)


def autocorrelation(series: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Autocorrelation of a series at lags up to half of its length; empty if the series is constant.

    Examples
    --------
    >>> autocorrelation(np.tile([1.0, -1.0], 50))[:3].round(6).tolist()
    [1.0, -1.0, 1.0]
    """
    values: npt.NDArray[np.float64] = np.asarray(series, dtype=float)
    centered = values - values.mean()
    count = centered.size
    # zero padding to twice the length, so that the correlation does not wrap around
    spectrum = np.abs(np.fft.rfft(centered, 2 * count)) ** 2
    # a lag of n rows has n products fewer than lag 0
    products = np.fft.irfft(spectrum)[: count // 2] / np.arange(count, count - count // 2, -1)
    is_constant = not products.size or not products[0] > 0
    correlation: npt.NDArray[np.float64] = products[:0] if is_constant else products / products[0]
    return correlation


def power_mean(values: npt.ArrayLike, power: float) -> tuple[float, float]:
    """Return (E xᵖ)^(1/p) of a correlated series, and its standard error.

    Examples
    --------
    >>> power_mean([1.0] * 20 + [7.0] * 20, 2)[0]
    5.0
    """
    powers = np.asarray(values, dtype=np.float64) ** power
    mean = float(powers.mean()) ** (1 / power)
    return mean, mean * _relative_standard_error(powers) / power


def _relative_standard_error(values: npt.NDArray[np.float64]) -> float:
    """Relative standard error of the mean of a correlated series, from block means; NaN below 40 values."""
    if values.size < 2 * _BLOCKS:
        return math.nan
    means = np.array([block.mean() for block in np.array_split(values, _BLOCKS)])
    return float(means.std(ddof=1) / math.sqrt(_BLOCKS) / values.mean())
