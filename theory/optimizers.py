"""Optimizers: one frozen object each, for formula, simulation and training alike."""

from __future__ import annotations

import ast
from typing import Any

from theory.adaptive import Adam, AdamW, Lion
from theory.rules import Optimizer
from theory.sgd import SGD, sgd_update

__all__ = ["OPTIMIZERS", "SGD", "Adam", "AdamW", "Lion", "Optimizer", "optimizer_named", "sgd_update"]

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
