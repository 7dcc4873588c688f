"""Periods of a network at other learning rates and weight decays, from a probe of it and without further training."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

import theory
from simulate import oscillation
from simulate.intervals import Interval, drawn_law_periods, drawn_segments
from simulate.maps.noise import stream_key
from simulate.probe import Falls, Segment, Trend, balance_law, hazard_law, jump_law
from simulate.trajectories.contract import COMPLETE, check_trajectory, make_trajectory
from simulate.trajectories.folder import write_json
from theory import arguments
from theory.arguments import FloatArray, learning_rate, one_real, weight_decay, whole_number

REACH = 30.0  # predictions are given without a warning down to this share of the largest ηλ of a probe
_WALKERS = 16
_SIMULATED_FOR_INTERVALS = 1000  # periods
_FARTHEST = 1e6  # from here the model comes back to its range without an overflow
_LOOKS = 100  # looks of the period finder per relaxation 1/ηλ: those it asks for


@dataclass(frozen=True)
class Period:
    """Predicted periods of one setting.

    Attributes
    ----------
    mean, std, stderr : length of a period in steps: its mean, its spread from period to period, and the standard error
        of the mean from the number of simulated periods alone.
    count : simulated periods.
    norm_min, norm_max : ρ at the troughs and at the peaks, geometric means.
    effective_lr_max : η/ρ² at `norm_min`, where a destabilization begins.
    jump, outside_growth : J and φ of the simulated trace.
    """

    mean: float
    std: float
    stderr: float
    count: int
    norm_min: float
    norm_max: float
    effective_lr_max: float
    jump: float
    outside_growth: float


@dataclass(frozen=True)
class PeriodModel:
    """The period of a network as a function of lr and wd, calibrated on a probe of that network.

    Between two breaks the loss L and the norm, z = ρ/√η, fall,

        L⁺ = L/(1 + c η̃L),   ln z⁺ = ln z + ln(1-ηλ) + min(½k(η̃L)², 2ηλ),   η̃ = 1/z²;

    a break begins at a step with probability 1-exp(-h), ln h = a + ln L + p ln η̃; there ln z rises to
    b₀ + b₁ ln z + b₂ ln L + s·N(0,1) and ln L to the random loss from which the next fall begins. It is a description
    of plain SGD with mini-batches on a network whose trained weights are all scale-invariant, for one batch size.

    Parameters
    ----------
    law : balance law with the J and φ of the probe.
    loss_decay, growth : c and k.
    hazard : (a, p).
    jump : (b₀, b₁, b₂), and `jump_spread` s.
    peak_loss, peak_loss_sd : e to the mean of ln L at the beginning of a fall, and the standard deviation of ln L.
    duration : steps of a rise.
    rise : d of the period finder.
    segments : of the probe.

    Raises
    ------
    TypeError, ValueError : a constant is no number or out of range.

    Source: docs/mathematics.md §5; arXiv 2106.15739 for the mechanism.

    Examples
    --------
    >>> model = PeriodModel.reference()
    >>> 60 < model.period(0.5, 0.02).mean < 80
    True
    """

    law: theory.BalanceLaw
    loss_decay: Trend
    growth: Trend
    hazard: tuple[float, float]
    jump: tuple[float, float, float]
    jump_spread: float
    peak_loss: Trend
    peak_loss_sd: Trend
    duration: Trend
    rise: float
    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        for name in ("loss_decay", "growth", "peak_loss", "peak_loss_sd", "duration"):
            one_real(name, getattr(self, name).value, above=0)
            one_real(name, getattr(self, name).power)
        for name, size in (("hazard", 2), ("jump", 3)):
            values = getattr(self, name)
            if len(values) != size:
                raise ValueError(f"{name} must be {size} numbers, got {values!r}")
            for value in values:
                one_real(name, value)
        one_real("jump_spread", self.jump_spread, at_least=0)
        one_real("rise", self.rise, above=0)
        if not self.segments:
            raise ValueError("segments must be at least one, got none")

    @classmethod
    def from_probe(cls, segments: Sequence[xr.Dataset], *, rise: float = 0.1) -> PeriodModel:
        """Calibrate the model on measured trajectories of one network.

        Parameters
        ----------
        segments : trajectories with `norm`, `grad_norm` and `loss` at every step, of plain SGD with constant lr, best
            at two values of ηλ (a factor of 5 apart, the larger one the largest that is asked for later) with 100 and
            more periods each. More than one trajectory may have the same ηλ. From one value of ηλ alone the trends
            with ηλ stay unknown and are taken to be flat.
        rise : d of the period finder.

        Returns
        -------
        PeriodModel

        Raises
        ------
        TypeError, ValueError : no such trajectories, fewer than 10 periods in one, or no clear period (φ > 0.9).

        Source: docs/mathematics.md §5.

        Examples
        --------
        >>> reference = PeriodModel.reference()
        >>> probe = [reference.oscillate(0.5, wd, steps=round(50 / wd), seed=1) for wd in (0.02, 0.004)]
        >>> again = PeriodModel.from_probe(probe)
        >>> abs(again.period(0.5, 0.01).mean / reference.period(0.5, 0.01).mean - 1) < 0.2
        True
        """
        rise = one_real("rise", rise, above=0)
        if isinstance(segments, xr.Dataset) or not segments:
            raise TypeError("segments must be a sequence of trajectories, at least one")
        seen = sorted((Falls(each, rise, f"segments[{i}]") for i, each in enumerate(segments)), key=lambda s: -s.rate)
        reference = seen[0].rate
        relative = [each.rate / reference for each in seen]
        loss_decay = Trend.through(relative, [each.loss_decay for each in seen])
        for each, share in zip(seen, relative, strict=True):
            each.smooth_loss(loss_decay.at(share))
        growth = Trend.through(relative, [each.growth_constant() for each in seen])
        jump, spread = jump_law(seen)
        starts = [np.log(each.first_losses) for each in seen]
        uncorrected = cls(
            law=balance_law(
                [each.rate for each in seen],
                [each.periods.count for each in seen],
                [each.periods.jump for each in seen],
                [each.periods.outside_growth for each in seen],
            ),
            loss_decay=loss_decay,
            growth=growth,
            hazard=hazard_law(seen),
            jump=jump,
            jump_spread=spread,
            peak_loss=Trend.through(relative, [math.exp(values.mean()) for values in starts]),
            peak_loss_sd=Trend.through(relative, [values.std() for values in starts]),
            duration=Trend.through(relative, [each.duration for each in seen]),
            rise=rise,
            segments=tuple(each.segment() for each in seen),
        )
        simulated = [uncorrected._simulated(each.rate, periods=1000, seed=0) for each in seen]
        return dataclasses.replace(
            uncorrected,
            segments=tuple(
                dataclasses.replace(
                    segment,
                    simulated_period=own.mean,
                    simulated_norm_min=own.norm_min,
                    simulated_norm_max=own.norm_max,
                )
                for segment, own in zip(uncorrected.segments, simulated, strict=True)
            ),
        )

    @classmethod
    def reference(cls) -> PeriodModel:
        """Give the model of this project's own ConvNet (8-16-16 channels, digits, mini-batches of 64).

        Another network has other periods. `segments` names the runs that it was calibrated on.

        Examples
        --------
        >>> [segment.count > 100 for segment in PeriodModel.reference().segments]
        [True, True, True, True]
        """
        return _reference()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save as JSON, written aside and renamed; replaces the file.

        Examples
        --------
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "model.json"
        >>> PeriodModel.reference().save(target)
        >>> PeriodModel.load(target) == PeriodModel.reference()
        True
        """
        write_json(Path(path), {"schema": 1, **dataclasses.asdict(self)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PeriodModel:
        """Load what `save` wrote.

        Raises
        ------
        ValueError : `path` holds no period model, or a newer one.

        Examples
        --------
        >>> PeriodModel.load("no such file")
        Traceback (most recent call last):
        ...
        ValueError: path must be a saved period model, got 'no such file'
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError):
            raise ValueError(f"path must be a saved period model, got {os.fspath(path)!r}") from None
        return cls._from_content(content, os.fspath(path))

    @classmethod
    def _from_content(cls, content: Any, path: str) -> PeriodModel:
        if not isinstance(content, Mapping) or content.get("schema") != 1:
            raise ValueError(f"path must hold a period model of schema 1, got {path!r}")
        try:
            values = {name: content[name] for name in (each.name for each in dataclasses.fields(cls))}
            trends = ("loss_decay", "growth", "peak_loss", "peak_loss_sd", "duration")
            return cls(
                **{
                    **values,
                    **{name: Trend(**values[name]) for name in trends},
                    "law": theory.BalanceLaw(**values["law"]),
                    "hazard": tuple(values["hazard"]),
                    "jump": tuple(values["jump"]),
                    "segments": tuple(_segment(each) for each in values["segments"]),
                }
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"path must hold a whole period model, got {path!r}: {error!r}") from None

    @property
    def calibrated_range(self) -> tuple[float, float]:
        """Least and largest ηλ of predictions without a warning; the reference was compared down to a tenth."""
        rates = [segment.intrinsic_lr for segment in self.segments]
        return max(rates) / REACH, max(rates)

    @property
    def peak_effective_lr(self) -> float:
        """η/ρ² at a typical peak: where `oscillate` starts by default."""
        return math.exp(-2 * self._peak())

    @staticmethod
    def looks_apart(intrinsic_lr: float) -> int:
        """Steps between two looks of the period statistics at ηλ: 0.01/ηλ, what `find_periods` asks for.

        Examples
        --------
        >>> PeriodModel.looks_apart(0.002), PeriodModel.looks_apart(0.01)
        (5, 1)
        """
        return max(1, int(1 / (_LOOKS * intrinsic_lr)))

    def period_correction(self, intrinsic_lr: float) -> float:
        """Measured over simulated period at ηλ, by which `period` corrects the reduced model.

        Examples
        --------
        >>> 0.8 < PeriodModel.reference().period_correction(0.005) < 1.2
        True
        """
        return self._correction(intrinsic_lr, "period", "simulated_period")

    def period(self, lr: float, wd: float, *, periods: int = 200, seed: int = 0) -> Period:
        """Predict the period and the norms at its ends: those of the reduced model, corrected by the probe.

        The correction is the ratio of measured to simulated values in the segments, interpolated in ln ηλ and held
        beyond them. `law.period(lr, wd)` is a second, analytic prediction from the same probe.

        Parameters
        ----------
        lr, wd : η > 0, λ > 0, ηλ < 1: numbers.
        periods : how many to simulate; more than 16 are rounded up to a multiple of 16.
        seed : of the simulation.

        Returns
        -------
        Period: NaN where the model has no periods in 400 relaxation times.

        Raises
        ------
        TypeError, ValueError : an argument is no number or out of range.

        Warns
        -----
        UserWarning : ηλ is outside `calibrated_range`.

        Examples
        --------
        >>> period = PeriodModel.reference().period(0.5, 0.004)
        >>> period.norm_min < period.norm_max, period.count
        (True, 208)
        """
        lr, rate = one_real("lr", lr, above=0), self._rate(lr, wd)
        periods = whole_number("periods", periods, at_least=2)
        seed = whole_number("seed", seed, at_most=2**63 - 1)
        own = self._simulated(rate, periods, seed)
        length, trough, peak = (
            self._correction(rate, measured, f"simulated_{measured}") for measured in ("period", "norm_min", "norm_max")
        )
        norm_min = own.norm_min * trough * math.sqrt(lr)
        return dataclasses.replace(
            own,
            mean=own.mean * length,
            std=own.std * length,
            stderr=own.stderr * length,
            norm_min=norm_min,
            norm_max=own.norm_max * peak * math.sqrt(lr),
            effective_lr_max=lr / norm_min**2,
        )

    def law_interval(self, lr: float, wd: float, *, level: float = 0.9, draws: int = 400, seed: int = 0) -> Interval:
        """Say how well the probe knows the period of its balance law, `law.period(lr, wd)`.

        Seeds and periods of the probe are drawn again with replacement, and the law is fitted to each draw. That the
        law is an approximation, and that a measured period has an error of its own, is not in it: of 40 probes of the
        reference model itself, with two seeds, the 90 % intervals held its true period in 31 to 36.

        Parameters
        ----------
        lr, wd : η > 0, λ > 0, ηλ < 1: numbers.
        level : share of the draws within the interval, between 0 and 1.
        draws, seed : number of draws, and of their random numbers.

        Returns
        -------
        Interval

        Raises
        ------
        TypeError, ValueError : an argument is out of range, or the model is an older one without its periods.

        Warns
        -----
        UserWarning : ηλ is outside `calibrated_range`.

        Examples
        --------
        >>> reference = PeriodModel.reference()
        >>> probe = [reference.oscillate(0.5, wd, steps=round(50 / wd), seed=1) for wd in (0.02, 0.004)]
        >>> model = PeriodModel.from_probe(probe)
        >>> known = model.law_interval(0.5, 0.01)
        >>> known.lower < model.law.period(0.5, 0.01) < known.upper
        True
        """
        self._rate(lr, wd)
        level, draws, seed = _checked_draws(level, draws, seed)
        return Interval.of(drawn_law_periods(self.segments, lr, wd, draws, seed), level)

    def period_interval(self, lr: float, wd: float, *, level: float = 0.9, draws: int = 400, seed: int = 0) -> Interval:
        """Say how well the probe knows the mean of `period(lr, wd)`, by the measured periods that correct it.

        The constants of the reduced model are taken as they are: where the correction is interpolated they matter
        little, below the lower segment they do. Of the 40 probes of `law_interval`, 30 to 35 held the truth.

        Parameters
        ----------
        lr, wd, level, draws, seed : as in `law_interval`.

        Returns
        -------
        Interval

        Raises
        ------
        TypeError, ValueError : as in `law_interval`.

        Warns
        -----
        UserWarning : ηλ is outside `calibrated_range`.

        Examples
        --------
        >>> reference = PeriodModel.reference()
        >>> probe = [reference.oscillate(0.5, wd, steps=round(50 / wd), seed=1) for wd in (0.02, 0.004)]
        >>> known = PeriodModel.from_probe(probe).period_interval(0.5, 0.01)
        >>> known.upper / known.lower < 1.5
        True
        """
        rate = self._rate(lr, wd)
        level, draws, seed = _checked_draws(level, draws, seed)
        own = self._simulated(rate, _SIMULATED_FOR_INTERVALS, seed)
        simulated = dict(
            zip(
                *_mean_by_rate(
                    [each.intrinsic_lr for each in self.segments],
                    [math.log(each.simulated_period) for each in self.segments],
                ),
                strict=True,
            )
        )
        noise = np.random.default_rng(seed).normal(0, own.stderr / own.mean, draws)
        found = []
        for seen, error in zip(drawn_segments(self.segments, draws, seed), noise, strict=True):
            at = [math.log(each.intrinsic_lr) for each in reversed(seen)]
            ratios = [math.log(each.period) - simulated[each.intrinsic_lr] for each in reversed(seen)]
            found.append(own.mean * math.exp(float(np.interp(math.log(rate), at, ratios)) + error))
        return Interval.of(found, level)

    def oscillate(
        self,
        lr: npt.ArrayLike,
        wd: npt.ArrayLike,
        *,
        steps: int,
        seed: int = 0,
        norm: npt.ArrayLike | None = None,
        record_every: int = 1,
        start: xr.Dataset | None = None,
    ) -> xr.Dataset:
        """Simulate a trajectory of the reduced model, as it is: without the correction of `period`.

        Parameters
        ----------
        lr, wd : η > 0, λ > 0, ηλ < 1: numbers, or arrays for a batch.
        steps : number of updates.
        seed : each random number is a function of seed, walker and the number of the break.
        norm : ρ > 0 at the start: number or one for each walker; default is a typical peak.
        record_every : record the steps whose number is divisible by it.
        start : trajectory that an earlier call returned: the run goes on from its last state, with its seed and its
            step numbers, as if it had not been cut. `norm` must be left out, `seed` may be.

        Returns
        -------
        Trajectory (see `simulate.trajectories.contract`) with `norm`, `loss`, `effective_lr`, and the `grad_norm` and
        `rotation` that the one-step law asks for; the last state is `final_oscillation`.

        Raises
        ------
        TypeError, ValueError : an argument is no number or out of range.

        Warns
        -----
        UserWarning : ηλ is outside `calibrated_range`.

        Examples
        --------
        >>> from simulate import find_periods
        >>> run = PeriodModel.reference().oscillate(0.5, 0.02, steps=2000)
        >>> run.loss.size, find_periods(run).count > 10
        (2000, True)
        """
        steps, record_every = whole_number("steps", steps), whole_number("record_every", record_every, at_least=1)
        seed = whole_number("seed", seed, at_most=2**63 - 1)
        peak = np.sqrt(np.asarray(learning_rate(lr)) / self.peak_effective_lr)
        begins = peak if norm is None else arguments.real("norm", norm, above=0)
        rates, decays, begins = arguments.broadcast(lr=learning_rate(lr), wd=weight_decay(wd), norm=begins)
        if rates.ndim > 1:
            raise ValueError(f"lr, wd and norm must have at most one axis, got shapes that broadcast to {rates.shape}")
        dims = ("batch",) if rates.ndim else ()
        flat_rates, flat_decays = rates.reshape(-1).copy(), decays.reshape(-1).copy()
        intrinsic = [self._rate(*each) for each in zip(flat_rates, flat_decays, strict=True)]
        constants = np.array([self._constants(rate) for rate in intrinsic]).reshape(-1, oscillation.CONSTANTS)
        walker = np.arange(flat_rates.size)
        if start is None:
            begin = 0
            log_norm = np.log(begins.reshape(-1)) - np.log(flat_rates) / 2
            if (np.abs(log_norm) > math.log(_FARTHEST)).any():
                raise ValueError(f"norm must be within a factor of {_FARTHEST:g} of the root of lr, got {norm!r}")
            state = self._fresh(log_norm, constants, seed, walker)
        else:
            if norm is not None:
                raise ValueError("norm must be left out with start, which says what it is")
            begin, seed, state = _continued(start, flat_rates.size, dims)
        step = np.arange(-(-begin // record_every) * record_every, begin + steps, record_every)
        recorded = np.empty((3, flat_rates.size, step.size))
        nothing = np.empty((0, oscillation.STATISTICS))
        oscillation.iterate_oscillation(
            state, constants, np.uint64(seed), walker, begin, steps, record_every, recorded, nothing,
            0, 1, 0, self.rise, self.rise,
        )  # fmt: skip
        log_norm, loss, change = (values.reshape(*rates.shape, step.size) for values in recorded)
        k = (rates * decays)[..., np.newaxis]
        # the growth that decay did not explain, as the gradient that makes it
        turn = (1 - k) * np.sqrt(np.expm1(2 * np.maximum(change - np.log1p(-k), 0)))
        effective_lr = np.exp(-2 * log_norm)
        own = {name: (dims, values) for name, values in (("lr", flat_rates), ("wd", flat_decays))} if dims else {}
        return make_trajectory(
            {
                "norm": np.sqrt(rates)[..., np.newaxis] * np.exp(log_norm),
                "grad_norm": turn / effective_lr,
                "effective_lr": effective_lr,
                "rotation": np.arctan2(turn, 1 - k),
                "loss": loss,
            },
            step=step,
            source="period_model",
            final_norm=np.sqrt(rates) * np.exp(state[:, oscillation.LOG_NORM]).reshape(rates.shape),
            status=np.full(rates.shape, COMPLETE, dtype=object),
            status_step=np.full(rates.shape, begin + steps),
            dims=dims,
            coords={**own, "oscillation": (("oscillation",), np.array(oscillation.STATES, dtype=object))},
            last_state={
                "final_oscillation": (
                    (*dims, "oscillation"),
                    state.reshape(*rates.shape, len(oscillation.STATES)),
                )
            },
            attributes={
                "optimizer": "SGD()",
                "seed": seed,
                **({} if dims else {"lr": float(rates), "wd": float(decays)}),
            },
        )

    def _peak(self) -> float:
        return float(np.mean([math.log(segment.norm_max) for segment in self.segments]))

    def _rate(self, lr: Any, wd: Any) -> float:
        lr, wd = one_real("lr", lr, above=0), one_real("wd", wd, above=0)
        rate = float(arguments.intrinsic_lr(np.asarray(lr), np.asarray(wd), below=1.0))
        least, largest = self.calibrated_range
        # a product of lr and wd may be off by rounding
        if not least * (1 - 1e-9) <= rate <= largest * (1 + 1e-9):
            warnings.warn(
                f"lr * wd = {rate:.3g} is outside the range of the model, {least:.3g} to {largest:.3g}; "
                "its predictions were not compared with training there",
                stacklevel=3,
            )
        return rate

    def _constants(self, rate: float) -> list[float]:
        relative = rate / self.law.reference
        return [
            math.log1p(-rate),
            self.loss_decay.at(relative),
            self.growth.at(relative),
            *self.hazard,
            *self.jump,
            self.jump_spread,
            math.log(self.peak_loss.at(relative)),
            self.peak_loss_sd.at(relative),
            max(1.0, round(self.duration.at(relative))),
        ]

    def _fresh(self, log_norm: FloatArray, constants: FloatArray, seed: int, walker: npt.NDArray[Any]) -> FloatArray:
        """State of walkers that begin a fall at this ln z."""
        state = np.zeros((len(constants), len(oscillation.STATES)))
        state[:, oscillation.LOG_NORM] = log_norm
        state[:, oscillation.LOSS] = np.exp(constants[:, oscillation.PEAK_LOSS])
        for one, own, number in zip(state, constants, walker, strict=True):
            oscillation.begin_fall(one, own, np.uint64(stream_key(np.uint64(seed), number)), self.rise)
        return state

    def _simulated(self, rate: float, periods: int, seed: int) -> Period:
        """Periods of the reduced model for η = 1, uncorrected."""
        walkers = min(_WALKERS, periods)
        each = -(-periods // walkers)
        constants = np.array([self._constants(rate)] * walkers)
        state = self._fresh(np.full(walkers, self._peak()), constants, seed, np.arange(walkers))
        statistics = np.zeros((walkers, oscillation.STATISTICS))
        statistics[:, oscillation.HIGH], statistics[:, oscillation.LOW] = -np.inf, np.inf
        look_every = self.looks_apart(rate)
        begin, chunk = 0, max(1, math.ceil((2 + each) / rate))
        while begin * rate < 400 + 4 * each and (statistics[:, oscillation.COUNT] < each).any():
            oscillation.iterate_oscillation(
                state, constants, np.uint64(seed), np.arange(walkers), begin, chunk, 0, np.empty((3, 0, 0)), statistics,
                round(2 / rate), look_every, each, self.rise, self.rise,
            )  # fmt: skip
            begin += chunk
        sums = statistics.sum(axis=0)
        count = int(sums[oscillation.COUNT])
        if count < 2:
            unknown = math.nan
            return Period(unknown, unknown, unknown, count, unknown, unknown, unknown, unknown, unknown)
        mean = float(sums[oscillation.LENGTH]) / count
        std = math.sqrt(max(sums[oscillation.SQ_LENGTH] - count * mean**2, 0) / (count - 1))
        trough, peak = float(sums[oscillation.TROUGHS]) / count, float(sums[oscillation.PEAKS]) / count
        return Period(
            mean=mean,
            std=std,
            stderr=std / math.sqrt(count),
            count=count,
            norm_min=math.exp(trough),
            norm_max=math.exp(peak),
            effective_lr_max=math.exp(-2 * trough),
            jump=peak - trough,
            outside_growth=1 - (peak - trough) / (-math.log1p(-rate) * mean),
        )

    def _correction(self, rate: float, measured: str, simulated: str) -> float:
        rates, ratios = _mean_by_rate(
            [each.intrinsic_lr for each in self.segments],
            [math.log(getattr(each, measured) / getattr(each, simulated)) for each in self.segments],
        )
        return float(np.exp(np.interp(math.log(rate), np.log(rates), ratios)))


def period(lr: float, wd: float, *, model: PeriodModel | None = None, periods: int = 200, seed: int = 0) -> Period:
    """Predict the length of a period, without training.

    Parameters
    ----------
    lr, wd, periods, seed : as in `PeriodModel.period`.
    model : of the network; default is `PeriodModel.reference()`, a small ConvNet.

    Returns
    -------
    Period

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Examples
    --------
    >>> 300 < period(0.5, 0.004).mean < 600
    True
    """
    return _checked_model(model).period(lr, wd, periods=periods, seed=seed)


def oscillate(
    lr: npt.ArrayLike,
    wd: npt.ArrayLike,
    *,
    steps: int,
    seed: int = 0,
    model: PeriodModel | None = None,
    norm: npt.ArrayLike | None = None,
    record_every: int = 1,
    start: xr.Dataset | None = None,
) -> xr.Dataset:
    """Simulate a trajectory of the reduced model.

    Parameters
    ----------
    lr, wd, steps, seed, norm, record_every, start : as in `PeriodModel.oscillate`.
    model : of the network; default is `PeriodModel.reference()`, a small ConvNet.

    Returns
    -------
    Trajectory (see `simulate.trajectories.contract`)

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Examples
    --------
    >>> oscillate(0.5, [0.01, 0.02], steps=100).norm.shape
    (2, 100)
    """
    return _checked_model(model).oscillate(
        lr, wd, steps=steps, seed=seed, norm=norm, record_every=record_every, start=start
    )


def _segment(content: Mapping[str, Any]) -> Segment:
    """Segment of its plain form; older ones have no periods."""
    return Segment(**{**content, **{name: tuple(content.get(name, ())) for name in ("lengths", "rises")}})


def _checked_draws(level: float, draws: int, seed: int) -> tuple[float, int, int]:
    return (
        one_real("level", level, above=0, below=1),
        whole_number("draws", draws, at_least=2),
        whole_number("seed", seed, at_most=2**63 - 1),
    )


def _checked_model(model: PeriodModel | None) -> PeriodModel:
    if model is not None and not isinstance(model, PeriodModel):
        raise TypeError(f"model must be a PeriodModel, got {type(model).__name__}")
    return PeriodModel.reference() if model is None else model


@functools.cache
def _reference() -> PeriodModel:
    file = resources.files("simulate") / "reference_model.json"
    return PeriodModel._from_content(json.loads(file.read_text(encoding="utf-8")), "reference_model.json")


def _continued(start: xr.Dataset, count: int, dims: tuple[str, ...]) -> tuple[int, int, FloatArray]:
    check_trajectory(start, "final_oscillation")
    if start.attrs.get("source") != "period_model" or start.final_norm.dims != dims or start.final_norm.size != count:
        raise ValueError("start must be a trajectory of oscillate with the batch that lr and wd have")
    state = start.final_oscillation.values.reshape(count, len(oscillation.STATES)).copy()
    return int(start.status_step.values.reshape(-1)[0]) if count else 0, int(start.attrs["seed"]), state


def _mean_by_rate(rates: Sequence[float], values: Sequence[float]) -> tuple[FloatArray, FloatArray]:
    """Rates, ascending, and the mean of the values at each."""
    distinct = np.unique(rates)
    return distinct, np.array([np.mean([v for r, v in zip(rates, values, strict=True) if r == d]) for d in distinct])
