"""One process at a time in a directory that several could go on with."""

import errno
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from florist.errors import DirectoryInUseError, UnwritableOutputError
from florist.files.outputs import remove, replace_file
from florist.files.reading import read_bytes
from florist.files.unwritable import unwritable_told

LOCK_NAME = ".lock"
HOLDER_NAME = ".lock-holder"
"""The file that names the process: systems differ in whether a locked file can be read, or is emptied by a rival."""
PATIENCE = 2.0
"""Seconds to wait for a holder that is just ending: workers outlive a killed parent for a moment."""
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


@contextmanager
def sole_process(directory: Path) -> Generator[None, None, None]:
    """Hold a directory for the block; the system lets go of it however the process ends.

    The lock file stays: a process that removed it could remove that of the next holder. On a file system without locks
    the directory may not be held.

    Raises:
        DirectoryInUseError: another process holds it.
        UnwritableOutputError: the lock file cannot be opened, there is no room to say who holds it, or nothing may be
            written.
    """
    holder = directory / HOLDER_NAME
    lock = FileLock(directory / LOCK_NAME)
    try:
        with unwritable_told(directory):
            lock.acquire(timeout=PATIENCE, poll_interval=PATIENCE / 20)
    except Timeout as error:
        raise DirectoryInUseError(
            f"expected {directory} for this process alone, and {_name(holder)} is at work in it: two would write over "
            "each other's rounds; wait for that one, or end it and resume"
        ) from error
    except UnwritableOutputError:
        raise  # it says what to do
    except NotImplementedError:  # so do older versions of filelock say that a file system has no locks
        pass
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise UnwritableOutputError(
                f"expected to lock {directory} for this process, and its {LOCK_NAME} cannot be opened "
                f"({error.strerror}); remove that file if no process is at work there"
            ) from error
    try:
        remove(holder)  # whatever it is
        replace_file(holder, f"{os.getpid()} {socket.gethostname()}\n")
        yield
    finally:
        remove(holder)  # before the lock is released: afterwards it may be the next holder's
        lock.release()


def _name(holder: Path) -> str:
    try:
        pid, _ = _holder(holder)
    except (OSError, ValueError):
        return "another process"
    return f"process {pid}"


def is_held(directory: Path) -> bool:
    """Whether a process is at work in a directory, as far as this machine can know without asking for the lock.

    A process that was killed leaves its name behind. On another machine, which shares the disk, it is taken for alive.
    """
    try:
        pid, host = _holder(directory / HOLDER_NAME)
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    if host != socket.gethostname():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is alive, and somebody else's
        return True
    return True


def _holder(file: Path) -> tuple[int, str]:
    pid, host = read_bytes(file, 1_000).decode().split(maxsplit=1)
    return int(pid), host.strip()
