"""Find the periods of a trajectory, and classify it: equilibrium, periodic, or no clear period."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import xarray as xr

import theory
from simulate.trajectories.contract import check_trajectory
from simulate.trajectories.setting import Setting
from simulate.trajectories.statistics import autocorrelation_time
from theory.arguments import check_integer, check_number, warn_user

EQUILIBRIUM, PERIODIC, NO_CLEAR_PERIOD = "equilibrium", "periodic", "no clear period"

# Thresholds of `verdict_from`; the docstring of `classify` explains them.
ROTATION_RATIO_MIN, LOG_NORM_SD_MAX, OUTSIDE_GROWTH_MAX, PERIODS_MIN = 0.8, 0.05, 0.9, 5
THRESHOLD_RATIO_MAX, OUTSIDE_GROWTH_SMALL = 2.0, 0.25

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_SAMPLES_PER_RELAXATION = 100  # samples per 1/ηλ for the autocorrelation


@dataclass(frozen=True)
class MeasuredPeriods:
    """Periods of one trajectory, from trough to trough of the norm.

    Attributes
    ----------
    onsets : step numbers of the troughs, at which destabilizations begin, shape (count+1,); empty without troughs.
    lengths : steps from each trough to the next, shape (count,).
    trough_norms, peak_norms : ρ at the trough that begins each period, and at its peak, shape (count,).
    rise : threshold d: a rise of ln ρ by at least d is a destabilization.
    intrinsic_lr : ηλ.
    decay : decrease of ln ρ in a step without gradients, see `theory.free_decay`. For plain SGD it is -ln(1-ηλ). NaN if
        there is no decay.
    """

    onsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.float64]
    trough_norms: npt.NDArray[np.float64] = field(repr=False)
    peak_norms: npt.NDArray[np.float64] = field(repr=False)
    rise: float
    intrinsic_lr: float
    decay: float

    def __str__(self) -> str:
        if not self.count:
            return f"no period at rise={self.rise:g}"
        return f"T = {self.mean:.4g} ± {self.stderr:.2g} steps"

    @property
    def count(self) -> int:
        """Number of complete periods."""
        return len(self.lengths)

    @property
    def mean(self) -> float:
        """Mean length of a period in steps; NaN without periods."""
        return float(self.lengths.mean()) if self.count else math.nan

    @property
    def std(self) -> float:
        """Standard deviation of the length in steps; NaN with fewer than two periods."""
        return float(self.lengths.std(ddof=1)) if self.count > 1 else math.nan

    @property
    def stderr(self) -> float:
        """Standard error of the mean length in steps, for independent periods."""
        return self.std / math.sqrt(self.count) if self.count > 1 else math.nan

    @property
    def norm_rise(self) -> float:
        """Norm rise J: mean of ln(peak norm/trough norm); NaN without periods."""
        return float(np.log(self.peak_norms / self.trough_norms).mean()) if self.count else math.nan

    @property
    def trough_norm(self) -> float:
        """Geometric mean of `trough_norms`; NaN without periods."""
        return float(np.exp(np.log(self.trough_norms).mean())) if self.count else math.nan

    @property
    def peak_norm(self) -> float:
        """Geometric mean of `peak_norms`; NaN without periods."""
        return float(np.exp(np.log(self.peak_norms).mean())) if self.count else math.nan

    @property
    def outside_growth(self) -> float:
        """Growth outside φ: share of the growth of ln ρ outside the destabilizations; T·decay = J/(1-φ).

        NaN without periods or without decay.
        """
        return 1 - self.norm_rise / (self.decay * self.mean) if self.count and self.decay > 0 else math.nan


@dataclass(frozen=True)
class Classification:
    """Verdict on a trajectory, the numbers behind it, and statistics of ln ρ that need no threshold.

    `str(classification)` is a short form: "equilibrium", "periodic, T = … ± … steps" or "no clear period".

    Attributes
    ----------
    verdict : "equilibrium", "periodic" or "no clear period".
    rotation_ratio : median rotation over its equilibrium value.
    log_norm_sd : standard deviation of ln ρ.
    typical_norm : geometric mean of ρ.
    norm_quantiles : 5, 25, 50, 75 and 95 % quantiles of ρ over the rows.
    autocorrelation_time : steps after which the autocorrelation of ln ρ has fallen to 1/e; NaN if it stays above for
        half of the rows.
    threshold_ratio : mean period at twice the rise over that at the rise. It is inf without periods at twice the rise,
        and NaN without any periods.
    periods : result of `find_periods`.
    """

    verdict: str
    rotation_ratio: float
    log_norm_sd: float
    typical_norm: float
    norm_quantiles: tuple[float, ...]
    autocorrelation_time: float
    threshold_ratio: float
    periods: MeasuredPeriods = field(repr=False)

    def __str__(self) -> str:
        if self.verdict == PERIODIC:
            return f"{PERIODIC}, {self.periods}"
        return self.verdict

    @property
    def reason(self) -> str:
        """The numbers that led to the verdict, in one sentence."""
        # without decay there is no rotation at equilibrium
        has_equilibrium = math.isfinite(self.rotation_ratio)
        rotation = f"rotation {self.rotation_ratio:.2f} of equilibrium" if has_equilibrium else "no equilibrium"
        spread = f"{rotation}, spread of ln ρ {self.log_norm_sd:.3f}"
        if self.verdict == EQUILIBRIUM:
            return spread
        periods = self.periods
        if periods.count < PERIODS_MIN:
            return f"{spread}, and {periods.count} period{'s' * (periods.count != 1)}"
        if math.isnan(periods.outside_growth):
            return f"{spread}, and {periods.count} periods, but no rate of decay to compare their growth with"
        shares = f"{periods.count} periods, {periods.outside_growth:.0%} of the growth outside their rises"
        if self.verdict == PERIODIC or periods.outside_growth > OUTSIDE_GROWTH_MAX:
            return f"{spread}, {shares}"
        coarse = "no period" if math.isinf(self.threshold_ratio) else f"{self.threshold_ratio * periods.mean:.4g} steps"
        return (
            f"{spread}, and a period that depends on the detection threshold: {periods.mean:.4g} steps for rises "
            f"of at least {periods.rise:g}, {coarse} for {2 * periods.rise:g}"
        )


def verdict_from(
    rotation_ratio: float, log_norm_sd: float, periods: float, outside_growth: float, threshold_ratio: float
) -> str:
    """Return the verdict for measured or predicted numbers, by the rules of `classify`.

    Examples
    --------
    >>> verdict_from(0.3, 0.1, periods=60, outside_growth=0.4, threshold_ratio=1.4)
    'periodic'
    >>> verdict_from(0.3, 0.1, periods=60, outside_growth=0.8, threshold_ratio=2.6)
    'no clear period'
    """
    if ROTATION_RATIO_MIN <= rotation_ratio < math.inf and log_norm_sd <= LOG_NORM_SD_MAX:
        return EQUILIBRIUM
    clear = threshold_ratio < THRESHOLD_RATIO_MAX or outside_growth <= OUTSIDE_GROWTH_SMALL
    return PERIODIC if periods >= PERIODS_MIN and outside_growth <= OUTSIDE_GROWTH_MAX and clear else NO_CLEAR_PERIOD


def find_periods(trajectory: xr.Dataset, *, rise: float = 0.1, discard: int | None = None) -> MeasuredPeriods:
    """Find the periods of one trajectory.

    A destabilization begins at a trough of ln ρ and is a rise by at least `rise`. Between two of them ln ρ falls by at
    least `rise`. A period lasts from trough to trough.

    Parameters
    ----------
    trajectory : one run.
    rise : threshold d > 0, in units of ln ρ.
    discard : number of steps to leave out at the start. Default is 2/ηλ, or two over `theory.free_decay` with momentum.

    Returns
    -------
    MeasuredPeriods

    Raises
    ------
    TypeError, ValueError : `trajectory` is no single run, or an argument is out of range.

    Warns
    -----
    UserWarning : rows are more than 0.01/ηλ steps apart, which biases the periods. Or more than 0.9 of the growth of
        ln ρ lies outside the destabilizations, so that there is no clear period at this `rise`.

    Examples
    --------
    >>> wave = np.exp(np.abs(np.arange(1000) % 100 - 50) / 50)
    >>> run = xr.Dataset({"norm": ("step", wave)}, coords={"step": np.arange(1000)}, attrs={"lr": 0.1, "wd": 0.1})
    >>> find_periods(run, discard=0).mean
    100.0
    """
    periods = _check_and_find(trajectory, rise, discard)
    if periods.outside_growth > OUTSIDE_GROWTH_MAX:
        warn_user(
            f"{periods.outside_growth:.3g} of the growth of ln ρ lies outside the detected rises, above "
            f"{OUTSIDE_GROWTH_MAX}: no clear period at rise={periods.rise:g}"
        )
    return periods


def classify(trajectory: xr.Dataset, *, rise: float = 0.1, discard: int | None = None) -> Classification:
    """Classify a trajectory as at equilibrium, periodic, or neither.

    - "equilibrium": the median rotation is at least 0.8 of its equilibrium value *and* the standard deviation of ln ρ
      is at most 0.05. (The mean of ρ⁴ is no criterion: it fits the equilibrium formula on periodic runs too.) Without
      weight decay this verdict is impossible.
    - "periodic": at least 5 periods, at most 0.9 of the growth of ln ρ outside the destabilizations, and a period that
      less than doubles if `rise` is doubled. A period that doubles only reflects the detection threshold. The last
      condition is dropped if at most 0.25 of the growth is outside.
    - "no clear period": everything else.

    Parameters
    ----------
    trajectory : one run with `norm` and `rotation`.
    rise, discard : as in `find_periods`.

    Returns
    -------
    Classification

    Raises
    ------
    TypeError, ValueError : `trajectory` is no single run, an argument is out of range, or fewer than two rows are left
        after `discard`.

    Warns
    -----
    UserWarning : rows are more than 0.01/ηλ steps apart, which biases the periods.

    Source: docs/mathematics.md §2.

    Examples
    --------
    >>> from simulate.maps.norm_map import norm_map
    >>> str(classify(norm_map(0.1, 0.01, 2.0, norm=2.1, steps=5000)))
    'equilibrium'
    """
    check_trajectory(trajectory, "rotation", single=True)
    # without the warning of `find_periods`: the verdict says whether a period is clear
    periods = _check_and_find(trajectory, rise, discard)
    settled = rows_after_transient(trajectory, discard)
    if len(settled) < 2:
        discarded = (
            f"first {transient_length(trajectory)} steps (the transient)"
            if discard is None
            else f"first {discard} steps"
        )
        raise ValueError(
            f"trajectory must have rows left after `discard`, got fewer than two of {trajectory.sizes['step']}: "
            f"its {discarded} are discarded; train longer, or pass a smaller discard"
        )
    setting = Setting.of(trajectory)
    lr, wd = (
        np.asarray(values.values[settled] if values.ndim else values.values, dtype=float)
        for values in (setting.lr, setting.wd)
    )
    expected = theory.equilibrium_rotation(
        lr,
        wd,
        grad_norm=_root_mean_square(trajectory, settled),
        optimizer=setting.known_optimizer(),
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = float(np.median(trajectory.rotation.values[settled] / expected))
    log_norm = np.log(trajectory.norm.values[settled])
    sd = float(log_norm.std())
    coarse = _periods_of_rows(trajectory, settled, 2 * periods.rise)
    has_periods = (periods.count > 0, coarse.count > 0)
    threshold_ratio = {(True, True): coarse.mean / periods.mean, (True, False): math.inf}.get(has_periods, math.nan)
    return Classification(
        verdict=verdict_from(ratio, sd, periods.count, periods.outside_growth, threshold_ratio),
        rotation_ratio=ratio,
        log_norm_sd=sd,
        typical_norm=math.exp(log_norm.mean()),
        norm_quantiles=tuple(np.exp(np.quantile(log_norm, QUANTILES)).tolist()),
        autocorrelation_time=autocorrelation_time(
            trajectory.step.values[settled],
            log_norm,
            1 / (_SAMPLES_PER_RELAXATION * periods.intrinsic_lr) if periods.intrinsic_lr else 1,
        ),
        threshold_ratio=threshold_ratio,
        periods=periods,
    )


def _check_and_find(trajectory: xr.Dataset, rise: float, discard: int | None) -> MeasuredPeriods:
    """Check the arguments and find the periods, without a warning if they are not clear."""
    check_trajectory(trajectory, single=True)
    rise = check_number("rise", rise, above=0)
    intrinsic_lr = Setting.of(trajectory).intrinsic_lr
    settled = rows_after_transient(trajectory, discard)
    step = trajectory.step.values[settled]
    if intrinsic_lr > 0 and step.size > 1 and np.diff(step).max() > max(1, 0.01 / intrinsic_lr):
        warn_user(
            f"rows lie {int(np.diff(step).max())} steps apart; periods are biased above "
            f"0.01/(lr*wd) = {0.01 / intrinsic_lr:.3g}"
        )
    return _periods_of_rows(trajectory, settled, rise)


def _periods_of_rows(trajectory: xr.Dataset, settled: npt.NDArray[np.int64], rise: float) -> MeasuredPeriods:
    """Find the periods in some rows of a trajectory."""
    step, norm = trajectory.step.values[settled], trajectory.norm.values[settled]
    troughs, peaks = zigzag(np.log(norm), rise)
    onsets = step[troughs]
    setting = Setting.of(trajectory)
    return MeasuredPeriods(
        onsets=onsets,
        lengths=np.diff(onsets).astype(np.float64),
        trough_norms=norm[troughs[:-1]],
        peak_norms=norm[peaks[: max(len(troughs) - 1, 0)]],
        rise=rise,
        intrinsic_lr=setting.intrinsic_lr,
        decay=_decay(setting),
    )


def transient_length(trajectory: xr.Dataset) -> int:
    """Number of steps in the transient of a run: 2/ηλ, or two over `theory.free_decay` with momentum.

    Examples
    --------
    >>> transient_length(xr.Dataset(attrs={"lr": 0.1, "wd": 0.01}))
    2000
    >>> transient_length(xr.Dataset(attrs={"lr": 0.1, "wd": 0.01, "optimizer": "SGD(momentum=0.9)"}))
    179
    """
    setting = Setting.of(trajectory)
    intrinsic_lr, rule = setting.intrinsic_lr, setting.optimizer
    if 0 < intrinsic_lr < 1 and isinstance(rule, theory.SGD) and rule.momentum:
        return round(2 / float(theory.free_decay(1.0, intrinsic_lr, optimizer=rule)))
    return round(2 / intrinsic_lr) if intrinsic_lr > 0 else 0


def _decay(setting: Setting) -> float:
    if not 0 < setting.intrinsic_lr < 1:
        return math.nan
    return float(theory.free_decay(1.0, setting.intrinsic_lr, optimizer=setting.known_optimizer()))


def _root_mean_square(trajectory: xr.Dataset, rows: npt.NDArray[np.int64]) -> float:
    """Root mean square of g̃, on which the rotation of some optimizers depends; 1 if it is not recorded."""
    with np.errstate(over="ignore"):
        size = float(np.sqrt(np.mean(trajectory.grad_norm.values[rows] ** 2))) if "grad_norm" in trajectory else 1.0
    return size if size > 0 and math.isfinite(size) else 1.0


def after_transient(trajectory: xr.Dataset, discard: int | None = None) -> xr.Dataset:
    """Rows of one run with a finite norm > 0, after the first `discard` steps (default as in `find_periods`)."""
    return trajectory.isel(step=rows_after_transient(trajectory, discard))


def rows_after_transient(trajectory: xr.Dataset, discard: int | None = None) -> npt.NDArray[np.int64]:
    """Indices of the rows that `after_transient` returns."""
    if discard is None:
        discard = transient_length(trajectory)
    discard = check_integer("discard", discard)
    step, norm = trajectory.step.values, trajectory.norm.values
    kept = np.isfinite(norm) & (norm > 0) & (step >= (step[0] if step.size else 0) + discard)
    return np.flatnonzero(kept)


@numba.njit(cache=True, nogil=True)
def zigzag(values: Any, rise: float) -> Any:
    """Indices of alternating troughs and peaks: ln ρ rises by `rise` after a trough, and falls by it after a peak."""
    troughs = np.empty(values.size, dtype=np.int64)
    peaks = np.empty(values.size, dtype=np.int64)
    trough_count = peak_count = 0
    low = high = 0
    direction = 0
    for i in range(values.size):
        if values[i] > values[high]:
            high = i
        if values[i] < values[low]:
            low = i
        if direction >= 0 and values[high] - values[i] >= rise:
            if trough_count > 0:
                peaks[peak_count] = high
                peak_count += 1
            direction = -1
            low = i
        elif direction <= 0 and values[i] - values[low] >= rise:
            # a rise from the very first value has no known trough
            if low > 0:
                troughs[trough_count] = low
                trough_count += 1
            direction = 1
            high = i
    return troughs[:trough_count], peaks[:peak_count]
