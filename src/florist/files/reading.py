"""Reading files that a stranger may have put there: none blocks, and none is larger than its reader expects.

A path can lead to a FIFO, whose opening waits for a writer, or to a device such as ``/dev/zero``, which never ends.
Links are followed; what they lead to counts. Nothing here imports more than the standard library.
"""

import hashlib
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from florist.errors import UnreadableFileError

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# What opens for reading at once, whatever it is; Windows has neither the flags nor the danger.
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))
_CHUNK = 1 << 20


def require_regular(path: Path) -> int:
    """Check that a path leads to a regular file, before a library opens it that does not look; return its bytes.

    Raises:
        UnreadableFileError: it leads to something else.
        OSError: it leads nowhere, or may not be looked at.
    """
    return _regular(path, path.stat())


@contextmanager
def open_regular(path: Path) -> Generator[FileIO, None, None]:
    """The bytes of a regular file, unbuffered. Opening never waits.

    Raises:
        UnreadableFileError: the path leads to something else.
        OSError: it leads nowhere, or may not be read.
    """
    require_regular(path)  # a device is not even opened, which may set it in motion
    descriptor = os.open(path, _FLAGS)
    try:
        _regular(path, os.fstat(descriptor))  # it may have been changed for another meanwhile
        yield FileIO(descriptor, "rb", closefd=False)
    finally:
        os.close(descriptor)


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file that is not larger than its reader expects.

    Args:
        path: the file.
        most: how many bytes it may have. No more than one above it is read, and memory follows the file's size.

    Raises:
        UnreadableFileError: it is no regular file, or larger.
        OSError: it is not there, or may not be read.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise _too_large(path, most, f"{size}")
        content = bytearray()
        while chunk := stream.read(min(_CHUNK, most + 1 - len(content))):
            content += chunk
            if len(content) > most:  # it has grown, or is of a file system that tells no sizes
                raise _too_large(path, most, "more")
    return bytes(content)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of the bytes of a regular file.

    Raises:
        UnreadableFileError, OSError: as `open_regular`.

    Cost: one read of the file, about a second for 1 to 2 GB where the processor has instructions for it.
    """
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _regular(path: Path, found: os.stat_result) -> int:
    if stat.S_ISREG(found.st_mode):
        return found.st_size
    kind = next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), "something else")
    raise UnreadableFileError(f"expected a regular file at {path}, found {kind}; put the file itself there")


def _too_large(path: Path, most: int, found: str) -> UnreadableFileError:
    return UnreadableFileError(
        f"expected at most {most} bytes in {path}, found {found}; it is not the file that it is taken for"
    )
