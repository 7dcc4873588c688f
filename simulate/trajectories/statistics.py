"""Statistics of series whose rows are not independent."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

_BLOCKS = 20


def autocorrelation_time(step: npt.ArrayLike, values: npt.ArrayLike, least_gap: float = 1.0) -> float:
    """Steps after which the autocorrelation of a series has fallen to 1/e.

    Parameters
    ----------
    step, values : of the rows, in order.
    least_gap : the series is looked at in rows about so many steps apart.

    Returns
    -------
    steps: float; NaN where the autocorrelation has not fallen to 1/e in half of the rows, or does not vary.

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
    looked = series[::every] - series[::every].mean()
    count = looked.size
    # padded to twice its length, the transform of the squared spectrum does not wrap around
    spectrum = np.abs(np.fft.rfft(looked, 2 * count)) ** 2
    # each lag has fewer products than the one before
    products = np.fft.irfft(spectrum)[: count // 2] / np.arange(count, count - count // 2, -1)
    if not products.size or not products[0] > 0:
        return math.nan
    correlation = products / products[0]
    fallen = np.flatnonzero(correlation < math.exp(-1))
    if not fallen.size:
        return math.nan
    last = int(fallen[0])
    above, below = correlation[last - 1], correlation[last]
    return float((last - 1 + (above - math.exp(-1)) / (above - below)) * every * gap)


def power_mean(values: npt.ArrayLike, power: float) -> tuple[float, float]:
    """(E xᵖ)^(1/p) of a correlated series, and its standard error.

    Examples
    --------
    >>> power_mean([1.0] * 20 + [7.0] * 20, 2)[0]
    5.0
    """
    powers = np.asarray(values, dtype=np.float64) ** power
    mean = float(powers.mean()) ** (1 / power)
    return mean, mean * relative_error(powers) / power


def relative_error(values: npt.NDArray[np.float64]) -> float:
    """Relative standard error of the mean of a correlated series, from the means of blocks; NaN of a short one.

    Examples
    --------
    >>> relative_error(np.ones(100)), relative_error(np.arange(1.0, 101.0)) > 0.1, relative_error(np.ones(39))
    (0.0, True, nan)
    """
    if values.size < 2 * _BLOCKS:
        return math.nan
    means = np.array([block.mean() for block in np.array_split(values, _BLOCKS)])
    return float(means.std(ddof=1) / math.sqrt(_BLOCKS) / values.mean())
