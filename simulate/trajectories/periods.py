"""Find the periods of a trajectory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

import theory
from simulate._compilation import compile_cached
from simulate.trajectories.contract import check_trajectory
from simulate.trajectories.setting import Setting
from simulate.trajectories.verdicts import OUTSIDE_GROWTH_MAX
from theory.arguments import check_integer, check_number, warn_user


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
    periods = check_and_find(trajectory, rise, discard)
    if periods.outside_growth > OUTSIDE_GROWTH_MAX:
        warn_user(
            f"{periods.outside_growth:.3g} of the growth of ln ρ lies outside the detected rises, above "
            f"{OUTSIDE_GROWTH_MAX}: no clear period at rise={periods.rise:g}"
        )
    return periods


def check_and_find(trajectory: xr.Dataset, rise: float, discard: int | None) -> MeasuredPeriods:
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
    return periods_of_rows(trajectory, settled, rise)


def periods_of_rows(trajectory: xr.Dataset, settled: npt.NDArray[np.int64], rise: float) -> MeasuredPeriods:
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
    return round(min(2 / intrinsic_lr, 2**62)) if intrinsic_lr > 0 else 0


def _decay(setting: Setting) -> float:
    if not 0 < setting.intrinsic_lr < 1:
        return math.nan
    return float(theory.free_decay(1.0, setting.intrinsic_lr, optimizer=setting.known_optimizer()))


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


@compile_cached()
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
