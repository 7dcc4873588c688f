"""Bootstrap intervals of predicted periods: seeds and periods of the calibration runs are resampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulate.period_model.calibration import CalibrationRun, PooledRuns, fit_balance_law, pool_runs


@dataclass(frozen=True)
class Interval:
    """Interval of a predicted period.

    Attributes
    ----------
    lower, upper : ends in steps.
    level : share of repeated calibrations whose prediction would lie within the ends.

    Examples
    --------
    >>> print(Interval(90.0, 120.0, 0.9))
    90 … 120 steps (90 %)
    """

    lower: float
    upper: float
    level: float

    def __str__(self) -> str:
        return f"{self.lower:.4g} … {self.upper:.4g} steps ({self.level:.0%})".replace("%", " %")

    @classmethod
    def of(cls, values: npt.ArrayLike, level: float) -> Interval:
        """Return the interval that leaves out equal shares of the values at both ends.

        Examples
        --------
        >>> print(Interval.of(range(101), 0.9))
        5 … 95 steps (90 %)
        """
        lower, upper = np.quantile(np.asarray(values, dtype=float), [(1 - level) / 2, (1 + level) / 2])
        return cls(float(lower), float(upper), level)


def resample_runs(calibration_runs: Sequence[CalibrationRun], count: int, seed: int) -> Iterator[list[PooledRuns]]:
    """Resample the seeds, and the periods of each seed, with replacement.

    Parameters
    ----------
    calibration_runs : calibration runs with their periods.
    count : number of bootstrap samples.
    seed : seed of the random numbers.

    Yields
    ------
    list of PooledRuns: one for each ηλ of `pool_runs`, the largest first.

    Examples
    --------
    >>> run = CalibrationRun(0.01, 12, 60.0, 5.0, 0.5, 0.2, 1.0, 2.0, lengths=(50.0, 70.0) * 6, rises=(0.4, 0.6) * 6)
    >>> [(sample.intrinsic_lr, sample.count) for (sample,) in resample_runs([run], 2, seed=0)]
    [(0.01, 12), (0.01, 12)]
    """
    random = np.random.default_rng(seed)
    intrinsic_lrs = [pooled.intrinsic_lr for pooled in pool_runs(calibration_runs)]
    groups = [
        [run for run in calibration_runs if run.intrinsic_lr == intrinsic_lr and run.count]
        for intrinsic_lr in intrinsic_lrs
    ]
    for _ in range(count):
        yield [
            _resample(intrinsic_lr, group, random) for intrinsic_lr, group in zip(intrinsic_lrs, groups, strict=True)
        ]


def _resample(intrinsic_lr: float, group: Sequence[CalibrationRun], random: np.random.Generator) -> PooledRuns:
    lengths, rises = [], []
    for number in random.integers(len(group), size=len(group)):
        run = group[number]
        chosen = random.integers(len(run.lengths), size=len(run.lengths))
        lengths.append(np.asarray(run.lengths)[chosen])
        rises.append(np.asarray(run.rises)[chosen])
    period, norm_rise = float(np.concatenate(lengths).mean()), float(np.concatenate(rises).mean())
    return PooledRuns(intrinsic_lr, sum(part.size for part in lengths), period, norm_rise)


def resample_law_periods(
    calibration_runs: Sequence[CalibrationRun], lr: float, wd: float, count: int, seed: int
) -> list[float]:
    """Periods at one setting of the balance laws fitted to `count` bootstrap samples.

    Examples
    --------
    >>> run = CalibrationRun(0.01, 12, 60.0, 5.0, 0.5, 0.2, 1.0, 2.0, lengths=(50.0, 70.0) * 6, rises=(0.4, 0.6) * 6)
    >>> all(50 <= period <= 70 for period in resample_law_periods([run], 0.5, 0.02, count=5, seed=0))
    True
    """
    return [fit_balance_law(sample).period(lr, wd) for sample in resample_runs(calibration_runs, count, seed)]
