"""Find the directory on this machine that a user means by a path or a hub id."""

import os
import re
from pathlib import Path

from florist.errors import MissingInputError, UnreadableFileError
from florist.files.reading import read_bytes

_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")

_LONGEST_REFERENCE = 1_000
"""The bytes of a file that names a commit by its 40 digits."""


def locate(reference: str) -> Path:
    """Find an adapter: a directory, a file, or a hub id that the local Hugging Face cache holds.

    The network is never asked. A hub id may name a revision, as in ``organisation/name@main``.

    Raises:
        MissingInputError: there is no such path, and the cache does not hold it.
    """
    path = Path(reference)
    if os.path.exists(path):  # noqa: PTH110  # that of pathlib raises where a name is too long
        return path
    match = _HUB_ID.fullmatch(reference)
    if match is None:
        raise MissingInputError(
            f"expected an adapter directory, a weights file or a hub id, found nothing at {path}; check the path, or "
            "name an adapter of the local Hugging Face cache as organisation/name"
        )
    snapshot = _snapshot(_cache(), match["id"], match["revision"] or "main")
    if snapshot is None:
        raise MissingInputError(
            f"found no file or directory {reference}, and no such adapter in the Hugging Face cache {_cache()}; "
            f"florist does not download: run `hf download {match['id']}` first"
        )
    return snapshot


def _cache() -> Path:
    # The order in which huggingface_hub looks.
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(home).expanduser() / "hub"


def _snapshot(cache: Path, hub_id: str, revision: str) -> Path | None:
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    reference = repository / "refs" / revision
    try:
        commit = read_bytes(reference, most=_LONGEST_REFERENCE).decode().strip()
    except (OSError, UnreadableFileError, UnicodeDecodeError):
        commit = revision
    snapshot = repository / "snapshots" / commit
    return snapshot if os.path.isdir(snapshot) else None  # noqa: PTH112  # that of pathlib raises where it is too long
