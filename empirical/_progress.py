"""Progress of everything that may take seconds: a bar in a terminal, and a line a minute in a log file of a command."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from theory.arguments import check_flag

# seconds before the first line, and between lines
_FIRST_LINE, _NEXT_LINE = 10.0, 60.0
_is_command = False


@contextmanager
def progress_of_command() -> Iterator[None]:
    """Context of a command: where there is no terminal, progress is printed as lines. Functions print nothing there."""
    global _is_command
    before, _is_command = _is_command, True
    try:
        yield
    finally:
        _is_command = before


def progress_bar(
    description: str,
    total: int | None,
    unit: str,
    progress: bool | None,
    *,
    initial: int = 0,
    is_scaled: bool = False,
) -> Any:
    """Return a progress bar that disappears at its end.

    Parameters
    ----------
    description : what is under way.
    total, unit : number of things to do, and the name of one. With None only the description is shown.
    progress : whether the bar is shown. None: in a terminal, and as lines in the log file of a command.
    initial : number of things that are done already.
    is_scaled : whether numbers are shortened, as in 1.2M.
    """
    if progress is not None:
        check_flag("progress", progress)
    settings: dict[str, Any] = {
        "desc": description,
        "total": total,
        "unit": unit,
        "initial": initial,
        "unit_scale": is_scaled,
        "leave": False,
    }
    if progress is None and _is_command and total is not None and not sys.stderr.isatty():
        return _Lines(**settings)
    disable = None if progress is None else not progress
    return tqdm(bar_format="{desc}" if total is None else None, disable=disable, **settings)


class _Lines(tqdm):  # type: ignore[misc]
    """Progress bar that prints a line now and then."""

    def __init__(self, **settings: Any) -> None:
        form = "bnwd: {desc}: {n_fmt} of {total_fmt} {unit}s, {percentage:.0f} %, {remaining} left{postfix}"
        self._due = time.monotonic() + _FIRST_LINE
        super().__init__(bar_format=form, **settings)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Print the line if it is due; the empty message at the end prints nothing."""
        if msg is None and time.monotonic() >= self._due:
            self._due = time.monotonic() + _NEXT_LINE
            print(str(self), file=sys.stderr, flush=True)
        # otherwise a bar that closes prints a carriage return
        return False

    def clear(self, *_: Any, **__: Any) -> None:
        """Do nothing: other lines are not written over this one."""
