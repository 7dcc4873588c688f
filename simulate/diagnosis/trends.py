"""Find what the loss does apart from spikes: slow rises, oscillations, and rhythms of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulate.diagnosis.log_rows import Rows, row_spacing
from simulate.diagnosis.rules import THRESHOLDS, Thresholds
from simulate.trajectories.statistics import autocorrelation
from theory.arguments import FloatArray

SLOW_RISE, LASTING_RISE, OSCILLATION, REPETITION = "slow rise", "lasting rise", "oscillation", "repetition"


@dataclass(frozen=True)
class LossTrend:
    """A change of the loss that is no spike.

    Attributes
    ----------
    kind : "slow rise", "lasting rise", "oscillation" or "repetition".
    step, last_step : first and last step of it.
    text : sentences with the numbers.
    """

    kind: str
    step: int
    last_step: int
    text: str

    def __str__(self) -> str:
        return f"{self.kind}, step {self.step} to {self.last_step}: {self.text}"


def find_trends(rows: Rows, places: Sequence[tuple[int, int]], t: Thresholds = THRESHOLDS) -> list[LossTrend]:
    """Find slow rises and oscillations of the loss outside the spikes at these first and last rows.

    Examples
    --------
    >>> import xarray as xr
    >>> noise = np.random.default_rng(0).normal(size=2000)
    >>> loss = 1 + 0.5 * np.linspace(0, 1, 2000) ** 2 + 0.05 * noise
    >>> [trend] = find_trends(Rows.of(xr.Dataset({"loss": ("step", loss)}, {"step": np.arange(2000)})), [])
    >>> trend.kind
    'slow rise'
    """
    is_usual = np.ones(rows.loss.size, dtype=bool)
    for first, last in places:
        is_usual[first : last + 1] = False
    if is_usual.sum() < t.trend_blocks * t.least_block_rows:
        return []
    repeats = _find_repetition(rows, is_usual, t) or _find_places_in_epoch(rows, is_usual, t)
    trends = [_find_rise(rows, places, t), repeats or _find_oscillation(rows, is_usual, t)]
    return [trend for trend in trends if trend is not None]


def locked_share(steps: Sequence[int], period: float) -> float:
    """Share of a period that contains the positions of all steps in it.

    Examples
    --------
    >>> round(locked_share([10, 110, 212], 100.0), 2)
    0.02
    """
    positions = np.sort(np.mod(np.asarray(steps, dtype=float), period))
    gaps = np.diff(positions, append=positions[0] + period)
    return float(1 - gaps.max() / period)


def chance_of_lock(count: int, share: float) -> float:
    """Probability that so many steps at random lie within such a share of a period.

    Examples
    --------
    >>> round(chance_of_lock(3, 0.02), 4)
    0.0012
    """
    return count * share ** (count - 1) if count else 1.0


def _find_rise(rows: Rows, places: Sequence[tuple[int, int]], t: Thresholds) -> LossTrend | None:
    """The rise from the lowest block of the loss to the highest one after it, unless it begins with a spike."""
    blocks = np.array_split(np.arange(rows.loss.size), t.trend_blocks)
    level = np.array([np.median(rows.loss[block]) for block in blocks])
    # a single low or high block is noise
    smooth = np.array([np.median(level[max(i - 1, 0) : i + 2]) for i in range(level.size)])
    rise = smooth - np.minimum.accumulate(smooth)
    high = int(np.argmax(rise))
    low = int(np.argmin(smooth[: high + 1]))
    scatter = 1.4826 * float(np.median(np.abs(np.diff(level)))) / math.sqrt(2)
    if not (rise[high] > t.trend_scatter * scatter and smooth[high] > t.trend_rise * max(smooth[low], 0.0)):
        return None
    first, last = (low + int(np.argmax(smooth[low : high + 1] >= smooth[low] + q * rise[high])) for q in (0.25, 0.75))
    is_slow = last - first >= t.trend_least_blocks
    # a spike that begins there is reported itself
    start, end = blocks[max(first - 1, 0)][0], blocks[last][-1]
    if not is_slow and any(start <= row <= end for row, _ in places):
        return None
    stays = smooth[-1] > smooth[low] + 0.5 * rise[high]
    if not stays and (smooth[low:] > smooth[low] + 0.5 * rise[high]).sum() < t.trend_least_blocks:
        return None
    then = f"It ends at {level[-1]:.3g}." if stays else f"It decreased again later, and ends at {level[-1]:.3g}."
    text = f"The median loss rose from its lowest level {smooth[low]:.3g} to {smooth[high]:.3g}. {then}"
    kind = SLOW_RISE if is_slow else LASTING_RISE
    return LossTrend(kind, int(rows.step[blocks[low][0]]), int(rows.step[blocks[high][-1]]), text)


def _detrended(rows: Rows, is_usual: FloatArray, block_count: int) -> FloatArray:
    """The loss without changes slower than a block, on a logarithmic scale if it is positive; 0 in spikes."""
    loss = rows.loss
    values = np.log(np.maximum(loss, loss[loss > 0].min())) if loss.min() >= 0 and loss.any() else loss
    blocks = np.array_split(np.flatnonzero(is_usual), block_count)
    centers = [float(np.mean(block)) for block in blocks]
    slow = np.interp(np.arange(loss.size), centers, [float(np.median(values[block])) for block in blocks])
    residual = np.where(is_usual, values - slow, 0.0)
    limit = 5 * np.median(np.abs(residual[is_usual]))
    clipped: FloatArray = np.clip(residual, -limit, limit)
    return clipped


def _find_repetition(rows: Rows, is_usual: FloatArray, t: Thresholds) -> LossTrend | None:
    """A lag at which the loss repeats sharply, as it does if the batches come in the same order again."""
    correlation = autocorrelation(_detrended(rows, is_usual, t.trend_blocks))
    # a sharp peak stands out from the lags on both sides
    sharp = correlation - (np.roll(correlation, 2) + np.roll(correlation, -2)) / 2
    lags = np.arange(t.least_lag, (correlation.size - 2) // t.repetitions)
    if not lags.size:
        return None
    heights = np.min([sharp[times * lags] for times in range(1, t.repetitions + 1)], axis=0)
    # multiples of the lag have peaks of about the same height
    best = int(np.argmax(heights >= 0.7 * heights.max()))
    lag = int(lags[best])
    # standard error of an autocorrelation (Bartlett)
    correlated = 1 + 2 * float((correlation[1 : lag // 2] ** 2).sum())
    error = math.sqrt(1.5 * correlated / rows.loss.size)
    # an oscillation has a wide peak
    if not (heights[best] > t.repetition_score * error and sharp[lag] >= t.sharpness * correlation[lag]):
        return None
    steps = float(rows.step[lag] - rows.step[0])
    epoch = rows.epoch_length
    epochs = steps / epoch if math.isfinite(epoch) else math.nan
    if math.isnan(epochs):
        why = f"If an epoch or a file of the data has {steps:.0f} steps, the order of the data causes it, not the norm."
    elif round(epochs) and abs(steps - round(epochs) * epoch) <= row_spacing(rows.step) / 2:
        many = "an epoch" if round(epochs) == 1 else f"{round(epochs)} epochs"
        why = f"That is {many}, so the order of the data causes it, not the norm. Shuffle the data in every epoch."
    else:
        why = f"An epoch has {epoch:.0f} steps, so look for what else recurs then, such as a file of the data."
    text = f"The loss repeats every {steps:.0f} steps (autocorrelation {correlation[lag]:.2f}). {why}"
    return LossTrend(REPETITION, int(rows.step[0]), int(rows.step[-1]), text)


def _find_places_in_epoch(rows: Rows, is_usual: FloatArray, t: Thresholds) -> LossTrend | None:
    """Whether the loss depends on the place in the epoch, as it does if the last batch of each epoch is small."""
    spacing, epoch = row_spacing(rows.step), rows.epoch_length
    step = (rows.step - rows.step[0]).astype(float)
    if not (epoch >= t.least_lag * spacing and step[-1] >= t.place_epochs * epoch):
        return None
    residual = _detrended(rows, is_usual, min(t.trend_blocks, int(step[-1] / epoch) // 2))
    if not residual.any():
        return None
    residual = residual - residual.mean()
    count = int(min(epoch / spacing, t.places))

    def place_means(length: float) -> tuple[float, FloatArray]:
        """Share of the changes of the loss that the place in a part of this length explains, and the means."""
        place = (np.mod(step, length) / length * count).astype(int)
        numbers = np.bincount(place, minlength=count)
        means = np.bincount(place, weights=residual, minlength=count) / np.maximum(numbers, 1)
        return float((numbers * means**2).sum() / (residual**2).sum()), means

    share, means = place_means(epoch)
    # an oscillation of another cause may have nearly the length of an epoch; over the log these lengths differ from it
    # by one epoch and more
    near = [1 + shift * epoch / step[-1] for shift in (-3, -2, -1, 1, 2, 3)]
    others = max(place_means(factor * epoch)[0] for factor in (*t.other_lengths, *near))
    if not (share >= t.place_share and share > t.place_contrast * others):
        return None
    text = (
        f"The loss depends on the place in the epoch of {epoch:.0f} steps, which explains {share:.0%} of its changes "
        f"(at most {others:.0%} for other lengths). It is highest near {(np.argmax(means) + 0.5) / count:.0%} of the "
        "epoch. So something that recurs in each epoch causes it, not the norm: a last batch of few samples, the order "
        "of the data, or the learning rate."
    )
    return LossTrend(REPETITION, int(rows.step[0]), int(rows.step[-1]), text)


def _find_oscillation(rows: Rows, is_usual: FloatArray, t: Thresholds) -> LossTrend | None:
    """A period of the loss, from the first peak of its autocorrelation."""
    # the loss changes fast at first
    residual = _detrended(rows, is_usual, t.slow_blocks)[rows.loss.size // t.slow_blocks :]
    size = max(residual.size // t.oscillation_samples, 1)
    means = residual[: residual.size // size * size].reshape(-1, size).mean(axis=1)
    correlation = autocorrelation(means)
    negative = np.flatnonzero(correlation < -t.oscillation_depth)
    if not negative.size:
        return None
    after = correlation[negative[0] :]
    positive = np.flatnonzero(after > 0)
    if not positive.size:
        return None
    start = int(negative[0] + positive[0])
    end = next((i for i in range(start, correlation.size) if correlation[i] < 0), correlation.size)
    lag = start + int(np.argmax(correlation[start:end]))
    again = correlation[round(1.8 * lag) : round(2.2 * lag) + 1]
    is_periodic = correlation[lag] >= t.oscillation_height and again.size and again.max() >= t.oscillation_height / 2
    if not is_periodic or means.size < t.oscillation_periods * lag:
        return None
    period = lag * size * float(rows.step[-1] - rows.step[0]) / max(rows.step.size - 1, 1)
    epoch = rows.epoch_length
    if math.isfinite(epoch) and abs(period / epoch - 1) < 0.05:
        why = "That is about the length of an epoch, so the data may cause it."
    else:
        why = _whether_norm_can_oscillate(rows, period, t)
    text = (
        f"The loss oscillates with a period of about {period:.0f} steps (autocorrelation {correlation[lag]:.2f}). {why}"
    )
    return LossTrend(OSCILLATION, int(rows.step[0]), int(rows.step[-1]), text.strip())


def _whether_norm_can_oscillate(rows: Rows, period: float, t: Thresholds) -> str:
    decay = float(np.median(rows.certain_decay)) / row_spacing(rows.step) * period
    if math.isnan(decay):
        return ""
    if decay < t.least_decay:
        return (
            f"In that time weight decay reduces the norm by {-math.expm1(-decay):.1%} at most, so the norm is not the "
            "cause."
        )
    return f"In that time weight decay can reduce the norm by {-math.expm1(-decay):.0%}, so the norm may be the cause."
