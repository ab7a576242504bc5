"""Files and directories that appear whole or not at all."""

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from florist.errors import MissingInputError, OutputExistsError, UnwritableOutputError

_DRAFT = re.compile(r"\..+\.[0-9a-f]{16}")


def require_absent(path: Path) -> None:
    """Refuse to overwrite; a command calls this before it spends time.

    Raises:
        OutputExistsError: something is at `path` already.
        MissingInputError: the folder to put it in does not exist.
        UnwritableOutputError: that folder may not be written to.
    """
    if os.path.lexists(path):
        raise OutputExistsError(
            f"{path} already exists and florist does not overwrite: choose another name or remove it"
        )
    if not path.absolute().parent.is_dir():
        raise MissingInputError(f"cannot write {path}: there is no directory {path.absolute().parent}; create it first")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise UnwritableOutputError(
            f"cannot write {path}: {path.absolute().parent} is not writable; choose another place"
        )


@contextmanager
def new_directory(path: Path) -> Generator[Path, None, None]:
    """A directory to fill; it becomes `path` when the block ends well and vanishes when it does not.

    The files are written beside `path` and flushed to disk before one rename makes them visible.

    Raises:
        OutputExistsError, MissingInputError: as `require_absent`.
    """
    require_absent(path)
    draft = _draft(path)
    draft.mkdir()
    try:
        yield draft
        readable = draft.stat().st_mode & 0o666
        for entry in (draft, *draft.rglob("*")):
            if entry.is_symlink():
                continue
            if entry.is_file():
                # safetensors makes files for the owner alone; whoever may read the directory may read its files.
                entry.chmod(entry.stat().st_mode | readable)
            _flush(entry)
        require_absent(path)
        draft.rename(path)
        _flush(path.absolute().parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def replace_file(path: Path, content: str) -> None:
    """Write a text file so that a reader, or a crash, sees the old content or the new one."""
    draft = _draft(path)
    try:
        with draft.open("x", encoding="utf-8") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
        _flush(path.parent)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def remove_drafts(folder: Path) -> None:
    """Remove what a process left half written in a folder because it was killed; nobody else may be writing there."""
    for entry in folder.iterdir():
        if _DRAFT.fullmatch(entry.name) and not entry.is_dir():
            entry.unlink(missing_ok=True)
        elif _DRAFT.fullmatch(entry.name):
            shutil.rmtree(entry, ignore_errors=True)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _draft(path: Path) -> Path:
    # A file of the tempfile module would be private, and its directory would drop an inherited group.
    return path.absolute().with_name(f".{path.name}.{secrets.token_hex(8)}")
