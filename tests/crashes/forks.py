"""Processes that are forked from this one, with all libraries loaded, and end at a moment that a test chooses."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

if sys.platform == "win32":
    pytest.skip("needs fork", allow_module_level=True)

FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate"}
PATIENCE = 120.0
"""Seconds in which a process comes to its end, on a busy machine."""


@dataclass(frozen=True)
class Ended:
    """A process that has ended.

    Attributes:
        status: its exit status; the negative number of a signal that killed it.
        stdout: what it printed.
        stderr: what it printed there.
    """

    status: int
    stdout: str
    stderr: str


class Forked:
    """A process that does something and ends.

    Args:
        action: what it does.
        folder: where its output is kept.
    """

    def __init__(self, action: Callable[[], object], folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._logs = folder / "stdout", folder / "stderr"
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_status_of(action, *self._logs))

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so, or the process has ended."""
        deadline = time.monotonic() + PATIENCE
        while not condition() and not _over(self.pid):
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.001)

    def end(self) -> Ended:
        """Wait for the end."""
        deadline = time.monotonic() + PATIENCE
        while (found := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                pytest.fail(f"a process did not end: {self._logs[1].read_text()}")
            time.sleep(0.0005)
        return Ended(os.waitstatus_to_exitcode(found[1]), *(log.read_text() for log in self._logs))


def counted(folder: Path, at: int | None, strike: Callable[[], None]) -> Callable[[], int]:
    """Count what this process does to files in a folder from now on, and strike at one of the operations.

    Opening, renaming, removing and changing are counted by Python's audit events, flushing to disk by a wrapper. Only
    for a forked process: none of it can be taken back.

    Args:
        folder: only what has this in its path is counted.
        at: the number of the operation, from 1; None for none.
        strike: is called before it.

    Returns:
        Tells how many operations there were.
    """
    done, text, flush = 0, str(folder), os.fsync

    def count() -> None:
        nonlocal done
        done += 1
        if done == at:
            strike()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and text in str(arguments[0]):
            count()

    def counted_flush(descriptor: int) -> None:
        count()
        flush(descriptor)

    sys.addaudithook(hook)
    os.fsync = counted_flush
    return lambda: done


def killed() -> None:
    """End this process at once, as ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def _over(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _status_of(action: Callable[[], object], *logs: Path) -> int:
    sys.stdout, sys.stderr = (log.open("w", buffering=1) for log in logs)
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    try:
        action()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:  # noqa: BLE001  # whatever it was, the test is to see it
        traceback.print_exc()
        return 99
    return 0
