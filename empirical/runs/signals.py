"""Ctrl-C and SIGTERM, turned into a flag that a loop looks at between its steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """While open, Ctrl-C and SIGTERM set the event; a second Ctrl-C stops at once.

    Only the main thread gets signals: elsewhere the event is never set.

    Examples
    --------
    >>> import os
    >>> with stop_requested() as stop:
    ...     os.kill(os.getpid(), signal.SIGTERM)
    ...     stop.wait(1)
    True
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
