"""What a system, or a library written in Rust, says of a file that there is no room for: one error with a remedy."""

import errno
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from florist.errors import UnwritableOutputError

_REMEDIES = {
    errno.ENOSPC: "make room on that disk, or choose another place",
    errno.EDQUOT: "make room within your quota, or choose another place",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or choose another place",
    errno.EROFS: "make it writable, or choose another place",
}
"""What to do, by the number of the error. None of these comes from reading: what is read may fail in the block too."""
_IN_WORDS = re.compile(r"\(os error (\d+)\)")
"""How Rust shows the number of an error; safetensors and tokenizers have no other sign of it."""


@contextmanager
def unwritable_told(path: Path) -> Generator[None, None, None]:
    """What goes wrong for want of room while something is written is raised as an `UnwritableOutputError`.

    Args:
        path: what is written, for the message.

    Raises:
        UnwritableOutputError: the disk or the quota is full, a file would be too large, or nothing may be written.
    """
    try:
        yield
    except UnwritableOutputError:
        raise  # it names a path that is nearer to what went wrong
    except Exception as error:
        found = system_error(error, path)
        if found is None or found.errno not in _REMEDIES:
            raise
        raise UnwritableOutputError(
            f"cannot write {path}: {os.strerror(found.errno)}; {_REMEDIES[found.errno]}"
        ) from error


def system_error(error: Exception, path: Path) -> OSError | None:
    """The error of the system behind one of a library; None where there is none.

    Args:
        error: what was raised.
        path: the file that the new error is to name.
    """
    if isinstance(error, OSError):
        return error
    number = _IN_WORDS.search(str(error))
    return OSError(int(number[1]), os.strerror(int(number[1])), str(path)) if number is not None else None
