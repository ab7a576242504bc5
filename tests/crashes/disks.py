"""Disks that fill up, and places where nothing may be written."""

import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("needs limits of POSIX", allow_module_level=True)

import resource

MOUNT, UMOUNT = (shutil.which(name) or name for name in ("mount", "umount"))


@contextmanager
def files_at_most(nbytes: int) -> Generator[None, None, None]:
    """No file of this process may grow beyond this: what is written past it fails, as on a full disk.

    Python would cut the compiled file of a module that is imported meanwhile, and fail whenever it is imported again.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    compiles, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = compiles


@contextmanager
def mounted(folder: Path, nbytes: int) -> Generator[Path, None, None]:
    """A disk of its own, in memory; the test is skipped where this process may mount none."""
    folder.mkdir()
    if not sys.platform.startswith("linux"):
        pytest.skip("mounts a disk as Linux does")
    done = subprocess.run(
        [MOUNT, "-t", "tmpfs", "-o", f"size={nbytes}", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"this process may mount no disk: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run([UMOUNT, "--lazy", folder], check=True)


def remount(folder: Path, options: str) -> None:
    """Change the size of a mounted disk (``size=NBYTES``), or whether it may be written to (``ro``, ``rw``)."""
    subprocess.run([MOUNT, "-o", f"remount,{options}", folder], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Fill a disk but for some bytes; return the file that does, to be removed."""
    file = folder / "ballast"
    free = os.statvfs(folder)
    with file.open("wb") as stream:
        stream.write(b"\0" * max(0, free.f_bavail * free.f_frsize - leave))
    return file


def drafts(folder: Path) -> list[Path]:
    """What was left half written anywhere in a folder."""
    return [
        entry
        for entry in folder.rglob(".*")
        if entry.name not in {".lock", ".lock-holder"} and "/adapter/" not in str(entry)
    ]
