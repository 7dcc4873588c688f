"""Optimizers: each is one frozen object that formulas, simulation and training use."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from typing import Any

import numpy as np

from theory.adaptive import Adam, AdamW, Lion
from theory.arguments import check_choice, quote
from theory.matrix import Muon
from theory.references import format_reference, import_reference, is_reference, loaded_class
from theory.rules import Optimizer, ShortRepr
from theory.sgd import SGD, sgd_update

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "Adam",
    "AdamW",
    "Lion",
    "Muon",
    "Optimizer",
    "OptimizerLike",
    "check_norm_law",
    "check_optimizer",
    "format_optimizer",
    "optimizer_class",
    "optimizer_class_name",
    "sgd_update",
]

# what the argument `optimizer` of a formula may be: an object, its text form, or None for SGD()
OptimizerLike = Optimizer | str | None

OPTIMIZERS: dict[str, type[Any]] = {"SGD": SGD, "Adam": Adam, "AdamW": AdamW, "Lion": Lion, "Muon": Muon}


def optimizer_class(name: str, *, trust: bool = True) -> type[Any]:
    """Class of an optimizer, from a name in `OPTIMIZERS` or the "module:name" of a user-defined class.

    Parameters
    ----------
    name : name of the class.
    trust : whether the module of a user-defined class may be imported. A name that a file gives is not trusted. Then
        the module must be loaded already, and the class inherit `theory.rules.ShortRepr`.

    Raises
    ------
    ValueError : no such optimizer exists, or its module would have to be imported.

    Examples
    --------
    >>> optimizer_class("SGD"), optimizer_class("theory.sgd:SGD") is SGD
    (<class 'theory.sgd.SGD'>, True)
    """
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    if not is_reference(name):
        raise ValueError(
            f"optimizer must be one of {', '.join(OPTIMIZERS)} or the 'module:name' of a class; got {quote(name)}"
        )
    if not trust:
        loaded = loaded_class(name, ShortRepr)
        if loaded is None:
            raise ValueError(
                f"optimizer must be one of {', '.join(OPTIMIZERS)} or a class of a loaded module, because a file must "
                f"not import code; got {quote(name)}. If you trust it, import its module before"
            )
        return loaded
    kind = import_reference("optimizer", name)
    if not (isinstance(kind, type) and hasattr(kind, "update") and hasattr(kind, "equilibrium_norm")):
        raise ValueError(f"optimizer must be a class with the methods of theory.rules.Optimizer, got {quote(name)}")
    return kind


def optimizer_class_name(rule: Optimizer) -> str:
    """Name of the class of an optimizer, the inverse of `optimizer_class`.

    Raises
    ------
    ValueError : the class is defined inside a function and cannot be imported.

    Examples
    --------
    >>> optimizer_class_name(SGD(momentum=0.9))
    'SGD'
    """
    kind = type(rule)
    return kind.__name__ if OPTIMIZERS.get(kind.__name__) is kind else format_reference("optimizer", kind)


def _parse_optimizer(text: str, trust: bool) -> Optimizer:
    """Optimizer from its text form, as stored in the attribute `optimizer` of trajectories."""
    name, bracket, settings = text.partition("(")
    try:
        # a name alone stands for the optimizer with its default settings
        call = ast.parse("settings" + (bracket + settings or "()"), mode="eval").body
        if isinstance(call, ast.Call) and not call.args and (name in OPTIMIZERS or is_reference(name)):
            arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
            optimizer: Optimizer = _build_optimizer(name, arguments, trust)
            return optimizer
    except SyntaxError:
        pass
    raise ValueError(
        f"optimizer must be written like SGD(momentum=0.9) or AdamW(dim=4096), one of {', '.join(OPTIMIZERS)}; "
        f"got {quote(text)}"
    )


def _build_optimizer(class_name: str, arguments: dict[str, Any], trust: bool) -> Any:
    kind = optimizer_class(class_name, trust=trust)
    settings = inspect.signature(kind).parameters
    for name in arguments:
        check_choice(f"setting of {class_name}", name, list(settings))
    missing = [name for name, setting in settings.items() if setting.default is setting.empty and name not in arguments]
    if missing:
        raise ValueError(f"optimizer needs {' and '.join(missing)}, as in {class_name}({missing[0]}=4096)")
    return kind(**arguments)


def format_optimizer(rule: Optimizer) -> str:
    """Text form of an optimizer, which `check_optimizer` turns back into the object.

    Examples
    --------
    >>> format_optimizer(SGD(momentum=0.9))
    'SGD(momentum=0.9)'
    """
    return optimizer_class_name(rule) + repr(rule).removeprefix(type(rule).__name__)


def with_dim(rule: Optimizer, dim: int) -> Optimizer:
    """Copy of an optimizer with its number of weights set to `dim`; the same optimizer if it does not depend on it."""
    changed: Any = rule
    if "dim" in getattr(type(rule), "__dataclass_fields__", ()):
        changed = dataclasses.replace(changed, dim=dim)
    return changed  # type: ignore[no-any-return]


def check_optimizer(optimizer: OptimizerLike, *, trust: bool = True) -> Optimizer:
    """Check the argument `optimizer`: an object such as `SGD(momentum=0.9)`, its text form, or None for `SGD()`.

    This is the only place that parses the text form. `trust` is that of `optimizer_class`: False for text from a file.

    Raises
    ------
    TypeError : it is not an optimizer, but for example a class.
    ValueError : the text does not describe an optimizer.

    Examples
    --------
    >>> check_optimizer(None), check_optimizer("SGD(momentum=0.9)"), check_optimizer("theory.sgd:SGD()")
    (SGD(), SGD(momentum=0.9), SGD())
    """
    if optimizer is None:
        return SGD()
    if isinstance(optimizer, str):
        return _parse_optimizer(optimizer, trust)
    if isinstance(optimizer, type) or not hasattr(optimizer, "equilibrium_norm"):
        raise TypeError(
            f"optimizer must be an object such as SGD(momentum=0.9) or AdamW(dim=100), got {quote(optimizer)}"
        )
    return optimizer


def rotation_limit(rule: Optimizer) -> float:
    """Limit of ηλ for rotations: 1, where decay reverses the weights, or infinite if no ηλ limits the optimizer."""
    return 1.0 if np.isfinite(rule.intrinsic_lr_limit) else np.inf


def check_norm_law(rule: Optimizer) -> None:
    """Check that an optimizer has the law of its norm for small steps, which user-defined ones may lack.

    Examples
    --------
    >>> check_norm_law(SGD())
    """
    if missing := [
        name for name in ("norm_power", "rate_exponent", "norm_rate", "norm_growth") if not hasattr(rule, name)
    ]:
        raise ValueError(f"optimizer must have {', '.join(missing)} for laws in time, got {quote(rule)}")
