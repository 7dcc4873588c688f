"""Weights and updates of fixed norm, as an alternative to weight decay (docs/norm_control.md)."""

from __future__ import annotations

from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike

from theory.adaptive import Adam, DirectionVariance, decoupled_turn
from theory.arguments import (
    FloatArray,
    Number,
    broadcast,
    check_intrinsic_lr,
    check_lr,
    check_real,
    check_wd,
    quote,
    to_float,
)
from theory.optimizers import Optimizer, OptimizerLike, check_optimizer

_LEAST_LOG_DECAY, _BISECTIONS = -80.0, 120


class FixedNorm(NamedTuple):
    """Training whose weights and updates have fixed norms, as a float or array for each field."""

    rotation: Any
    """Angle between consecutive weights in radians."""
    intrinsic_lr: Any
    """ηλ of decoupled weight decay under which the weights rotate in the same way."""


def fixed_norm(lr: ArrayLike, *, optimizer: OptimizerLike = None) -> FixedNorm:
    """Rotation of weights of fixed norm under updates of fixed norm, and the weight decay that does the same.

    Each step is x⁺ = R (x - ηR û)/‖x - ηR û‖, where û is the direction of the optimizer and R the norm of the weights,
    as in Hyperball. Each direction is forgotten by the factor s = R/‖x - ηR û‖ per step, as under decoupled decay with
    ηλ = 1-s. At the balance of growth and rescaling 1 - s² = s²η²q, where q = Σ_n s^|n| c_n sums the correlations of
    the directions. The rotation is about η for small η, also with momentum.

    For gradients that are independent in time, random walks with AdamW, Lion and Muon agree within 0.3 % in 1 - cos θ.

    Parameters
    ----------
    lr : η > 0, norm of a step over that of the weights; number or array.
    optimizer : `SGD`, `Adam`, `AdamW`, `Lion`, `Muon`, or its text form; default `SGD()`. The number of weights is not
        needed, and Adam's decay is not used.

    Returns
    -------
    FixedNorm: rotation in radians per step, and ηλ.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or out of range, or the optimizer has no known correlations.

    Source: docs/norm_control.md; arXiv 2606.16899 for Hyperball, 2305.17212 for rotation at equilibrium.

    Examples
    --------
    >>> rotation, intrinsic_lr = fixed_norm(0.01)
    >>> round(rotation, 6), round(intrinsic_lr * 1e4, 3)
    (0.01, 0.5)
    """
    ratio, rule = check_lr(lr), check_optimizer(optimizer)
    if not hasattr(rule, "direction_variance"):
        raise ValueError(f"optimizer must be SGD, Adam, AdamW, Lion or Muon, got {quote(rule)}")
    low, high = np.full(ratio.shape, _LEAST_LOG_DECAY), np.zeros(ratio.shape)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        is_below = _excess(rule, ratio, np.exp(middle)) < 0
        low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
    decay = np.exp((low + high) / 2)
    turn = decoupled_turn(decay, _variance(rule, 1 - decay))
    return FixedNorm(to_float(2 * np.arcsin(np.sqrt(turn / 2))), to_float(decay))


@overload
def lr_at_fixed_norm(
    lr: Number, norm: Number, wd: Number = 0.0, *, fixed_norm: Number = 1.0, optimizer: OptimizerLike = None
) -> float: ...
@overload
def lr_at_fixed_norm(
    lr: ArrayLike, norm: ArrayLike, wd: ArrayLike = 0.0, *, fixed_norm: ArrayLike = 1.0, optimizer: OptimizerLike = None
) -> FloatArray: ...
def lr_at_fixed_norm(
    lr: ArrayLike, norm: ArrayLike, wd: ArrayLike = 0.0, *, fixed_norm: ArrayLike = 1.0, optimizer: OptimizerLike = None
) -> Any:
    """Learning rate that repeats a run with a changing norm and weight decay as a run with a fixed norm and none.

    The step has the same effective learning rate: η' = η (R/ρ)²/(1-ηλ) for SGD, and η (R/ρ)/(1-ηλ) for AdamW, Lion and
    Muon. The weights of the new run are rescaled to R after each step, as with `RunConfig(fixed="norm")`.

    For plain SGD all directions are then the same, hence the losses. Several groups may share η, λ and one fixed norm
    of all their weights. With momentum, and for the other optimizers, this holds if the norm changes little within the
    memory of the optimizer. For `Adam` with L2 regularization there is no factor 1/(1-ηλ), and decay changes the
    directions a little.

    Parameters
    ----------
    lr, norm, wd : η > 0, ρ > 0 and λ >= 0 of each step of the run.
    fixed_norm : R > 0. All broadcast.
    optimizer : object or its text form; default `SGD()`.

    Returns
    -------
    η': float or array.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range, or ηλ >= 1.

    Source: docs/mathematics.md §6.

    Examples
    --------
    >>> lr_at_fixed_norm(0.5, [2.0, 4.0], 0.04, fixed_norm=2.0).round(4).tolist()
    [0.5102, 0.1276]
    """
    rule = check_optimizer(optimizer)
    lr, norm, wd = check_lr(lr), check_real("norm", norm, above=0), check_wd(wd)
    target = check_real("fixed_norm", fixed_norm, above=0)
    lr, norm, wd, target = broadcast(lr=lr, norm=norm, wd=wd, fixed_norm=target)
    is_decay_apart = not isinstance(rule, Adam)
    if is_decay_apart:
        check_intrinsic_lr(lr, wd, below=1.0)
    return to_float(lr * (target / norm) ** (1 / rule.norm_exponent) / (1 - lr * wd if is_decay_apart else 1.0))


def _excess(rule: Optimizer, ratio: FloatArray, decay: FloatArray) -> FloatArray:
    """Rescaling minus growth, (1 - s²)/s² - η²q, which increases with the decay 1 - s."""
    s = 1 - decay
    variance = _variance(rule, s)
    repeated = variance.autocorrelation(s) / variance.instant
    with np.errstate(divide="ignore"):
        return np.asarray(decay * (2 - decay) / s**2 - ratio**2 * repeated)


def _variance(rule: Any, s: FloatArray) -> DirectionVariance:
    variance: DirectionVariance = rule.direction_variance(s)
    return variance
