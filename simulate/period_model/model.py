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
from simulate._files import write_json
from simulate.period_model import _kernel
from simulate.period_model.calibration import (
    CalibrationRun,
    DecayPhases,
    fit_balance_law,
    fit_reduced_model,
    measure_run,
    norm_unit,
    pool_runs,
)
from simulate.period_model.intervals import Interval, resample_law_periods, resample_runs
from simulate.period_model.prediction import Prediction, interpolate, predict_from_runs
from simulate.period_model.reduced_model import PredictedPeriod, ReducedModel, Trend
from simulate.trajectories.contract import COMPLETE, check_trajectory, make_trajectory, unconstrained_optimizer
from theory import arguments
from theory.arguments import FloatArray, check_integer, check_lr, check_number, check_wd
from theory.optimizers import equal_up_to_dim, parse_optimizer

REACH = 30.0  # predictions are given without a warning down to this share of the largest ηλ of a probe
_SCHEMA = 3
_SIMULATED_FOR_INTERVALS = 1000  # periods
_FARTHEST = 1e6  # from here the model comes back to its range without an overflow
# Relative errors of the predictions themselves, as standard deviation at the settings of a probe and its growth with
# |ln| of the ratio to the nearest of them, as seen on the networks of docs/validation.md that served for development.
_LAW_ERROR, _REDUCED_ERROR = (0.03, 0.035), (0.03, 0.08)


@dataclass(frozen=True)
class PeriodModel:
    """What the norm of a network does at other lr and wd, from a probe of that network.

    `law` is the balance law of its period. `period` and `oscillate` use its reduced model (see `ReducedModel`). The
    call `predict` says what to expect at a setting, equilibrium included. It describes one optimizer with constant lr
    and one batch size; the reduced model, plain SGD on a network whose trained weights are all scale-invariant.

    Parameters
    ----------
    calibration_runs : of the probe.
    rise : d of the period finder.
    reduced_model : the reduced model; None where the probe shows no clear period.
    reduced_model_error : why there is none.
    optimizer : of the probe, in words.

    Raises
    ------
    TypeError, ValueError : no segments, or a number out of range.

    Source: docs/mathematics.md §5; arXiv 2106.15739 for the mechanism.

    Examples
    --------
    >>> model = PeriodModel.reference()
    >>> 60 < model.period(0.5, 0.02).mean < 80
    True
    >>> model.predict(0.5, 0.02).verdict
    'periodic'
    """

    calibration_runs: tuple[CalibrationRun, ...]
    rise: float
    reduced_model: ReducedModel | None
    reduced_model_error: str = ""
    optimizer: str = "SGD()"

    def __post_init__(self) -> None:
        check_number("rise", self.rise, above=0)
        if not self.calibration_runs:
            raise ValueError("segments must be at least one, got none")

    @classmethod
    def from_runs(cls, calibration_runs: Sequence[xr.Dataset], *, rise: float = 0.1) -> PeriodModel:
        """Calibrate the model on measured trajectories of one network.

        The law is that of the settings with 10 periods and more, from the lowest ηλ on; the reduced model is fitted to
        those whose periods are also clear (a share of at most 0.9 of the growth outside their rises), and there is none
        without clear ones at the lowest ηλ. `predict` there is in any case.

        Parameters
        ----------
        calibration_runs : trajectories with `norm`, `grad_norm` and `loss` at every step, of SGD without momentum,
            AdamW or Lion (these with `rotation` too), with constant lr, best at two values of ηλ (a factor of 5 apart,
            the larger one the largest that is asked for later) with 100 and more periods each, at least 12/ηλ steps long.
            More than one trajectory may have the same ηλ. From one value of ηλ alone the trends with ηλ stay unknown
            and are taken to be flat.
        rise : d of the period finder.

        Returns
        -------
        PeriodModel

        Raises
        ------
        TypeError, ValueError : no such trajectories.

        Source: docs/mathematics.md §5.

        Examples
        --------
        >>> reference = PeriodModel.reference()
        >>> probe = [reference.oscillate(0.5, wd, steps=round(50 / wd), seed=1) for wd in (0.02, 0.004)]
        >>> again = PeriodModel.from_runs(probe)
        >>> abs(again.period(0.5, 0.01).mean / reference.period(0.5, 0.01).mean - 1) < 0.2
        True
        """
        rise = check_number("rise", rise, above=0)
        if isinstance(calibration_runs, xr.Dataset) or not calibration_runs:
            raise TypeError("segments must be a sequence of trajectories, at least one")
        runs = [(run, *measure_run(run, rise, f"segments[{i}]")) for i, run in enumerate(calibration_runs)]
        runs.sort(key=lambda run: -run[1].intrinsic_lr)
        summed = [segment for _, segment, _ in runs]
        rules = {unconstrained_optimizer(run) for run, _, _ in runs}
        rule = unconstrained_optimizer(runs[-1][0])
        if not all(equal_up_to_dim(rule, other) for other in rules):
            raise ValueError(f"segments must be of one optimizer, got {', '.join(sorted(rules))}")
        lowest = summed[-1].intrinsic_lr
        if not any(segment.is_clear for segment in summed if segment.intrinsic_lr == lowest):
            unclear = f"its probe shows no clear period: {'; '.join(map(str, summed))}"
            return cls(tuple(summed), rise, None, unclear, rule)
        if rule != "SGD()":
            return cls(tuple(summed), rise, None, f"that is one of SGD(), not of {rule}", rule)
        clear = [run for run in runs if run[1].is_clear]
        try:
            reduced_model = fit_reduced_model(
                [DecayPhases(run, judged.periods) for run, _, judged in clear], [each[1] for each in clear]
            )
        except ValueError as error:
            return cls(tuple(summed), rise, None, str(error))
        simulated = {
            rate: reduced_model.simulate(rate, periods=1000, seed=0)
            for rate in {each[1].intrinsic_lr for each in clear}
        }
        if not all(own.count for own in simulated.values()):
            return cls(tuple(summed), rise, None, "its constants give no periods where the network has some")
        return cls(
            tuple(
                dataclasses.replace(
                    segment,
                    simulated_period=simulated[segment.intrinsic_lr].mean,
                    simulated_trough_norm=simulated[segment.intrinsic_lr].trough_norm,
                    simulated_peak_norm=simulated[segment.intrinsic_lr].peak_norm,
                )
                if segment.is_clear
                else segment
                for segment in summed
            ),
            rise,
            reduced_model,
        )

    @classmethod
    def reference(cls) -> PeriodModel:
        """Give the model of this project's own ConvNet (8-16-16 channels, digits, mini-batches of 64).

        Another network has other periods. `calibration_runs` names the runs that it was calibrated on.

        Examples
        --------
        >>> [segment.count > 100 for segment in PeriodModel.reference().calibration_runs]
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
        write_json(Path(path), {"schema": _SCHEMA, **dataclasses.asdict(self)})

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
        if not isinstance(content, Mapping) or content.get("schema") != _SCHEMA:
            raise ValueError(f"path must hold a period model of schema {_SCHEMA}, got {path!r}: calibrate it anew")
        try:
            reduced_model = content["reduced_model"]
            return cls(
                calibration_runs=tuple(_read_run(each) for each in content["calibration_runs"]),
                rise=content["rise"],
                reduced_model=None if reduced_model is None else _read_reduced_model(reduced_model),
                reduced_model_error=content["reduced_model_error"],
                optimizer=content["optimizer"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"path must hold a whole period model, got {path!r}: {error!r}") from None

    @functools.cached_property
    def law(self) -> theory.BalanceLaw:
        """The balance law of the period; ValueError without 10 periods at the lowest ηλ of the probe."""
        return fit_balance_law(pool_runs(self.calibration_runs))

    @property
    def has_law(self) -> bool:
        """Whether the probe shows periods enough for `law`."""
        try:
            pool_runs(self.calibration_runs)
        except ValueError:
            return False
        return True

    @property
    def calibrated_range(self) -> tuple[float, float]:
        """Least and largest ηλ of predictions without a warning.

        Where the lowest ηλ of the probe shows periods it reaches down to a thirtieth of the largest. Else to that
        lowest: where rest ends and periods begin, nothing at rest tells.
        """
        rates = [segment.intrinsic_lr for segment in self.calibration_runs]
        return min(min(rates), max(rates) / REACH) if self.has_law else min(rates), max(rates)

    @property
    def peak_effective_lr(self) -> float:
        """η/ρ² at a typical peak: where `oscillate` starts by default."""
        return math.exp(-2 * self._reduced().peak)

    def period_correction(self, intrinsic_lr: float) -> float:
        """Measured over simulated period at ηλ, by which `period` corrects the reduced model.

        Examples
        --------
        >>> 0.8 < PeriodModel.reference().period_correction(0.005) < 1.2
        True
        """
        return self._correction(intrinsic_lr, "period", "simulated_period")

    def period(self, lr: float, wd: float, *, periods: int = 200, seed: int = 0) -> PredictedPeriod:
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
        TypeError, ValueError : an argument is no number or out of range, or there is no reduced model.

        Warns
        -----
        UserWarning : ηλ is outside `calibrated_range`, or above the settings of the probe that have clear periods.

        Examples
        --------
        >>> period = PeriodModel.reference().period(0.5, 0.004)
        >>> period.trough_norm < period.peak_norm, period.count
        (True, 208)
        """
        lr, rate = check_number("lr", lr, above=0), self._rate(lr, wd)
        periods = check_integer("periods", periods, at_least=2)
        seed = check_integer("seed", seed, at_most=2**63 - 1)
        own = self._reduced().simulate(rate, periods, seed)
        if not self._swings(rate) and rate <= self.calibrated_range[1] * (1 + 1e-9):
            warnings.warn(f"the probe shows no clear period near lr * wd = {rate:.3g}", stacklevel=2)
        length, trough, peak = (
            self._correction(rate, measured, f"simulated_{measured}")
            for measured in ("period", "trough_norm", "peak_norm")
        )
        trough_norm = own.trough_norm * trough * math.sqrt(lr)
        return dataclasses.replace(
            own,
            mean=own.mean * length,
            std=own.std * length,
            stderr=own.stderr * length,
            trough_norm=trough_norm,
            peak_norm=own.peak_norm * peak * math.sqrt(lr),
            effective_lr_max=lr / trough_norm**2,
        )

    def law_interval(self, lr: float, wd: float, *, level: float = 0.9, draws: int = 400, seed: int = 0) -> Interval:
        """Say how well the period of the balance law, `law.period(lr, wd)`, is known.

        Seeds and periods of the probe are drawn again with replacement, and the law is fitted to each draw. To this
        comes the error of the law itself: 3 % at the settings of the probe, and 3.5 % more for each factor of e from
        the nearest of them.

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
        TypeError, ValueError : an argument is out of range, or there is no law.

        Warns
        -----
        UserWarning : ηλ is outside `calibrated_range`.

        Source: docs/validation.md, for the errors.

        Examples
        --------
        >>> model = PeriodModel.reference()
        >>> known = model.law_interval(0.5, 0.01)
        >>> known.lower < model.law.period(0.5, 0.01) < known.upper
        True
        """
        rate = self._rate(lr, wd)
        level, draws, seed = _checked_draws(level, draws, seed)
        pool_runs(self.calibration_runs)
        errors = self._errors(_LAW_ERROR, rate, draws, seed)
        return Interval.of(np.exp(errors) * resample_law_periods(self.calibration_runs, lr, wd, draws, seed), level)

    def period_interval(self, lr: float, wd: float, *, level: float = 0.9, draws: int = 400, seed: int = 0) -> Interval:
        """Say how well the mean of `period(lr, wd)` is known, by the measured periods that correct it.

        The constants of the reduced model are taken as they are; for their error and that of the model it adds 3 %, and
        8 % more for each factor of e from the nearest setting of the probe.

        Parameters
        ----------
        lr, wd, level, draws, seed : as in `law_interval`.

        Returns
        -------
        Interval

        Raises
        ------
        TypeError, ValueError : an argument is out of range, or there is no reduced model.

        Warns
        -----
        UserWarning : ηλ is outside `calibrated_range`.

        Source: docs/validation.md, for the errors.

        Examples
        --------
        >>> model = PeriodModel.reference()
        >>> known = model.period_interval(0.5, 0.01)
        >>> known.lower < model.period(0.5, 0.01).mean < known.upper
        True
        """
        rate = self._rate(lr, wd)
        level, draws, seed = _checked_draws(level, draws, seed)
        own = self._reduced().simulate(rate, _SIMULATED_FOR_INTERVALS, seed)
        clear = [each for each in self.calibration_runs if not math.isnan(each.simulated_period)]
        simulated = {each.intrinsic_lr: math.log(each.simulated_period) for each in clear}
        errors = self._errors(_REDUCED_ERROR, rate, draws, seed)
        found = []
        for seen, error in zip(resample_runs(clear, draws, seed), errors, strict=True):
            at = [math.log(each.intrinsic_lr) for each in reversed(seen)]
            ratios = [math.log(each.period) - simulated[each.intrinsic_lr] for each in reversed(seen)]
            found.append(own.mean * math.exp(float(np.interp(math.log(rate), at, ratios)) + error))
        return Interval.of(found, level)

    def predict(self, lr: float, wd: float, *, level: float = 0.9) -> Prediction:
        """Say what to expect of the norm at a setting: rest, periods of which length, or neither; and how it moves.

        Numbers without units (spread over J, autocorrelation time over T, and the like) are interpolated between the
        settings of the probe and held beyond; see `Prediction`. Near the border between verdicts expect it to fail.

        Parameters
        ----------
        lr, wd : η > 0, λ > 0, ηλ < 1: numbers.
        level : of the interval of the period.

        Returns
        -------
        Expectation

        Raises
        ------
        TypeError, ValueError : an argument is out of range.

        Warns
        -----
        UserWarning : ηλ is outside `calibrated_range`.

        Source: docs/mathematics.md §5.

        Examples
        --------
        >>> model = PeriodModel.reference()
        >>> expected = model.predict(0.5, 0.004)
        >>> expected.verdict, 0.25 < expected.log_norm_sd < 0.5
        ('periodic', True)
        """
        lr, rate = check_number("lr", lr, above=0), self._rate(lr, wd)
        level = check_number("level", level, above=0, below=1)
        with warnings.catch_warnings():
            # said already
            warnings.simplefilter("ignore", UserWarning)
            return predict_from_runs(
                self.calibration_runs,
                lr,
                rate,
                norm_unit(parse_optimizer(self.optimizer), lr),
                self.law if self.has_law else None,
                self.law_interval(lr, wd, level=level) if self.has_law else None,
                self.period(lr, wd) if self.reduced_model is not None and self._swings(rate) else None,
            )

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
        TypeError, ValueError : an argument is no number or out of range, or there is no reduced model.

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
        reduced = self._reduced()
        steps, record_every = check_integer("steps", steps), check_integer("record_every", record_every, at_least=1)
        seed = check_integer("seed", seed, at_most=2**63 - 1)
        peak = np.sqrt(np.asarray(check_lr(lr)) / self.peak_effective_lr)
        begins = peak if norm is None else arguments.check_real("norm", norm, above=0)
        rates, decays, begins = arguments.broadcast(lr=check_lr(lr), wd=check_wd(wd), norm=begins)
        if rates.ndim > 1:
            raise ValueError(f"lr, wd and norm must have at most one axis, got shapes that broadcast to {rates.shape}")
        dims = ("batch",) if rates.ndim else ()
        flat_rates, flat_decays = rates.reshape(-1).copy(), decays.reshape(-1).copy()
        intrinsic = [self._rate(*each) for each in zip(flat_rates, flat_decays, strict=True)]
        constants = np.array([reduced.constants(rate) for rate in intrinsic]).reshape(-1, _kernel.CONSTANTS)
        walker = np.arange(flat_rates.size)
        if start is None:
            begin = 0
            log_norm = np.log(begins.reshape(-1)) - np.log(flat_rates) / 2
            if (np.abs(log_norm) > math.log(_FARTHEST)).any():
                raise ValueError(f"norm must be within a factor of {_FARTHEST:g} of the root of lr, got {norm!r}")
            state = reduced.initial_state(log_norm, constants, seed, walker)
        else:
            if norm is not None:
                raise ValueError("norm must be left out with start, which says what it is")
            begin, seed, state = _continued(start, flat_rates.size, dims)
        step = np.arange(-(-begin // record_every) * record_every, begin + steps, record_every)
        recorded = np.empty((3, flat_rates.size, step.size))
        nothing = np.empty((0, _kernel.STATISTICS))
        _kernel.iterate_oscillation(
            state, constants, np.uint64(seed), walker, begin, steps, record_every, recorded, nothing,
            0, 1, 0, self.rise, self.rise,
        )  # fmt: skip
        log_norm, loss, change = (values.reshape(*rates.shape, step.size) for values in recorded)
        intrinsic_lr = (rates * decays)[..., np.newaxis]
        # the growth that decay did not explain, as the gradient that makes it
        turn = (1 - intrinsic_lr) * np.sqrt(np.expm1(2 * np.maximum(change - np.log1p(-intrinsic_lr), 0)))
        effective_lr = np.exp(-2 * log_norm)
        own = {name: (dims, values) for name, values in (("lr", flat_rates), ("wd", flat_decays))} if dims else {}
        return make_trajectory(
            {
                "norm": np.sqrt(rates)[..., np.newaxis] * np.exp(log_norm),
                "grad_norm": turn / effective_lr,
                "effective_lr": effective_lr,
                "rotation": np.arctan2(turn, 1 - intrinsic_lr),
                "loss": loss,
            },
            step=step,
            source="period_model",
            final_norm=np.sqrt(rates) * np.exp(state[:, _kernel.LOG_NORM]).reshape(rates.shape),
            status=np.full(rates.shape, COMPLETE, dtype=object),
            status_step=np.full(rates.shape, begin + steps),
            dims=dims,
            coords={**own, "oscillation": (("oscillation",), np.array(_kernel.STATES, dtype=object))},
            last_state={
                "final_oscillation": (
                    (*dims, "oscillation"),
                    state.reshape(*rates.shape, len(_kernel.STATES)),
                )
            },
            attributes={
                "optimizer": "SGD()",
                "seed": seed,
                **({} if dims else {"lr": float(rates), "wd": float(decays)}),
            },
        )

    def _reduced(self) -> ReducedModel:
        if self.reduced_model is None:
            raise ValueError(f"model must be one with a reduced model, but {self.reduced_model_error}")
        return self.reduced_model

    def _swings(self, rate: float) -> bool:
        """Whether ηλ is not above the settings to which the reduced model was fitted."""
        return rate <= self._reduced().reference * (1 + 1e-9)

    def _errors(self, size: tuple[float, float], rate: float, draws: int, seed: int) -> FloatArray:
        """Random logarithms of what a prediction is wrong by."""
        apart = min(abs(math.log(rate / segment.intrinsic_lr)) for segment in self.calibration_runs)
        # apart from the numbers by which periods are drawn
        return np.random.default_rng([seed, 1]).normal(0, size[0] + size[1] * apart, draws)

    def _rate(self, lr: Any, wd: Any) -> float:
        lr, wd = check_number("lr", lr, above=0), check_number("wd", wd, above=0)
        rate = float(arguments.check_intrinsic_lr(np.asarray(lr), np.asarray(wd), below=1.0))
        least, largest = self.calibrated_range
        # a product of lr and wd may be off by rounding
        if not least * (1 - 1e-9) <= rate <= largest * (1 + 1e-9):
            warnings.warn(
                f"lr * wd = {rate:.3g} is outside the range of the model, {least:.3g} to {largest:.3g}; "
                "its predictions were not compared with training there",
                stacklevel=3,
            )
        return rate

    def _correction(self, rate: float, measured: str, simulated: str) -> float:
        known = [each for each in self.calibration_runs if not math.isnan(getattr(each, simulated))]
        return math.exp(
            interpolate(known, rate, lambda each: math.log(getattr(each, measured) / getattr(each, simulated)))
        )


def period(
    lr: float, wd: float, *, model: PeriodModel | None = None, periods: int = 200, seed: int = 0
) -> PredictedPeriod:
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


def _read_run(content: Mapping[str, Any]) -> CalibrationRun:
    return CalibrationRun(**{**content, **{name: tuple(content[name]) for name in ("lengths", "rises")}})


def _read_reduced_model(content: Mapping[str, Any]) -> ReducedModel:
    trends = ("loss_decay", "growth", "peak_loss", "peak_loss_sd", "duration")
    lists = {name: tuple(content[name]) for name in ("hazard", "peak_coefficients")}
    return ReducedModel(**{**content, **lists, **{name: Trend(**content[name]) for name in trends}})


def _checked_draws(level: float, draws: int, seed: int) -> tuple[float, int, int]:
    return (
        check_number("level", level, above=0, below=1),
        check_integer("draws", draws, at_least=2),
        check_integer("seed", seed, at_most=2**63 - 1),
    )


def _checked_model(model: PeriodModel | None) -> PeriodModel:
    if model is not None and not isinstance(model, PeriodModel):
        raise TypeError(f"model must be a PeriodModel, got {type(model).__name__}")
    return PeriodModel.reference() if model is None else model


@functools.cache
def _reference() -> PeriodModel:
    file = resources.files("simulate.period_model") / "reference_model.json"
    return PeriodModel._from_content(json.loads(file.read_text(encoding="utf-8")), "reference_model.json")


def _continued(start: xr.Dataset, count: int, dims: tuple[str, ...]) -> tuple[int, int, FloatArray]:
    check_trajectory(start, "final_oscillation")
    if start.attrs.get("source") != "period_model" or start.final_norm.dims != dims or start.final_norm.size != count:
        raise ValueError("start must be a trajectory of oscillate with the batch that lr and wd have")
    state = start.final_oscillation.values.reshape(count, len(_kernel.STATES)).copy()
    return int(start.status_step.values.reshape(-1)[0]) if count else 0, int(start.attrs["seed"]), state
