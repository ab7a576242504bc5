"""Which processes live, read independently of the code under test."""

import contextlib
from collections.abc import Iterable
from pathlib import Path


def living(pids: Iterable[int]) -> list[int]:
    """Those that run; a zombie that waits for its parent does not."""
    return [pid for pid in pids if _state(pid) not in {"", "Z", "X"}]


def called_with_files_of(folder: Path) -> list[int]:
    """Running processes that have the folder in their arguments."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if str(folder) in path.read_text(errors="replace"):
                found.append(int(path.parent.name))
    return living(found)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
