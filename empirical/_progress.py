"""Progress bars of everything that may take seconds."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from theory.arguments import check_flag


def progress_bar(description: str, total: int | None, unit: str, progress: bool | None, *, initial: int = 0) -> Any:
    """Return a progress bar that disappears at its end.

    Parameters
    ----------
    description : what is under way.
    total, unit : number of things to do, and the name of one. With None only the description is shown.
    progress : whether the bar is shown. None: only in a terminal.
    initial : number of things that are done already.
    """
    if progress is not None:
        check_flag("progress", progress)
    return tqdm(
        desc=description,
        total=total,
        unit=unit,
        initial=initial,
        bar_format="{desc}" if total is None else None,
        disable=None if progress is None else not progress,
        leave=False,
    )
