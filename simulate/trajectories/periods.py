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
from simulate.trajectories.contract import check_trajectory, intrinsic_lr, setting
from theory.arguments import one_real, whole_number
from theory.optimizers import optimizer_named

EQUILIBRIUM, PERIODIC, NO_CLEAR_PERIOD = "equilibrium", "periodic", "no clear period"

# What `classify` asks for; reasons in its docstring.
ROTATION_RATIO_MIN, LOG_NORM_SD_MAX, OUTSIDE_GROWTH_MAX, PERIODS_MIN = 0.8, 0.05, 0.9, 5


@dataclass(frozen=True)
class Periods:
    """Periods found in one trajectory, from trough to trough of the norm.

    Attributes
    ----------
    onsets : step numbers of the troughs at which a destabilization begins, shape (count+1,); empty without troughs.
    lengths : steps between them, shape (count,).
    norm_min, norm_max : ρ at the trough that begins each period and at its peak, shape (count,).
    rise : the rise d of ln ρ that counts as a destabilization.
    intrinsic_lr : ηλ.
    """

    onsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.float64]
    norm_min: npt.NDArray[np.float64] = field(repr=False)
    norm_max: npt.NDArray[np.float64] = field(repr=False)
    rise: float
    intrinsic_lr: float

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
    def jump(self) -> float:
        """J: mean of ln(norm_max/norm_min)."""
        return float(np.log(self.norm_max / self.norm_min).mean()) if self.count else math.nan

    @property
    def outside_growth(self) -> float:
        """φ: share of all growth of ln ρ that lies outside the detected rises; T·(-ln(1-ηλ)) = J/(1-φ).

        NaN without periods, and unless 0 < ηλ < 1.
        """
        if not (self.count and 0 < self.intrinsic_lr < 1):
            return math.nan
        return 1 - self.jump / (-math.log1p(-self.intrinsic_lr) * self.mean)


@dataclass(frozen=True)
class Classification:
    """A verdict, and the numbers that decided.

    Attributes
    ----------
    verdict : "equilibrium", "periodic" or "no clear period".
    rotation_ratio : median rotation over its equilibrium value.
    log_norm_sd : standard deviation of ln ρ.
    periods : what `find_periods` gave.
    """

    verdict: str
    rotation_ratio: float
    log_norm_sd: float
    periods: Periods = field(repr=False)

    def __str__(self) -> str:
        return self.verdict


def find_periods(trajectory: xr.Dataset, *, rise: float = 0.1, discard: int | None = None) -> Periods:
    """Find the periods of one trajectory: zigzag of ln ρ with hysteresis `rise`.

    A destabilization begins at a trough of ln ρ that is followed by a rise of at least `rise`; two of them are
    separated by a fall of at least `rise`. A period lasts from trough to trough.

    Parameters
    ----------
    trajectory : one run.
    rise : d > 0, in units of ln ρ.
    discard : steps to leave out at the start; default 2/ηλ.

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
    - "periodic": at least 5 periods, and at most 0.9 of the growth of ln ρ outside the detected rises.
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
    settled = settled_rows(trajectory, discard)
    if len(settled) < 2:
        raise ValueError("trajectory must have rows left after `discard`, got fewer than two")
    lr = setting(trajectory, "lr")
    expected = theory.equilibrium_rotation(
        np.asarray(lr.values[settled] if lr.ndim else lr.values, dtype=float),
        float(setting(trajectory, "wd").values),
        grad_norm=_root_mean_square(trajectory, settled),
        optimizer=optimizer_named(_optimizer(trajectory)),
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = float(np.median(trajectory.rotation.values[settled] / expected))
    sd = float(np.log(trajectory.norm.values[settled]).std())
    if ROTATION_RATIO_MIN <= ratio < math.inf and sd <= LOG_NORM_SD_MAX:
        verdict = EQUILIBRIUM
    elif periods.count >= PERIODS_MIN and periods.outside_growth <= OUTSIDE_GROWTH_MAX:
        verdict = PERIODIC
    else:
        verdict = NO_CLEAR_PERIOD
    return Classification(verdict=verdict, rotation_ratio=ratio, log_norm_sd=sd, periods=periods)


def _found(trajectory: xr.Dataset, rise: float, discard: int | None) -> Periods:
    """Check, and find the periods without a word on how clear they are."""
    check_trajectory(trajectory, single=True)
    rise = one_real("rise", rise, above=0)
    k = intrinsic_lr(trajectory)
    settled = settled_rows(trajectory, discard)
    step, norm = trajectory.step.values[settled], trajectory.norm.values[settled]
    if k > 0 and step.size > 1 and np.diff(step).max() > max(1, 0.01 / k):
        warnings.warn(
            f"rows lie {int(np.diff(step).max())} steps apart; periods are biased above 0.01/(lr*wd) = {0.01 / k:.3g}",
            stacklevel=3,
        )
    troughs, peaks = _zigzag(np.log(norm), rise)
    onsets = step[troughs]
    return Periods(
        onsets=onsets,
        lengths=np.diff(onsets).astype(np.float64),
        norm_min=norm[troughs[:-1]],
        norm_max=norm[peaks[: max(len(troughs) - 1, 0)]],
        rise=rise,
        intrinsic_lr=k,
    )


def _optimizer(trajectory: xr.Dataset) -> str:
    """Text of the optimizer: a coordinate where it is swept, an attribute otherwise; what is held fixed is no part."""
    swept = trajectory.coords.get("optimizer")
    told = trajectory.attrs.get("optimizer", "SGD()") if swept is None else swept.item()
    return str(told).partition(" with fixed ")[0]


def _root_mean_square(trajectory: xr.Dataset, rows: npt.NDArray[np.int64]) -> float:
    """Typical g̃, which some optimizers' rotation depends on; 1 where it is not known."""
    with np.errstate(over="ignore"):
        known = float(np.sqrt(np.mean(trajectory.grad_norm.values[rows] ** 2))) if "grad_norm" in trajectory else 1.0
    return known if known > 0 and math.isfinite(known) else 1.0


def settled_part(trajectory: xr.Dataset, discard: int | None = None) -> xr.Dataset:
    """Rows of one run after its first `discard` steps (default 2/ηλ) with a finite norm > 0.

    Examples
    --------
    >>> run = xr.Dataset({"norm": ("step", np.ones(30))}, coords={"step": np.arange(30)}, attrs={"lr": 1.0, "wd": 0.1})
    >>> settled_part(run).step.values.tolist()[:2]
    [20, 21]
    """
    return trajectory.isel(step=settled_rows(trajectory, discard))


def settled_rows(trajectory: xr.Dataset, discard: int | None = None) -> npt.NDArray[np.int64]:
    """Numbers of the rows of `settled_part`.

    Examples
    --------
    >>> run = xr.Dataset({"norm": ("step", np.ones(30))}, coords={"step": np.arange(30)}, attrs={"lr": 1.0, "wd": 0.1})
    >>> len(settled_rows(run))
    10
    """
    if discard is None:
        k = intrinsic_lr(trajectory)
        discard = round(2 / k) if k > 0 else 0
    discard = whole_number("discard", discard)
    step, norm = trajectory.step.values, trajectory.norm.values
    kept = np.isfinite(norm) & (norm > 0) & (step >= (step[0] if step.size else 0) + discard)
    return np.flatnonzero(kept)


@numba.njit(cache=True, nogil=True)
def _zigzag(values: Any, rise: float) -> Any:
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
