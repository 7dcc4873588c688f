"""Find spikes of a training loss, whatever their cause, and compute the features on which the cause depends."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from simulate.diagnosis.log_rows import Rows, has_values, row_spacing
from simulate.diagnosis.rules import DATA_SHIFT, NORM_DRIVEN, THRESHOLDS, Spacing, SpikeFeatures, Thresholds, explain
from simulate.diagnosis.trends import chance_of_lock, locked_share
from simulate.trajectories.periods import zigzag
from theory.arguments import FloatArray

_Places = Sequence[tuple[int, int]]
_CHUNK = 4096  # windows of rows in memory at once


def find_spikes(rows: Rows, t: Thresholds = THRESHOLDS) -> list[tuple[int, int]]:
    """Find the first and last row of each spike of the loss.

    A spike is an outlier of the loss, or of its means, among the rows before. After a rise of the learning rate a
    smaller excess is enough. A quick rise of the norm at a high loss is a spike, too. A spike ends when the loss is
    back to usual, or is a small share of its peak.

    Returns
    -------
    list of (first row, last row), ordered and disjoint.
    """
    finite = np.flatnonzero(np.isfinite(rows.norm))
    # rows after the last finite norm are lost
    end = int(finite[-1]) + 1 if finite.size else rows.loss.size
    loss = rows.loss[:end]
    spikes: list[tuple[int, int]] = []
    usual = loss.copy()
    usual[: _initial_rows(loss, t)] = math.nan
    # later spikes are not compared with short spikes; a long spike raises the usual loss for a while
    largest = _largest_mean(loss, t)

    @functools.cache
    def extend(row: int, end: int) -> tuple[int, int]:
        """First and last row of a spike that lasts at least from `row` to `end`."""
        last = max(_last_row(loss, row, t), end)
        return _first_row(loss, row, last, t), last

    first_high_row = functools.cache(lambda first, last: _first_high_row(loss, first, last, t))
    while outliers := [
        row for row in _find_outliers(loss, usual, first_high_row, t) if _is_large(loss, row, largest, t)
    ]:
        spikes = _merge(extend, [*spikes, *((row, row) for row in outliers)], t.rotation_gap)
        masked = np.isnan(usual).sum()
        usual = _without_short_spikes(usual, spikes, t)
        if np.isnan(usual).sum() == masked:
            break
    starts = [first for first, _ in spikes]
    ends = dict(spikes)
    lr = rows.lr[:end]
    for row in (np.flatnonzero((lr[:-1] > 0) & (lr[1:] >= t.lr_rise * lr[:-1])) + 1).tolist():
        previous, following = _before(loss, row, t), loss[row : row + t.lr_rows]
        if previous.size < t.least_rows:
            continue
        largest = max(float(previous.max()) - float(np.median(previous)), 0.0)
        if (high := np.flatnonzero(following - np.median(previous) > t.lr_excess * largest)).size:
            starts.append(row + int(high[0]))
    for first, last in _find_quick_rises(loss, rows.norm[:end], rows.decay[:end], t):
        starts.append(first)
        ends[first] = max(last, ends.get(first, last))
    return _merge(extend, [(first, ends.get(first, first)) for first in starts], t.rotation_gap)


def spike_features(
    rows: Rows, places: _Places, *, contradicts_law: bool = False, t: Thresholds = THRESHOLDS
) -> list[SpikeFeatures]:
    """Compute the features of the spikes at these first and last rows."""
    usual = _without_short_spikes(rows.loss, places, t)
    usual_rows = _Usual.of(rows, places, t)
    with np.errstate(all="ignore"):
        features = [
            _features(rows, usual, usual_rows, first, last, spacing, contradicts_law, t)
            for (first, last), spacing in zip(places, _spacings(rows, places, t), strict=True)
        ]
    largest = _largest_mean(rows.loss, t)
    features = [replace(s, log_largest=largest) for s in features]
    shifts = sum(explain(s, t).cause == DATA_SHIFT for s in features)
    features = [replace(s, data_shifts=shifts) for s in features]
    chances = np.array([(s.chance_before, s.rise_ratio) for s in features if _looks_norm_driven(s, t)])
    if not chances.size:
        return features
    chance, rise = np.median(chances, axis=0).tolist()
    return [replace(s, similar_spikes=len(chances), typical_chance=chance, typical_rise=rise) for s in features]


def _looks_norm_driven(s: SpikeFeatures, t: Thresholds) -> bool:
    """Whether the spike is norm-driven unless chance explains it."""
    is_comparable = not math.isnan(s.chance_before + s.rise_ratio)
    return is_comparable and explain(replace(s, chance_before=0.0, rise_ratio=math.inf), t).cause == NORM_DRIVEN


def _spacings(rows: Rows, places: _Places, t: Thresholds) -> list[Spacing]:
    """Distance of each spike from the one before, and the positions of all in the epoch."""
    decayed = np.append(0.0, np.cumsum(rows.certain_decay))
    # the norm may have decayed before the log begins
    is_whole = rows.step[0] <= row_spacing(rows.step)
    steps = [int(rows.step[first]) for first, _ in places]
    # within a few rows every place is the same
    has_places = rows.epoch_length >= t.least_lag * row_spacing(rows.step)
    share = math.nan
    if len(steps) > 1 and has_places:
        # spikes at the same row may lie anywhere in its steps
        share = min(locked_share(steps, rows.epoch_length) + row_spacing(rows.step) / rows.epoch_length, 1.0)
    distances = np.diff(steps)
    spread = float(distances.std() / distances.mean()) if distances.size else math.nan
    before = [0, *(last for _, last in places)]
    return [
        Spacing(
            count=len(steps),
            distance=float(rows.step[first] - rows.step[previous]),
            possible_decay=float(decayed[first] - decayed[previous]),
            total_decay=float(decayed[first]) if is_whole else math.nan,
            typical_distance=float(np.median(distances)) if distances.size else math.nan,
            distance_spread=spread,
            epoch_length=rows.epoch_length,
            epoch_share=share,
            epoch_chance=math.nan if math.isnan(share) else chance_of_lock(len(steps), share),
        )
        for (first, _), previous in zip(places, before, strict=False)
    ]


@dataclass(frozen=True)
class _Usual:
    """Rotations and rises of the loss at all rows, with which those at a spike are compared.

    Each is a pair: the values at all rows, and the same with NaN where a row that they use lies in a spike.
    """

    turned: tuple[FloatArray, FloatArray]  # largest rotation of the three steps before each row
    rises: tuple[tuple[FloatArray, FloatArray], ...]  # of means of ln loss from each row on, above an earlier mean

    @classmethod
    def of(cls, rows: Rows, places: _Places, t: Thresholds) -> _Usual:
        """Compute them at each row."""
        in_spike = np.zeros(rows.loss.size + 1)
        for first, last in places:
            in_spike[first + 1 : last + 2] = 1.0
        spike_rows = np.cumsum(in_spike)

        def at_rows(values: FloatArray, before: int, after: int) -> tuple[FloatArray, FloatArray]:
            """Values from row `before` on; they use rows from `before` rows earlier to `after` rows later."""
            row = np.arange(before, before + values.size)
            series = np.full((2, rows.loss.size), np.nan)
            series[0, row] = values
            end = np.minimum(row + after, rows.loss.size)
            series[1, row] = np.where(spike_rows[end] > spike_rows[row - before], np.nan, values)
            return series[0], series[1]

        # without norms the length of steps is compared, or that of gradients
        steps = next((c for c in (rows.rotation, rows.update) if has_values(c)), rows.gradient)
        count = _rotation_rows(rows, t)
        turned = steps[: 1 - count or None]
        for later in range(1, count):
            # a rotation that is not known does not count
            turned = np.fmax(turned, steps[later : later + turned.size])
        loss = rows.loss
        if loss.min() >= 0 and loss.any():
            # a loss of zero has no logarithm
            loss = np.log(np.maximum(loss, loss[loss > 0].min()))
        earlier, gap = _moving_means(loss, t.earlier_rows), t.earlier_rows + t.rotation_gap
        # at the end of the log the last loss is repeated
        later_means = (
            (after, _moving_means(np.append(loss[gap:], [loss[-1]] * (after - 1)), after)) for after in t.rise_rows
        )
        rises = tuple(at_rows(means - earlier[: means.size], gap, after) for after, means in later_means)
        return cls(at_rows(turned[:-1], count, 0), rises)

    def chance_before(self, row: int, t: Thresholds) -> float:
        """Share of usual rows before which steps rotated the weights as far as before this row."""
        turned, usual = self.turned[0][row], _usual_before(self.turned[1], row, t)
        return float((1 + (usual >= turned).sum()) / (1 + usual.size)) if usual.size and turned > 0 else math.nan

    def rise_ratio(self, row: int, t: Thresholds) -> float:
        """Rise of the loss at this row, over the standard deviation of usual rises; the largest of all means."""
        ratios = [math.nan]
        for rises, at_usual_rows in self.rises:
            usual = _usual_before(at_usual_rows, row, t)
            if usual.size:
                # that of a normal distribution with the same median distance from the median
                deviation = 1.4826 * np.median(np.abs(usual - np.median(usual)))
                ratios.append(float(rises[row] / deviation))
        return float(np.fmax.reduce(ratios))


def _usual_before(values: FloatArray, row: int, t: Thresholds) -> FloatArray:
    """Values at usual rows before a row; empty if there are too few."""
    values = values[rows_before(max(row - t.rotation_gap, 0), t.usual_rows)]
    values = values[np.isfinite(values)]
    return values if values.size >= t.least_reference else values[:0]


def _features(
    rows: Rows,
    usual: FloatArray,
    usual_rows: _Usual,
    first: int,
    last: int,
    spacing: Spacing,
    contradicts_law: bool,
    t: Thresholds,
) -> SpikeFeatures:
    loss, norm = rows.loss, rows.norm
    arrival = _arrival_row(loss, first, last, t)
    # if rows lie apart, steps between the first row and the arrival may already follow from the event
    before = arrival if rows.is_dense else first
    at_once = loss[arrival : last + 1]
    means = _moving_means(at_once, t.nearby_rows) if at_once.size >= t.nearby_rows else at_once[:1]
    later, usual_mean = loss[arrival + t.left_first : arrival + t.left_last + 1], _before(loss, first, t).mean()
    has_later = later.size > t.left_last - t.left_first
    start = max(arrival - t.lr_rows, 0)
    recent_lr, compared_lr = rows.lr[start : arrival + 1], _before(rows.lr, arrival, t)
    depth, decay_ratio, trough = _last_decay_phase(rows, first, t)
    duration = depth / (decay_ratio * rows.decay_per_step[trough])
    span = int(rows.step[-1] - rows.step[0])
    usual_gradients = _before(rows.gradient, first, t)
    contradicting = _contradicting_row(rows, arrival, t)
    is_contradicted = contradicting < loss.size
    return SpikeFeatures(
        has_columns=not rows.lacking,
        is_dense=rows.is_dense,
        simulation=rows.simulation,
        optimizer=rows.optimizer,
        # a trajectory has g̃, and its gradient norm is g̃/ρ
        gradient_column=rows.log.gradient_norm.attrs.get("column", "") if "gradient_norm" in rows.log else "",
        span=span,
        usual_loss=float(np.median(_before(loss, first, t))),
        largest_loss=float(loss[first : last + 1].max()),
        log_largest=math.nan,
        arrival_step=int(rows.step[arrival]),
        arrival_loss=float(loss[arrival]),
        # compare with losses outside spikes
        excess_ratio=_excess_ratio(loss[arrival], _before(usual, arrival, t)),
        mean_excess_ratios=tuple(_mean_excess_ratio(loss, arrival, count, t) for count, _ in t.outlier_ratios),
        first_mean=float(means[0]),
        largest_mean=float(means[: t.level_rows].max()),
        next_share=float((loss[arrival + 1] - usual_mean) / (loss[arrival] - usual_mean)) if later.size else math.nan,
        share_left=float((later.mean() - usual_mean) / (loss[arrival] - usual_mean)) if has_later else math.nan,
        left_ratio=_excess_ratio(float(later.mean()), _before(usual, arrival, t)) if has_later else math.nan,
        lr=float(recent_lr[-1]),
        lowest_lr=float(recent_lr[recent_lr > 0].min(initial=math.inf)),
        compared_lr=float(compared_lr[compared_lr > 0].min(initial=math.inf)),
        lr_step=int(rows.step[start + 1 + np.argmax(np.diff(recent_lr))]) if arrival else math.nan,
        lr_steps=float(1 / (2 * rows.free_decay[arrival])) if rows.free_decay[arrival] > 0 else math.nan,
        turned_before=_ratio_before(rows.rotation, before, t, _rotation_rows(rows, t)),
        gradient_before=_ratio_before(rows.gradient, arrival, t),
        gradient_then=_ratio_before(rows.gradient, arrival, t, after=t.rotation_rows),
        update_before=_ratio_before(rows.update, arrival, t),
        cap=rows.gradient_cap,
        capped_before=_capped_share(rows, rows_before(first, t.compared_rows)),
        recovery=float(rows.step[last + 1] - rows.step[arrival]) if last + 1 < loss.size else math.nan,
        loss_after=float(np.median(loss[last + 1 : last + 1 + t.left_last])) if last + 1 < loss.size else math.nan,
        trough=trough,
        norm_decay=depth,
        decay_ratio=decay_ratio,
        effective_lr=float(rows.lr[trough] / norm[trough] ** 2),
        norm_growth=float(np.log(norm[first : last + 2].max() / norm[trough])),
        growth_explained=_growth_explained(rows, trough, last),
        chance_before=usual_rows.chance_before(before, t),
        rise_ratio=usual_rows.rise_ratio(arrival, t),
        similar_spikes=0,
        data_shifts=0,
        typical_chance=math.nan,
        typical_rise=math.nan,
        advised_wd=float(rows.wd[trough] * duration / span),
        gradient=float(rows.gradient[arrival]),
        usual_gradient=_quantile(usual_gradients, t.clip_quantile),
        contradicting_step=int(rows.step[contradicting]) if is_contradicted else math.nan,
        measured_growth=float(np.log(norm[contradicting + 1] / norm[contradicting])) if is_contradicted else math.nan,
        predicted_growth=float(rows.predicted_growth[contradicting]) if is_contradicted else math.nan,
        free_growth=-float(rows.decay[contradicting]) if is_contradicted else math.nan,
        contradicts_law=contradicts_law,
        spacing=spacing,
    )


def rows_before(row: int, rows: int) -> slice:
    """Slice of so many rows before a row."""
    return slice(max(0, row - rows), row)


def _before(values: FloatArray, row: int, t: Thresholds) -> FloatArray:
    """Values of the rows with which a row is compared."""
    return values[rows_before(row, t.compared_rows)]


def _without_short_spikes(loss: FloatArray, places: _Places, t: Thresholds) -> FloatArray:
    """Losses with NaN in short spikes."""
    usual = loss.copy()
    for first, last in places:
        if last - first < t.nearby_rows:
            usual[first : last + 1] = math.nan
    return usual


def _moving_means(loss: FloatArray, rows: int) -> FloatArray:
    """Mean of this many rows, from each row on."""
    return np.convolve(loss, np.full(rows, 1 / rows), "valid") if loss.size >= rows else loss[:0]


def _excess_ratio(value: float, previous: FloatArray) -> float:
    """Excess of a loss over the median of the losses before, divided by their largest excess; ignores NaN."""
    previous = previous[~np.isnan(previous)]
    if not previous.size:
        return math.nan
    typical = float(np.median(previous))
    return float((value - typical) / max(float(previous.max()) - typical, 1e-300))


def _mean_excess_ratio(loss: FloatArray, arrival: int, rows: int, t: Thresholds) -> float:
    """Excess ratio of the mean of some losses from the arrival on, among means that share no row with it."""
    means = _moving_means(loss[max(arrival - t.compared_rows - 2 * rows, 0) : arrival + rows], rows)
    return _excess_ratio(means[-1], _before(means, means.size - rows, t)) if means.size > rows else math.nan


def _quantile(values: FloatArray, share: float) -> float:
    values = values[~np.isnan(values)]
    return float(np.quantile(values, share)) if values.size else math.nan


def _find_outliers(
    loss: FloatArray, usual: FloatArray, first_high_row: Callable[[int, int], int], t: Thresholds
) -> Sequence[int]:
    """First rows of outliers among the usual losses, in which spikes are NaN."""
    # imported here, because importing this module needs it for nothing else
    from scipy.ndimage import maximum_filter1d

    outliers: list[int] = []
    for rows, limit in t.outlier_ratios:
        series, compared, late = _moving_means(loss, rows), _moving_means(usual, rows), rows - 1
        fewest = t.least_rows if rows <= t.nearby_rows else 2 * t.least_rows
        if series.size <= fewest + late + 1:
            continue
        finite = np.where(np.isnan(compared), -math.inf, compared)
        # maximum over the rows before; means are compared with means that share no row
        largest = maximum_filter1d(
            finite, t.compared_rows, origin=(t.compared_rows - 1) // 2, mode="constant", cval=-math.inf
        )
        candidates = np.arange(fewest + late, series.size)
        candidates = candidates[(series[candidates] > largest[candidates - late - 1]) & ~np.isnan(compared[candidates])]
        # a row can only be an outlier if the median of its window is above a bound, which half of the values decide
        top = largest[candidates - late - 1]
        bounds = (limit * top - series[candidates]) / (limit - 1) - 1e-9 * np.abs(top)
        may_be = np.ones(candidates.size, dtype=bool)
        complete = np.flatnonzero(candidates - late >= t.compared_rows)
        for part in np.array_split(complete, complete.size // _CHUNK + 1) if complete.size else []:
            windows = sliding_window_view(compared, t.compared_rows)[candidates[part] - late - t.compared_rows]
            low, counted = (windows <= bounds[part, np.newaxis]).sum(axis=1), (~np.isnan(windows)).sum(axis=1)
            may_be[part] = 2 * low <= counted
        for row in candidates[may_be].tolist():
            window = rows_before(row - late, t.compared_rows)
            previous = compared[window]
            previous = previous[~np.isnan(previous)]
            if previous.size < t.least_rows:
                continue
            typical = _median(previous)
            excess = float(series[row]) - typical
            if excess <= limit * (float(previous.max()) - typical):
                continue
            # a long mean that is small beside single losses is noise
            if rows > t.nearby_rows and excess < t.least_of_single * (float(np.nanmax(usual[window])) - typical):
                continue
            outliers.append(first_high_row(row, row + late))
    return sorted(set(outliers))


def _median(values: FloatArray) -> float:
    """Median of a few hundred values, several times as fast as `np.median`."""
    ordered = np.sort(values)
    return float((ordered[(ordered.size - 1) // 2] + ordered[ordered.size // 2]) / 2)


def _initial_rows(loss: FloatArray, t: Thresholds) -> int:
    """Rows before the loss first is at most the median of the 50 losses after it: the loss is high and decreases."""
    if loss.size <= t.least_rows:
        return 0
    later = np.median(sliding_window_view(loss[1 : t.longest_rows + t.least_rows], t.least_rows), axis=1)
    return int(np.argmax(np.append(loss[: later.size] <= later, True)))


def _is_large(loss: FloatArray, row: int, largest: float, t: Thresholds) -> bool:
    usual = float(np.median(_before(loss, row, t)))
    excess = float(loss[row : row + t.nearby_rows].max()) - usual
    # a small excess counts beside a loss that was large at the start, unless the usual loss is tiny
    is_notable = usual >= t.least_of_usual * largest and excess >= t.least_of_usual * usual
    return excess >= t.least_of_largest * (largest - usual) or is_notable


def _largest_mean(loss: FloatArray, t: Thresholds) -> float:
    """Largest mean of five losses, because a single largest loss may be an error."""
    return float(_moving_means(loss, t.nearby_rows).max(initial=-math.inf))


def _merge(extend: Callable[[int, int], tuple[int, int]], spikes: _Places, gap: int) -> list[tuple[int, int]]:
    """Extend spikes to their first and last rows, and merge those that are close, in order."""
    merged: list[tuple[int, int]] = []
    for row, end in sorted(set(spikes)):
        first, last = extend(row, end)
        if merged and first <= merged[-1][1] + gap:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def _arrival_row(loss: FloatArray, first: int, last: int, t: Thresholds) -> int:
    """First row of a spike that is closer to its peak than to the usual loss, on a logarithmic scale."""
    usual, high = _before(loss, first, t), loss[first : last + 1]
    peak, quantile = float(high.max()), float(np.quantile(usual, t.usual_quantile))
    edge = math.sqrt(quantile * peak) if quantile > 0 else (quantile + peak) / 2
    return first + int(np.flatnonzero(high >= min(edge, peak))[0])


def _first_high_row(loss: FloatArray, first: int, last: int, t: Thresholds) -> int:
    """Row from which the mean excess up to the last row is largest for its number of rows."""
    excess = loss[first : last + 1] - _median(_before(loss, first, t))
    counts = np.arange(excess.size, 0, -1)
    return first + int(np.argmax(np.cumsum(excess[::-1])[::-1] / np.sqrt(counts)))


def _first_row(loss: FloatArray, first: int, last: int, t: Thresholds) -> int:
    """First row of the rise to the arrival, without a gap of three rows below the usual maximum."""
    row, high = _arrival_row(loss, first, last, t), _before(loss, first, t).max()
    while row > first and (near := np.flatnonzero(loss[max(row - t.rise_gap, first) : row] > high)).size:
        row = max(row - t.rise_gap, first) + int(near[0])
    return row


def _last_row(loss: FloatArray, first: int, t: Thresholds) -> int:
    """Last row before the loss stays below the 95 % quantile of usual losses for five rows."""
    usual, after = _before(loss, first, t), loss[first : first + t.longest_rows]
    # a spike after very low losses ends long before they are as low again
    typical, peak = float(np.median(usual)), float(after.max())
    low = max(typical + min((t.over_medians - 1) * typical, t.over_excess * (peak - typical)), t.over_share * peak)
    high = after > max(float(np.quantile(usual, t.usual_quantile)), low)
    high_counts = np.convolve(high, np.ones(t.nearby_rows), "valid") if high.size >= t.nearby_rows else np.ones(1)
    usual_again = np.flatnonzero(high_counts == 0)
    return first + max((int(usual_again[0]) if usual_again.size else high.size) - 1, 0)


def _find_quick_rises(loss: FloatArray, norm: FloatArray, decay: FloatArray, t: Thresholds) -> list[tuple[int, int]]:
    """First high row and last row of each quick rise of the norm at a high loss."""
    if not (np.isfinite(norm) & (norm > 0)).all():
        return []
    troughs, peaks = zigzag(np.log(norm), t.norm_rise)
    rises = []
    # the last rise may not have ended
    for trough, peak in zip(troughs.tolist(), [*peaks.tolist(), norm.size - 1], strict=False):
        decay_per_row = float(decay[trough])
        relaxed = round(t.usual_relaxations / decay_per_row) if decay_per_row > 0 else t.compared_rows
        usual = loss[rows_before(trough, min(t.usual_rows, max(t.least_rows, relaxed)))]
        top = trough + int(np.argmax(norm[trough : peak + 1]))
        if (
            usual.size < t.least_rows
            or not (top - trough) * decay_per_row <= t.quick_relaxations
            or not np.median(usual) > 0
        ):
            continue
        during, typical = loss[trough : top + 1], float(np.median(usual))
        if np.median(during) >= t.often_high * typical or during.max() >= t.once_high * typical:
            high = np.flatnonzero(during > np.quantile(usual, t.usual_quantile))
            rises.append((trough + int(high[0]) if high.size else trough, top))
    return rises


def _rotation_rows(rows: Rows, t: Thresholds) -> int:
    """Rows before the arrival whose rotations count: three steps, or one row if rows lie apart."""
    return t.rotation_rows if rows.is_dense else 1


def _ratio_before(values: FloatArray, arrival: int, t: Thresholds, before: int | None = None, after: int = 0) -> float:
    """Largest value of the three rows before the arrival, or of `before` rows, over the 95 % quantile of usual values.

    With `after`, the largest of so many rows from the arrival on.
    """
    # the ten steps before the spike are not usual any more
    usual = _before(values, max(arrival - t.rotation_gap, 0), t)
    usual = usual[np.isfinite(usual)]
    recent = values[slice(arrival, arrival + after) if after else rows_before(arrival, before or t.rotation_rows)]
    recent = recent[np.isfinite(recent)]
    if usual.size < t.least_rotations or not recent.size:
        return math.nan
    quantile = float(np.quantile(usual, t.usual_quantile))
    return float(recent.max()) / quantile if quantile > 0 else math.nan


def _capped_share(rows: Rows, where: slice) -> float:
    """Share of the rows whose gradient norm is that at which it is clipped."""
    gradients = rows.gradient[where]
    return float(np.mean(gradients >= rows.gradient_cap * (1 - 1e-3))) if gradients.size else math.nan


def _last_decay_phase(rows: Rows, first: int, t: Thresholds) -> tuple[float, float, int]:
    """Depth of the decay phase that ends near this row, its speed over that of decay alone, and its last row."""
    near = slice(max(first - t.trough_before, 0), first + t.trough_after)
    if not (rows.decay[first] > 0 and np.isfinite(rows.norm[near]).any()):
        return math.nan, math.nan, first
    trough = near.start + int(np.nanargmin(rows.norm[near]))
    relaxed = round(t.relaxations / float(rows.decay[first]))
    backwards = np.log(rows.norm[rows_before(trough + 1, max(t.least_phase_rows, min(trough + 1, relaxed)))])[::-1]
    # the phase begins after the last rise that is as large as a decay phase
    risen = np.flatnonzero(backwards < np.maximum.accumulate(backwards) - t.least_decay)
    peak = trough - int(np.argmax(backwards[: int(risen[0]) if risen.size else backwards.size]))
    if peak == trough:
        return 0.0, 0.0, trough
    depth = float(np.log(rows.norm[peak] / rows.norm[trough]))
    return depth, float(depth / rows.decay[peak:trough].sum()), trough


def _growth_explained(rows: Rows, trough: int, last: int) -> float:
    """Growth of ln ρ by the one-step law, over the measured growth from the trough to the top."""
    norms = rows.norm[trough : last + 2]
    # the trough may lie after the spike
    top = trough + int(np.argmax(norms)) if norms.size else trough
    if top == trough or not rows.is_dense:
        return math.nan
    return float(rows.predicted_growth[trough:top].sum() / np.log(rows.norm[top] / rows.norm[trough]))


def _contradicting_row(rows: Rows, arrival: int, t: Thresholds) -> int:
    """First row near the arrival at which the norm contradicts the one-step law; the number of rows without one."""
    here = slice(max(arrival - t.step_rows, 0), min(arrival + 2, rows.norm.size - 1))
    after = slice(here.start + 1, here.stop + 1)
    predicted, measured = rows.predicted_growth[here], np.log(rows.norm[after] / rows.norm[here])
    off = np.abs(measured - predicted) > t.step_tolerance + t.step_relative * np.abs(predicted)
    # a norm that was not logged contradicts nothing
    off &= rows.has_norm[here] & rows.has_norm[after]
    return here.start + int(np.argmax(off)) if off.any() else rows.norm.size
