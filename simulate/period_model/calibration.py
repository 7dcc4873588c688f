"""Measure calibration runs, and fit the reduced model to them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import xarray as xr

import theory
from simulate.period_model.reduced_model import LEAST_HAZARD_POWER, ReducedModel, Trend
from simulate.period_model.summaries import CalibrationRun, norm_unit
from simulate.trajectories.classification import Classification, classify
from simulate.trajectories.contract import check_trajectory
from simulate.trajectories.periods import MeasuredPeriods, after_transient
from simulate.trajectories.setting import Setting
from theory.arguments import FloatArray, quote

MIN_RELAXATIONS = 12  # least length of a calibration run, in units of 1/ηλ


def measure_run(trajectory: xr.Dataset, rise: float, name: str) -> tuple[CalibrationRun, Classification]:
    """Check and summarize a calibration run, with norms in units of `norm_unit`; `name` is its name in messages."""
    try:
        check_trajectory(trajectory, "grad_norm", "loss", single=True)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None
    setting = Setting.of(trajectory)
    rule, intrinsic_lr = setting.law(name), setting.intrinsic_lr
    if not isinstance(rule, (theory.SGD, theory.AdamW, theory.Lion)) or (
        isinstance(rule, theory.SGD) and rule.momentum and not rule.decoupled
    ):
        raise ValueError(
            f"{name} must use an optimizer that decays the weights by lr * wd in each step: SGD without momentum or "
            f"decoupled, AdamW or Lion; got {quote(rule)}"
        )
    if np.any(np.diff(trajectory.step.values) != 1):
        raise ValueError(f"{name} must have every step, but rows are missing; record it with record_every=1")
    if not 0 < intrinsic_lr < 1:
        raise ValueError(f"{name} must have 0 < lr * wd < 1, got {intrinsic_lr:.6g}")
    if trajectory.sizes["step"] < MIN_RELAXATIONS / intrinsic_lr:
        raise ValueError(
            f"{name} must have at least {MIN_RELAXATIONS}/(lr * wd) = {MIN_RELAXATIONS / intrinsic_lr:.4g} rows, "
            f"got {trajectory.sizes['step']}"
        )
    lr, wd = setting.constants()
    if "rotation" not in trajectory:
        if rule != theory.SGD():
            raise ValueError(f"{name} must have the variable 'rotation' for {rule!r}")
        # for scale-invariant weights under plain SGD the rotation follows from the norms
        rotation = theory.rotation(trajectory.norm.values, lr, wd, trajectory.grad_norm.values)
        trajectory = trajectory.assign(rotation=("step", rotation))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        classification = classify(trajectory, rise=rise)
    periods, unit = classification.periods, norm_unit(rule, lr)
    calibration_run = CalibrationRun(
        intrinsic_lr=intrinsic_lr,
        count=periods.count,
        period=periods.mean,
        period_stderr=periods.stderr,
        norm_rise=periods.norm_rise,
        outside_growth=periods.outside_growth,
        trough_norm=periods.trough_norm / unit,
        peak_norm=periods.peak_norm / unit,
        run=str(trajectory.attrs.get("config", "")),
        lengths=tuple(periods.lengths.tolist()),
        rises=tuple(np.log(periods.peak_norms / periods.trough_norms).tolist()),
        verdict=classification.verdict,
        rotation_ratio=classification.rotation_ratio,
        log_norm_sd=classification.log_norm_sd,
        autocorrelation_time=classification.autocorrelation_time,
        threshold_ratio=classification.threshold_ratio,
        norm=classification.typical_norm / unit,
        feedback_score=classification.feedback.score,
    )
    return calibration_run, classification


class DecayPhases:
    """Decay phases of a run that `measure_run` has checked, each from a peak of ln z to the next trough."""

    def __init__(self, trajectory: xr.Dataset, periods: MeasuredPeriods) -> None:
        self.periods, self.intrinsic_lr = periods, periods.intrinsic_lr
        settled = after_transient(trajectory)
        self.log_norm = (
            np.log(settled.norm.values.astype(np.float64)) - math.log(Setting.of(trajectory).constants()[0]) / 2
        )
        self.loss = np.maximum(settled.loss.values.astype(np.float64), np.finfo(np.float64).tiny)
        self.effective_lr = np.exp(-2 * self.log_norm)
        turn = self.effective_lr * settled.grad_norm.values / (1 - self.intrinsic_lr)
        self.growth = np.log1p(turn**2) / 2
        self.onsets = np.searchsorted(settled.step.values, self.periods.onsets)
        self.peaks = np.array(
            [a + np.argmax(self.log_norm[a:b]) for a, b in zip(self.onsets[:-1], self.onsets[1:], strict=True)]
        )
        self.spans = [slice(a, b) for a, b in zip(self.peaks, self.onsets[1:], strict=True)]
        # τ: integral of the effective learning rate since the peak
        self.times = [np.concatenate([[0.0], np.cumsum(self.effective_lr[span])[:-1]]) for span in self.spans]
        self.rise_duration = float(np.mean(self.peaks - self.onsets[:-1]))
        self.first_losses, self.smooth_losses = np.empty(0), [np.empty(0)]

    def loss_decay(self) -> float:
        """Constant c of dL/dτ = -cL²: median over the decay phases of the slope of 1/L.

        The slope is fitted to the mean loss of each eighth of a decay phase.
        """
        slopes = []
        for span, times in zip(self.spans, self.times, strict=True):
            if times.size >= 16:
                parts = np.array_split(np.arange(times.size), 8)
                mean_losses = np.array([self.loss[span][part].mean() for part in parts])
                mean_times = np.array([times[part].mean() for part in parts])
                # 1/L has the relative error of L, hence the weights L
                slopes.append(np.polyfit(mean_times, 1 / mean_losses, 1, w=mean_losses)[0])
        loss_decay = float(np.median(slopes)) if slopes else math.nan
        if not loss_decay > 0:
            raise ValueError(
                "the loss does not decrease between the destabilizations of its calibration runs at "
                f"lr * wd = {self.intrinsic_lr:.3g}"
            )
        return loss_decay

    def smooth_loss(self, loss_decay: float) -> None:
        """Fit L(τ) = 1/(1/L₀ + cτ) to each decay phase: L₀ such that the mean loss is the measured one."""
        from scipy.optimize import brentq

        def first_loss(times: FloatArray, mean: float) -> float:
            def excess(log_first: float) -> float:
                return float(np.mean(1 / (math.exp(-log_first) + loss_decay * times)) - mean)

            return math.exp(brentq(excess, math.log(mean) - 1, math.log(mean * times.size) + 1))

        self.first_losses = np.array(
            [
                first_loss(times, float(self.loss[span].mean()))
                for span, times in zip(self.spans, self.times, strict=True)
            ]
        )
        self.smooth_losses = [
            1 / (1 / first + loss_decay * times) for first, times in zip(self.first_losses, self.times, strict=True)
        ]

    def growth_constant(self) -> float:
        """Constant k for which min(½k(η̃L)², 2ηλ) has the mean of the growth measured in the decay phases."""
        from scipy.optimize import brentq

        turn = np.concatenate(
            [self.effective_lr[span] * loss for span, loss in zip(self.spans, self.smooth_losses, strict=True)]
        )
        mean = min(float(np.concatenate([self.growth[span] for span in self.spans]).mean()), 1.9 * self.intrinsic_lr)

        def excess(log_constant: float) -> float:
            return float(np.minimum(math.exp(log_constant) * turn**2 / 2, 2 * self.intrinsic_lr).mean() - mean)

        return math.exp(brentq(excess, -100, 300))


def fit_reduced_model(phases: Sequence[DecayPhases], calibration_runs: Sequence[CalibrationRun]) -> ReducedModel:
    """Fit the constants of the reduced model to decay phases and summaries of the same runs, the largest ηλ first."""
    reference = phases[0].intrinsic_lr
    relative = [run.intrinsic_lr / reference for run in phases]
    loss_decay = Trend.through(relative, [run.loss_decay() for run in phases])
    for run, relative_lr in zip(phases, relative, strict=True):
        run.smooth_loss(loss_decay.at(relative_lr))
    coefficients, residual_sd = _fit_peak_law(phases)
    log_first_losses = [np.log(run.first_losses) for run in phases]
    return ReducedModel(
        loss_decay=loss_decay,
        growth=Trend.through(relative, [run.growth_constant() for run in phases]),
        hazard=_fit_hazard(phases),
        peak_coefficients=coefficients,
        peak_residual_sd=residual_sd,
        peak_loss=Trend.through(relative, [math.exp(values.mean()) for values in log_first_losses]),
        peak_loss_sd=Trend.through(relative, [values.std() for values in log_first_losses]),
        duration=Trend.through(relative, [run.rise_duration for run in phases]),
        rise=phases[0].periods.rise,
        reference=reference,
        lowest=phases[-1].intrinsic_lr,
        peak=float(np.mean([math.log(run.peak_norm) for run in calibration_runs])),
    )


def _fit_peak_law(phases: Sequence[DecayPhases]) -> tuple[tuple[float, float, float], float]:
    """Regress ln z at the peak on ln z and ln L at the trough before it; return coefficients and residual spread."""
    predictors, peaks = [], []
    for run in phases:
        onset = run.log_norm[run.onsets[1:-1]]
        loss = np.log([smooth[-1] for smooth in run.smooth_losses[:-1]])
        predictors.append(np.stack([np.ones_like(onset), onset, loss], axis=1))
        peaks.append(run.log_norm[run.peaks[1:]])
    design, response = np.concatenate(predictors), np.concatenate(peaks)
    coefficients = np.linalg.lstsq(design, response, rcond=None)[0]
    residual_sd = float((response - design @ coefficients).std())
    return (float(coefficients[0]), float(coefficients[1]), float(coefficients[2])), residual_sd


def _fit_hazard(phases: Sequence[DecayPhases]) -> tuple[float, float]:
    """Fit (a, p) of ln h = a + ln L + p ln η̃ by maximum likelihood: one event at the end of each decay phase.

    p is at least 1. During decay L falls as ηλ/η̃, so for p < 1 the sum of all hazards would be finite. Then some decay
    phases would never end, and the norm would vanish.
    """
    log_lrs, losses = [], []
    for run in phases:
        for span, smooth in zip(run.spans, run.smooth_losses, strict=True):
            # an earlier rise would have counted as part of the last one
            ready = run.log_norm[span] <= run.log_norm[span.start] - run.periods.rise
            log_lrs.append(-2 * run.log_norm[span][ready])
            losses.append(np.log(smooth[ready]))
    log_lr, log_loss = np.concatenate(log_lrs), np.concatenate(losses)
    events, mean_log_lr = np.zeros(log_lr.size), float(log_lr.mean())
    events[np.cumsum([part.size for part in log_lrs]) - 1] = 1
    terms = np.stack([np.ones_like(log_lr), log_lr - mean_log_lr])
    coefficients = np.array([math.log(events.sum() / np.exp(log_loss).sum()), 0.0])
    # Newton's method; the likelihood is concave
    for _ in range(200):
        hazard = np.exp(log_loss + coefficients @ terms)
        move = np.linalg.solve((terms * hazard) @ terms.T, terms @ (events - hazard))
        move *= min(1.0, 1.0 / float(np.abs(move).max()))
        coefficients = coefficients + move
        if np.abs(move).max() < 1e-10:
            break
    if coefficients[1] < LEAST_HAZARD_POWER:
        # the likelihood is concave, so its maximum is at the bound
        hazard = np.exp(log_loss + LEAST_HAZARD_POWER * terms[1])
        coefficients = np.array([math.log(events.sum() / hazard.sum()), LEAST_HAZARD_POWER])
    return float(coefficients[0] - coefficients[1] * mean_log_lr), float(coefficients[1])
