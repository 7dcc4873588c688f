"""The reduced model of a network: norm and loss that fall between breaks, and breaks at random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simulate.maps.noise import stream_key
from simulate.period_model import _kernel
from theory.arguments import FloatArray, check_integer, check_number

_WALKERS = 16
_LOOKS = 100  # looks of the period finder per relaxation 1/ηλ: those it asks for
_LONGEST = 400  # relaxations without the wanted periods


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
class PredictedPeriod:
    """Predicted periods of one setting.

    Attributes
    ----------
    mean, std, stderr : length of a period in steps: its mean, its spread from period to period, and the standard error
        of the mean from the number of simulated periods alone.
    count : simulated periods.
    trough_norm, peak_norm : ρ at the troughs and at the peaks, geometric means.
    effective_lr_max : η/ρ² at `trough_norm`, where a destabilization begins.
    norm_rise, outside_growth : J and φ of the simulated trace.
    """

    mean: float
    std: float
    stderr: float
    count: int
    trough_norm: float
    peak_norm: float
    effective_lr_max: float
    norm_rise: float
    outside_growth: float


@dataclass(frozen=True)
class ReducedModel:
    """Constants of the reduced model, and its simulation for η = 1.

    Between two breaks the loss L and the norm, z = ρ/√η, fall,

        L⁺ = L/(1 + c η̃L),   ln z⁺ = ln z + ln(1-ηλ) + min(½k(η̃L)², 2ηλ),   η̃ = 1/z²;

    a break begins at a step with probability 1-exp(-h), ln h = a + ln L + p ln η̃; there ln z rises to
    b₀ + b₁ ln z + b₂ ln L + s·N(0,1) and ln L to the random loss from which the next fall begins.

    Parameters
    ----------
    loss_decay, growth : c and k.
    hazard : (a, p).
    peak_coefficients : (b₀, b₁, b₂), and `peak_residual_sd` s.
    peak_loss, peak_loss_sd : e to the mean of ln L at the beginning of a fall, and the standard deviation of ln L.
    duration : steps of a rise.
    rise : d of the period finder.
    reference : ηλ to which the trends are relative: the largest they were measured at.
    lowest : the smallest. Beyond the two, what was measured there is held: that the power laws go on proved wrong.
    peak : ln z of a typical peak, where a simulation starts.

    Raises
    ------
    TypeError, ValueError : a constant is no number or out of range.

    Source: docs/mathematics.md §5.

    Examples
    --------
    >>> from simulate import PeriodModel
    >>> reduced_model = PeriodModel.reference().reduced_model
    >>> 60 < reduced_model.simulate(0.01, periods=200, seed=0).mean < 80
    True
    """

    loss_decay: Trend
    growth: Trend
    hazard: tuple[float, float]
    peak_coefficients: tuple[float, float, float]
    peak_residual_sd: float
    peak_loss: Trend
    peak_loss_sd: Trend
    duration: Trend
    rise: float
    reference: float
    lowest: float
    peak: float

    def __post_init__(self) -> None:
        for name in ("loss_decay", "growth", "peak_loss", "peak_loss_sd", "duration"):
            check_number(name, getattr(self, name).value, above=0)
            check_number(name, getattr(self, name).power)
        for name, size in (("hazard", 2), ("peak_coefficients", 3)):
            values = getattr(self, name)
            if len(values) != size:
                raise ValueError(f"{name} must be {size} numbers, got {values!r}")
            for value in values:
                check_number(name, value)
        check_number("peak_residual_sd", self.peak_residual_sd, at_least=0)
        check_number("rise", self.rise, above=0)
        check_number("reference", self.reference, above=0, below=1)
        check_number("lowest", self.lowest, above=0, at_most=self.reference)
        check_number("peak", self.peak)

    def constants(self, rate: float) -> list[float]:
        """Those of the compiled loop at ηλ = `rate`, in the order of `simulate.period_model._kernel`.

        Examples
        --------
        >>> from simulate import PeriodModel
        >>> len(PeriodModel.reference().reduced_model.constants(0.01)) == _kernel.CONSTANTS
        True
        """
        relative = min(max(rate, self.lowest), self.reference) / self.reference
        return [
            math.log1p(-rate),
            self.loss_decay.at(relative),
            self.growth.at(relative),
            *self.hazard,
            *self.peak_coefficients,
            self.peak_residual_sd,
            math.log(self.peak_loss.at(relative)),
            self.peak_loss_sd.at(relative),
            max(1.0, round(self.duration.at(relative))),
        ]

    def initial_state(
        self, log_norm: FloatArray, constants: FloatArray, seed: int, walker: npt.NDArray[Any]
    ) -> FloatArray:
        """State of walkers that begin a fall at this ln z, one row for each.

        Examples
        --------
        >>> from simulate import PeriodModel
        >>> reduced_model = PeriodModel.reference().reduced_model
        >>> own = np.array([reduced_model.constants(0.01)])
        >>> reduced_model.initial_state(np.array([2.0]), own, 0, np.array([0]))[0, _kernel.LOG_NORM]
        np.float64(2.0)
        """
        state = np.zeros((len(constants), len(_kernel.STATES)))
        state[:, _kernel.LOG_NORM] = log_norm
        state[:, _kernel.LOSS] = np.exp(constants[:, _kernel.PEAK_LOSS])
        for one, own, number in zip(state, constants, walker, strict=True):
            _kernel.begin_fall(one, own, np.uint64(stream_key(np.uint64(seed), number)), self.rise)
        return state

    def simulate(self, rate: float, periods: int, seed: int) -> PredictedPeriod:
        """Periods for η = 1; NaN where there are less than two in 400 relaxation times.

        Parameters
        ----------
        rate : ηλ, between 0 and 1.
        periods : how many, at least 2; more than 16 are rounded up to a multiple of 16.
        seed : of the random numbers.

        Raises
        ------
        TypeError, ValueError : an argument is no number or out of range.

        Examples
        --------
        >>> from simulate import PeriodModel
        >>> PeriodModel.reference().reduced_model.simulate(0.01, periods=20, seed=0).count
        32
        """
        rate = check_number("rate", rate, above=0, below=1)
        periods, seed = check_integer("periods", periods, at_least=2), check_integer("seed", seed, at_most=2**63 - 1)
        walkers = min(_WALKERS, periods)
        each = -(-periods // walkers)
        constants = np.array([self.constants(rate)] * walkers)
        state = self.initial_state(np.full(walkers, self.peak), constants, seed, np.arange(walkers))
        statistics = np.zeros((walkers, _kernel.STATISTICS))
        statistics[:, _kernel.HIGH], statistics[:, _kernel.LOW] = -np.inf, np.inf
        begin, chunk = 0, max(1, math.ceil((2 + each) / rate))
        while begin * rate < _LONGEST + 4 * each and (statistics[:, _kernel.COUNT] < each).any():
            _kernel.iterate_oscillation(
                state, constants, np.uint64(seed), np.arange(walkers), begin, chunk, 0, np.empty((3, 0, 0)), statistics,
                round(2 / rate), sampling_interval(rate), each, self.rise, self.rise,
            )  # fmt: skip
            begin += chunk
        sums = statistics.sum(axis=0)
        count = int(sums[_kernel.COUNT])
        if count < 2:
            unknown = math.nan
            return PredictedPeriod(unknown, unknown, unknown, count, unknown, unknown, unknown, unknown, unknown)
        mean = float(sums[_kernel.LENGTH]) / count
        std = math.sqrt(max(sums[_kernel.SQ_LENGTH] - count * mean**2, 0) / (count - 1))
        trough, peak = float(sums[_kernel.TROUGHS]) / count, float(sums[_kernel.PEAKS]) / count
        return PredictedPeriod(
            mean=mean,
            std=std,
            stderr=std / math.sqrt(count),
            count=count,
            trough_norm=math.exp(trough),
            peak_norm=math.exp(peak),
            effective_lr_max=math.exp(-2 * trough),
            norm_rise=peak - trough,
            outside_growth=1 - (peak - trough) / (-math.log1p(-rate) * mean),
        )


def sampling_interval(intrinsic_lr: float) -> int:
    """Steps between two looks of the period statistics at ηλ: 0.01/ηλ, what `find_periods` asks for.

    Examples
    --------
    >>> sampling_interval(0.002), sampling_interval(0.01)
    (5, 1)
    """
    return max(1, int(1 / (_LOOKS * intrinsic_lr)))
