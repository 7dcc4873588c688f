"""Keep the memory of deleted tensors in the process, where the next tensors reuse it."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

# parameters of mallopt: free memory at the end of the heap that is returned, and smallest block outside the heap
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# the largest thresholds that the GNU C library reaches by itself, as it adapts them to a program
_USUAL_TRIM, _USUAL_MMAP = 2**26, 2**25
_NEVER, _LARGEST = -1, 2**31 - 1


@contextlib.contextmanager
def reuse_freed_memory() -> Iterator[None]:
    """Context in which the C library keeps the memory of deleted tensors, up to 2 GiB each. Also a decorator.

    By default it returns the memory of each large tensor to the operating system, which then clears every page of the
    next one. For convolutions on large images this takes up to three quarters of the time. At the end of the context
    the memory is returned. Other C libraries than that of GNU are left as they are.
    """
    try:
        library = ctypes.CDLL(None)
        change, return_memory = library.mallopt, library.malloc_trim
    except (OSError, AttributeError):
        yield
        return
    change(_MMAP_THRESHOLD, _LARGEST)
    change(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        change(_MMAP_THRESHOLD, _USUAL_MMAP)
        change(_TRIM_THRESHOLD, _USUAL_TRIM)
        return_memory(0)
