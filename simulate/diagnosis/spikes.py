"""Where the loss of a training spikes, whatever the reason."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from simulate.trajectories.periods import zigzag
from theory.arguments import FloatArray

# How far a loss is above the median, in units of the largest of some hundred rows, by the number of rows it is a mean
# of. Nine in ten trainings at rest have none above 1.9, 2.2 and 2.7.
OUTLIERS = {1: 2.5, 5: 3.0, 20: 4.5}
# Of a network that has learned its samples the losses of some batches stand out by any factor, but not by much.
_SMALL = 0.1  # share of the largest loss of the log
_OF_SINGLE = 0.6  # share of the largest single loss that a mean of twenty has at least
LOOKED_BACK = 200
FEWEST = 50  # rows before a spike, of which it stands out
_TOGETHER = 5  # rows whose mean stands out where the single one does not
EXPECTED_ABOVE, EXPECTED_WITHIN = 1.5, 30  # where there is another reason to expect a spike
RISE = 0.1
# At rest the norm takes a good part of a relaxation time to rise by so much, or does it at a loss as before.
_QUICK = 0.35
_OFTEN_HIGH, _ONCE_HIGH = 3.0, 15.0
_LONGEST = 300
_OVER = 0.1  # share of its peak below which a spike is over


def find_spikes(
    loss: FloatArray, norm: FloatArray | None, decay: FloatArray | None, expected: npt.ArrayLike = ()
) -> list[tuple[int, int]]:
    """Find first and last row of each spike of the loss.

    A spike is a loss, or a mean of five or twenty in a row, two and a half (three; four and a half) times as far above
    the median of the 200 rows before as the largest of them, and at least a tenth as far as the largest loss of all; or
    a quick rise of the norm, by a tenth and more, while the loss is high: its median three times, or its largest
    fifteen times, the median before. In the 30 rows after one where a spike is expected, one and a half times as far is
    enough. It lasts until the loss is back, or at a tenth of its peak, at most 300 rows.

    Parameters
    ----------
    loss : of each row, finite.
    norm : ρ of each row; None where it is not known.
    decay : fall of ln ρ from row to row without gradients; None where it is not known.
    expected : rows after which a spike is expected, for another reason than the loss.

    Returns
    -------
    pairs of row numbers, in order; they do not overlap.

    Examples
    --------
    >>> quiet = np.random.default_rng(0).uniform(1, 2, 500)
    >>> find_spikes(quiet, None, None)
    []
    >>> quiet[300:304] = 9
    >>> find_spikes(quiet, None, None)
    [(300, 303)]
    """
    found: list[tuple[int, int]] = []
    usual = loss.copy()
    # a short spike is no measure for the next one; a long one leaves losses that are high for a while
    while begun := [row for row in _outliers(loss, usual) if _is_large(loss, row)]:
        found = _merged(loss, [*found, *((row, row) for row in begun)])
        known = int(np.isnan(usual).sum())
        leave_out(usual, found)
        if int(np.isnan(usual).sum()) == known:
            break
    begun = [first for first, _ in found]
    ends = dict(found)
    for row in np.asarray(expected, dtype=int).tolist():
        seen, then = loss[before(row)], loss[row : row + EXPECTED_WITHIN]
        if seen.size < FEWEST:
            continue
        largest = max(float(seen.max()) - float(np.median(seen)), 0.0)
        if (high := np.flatnonzero(then - np.median(seen) > EXPECTED_ABOVE * largest)).size:
            begun.append(row + int(high[0]))
    if norm is not None and decay is not None:
        for first, last in _quick_rises(loss, norm, decay):
            begun.append(first)
            ends[first] = max(last, ends.get(first, last))
    return _merged(loss, [(first, ends.get(first, first)) for first in begun])


def leave_out(usual: FloatArray, spikes: Sequence[tuple[int, int]]) -> None:
    """Make the losses of short spikes NaN, in place.

    Examples
    --------
    >>> loss = np.ones(5)
    >>> leave_out(loss, [(1, 2)])
    >>> loss.tolist()
    [1.0, nan, nan, 1.0, 1.0]
    """
    for first, last in spikes:
        if last - first < _TOGETHER:
            usual[first : last + 1] = math.nan


def _merged(loss: FloatArray, spikes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Whole spikes, in order, those that touch as one."""
    found: list[tuple[int, int]] = []
    for row, end in sorted(set(spikes)):
        last = max(_back(loss, row), end)
        first = _begins(loss, row, last)
        if found and first <= found[-1][1] + _TOGETHER:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def arrival(loss: FloatArray, first: int, last: int) -> int:
    """First row of a spike that is nearer to its peak than to what was usual, on a logarithmic scale.

    Examples
    --------
    >>> arrival(np.array([1.0] * 50 + [1.5, 30.0, 100.0]), 50, 52)
    51
    """
    usual, high = loss[before(first)], loss[first : last + 1]
    if not usual.size:
        return first
    peak, quantile = float(high.max()), float(np.quantile(usual, 0.95))
    edge = math.sqrt(quantile * peak) if quantile > 0 else (quantile + peak) / 2
    return first + int(np.flatnonzero(high >= min(edge, peak))[0])


def standing_out(loss: FloatArray, row: int, usual: slice | None = None) -> float:
    """How far a loss is above the median of the rows before, in units of the largest of them; NaN are left out.

    Examples
    --------
    >>> standing_out(np.array([1.0, 1.0, 2.0, 1.0, 4.0]), 4)
    3.0
    """
    seen = loss[before(row) if usual is None else usual]
    seen = seen[~np.isnan(seen)]
    if not seen.size:
        return math.nan
    typical = float(np.median(seen))
    return float((loss[row] - typical) / max(float(seen.max()) - typical, 1e-300))


def before(row: int, rows: int = LOOKED_BACK) -> slice:
    """Rows that something at this row is compared with.

    Examples
    --------
    >>> before(30), before(1000)
    (slice(0, 30, None), slice(800, 1000, None))
    """
    return slice(max(0, row - rows), row)


def _outliers(loss: FloatArray, usual: FloatArray) -> Sequence[int]:
    """First rows of what stands out from the usual losses, of which those of spikes are NaN."""
    # imported here: it is needed by nothing else that is imported with this
    from scipy.ndimage import maximum_filter1d

    found: list[int] = []
    for rows, limit in OUTLIERS.items():
        series, compared, late = means(loss, rows), means(usual, rows), rows - 1
        fewest = FEWEST if rows <= _TOGETHER else 2 * FEWEST
        if series.size <= fewest + late + 1:
            continue
        known = np.where(np.isnan(compared), -math.inf, compared)
        # rows before, and of means those that are not shared
        largest = maximum_filter1d(known, LOOKED_BACK, origin=(LOOKED_BACK - 1) // 2, mode="constant", cval=-math.inf)
        candidates = np.arange(fewest + late, series.size)
        candidates = candidates[(series[candidates] > largest[candidates - late - 1]) & ~np.isnan(compared[candidates])]
        for row in candidates.tolist():
            window = slice(max(0, row - late - LOOKED_BACK), row - late)
            held = compared[window]
            if np.isfinite(held).sum() < FEWEST:
                continue
            typical = float(np.nanmedian(held))
            excess = float(series[row]) - typical
            if excess <= limit * (float(np.nanmax(held)) - typical):
                continue
            # a mean that is nothing beside single losses is noise
            if rows > _TOGETHER and excess < _OF_SINGLE * (float(np.nanmax(usual[window])) - typical):
                continue
            found.append(_first_high(loss, row, row + late))
    return sorted(set(found))


def _is_large(loss: FloatArray, row: int) -> bool:
    usual = float(np.median(loss[before(row)]))
    # of five, for one alone may be a slip
    largest = float(means(loss, _TOGETHER).max(initial=-math.inf))
    return float(loss[row : row + _TOGETHER].max()) - usual >= _SMALL * (largest - usual)


def means(loss: FloatArray, rows: int) -> FloatArray:
    """Means of so many rows, beginning with each.

    Examples
    --------
    >>> means(np.array([1.0, 3.0, 5.0]), 2).tolist()
    [2.0, 4.0]
    """
    return np.convolve(loss, np.full(rows, 1 / rows), "valid") if loss.size >= rows else loss[:0]


def _first_high(loss: FloatArray, first: int, last: int) -> int:
    """The one of these rows from which the mean to the last stands out the most, for its number of rows."""
    usual = loss[before(first)]
    excess = loss[first : last + 1] - (float(np.median(usual)) if usual.size else 0.0)
    counts = np.arange(excess.size, 0, -1)
    return first + int(np.argmax(np.cumsum(excess[::-1])[::-1] / np.sqrt(counts)))


def _begins(loss: FloatArray, first: int, last: int) -> int:
    """First of the rows that lead to the arrival, without three in a row that are not above all before."""
    usual = loss[before(first)]
    if not usual.size:
        return first
    high = usual.max()
    row = arrival(loss, first, last)
    while row > first and (near := np.flatnonzero(loss[max(row - 3, first) : row] > high)).size:
        row = max(row - 3, first) + int(near[0])
    return row


def _back(loss: FloatArray, first: int) -> int:
    """Last row before the loss is back, for five rows, where nineteen in twenty were."""
    usual = loss[before(first)]
    if not usual.size:
        return first
    after = loss[first : first + _LONGEST]
    # a spike out of very low losses is over long before they are as low again
    high = after > max(float(np.quantile(usual, 0.95)), 2 * float(np.median(usual)), _OVER * float(after.max()))
    together = np.convolve(high, np.ones(_TOGETHER), "valid") if high.size >= _TOGETHER else np.ones(1)
    quiet = np.flatnonzero(together == 0)
    return first + max((int(quiet[0]) if quiet.size else high.size) - 1, 0)


def _quick_rises(loss: FloatArray, norm: FloatArray, decay: FloatArray) -> list[tuple[int, int]]:
    usable = np.isfinite(norm) & (norm > 0)
    if not usable.all():
        return []
    troughs, peaks = zigzag(np.log(norm), RISE)
    found = []
    # the last rise may not have ended
    for trough, peak in zip(troughs.tolist(), [*peaks.tolist(), norm.size - 1], strict=False):
        rate = float(decay[trough])
        usual = loss[before(trough, min(2000, max(FEWEST, round(0.5 / rate) if rate > 0 else LOOKED_BACK)))]
        top = trough + int(np.argmax(norm[trough : peak + 1]))
        if usual.size < FEWEST or not (top - trough) * rate <= _QUICK or not np.median(usual) > 0:
            continue
        during, typical = loss[trough : top + 1], float(np.median(usual))
        if np.median(during) >= _OFTEN_HIGH * typical or during.max() >= _ONCE_HIGH * typical:
            high = np.flatnonzero(during > np.quantile(usual, 0.95))
            found.append((trough + int(high[0]) if high.size else trough, top))
    return found
