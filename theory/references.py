"""References "module:name" to user-defined functions and classes, as in the entry points of Python packages."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
import types
from collections.abc import Callable
from typing import Any

from theory.arguments import quote

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_OWN_PACKAGES = ("theory", "simulate", "empirical")
# Names in stored runs whose classes have moved: the stored name and where the class is now. New runs are stored under
# the first such name, which is part of their identity.
_MOVED = {
    "empirical.trials.claims.corrected_decay:CorrectedSGD": "empirical.studies.claims:CorrectedSGD",
    "empirical.studies.claims.corrected_decay:CorrectedSGD": "empirical.studies.claims:CorrectedSGD",
}


def is_reference(text: Any) -> bool:
    """Whether a text has the form "module:name"."""
    return isinstance(text, str) and _REFERENCE.fullmatch(text) is not None


def import_reference(argument: str, text: str) -> Callable[..., Any]:
    """Import the function or class that "module:name" refers to.

    Raises
    ------
    ValueError : there is no such module or name; the message names the argument.
    TypeError : the object is neither a function nor a class.
    """
    module, _, name = _MOVED.get(text, text).partition(":")
    try:
        target: Any = importlib.import_module(module)
        for part in name.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{argument} must be the 'module:name' of something that Python can import, got {quote(text)}: {error}; "
            "check that the module's folder is on PYTHONPATH"
        ) from error
    if not callable(target):
        raise TypeError(f"{argument} must be the 'module:name' of a function or class, got {quote(text)}, {target!r}")
    function: Callable[..., Any] = target
    return function


def loaded_class(text: str, base: type[Any]) -> type[Any] | None:
    """Class that "module:name" refers to, without an import: a subclass of `base` in a loaded module.

    Modules of this package are imported. Files may name anything, so nothing else is imported or called for them.

    Examples
    --------
    >>> loaded_class("os:system", object), loaded_class("theory.sgd:SGD", object).__name__
    (None, 'SGD')
    """
    module, _, name = _MOVED.get(text, text).partition(":")
    if module.partition(".")[0] in _OWN_PACKAGES:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    target: Any = sys.modules.get(module)
    for part in name.split("."):
        target = vars(target).get(part) if isinstance(target, (types.ModuleType, type)) else None
    return target if isinstance(target, type) and issubclass(target, base) else None


def format_reference(argument: str, kind: type[Any]) -> str:
    """Return the "module:name" of a class.

    Raises
    ------
    ValueError : the class is defined inside a function and cannot be imported.

    Examples
    --------
    >>> import decimal
    >>> format_reference("number", decimal.Decimal)
    'decimal:Decimal'
    """
    current = f"{kind.__module__}:{kind.__qualname__}"
    text = next((stored for stored, moved_to in _MOVED.items() if moved_to == current), current)
    if not is_reference(text):
        raise ValueError(f"{argument} must be a class defined at the top level of a module, got {text}")
    return text
