"""Law of the period of one network: norm rise and outside growth at any ηλ, from its calibration runs."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulate.period_model.summaries import CalibrationRun, PooledRuns, pool_runs
from theory.arguments import FloatArray, check_intrinsic_lr, check_lr, check_real, check_wd, quote, to_float

# mean and standard deviation of the slopes of √J and of the log-odds of φ, per factor of e towards small ηλ
Slopes = tuple[tuple[float, float], tuple[float, float]]
# Fitted to 16 networks of 12 families that were used during development (docs/validation.md). `fit_slopes` of the
# networks of docs/held_out.md agrees with them.
TYPICAL_SLOPES: Slopes = ((0.06, 0.07), (-0.8, 0.24))
# standard deviations of √J and of the log-odds of φ of one setting beyond the scatter of its periods
_SETTING_SDS = (0.005, 0.03)
_MIN_OUTSIDE_GROWTH, _MAX_OUTSIDE_GROWTH = 0.01, 0.98  # of measured shares; those beyond are noise
# A larger rise of ln J towards small ηλ, per factor of e or between two settings, is a change of kind.
_MAX_KIND_SLOPE = 0.85
_ROUNDING = 1 + 1e-9  # lr * wd may be off by rounding
_REACH = 12.0  # largest ratio of ηλ to that of the nearest setting
_MIN_ROOT = 0.1  # least √J, far from all settings
_ITERATIONS, _LEAST_SLOPE_SD = 100, 0.01  # of the fit of slopes
_SAMPLES = 400  # bootstrap samples of the calibration runs


@dataclass(frozen=True)
class PeriodLaw:
    """Period of one network at any ηλ: T·(-ln(1-ηλ)) = J/(1-φ), with J and φ interpolated between calibration runs.

    √J and the log-odds of φ are taken to be random functions of ln ηλ. Their slopes vary around values that are typical
    of networks, and change over a factor of e. Given the calibration runs, the best estimate of such a function is
    linear in the measured values (kriging). It follows them where they are precise, and the typical slope far away.

    Norm rises can change their kind: with layer and group normalization they are small at large ηλ, and several times
    as large at small ηλ. Settings on the two sides of such a change do not predict each other. The law then holds
    within each kind. Between them, beyond a kind with a single setting, and at more than 12 times or less than a
    twelfth of the nearest ηλ, the period is undetermined.

    Parameters
    ----------
    calibration_runs : summaries of the calibration runs, with at least 10 periods at their lowest ηλ.
    slopes : mean and standard deviation, over networks, of the slopes of √J and of the log-odds of φ.

    Raises
    ------
    ValueError : there are fewer periods, or a standard deviation is not positive.

    Source: docs/mathematics.md §5.

    Examples
    --------
    >>> from simulate import PeriodModel
    >>> law = PeriodModel.reference().law
    >>> 60 < law.period(0.5, 0.02) < 80
    True
    """

    calibration_runs: tuple[CalibrationRun, ...]
    slopes: Slopes = TYPICAL_SLOPES

    def __post_init__(self) -> None:
        if not all(sd > 0 for _, sd in self.slopes):
            raise ValueError(f"slopes must have standard deviations > 0, got {quote(self.slopes)}")
        object.__setattr__(self, "calibration_runs", tuple(self.calibration_runs))
        pool_runs(self.calibration_runs)

    @functools.cached_property
    def kinds(self) -> list[list[PooledRuns]]:
        """Calibrated settings with the same kind of norm rises; largest ηλ first, also within each kind."""
        kinds: list[list[PooledRuns]] = []
        for setting in pool_runs(self.calibration_runs):
            if kinds and not is_change_of_kind(kinds[-1][-1], setting):
                kinds[-1].append(setting)
            else:
                kinds.append([setting])
        return kinds

    @property
    def largest(self) -> float:
        """Largest ηλ of the calibrated settings.

        Examples
        --------
        >>> from simulate import PeriodModel
        >>> PeriodModel.reference().law.largest
        0.01
        """
        return self.kinds[0][0].intrinsic_lr

    def obstacle(self, lr: float, wd: float) -> str:
        """Reason why the period at one setting is undetermined, and what to calibrate next; "" if it is determined.

        Examples
        --------
        >>> from simulate import PeriodModel
        >>> PeriodModel.reference().law.obstacle(0.5, 0.004)
        ''
        """
        intrinsic_lr = lr * wd
        if self._kind_at(intrinsic_lr) is not None:
            return ""
        nearest = self._nearest(intrinsic_lr)
        if not _is_near(intrinsic_lr, nearest):
            return (
                f"lr * wd = {intrinsic_lr:.3g} is far from the nearest calibrated setting, {nearest:.3g}; calibrate at "
                f"{intrinsic_lr:.2g}, too"
            )
        for above, below in zip(self.kinds[:-1], self.kinds[1:], strict=True):
            if below[0].intrinsic_lr < intrinsic_lr < above[-1].intrinsic_lr:
                middle = math.sqrt(below[0].intrinsic_lr * above[-1].intrinsic_lr)
                return (
                    f"the norm rises change from J = {above[-1].norm_rise:.2g} at lr * wd = "
                    f"{above[-1].intrinsic_lr:.3g} to {below[0].norm_rise:.2g} at {below[0].intrinsic_lr:.3g}; "
                    f"calibrate at {middle:.2g}, too"
                )
        (only,) = self.kinds[-1]
        return (
            f"only the setting lr * wd = {only.intrinsic_lr:.3g} has norm rises as large as J = {only.norm_rise:.2g}; "
            f"calibrate at {intrinsic_lr:.2g}, too"
        )

    def norm_rise_at(self, intrinsic: Any) -> FloatArray:
        """Norm rise J at ηλ; NaN where it is undetermined.

        Examples
        --------
        >>> from simulate import PeriodModel
        >>> bool(PeriodModel.reference().law.norm_rise_at(0.001) > 0.7)
        True
        """
        return _norm_rise(self._estimates(intrinsic)[..., 0])

    def outside_growth_at(self, intrinsic: Any) -> FloatArray:
        """Share φ of growth outside destabilizations at ηλ; NaN where it is undetermined.

        Examples
        --------
        >>> from simulate import PeriodModel
        >>> bool(PeriodModel.reference().law.outside_growth_at(0.001) < 0.2)
        True
        """
        return np.asarray(1 / (1 + np.exp(-self._estimates(intrinsic)[..., 1])))

    def period(self, lr: Any, wd: Any) -> Any:
        """Mean period T in steps.

        Parameters
        ----------
        lr, wd : η > 0, λ > 0, ηλ < 1; numbers or arrays that broadcast.

        Returns
        -------
        T: float or array; NaN where it is undetermined, and `obstacle` says why.

        Raises
        ------
        TypeError, ValueError : an argument is not a number or is out of range.
        """
        lr, wd = check_lr(lr), check_real("wd", wd, above=0)
        intrinsic_lr = check_intrinsic_lr(lr, check_wd(wd), below=1.0)
        return to_float(_period(self._estimates(intrinsic_lr), intrinsic_lr))

    def sample_periods(self, lr: float, wd: float) -> FloatArray:
        """Periods at one setting that agree with the calibration runs: array of 400 values; NaN if undetermined.

        Seeds and periods of the calibration runs are resampled. J and φ deviate from the best estimates as those of
        networks do.

        Examples
        --------
        >>> from simulate import PeriodModel
        >>> PeriodModel.reference().law.sample_periods(0.5, 0.004).shape
        (400,)
        """
        number = self._kind_at(lr * wd)
        if number is None:
            return np.full(_SAMPLES, np.nan)
        weights, offset, covariance = self._weights(number, lr * wd)
        deviations = np.random.default_rng([0, 1]).multivariate_normal(np.zeros(2), covariance, _SAMPLES)
        return _period(offset + self._samples[number] @ weights.T + deviations, np.asarray(lr * wd))

    def _kind_at(self, intrinsic_lr: float) -> int | None:
        """Number of the kind of norm rises at ηλ; None where it is unknown."""
        if not _is_near(intrinsic_lr, self._nearest(intrinsic_lr)):
            return None
        for number, kind in enumerate(self.kinds):
            is_first, is_last = number == 0, number == len(self.kinds) - 1
            # a kind of which only one setting is known may change below it
            reaches_down = is_last and (len(kind) > 1 or len(self.kinds) == 1)
            above = is_first or intrinsic_lr <= kind[0].intrinsic_lr * _ROUNDING
            below = reaches_down or intrinsic_lr >= kind[-1].intrinsic_lr / _ROUNDING
            if above and below:
                return number
        return None

    def _nearest(self, intrinsic_lr: float) -> float:
        """Nearest calibrated ηλ, by its ratio; also one at which the network is at equilibrium."""
        settings = (run.intrinsic_lr for run in self.calibration_runs)
        return min(settings, key=lambda other: abs(math.log(other / intrinsic_lr)))

    @functools.cached_property
    def _samples(self) -> list[FloatArray]:
        """Bootstrap samples of √J of all settings, then of their log-odds of φ: an array (sample, number) per kind."""
        random = np.random.default_rng(0)
        return [
            np.array(
                [
                    _coordinates([_resample(setting, self.calibration_runs, random) for setting in kind])
                    for _ in range(_SAMPLES)
                ]
            )
            for kind in self.kinds
        ]

    def _weights(self, number: int, intrinsic_lr: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Best linear estimates of √J and of the log-odds of φ at ηλ from those of the settings of a kind.

        Returns weights (2, number of values), offsets, and the covariance of the errors beyond the scatter of periods.
        """
        place, places = -math.log(intrinsic_lr), -np.log([setting.intrinsic_lr for setting in self.kinds[number]])
        size = places.size
        slope, sd = np.array(self.slopes).T
        # covariances of intrinsic random functions, of which only differences have a variance
        variances = np.diag(-(sd**2))
        covariance = np.kron(variances, _variogram(places[:, np.newaxis] - places))
        towards = np.kron(variances, _variogram(places - place)[:, np.newaxis])
        # J and φ of a setting have correlated errors, because the period is known better than either
        setting_noise = np.kron(np.diag(np.square(_SETTING_SDS)), np.eye(size))
        noise = np.cov(self._samples[number], rowvar=False) * np.kron(np.ones((2, 2)), np.eye(size)) + setting_noise
        # the levels are unknown: the weights of each function add up to 1, and those of the other to 0
        sums = np.kron(np.eye(2), np.ones((1, size)))
        system = np.block([[covariance + noise, sums.T], [sums, np.zeros((2, 2))]])
        weights = np.linalg.solve(system, np.concatenate([towards, np.eye(2)]))[: 2 * size].T
        offset = slope * place - weights @ np.outer(slope, places).ravel()
        errors = weights @ covariance @ weights.T - weights @ towards - towards.T @ weights.T
        return weights, offset, errors + weights @ setting_noise @ weights.T

    def slopes_of_kinds(self) -> list[tuple[FloatArray, FloatArray, float]]:
        """Slopes of √J and of the log-odds of φ from the first to the last setting of each kind.

        Returns slopes, their variances from the scatter of periods, and the share of the variance between networks that
        they have, because slopes change over a factor of e. Kinds with a single setting have none.
        """
        slopes = []
        for kind, samples in zip(self.kinds, self._samples, strict=True):
            size = len(kind)
            if size < 2:
                continue
            distance = math.log(kind[0].intrinsic_lr / kind[-1].intrinsic_lr)
            difference = np.kron(np.eye(2), np.r_[-1.0, np.zeros(size - 2), 1.0])
            noise = np.diag(difference @ np.cov(samples, rowvar=False) @ difference.T) + 2 * np.square(_SETTING_SDS)
            share = 2 * float(_variogram(np.asarray(distance))) / distance**2
            slopes.append((difference @ _coordinates(kind) / distance, noise / distance**2, share))
        return slopes

    def _estimates(self, intrinsic: Any) -> FloatArray:
        """Best estimates of √J and of the log-odds of φ at ηλ, along the last axis; NaN where undetermined."""
        intrinsic_lrs = np.asarray(intrinsic, dtype=float)
        estimates = np.full((*intrinsic_lrs.shape, 2), np.nan)
        for index in np.ndindex(intrinsic_lrs.shape):
            number = self._kind_at(float(intrinsic_lrs[index]))
            if number is not None:
                weights, offset, _ = self._weights(number, float(intrinsic_lrs[index]))
                estimates[index] = offset + weights @ _coordinates(self.kinds[number])
        return estimates


def fit_slopes(laws: Iterable[PeriodLaw]) -> Slopes:
    """Fit mean and standard deviation of the slopes of networks, from their calibration runs alone.

    Raises
    ------
    ValueError : fewer than two kinds of norm rises have several settings.

    Source: weights as in Paule and Mandel 1982, doi:10.6028/jres.087.022, with a variance that differs between kinds.

    Examples
    --------
    >>> from simulate import PeriodModel
    >>> fit_slopes([PeriodModel.reference().law])
    Traceback (most recent call last):
    ...
    ValueError: laws must have at least two kinds of norm rises with several settings, got 1
    """
    measured = [slopes for law in laws for slopes in law.slopes_of_kinds()]
    if len(measured) < 2:
        raise ValueError(f"laws must have at least two kinds of norm rises with several settings, got {len(measured)}")
    shares = np.array([share for *_, share in measured])

    def fit(values: FloatArray, noise: FloatArray) -> tuple[float, float]:
        mean, variance = float(values.mean()), float(values.var(ddof=1))
        for _ in range(_ITERATIONS):
            weights = 1 / (noise + variance * shares)
            mean = float(weights @ values / weights.sum())
            squares = (values - mean) ** 2 * values.size / (values.size - 1)
            excess = weights @ (squares - noise) / (weights @ shares)
            variance = max(float(excess), _LEAST_SLOPE_SD**2)
        return mean, math.sqrt(variance)

    root, odds = (
        fit(np.array([slopes[i] for slopes, _, _ in measured]), np.array([noise[i] for _, noise, _ in measured]))
        for i in range(2)
    )
    return root, odds


def is_change_of_kind(above: PooledRuns, below: PooledRuns) -> bool:
    """Whether the norm rise grows too steeply from one setting to the next lower ηλ for one kind of destabilization.

    Examples
    --------
    >>> is_change_of_kind(PooledRuns(0.01, 50, 50.0, 0.2), PooledRuns(0.002, 50, 700.0, 1.3))
    True
    """
    distance = math.log(above.intrinsic_lr / below.intrinsic_lr)
    return math.log(below.norm_rise / above.norm_rise) > _MAX_KIND_SLOPE * min(distance, 1.0)


def _is_near(intrinsic_lr: float, nearest: float) -> bool:
    return abs(math.log(intrinsic_lr / nearest)) <= math.log(_REACH)


def _variogram(distance: FloatArray) -> FloatArray:
    """Half the variance of the difference of a function at two places.

    Its slope is an Ornstein-Uhlenbeck process of variance 1 and correlation length 1.
    """
    length = np.abs(distance)
    return np.asarray(length + np.expm1(-length))


def _coordinates(settings: Sequence[PooledRuns]) -> FloatArray:
    """Return √J of all settings, then their log-odds of φ."""
    shares = np.clip([setting.outside_growth for setting in settings], _MIN_OUTSIDE_GROWTH, _MAX_OUTSIDE_GROWTH)
    return np.concatenate([np.sqrt([setting.norm_rise for setting in settings]), np.log(shares / (1 - shares))])


def _norm_rise(roots: FloatArray) -> FloatArray:
    return np.asarray(np.maximum(roots, _MIN_ROOT) ** 2)


def _period(estimates: FloatArray, intrinsic_lr: FloatArray) -> FloatArray:
    """T from √J and the log-odds of φ."""
    return np.asarray(_norm_rise(estimates[..., 0]) * (1 + np.exp(estimates[..., 1])) / -np.log1p(-intrinsic_lr))


def _resample(
    setting: PooledRuns, calibration_runs: Sequence[CalibrationRun], random: np.random.Generator
) -> PooledRuns:
    """Resample the seeds, and the periods of each seed, with replacement."""
    group = [run for run in calibration_runs if run.intrinsic_lr == setting.intrinsic_lr and run.count]
    lengths, rises = [], []
    for number in random.integers(len(group), size=len(group)):
        run = group[number]
        if not run.lengths:
            # only the mean of the periods is known
            relative = random.normal(1, run.period_stderr / run.period) if run.period_stderr > 0 else 1.0
            lengths.append(np.full(run.count, run.period * relative))
            rises.append(np.full(run.count, run.norm_rise * relative))
            continue
        chosen = random.integers(len(run.lengths), size=len(run.lengths))
        lengths.append(np.asarray(run.lengths)[chosen])
        rises.append(np.asarray(run.rises)[chosen])
    period, norm_rise = float(np.concatenate(lengths).mean()), float(np.concatenate(rises).mean())
    return PooledRuns(setting.intrinsic_lr, sum(part.size for part in lengths), period, norm_rise)
