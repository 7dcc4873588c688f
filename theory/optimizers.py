"""Optimizers: one frozen object each, for formula, simulation and training alike."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np

from theory.adaptive import Adam, AdamW, Lion
from theory.rules import Optimizer
from theory.sgd import SGD, sgd_update

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "Adam",
    "AdamW",
    "Lion",
    "Optimizer",
    "checked_optimizer",
    "optimizer_named",
    "sgd_update",
]

OPTIMIZERS: dict[str, type[Any]] = {"SGD": SGD, "Adam": Adam, "AdamW": AdamW, "Lion": Lion}


def optimizer_named(text: str) -> Optimizer:
    """Optimizer from its short form, as trajectories carry it in their attribute `optimizer`.

    Raises
    ------
    ValueError : no optimizer of `OPTIMIZERS` is written like this.

    Examples
    --------
    >>> optimizer_named("SGD(momentum=0.9)")
    SGD(momentum=0.9)
    """
    try:
        call = ast.parse(text, mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args:
            made: Optimizer = OPTIMIZERS[call.func.id](**{str(k.arg): ast.literal_eval(k.value) for k in call.keywords})
            return made
    except (SyntaxError, KeyError):
        pass
    raise ValueError(f"optimizer must be written like SGD(momentum=0.9), one of {', '.join(OPTIMIZERS)}; got {text!r}")


def checked_optimizer(optimizer: Optimizer | None) -> Optimizer:
    """Check the argument `optimizer`: an object such as `SGD(momentum=0.9)`; None stands for `SGD()`.

    Raises
    ------
    TypeError : it is no optimizer, but for example the class or a name.

    Examples
    --------
    >>> checked_optimizer(None)
    SGD()
    """
    if optimizer is None:
        return SGD()
    if isinstance(optimizer, type) or not hasattr(optimizer, "equilibrium_norm"):
        raise TypeError(f"optimizer must be an object such as SGD(momentum=0.9) or AdamW(dim=100), got {optimizer!r}")
    return optimizer


def rotation_limit(rule: Optimizer) -> float:
    """ηλ up to which rotations are given: 1, where coupled decay turns weights round; none where ηλ has no meaning.

    Examples
    --------
    >>> rotation_limit(SGD()), rotation_limit(Adam(dim=10))
    (1.0, inf)
    """
    return 1.0 if np.isfinite(rule.intrinsic_lr_limit) else np.inf
