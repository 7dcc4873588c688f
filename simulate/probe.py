"""What a probe of a network says: the falls and jumps in measured trajectories, and constants fitted to them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr

import theory
from simulate.trajectories.contract import check_trajectory, intrinsic_lr
from simulate.trajectories.periods import OUTSIDE_GROWTH_MAX, find_periods, settled_part
from theory.arguments import FloatArray

_FEWEST = 10  # periods in a segment of a probe


@dataclass(frozen=True)
class Trend:
    """A positive constant of a network that changes with ηλ as a power of it.

    Parameters
    ----------
    value : at the reference ηλ.
    power : value(ηλ) = value·(ηλ/reference)^power.

    Examples
    --------
    >>> Trend(24.0, -0.5).at(0.25)
    48.0
    """

    value: float
    power: float

    def at(self, relative: float) -> float:
        """Value at ηλ = `relative` times the reference.

        Examples
        --------
        >>> Trend(2.0, 0.0).at(0.1)
        2.0
        """
        return float(self.value * relative**self.power)

    @classmethod
    def through(cls, relative: Sequence[float], values: Sequence[float]) -> Trend:
        """Fit a power law to values > 0, exactly where there are two; those of one ηλ alone give a constant.

        Examples
        --------
        >>> round(Trend.through([1.0, 0.25], [24.0, 48.0]).at(1.0), 9)
        24.0
        """
        if len(set(relative)) < 2:
            return cls(float(np.exp(np.mean(np.log(values)))), 0.0)
        power, log_value = np.polyfit(np.log(relative), np.log(values), 1)
        return cls(float(np.exp(log_value)), float(power))


@dataclass(frozen=True)
class Segment:
    """What one segment of a probe showed, and what the reduced model itself gives there.

    Parameters
    ----------
    intrinsic_lr : ηλ.
    count, period, period_stderr : number of periods, their mean length and its standard error in steps.
    jump, outside_growth : J and φ.
    norm_min, norm_max : geometric mean of ρ/√η at the troughs and peaks.
    simulated_period, simulated_norm_min, simulated_norm_max : the same of the reduced model.
    run : what the trajectory says of its training (its `config` attribute).
    lengths, rises : steps and ln(ρ_max/ρ_min) of each period; empty in models that were saved before they were kept.
    """

    intrinsic_lr: float
    count: int
    period: float
    period_stderr: float
    jump: float
    outside_growth: float
    norm_min: float
    norm_max: float
    simulated_period: float = math.nan
    simulated_norm_min: float = math.nan
    simulated_norm_max: float = math.nan
    run: str = field(default="", repr=False)
    lengths: tuple[float, ...] = field(default=(), repr=False)
    rises: tuple[float, ...] = field(default=(), repr=False)


class Falls:
    """The falls of one segment of a probe, each from a peak of ln z to the next trough, and the jumps after them."""

    def __init__(self, trajectory: xr.Dataset, rise: float, name: str) -> None:
        try:
            check_trajectory(trajectory, "grad_norm", "loss", single=True)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
        if trajectory.attrs.get("optimizer", "SGD()") != "SGD()":
            raise ValueError(f"{name} must be of optimizer SGD(), got {trajectory.attrs['optimizer']}")
        if np.any(np.diff(trajectory.step.values) != 1):
            raise ValueError(f"{name} must have every step (record_every=1); rows are missing")
        self.rate = intrinsic_lr(trajectory)
        if not 0 < self.rate < 1:
            raise ValueError(f"{name} must have 0 < lr * wd < 1, got {self.rate:.6g}")
        settled = settled_part(trajectory)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            self.periods = find_periods(settled, rise=rise, discard=0)
        if self.periods.count < _FEWEST:
            raise ValueError(f"{name} must have at least {_FEWEST} periods, got {self.periods.count}")
        if self.periods.outside_growth > OUTSIDE_GROWTH_MAX:
            raise ValueError(
                f"{name} must have a clear period, but {self.periods.outside_growth:.0%} of the growth of its norm "
                f"lies outside the rises of {rise} and more"
            )
        self.run = str(trajectory.attrs.get("config", ""))
        self.log_norm = np.log(settled.norm.values.astype(np.float64)) - math.log(trajectory.attrs["lr"]) / 2
        self.loss = np.maximum(settled.loss.values.astype(np.float64), np.finfo(np.float64).tiny)
        self.effective_lr = np.exp(-2 * self.log_norm)
        turn = self.effective_lr * settled.grad_norm.values / (1 - self.rate)
        self.grown = np.log1p(turn**2) / 2
        self.onsets = np.searchsorted(settled.step.values, self.periods.onsets)
        self.peaks = np.array(
            [a + np.argmax(self.log_norm[a:b]) for a, b in zip(self.onsets[:-1], self.onsets[1:], strict=True)]
        )
        self.spans = [slice(a, b) for a, b in zip(self.peaks, self.onsets[1:], strict=True)]
        # integral of the effective learning rate since the peak
        self.times = [np.concatenate([[0.0], np.cumsum(self.effective_lr[span])[:-1]]) for span in self.spans]
        self.loss_decay = self._loss_decay()
        self.duration = float(np.mean(self.peaks - self.onsets[:-1]))
        self.first_losses, self.smooth = np.empty(0), [np.empty(0)]

    def _loss_decay(self) -> float:
        """C of dL/dτ = -cL²: median over the falls of the slope of 1/L, with L the mean of each eighth of a fall."""
        slopes = []
        for span, times in zip(self.spans, self.times, strict=True):
            if times.size >= 16:
                parts = np.array_split(np.arange(times.size), 8)
                means = np.array([self.loss[span][part].mean() for part in parts])
                at = np.array([times[part].mean() for part in parts])
                # 1/L is known as well as L relative to itself: weighted by L
                slopes.append(np.polyfit(at, 1 / means, 1, w=means)[0])
        found = float(np.median(slopes)) if slopes else math.nan
        if not found > 0:
            raise ValueError(
                f"segments must show a loss that falls between breaks; at lr * wd = {self.rate:.3g} it does not"
            )
        return found

    def smooth_loss(self, loss_decay: float) -> None:
        """L(τ) = 1/(1/L₀+cτ) of each fall, with the L₀ that gives the mean of the measured losses."""
        from scipy.optimize import brentq

        def start(times: FloatArray, mean: float) -> float:
            def excess(log_first: float) -> float:
                return float(np.mean(1 / (math.exp(-log_first) + loss_decay * times)) - mean)

            return math.exp(brentq(excess, math.log(mean) - 1, math.log(mean * times.size) + 1))

        self.first_losses = np.array(
            [start(times, float(self.loss[span].mean())) for span, times in zip(self.spans, self.times, strict=True)]
        )
        self.smooth = [
            1 / (1 / first + loss_decay * times) for first, times in zip(self.first_losses, self.times, strict=True)
        ]

    def growth_constant(self) -> float:
        """K for which min(½k(η̃L)², 2ηλ) has the mean of the measured growth within falls."""
        from scipy.optimize import brentq

        turn = np.concatenate([self.effective_lr[s] * loss for s, loss in zip(self.spans, self.smooth, strict=True)])
        mean = min(float(np.concatenate([self.grown[s] for s in self.spans]).mean()), 1.9 * self.rate)

        def excess(log_constant: float) -> float:
            return float(np.minimum(math.exp(log_constant) * turn**2 / 2, 2 * self.rate).mean() - mean)

        return math.exp(brentq(excess, -100, 300))

    def segment(self) -> Segment:
        """Sum up the periods, with norms in units of √η."""
        scale = self.periods.norm_min / np.exp(self.log_norm[self.onsets[:-1]])
        return Segment(
            intrinsic_lr=self.rate,
            count=self.periods.count,
            period=self.periods.mean,
            period_stderr=self.periods.stderr,
            jump=self.periods.jump,
            outside_growth=self.periods.outside_growth,
            norm_min=float(np.exp(np.log(self.periods.norm_min / scale).mean())),
            norm_max=float(np.exp(np.log(self.periods.norm_max / scale).mean())),
            run=self.run,
            lengths=tuple(self.periods.lengths.tolist()),
            rises=tuple(np.log(self.periods.norm_max / self.periods.norm_min).tolist()),
        )


def balance_law(
    rates: Sequence[float], counts: Sequence[int], jumps: Sequence[float], outside: Sequence[float]
) -> theory.BalanceLaw:
    """Fit J = A + B ln(1/ηλ) and φ ∝ (ηλ)^ν to what segments show.

    Parameters
    ----------
    rates, counts, jumps, outside : ηλ, number of periods, J and φ of each segment.

    Examples
    --------
    >>> law = balance_law([0.01, 0.002], [100, 100], [0.5, 0.8], [0.3, 0.1])
    >>> round(law.jump, 3), round(law.jump_slope, 3), round(law.outside, 3)
    (0.5, 0.186, 0.3)
    """
    reference = max(rates)
    if len(set(rates)) == 1:
        return theory.BalanceLaw(float(np.mean(jumps)), 0.0, float(np.mean(outside)), 0.0, reference)
    slope, jump = np.polyfit(-np.log(np.array(rates) / reference), jumps, 1, w=np.sqrt(counts))
    # a share that is not above 0 has no power
    if min(outside) <= 0:
        return theory.BalanceLaw(float(jump), float(slope), float(np.mean(outside)), 0.0, reference)
    trend = Trend.through([rate / reference for rate in rates], outside)
    return theory.BalanceLaw(float(jump), float(slope), trend.value, trend.power, reference)


def jump_law(seen: Sequence[Falls]) -> tuple[tuple[float, float, float], float]:
    """Regress ln z at the peak on ln z and ln L at the trough before it: coefficients, and the spread that remains."""
    rows, peaks = [], []
    for each in seen:
        onset, loss = each.log_norm[each.onsets[1:-1]], np.log([smooth[-1] for smooth in each.smooth[:-1]])
        rows.append(np.stack([np.ones_like(onset), onset, loss], axis=1))
        peaks.append(each.log_norm[each.peaks[1:]])
    known, wanted = np.concatenate(rows), np.concatenate(peaks)
    found = np.linalg.lstsq(known, wanted, rcond=None)[0]
    return (float(found[0]), float(found[1]), float(found[2])), float((wanted - known @ found).std())


def hazard_law(seen: Sequence[Falls]) -> tuple[float, float]:
    """(a, p) of ln h = a + ln L + p ln η̃ by maximum likelihood: one event at the end of each fall."""
    rates, losses = [], []
    for each in seen:
        for span, smooth in zip(each.spans, each.smooth, strict=True):
            # a rise before that would have been taken for a part of the last one
            ready = each.log_norm[span] <= each.log_norm[span.start] - each.periods.rise
            rates.append(-2 * each.log_norm[span][ready])
            losses.append(np.log(smooth[ready]))
    log_rate, log_loss = np.concatenate(rates), np.concatenate(losses)
    events, middle = np.zeros(log_rate.size), float(log_rate.mean())
    events[np.cumsum([part.size for part in rates]) - 1] = 1
    terms = np.stack([np.ones_like(log_rate), log_rate - middle])
    found = np.array([math.log(events.sum() / np.exp(log_loss).sum()), 0.0])
    # the likelihood is concave
    for _ in range(200):
        hazard = np.exp(log_loss + found @ terms)
        move = np.linalg.solve((terms * hazard) @ terms.T, terms @ (events - hazard))
        move *= min(1.0, 1.0 / float(np.abs(move).max()))
        found = found + move
        if np.abs(move).max() < 1e-10:
            break
    return float(found[0] - found[1] * middle), float(found[1])
