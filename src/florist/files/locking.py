"""One process at a time in a directory that several could go on with."""

import fcntl
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from florist.errors import DirectoryInUseError

LOCK_NAME = ".lock"
PATIENCE = 2.0
"""Seconds to wait for a holder that is just ending: workers outlive a killed parent for a moment."""


@contextmanager
def sole_process(directory: Path) -> Generator[None, None, None]:
    """Hold a directory for the block; the system lets go of it however the process ends.

    The lock file stays: who removed it could remove that of the next holder. File systems without locks hold nothing.

    Raises:
        DirectoryInUseError: another process holds it.
    """
    with (directory / LOCK_NAME).open("a+", encoding="utf-8") as lock:
        try:
            _acquire(lock)
        except BlockingIOError as error:
            lock.seek(0)
            raise DirectoryInUseError(
                f"expected {directory} for this process alone, and process {lock.read().strip()} is at work in it: two "
                "would write over each other's rounds; wait for that one, or end it and resume"
            ) from error
        except OSError:  # network file systems may know no locks
            pass
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)  # runs of one configuration are alike, byte for byte


def _acquire(lock: IO[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(PATIENCE / 20)
        else:
            return
