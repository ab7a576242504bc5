"""Which drafts a living process is writing: each holds a lock on its own, which the system lets go of when it ends.

The lock is `flock` on the draft itself, a file or a directory. Where there is none, on Windows and on some network
disks, nobody knows, and nothing is taken for abandoned.
"""

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC"))


def hold(path: Path, descriptor: int) -> bool:
    """Hold what a descriptor is open on, until it is closed; return False where another has removed it, or is about to.

    Where there are no locks, nothing happens.

    Args:
        path: where it is.
        descriptor: of the file or the directory there.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return path.exists()


def hold_directory(directory: Path) -> int | None:
    """Hold a directory; return what to `release`, or None where a directory cannot be opened.

    Raises:
        FileNotFoundError: another process has removed it meanwhile, or is about to.
    """
    if fcntl is None:
        return None
    descriptor = os.open(directory, _FLAGS)
    if not hold(directory, descriptor):
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "it was removed", str(directory))
    return descriptor


def release(held: int | None) -> None:
    """Let go of what `hold_directory` gave."""
    if held is not None:
        os.close(held)


@contextmanager
def abandoned(path: Path) -> Generator[bool | None, None, None]:
    """Whether no living process holds a file or a directory; None where nobody knows. For the block, nobody can.

    A link, a FIFO or a device is held by nobody.
    """
    if fcntl is None:
        yield None
    elif path.is_symlink() or not (path.is_dir() or path.is_file()):
        yield True
    else:
        descriptor = _opened(path)
        try:
            yield _locked(descriptor) if descriptor is not None else None
        finally:
            release(descriptor)


def _opened(path: Path) -> int | None:
    try:
        return os.open(path, _FLAGS)
    except OSError:
        return None


def _locked(descriptor: int) -> bool | None:
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
