"""Norm, effective learning rate and rotation at equilibrium, and the relaxation time (docs/mathematics.md §2)."""

from __future__ import annotations

from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike

from theory.arguments import FloatArray, Number, broadcast, check_intrinsic_lr, check_lr, check_real, check_wd, to_float
from theory.optimizers import SGD, Optimizer, OptimizerLike, check_norm_law, check_optimizer, rotation_limit


@overload
def equilibrium_norm(lr: Number, wd: Number, grad_norm: Number = 1.0, *, optimizer: OptimizerLike = None) -> float: ...
@overload
def equilibrium_norm(
    lr: ArrayLike, wd: ArrayLike, grad_norm: ArrayLike = 1.0, *, optimizer: OptimizerLike = None
) -> FloatArray: ...
def equilibrium_norm(
    lr: ArrayLike, wd: ArrayLike, grad_norm: ArrayLike = 1.0, *, optimizer: OptimizerLike = None
) -> Any:
    """Norm ρ* of scale-invariant weights at which weight decay and gradient growth balance.

    For SGD ρ*⁴ = ηg̃²/(λ(2-ηλ)), exact for constant g̃. For g̃ that fluctuate with a finite E[g̃⁴] it is close to E[ρ⁴],
    with E[g̃²] in place of g̃².

    Parameters
    ----------
    lr, wd : η > 0 and λ >= 0 with ηλ below the optimizer's limit, 2 for SGD; numbers or arrays that broadcast.
    grad_norm : g̃ > 0, the gradient norm at the weights scaled to norm 1 (units of the loss).
    optimizer : object or its text form; default `SGD()`.

    Returns
    -------
    ρ* in units of the weights: float for numbers, array for arrays; `inf` where wd = 0 (no equilibrium).

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: arXiv 2106.15739 §3; docs/mathematics.md §2.

    Examples
    --------
    >>> round(equilibrium_norm(0.1, 0.01, grad_norm=2.0), 4)
    2.115
    """
    lr, wd, grad_norm = check_lr(lr), check_wd(wd), check_real("grad_norm", grad_norm, above=0)
    rule = check_optimizer(optimizer)
    check_intrinsic_lr(lr, wd, below=rule.intrinsic_lr_limit)
    lr, wd, grad_norm = broadcast(lr=lr, wd=wd, grad_norm=grad_norm)
    return to_float(rule.equilibrium_norm(lr, wd, grad_norm))


@overload
def equilibrium_effective_lr(
    lr: Number, wd: Number, grad_norm: Number = 1.0, *, optimizer: OptimizerLike = None
) -> float: ...
@overload
def equilibrium_effective_lr(
    lr: ArrayLike, wd: ArrayLike, grad_norm: ArrayLike = 1.0, *, optimizer: OptimizerLike = None
) -> FloatArray: ...
def equilibrium_effective_lr(
    lr: ArrayLike, wd: ArrayLike, grad_norm: ArrayLike = 1.0, *, optimizer: OptimizerLike = None
) -> Any:
    """Effective learning rate η̃* = η/ρ*² at equilibrium; for SGD √(ηλ(2-ηλ))/g̃.

    It is the learning rate on the unit sphere for SGD. For Adam, AdamW, Lion and Muon the right scale is η/ρ*.

    Parameters
    ----------
    lr, wd, grad_norm, optimizer : as in `equilibrium_norm`.

    Returns
    -------
    η̃*: float or array; 0 where wd = 0.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §2.

    Examples
    --------
    >>> round(equilibrium_effective_lr(0.1, 0.01, grad_norm=2.0), 6)
    0.022355
    """
    norm = equilibrium_norm(lr, wd, grad_norm, optimizer=optimizer)
    return to_float(check_lr(lr) / norm / norm)


@overload
def equilibrium_rotation(
    lr: Number, wd: Number, *, grad_norm: Number = 1.0, optimizer: OptimizerLike = None
) -> float: ...
@overload
def equilibrium_rotation(
    lr: ArrayLike, wd: ArrayLike, *, grad_norm: ArrayLike = 1.0, optimizer: OptimizerLike = None
) -> FloatArray: ...
def equilibrium_rotation(
    lr: ArrayLike, wd: ArrayLike, *, grad_norm: ArrayLike = 1.0, optimizer: OptimizerLike = None
) -> Any:
    """Angle θ* between consecutive iterates at equilibrium; for SGD cos θ* = 1-ηλ, so θ* ≈ √(2ηλ).

    Parameters
    ----------
    lr, wd : η > 0 and λ >= 0 with ηλ < 1 (no limit for `Adam`); numbers or arrays that broadcast.
    grad_norm : g̃ > 0; only needed for `Adam` with L2 regularization.
    optimizer : object or its text form; default `SGD()`.

    Returns
    -------
    θ* in radians per step: float or array.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §2; arXiv 2006.08419.

    Examples
    --------
    >>> round(equilibrium_rotation(0.5, 0.01), 5)
    0.10004
    """
    lr, wd = check_lr(lr), check_wd(wd)
    gradient, rule = check_real("grad_norm", grad_norm, above=0), check_optimizer(optimizer)
    check_intrinsic_lr(lr, wd, below=rotation_limit(rule))
    lr, wd, gradient = broadcast(lr=lr, wd=wd, grad_norm=gradient)
    # 2 asin √((1-cos θ)/2) is accurate even where cos θ rounds to 1
    return to_float(2 * np.arcsin(np.sqrt(rule.equilibrium_turn(lr, wd, gradient) / 2)))


@overload
def relaxation_time(lr: Number, wd: Number, *, grad_norm: Number = 1.0, optimizer: OptimizerLike = None) -> float: ...
@overload
def relaxation_time(
    lr: ArrayLike, wd: ArrayLike, *, grad_norm: ArrayLike = 1.0, optimizer: OptimizerLike = None
) -> FloatArray: ...
def relaxation_time(
    lr: ArrayLike, wd: ArrayLike, *, grad_norm: ArrayLike = 1.0, optimizer: OptimizerLike = None
) -> Any:
    """Steps in which a small deviation of the norm from equilibrium shrinks by e.

    For plain SGD it is -1/ln|1-4ηλ+2(ηλ)²| ≈ 1/(4ηλ). To first order in small steps it is (1-μ)/(4ηλ) with momentum,
    1/(4ηλ) with momentum and decoupled decay, 1/(2ηλ) for AdamW, Lion and Muon, and 1/(3E) for Adam with L2
    regularization, with its decay E ≈ ηλρ*√d/g̃ per step. `momentum_relaxation` is exact for heavy ball, and says where
    the norm rings.

    Parameters
    ----------
    lr, wd : η > 0 and λ >= 0 with ηλ below the optimizer's limit, 2 for SGD; numbers or arrays that broadcast.
    grad_norm : g̃ > 0; only needed for `Adam` with L2 regularization.
    optimizer : object or its text form; default `SGD()`.

    Returns
    -------
    Steps: float or array; `inf` where wd = 0. For plain SGD also `inf` where ηλ = 1 (every orbit has period 2), and 0
    where the multiplier vanishes.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §2, §7.

    Examples
    --------
    >>> round(relaxation_time(0.1, 0.01), 2), round(relaxation_time(0.1, 0.01, optimizer="AdamW"), 2)
    (249.62, 500.0)
    """
    lr, wd, grad_norm = check_lr(lr), check_wd(wd), check_real("grad_norm", grad_norm, above=0)
    rule = check_optimizer(optimizer)
    check_intrinsic_lr(lr, wd, below=rule.intrinsic_lr_limit)
    lr, wd, grad_norm = broadcast(lr=lr, wd=wd, grad_norm=grad_norm)
    if rule != SGD():
        with np.errstate(divide="ignore"):
            return to_float(1 / relaxation_rate(rule, lr, wd, grad_norm))
    intrinsic_lr = lr * wd
    change = 2 * intrinsic_lr * (intrinsic_lr - 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        # ln|1 + change|; log1p is accurate near its zeros, ηλ = 0 and, with the sign flipped, ηλ = 1; -1/-0 is inf
        logarithm = np.log1p(np.where(change > -1, change, -2 * (1 - intrinsic_lr) ** 2))
        return to_float(-1 / np.where(logarithm == 0, -0.0, logarithm))


def relaxation_rate(rule: Optimizer, lr: FloatArray, wd: FloatArray, grad_norm: FloatArray) -> FloatArray:
    """Inverse of the relaxation time to first order in small steps, for arrays of one shape; 0 where wd = 0.

    Examples
    --------
    >>> float(relaxation_rate(SGD(momentum=0.5), *map(np.asarray, (0.1, 0.01, 1.0))))
    0.008
    """
    check_norm_law(rule)
    rate = rule.norm_rate(lr, wd, grad_norm)
    if rule.rate_exponent:
        with np.errstate(invalid="ignore"):
            rate = np.where(wd > 0, rate * rule.equilibrium_norm(lr, wd, grad_norm) ** rule.rate_exponent, 0.0)
    return np.asarray(rate)
