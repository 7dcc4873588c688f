"""What a probe of a network says: the falls and jumps in measured trajectories, and constants fitted to them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr

import theory
from simulate.period_model.reduced_model import ReducedModel, Trend
from simulate.trajectories.contract import check_trajectory, mean_intrinsic_lr, unconstrained_optimizer
from simulate.trajectories.periods import (
    EQUILIBRIUM,
    OUTSIDE_GROWTH_MAX,
    Classification,
    MeasuredPeriods,
    after_transient,
    classify,
)
from theory.arguments import FloatArray
from theory.optimizers import parse_optimizer

MIN_PERIODS = 10  # periods at each ηλ of a probe for a law of their length
MIN_RELAXATIONS = 12  # relaxations that a segment must last
_BREAKS_ALONE = 0.05  # share of growth outside, at most, of a setting that has nothing but breaks
_LINE_MISSES = 0.5  # share of a jump by which a line through three settings may miss it
_SLOPE_BELOW = 1 / 3  # of J below the lowest setting, in units of that above, where all growth is in breaks
_LEAST_SHARE = 0.01  # of growth outside: what is less is noise about nothing, and has no power


@dataclass(frozen=True)
class CalibrationRun:
    """What one segment of a probe showed, and what the reduced model itself gives there.

    Parameters
    ----------
    intrinsic_lr : ηλ.
    count, period, period_stderr : number of periods, their mean length and its standard error in steps.
    norm_rise, outside_growth : J and φ.
    trough_norm, peak_norm : geometric mean of ρ/√η at the troughs and peaks.
    simulated_period, simulated_trough_norm, simulated_peak_norm : the same of the reduced model, where there is one.
    run : what the trajectory says of its training (its `config` attribute).
    lengths, rises : steps and ln(ρ_max/ρ_min) of each period.
    verdict, rotation_ratio, log_norm_sd, autocorrelation_time, threshold_ratio : of `simulate.classify`.
    norm : geometric mean of ρ/√η.

    Norms of AdamW and Lion are in units of η, to which they are proportional. What there is not, such as the mean of no
    periods, is NaN.
    """

    intrinsic_lr: float
    count: int
    period: float
    period_stderr: float
    norm_rise: float
    outside_growth: float
    trough_norm: float
    peak_norm: float
    simulated_period: float = math.nan
    simulated_trough_norm: float = math.nan
    simulated_peak_norm: float = math.nan
    run: str = field(default="", repr=False)
    lengths: tuple[float, ...] = field(default=(), repr=False)
    rises: tuple[float, ...] = field(default=(), repr=False)
    verdict: str = ""
    rotation_ratio: float = math.nan
    log_norm_sd: float = math.nan
    autocorrelation_time: float = math.nan
    threshold_ratio: float = math.nan
    norm: float = math.nan

    @property
    def is_clear(self) -> bool:
        """Whether it has periods enough, and a share of growth in their rises, for a reduced model."""
        return self.count >= MIN_PERIODS and self.outside_growth <= OUTSIDE_GROWTH_MAX

    def __str__(self) -> str:
        return f"{self.verdict} at lr * wd = {self.intrinsic_lr:.3g}, {self.count} periods"


@dataclass(frozen=True)
class PooledRuns:
    """What all segments of one ηλ show together; or one draw of what they might have shown.

    Attributes
    ----------
    intrinsic_lr, count, period, norm_rise, outside_growth : as in `CalibrationRun`.
    """

    intrinsic_lr: float
    count: int
    period: float
    norm_rise: float

    @property
    def outside_growth(self) -> float:
        """φ, by the balance of growth and decay."""
        return 1 - self.norm_rise / (-math.log1p(-self.intrinsic_lr) * self.period)


def pool_runs(calibration_runs: Sequence[CalibrationRun]) -> list[PooledRuns]:
    """Pool the periods of each ηλ, from the lowest up to the last at which there are 10 and more; the largest first.

    Settings at rest are left out if there are two others: the few rises of their noise are no breaks, and a law that
    goes through them is too steep.

    Raises
    ------
    ValueError : there are fewer at the lowest: what rests there and not above has no periods to make a law of.

    Examples
    --------
    >>> two = [CalibrationRun(0.01, n, t, 1.0, 0.5, 0.2, 1.0, 2.0) for n, t in ((10, 60.0), (30, 80.0))]
    >>> [(each.count, each.period) for each in pool_runs(two)]
    [(40, 75.0)]
    """
    found: list[PooledRuns] = []
    resting = set()
    for rate in sorted({segment.intrinsic_lr for segment in calibration_runs}):
        everything = [segment for segment in calibration_runs if segment.intrinsic_lr == rate]
        there = [segment for segment in everything if segment.count]
        counts = [segment.count for segment in there]
        if sum(counts) < MIN_PERIODS:
            break
        if all(segment.verdict == EQUILIBRIUM for segment in everything):
            resting.add(rate)
        period, norm_rise = (
            float(np.average([getattr(segment, name) for segment in there], weights=counts))
            for name in ("period", "norm_rise")
        )
        found.insert(0, PooledRuns(rate, sum(counts), period, norm_rise))
    if not found:
        raise ValueError(
            f"segments must show at least {MIN_PERIODS} periods at the lowest lr * wd for a law of their length, "
            f"got {'; '.join(map(str, calibration_runs))}"
        )
    swinging = [each for each in found if each.intrinsic_lr not in resting]
    return swinging if len(swinging) > 1 else found


def measure_run(trajectory: xr.Dataset, rise: float, name: str) -> tuple[CalibrationRun, Classification]:
    """Check a trajectory of a probe and sum it up, with norms in units of `norm_unit`.

    Parameters
    ----------
    trajectory : one run.
    rise : d of the period finder.
    name : of the trajectory, for messages.
    """
    try:
        check_trajectory(trajectory, "grad_norm", "loss", single=True)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None
    rule = parse_optimizer(unconstrained_optimizer(trajectory, name))
    if not isinstance(rule, (theory.SGD, theory.AdamW, theory.Lion)) or (
        isinstance(rule, theory.SGD) and rule.momentum and not rule.decoupled
    ):
        raise ValueError(
            f"{name} must be of an optimizer that decays the weights by ηλ in each step (SGD without momentum or "
            f"decoupled, AdamW, Lion), got {rule!r}"
        )
    if np.any(np.diff(trajectory.step.values) != 1):
        raise ValueError(f"{name} must have every step (record_every=1); rows are missing")
    rate = mean_intrinsic_lr(trajectory)
    if not 0 < rate < 1:
        raise ValueError(f"{name} must have 0 < lr * wd < 1, got {rate:.6g}")
    if trajectory.sizes["step"] < MIN_RELAXATIONS / rate:
        raise ValueError(
            f"{name} must have at least {MIN_RELAXATIONS}/(lr * wd) = {MIN_RELAXATIONS / rate:.4g} rows, "
            f"got {trajectory.sizes['step']}"
        )
    if "rotation" not in trajectory:
        if rule != theory.SGD():
            raise ValueError(f"{name} must have the variable 'rotation' with {rule!r}")
        # of scale-invariant weights under plain SGD the one-step law tells it
        known = theory.rotation(
            trajectory.norm.values, trajectory.attrs["lr"], trajectory.attrs["wd"], trajectory.grad_norm.values
        )
        trajectory = trajectory.assign(rotation=("step", known))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        judged = classify(trajectory, rise=rise)
    periods, scale = judged.periods, norm_unit(rule, trajectory.attrs["lr"])
    segment = CalibrationRun(
        intrinsic_lr=rate,
        count=periods.count,
        period=periods.mean,
        period_stderr=periods.stderr,
        norm_rise=periods.norm_rise,
        outside_growth=periods.outside_growth,
        trough_norm=periods.trough_norm / scale,
        peak_norm=periods.peak_norm / scale,
        run=str(trajectory.attrs.get("config", "")),
        lengths=tuple(periods.lengths.tolist()),
        rises=tuple(np.log(periods.peak_norms / periods.trough_norms).tolist()),
        verdict=judged.verdict,
        rotation_ratio=judged.rotation_ratio,
        log_norm_sd=judged.log_norm_sd,
        autocorrelation_time=judged.autocorrelation_time,
        threshold_ratio=judged.threshold_ratio,
        norm=judged.typical_norm / scale,
    )
    return segment, judged


def norm_unit(rule: theory.Optimizer, lr: float) -> float:
    """What norms are proportional to at equal ηλ: √η with SGD, η with AdamW and Lion.

    Source: docs/mathematics.md §6.

    Examples
    --------
    >>> norm_unit(theory.SGD(), 0.25), norm_unit(theory.AdamW(dim=10), 0.25)
    (0.5, 0.25)
    """
    return math.sqrt(lr) if isinstance(rule, theory.SGD) else lr


class DecayPhases:
    """The falls of one segment of a probe, each from a peak of ln z to the next trough, and the jumps after them.

    Parameters
    ----------
    trajectory : one that `measure_run` has checked.
    periods : its periods.
    """

    def __init__(self, trajectory: xr.Dataset, periods: MeasuredPeriods) -> None:
        self.periods, self.rate = periods, periods.intrinsic_lr
        settled = after_transient(trajectory)
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
        self.duration = float(np.mean(self.peaks - self.onsets[:-1]))
        self.first_losses, self.smooth = np.empty(0), [np.empty(0)]

    def loss_decay(self) -> float:
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


def fit_balance_law(seen: Sequence[PooledRuns], power_of: str = "odds") -> theory.BalanceLaw:
    """Fit J = A + B ln(1/ηλ), and φ/(1-φ) or φ itself ∝ (ηλ)^ν, to what segments show.

    Where the line says little about J, it goes on otherwise below the lowest of them. Where it falls it is held, since
    it would reach 0. Where nothing grows but in breaks, as under full batches, J grows ever less and goes on at a third
    of the slope.

    Parameters
    ----------
    seen : one for each ηλ.
    power_of : "odds" or "share", as in `theory.BalanceLaw`.

    Examples
    --------
    >>> law = fit_balance_law([PooledRuns(0.01, 100, 75.0, 0.5), PooledRuns(0.002, 100, 440.0, 0.8)])
    >>> round(law.norm_rise, 3), round(law.norm_rise_slope, 3), round(law.outside_growth, 3)
    (0.5, 0.186, 0.337)
    """
    rates = np.array([each.intrinsic_lr for each in seen])
    jumps, outside_growth = (
        np.array([getattr(each, name) for each in seen]) for name in ("norm_rise", "outside_growth")
    )
    reference = float(rates.max())
    if len(seen) == 1:
        return theory.BalanceLaw(float(jumps[0]), 0.0, float(outside_growth[0]), 0.0, reference, power_of)
    relative = rates / reference
    slope, norm_rise = (
        float(x) for x in np.polyfit(-np.log(relative), jumps, 1, w=np.sqrt([each.count for each in seen]))
    )
    if not np.all(np.abs((norm_rise - slope * np.log(relative)) / jumps - 1) <= _LINE_MISSES):
        # no line joins more than two settings, of which the lower have jumps of another size: it serves these
        return fit_balance_law([each for each in seen if each.intrinsic_lr < reference], power_of)
    breaks_alone = bool(outside_growth[rates.argmin()] <= _BREAKS_ALONE)
    lowest = float(rates.min()) if slope < 0 or breaks_alone else 0.0
    below = _SLOPE_BELOW * slope if breaks_alone and slope > 0 else 0.0
    if outside_growth.max() <= _LEAST_SHARE:
        return theory.BalanceLaw(
            norm_rise, slope, float(outside_growth.mean()), 0.0, reference, power_of, lowest, below
        )
    shares = np.maximum(outside_growth, _LEAST_SHARE)
    grows = Trend.through(relative.tolist(), (shares / (1 - shares) if power_of == "odds" else shares).tolist())
    share = grows.value / (1 + grows.value) if power_of == "odds" else grows.value
    return theory.BalanceLaw(norm_rise, slope, share, grows.power, reference, power_of, lowest, below)


def fit_reduced_model(seen: Sequence[DecayPhases], calibration_runs: Sequence[CalibrationRun]) -> ReducedModel:
    """Fit the constants of the reduced model.

    Parameters
    ----------
    seen, calibration_runs : of the same trajectories, the largest ηλ first.

    Raises
    ------
    ValueError : the loss does not fall between breaks.
    """
    reference = seen[0].rate
    relative = [each.rate / reference for each in seen]
    loss_decay = Trend.through(relative, [each.loss_decay() for each in seen])
    for each, share in zip(seen, relative, strict=True):
        each.smooth_loss(loss_decay.at(share))
    coefficients, residual_sd = fit_peak_law(seen)
    starts = [np.log(each.first_losses) for each in seen]
    return ReducedModel(
        loss_decay=loss_decay,
        growth=Trend.through(relative, [each.growth_constant() for each in seen]),
        hazard=fit_hazard(seen),
        peak_coefficients=coefficients,
        peak_residual_sd=residual_sd,
        peak_loss=Trend.through(relative, [math.exp(values.mean()) for values in starts]),
        peak_loss_sd=Trend.through(relative, [values.std() for values in starts]),
        duration=Trend.through(relative, [each.duration for each in seen]),
        rise=seen[0].periods.rise,
        reference=reference,
        lowest=seen[-1].rate,
        peak=float(np.mean([math.log(segment.peak_norm) for segment in calibration_runs])),
    )


def fit_peak_law(seen: Sequence[DecayPhases]) -> tuple[tuple[float, float, float], float]:
    """Regress ln z at the peak on ln z and ln L at the trough before it: coefficients, and the spread that remains."""
    rows, peaks = [], []
    for each in seen:
        onset, loss = each.log_norm[each.onsets[1:-1]], np.log([smooth[-1] for smooth in each.smooth[:-1]])
        rows.append(np.stack([np.ones_like(onset), onset, loss], axis=1))
        peaks.append(each.log_norm[each.peaks[1:]])
    known, wanted = np.concatenate(rows), np.concatenate(peaks)
    found = np.linalg.lstsq(known, wanted, rcond=None)[0]
    return (float(found[0]), float(found[1]), float(found[2])), float((wanted - known @ found).std())


def fit_hazard(seen: Sequence[DecayPhases]) -> tuple[float, float]:
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
