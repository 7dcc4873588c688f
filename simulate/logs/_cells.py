"""Numbers of cells: what logs write for a number, for a lost one and for none."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from theory.arguments import FloatArray

# texts of values that were not logged
MISSING = frozenset({"", "-", "--", "none", "null", "na", "n/a", "<na>", "nil", "?"})
NUMBER = r"[+-]?(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
LOST = r"[+-]?(?:nan|inf|infinity)"
# a number in brackets, quotes or the name of a type, with a unit or what tensors print after their value
_CELL = re.compile(
    rf"""["'\s\[(]*(?:[A-Za-z_][\w.]*\(\s*[\[(]*\s*)?(?P<number>{NUMBER}|{LOST}(?![a-z]))(?P<percent>\s*%)?"""
    r"""(?P<tail>(?:/\d+)?\s*[a-zµ/]{0,8}\s*(?:[\])"'\s]|,.*)*)""",
    re.IGNORECASE,
)
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+")


def to_numbers(cells: Sequence[Any] | npt.NDArray[Any]) -> tuple[FloatArray, bool]:
    """Numbers of a column, and whether all its cells are percentages, which become shares.

    NaN stands for a value that was not logged or is no number, and inf for a lost one: nan or inf in the log.
    """
    if isinstance(cells, np.ndarray) and cells.dtype.kind in "fiub":
        return np.asarray(cells, dtype=float), False
    try:
        # the usual case, fast; 0 is a number
        numbers = np.array([float(cell) if cell or cell == 0 else math.nan for cell in cells])
    except (TypeError, ValueError):
        return _to_numbers_one_by_one(cells)
    unclear = np.flatnonzero(~np.isfinite(numbers))
    if unclear.size:
        numbers[unclear] = [to_number(cells[row]) for row in unclear.tolist()]
    return numbers, False


def _to_numbers_one_by_one(cells: Sequence[Any] | npt.NDArray[Any]) -> tuple[FloatArray, bool]:
    numbers = np.array([to_number(cell) for cell in cells], dtype=float)
    texts = [str(cell).strip() for cell in cells]
    logged = [text for text in texts if text.lower() not in MISSING]
    is_percentage = bool(logged) and all(text.endswith("%") for text in logged) and bool(np.isfinite(numbers).any())
    if is_percentage:
        # 44.88% is 0.4488 exactly
        numbers = np.array([_shift_point(number) for number in numbers.tolist()])
    return numbers, is_percentage


def _shift_point(number: float) -> float:
    text = repr(number)
    return number / 100 if "e" in text or not math.isfinite(number) else float(f"{text}e-2")


def to_number(cell: Any) -> float:
    """Number of a cell; NaN if none was logged, inf if it was lost."""
    if cell is None:
        return math.nan
    if isinstance(cell, str):
        return _text_to_number(cell)
    if isinstance(cell, (list, tuple)):
        # one value for each group of weights
        return to_number(cell[0]) if cell else math.nan
    try:
        number = float(cell)
    except (TypeError, ValueError, RuntimeError):
        return math.nan
    return number if math.isfinite(number) else math.inf


def _text_to_number(text: str) -> float:
    if text.strip().lower() in MISSING:
        return math.nan
    match = _CELL.fullmatch(text.strip())
    if match is None:
        return math.nan
    number = float(match["number"].replace(",", ""))
    return number if math.isfinite(number) else math.inf


def is_number(text: str) -> bool:
    """Whether a cell is a number, lost or not logged."""
    stripped = text.strip()
    return stripped.lower() in MISSING or _CELL.fullmatch(stripped) is not None


def has_decimal_commas(columns: Sequence[Sequence[str]]) -> bool:
    """Whether the numbers of a table without commas between cells have a decimal comma."""
    with_comma = [cell for cells in columns for cell in cells if _DECIMAL_COMMA.fullmatch(cell.strip())]
    if not with_comma:
        return False
    are_thousands = all(_THOUSANDS.fullmatch(cell.strip()) for cell in with_comma)
    return not (are_thousands and any("." in cell for cells in columns for cell in cells))
