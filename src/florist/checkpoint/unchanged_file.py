"""A file that has to stay as it was when it was opened, though its parts are read later."""

import hashlib
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from florist.errors import InvalidAdapterError, UnreadableFileError
from florist.files.reading import open_regular, require_regular


@dataclass(frozen=True, slots=True)
class UnchangedFile:
    """A file, and what the system said of it once. Nothing is held open in between.

    Attributes:
        path: where the file is.
        version: what the system says of the file, and says differently after every change.
    """

    path: Path
    version: tuple[int, ...]

    @classmethod
    def of(cls, path: Path) -> "UnchangedFile":
        """The file as it is now.

        Raises:
            UnreadableFileError: it is no regular file: a FIFO or a device for instance.
            OSError: it is not there.
        """
        require_regular(path)
        return cls(path, _version(path.stat()))

    @property
    def identity(self) -> tuple[int, ...] | Path:
        """What is the same for one file by whichever path, link or hard link it was opened."""
        device, inode = self.version[:2]
        return (device, inode) if inode else self.path.resolve()  # some file systems have no inodes

    @contextmanager
    def open(self) -> Generator[FileIO, None, None]:
        """The bytes of the file, unbuffered.

        Raises:
            InvalidAdapterError: the file has changed or gone, before or while it was read, or cannot be read.
        """
        try:
            with open_regular(self.path) as stream:
                self._require_same(stream)
                yield stream
                self._require_same(stream)
        except (OSError, UnreadableFileError) as error:
            raise self._changed() from error

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer of bytes with what the file holds from an offset on.

        Raises:
            InvalidAdapterError: as `open`, or the file ends before the buffer is full.
        """
        with self.open() as stream:
            stream.seek(offset)
            while buffer and (count := stream.readinto(buffer)):  # one call reads 2 GB at most
                buffer = buffer[count:]
            if buffer:
                raise self._changed()

    def sha256(self) -> str:
        """The hexadecimal SHA-256 of the bytes that all who opened the file got.

        Raises:
            InvalidAdapterError: as `open`.
        """
        with self.open() as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def _require_same(self, stream: FileIO) -> None:
        if _version(os.fstat(stream.fileno())) != self.version:
            raise self._changed()

    def _changed(self) -> InvalidAdapterError:
        return InvalidAdapterError(
            f"expected {self.path} as it was when it was opened, and it has changed or gone since; copy an upload that "
            "others can still write to"
        )


def _version(status: os.stat_result) -> tuple[int, ...]:
    # A program can set the time of modification to anything, but not the time of the inode's last change.
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
