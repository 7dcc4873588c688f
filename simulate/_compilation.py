"""Compilation of functions to machine code, which is stored for the next process if possible."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numba


def compile_cached(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator: `numba.njit` without Python's lock and with a cache on disk.

    Without a folder for the cache, as in a container with neither a writable package nor a home, every process compiles
    the function anew. One warning says so.

    Examples
    --------
    >>> import numpy as np
    >>> from simulate.trajectories.periods import zigzag  # decorated with `@compile_cached()`
    >>> zigzag(np.array([1.0, 0.0, 1.0, 0.0]), 0.5)
    (array([1]), array([2]))
    """
    options = {"nogil": True, **options}

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError as error:
            _warn_once(str(error).partition("'")[0].strip())
            return numba.njit(**options)(function)

    return decorate


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(
        f"{reason}: neither the folder of the package nor the home folder can be written. Every process now spends "
        "seconds on compilation; set NUMBA_CACHE_DIR to a folder that you can write",
        RuntimeWarning,
        stacklevel=2,
    )
