"""Reduced model of a network: norm and loss decay between destabilizations, which come at random.

The compiled loop is loaded when a simulation starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from theory.arguments import FloatArray, check_integer, check_number, quote

_WALKERS = 16  # simulated side by side
_SAMPLES_PER_RELAXATION = 100  # rows per 1/ηλ that the period finder asks for
_MAX_RELAXATIONS = 400  # after which a simulation without enough periods ends
LEAST_HAZARD_POWER = 1.0


@dataclass(frozen=True)
class Trend:
    """Positive constant of a network that depends on ηλ as a power law: value·(ηλ/reference)^power."""

    value: float
    power: float

    def at(self, relative: float) -> float:
        """Return the value at ηλ = `relative` times the reference."""
        return float(self.value * relative**self.power)

    @classmethod
    def through(cls, relative: Sequence[float], values: Sequence[float]) -> Trend:
        """Fit a power law to values > 0. Two points are fitted exactly; values at a single ηλ give a constant."""
        if len(set(relative)) < 2:
            return cls(float(np.exp(np.mean(np.log(values)))), 0.0)
        power, log_value = np.polyfit(np.log(relative), np.log(values), 1)
        return cls(float(np.exp(log_value)), float(power))


@dataclass(frozen=True)
class SimulatedPeriods:
    """Periods of the reduced model at one setting.

    Attributes
    ----------
    mean, std : mean and standard deviation of the length of a period in steps.
    stderr : standard error of the mean, from the finite number of simulated periods. It does not include the error of
        the model.
    count : number of simulated periods.
    trough_norm, peak_norm : geometric mean of ρ at the troughs and at the peaks.
    effective_lr_at_destabilization : η/ρ² at `trough_norm`, where a destabilization begins.
    norm_rise, outside_growth : J and φ of the simulation.
    """

    mean: float
    std: float
    stderr: float
    count: int
    trough_norm: float
    peak_norm: float
    effective_lr_at_destabilization: float
    norm_rise: float
    outside_growth: float


@dataclass(frozen=True)
class ReducedModel:
    """Reduced model of the norm dynamics of a network: constants, and simulation for η = 1.

    Between two destabilizations the loss L and the norm z = ρ/√η follow

        L⁺ = L/(1 + c η̃L),   ln z⁺ = ln z + ln(1-ηλ) + min(½k(η̃L)², 2ηλ),   η̃ = 1/z².

    A destabilization begins at a step with probability 1-exp(-h), ln h = a + ln L + p ln η̃. In it ln z rises to
    b₀ + b₁ ln z + b₂ ln L + s·N(0,1). The next decay phase begins there, with a random ln L.

    Parameters
    ----------
    loss_decay, growth : c and k.
    hazard : (a, p) with p >= 1; for p < 1 some decay phases would never end.
    peak_coefficients : (b₀, b₁, b₂).
    peak_residual_sd : s.
    peak_loss, peak_loss_sd : exp of the mean, and standard deviation, of ln L at the start of a decay phase.
    duration : number of steps in which the norm rises.
    rise : threshold d of the period finder.
    reference : largest ηλ of the calibration runs, to which the trends are relative.
    lowest : smallest ηλ of the calibration runs. Beyond `reference` and `lowest` the trends are constant, since
        extrapolated power laws gave wrong periods.
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
                raise ValueError(f"{name} must be {size} numbers, got {quote(values)}")
            for value in values:
                check_number(name, value)
        if self.hazard[1] < LEAST_HAZARD_POWER:
            raise ValueError(
                f"hazard must have a power p >= {LEAST_HAZARD_POWER:g}, got {self.hazard[1]:.3g}: the norm could "
                "vanish; calibrate the network again"
            )
        check_number("peak_residual_sd", self.peak_residual_sd, at_least=0)
        check_number("rise", self.rise, above=0)
        check_number("reference", self.reference, above=0, below=1)
        check_number("lowest", self.lowest, above=0, at_most=self.reference)
        check_number("peak", self.peak)

    def constants(self, intrinsic_lr: float) -> list[float]:
        """Constants of the compiled loop at ηλ = `intrinsic_lr`, in the order of `simulate.period_model._kernel`."""
        relative = min(max(intrinsic_lr, self.lowest), self.reference) / self.reference
        return [
            math.log1p(-intrinsic_lr),
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
        """State of walkers at the start of a decay phase with this ln z, one row for each walker."""
        from simulate.maps.noise import stream_key
        from simulate.period_model import _kernel

        state = np.zeros((len(constants), len(_kernel.STATES)))
        state[:, _kernel.LOG_NORM] = log_norm
        state[:, _kernel.LOSS] = np.exp(constants[:, _kernel.PEAK_LOSS])
        for row, walker_constants, number in zip(state, constants, walker, strict=True):
            _kernel.begin_decay(row, walker_constants, np.uint64(stream_key(np.uint64(seed), number)), self.rise)
        return state

    def simulate(self, intrinsic_lr: float, periods: int, seed: int) -> SimulatedPeriods:
        """Simulate periods for η = 1.

        Parameters
        ----------
        intrinsic_lr : intrinsic learning rate ηλ, between 0 and 1.
        periods : number of periods, at least 2. Numbers above 16 are rounded up to a multiple of 16.
        seed : seed of the random numbers.

        Returns
        -------
        SimulatedPeriods: its numbers are NaN with fewer than two periods in 400/ηλ steps.

        Raises
        ------
        TypeError, ValueError : an argument is no number or out of range.

        Examples
        --------
        >>> from simulate import PeriodModel
        >>> PeriodModel.reference().reduced_model.simulate(0.01, periods=20, seed=0).count
        32
        """
        from simulate.period_model import _kernel

        intrinsic_lr = check_number("intrinsic_lr", intrinsic_lr, above=0, below=1)
        periods, seed = check_integer("periods", periods, at_least=2), check_integer("seed", seed, at_most=2**63 - 1)
        walkers = min(_WALKERS, periods)
        periods_each = -(-periods // walkers)
        constants = np.array([self.constants(intrinsic_lr)] * walkers)
        state = self.initial_state(np.full(walkers, self.peak), constants, seed, np.arange(walkers))
        statistics = np.zeros((walkers, _kernel.STATISTICS))
        statistics[:, _kernel.HIGH], statistics[:, _kernel.LOW] = -np.inf, np.inf
        begin, chunk = 0, max(1, math.ceil((2 + periods_each) / intrinsic_lr))
        while (
            begin * intrinsic_lr < _MAX_RELAXATIONS + 4 * periods_each
            and (statistics[:, _kernel.COUNT] < periods_each).any()
        ):
            _kernel.iterate_oscillation(
                state,
                constants,
                np.uint64(seed),
                np.arange(walkers),
                begin,
                chunk,
                0,
                np.empty((3, 0, 0)),
                statistics,
                round(2 / intrinsic_lr),
                sampling_interval(intrinsic_lr),
                periods_each,
                self.rise,
                self.rise,
            )
            begin += chunk
        sums = statistics.sum(axis=0)
        count = int(sums[_kernel.COUNT])
        if count < 2:
            nan = math.nan
            return SimulatedPeriods(nan, nan, nan, count, nan, nan, nan, nan, nan)
        mean = float(sums[_kernel.LENGTH]) / count
        std = math.sqrt(max(sums[_kernel.SQ_LENGTH] - count * mean**2, 0) / (count - 1))
        trough, peak = float(sums[_kernel.TROUGHS]) / count, float(sums[_kernel.PEAKS]) / count
        return SimulatedPeriods(
            mean=mean,
            std=std,
            stderr=std / math.sqrt(count),
            count=count,
            trough_norm=math.exp(trough),
            peak_norm=math.exp(peak),
            effective_lr_at_destabilization=math.exp(-2 * trough),
            norm_rise=peak - trough,
            outside_growth=1 - (peak - trough) / (-math.log1p(-intrinsic_lr) * mean),
        )


def sampling_interval(intrinsic_lr: float) -> int:
    """Steps between two samples of ln z in the period statistics: 0.01/ηλ, as `find_periods` asks for."""
    return max(1, int(1 / (_SAMPLES_PER_RELAXATION * intrinsic_lr)))
