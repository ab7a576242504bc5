"""Lines that say what a command is at, where no terminal shows bars: a log must not be silent for minutes."""

import threading
import time
from collections.abc import Callable

EVERY = 10.0
"""Seconds from one line to the next. A busy process may be late by a few: no silence is longer than 15."""


class Heartbeat:
    """Says what a command is at whenever nothing else was said for a while.

    A model is loaded, or an adapter evaluated, in one call that tells nobody how far it is. One thread therefore waits
    until the next line is due. It ends with the block.

    Args:
        doing: tells what the command is at, in a few words.
        say: prints a line.
        clock: tells the time in seconds.
    """

    def __init__(
        self, doing: Callable[[], str], say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._doing = doing
        self._say = say
        self._clock = clock
        self._begun = self._said = clock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat_until_over, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._begun = self._said = self._clock()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def said(self) -> None:
        """Something else was printed: the next line is due later."""
        self._said = self._clock()

    def beat(self) -> float:
        """Say what the command is at, if that is due; return the seconds until it is due again."""
        now = self._clock()
        if now - self._said >= EVERY:
            self._said = now
            minutes, seconds = divmod(int(now - self._begun), 60)
            self._say(f"{minutes}:{seconds:02d} {self._doing()}")
        return max(0.0, self._said + EVERY - now)

    def _beat_until_over(self) -> None:
        while not self._over.wait(self.beat()):
            pass
