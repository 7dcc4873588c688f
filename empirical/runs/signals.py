"""Turn Ctrl-C and SIGTERM into a flag that a training loop checks between steps."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def catch_stop_signals() -> Iterator[threading.Event]:
    """Set the event on Ctrl-C or SIGTERM while the context is open. A second Ctrl-C raises KeyboardInterrupt.

    No signal is lost: if the event is set when the context ends, it raises KeyboardInterrupt, unless another exception
    is on its way. Only the main thread receives signals. In other threads the event is never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if stop.is_set() and sys.exc_info()[0] is None:
        raise KeyboardInterrupt
