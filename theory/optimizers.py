"""Optimizers: one frozen object each, for formula, simulation and training alike."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from typing import Any

import numpy as np

from theory.adaptive import Adam, AdamW, Lion
from theory.arguments import check_choice
from theory.references import format_reference, import_reference, is_reference
from theory.rules import Optimizer
from theory.sgd import SGD, sgd_update

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "Adam",
    "AdamW",
    "Lion",
    "Optimizer",
    "check_optimizer",
    "format_optimizer",
    "optimizer_class",
    "optimizer_class_name",
    "parse_optimizer",
    "sgd_update",
]

OPTIMIZERS: dict[str, type[Any]] = {"SGD": SGD, "Adam": Adam, "AdamW": AdamW, "Lion": Lion}


def optimizer_class(name: str) -> type[Any]:
    """Class of an optimizer: a name of `OPTIMIZERS`, or the "module:name" of one's own.

    Raises
    ------
    ValueError : there is none.

    Examples
    --------
    >>> optimizer_class("SGD"), optimizer_class("theory.sgd:SGD") is SGD
    (<class 'theory.sgd.SGD'>, True)
    """
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    if not is_reference(name):
        raise ValueError(
            f"optimizer must be one of {', '.join(OPTIMIZERS)} or the 'module:name' of a class; got {name!r}"
        )
    kind = import_reference("optimizer", name)
    if not (isinstance(kind, type) and hasattr(kind, "update") and hasattr(kind, "equilibrium_norm")):
        raise ValueError(f"optimizer must be a class with the methods of theory.rules.Optimizer, got {name!r}")
    return kind


def optimizer_class_name(rule: Optimizer) -> str:
    """Inverse of `optimizer_class`.

    Raises
    ------
    ValueError : the class was made inside a function, where nothing else finds it.

    Examples
    --------
    >>> optimizer_class_name(SGD(momentum=0.9))
    'SGD'
    """
    kind = type(rule)
    return kind.__name__ if OPTIMIZERS.get(kind.__name__) is kind else format_reference("optimizer", kind)


def parse_optimizer(text: str) -> Optimizer:
    """Optimizer from its short form, as trajectories carry it in their attribute `optimizer`.

    Raises
    ------
    ValueError : no optimizer is written like this.

    Examples
    --------
    >>> parse_optimizer("SGD(momentum=0.9)"), parse_optimizer("theory.sgd:SGD()")
    (SGD(momentum=0.9), SGD())
    """
    name, bracket, settings = text.partition("(")
    try:
        call = ast.parse("settings" + bracket + settings, mode="eval").body
        if isinstance(call, ast.Call) and not call.args and (name in OPTIMIZERS or is_reference(name)):
            given = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
            made: Optimizer = _made(name, given)
            return made
    except SyntaxError:
        pass
    raise ValueError(
        f"optimizer must be written like SGD(momentum=0.9) or AdamW(dim=4096), one of {', '.join(OPTIMIZERS)}; "
        f"got {text!r}"
    )


def _made(name: str, given: dict[str, Any]) -> Any:
    kind = optimizer_class(name)
    settings = inspect.signature(kind).parameters
    for each in given:
        check_choice(f"setting of {name}", each, list(settings))
    missing = [each for each, known in settings.items() if known.default is known.empty and each not in given]
    if missing:
        raise ValueError(f"optimizer must say {' and '.join(missing)}, as in {name}({missing[0]}=4096)")
    return kind(**given)


def parse_if_known(text: str) -> Optimizer | None:
    """Optimizer of a text, None for one that `parse_optimizer` refuses.

    Examples
    --------
    >>> parse_if_known("SGD(momentum=0.5)"), parse_if_known("RMSprop")
    (SGD(momentum=0.5), None)
    """
    try:
        return parse_optimizer(text)
    except ValueError:
        return None


def format_optimizer(rule: Optimizer) -> str:
    """Inverse of `parse_optimizer`.

    Examples
    --------
    >>> format_optimizer(SGD(momentum=0.9))
    'SGD(momentum=0.9)'
    """
    return optimizer_class_name(rule) + repr(rule).removeprefix(type(rule).__name__)


def with_dim(rule: Optimizer, dim: int) -> Optimizer:
    """The same optimizer for so many weights, if it is one that asks for their number.

    Examples
    --------
    >>> with_dim(AdamW(dim=1), 576), with_dim(SGD(), 576)
    (AdamW(dim=576), SGD())
    """
    changed: Any = rule
    if "dim" in getattr(type(rule), "__dataclass_fields__", ()):
        changed = dataclasses.replace(changed, dim=dim)
    return changed  # type: ignore[no-any-return]


def equal_up_to_dim(one: str, other: str) -> bool:
    """Whether two texts are of one optimizer, for however many weights.

    Examples
    --------
    >>> equal_up_to_dim("AdamW(dim=1)", "AdamW(dim=576)"), equal_up_to_dim("Adam(dim=1)", "AdamW(dim=1)")
    (True, False)
    """
    first, second = parse_if_known(one), parse_if_known(other)
    return one == other or (first is not None and second is not None and with_dim(first, 1) == with_dim(second, 1))


def check_optimizer(optimizer: Optimizer | None) -> Optimizer:
    """Check the argument `optimizer`: an object such as `SGD(momentum=0.9)`; None stands for `SGD()`.

    Raises
    ------
    TypeError : it is no optimizer, but for example the class or a name.

    Examples
    --------
    >>> check_optimizer(None)
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
