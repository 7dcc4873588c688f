"""Predict the periods of a network at other learning rates and weight decays, from a few calibration runs."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import theory
from simulate._files import read_json, write_json
from simulate.period_model.law import PeriodLaw
from simulate.period_model.prediction import Prediction, interpolate, predict_from_runs
from simulate.period_model.reduced_model import LEAST_HAZARD_POWER, ReducedModel, SimulatedPeriods, Trend
from simulate.period_model.summaries import CalibrationRun, norm_unit, pool_runs
from theory import arguments
from theory.arguments import check_integer, check_items, check_lr, check_number, check_wd, quote, warn_user
from theory.optimizers import check_optimizer, format_optimizer, with_dim

if TYPE_CHECKING:
    import xarray as xr

REACH = 30.0  # largest calibrated ηλ over the smallest ηλ that is predicted without a warning
_SCHEMA, _SCHEMA_WITHOUT_DIGEST = 4, 3
_LEAST_INTRINSIC_LR = 1e-15  # a period takes more steps than a float can count one by one
_ROUNDING = 1 + 1e-9  # lr * wd may be off by rounding
_MAX_DEVIATION = 1e6  # of ρ/√η from 1 at the start; the simulation returns from there without an overflow


@dataclass(frozen=True)
class PeriodModel:
    """Prediction of the norm dynamics of one network at any (lr, wd), fitted to a few calibration runs.

    `PeriodModel.from_runs` fits a model to measured trajectories. `empirical.calibrate` trains and fits in one call.
    `PeriodModel.reference` is the model of a small ConvNet. A fitted model predicts without further training:

    - `predict(lr, wd)`: equilibrium or periodic, period T with its interval, and statistics of the norm.
    - `oscillate(lr, wd, steps=…)`: simulated trajectory of the reduced model.

    `predict` works for every model. T comes from the balance law `law`, which needs at least 10 periods at the lowest
    ηλ. Norms at trough and peak come from the reduced model. It needs clear periods, and plain SGD on a network whose
    trained weights are all scale-invariant.

    A model describes one network with one optimizer, batch size and data set, at constant learning rate. Periods depend
    on lr and wd through ηλ alone. Predictions are most reliable between the calibrated ηλ; outside `calibrated_range`
    they come with a warning.

    Parameters
    ----------
    calibration_runs : summaries of the calibration runs.
    rise : threshold d of the period finder.
    reduced_model : fitted reduced model; None if it could not be fitted.
    reduced_model_error : reason why there is no reduced model; "" if there is one.
    optimizer : optimizer of the calibration runs; its text is accepted too.

    Raises
    ------
    TypeError, ValueError : there are no calibration runs, or `rise` is out of range.

    Source: docs/mathematics.md §5; the mechanism is that of arXiv 2106.15739.

    Examples
    --------
    >>> model = PeriodModel.reference()
    >>> prediction = model.predict(0.5, 0.02)
    >>> prediction.verdict, 60 < prediction.period < 80
    ('periodic', True)
    """

    calibration_runs: tuple[CalibrationRun, ...]
    rise: float
    reduced_model: ReducedModel | None
    reduced_model_error: str = ""
    optimizer: theory.Optimizer = field(default_factory=theory.SGD)

    def __post_init__(self) -> None:
        object.__setattr__(self, "optimizer", check_optimizer(self.optimizer))
        # the intervals of a model are cached, which needs values that can be hashed
        runs = check_items("calibration_runs", self.calibration_runs)
        object.__setattr__(self, "calibration_runs", runs)
        if not all(isinstance(run, CalibrationRun) for run in runs):
            raise TypeError(
                f"calibration_runs must hold CalibrationRun, got {quote(runs)}; from_runs takes trajectories"
            )
        check_number("rise", self.rise, above=0)
        if not self.calibration_runs:
            raise ValueError("calibration_runs must hold at least one run, got none")

    def __str__(self) -> str:
        lines = [f"period model, calibrated with {self.optimizer!r} at"]
        for run in self.calibration_runs:
            periods = f"T = {run.period:.4g} ± {run.period_stderr:.2g} steps" if run.count else "none"
            lines.append(f"  lr * wd = {run.intrinsic_lr:.3g}: {run.verdict}, {run.count} periods, {periods}")
        if self.reduced_model is None:
            lines.append(f"without a reduced model: {self.reduced_model_error}")
        return "\n".join(lines)

    @classmethod
    def from_runs(cls, calibration_runs: Sequence[xr.Dataset], *, rise: float = 0.1) -> PeriodModel:
        """Fit a model to measured trajectories of one network.

        For good predictions take two values of ηλ that differ by a factor of 5, with at least 100 periods each. Let the
        larger ηλ be the largest you want to predict. Several runs may share one ηλ, for example with different seeds.
        With a single ηλ, the trends with ηλ are unknown and taken to be constant.

        The balance law is fitted from the lowest ηλ up, as long as there are at least 10 periods. The reduced model is
        fitted to runs whose periods are also clear (φ at most 0.9), and needs one at the lowest ηλ. Without these
        the model has no law or no reduced model, but still predicts.

        Parameters
        ----------
        calibration_runs : trajectories with `norm`, `grad_norm` and `loss` at every step, at least 12/ηλ steps long,
            with constant lr and wd. The optimizer is SGD without momentum or with decoupled decay, AdamW or Lion.
            All but plain SGD need `rotation` too.
        rise : threshold d of the period finder, > 0.

        Returns
        -------
        PeriodModel

        Raises
        ------
        TypeError, ValueError : a trajectory does not meet these requirements; the message says which and why.

        Source: docs/mathematics.md §5.

        Examples
        --------
        Simulated runs of the reference model stand in for trained ones:

        >>> reference = PeriodModel.reference()
        >>> runs = [reference.oscillate(0.5, wd, steps=round(50 / wd), seed=1) for wd in (0.02, 0.004)]
        >>> model = PeriodModel.from_runs(runs)
        >>> abs(model.predict(0.5, 0.01).period / reference.predict(0.5, 0.01).period - 1) < 0.2
        True
        """
        from simulate.period_model.calibration import DecayPhases, fit_reduced_model, measure_run
        from simulate.trajectories.setting import Setting

        rise = check_number("rise", rise, above=0)
        if isinstance(calibration_runs, Mapping) or not check_items("calibration_runs", calibration_runs):
            raise TypeError(
                f"calibration_runs must be a sequence of trajectories, at least one, got {quote(calibration_runs)}"
            )
        runs = [(run, *measure_run(run, rise, f"calibration_runs[{i}]")) for i, run in enumerate(calibration_runs)]
        runs.sort(key=lambda run: -run[1].intrinsic_lr)
        summaries = [summary for _, summary, _ in runs]
        rules = [Setting.of(run).known_optimizer() for run, _, _ in runs]
        rule = rules[-1]
        if any(with_dim(rule, 1) != with_dim(other, 1) for other in rules):
            raise ValueError(f"calibration_runs must use one optimizer, got {', '.join(sorted(set(map(repr, rules))))}")

        def without_reduced_model(reason: str) -> PeriodModel:
            return cls(tuple(summaries), rise, None, reason, rule)

        lowest = summaries[-1].intrinsic_lr
        if not any(summary.is_clear for summary in summaries if summary.intrinsic_lr == lowest):
            return without_reduced_model(f"its calibration runs show no clear period: {'; '.join(map(str, summaries))}")
        if rule != theory.SGD():
            return without_reduced_model(f"the reduced model describes SGD(), not {rule}")
        clear = [run for run in runs if run[1].is_clear]
        phases = [DecayPhases(run, classification.periods) for run, _, classification in clear]
        try:
            reduced_model = fit_reduced_model(phases, [summary for _, summary, _ in clear])
        except ValueError as error:
            return without_reduced_model(str(error))
        simulated = {
            intrinsic_lr: reduced_model.simulate(intrinsic_lr, periods=1000, seed=0)
            for intrinsic_lr in {summary.intrinsic_lr for _, summary, _ in clear}
        }
        if not all(prediction.count for prediction in simulated.values()):
            return without_reduced_model(
                "its simulation has no periods at a setting where the calibration runs have some"
            )
        for number, summary in enumerate(summaries):
            if summary.is_clear:
                prediction = simulated[summary.intrinsic_lr]
                summaries[number] = dataclasses.replace(
                    summary,
                    simulated_period=prediction.mean,
                    simulated_trough_norm=prediction.trough_norm,
                    simulated_peak_norm=prediction.peak_norm,
                )
        return cls(tuple(summaries), rise, reduced_model, optimizer=rule)

    @classmethod
    def reference(cls) -> PeriodModel:
        """Return the model of the paper's ConvNet of width 4 (digits, mini-batches of 64, plain SGD).

        Other networks have other periods. `calibration_runs` holds the configurations of its calibration runs.

        Examples
        --------
        >>> [run.count > 100 for run in PeriodModel.reference().calibration_runs]
        [True, True, True, True]
        """
        return _reference()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save as JSON. An existing file is replaced at once, so that it is never half written.

        Examples
        --------
        >>> import tempfile
        >>> from pathlib import Path
        >>> target = Path(tempfile.mkdtemp()) / "model.json"
        >>> PeriodModel.reference().save(target)
        >>> PeriodModel.load(target) == PeriodModel.reference()
        True
        """
        write_json(
            arguments.check_path("path", path),
            {"schema": _SCHEMA, **dataclasses.asdict(self), "optimizer": format_optimizer(self.optimizer)},
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PeriodModel:
        """Load a model that `save` wrote.

        Raises
        ------
        ValueError : `path` holds no period model, or one of another version.

        Examples
        --------
        >>> PeriodModel.load("no such file")
        Traceback (most recent call last):
        ...
        ValueError: path must be a saved period model, got 'no such file'
        """
        file = arguments.check_path("path", path)
        if not file.exists():
            raise ValueError(f"path must be a saved period model, got {os.fspath(path)!r}")
        content = read_json(file, "path", digest_since=_SCHEMA)
        if content.get("schema") not in (_SCHEMA, _SCHEMA_WITHOUT_DIGEST):
            raise ValueError(
                f"path must hold a period model of schema {_SCHEMA}, got {os.fspath(path)!r}; calibrate again"
            )
        try:
            reduced_model, error = content["reduced_model"], content["reduced_model_error"]
            if reduced_model is not None and reduced_model["hazard"][1] < LEAST_HAZARD_POWER:
                # fitted by a version without this bound
                reduced_model, error = None, "its simulated norm could vanish; calibrate the network again"
            return cls(
                calibration_runs=tuple(_read_run(run) for run in content["calibration_runs"]),
                rise=content["rise"],
                reduced_model=None if reduced_model is None else _read_reduced_model(reduced_model),
                reduced_model_error=error,
                optimizer=check_optimizer(content["optimizer"], trust=False),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"path must hold a complete period model, got {os.fspath(path)!r}: {error!r}") from None

    @functools.cached_property
    def law(self) -> PeriodLaw:
        """Balance law. `law.period(lr, wd)` is T in steps.

        Raises
        ------
        ValueError : the calibration runs have fewer than 10 periods at their lowest ηλ; see `has_law`.
        """
        return PeriodLaw(self.calibration_runs)

    @property
    def has_law(self) -> bool:
        """Whether there is a balance law: at least 10 periods at the lowest ηλ of the calibration runs."""
        try:
            pool_runs(self.calibration_runs)
        except ValueError:
            return False
        return True

    @property
    def calibrated_range(self) -> tuple[float, float]:
        """Smallest and largest ηλ that is predicted without a warning.

        The largest is that of the calibration runs. With a balance law the range extends down to a thirtieth of it.
        Without one it ends at the smallest calibrated ηλ: runs at equilibrium do not show where periods begin.
        """
        intrinsic_lrs = [run.intrinsic_lr for run in self.calibration_runs]
        lowest, largest = min(intrinsic_lrs), max(intrinsic_lrs)
        return min(lowest, largest / REACH) if self.has_law else lowest, largest

    @property
    def peak_effective_lr(self) -> float:
        """Effective learning rate η/ρ² at a typical peak, where `oscillate` starts by default."""
        return math.exp(-2 * self._reduced().peak)

    def predict(self, lr: float, wd: float, *, level: float = 0.9, norms: bool = True) -> Prediction:
        """Predict the behaviour at one (lr, wd): equilibrium or periodic, period with interval, and norm statistics.

        Dimensionless ratios, such as the spread of ln ρ over J, are interpolated between the calibration runs and
        constant beyond them. Predictions are least reliable near the border between two verdicts.

        Parameters
        ----------
        lr, wd : η > 0 and λ > 0 with ηλ < 1; numbers.
        level : probability of the interval of the period, between 0 and 1.
        norms : whether to simulate the norms at trough and peak with the reduced model. Without them a prediction takes
            a tenth of the time, and `norm` comes from a power law.

        Returns
        -------
        Prediction: fields that the model cannot predict are NaN.

        Raises
        ------
        TypeError, ValueError : an argument is out of range.

        Warns
        -----
        UserWarning : ηλ is outside `calibrated_range`.

        Source: docs/mathematics.md §5.

        Examples
        --------
        >>> prediction = PeriodModel.reference().predict(0.5, 0.004)
        >>> prediction.verdict, 0.25 < prediction.log_norm_sd < 0.5
        ('periodic', True)
        """
        lr, wd = check_number("lr", lr, above=0), check_number("wd", wd, above=0)
        intrinsic_lr, level = self._intrinsic_lr(lr, wd), check_number("level", level, above=0, below=1)
        simulated = None
        if norms and self.reduced_model is not None and intrinsic_lr <= self.reduced_model.reference * _ROUNDING:
            with warnings.catch_warnings():
                # `_intrinsic_lr` has warned already
                warnings.simplefilter("ignore", UserWarning)
                simulated = simulated_periods(self, lr, wd)
        law = self.law if self.has_law else None
        if law is not None and law.obstacle(lr, wd):
            simulated = None
        return predict_from_runs(self.calibration_runs, lr, wd, level, norm_unit(self.optimizer, lr), law, simulated)

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
        """Simulate a trajectory of the reduced model, without correction by the calibration runs.

        Parameters
        ----------
        lr, wd : η > 0 and λ > 0 with ηλ < 1: numbers, or arrays of one axis for a batch.
        steps : number of updates.
        seed : seed of the random numbers. Each is a function of the seed, the walker and the number of the
            destabilization, so that a walker does not depend on the others.
        norm : ρ > 0 at the start: a number, or one for each walker. Default is a typical peak.
        record_every : only steps whose number is divisible by it are recorded.
        start : trajectory of an earlier call to continue, with its seed and step numbers. The result is the same as
            without the interruption. `norm` must be None; `seed` is ignored.

        Returns
        -------
        Trajectory (see `simulate.trajectories.contract`) with `norm`, `loss`, `effective_lr`, `grad_norm` and
        `rotation`. The last two are those that the one-step law needs for these norms. `final_oscillation` is the last
        state.

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
        from simulate.period_model import _kernel
        from simulate.trajectories.contract import COMPLETE, check_trajectory, make_trajectory

        reduced = self._reduced()
        steps, record_every = check_integer("steps", steps), check_integer("record_every", record_every, at_least=1)
        seed = check_integer("seed", seed, at_most=2**63 - 1)
        peak = np.sqrt(np.asarray(check_lr(lr)) / self.peak_effective_lr)
        begins = peak if norm is None else arguments.check_real("norm", norm, above=0)
        lrs, wds, begins = arguments.broadcast(lr=check_lr(lr), wd=check_wd(wd), norm=begins)
        if lrs.ndim > 1:
            raise ValueError(f"lr, wd and norm must have at most one axis, got shapes that broadcast to {lrs.shape}")
        shape, dims = lrs.shape, ("batch",)[: lrs.ndim]
        flat_lrs, flat_wds = lrs.reshape(-1).copy(), wds.reshape(-1).copy()
        intrinsic_lrs = [self._intrinsic_lr(*setting) for setting in zip(flat_lrs, flat_wds, strict=True)]
        constants = np.array([reduced.constants(value) for value in intrinsic_lrs]).reshape(-1, _kernel.CONSTANTS)
        begin, walker = 0, np.arange(flat_lrs.size)
        if start is None:
            log_norm = np.log(begins.reshape(-1)) - np.log(flat_lrs) / 2
            if (np.abs(log_norm) > math.log(_MAX_DEVIATION)).any():
                raise ValueError(
                    f"norm must be within a factor of {_MAX_DEVIATION:g} of the root of lr, got {quote(norm)}"
                )
            state = reduced.initial_state(log_norm, constants, seed, walker)
        elif norm is None:
            check_trajectory(start, "final_oscillation", argument="start")
            if start.attrs.get("source") != "period_model" or (start.final_norm.dims, start.final_norm.shape) != (
                dims,
                shape,
            ):
                raise ValueError("start must be a trajectory of oscillate with the same batch as lr and wd")
            begin, seed = int(start.status_step.max()) if walker.size else 0, int(start.attrs["seed"])
            state = start.final_oscillation.values.reshape(-1, len(_kernel.STATES)).copy()
        else:
            raise ValueError("norm must be None with start, whose last norm is the first of this run")
        arguments.check_rows("steps", steps // record_every, 4 * walker.size)
        step = np.arange(-(-begin // record_every) * record_every, begin + steps, record_every)
        recorded = np.empty((3, walker.size, step.size))
        no_statistics = np.empty((0, _kernel.STATISTICS))
        _kernel.iterate_oscillation(
            state,
            constants,
            np.uint64(seed),
            walker,
            begin,
            steps,
            record_every,
            recorded,
            no_statistics,
            0,
            1,
            0,
            self.rise,
            self.rise,
        )
        log_norm, loss, change = recorded.reshape(3, *shape, step.size)
        intrinsic_lr = (lrs * wds)[..., np.newaxis]
        # growth in excess of the decay, expressed as the gradient that would cause it
        turn = (1 - intrinsic_lr) * np.sqrt(np.expm1(2 * np.maximum(change - np.log1p(-intrinsic_lr), 0)))
        effective_lr = np.exp(-2 * log_norm)
        settings = {"lr": (dims, flat_lrs), "wd": (dims, flat_wds)} if dims else {}
        return make_trajectory(
            {
                "norm": np.sqrt(lrs)[..., np.newaxis] * np.exp(log_norm),
                "grad_norm": turn / effective_lr,
                "effective_lr": effective_lr,
                "rotation": np.arctan2(turn, 1 - intrinsic_lr),
                "loss": loss,
            },
            step=step,
            source="period_model",
            final_norm=np.sqrt(lrs) * np.exp(state[:, _kernel.LOG_NORM]).reshape(shape),
            status=np.full(shape, COMPLETE, dtype=object),
            status_step=np.full(shape, begin + steps),
            dims=dims,
            coords={**settings, "oscillation": (("oscillation",), np.array(_kernel.STATES, dtype=object))},
            last_state={"final_oscillation": ((*dims, "oscillation"), state.reshape(*shape, len(_kernel.STATES)))},
            attributes={"optimizer": "SGD()", "seed": seed, **({} if dims else {"lr": float(lrs), "wd": float(wds)})},
        )

    def _reduced(self) -> ReducedModel:
        if self.reduced_model is None:
            raise ValueError(f"model must have a reduced model, but {self.reduced_model_error}")
        return self.reduced_model

    def _intrinsic_lr(self, lr: Any, wd: Any) -> float:
        """Check lr and wd, warn outside the calibrated range, and return ηλ."""
        lr, wd = check_number("lr", lr, above=0), check_number("wd", wd, above=0)
        intrinsic_lr = float(arguments.check_intrinsic_lr(np.asarray(lr), np.asarray(wd), below=1.0))
        if intrinsic_lr < _LEAST_INTRINSIC_LR:
            raise ValueError(f"lr * wd must be >= {_LEAST_INTRINSIC_LR:g} for a prediction, got {intrinsic_lr:.3g}")
        lowest, largest = self.calibrated_range
        if not lowest / _ROUNDING <= intrinsic_lr <= largest * _ROUNDING:
            warn_user(
                f"lr * wd = {intrinsic_lr:.3g} is outside the range of the model, {lowest:.3g} to {largest:.3g}; "
                "its predictions were not compared with training there"
            )
        return intrinsic_lr


def period(lr: float, wd: float, *, model: PeriodModel | None = None, level: float = 0.9) -> Prediction:
    """Predict the period of a network, with its interval, verdict and norms, without training.

    Parameters
    ----------
    lr, wd, level : as in `PeriodModel.predict`.
    model : model of the network. Default is `PeriodModel.reference()`, that of a small ConvNet.

    Returns
    -------
    Prediction: `period` is T in steps.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Warns
    -----
    UserWarning : ηλ is outside the calibrated range of the model.

    Source: docs/mathematics.md §5.

    Examples
    --------
    >>> print(period(0.5, 0.004))
    periodic, T = 445.8 steps, 424.2 … 464.6 steps (90 %)
    """
    return _model_or_reference(model).predict(lr, wd, level=level)


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
    model : model of the network. Default is `PeriodModel.reference()`, that of a small ConvNet.

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
    return _model_or_reference(model).oscillate(
        lr, wd, steps=steps, seed=seed, norm=norm, record_every=record_every, start=start
    )


def simulated_periods(
    model: PeriodModel, lr: float, wd: float, *, periods: int = 200, seed: int = 0
) -> SimulatedPeriods:
    """Periods of the reduced model of a network, corrected by its calibration runs.

    The norms at trough and peak of `PeriodModel.predict` come from here. Studies compare the mean period with that of
    the balance law. Each number is multiplied by `simulation_correction`.

    Parameters
    ----------
    model : period model with a reduced model.
    lr, wd : η > 0 and λ > 0 with ηλ < 1; numbers.
    periods : number of periods to simulate; numbers above 16 are rounded up to a multiple of 16.
    seed : seed of the simulation.

    Returns
    -------
    SimulatedPeriods: its numbers are NaN if the simulation has fewer than two periods in 400/ηλ steps.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range, or there is no reduced model.

    Warns
    -----
    UserWarning : ηλ is outside `calibrated_range`, or above every calibration run with clear periods.

    Source: docs/mathematics.md §5.

    Examples
    --------
    >>> simulated = simulated_periods(PeriodModel.reference(), 0.5, 0.004)
    >>> simulated.trough_norm < simulated.peak_norm, simulated.count
    (True, 208)
    """
    lr, intrinsic_lr = check_number("lr", lr, above=0), model._intrinsic_lr(lr, wd)
    periods = check_integer("periods", periods, at_least=2)
    seed = check_integer("seed", seed, at_most=2**63 - 1)
    reduced_model = model._reduced()
    simulated = reduced_model.simulate(intrinsic_lr, periods, seed)
    if reduced_model.reference < intrinsic_lr / _ROUNDING <= model.calibrated_range[1]:
        warn_user(f"the calibration runs show no clear period near lr * wd = {intrinsic_lr:.3g}")
    length, trough, peak = (
        simulation_correction(model, intrinsic_lr, name) for name in ("period", "trough_norm", "peak_norm")
    )
    trough_norm = simulated.trough_norm * trough * math.sqrt(lr)
    return dataclasses.replace(
        simulated,
        mean=simulated.mean * length,
        std=simulated.std * length,
        stderr=simulated.stderr * length,
        trough_norm=trough_norm,
        peak_norm=simulated.peak_norm * peak * math.sqrt(lr),
        effective_lr_at_destabilization=lr / trough_norm**2,
    )


def simulation_correction(model: PeriodModel, intrinsic_lr: float, name: str) -> float:
    """Ratio of a measured to a simulated number of the calibration runs, interpolated in ln ηλ and constant beyond.

    Parameters
    ----------
    model : period model with a reduced model.
    intrinsic_lr : ηλ.
    name : "period", "trough_norm" or "peak_norm".

    Returns
    -------
    float

    Source: docs/mathematics.md §5.

    Examples
    --------
    >>> 0.8 < simulation_correction(PeriodModel.reference(), 0.005, "period") < 1.2
    True
    """

    def log_ratio(run: CalibrationRun) -> float:
        return math.log(getattr(run, name) / getattr(run, f"simulated_{name}"))

    clear = [run for run in model.calibration_runs if not math.isnan(run.simulated_period)]
    return math.exp(interpolate(clear, intrinsic_lr, log_ratio))


def _read_run(content: Mapping[str, Any]) -> CalibrationRun:
    return CalibrationRun(**{**content, **{name: tuple(content[name]) for name in ("lengths", "rises")}})


def _read_reduced_model(content: Mapping[str, Any]) -> ReducedModel:
    trends = ("loss_decay", "growth", "peak_loss", "peak_loss_sd", "duration")
    lists = {name: tuple(content[name]) for name in ("hazard", "peak_coefficients")}
    return ReducedModel(**{**content, **lists, **{name: Trend(**content[name]) for name in trends}})


def _model_or_reference(model: PeriodModel | None) -> PeriodModel:
    if model is not None and not isinstance(model, PeriodModel):
        raise TypeError(f"model must be a PeriodModel, got {type(model).__name__}")
    return PeriodModel.reference() if model is None else model


@functools.cache
def _reference() -> PeriodModel:
    with resources.as_file(resources.files("simulate.period_model") / "reference_model.json") as path:
        return PeriodModel.load(path)
