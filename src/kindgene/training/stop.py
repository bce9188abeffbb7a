"""Being asked to stop: a signal is remembered, the step at hand finished, the run saved, then it ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(KeyboardInterrupt):
    """A run ended as it was asked to, its last step saved. `number` is the signal's."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class Stop:
    """`requested` holds the name of the signal that asked, or None."""

    def __init__(self) -> None:
        self.requested: str | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler. A second Ctrl-C does not wait for the step."""
        if self.requested is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Catches SIGINT and SIGTERM in the block, and puts the handlers back that were there.

    Only the main thread can; in any other the block runs as it is, and nothing is ever requested.
    """
    stop = Stop()
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if handler is not None:  # None: not set by Python, so Python could not put it back
                before[number] = handler
                signal.signal(number, stop.handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
