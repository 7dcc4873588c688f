"""Summaries of calibration runs, in numbers alone, so that a prediction loads neither xarray nor numba."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

import theory
from simulate.trajectories.verdicts import EQUILIBRIUM, OUTSIDE_GROWTH_MAX

MIN_PERIODS = 10  # least number of periods at one ηλ for the balance law and the reduced model


@dataclass(frozen=True)
class CalibrationRun:
    """Summary of one calibration run, and the prediction of the reduced model at its setting.

    Parameters
    ----------
    intrinsic_lr : ηλ.
    count, period, period_stderr : number of periods, their mean length and its standard error in steps.
    norm_rise, outside_growth : J and φ.
    trough_norm, peak_norm : geometric mean of ρ/√η at the troughs and at the peaks.
    simulated_period, simulated_trough_norm, simulated_peak_norm : the same numbers from the reduced model.
    run : configuration of the training (the attribute `config` of the trajectory).
    lengths, rises : steps and ln(ρ_max/ρ_min) of each period.
    verdict, rotation_ratio, log_norm_sd, autocorrelation_time, threshold_ratio : as in `simulate.Classification`.
    feedback_score : score of its test for feedback.
    norm : geometric mean of ρ/√η.

    For AdamW and Lion, norms are divided by η instead of √η. Numbers that do not exist are NaN, such as the mean length
    without periods.
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
    feedback_score: float = math.nan

    @property
    def is_clear(self) -> bool:
        """Whether the reduced model can be fitted: at least 10 periods, and φ at most 0.9."""
        return self.count >= MIN_PERIODS and self.outside_growth <= OUTSIDE_GROWTH_MAX

    def __str__(self) -> str:
        return f"{self.verdict} at lr * wd = {self.intrinsic_lr:.3g}, {self.count} periods"


@dataclass(frozen=True)
class PooledRuns:
    """Periods of all calibration runs at one ηλ, or of one bootstrap sample of them; names as in `CalibrationRun`."""

    intrinsic_lr: float
    count: int
    period: float
    norm_rise: float

    @property
    def outside_growth(self) -> float:
        """φ, from the balance of growth and decay."""
        return 1 - self.norm_rise / (-math.log1p(-self.intrinsic_lr) * self.period)


def pool_runs(calibration_runs: Sequence[CalibrationRun]) -> list[PooledRuns]:
    """Pool the periods at each ηλ; return the largest ηλ first.

    Pooling starts at the lowest ηλ and stops at the first with fewer than 10 periods. Settings at equilibrium are left
    out if at least two others remain: the rises of their noise are no destabilizations and make the law too steep.
    """
    pooled: list[PooledRuns] = []
    equilibria = set()
    for intrinsic_lr in sorted({run.intrinsic_lr for run in calibration_runs}):
        runs = [run for run in calibration_runs if run.intrinsic_lr == intrinsic_lr]
        runs_with_periods = [run for run in runs if run.count]
        counts = [run.count for run in runs_with_periods]
        if sum(counts) < MIN_PERIODS:
            break
        if all(run.verdict == EQUILIBRIUM for run in runs):
            equilibria.add(intrinsic_lr)
        period, norm_rise = (
            float(np.average([getattr(run, name) for run in runs_with_periods], weights=counts))
            for name in ("period", "norm_rise")
        )
        pooled.insert(0, PooledRuns(intrinsic_lr, sum(counts), period, norm_rise))
    if not pooled:
        raise ValueError(
            f"calibration_runs must show at least {MIN_PERIODS} periods at the lowest lr * wd to fit the balance law, "
            f"got {'; '.join(map(str, calibration_runs))}"
        )
    off_equilibrium = [setting for setting in pooled if setting.intrinsic_lr not in equilibria]
    return off_equilibrium if len(off_equilibrium) > 1 else pooled


def norm_unit(rule: theory.Optimizer, lr: float) -> float:
    """Unit of norms: √η for SGD, η for AdamW and Lion. At equal ηλ, norms are proportional to it.

    Source: docs/mathematics.md §6.
    """
    return math.sqrt(lr) if isinstance(rule, theory.SGD) else lr
