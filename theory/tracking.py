"""Norm under a changing learning rate and weight decay, and how closely it follows its equilibrium.

The schedules of lr and wd are functions of the step (docs/mathematics.md §9).
"""

from __future__ import annotations

from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike

from theory.arguments import (
    FloatArray,
    Number,
    broadcast,
    check_integer,
    check_intrinsic_lr,
    check_lr,
    check_number,
    check_real,
    check_rows,
    check_wd,
    to_float,
)
from theory.design import wd_for_norm
from theory.equilibrium import equilibrium_norm, relaxation_rate
from theory.optimizers import Optimizer, OptimizerLike, check_norm_law, check_optimizer, with_dim
from theory.schedules import Schedule, schedule_values

WdLike = ArrayLike | Schedule


def norm_under_schedule(
    lr: ArrayLike | Schedule,
    wd: WdLike,
    steps: int,
    *,
    norm: ArrayLike,
    grad_norm: ArrayLike = 1.0,
    optimizer: OptimizerLike = None,
) -> FloatArray:
    """Norm at every step under any schedules of the learning rate and the weight decay, for every optimizer.

    A power of the norm obeys a linear law in the limit of small steps: ρ⁴ under SGD, ρ² under AdamW, Lion and Muon, ρ³
    under Adam with L2 regularization. This law is solved exactly over each step. Its relative error is of order ηλ. It
    also assumes that the norm changes little within the memory of the optimizer. That is 1/(1-μ) steps with momentum,
    and 1/(1-β₂) steps under Adam, AdamW and Lion. Otherwise use `simulate.norm_map` or `simulate.random_walk`.

    Parameters
    ----------
    lr, wd : η > 0 and λ >= 0: numbers, arrays or schedules. ηλ must be below the optimizer's limit.
    steps : number of steps N >= 1.
    norm : ρ > 0 at step 0.
    grad_norm : g̃ > 0 (units of the loss), not needed for AdamW, Lion and Muon. Arrays broadcast.
    optimizer : object or its text form; default `SGD()`.

    Returns
    -------
    ρ before the steps 0 … N-1, and after the last: array of shape (..., N+1).

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §9.

    Examples
    --------
    >>> from theory.schedules import Cosine
    >>> schedule = Cosine(1e-3, 1e-4, steps=20_000)
    >>> norms = norm_under_schedule(schedule, 0.5, 20_000, norm=1.0, optimizer="AdamW(dim=1000)")
    >>> norms[[0, -1]].round(3).tolist()
    [1.0, 0.519]
    """
    rule, count = check_optimizer(optimizer), check_integer("steps", steps, at_least=1)
    check_norm_law(rule)
    check_rows("steps", count)
    at = np.arange(count, dtype=float)
    lrs = schedule_values(lr, "lr", at) if callable(lr) else check_lr(lr)[..., np.newaxis]
    wds = schedule_values(wd, "wd", at) if callable(wd) else check_wd(wd)[..., np.newaxis]
    start, gradient = (
        check_real(name, value, above=0)[..., np.newaxis] for name, value in (("norm", norm), ("grad_norm", grad_norm))
    )
    check_intrinsic_lr(lrs, wds, below=rule.intrinsic_lr_limit)
    start = np.broadcast_to(start, (*start.shape[:-1], count))
    lrs, wds, gradient, start = broadcast(lr=lrs, wd=wds, grad_norm=gradient, norm=start)
    rates, growth = rule.norm_rate(lrs, wds, gradient), rule.norm_growth(lrs, gradient)
    norms = np.empty((*start.shape[:-1], count + 1))
    norms[..., 0] = start[..., 0]
    for t in range(count):
        norms[..., t + 1] = _next_norm(rule, norms[..., t], rates[..., t], growth[..., t])
    return norms


def _next_norm(rule: Optimizer, norm: FloatArray, rate: FloatArray, growth: FloatArray) -> FloatArray:
    """Norm after one step by the linear law of its power."""
    scale = norm**rule.rate_exponent
    decay = rate * scale
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(decay > 0, -np.expm1(-decay) / decay, 1.0)
    return np.asarray((np.exp(-decay) * norm**rule.norm_power + growth * scale * share) ** (1 / rule.norm_power))


class EffectiveLrSettings(NamedTuple):
    """Settings of each step that give a wanted effective learning rate: arrays of shape (..., N)."""

    lr: FloatArray
    wd: FloatArray
    norm: FloatArray
    """Predicted norm before the steps 0 … N-1, and after the last: shape (..., N+1)."""


def settings_for_effective_lr(
    effective_lr: ArrayLike | Schedule,
    steps: int,
    *,
    wd: WdLike | None = None,
    norm: ArrayLike = 1.0,
    grad_norm: ArrayLike = 1.0,
    optimizer: OptimizerLike = None,
) -> EffectiveLrSettings:
    """Learning rate and weight decay of each step at which the effective learning rate is as wanted.

    With a given weight decay the learning rate follows the norm: η_t = e_t ρ_t² for SGD, and e_t ρ_t for Adam, AdamW,
    Lion and Muon. With `wd=None` the weight decay changes instead, so that the norm stays constant. It is the decay
    whose equilibrium norm at the learning rate of the step is `norm`.

    The norms obey the law of `norm_under_schedule`, with a relative error of order ηλ. If the true gradient norm
    differs from `grad_norm`, so do the norm and the effective learning rate of SGD and Adam.

    Parameters
    ----------
    effective_lr : e > 0: number, array or schedule. η/ρ² for SGD, η/ρ for Adam, AdamW, Lion and Muon.
    steps : number of steps N >= 1.
    wd : λ >= 0: number, array, or schedule; None for a constant norm.
    norm : ρ > 0 at step 0.
    grad_norm : g̃ > 0 (units of the loss), not needed for AdamW, Lion and Muon. Arrays broadcast.
    optimizer : object or its text form; default `SGD()`.

    Returns
    -------
    EffectiveLrSettings(lr, wd, norm). λ is NaN where no decay keeps the norm constant, because the steps are too large.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range, or ηλ reaches the limit of the optimizer.

    Source: docs/mathematics.md §9.

    Examples
    --------
    >>> from theory.schedules import Cosine
    >>> settings = settings_for_effective_lr(Cosine(0.02, 0.002, steps=1000), 1000, wd=0.01, norm=2.0)
    >>> settings.lr[[0, -1]].round(4).tolist(), settings.norm[-1].round(3).item()
    ([0.08, 0.0048], 1.544)
    >>> settings = settings_for_effective_lr(Cosine(0.02, 0.002, steps=1000), 1000, norm=2.0)
    >>> settings.lr[[0, -1]].round(4).tolist(), settings.wd[[0, -1]].round(6).tolist()
    ([0.08, 0.008], [0.0025, 0.00025])
    """
    rule, count = check_optimizer(optimizer), check_integer("steps", steps, at_least=1)
    check_norm_law(rule)
    check_rows("steps", count, 3)
    at = np.arange(count, dtype=float)
    if callable(effective_lr):
        target = schedule_values(effective_lr, "effective_lr", at)
    else:
        target = check_lr(effective_lr, "effective_lr")[..., np.newaxis]
    wds = (
        np.zeros(1) if wd is None else schedule_values(wd, "wd", at) if callable(wd) else check_wd(wd)[..., np.newaxis]
    )
    start, gradient = (
        check_real(name, value, above=0)[..., np.newaxis] for name, value in (("norm", norm), ("grad_norm", grad_norm))
    )
    start = np.broadcast_to(start, (*start.shape[:-1], count))
    target, wds, gradient, start = broadcast(effective_lr=target, wd=wds, grad_norm=gradient, norm=start)
    if wd is None:
        lrs = target * start ** (1 / rule.norm_exponent)
        norms = np.concatenate([start, start[..., -1:]], axis=-1)
        return EffectiveLrSettings(lrs, np.asarray(wd_for_norm(lrs, start, grad_norm=gradient, optimizer=rule)), norms)
    lrs, norms = np.empty(start.shape), np.empty((*start.shape[:-1], count + 1))
    norms[..., 0] = start[..., 0]
    for t in range(count):
        here = norms[..., t]
        lrs[..., t] = target[..., t] * here ** (1 / rule.norm_exponent)
        check_intrinsic_lr(lrs[..., t], wds[..., t], below=rule.intrinsic_lr_limit)
        rate = rule.norm_rate(lrs[..., t], wds[..., t], gradient[..., t])
        norms[..., t + 1] = _next_norm(rule, here, rate, rule.norm_growth(lrs[..., t], gradient[..., t]))
    return EffectiveLrSettings(lrs, np.array(wds), norms)


@overload
def tracking_lag(
    lr: Schedule, wd: Number | Schedule, step: Number, *, grad_norm: Number = 1.0, optimizer: OptimizerLike = None
) -> float: ...
@overload
def tracking_lag(
    lr: Schedule, wd: WdLike, step: ArrayLike, *, grad_norm: ArrayLike = 1.0, optimizer: OptimizerLike = None
) -> FloatArray: ...
def tracking_lag(
    lr: Schedule, wd: WdLike, step: ArrayLike, *, grad_norm: ArrayLike = 1.0, optimizer: OptimizerLike = None
) -> Any:
    """Relative lag of the norm behind the equilibrium of the current learning rate and weight decay, ρ/ρ* - 1.

    To first order in slow changes it is -τ d(ln ρ*)/dt, with the relaxation time τ. For constant λ this is
    -(d ln η/dt)/(16ηλ) under plain SGD, and four times as much under AdamW, Lion and Muon. Where the lag is no longer
    small, the norm cannot follow: it stays too large while η decreases, and the gradient norm g̃/ρ stops growing.
    `norm_under_schedule` has no such limit.

    Parameters
    ----------
    lr : schedule.
    wd : λ >= 0: number, array or schedule.
    step : step numbers >= 0; broadcasts with `wd` and `grad_norm`.
    grad_norm : g̃ > 0; only needed for `Adam` with L2 regularization.
    optimizer : object or its text form; default `SGD()`.

    Returns
    -------
    lag: float or array; 0 where the schedules are constant, and `inf` with the sign of the lag where η changes and
    wd = 0.

    Raises
    ------
    TypeError, ValueError : `lr` is not a schedule, or an argument is not a number or is out of range.

    Source: docs/mathematics.md §9, from the differential equation of §5.

    Examples
    --------
    >>> from theory.schedules import Linear
    >>> schedule = Linear(0.5, 1e-6, steps=10_000)
    >>> round(tracking_lag(schedule, 0.01, 5000), 6)  # 1/(16·0.25·0.01·5000)
    0.005
    >>> round(tracking_lag(schedule, 0.01, 5000, optimizer="AdamW"), 6)
    0.02
    """
    rule = check_optimizer(optimizer)
    check_norm_law(rule)
    at, gradient = check_real("step", step, at_least=0), check_real("grad_norm", grad_norm, above=0)
    # central difference over one step, one-sided at step 0
    before, after = np.maximum(at - 0.5, 0), at + 0.5
    lrs = [schedule_values(lr, "lr", time) for time in (before, at, after)]
    wds = [schedule_values(wd, "wd", time) if callable(wd) else check_wd(wd) for time in (before, at, after)]
    with np.errstate(divide="ignore", invalid="ignore"):
        decay = np.where(wds[0] == wds[2], 0.0, np.log(wds[2] / wds[0]))
        # ρ*^p is proportional to η/λ, to first order
        change = (np.log(lrs[2] / lrs[0]) - decay) / ((after - before) * rule.norm_power)
        rate = relaxation_rate(rule, *broadcast(lr=lrs[1], wd=wds[1], grad_norm=gradient))
        return to_float(np.where(change == 0, 0.0, -change / rate))


@overload
def corrected_decay(lr: Schedule, wd: Number, step: Number, *, lr_max: Number) -> float: ...
@overload
def corrected_decay(lr: Schedule, wd: ArrayLike, step: ArrayLike, *, lr_max: ArrayLike) -> FloatArray: ...
def corrected_decay(lr: Schedule, wd: ArrayLike, step: ArrayLike, *, lr_max: ArrayLike) -> Any:
    """Weight decay λη_t/η_max, at which the equilibrium norm does not change with the learning rate.

    With constant λ the equilibrium norm decreases with η, so the gradient norm of the weights grows. With this decay
    ρ*⁴ ≈ ηg̃²/(2λ_t) = η_max g̃²/(2λ) at every step. It serves all optimizers, because to first order their ρ* depends
    on η and λ through η/λ only.

    Parameters
    ----------
    lr : schedule.
    wd : λ >= 0 at the largest learning rate.
    step : step numbers >= 0.
    lr_max : η_max > 0, the largest learning rate of the schedule. All broadcast.

    Returns
    -------
    λ_t: float or array.

    Raises
    ------
    TypeError, ValueError : `lr` is not a schedule, or an argument is not a number or is out of range.

    Source: Defazio 2025, arXiv 2506.02285; docs/mathematics.md §9.

    Examples
    --------
    >>> from theory.schedules import Linear
    >>> corrected_decay(Linear(0.5, 0.1, steps=100), 0.01, [0, 100], lr_max=0.5).round(6).tolist()
    [0.01, 0.002]
    """
    wd, at = check_wd(wd), check_real("step", step, at_least=0)
    wd, at, lr_max = broadcast(wd=wd, step=at, lr_max=check_lr(lr_max, "lr_max"))
    return to_float(wd * schedule_values(lr, "lr", at) / lr_max)


@overload
def quasi_equilibrium_norm(
    lr: Schedule, wd: Number | Schedule, step: Number, grad_norm: Number = 1.0, *, optimizer: OptimizerLike = None
) -> float: ...
@overload
def quasi_equilibrium_norm(
    lr: Schedule, wd: WdLike, step: ArrayLike, grad_norm: ArrayLike = 1.0, *, optimizer: OptimizerLike = None
) -> FloatArray: ...
def quasi_equilibrium_norm(
    lr: Schedule, wd: WdLike, step: ArrayLike, grad_norm: ArrayLike = 1.0, *, optimizer: OptimizerLike = None
) -> Any:
    """Equilibrium norm ρ*(η_t, λ_t) for the learning rate and weight decay of each step.

    Parameters
    ----------
    lr : schedule; η_t λ_t must be below the optimizer's limit, 2 for SGD.
    wd : λ >= 0: number, array or schedule.
    step : step numbers >= 0.
    grad_norm : g̃ > 0 (units of the loss), not needed for AdamW, Lion and Muon. All broadcast.
    optimizer : object or its text form; default `SGD()`.

    Returns
    -------
    ρ*: float or array; inf where wd = 0. A run has this norm only while `tracking_lag` is small.

    Raises
    ------
    TypeError, ValueError : `lr` is not a schedule, or an argument is not a number or is out of range.

    Source: docs/mathematics.md §9.

    Examples
    --------
    >>> from theory.schedules import Linear
    >>> quasi_equilibrium_norm(Linear(0.5, 0.1, steps=100), 0.01, [0, 100], 2.0).round(3).tolist()
    [3.164, 2.115]
    """
    at = check_real("step", step, at_least=0)
    wds = schedule_values(wd, "wd", at) if callable(wd) else wd
    return equilibrium_norm(schedule_values(lr, "lr", at), wds, grad_norm, optimizer=optimizer)


@overload
def gradient_growth(lr: Schedule, wd: Number | Schedule, step: Number, *, optimizer: OptimizerLike = None) -> float: ...
@overload
def gradient_growth(lr: Schedule, wd: WdLike, step: ArrayLike, *, optimizer: OptimizerLike = None) -> FloatArray: ...
def gradient_growth(lr: Schedule, wd: WdLike, step: ArrayLike, *, optimizer: OptimizerLike = None) -> Any:
    """Growth of the gradient norm ‖∇f‖ = g̃/ρ since step 0 that is caused by a decreasing learning rate.

    At constant g̃ the norm follows the learning rate. So ‖∇f‖ grows as η^-¼ under SGD, η^-½ under AdamW, Lion and Muon,
    and η^-⅓ under Adam with L2 regularization, without any change of the loss on the sphere. `corrected_decay` removes
    this growth.

    Parameters
    ----------
    lr : schedule; η_t λ_t must be below the optimizer's limit, 2 for SGD.
    wd : λ > 0: number, array or schedule.
    step : step numbers >= 0; broadcasts with `wd`.
    optimizer : object or its text form; default `SGD()`.

    Returns
    -------
    factor: float or array. It is valid only while `tracking_lag` is small; later ‖∇f‖ grows less.

    Raises
    ------
    TypeError, ValueError : `lr` is not a schedule, or an argument is not a number or is out of range.

    Source: Defazio 2025, arXiv 2506.02285; docs/mathematics.md §9.

    Examples
    --------
    >>> from theory.schedules import Linear
    >>> schedule = Linear(0.5, 0.005, steps=100)
    >>> [round(gradient_growth(schedule, 1e-4, 100, optimizer=rule), 2) for rule in ("SGD", "AdamW")]  # 100^¼, 100^½
    [3.16, 10.0]
    """
    rule = check_optimizer(optimizer)
    # the number of weights changes both norms alike
    rule = rule if getattr(rule, "dim", 1) is not None else with_dim(rule, 1)
    for at in (0, step):
        check_real("wd", schedule_values(wd, "wd", at) if callable(wd) else wd, above=0)
    norms = (quasi_equilibrium_norm(lr, wd, at, optimizer=rule) for at in (0, step))
    return to_float(np.divide(*norms))


def tracked_steps(
    lr: Schedule,
    wd: float | Schedule,
    steps: int,
    *,
    start: int = 0,
    tolerance: float = 0.1,
    grad_norm: float = 1.0,
    optimizer: OptimizerLike = None,
) -> int:
    """First step at which the norm no longer follows its equilibrium, because `tracking_lag` exceeds `tolerance`.

    The norm is assumed to be at equilibrium before.

    Parameters
    ----------
    lr : schedule.
    wd : λ > 0: number or schedule.
    steps : number of steps N of the run.
    start : first step to check, for example the end of a warm-up, which no norm can follow.
    tolerance : size of `tracking_lag` that still counts as following, > 0.
    grad_norm, optimizer : as in `tracking_lag`.

    Returns
    -------
    step number; N if the norm follows to the end. A sudden change of η counts, even if the norm recovers later.

    Raises
    ------
    TypeError, ValueError : `lr` is not a schedule, or an argument is not a number or is out of range.

    Source: docs/mathematics.md §9.

    Examples
    --------
    >>> from theory.schedules import Linear
    >>> tracked_steps(Linear(0.5, 1e-9, steps=10_000), 0.01, 10_000)  # 10 000 - √(10 000/(1.6·0.5·0.01))
    8882
    """
    count, limit = check_integer("steps", steps, at_least=1), check_number("tolerance", tolerance, above=0)
    begin = check_integer("start", start, at_most=count)
    if not callable(wd):
        check_number("wd", wd, above=0)
    gradient = check_number("grad_norm", grad_norm, above=0)
    check_rows("steps", count - begin, 8)
    lag = tracking_lag(lr, wd, np.arange(begin, count), grad_norm=gradient, optimizer=optimizer)
    too_large = np.flatnonzero(np.abs(lag) > limit)
    return begin + int(too_large[0]) if too_large.size else count
