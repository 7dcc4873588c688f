"""Find spikes of a training loss, whatever their cause."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from simulate.trajectories.periods import zigzag
from theory.arguments import FloatArray

# Least excess ratio of an outlier (`excess_ratio`) by the number of rows in the mean. At equilibrium nine in ten
# trainings have no ratio above 1.9, 2.2 and 2.7.
OUTLIER_RATIOS = {1: 2.5, 5: 3.0, 20: 4.5}
# A network that has learned its samples has single batches with any excess ratio, but a small loss.
_SMALL = 0.1  # least excess of a spike, over that of the largest loss of the log
_OF_SINGLE = 0.6  # least excess of a mean of twenty, over that of the largest single loss
COMPARED_ROWS = 200
LEAST_ROWS_BEFORE = 50  # a spike needs this many rows before it
_NEARBY = 5  # rows of a short mean; spikes this close are merged
EXPECTED_RATIO, EXPECTED_WITHIN = 1.5, 30  # least excess ratio, and rows, after a row where a spike is expected
MIN_NORM_RISE = 0.1  # of ln ρ
# At equilibrium the norm takes longer for such a rise, or the loss stays as before.
_QUICK = 0.35  # relaxation times that a quick rise takes at most
_OFTEN_HIGH, _ONCE_HIGH = 3.0, 15.0  # least median and largest loss in a quick rise, over the median before
_LONGEST = 300  # rows of a spike
_OVER = 0.1  # share of its peak below which a spike is over


def find_spikes(
    loss: FloatArray, norm: FloatArray | None, decay: FloatArray | None, expected: npt.ArrayLike = ()
) -> list[tuple[int, int]]:
    """Find the first and last row of each spike of the loss.

    A spike is an outlier of the loss, or a quick rise of the norm at a high loss.

    - Outlier: a loss, or a mean of 5 or 20 losses, with an excess ratio above 2.5 (3; 4.5). The excess ratio is the
      excess over the median of the 200 rows before, divided by the largest excess among them. The excess must also be
      a tenth of that of the largest loss. In the 30 rows after an expected spike a ratio of 1.5 is enough.
    - Quick rise: the norm grows by a tenth or more, and the loss is high: its median 3 times, or its largest value 15
      times, the median before.

    A spike ends when the loss is back to usual or at a tenth of its peak, after at most 300 rows.

    Parameters
    ----------
    loss : loss of each row, finite.
    norm : ρ of each row; None if unknown.
    decay : decay of ln ρ from row to row without gradients; None if unknown.
    expected : rows after which a spike is expected for another reason.

    Returns
    -------
    list of (first row, last row), ordered and disjoint.

    Examples
    --------
    >>> loss = np.random.default_rng(0).uniform(1, 2, 500)
    >>> find_spikes(loss, None, None)
    []
    >>> loss[300:304] = 9
    >>> find_spikes(loss, None, None)
    [(300, 303)]
    """
    spikes: list[tuple[int, int]] = []
    usual = loss.copy()
    # later spikes are not compared with short spikes; a long spike raises the usual loss for a while
    while outliers := [row for row in _find_outliers(loss, usual) if _is_large(loss, row)]:
        spikes = _merge(loss, [*spikes, *((row, row) for row in outliers)])
        masked = int(np.isnan(usual).sum())
        mask_short_spikes(usual, spikes)
        if int(np.isnan(usual).sum()) == masked:
            break
    starts = [first for first, _ in spikes]
    ends = dict(spikes)
    for row in np.asarray(expected, dtype=int).tolist():
        previous, following = loss[rows_before(row)], loss[row : row + EXPECTED_WITHIN]
        if previous.size < LEAST_ROWS_BEFORE:
            continue
        largest = max(float(previous.max()) - float(np.median(previous)), 0.0)
        if (high := np.flatnonzero(following - np.median(previous) > EXPECTED_RATIO * largest)).size:
            starts.append(row + int(high[0]))
    if norm is not None and decay is not None:
        for first, last in _find_quick_rises(loss, norm, decay):
            starts.append(first)
            ends[first] = max(last, ends.get(first, last))
    return _merge(loss, [(first, ends.get(first, first)) for first in starts])


def mask_short_spikes(usual: FloatArray, spikes: Sequence[tuple[int, int]]) -> None:
    """Set the losses of short spikes to NaN, in place.

    Examples
    --------
    >>> loss = np.ones(5)
    >>> mask_short_spikes(loss, [(1, 2)])
    >>> loss.tolist()
    [1.0, nan, nan, 1.0, 1.0]
    """
    for first, last in spikes:
        if last - first < _NEARBY:
            usual[first : last + 1] = math.nan


def _merge(loss: FloatArray, spikes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Extend spikes to their first and last rows, and merge those that are close, in order."""
    merged: list[tuple[int, int]] = []
    for row, end in sorted(set(spikes)):
        last = max(_last_row(loss, row), end)
        first = _first_row(loss, row, last)
        if merged and first <= merged[-1][1] + _NEARBY:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def arrival_row(loss: FloatArray, first: int, last: int) -> int:
    """First row of a spike that is closer to its peak than to the usual loss, on a logarithmic scale.

    Examples
    --------
    >>> arrival_row(np.array([1.0] * 50 + [1.5, 30.0, 100.0]), 50, 52)
    51
    """
    usual, high = loss[rows_before(first)], loss[first : last + 1]
    if not usual.size:
        return first
    peak, quantile = float(high.max()), float(np.quantile(usual, 0.95))
    edge = math.sqrt(quantile * peak) if quantile > 0 else (quantile + peak) / 2
    return first + int(np.flatnonzero(high >= min(edge, peak))[0])


def excess_ratio(loss: FloatArray, row: int, usual: slice | None = None) -> float:
    """Excess of a loss over the median of the rows before, divided by their largest excess; ignores NaN.

    Examples
    --------
    >>> excess_ratio(np.array([1.0, 1.0, 2.0, 1.0, 4.0]), 4)
    3.0
    """
    previous = loss[rows_before(row) if usual is None else usual]
    previous = previous[~np.isnan(previous)]
    if not previous.size:
        return math.nan
    typical = float(np.median(previous))
    return float((loss[row] - typical) / max(float(previous.max()) - typical, 1e-300))


def rows_before(row: int, rows: int = COMPARED_ROWS) -> slice:
    """Slice of the rows that a row is compared with.

    Examples
    --------
    >>> rows_before(30), rows_before(1000)
    (slice(0, 30, None), slice(800, 1000, None))
    """
    return slice(max(0, row - rows), row)


def _find_outliers(loss: FloatArray, usual: FloatArray) -> Sequence[int]:
    """First rows of outliers among the usual losses, in which spikes are NaN."""
    # imported here, because importing this module needs it for nothing else
    from scipy.ndimage import maximum_filter1d

    outliers: list[int] = []
    for rows, limit in OUTLIER_RATIOS.items():
        series, compared, late = moving_means(loss, rows), moving_means(usual, rows), rows - 1
        fewest = LEAST_ROWS_BEFORE if rows <= _NEARBY else 2 * LEAST_ROWS_BEFORE
        if series.size <= fewest + late + 1:
            continue
        finite = np.where(np.isnan(compared), -math.inf, compared)
        # maximum over the rows before; means are compared with means that share no row
        largest = maximum_filter1d(
            finite, COMPARED_ROWS, origin=(COMPARED_ROWS - 1) // 2, mode="constant", cval=-math.inf
        )
        candidates = np.arange(fewest + late, series.size)
        candidates = candidates[(series[candidates] > largest[candidates - late - 1]) & ~np.isnan(compared[candidates])]
        for row in candidates.tolist():
            window = slice(max(0, row - late - COMPARED_ROWS), row - late)
            previous = compared[window]
            if np.isfinite(previous).sum() < LEAST_ROWS_BEFORE:
                continue
            typical = float(np.nanmedian(previous))
            excess = float(series[row]) - typical
            if excess <= limit * (float(np.nanmax(previous)) - typical):
                continue
            # a long mean that is small beside single losses is noise
            if rows > _NEARBY and excess < _OF_SINGLE * (float(np.nanmax(usual[window])) - typical):
                continue
            outliers.append(_first_high_row(loss, row, row + late))
    return sorted(set(outliers))


def _is_large(loss: FloatArray, row: int) -> bool:
    usual = float(np.median(loss[rows_before(row)]))
    # a mean of five, because a single largest loss may be an error
    largest = float(moving_means(loss, _NEARBY).max(initial=-math.inf))
    return float(loss[row : row + _NEARBY].max()) - usual >= _SMALL * (largest - usual)


def moving_means(loss: FloatArray, rows: int) -> FloatArray:
    """Mean of this many rows, from each row on.

    Examples
    --------
    >>> moving_means(np.array([1.0, 3.0, 5.0]), 2).tolist()
    [2.0, 4.0]
    """
    return np.convolve(loss, np.full(rows, 1 / rows), "valid") if loss.size >= rows else loss[:0]


def _first_high_row(loss: FloatArray, first: int, last: int) -> int:
    """Row from which the mean excess up to the last row is largest for its number of rows."""
    usual = loss[rows_before(first)]
    excess = loss[first : last + 1] - (float(np.median(usual)) if usual.size else 0.0)
    counts = np.arange(excess.size, 0, -1)
    return first + int(np.argmax(np.cumsum(excess[::-1])[::-1] / np.sqrt(counts)))


def _first_row(loss: FloatArray, first: int, last: int) -> int:
    """First row of the rise to the arrival, without a gap of three rows below the usual maximum."""
    usual = loss[rows_before(first)]
    if not usual.size:
        return first
    high = usual.max()
    row = arrival_row(loss, first, last)
    while row > first and (near := np.flatnonzero(loss[max(row - 3, first) : row] > high)).size:
        row = max(row - 3, first) + int(near[0])
    return row


def _last_row(loss: FloatArray, first: int) -> int:
    """Last row before the loss stays below the 95 % quantile of usual losses for five rows."""
    usual = loss[rows_before(first)]
    if not usual.size:
        return first
    after = loss[first : first + _LONGEST]
    # a spike after very low losses ends long before they are as low again
    high = after > max(float(np.quantile(usual, 0.95)), 2 * float(np.median(usual)), _OVER * float(after.max()))
    high_counts = np.convolve(high, np.ones(_NEARBY), "valid") if high.size >= _NEARBY else np.ones(1)
    usual_again = np.flatnonzero(high_counts == 0)
    return first + max((int(usual_again[0]) if usual_again.size else high.size) - 1, 0)


def _find_quick_rises(loss: FloatArray, norm: FloatArray, decay: FloatArray) -> list[tuple[int, int]]:
    """First high row and last row of each quick rise of the norm at a high loss."""
    usable = np.isfinite(norm) & (norm > 0)
    if not usable.all():
        return []
    troughs, peaks = zigzag(np.log(norm), MIN_NORM_RISE)
    rises = []
    # the last rise may not have ended
    for trough, peak in zip(troughs.tolist(), [*peaks.tolist(), norm.size - 1], strict=False):
        decay_per_row = float(decay[trough])
        usual = loss[
            rows_before(
                trough,
                min(2000, max(LEAST_ROWS_BEFORE, round(0.5 / decay_per_row) if decay_per_row > 0 else COMPARED_ROWS)),
            )
        ]
        top = trough + int(np.argmax(norm[trough : peak + 1]))
        if usual.size < LEAST_ROWS_BEFORE or not (top - trough) * decay_per_row <= _QUICK or not np.median(usual) > 0:
            continue
        during, typical = loss[trough : top + 1], float(np.median(usual))
        if np.median(during) >= _OFTEN_HIGH * typical or during.max() >= _ONCE_HIGH * typical:
            high = np.flatnonzero(during > np.quantile(usual, 0.95))
            rises.append((trough + int(high[0]) if high.size else trough, top))
    return rises
