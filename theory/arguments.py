"""Argument checks and their messages, shared by all packages.

Every check returns the value in a plain form. It raises a one-line error that names the argument, the value and the
allowed range.
"""

from __future__ import annotations

import difflib
import operator
import os
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

FloatArray = npt.NDArray[np.float64]
# Formulas return a float if all arguments are numbers, and an array otherwise. No type can say that an array without
# axes counts as a number.
Number = float | np.floating[Any] | np.integer[Any]

# Fields of a result are floats or arrays; without parameters, as in `Bounds`, their type is Any.
if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Value = TypeVar("Value", default=Any)
    Flag = TypeVar("Flag", default=Any)
else:
    from typing import TypeVar

    Value = TypeVar("Value")
    Flag = TypeVar("Flag")

# Least similarity of a wrong word to a suggested one (`difflib` ratio); it is 0.8 with two of five letters swapped.
_NEAR = 0.7
_LONGEST_TEXT = 200  # characters of a value in a message
_PACKAGES = tuple(str(Path(__file__).parents[1] / name) + os.sep for name in ("theory", "simulate", "empirical"))


def check_real(
    name: str,
    value: ArrayLike,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> FloatArray:
    """Check that `value` contains finite real numbers in a range, and return it as a float64 array.

    Parameters
    ----------
    name : name of the argument, for the message.
    value : number or array of any shape. Arrays are paired by position, so arrays with named dimensions are refused.
    above, at_least, below, at_most : limits of the range; `above` and `below` are exclusive.

    Returns
    -------
    float64 array of the same shape (0-d for a number); `value` itself if it is one already.

    Raises
    ------
    TypeError : `value` does not consist of real numbers, or has named dimensions like an `xarray.DataArray`.
    ValueError : a number is not finite or out of range.

    Examples
    --------
    >>> float(check_real("lr", 0.1, above=0))
    0.1
    >>> check_real("lr", [0.1, -2.0], above=0)
    Traceback (most recent call last):
    ...
    ValueError: lr must be a finite number > 0, got -2.0 at index 1
    """
    limits = {">": above, ">=": at_least, "<": below, "<=": at_most}
    allowed = " and ".join(f"{sign} {format_number(limit)}" for sign, limit in limits.items() if limit is not None)
    allowed = f"a finite number {allowed}".rstrip()
    raw = _to_array(name, value, f"{allowed} or an array of such numbers")
    if isinstance(value, int) and raw.dtype.kind == "O":  # too large for int64
        if abs(value) > sys.float_info.max:
            raise ValueError(f"{name} must be {allowed}, got a number of {len(str(abs(value)))} digits")
        raw = np.asarray(float(value))
    if raw.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be {allowed} or an array of such numbers, got {quote(value)}")
    array = raw.astype(np.float64, copy=False)
    if array.size:
        # fast path without temporaries; a NaN makes both limits NaN
        low, high = float(array.min()), float(array.max())
        inside = np.isfinite(low) and np.isfinite(high)
        inside = inside and (above is None or low > above) and (at_least is None or low >= at_least)
        if inside and (below is None or high < below) and (at_most is None or high <= at_most):
            return array
    good = np.isfinite(array)
    if above is not None:
        good &= array > above
    if at_least is not None:
        good &= array >= at_least
    if below is not None:
        good &= array < below
    if at_most is not None:
        good &= array <= at_most
    if not good.all():
        index = tuple(int(i) for i in np.argwhere(~good)[0])
        where = "" if not index else f" at index {index[0] if len(index) == 1 else index}"
        raise ValueError(f"{name} must be {allowed}, got {quote(float(array[index]))}{where}")
    return array


def _to_array(name: str, value: Any, allowed: str) -> npt.NDArray[Any]:
    """Return `value` as an array without named dimensions."""
    dims = getattr(value, "dims", ())
    if isinstance(dims, tuple) and dims:
        raise TypeError(
            f"{name} must be a number or an array without named dimensions, got a {type(value).__name__} with the "
            f"dimensions {dims}. Arrays are paired by position: pass its .values, with axes that broadcast"
        )
    try:
        return np.asarray(value)
    except ValueError:
        raise TypeError(f"{name} must be {allowed}, got {quote(value)}") from None
    except (TypeError, RuntimeError) as error:  # for example a torch tensor that requires grad, or of bfloat16
        reason = str(error).removesuffix(".")
        raise TypeError(
            f"{name} must be {allowed}, got a {type(value).__name__} that NumPy cannot read: {reason}. "
            "Pass float64 numbers"
        ) from None


def format_number(number: Any) -> str:
    """Shortest text that gives the same number, without ".0".

    Examples
    --------
    >>> format_number(2.0), format_number(0.1)
    ('2', '0.1')
    """
    return repr(float(number)).removesuffix(".0")


def check_number(name: str, value: Any, **limits: float) -> float:
    """Check that `value` is one finite real number in a range, and return it as a float."""
    array = check_real(name, value, **limits)
    if array.ndim:
        raise ValueError(f"{name} must be one number, got an array of shape {array.shape}")
    return float(array)


def check_lr(value: ArrayLike, name: str = "lr") -> FloatArray:
    """Check a learning rate: finite and > 0."""
    return check_real(name, value, above=0)


def check_wd(value: ArrayLike, name: str = "wd") -> FloatArray:
    """Check a weight decay: finite and >= 0."""
    return check_real(name, value, at_least=0)


def check_intrinsic_lr(lr: FloatArray, wd: FloatArray, *, below: float = 2.0) -> FloatArray:
    """Return the product lr * wd, checked to lie below `below`.

    The limit is 2 for results on norms and 1 for results on rotations and angular jumps.

    Raises
    ------
    ValueError : lr * wd is out of range, or the shapes do not broadcast.
    """
    lr, wd = broadcast(lr=lr, wd=wd)
    product = np.asarray(lr * wd)
    if product.size and not product.max() < below:
        good = product < below
        index = tuple(np.argwhere(~good)[0])
        raise ValueError(
            f"lr * wd must be < {format_number(below)} here, got {format_number(product[index])} "
            f"(lr={float(lr[index]):g}, wd={float(wd[index]):g})"
        )
    return product


def broadcast(**arrays: FloatArray) -> tuple[FloatArray, ...]:
    """Broadcast named arrays to one shape. The error lists the shapes."""
    try:
        return tuple(np.broadcast_arrays(*arrays.values()))
    except ValueError:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"shapes must broadcast together, got {shapes}") from None


def check_order(low_name: str, low: FloatArray, high_name: str, high: FloatArray) -> None:
    """Check that low <= high elementwise."""
    low, high = broadcast(**{low_name: low, high_name: high})
    bad = low > high
    if bad.any():
        index = tuple(np.argwhere(bad)[0])
        raise ValueError(
            f"{low_name} must be <= {high_name}, got {low_name}={float(low[index])!r} > "
            f"{high_name}={float(high[index])!r}"
        )


# Larger numbers of steps, rows or weights are not exact in floating point, and sums of them overflow in compiled code.
LARGEST_INTEGER = 2**53


def check_integer(name: str, value: Any, *, at_least: int = 0, at_most: int | None = None) -> int:
    """Check that `value` is one whole number in a range, by default up to 2⁵³.

    Raises
    ------
    TypeError : `value` is not a whole number.
    ValueError : it is out of range.
    """
    allowed = f"a whole number >= {at_least}" + ("" if at_most is None else f" and <= {at_most}")
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be {allowed}, got {quote(value)}") from None
    if number < at_least or (at_most is not None and number > at_most):
        raise ValueError(f"{name} must be {allowed}, got {number}")
    if at_most is None and number > LARGEST_INTEGER:
        raise ValueError(f"{name} must be {allowed} and <= {LARGEST_INTEGER}, got {number}")
    return number


def check_rows(name: str, rows: int, numbers: int = 1) -> None:
    """Check that rows of a result fit into the memory of this machine, before any work starts.

    Parameters
    ----------
    name : argument that sets the number of rows.
    rows, numbers : how many rows, and how many numbers in each.

    Raises
    ------
    ValueError : they need more bytes than the machine has.

    Examples
    --------
    >>> check_rows("steps", 1000, 3)
    """
    needed = float(rows) * numbers * 8
    try:
        available = float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on every platform
        return
    if needed > available:
        raise ValueError(
            f"{name} must leave rows that fit into memory, got {rows} rows of {needed / 2**30:.3g} GiB in all on a "
            f"machine with {available / 2**30:.3g} GiB"
        )


def quote(value: Any) -> str:
    """Text of a value for a message: its representation, on one line and not too long.

    Examples
    --------
    >>> quote("a"), quote(np.eye(2)), len(quote("a" * 1000))
    ("'a'", 'array([[1., 0.], [0., 1.]])', 200)
    """
    try:
        text = " ".join(repr(value).split())
    except Exception:
        text = f"a {type(value).__name__} without a representation"
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "..."


def check_flag(name: str, value: Any) -> bool:
    """Check that `value` is True or False. Raise TypeError otherwise.

    Examples
    --------
    >>> check_flag("falling", np.True_)
    True
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {quote(value)}")
    return bool(value)


def check_items(name: str, value: Any) -> tuple[Any, ...]:
    """Items of a sequence or another iterable, but not of a text. Raise TypeError for anything else.

    Examples
    --------
    >>> check_items("steps", range(3))
    (0, 1, 2)
    """
    if isinstance(value, Iterator):
        # the code of a generator raises errors of its own, which say more
        return tuple(value)
    if not isinstance(value, (str, bytes)):
        try:
            return tuple(value)
        except Exception:  # objects of libraries raise errors of many kinds
            pass
    raise TypeError(f"{name} must be a sequence, got {quote(value)}")


def check_mapping(name: str, value: Any) -> dict[Any, Any]:
    """Check that `value` is a mapping, or None for an empty one. Raise TypeError otherwise.

    Examples
    --------
    >>> check_mapping("names", None)
    {}
    """
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping, got {quote(value)}")
    return dict(value or {})


def check_path(name: str, value: Any) -> Path:
    """Check that `value` is a path: text, or an object like `pathlib.Path`.

    Raises
    ------
    TypeError : it is neither.
    ValueError : no file can have this name, because it is too long or has characters that cannot be in it.

    Examples
    --------
    >>> check_path("path", "runs/a").name
    'a'
    """
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a path as text or pathlib.Path, got {type(value).__name__}")
    try:
        os.lstat(text)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ValueError(f"{name} must be a possible path, got {quote(text)} ({reason})") from None
    return Path(text)


def check_steps(steps: int | ArrayLike) -> npt.NDArray[np.int64]:
    """Return the step numbers 0 … N for a last step N, or a checked one-dimensional array of step numbers."""
    allowed = "a whole number or a one-dimensional array of whole numbers"
    numbers = _to_array("steps", steps, allowed)
    if numbers.ndim == 0:
        last = check_integer("steps", steps)
        check_rows("steps", last)
        return np.arange(last + 1)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise TypeError(f"steps must be {allowed}, got {quote(steps)}")
    if numbers.size and numbers.min() < 0:
        raise ValueError(f"steps must be >= 0, got {int(numbers.min())}")
    return numbers.astype(np.int64)


def check_choice(name: str, value: Any, allowed: Collection[str]) -> str:
    """Check that `value` is one of the allowed words. The error suggests the most similar one.

    Examples
    --------
    >>> check_choice("sampling", "with_replacement", ["with_replacement", "without_replacement"])
    'with_replacement'
    >>> check_choice("field", "widht", ["width", "depth"])
    Traceback (most recent call last):
    ...
    ValueError: field must be one of depth, width; got 'widht', did you mean 'width'?
    """
    if not isinstance(value, str) or value not in allowed:
        meant = suggestion(value, allowed)
        raise ValueError(f"{name} must be one of {', '.join(sorted(allowed))}; got {quote(value)}{meant}")
    return value


def suggestion(value: Any, allowed: Collection[str]) -> str:
    """End of an error message that suggests the most similar allowed word; empty if none is similar."""
    if not isinstance(value, str):
        return ""
    words = {word.lower(): word for word in allowed}
    matches = difflib.get_close_matches(value.lower(), words, n=1, cutoff=_NEAR)
    return f", did you mean {words[matches[0]]!r}?" if matches else ""


def check_choices(name: str, values: Any, allowed: Collection[str]) -> list[str]:
    """Check that `values` are one or more of the allowed words, and drop duplicates.

    Raises
    ------
    TypeError, ValueError : `values` is a single word, is empty, or contains a word that is not allowed.
    """
    if isinstance(values, str):
        raise TypeError(f"{name} must be a sequence of words, got the single word {values!r}")
    words = [check_choice(name, value, allowed) for value in check_items(name, values)]
    if not words:
        raise ValueError(f"{name} must be at least one of {', '.join(sorted(allowed))}; got none")
    return list(dict.fromkeys(words))


def to_float(result: Any) -> Any:
    """Return a float for a 0-d result, and an array otherwise."""
    array = np.asarray(result)
    return float(array) if array.ndim == 0 else array


def warn_user(message: str) -> None:
    """Give a `UserWarning` with the file and line of the first caller outside this project's packages."""
    level, frame = 2, sys._getframe(1)
    while frame.f_code.co_filename.startswith(_PACKAGES) and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
