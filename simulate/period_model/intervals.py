"""How well a probe knows what is predicted from it: its seeds and periods, drawn again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulate.period_model.calibration import CalibrationRun, PooledRuns, fit_balance_law, pool_runs


@dataclass(frozen=True)
class Interval:
    """An interval of a predicted period.

    Attributes
    ----------
    lower, upper : steps.
    level : share of repeated probes whose prediction would lie in it.

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
        """Interval that leaves out equal shares of values at both ends.

        Examples
        --------
        >>> print(Interval.of(range(101), 0.9))
        5 … 95 steps (90 %)
        """
        lower, upper = np.quantile(np.asarray(values, dtype=float), [(1 - level) / 2, (1 + level) / 2])
        return cls(float(lower), float(upper), level)


def resample_runs(calibration_runs: Sequence[CalibrationRun], count: int, seed: int) -> Iterator[list[PooledRuns]]:
    """Draw seeds, and periods of each, again with replacement.

    Parameters
    ----------
    calibration_runs : of a probe, with their periods.
    count : number of draws.
    seed : of the random numbers.

    Yields
    ------
    One for each ηλ of `pool_runs`, the largest first.

    Examples
    --------
    >>> one = CalibrationRun(0.01, 12, 60.0, 5.0, 0.5, 0.2, 1.0, 2.0, lengths=(50.0, 70.0) * 6, rises=(0.4, 0.6) * 6)
    >>> [(drawn.intrinsic_lr, drawn.count) for (drawn,) in resample_runs([one], 2, seed=0)]
    [(0.01, 12), (0.01, 12)]
    """
    random = np.random.default_rng(seed)
    rates = [each.intrinsic_lr for each in pool_runs(calibration_runs)]
    groups = [[each for each in calibration_runs if each.intrinsic_lr == rate and each.count] for rate in rates]
    for _ in range(count):
        yield [_drawn(rate, group, random) for rate, group in zip(rates, groups, strict=True)]


def _drawn(rate: float, group: Sequence[CalibrationRun], random: np.random.Generator) -> PooledRuns:
    lengths, rises = [], []
    for number in random.integers(len(group), size=len(group)):
        segment = group[number]
        chosen = random.integers(len(segment.lengths), size=len(segment.lengths))
        lengths.append(np.asarray(segment.lengths)[chosen])
        rises.append(np.asarray(segment.rises)[chosen])
    period, norm_rise = float(np.concatenate(lengths).mean()), float(np.concatenate(rises).mean())
    return PooledRuns(rate, sum(part.size for part in lengths), period, norm_rise)


def resample_law_periods(
    calibration_runs: Sequence[CalibrationRun], lr: float, wd: float, count: int, seed: int
) -> list[float]:
    """Periods of the balance law at a setting, fitted to each draw.

    Examples
    --------
    >>> one = CalibrationRun(0.01, 12, 60.0, 5.0, 0.5, 0.2, 1.0, 2.0, lengths=(50.0, 70.0) * 6, rises=(0.4, 0.6) * 6)
    >>> all(50 <= period <= 70 for period in resample_law_periods([one], 0.5, 0.02, count=5, seed=0))
    True
    """
    return [fit_balance_law(seen).period(lr, wd) for seen in resample_runs(calibration_runs, count, seed)]
