"""Files that Git LFS has not fetched: a clone without LFS holds a short text in the place of each large file."""

from pathlib import Path

from florist.errors import InvalidAdapterError

_START = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(path: Path, content: bytes) -> None:
    """Check that a file is itself, and no pointer to what Git LFS would fetch.

    Args:
        path: the file.
        content: the bytes of the file, or the first hundred of them.

    Raises:
        InvalidAdapterError: the file is a pointer.
    """
    if content.startswith(_START):
        raise InvalidAdapterError(
            f"{path} is a Git LFS pointer, which stands for the file that Git has not fetched: run `git lfs pull` in "
            f"{path.parent}"
        )
