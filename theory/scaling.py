"""Learning rate and weight decay for another batch size, data set or width (docs/transfer.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from theory.adaptive import Adam, AdamW
from theory.arguments import check_choice, check_integer, check_number, quote, to_float
from theory.optimizers import OptimizerLike, check_optimizer
from theory.period import free_decay
from theory.sgd import SGD

# what each change can keep, the default first
_KEEP = {"batch_size": ("memory", "rotation"), "samples": ("memory",), "width": ("memory", "gain")}


class Memory(NamedTuple):
    """Time after which weight decay has reduced an update by a factor of e; each field is a float or array."""

    steps: Any
    samples: Any
    epochs: Any


class Transfer(NamedTuple):
    """Learning rate and weight decay after a change, and what the rule keeps and assumes."""

    lr: float
    wd: float
    rule: str


def memory(
    lr: ArrayLike, wd: ArrayLike, *, batch_size: int = 1, samples: int = 1, optimizer: OptimizerLike = None
) -> Memory:
    """Time after which weight decay has reduced an update by a factor of e: about 1/(ηλ) steps.

    Weights are the sum of their updates, each reduced by the decay since then. In steps this time is the inverse of
    `free_decay`: about 1/(ηλ), or (1-μ)/(ηλ) with momentum μ. The norm settles faster, in `relaxation_time`: by a
    factor of 4 under SGD, and of 2 under AdamW, Lion and Muon.

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0, ηλ < 1; numbers or arrays that broadcast.
    batch_size : samples, or tokens, per step.
    samples : samples, or tokens, per epoch.
    optimizer : object or its text form; default `SGD()`.

    Returns
    -------
    Memory: in steps, samples and epochs; `inf` where wd = 0. NaN for `Adam`, whose decay acts through the gradient.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/transfer.md; arXiv 2405.13698.

    Examples
    --------
    >>> time = memory(3e-4, 0.1, batch_size=500, samples=10_000_000, optimizer="AdamW")
    >>> round(time.steps), round(time.samples / 1e6, 1), round(time.epochs, 2)
    (33333, 16.7, 1.67)
    """
    size, number = check_integer("batch_size", batch_size, at_least=1), check_integer("samples", samples, at_least=1)
    with np.errstate(divide="ignore"):
        steps = 1 / np.asarray(free_decay(lr, wd, optimizer=optimizer))
    return Memory(to_float(steps), to_float(steps * size), to_float(steps * (size / number)))


def transfer(
    lr: float,
    wd: float,
    *,
    batch_size: Sequence[float] | None = None,
    samples: Sequence[float] | None = None,
    width: Sequence[float] | None = None,
    keep: str = "memory",
    optimizer: OptimizerLike = None,
) -> Transfer:
    """Learning rate and weight decay for another batch size, number of samples or width.

    - `batch_size=(B, B′)`. "memory" keeps the memory in samples and the norm at equilibrium, and so the rotation per
      sample. "rotation" keeps the rotation per step and the norm. Noise must dominate the gradients, g̃² ∝ 1/B, so that
      B and B′ are far below the critical batch size.
    - `samples=(N, N′)`, per epoch. The memory stays the same number of epochs, at the same lr. Norm and rotation
      change.
    - `width=(m, m′)` of hidden layers under AdamW, with lr ∝ 1/m as in μP. "memory" keeps 1/(ηλ). "gain" keeps the
      largest singular values of the weights, by measurements of the source.

    No rule keeps the period. It depends on the noise of the gradients in another way (docs/validation.md), so calibrate
    again after such a change.

    Parameters
    ----------
    lr, wd : η > 0 and λ > 0 with ηλ < 1, before the change.
    batch_size, samples, width : the value before and after the change, both > 0. One of the three.
    keep : "memory", "rotation" or "gain", as above.
    optimizer : object or its text form; default `SGD()`.

    Returns
    -------
    Transfer: `lr`, `wd`, and `rule` in words.

    Raises
    ------
    TypeError, ValueError : an argument is out of range, or no such rule is known.

    Source: docs/transfer.md; arXiv 2205.10287 and 2405.13698, 2505.13738 for λ ∝ B, 2510.15262 for "gain".

    Examples
    --------
    >>> transfer(0.1, 5e-4, batch_size=(128, 512))[:2]
    (0.4, 0.0005)
    >>> transfer(3e-4, 0.1, batch_size=(128, 512), optimizer="AdamW")[:2]
    (0.0006, 0.2)
    """
    lr, wd = check_number("lr", lr, above=0), check_number("wd", wd, above=0)
    if lr * wd >= 1:
        raise ValueError(f"wd must be below 1/lr = {1 / lr:.6g}, got {quote(wd)}")
    rule = check_optimizer(optimizer)
    changes = {"batch_size": batch_size, "samples": samples, "width": width}
    given = {name: value for name, value in changes.items() if value is not None}
    if len(given) != 1:
        raise ValueError(f"one of batch_size, samples and width must be given, got {', '.join(given) or 'none'}")
    ((name, pair),) = given.items()
    check_choice("keep", keep, _KEEP[name])
    if isinstance(pair, (str, bytes)) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise TypeError(f"{name} must be two numbers, before and after the change, got {quote(pair)}")
    before, after = (check_number(name, value, above=0) for value in pair)
    ratio = after / before
    if name == "samples":
        return Transfer(
            lr, wd / ratio, "the memory stays the same number of epochs; the norm grows as (N′/N)^½ or less"
        )
    if name == "width":
        if not isinstance(rule, AdamW):
            raise ValueError(
                f"optimizer must be AdamW for another width, for which alone the rule is known, got {quote(rule)}"
            )
        factor, words = (
            (ratio, "the memory in steps stays the same")
            if keep == "memory"
            else (math.sqrt(ratio), "the largest singular values of the weights stay the same")
        )
        return Transfer(lr / ratio, wd * factor, f"{words}; lr as in μP, for hidden matrices")
    if not isinstance(rule, SGD) and not hasattr(rule, "direction_variance"):
        raise ValueError(f"optimizer must be SGD, Adam, AdamW, Lion or Muon, got {quote(rule)}")
    root = math.sqrt(ratio)
    if keep == "memory":
        words = "memory in samples, norm and rotation per sample stay the same, if noise dominates the gradients"
        factors = (ratio, 1.0) if isinstance(rule, SGD) else (root, 1.0 if _is_coupled(rule) else root)
    else:
        words = "rotation per step and norm stay the same, if noise dominates the gradients"
        factors = (root, 1 / root) if isinstance(rule, SGD) else (1.0, 1 / root if _is_coupled(rule) else 1.0)
    return Transfer(lr * factors[0], wd * factors[1], words)


def _is_coupled(rule: Any) -> bool:
    """Whether decay acts through the moments, so that its effect depends on the size of the gradients."""
    return isinstance(rule, Adam)
