"""Things of one's own by name: "module:name", as in the entry points of Python packages."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_reference(text: Any) -> bool:
    """Whether a text has the form "module:name".

    Examples
    --------
    >>> is_reference("math:sqrt"), is_reference("sqrt")
    (True, False)
    """
    return isinstance(text, str) and _REFERENCE.fullmatch(text) is not None


def import_reference(argument: str, text: str) -> Callable[..., Any]:
    """Import the function or class that "module:name" refers to.

    Raises
    ------
    ValueError : there is no such module or name; it says which argument asked for it.
    TypeError : it is neither function nor class.

    Examples
    --------
    >>> import_reference("model", "math:sqrt")(9.0)
    3.0
    """
    module, _, name = text.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{argument} must be the 'module:name' of something that Python can import, got {text!r}: {error}; "
            "is the module's folder on PYTHONPATH?"
        ) from error
    if not callable(found):
        raise TypeError(f"{argument} must be the 'module:name' of a function or class, got {text!r}, {found!r}")
    function: Callable[..., Any] = found
    return function


def format_reference(argument: str, kind: type[Any]) -> str:
    """Return the "module:name" of a class.

    Raises
    ------
    ValueError : the class was made inside a function, where nothing else finds it.

    Examples
    --------
    >>> import decimal
    >>> format_reference("number", decimal.Decimal)
    'decimal:Decimal'
    """
    text = f"{kind.__module__}:{kind.__qualname__}"
    if not is_reference(text):
        raise ValueError(f"{argument} must be of a class that a module defines at its top, got one of {text}")
    return text
