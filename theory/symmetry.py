"""Settings with the same training: exact symmetries of scale-invariant weights (docs/mathematics.md §6)."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike

from theory.arguments import (
    FloatArray,
    Number,
    Value,
    broadcast,
    check_intrinsic_lr,
    check_lr,
    check_number,
    check_real,
    check_wd,
    quote,
    to_float,
)
from theory.optimizers import SGD, OptimizerLike, check_optimizer
from theory.schedules import Exponential


class RunWithoutDecay(NamedTuple):
    """Run without weight decay that has the same directions as a run with weight decay."""

    schedule: Exponential
    """Growing learning rate of the run."""
    velocity: float
    """Initial momentum buffer divided by the initial weights (0 without momentum)."""
    shrink: float
    """Factor per step of ρ/ρ', the norm with decay divided by the norm without."""


class EquivalentRun(NamedTuple, Generic[Value]):
    """Learning rate, weight decay and initial norm of an equivalent run: floats or arrays of one shape."""

    lr: Value
    wd: Value
    norm: Value


@overload
def equivalent_run(
    lr: Number, wd: Number, norm: Number, *, lr_to: Number, optimizer: OptimizerLike = None
) -> EquivalentRun[float]: ...
@overload
def equivalent_run(
    lr: ArrayLike, wd: ArrayLike, norm: ArrayLike, *, lr_to: ArrayLike, optimizer: OptimizerLike = None
) -> EquivalentRun[FloatArray]: ...
def equivalent_run(
    lr: ArrayLike, wd: ArrayLike, norm: ArrayLike, *, lr_to: ArrayLike, optimizer: OptimizerLike = None
) -> Any:
    """Weight decay and initial norm at which another learning rate gives the same directions, hence the same losses.

    The directions depend on the settings only through two numbers: ηλ and ρ₀/√η (SGD with any momentum), ηλ and ρ₀/η
    (AdamW, Lion), or η²λ and ρ₀/η (Adam with L2 regularization). For Adam and AdamW, ε must be 0 or scale with 1/η.

    Parameters
    ----------
    lr, wd, norm : η > 0, λ >= 0, ρ₀ > 0 of the original run.
    lr_to : learning rate of the equivalent run. All are numbers or arrays that broadcast.
    optimizer : object or its text form; default `SGD()`.

    Returns
    -------
    EquivalentRun(lr, wd, norm)

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: arXiv 2010.02916; docs/mathematics.md §6.

    Examples
    --------
    >>> equivalent_run(0.5, 0.01, 2.0, lr_to=0.125)
    EquivalentRun(lr=0.125, wd=0.04, norm=1.0)
    """
    rule = check_optimizer(optimizer)
    lr, wd, norm = check_lr(lr), check_wd(wd), check_real("norm", norm, above=0)
    lr_to = check_lr(lr_to, "lr_to")
    check_intrinsic_lr(lr, wd, below=rule.intrinsic_lr_limit)
    lr, wd, norm, lr_to = broadcast(lr=lr, wd=wd, norm=norm, lr_to=lr_to)
    factor = lr_to / lr
    return EquivalentRun(
        to_float(lr_to * 1.0), to_float(wd / factor**rule.wd_exponent), to_float(norm * factor**rule.norm_exponent)
    )


def run_without_decay(lr: float, wd: float, *, optimizer: SGD | str | None = None) -> RunWithoutDecay:
    """Exponentially growing learning rate that replaces weight decay exactly.

    SGD: η_t = η(1-ηλ)^(-2t-1). Heavy ball: η_t = ηα^(-2t-1) with α the larger root of z²-(1+μ-ηλ)z+μ. The directions of
    all steps are the same, hence the losses. The norms are ρ'_t = ρ_t/α^t. PyTorch's Nesterov has no such equivalent.

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0, ηλ < 1 and, with momentum, ηλ <= (1-√μ)².
    optimizer : `SGD` with coupled decay, plain or heavy ball; default `SGD()`.

    Returns
    -------
    RunWithoutDecay(schedule, velocity, shrink). Start from the same weights x₀ with the buffer velocity · x₀; the run
    with decay starts with an empty buffer.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range, or the optimizer has no equivalent.

    Source: arXiv 1910.07454; docs/mathematics.md §6.

    Examples
    --------
    >>> run = run_without_decay(0.1, 0.5)
    >>> run.schedule([0, 1]).round(6).tolist(), run.velocity, run.shrink
    ([0.105263, 0.116635], 0.0, 0.95)
    """
    rule = check_optimizer(optimizer)
    if not isinstance(rule, SGD) or rule.nesterov or rule.decoupled:
        raise ValueError(f"optimizer must be SGD with coupled decay and without Nesterov momentum, got {quote(rule)}")
    lr, wd, mu = check_number("lr", lr, above=0), check_number("wd", wd, at_least=0), float(rule.momentum)
    intrinsic_lr = float(check_intrinsic_lr(np.asarray(lr), np.asarray(wd), below=1.0))
    largest = (1 - np.sqrt(mu)) ** 2
    if intrinsic_lr > largest:
        raise ValueError(
            f"lr * wd must be <= (1-√momentum)² = {largest:g} here, got {intrinsic_lr:g}: with more decay the norm of "
            "weights without gradients rings, and no growing learning rate replaces it"
        )
    # 1-α is the smaller root of z² - (1-μ+ηλ)z + ηλ
    discriminant = float(rule.free_recursion(np.asarray(intrinsic_lr))[2])
    one_minus_alpha = 2 * intrinsic_lr / (1 - mu + intrinsic_lr + np.sqrt(max(discriminant, 0.0)))
    velocity = (intrinsic_lr - one_minus_alpha) / (lr * mu) if mu else 0.0
    return RunWithoutDecay(
        Exponential(lr / (1 - one_minus_alpha), (1 - one_minus_alpha) ** -2),
        float(velocity),
        float(1 - one_minus_alpha),
    )
