"""Settings that give the same training: exact symmetries of scale-invariant weights (docs/mathematics.md §6)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy.typing as npt

from theory.arguments import broadcast, intrinsic_lr, learning_rate, plain, real, weight_decay
from theory.optimizers import SGD, Optimizer


class EquivalentRun(NamedTuple):
    """Learning rate, weight decay and norm at the start of an equivalent run, floats or arrays of one shape."""

    lr: Any
    wd: Any
    norm: Any


def equivalent_run(
    lr: npt.ArrayLike,
    wd: npt.ArrayLike,
    norm: npt.ArrayLike,
    *,
    lr_to: npt.ArrayLike,
    optimizer: Optimizer | None = None,
) -> EquivalentRun:
    """Weight decay and start with which another learning rate gives the same directions, hence the same losses.

    The directions depend on the settings only through ηλ and ρ₀/√η (SGD with any momentum), ηλ and ρ₀/η (AdamW, Lion),
    or η²λ and ρ₀/η (Adam with L2 regularization). For Adam and AdamW their ε must scale with 1/η or vanish.

    Parameters
    ----------
    lr, wd, norm : η > 0, λ >= 0, ρ₀ > 0 of the given run.
    lr_to : learning rate of the wanted run. All are numbers or arrays that broadcast.
    optimizer : default `SGD()`.

    Returns
    -------
    EquivalentRun(lr, wd, norm)

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Source: arXiv 2010.02916; docs/mathematics.md §6.

    Examples
    --------
    >>> equivalent_run(0.5, 0.01, 2.0, lr_to=0.125)
    EquivalentRun(lr=0.125, wd=0.04, norm=1.0)
    """
    rule = optimizer or SGD()
    lr, wd, norm = learning_rate(lr), weight_decay(wd), real("norm", norm, above=0)
    to = learning_rate(lr_to, "lr_to")
    intrinsic_lr(lr, wd, below=rule.intrinsic_lr_limit)
    lr, wd, norm, to = broadcast(lr=lr, wd=wd, norm=norm, lr_to=to)
    factor = to / lr
    return EquivalentRun(
        plain(to * 1.0), plain(wd / factor**rule.wd_exponent), plain(norm * factor**rule.norm_exponent)
    )
