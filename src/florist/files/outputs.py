"""Files and directories that appear whole or not at all."""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from florist.errors import OutputExistsError, UnwritableOutputError
from florist.files.holding import abandoned, hold, hold_directory, release
from florist.files.reading import sha256 as sha256  # noqa: PLC0414  # what is written is hashed
from florist.files.unwritable import unwritable_told

_DRAFT = re.compile(r"\..+\.[0-9a-f]{16}")
_NAME = 50
"""Characters of a name that its draft has, which leaves room for more within the 255 bytes of most file systems."""


def require_absent(path: Path) -> None:
    """Refuse to overwrite; a command calls this before it spends time.

    Folders on the way to `path` that do not exist are no obstacle, as long as they could be made; they are not left.

    Raises:
        OutputExistsError: something is at `path` already.
        UnwritableOutputError: a folder on the way is a file, or may not be written to, or the name cannot be.
    """
    with _folders_for(path, keep=False):
        _refuse_existing(path)
        remove_stale(path)
        with _new_draft(path) as draft:
            draft.rmdir()


@contextmanager
def new_directory(path: Path) -> Generator[Path, None, None]:
    """A directory to fill; it becomes `path` when the block ends well and vanishes when it does not.

    The files are written beside `path` and flushed to disk before one rename makes them visible. Folders on the way to
    `path` are made where they do not exist, and vanish with it. What a process that was killed left of an earlier
    attempt is removed (`remove_stale`).

    Raises:
        OutputExistsError, UnwritableOutputError: as `require_absent`; or the disk is full.
    """
    with unwritable_told(path), _folders_for(path, keep=True):
        _refuse_existing(path)
        remove_stale(path)
        with _new_draft(path) as draft:
            yield draft
            _finish(draft)
            _refuse_existing(path)
            draft.rename(path)
            _flush(path.absolute().parent)


@contextmanager
def replaced_directory(path: Path) -> Generator[Path, None, None]:
    """A directory to fill, which takes the place of the one at `path` when the block ends well.

    Until the new files are on disk, the old directory stays as it is, and it stays for good where the block fails: on
    a full disk for instance. Two renames then change one for the other. A crash between them leaves the old directory
    beside `path`, from where `restore_replaced` brings it back.

    Raises:
        OutputExistsError: a file is at `path`.
        UnwritableOutputError: as `require_absent`.
    """
    restore_replaced(path)
    if not path.is_dir():
        with new_directory(path) as draft:
            yield draft
        return
    remove_stale(path)
    aside = _aside(path)
    try:
        with unwritable_told(path), _new_draft(path) as draft:
            yield draft
            _finish(draft)
            path.rename(aside)
            draft.rename(path)
            _flush(path.absolute().parent)
    except BaseException:
        restore_replaced(path)
        raise
    remove(aside)


def restore_replaced(path: Path) -> None:
    """Heal what a crash in `replaced_directory` left: the old directory comes back unless the new one is in place."""
    aside = _aside(path)
    if not aside.is_dir():
        return
    if path.exists():
        remove(aside)
    else:
        aside.rename(path)


def replace_file(path: Path, content: str) -> None:
    """Write a text file so that a reader, or a crash, sees the old content or the new one.

    What a process that was killed left of an earlier attempt is removed (`remove_stale`).

    Raises:
        UnwritableOutputError: there is no room, or nothing may be written; the old content stays.
    """
    remove_stale(path)
    with unwritable_told(path):
        while not _replaced(path, content):
            pass  # another process took the draft for abandoned before it was held


def _replaced(path: Path, content: str) -> bool:
    draft = _draft(path)
    try:
        with draft.open("x", encoding="utf-8") as stream:
            if not hold(draft, stream.fileno()):
                return False
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
            draft.replace(path)
        _flush(path.parent)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return True


def write_file(path: Path, content: str) -> None:
    """Write a text file as `replace_file` does, and make the folders on the way.

    Raises:
        UnwritableOutputError: a folder cannot be made.
    """
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableOutputError(f"cannot write {path}: {error.strerror}; choose another place") from error
    replace_file(path, content)


def remove_drafts(folder: Path) -> None:
    """Remove what processes left half written in a folder because they were killed.

    What a living process is writing stays, where the file system has locks that tell.
    """
    for entry in folder.iterdir():
        if _DRAFT.fullmatch(entry.name):
            with abandoned(entry) as nobody_has_it:
                if nobody_has_it is not False:
                    remove(entry)


def remove_stale(path: Path) -> None:
    """Remove what processes that were killed left of `path` beside it, where locks tell that no living one has it.

    Cost: the names in the folder are read.
    """
    before = f".{path.name[:_NAME]}."
    with suppress(OSError):  # there may be no folder, or one that may not be listed
        for entry in path.absolute().parent.iterdir():
            if entry.name.startswith(before) and _DRAFT.fullmatch(entry.name):
                with abandoned(entry) as nobody_has_it:
                    if nobody_has_it:
                        remove(entry)


def remove(path: Path) -> None:
    """Remove a file, a link or a directory with all that is in it, as far as possible. No link is followed."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


@contextmanager
def _folders_for(path: Path, *, keep: bool) -> Generator[None, None, None]:
    """Make the folders on the way to `path`, for the block, and for good if that ends well and they are to be kept.

    A folder that somebody else has put something into meanwhile stays in any case.
    """
    _refuse_existing(path)
    made: list[Path] = []
    kept = False
    try:
        for folder in reversed(path.absolute().parents):
            if _make_folder(folder, path):
                made.append(folder)  # noqa: PERF401  # what was made before an error has to be known
        yield
        kept = keep
        for folder in made if kept else ():
            _flush(folder.parent)
    finally:
        if not kept:
            with suppress(OSError):
                for folder in reversed(made):
                    folder.rmdir()


def _make_folder(folder: Path, path: Path) -> bool:
    """Make a folder on the way to `path`; return whether it was not there."""
    try:
        folder.mkdir()
    except OSError as error:
        if os.path.isdir(folder):  # noqa: PTH112  # that of pathlib raises where a name is too long
            return False  # also where nothing may be made, as in the root of a read-only file system
        if isinstance(error, FileExistsError):
            raise UnwritableOutputError(
                f"cannot write {path}: {folder} is no directory; choose another place"
            ) from None
        raise UnwritableOutputError(_not_writable(path, folder.parent, error)) from error
    return True


@contextmanager
def _new_draft(path: Path) -> Generator[Path, None, None]:
    """An empty directory beside `path`, which this process holds for the block; it vanishes where the block fails."""
    while True:
        draft, held = _draft(path), None
        try:
            _make(draft, path)  # in here: a signal may come as soon as it is made
            try:
                held = hold_directory(draft)
            except FileNotFoundError:
                continue  # another process has found it before it was held, and removed it
            yield draft
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        finally:
            release(held)
        return


def _make(draft: Path, path: Path) -> None:
    try:
        draft.mkdir()
    except OSError as error:
        raise UnwritableOutputError(_not_writable(path, draft.parent, error)) from error


def _not_writable(path: Path, folder: Path, error: OSError) -> str:
    if error.errno == errno.ENAMETOOLONG:
        return f"cannot write {path}: {error.strerror}; choose another name or place"
    return f"cannot write {path}: {folder} is not writable ({error.strerror}); choose another place"


def _finish(draft: Path) -> None:
    """Put a draft on disk, readable for everybody who may read its directory."""
    readable = draft.stat().st_mode & 0o666
    for entry in (draft, *draft.rglob("*")):
        if entry.is_symlink():
            continue
        if entry.is_file():
            # safetensors makes files for the owner alone.
            entry.chmod(entry.stat().st_mode | readable)
        _flush(entry)


def _refuse_existing(path: Path) -> None:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise UnwritableOutputError(f"cannot write {path}: {error.strerror}; choose another name or place") from error
    else:
        raise OutputExistsError(
            f"{path} already exists and florist does not overwrite: choose another name or remove it"
        )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _draft(path: Path) -> Path:
    # A file of the tempfile module would be private, and its directory would drop an inherited group.
    return path.absolute().with_name(f".{path.name[:_NAME]}.{secrets.token_hex(8)}")


def _aside(path: Path) -> Path:
    # No draft: those of a killed process are removed, and this is the only copy while it is there.
    return path.absolute().with_name(f".{path.name[:_NAME]}.replaced")
