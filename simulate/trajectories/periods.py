"""Periods of a trajectory, and the verdict whether it has any."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import xarray as xr

import theory
from simulate.trajectories.contract import CONSTRAINT_MARK, check_trajectory, mean_intrinsic_lr, setting_variable
from simulate.trajectories.statistics import autocorrelation_time
from theory.arguments import check_integer, check_number
from theory.optimizers import parse_if_known, parse_optimizer

EQUILIBRIUM, PERIODIC, NO_CLEAR_PERIOD = "equilibrium", "periodic", "no clear period"

# What `verdict_from` asks for; reasons in the docstring of `classify`.
ROTATION_RATIO_MIN, LOG_NORM_SD_MAX, OUTSIDE_GROWTH_MAX, PERIODS_MIN = 0.8, 0.05, 0.9, 5
THRESHOLD_RATIO_MAX, OUTSIDE_GROWTH_SMALL = 2.0, 0.25

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_LOOKS = 100  # of the autocorrelation per relaxation 1/ηλ


@dataclass(frozen=True)
class MeasuredPeriods:
    """Periods found in one trajectory, from trough to trough of the norm.

    Attributes
    ----------
    onsets : step numbers of the troughs at which a destabilization begins, shape (count+1,); empty without troughs.
    lengths : steps between them, shape (count,).
    trough_norms, peak_norms : ρ at the trough that begins each period and at its peak, shape (count,).
    rise : the rise d of ln ρ that counts as a destabilization.
    intrinsic_lr : ηλ.
    decay : fall of ln ρ in a step without gradients, -ln(1-ηλ) for plain SGD (`theory.free_decay`); NaN where there is
        none.
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
        """Mean length in steps; NaN without periods."""
        return float(self.lengths.mean()) if self.count else math.nan

    @property
    def std(self) -> float:
        """Standard deviation of the length in steps; NaN below two periods."""
        return float(self.lengths.std(ddof=1)) if self.count > 1 else math.nan

    @property
    def stderr(self) -> float:
        """Standard error of the mean length in steps, periods taken as independent."""
        return self.std / math.sqrt(self.count) if self.count > 1 else math.nan

    @property
    def norm_rise(self) -> float:
        """J: mean of ln(norm_max/norm_min)."""
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
        """φ: share of all growth of ln ρ that lies outside the detected rises; T·decay = J/(1-φ).

        NaN without periods, and without decay.
        """
        return 1 - self.norm_rise / (self.decay * self.mean) if self.count and self.decay > 0 else math.nan


@dataclass(frozen=True)
class Classification:
    """A verdict, the numbers that decided, and what else describes how ln ρ moves without any threshold.

    `str` of it is the verdict in a few words: "equilibrium", "periodic, T = … ± … steps" or "no clear period".

    Attributes
    ----------
    verdict : "equilibrium", "periodic" or "no clear period".
    rotation_ratio : median rotation over its equilibrium value.
    log_norm_sd : standard deviation of ln ρ.
    typical_norm : geometric mean of ρ.
    norm_quantiles : ρ that is not exceeded in 5, 25, 50, 75 and 95 % of the rows.
    autocorrelation_time : steps after which the autocorrelation of ln ρ has fallen to 1/e; NaN where it has not in half
        of the rows.
    threshold_ratio : mean period at twice the rise over that at the rise; inf without periods at twice the rise, NaN
        without any.
    periods : what `find_periods` gave.
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
        """Why, in one sentence."""
        # without decay there is no rotation at equilibrium
        known = math.isfinite(self.rotation_ratio)
        turned = f"rotation {self.rotation_ratio:.2f} of equilibrium" if known else "no equilibrium"
        rests = f"{turned}, spread of ln ρ {self.log_norm_sd:.3f}"
        if self.verdict == EQUILIBRIUM:
            return rests
        periods = self.periods
        if periods.count < PERIODS_MIN:
            return f"{rests}, and {periods.count} period{'s' * (periods.count != 1)}"
        if math.isnan(periods.outside_growth):
            return f"{rests}, and {periods.count} periods, but no rate of decay that their growth could be held against"
        shares = f"{periods.count} periods, {periods.outside_growth:.0%} of the growth outside their rises"
        if self.verdict == PERIODIC or periods.outside_growth > OUTSIDE_GROWTH_MAX:
            return f"{rests}, {shares}"
        coarse = "no period" if math.isinf(self.threshold_ratio) else f"{self.threshold_ratio * periods.mean:.4g} steps"
        return (
            f"{rests}, and a period that depends on the threshold of its detection: {periods.mean:.4g} steps for rises "
            f"of {periods.rise:g} and more, {coarse} for {2 * periods.rise:g}"
        )


def verdict_from(
    rotation_ratio: float, log_norm_sd: float, periods: float, outside_growth: float, threshold_ratio: float
) -> str:
    """Verdict that these numbers of a trace, measured or predicted, lead to; the rules are those of `classify`.

    Parameters
    ----------
    rotation_ratio, log_norm_sd, outside_growth, threshold_ratio : as in `Classification`; NaN where unknown.
    periods : their number.

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
    """Find the periods of one trajectory: zigzag of ln ρ with hysteresis `rise`.

    A destabilization begins at a trough of ln ρ that is followed by a rise of at least `rise`; two of them are
    separated by a fall of at least `rise`. A period lasts from trough to trough.

    Parameters
    ----------
    trajectory : one run.
    rise : d > 0, in units of ln ρ.
    discard : steps to leave out at the start; default 2/ηλ, with momentum two over `theory.free_decay`.

    Returns
    -------
    Periods

    Raises
    ------
    TypeError, ValueError : no single trajectory, or an argument out of range.

    Warns
    -----
    UserWarning : the rows lie more than 0.01/ηλ steps apart, which biases the periods; or more than 0.9 of the growth
        of ln ρ lies outside the detected rises, so that there is no clear period at this `rise`.

    Examples
    --------
    >>> wave = np.exp(np.abs(np.arange(1000) % 100 - 50) / 50)
    >>> run = xr.Dataset({"norm": ("step", wave)}, coords={"step": np.arange(1000)}, attrs={"lr": 0.1, "wd": 0.1})
    >>> find_periods(run, discard=0).mean
    100.0
    """
    found = _found(trajectory, rise, discard)
    if found.outside_growth > OUTSIDE_GROWTH_MAX:
        warnings.warn(
            f"{found.outside_growth:.3g} of the growth of ln ρ lies outside the detected rises, above "
            f"{OUTSIDE_GROWTH_MAX}: no clear period at rise={found.rise:g}",
            stacklevel=2,
        )
    return found


def classify(trajectory: xr.Dataset, *, rise: float = 0.1, discard: int | None = None) -> Classification:
    """Say whether a trajectory is at equilibrium, periodic, or neither, with the numbers that decided.

    - "equilibrium": median rotation >= 0.8 of its equilibrium value *and* standard deviation of ln ρ <= 0.05. That the
      mean of ρ⁴ fits the equilibrium formula proves nothing: it does so on periodic traces too. Never without decay.
    - "periodic": at least 5 periods, at most 0.9 of the growth of ln ρ outside the detected rises, and a period that
      does not double when `rise` is doubled: what does has no length of its own but that of the threshold. Where at
      most 0.25 of the growth is outside, the rises are the whole story, and the second is not asked.
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
    TypeError, ValueError : no single trajectory, an argument out of range, or fewer than two rows after `discard`.

    Warns
    -----
    UserWarning : the rows lie more than 0.01/ηλ steps apart, which biases the periods.

    Source: docs/mathematics.md §2.

    Examples
    --------
    >>> from simulate.maps.norm_map import norm_map
    >>> str(classify(norm_map(0.1, 0.01, 2.0, norm=2.1, steps=5000)))
    'equilibrium'
    """
    check_trajectory(trajectory, "rotation", single=True)
    # the verdict itself says where no period is clear
    periods = _found(trajectory, rise, discard)
    settled = rows_after_transient(trajectory, discard)
    if len(settled) < 2:
        left_out = (
            f"its first {transient_length(trajectory)}, two relaxation times," if discard is None else f"{discard}"
        )
        raise ValueError(
            f"trajectory must have rows left after `discard`, got fewer than two of {trajectory.sizes['step']}: "
            f"{left_out} steps are left out; train longer, or give a smaller discard"
        )
    lr, wd = (
        np.asarray(each.values[settled] if each.ndim else each.values, dtype=float)
        for each in (setting_variable(trajectory, name) for name in ("lr", "wd"))
    )
    expected = theory.equilibrium_rotation(
        lr,
        wd,
        grad_norm=_root_mean_square(trajectory, settled),
        optimizer=parse_optimizer(_optimizer(trajectory)),
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = float(np.median(trajectory.rotation.values[settled] / expected))
    log_norm = np.log(trajectory.norm.values[settled])
    sd = float(log_norm.std())
    coarse = _periods(trajectory, settled, 2 * periods.rise)
    found = (periods.count > 0, coarse.count > 0)
    threshold_ratio = {(True, True): coarse.mean / periods.mean, (True, False): math.inf}.get(found, math.nan)
    return Classification(
        verdict=verdict_from(ratio, sd, periods.count, periods.outside_growth, threshold_ratio),
        rotation_ratio=ratio,
        log_norm_sd=sd,
        typical_norm=math.exp(log_norm.mean()),
        norm_quantiles=tuple(np.exp(np.quantile(log_norm, QUANTILES)).tolist()),
        autocorrelation_time=autocorrelation_time(
            trajectory.step.values[settled],
            log_norm,
            1 / (_LOOKS * periods.intrinsic_lr) if periods.intrinsic_lr else 1,
        ),
        threshold_ratio=threshold_ratio,
        periods=periods,
    )


def _found(trajectory: xr.Dataset, rise: float, discard: int | None) -> MeasuredPeriods:
    """Check, and find the periods without a word on how clear they are."""
    check_trajectory(trajectory, single=True)
    rise = check_number("rise", rise, above=0)
    intrinsic_lr = mean_intrinsic_lr(trajectory)
    settled = rows_after_transient(trajectory, discard)
    step = trajectory.step.values[settled]
    if intrinsic_lr > 0 and step.size > 1 and np.diff(step).max() > max(1, 0.01 / intrinsic_lr):
        warnings.warn(
            f"rows lie {int(np.diff(step).max())} steps apart; periods are biased above "
            f"0.01/(lr*wd) = {0.01 / intrinsic_lr:.3g}",
            stacklevel=3,
        )
    return _periods(trajectory, settled, rise)


def _periods(trajectory: xr.Dataset, settled: npt.NDArray[np.int64], rise: float) -> MeasuredPeriods:
    """Periods of these rows."""
    step, norm = trajectory.step.values[settled], trajectory.norm.values[settled]
    troughs, peaks = zigzag(np.log(norm), rise)
    onsets = step[troughs]
    return MeasuredPeriods(
        onsets=onsets,
        lengths=np.diff(onsets).astype(np.float64),
        trough_norms=norm[troughs[:-1]],
        peak_norms=norm[peaks[: max(len(troughs) - 1, 0)]],
        rise=rise,
        intrinsic_lr=mean_intrinsic_lr(trajectory),
        decay=_decay(trajectory),
    )


def transient_length(trajectory: xr.Dataset) -> int:
    """Number of steps at the start of a run that belong to its beginning, two relaxation times.

    Examples
    --------
    >>> transient_length(xr.Dataset(attrs={"lr": 0.1, "wd": 0.01}))
    2000
    >>> transient_length(xr.Dataset(attrs={"lr": 0.1, "wd": 0.01, "optimizer": "SGD(momentum=0.9)"}))
    179
    """
    intrinsic_lr = mean_intrinsic_lr(trajectory)
    rule = parse_if_known(_optimizer(trajectory))
    if 0 < intrinsic_lr < 1 and isinstance(rule, theory.SGD) and rule.momentum:
        return round(2 / float(theory.free_decay(1.0, intrinsic_lr, optimizer=rule)))
    return round(2 / intrinsic_lr) if intrinsic_lr > 0 else 0


def _decay(trajectory: xr.Dataset) -> float:
    intrinsic_lr = mean_intrinsic_lr(trajectory)
    if not 0 < intrinsic_lr < 1:
        return math.nan
    return float(theory.free_decay(1.0, intrinsic_lr, optimizer=parse_optimizer(_optimizer(trajectory))))


def _optimizer(trajectory: xr.Dataset) -> str:
    """Text of the optimizer: a coordinate where it is swept, an attribute otherwise; what is held fixed is no part."""
    swept = trajectory.coords.get("optimizer")
    told = trajectory.attrs.get("optimizer", "SGD()") if swept is None else swept.item()
    return str(told).partition(CONSTRAINT_MARK)[0]


def _root_mean_square(trajectory: xr.Dataset, rows: npt.NDArray[np.int64]) -> float:
    """Typical g̃, which some optimizers' rotation depends on; 1 where it is not known."""
    with np.errstate(over="ignore"):
        known = float(np.sqrt(np.mean(trajectory.grad_norm.values[rows] ** 2))) if "grad_norm" in trajectory else 1.0
    return known if known > 0 and math.isfinite(known) else 1.0


def after_transient(trajectory: xr.Dataset, discard: int | None = None) -> xr.Dataset:
    """Rows of one run after its first `discard` steps (default as in `find_periods`) with a finite norm > 0.

    Examples
    --------
    >>> run = xr.Dataset({"norm": ("step", np.ones(30))}, coords={"step": np.arange(30)}, attrs={"lr": 1.0, "wd": 0.1})
    >>> after_transient(run).step.values.tolist()[:2]
    [20, 21]
    """
    return trajectory.isel(step=rows_after_transient(trajectory, discard))


def rows_after_transient(trajectory: xr.Dataset, discard: int | None = None) -> npt.NDArray[np.int64]:
    """Numbers of the rows of `after_transient`.

    Examples
    --------
    >>> run = xr.Dataset({"norm": ("step", np.ones(30))}, coords={"step": np.arange(30)}, attrs={"lr": 1.0, "wd": 0.1})
    >>> len(rows_after_transient(run))
    10
    """
    if discard is None:
        discard = transient_length(trajectory)
    discard = check_integer("discard", discard)
    step, norm = trajectory.step.values, trajectory.norm.values
    kept = np.isfinite(norm) & (norm > 0) & (step >= (step[0] if step.size else 0) + discard)
    return np.flatnonzero(kept)


@numba.njit(cache=True, nogil=True)
def zigzag(values: Any, rise: float) -> Any:
    """Indices of alternating troughs and peaks; each trough is confirmed by a rise, each peak by a fall."""
    troughs = np.empty(values.size, dtype=np.int64)
    peaks = np.empty(values.size, dtype=np.int64)
    found_troughs = found_peaks = 0
    low = high = 0
    direction = 0
    for i in range(values.size):
        if values[i] > values[high]:
            high = i
        if values[i] < values[low]:
            low = i
        if direction >= 0 and values[high] - values[i] >= rise:
            if found_troughs > 0:
                peaks[found_peaks] = high
                found_peaks += 1
            direction = -1
            low = i
        elif direction <= 0 and values[i] - values[low] >= rise:
            # a rise from the very first value has no known beginning
            if low > 0:
                troughs[found_troughs] = low
                found_troughs += 1
            direction = 1
            high = i
    return troughs[:found_troughs], peaks[:found_peaks]
