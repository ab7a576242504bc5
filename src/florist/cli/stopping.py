"""Ctrl-C and SIGTERM: a command unwinds, says in one line how to go on, and ends; a second signal ends it at once."""

import os
import signal
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

ONE_WISH = 0.5
"""Seconds in which further signals are the same wish: wrappers pass on what the whole group was sent already."""


class StoppedBySignal(KeyboardInterrupt):  # as the builtin that it is caught as
    """A signal asked the process to end.

    Args:
        number: the number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_status(stop: KeyboardInterrupt) -> int:
    """The exit status of a command that was stopped: 128 and the number of the signal, as shells have it."""
    return 128 + (stop.number if isinstance(stop, StoppedBySignal) else signal.SIGINT)


@contextmanager
def stopped_by_signals() -> Generator[None, None, None]:
    """Raise `StoppedBySignal` for SIGINT and SIGTERM in the block, so that it unwinds and leaves nothing half written.

    A second signal ends the process at once, with no clean-up; what is half written then is removed when the work is
    gone on with. A signal that is ignored stays ignored, as shells want it of what runs in the background. In another
    thread than the main one nothing changes: Python tells signals to that one alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[float] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        if first and time.monotonic() - first[0] >= ONE_WISH:
            if sys.stderr.isatty():
                os.write(2, b"\x1b[?25h\n")  # bars hide the cursor
            os._exit(128 + number)
        if not first:
            first.append(time.monotonic())
            raise StoppedBySignal(number)

    before = {
        number: signal.signal(number, stop)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
