"""``RUN/tracking.json``: which trackers were told of which rounds, and where each keeps the run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from florist.files import strict_json
from florist.files.outputs import replace_file
from florist.files.reading import read_bytes
from florist.files.strict_json import Number

FILE = "tracking.json"
_MOST_BYTES = 1 << 24  # each tracker takes some hundred bytes


@dataclass(frozen=True, slots=True)
class Bookmark:
    """How far a tracker is.

    Attributes:
        place: where it keeps the run; empty before it has one.
        step: the last round that it was told of; 0 stands for the base model, -1 for nothing.
        summary: what it was told of the final adapter.
    """

    place: Mapping[str, str] = field(default_factory=dict[str, str])
    step: int = -1
    summary: Mapping[str, Number] = field(default_factory=dict[str, float])


_BOOKMARKS = TypeAdapter(dict[str, Bookmark])


def read_bookmarks(run: Path) -> dict[str, Bookmark]:
    """The bookmarks of a run, by tracker.

    Raises:
        ValueError: the file is there and cannot be read.
    """
    file = run / FILE
    if not file.exists():
        return {}
    try:
        return _BOOKMARKS.validate_python(strict_json.decode(read_bytes(file, _MOST_BYTES)))
    except ValueError as error:
        raise ValueError(
            f"{file} is not what florist writes; remove it to track the run anew ({' '.join(str(error).split())})"
        ) from error


def write_bookmarks(run: Path, bookmarks: Mapping[str, Bookmark]) -> None:
    """Replace the file."""
    document = {name: asdict(bookmark) for name, bookmark in bookmarks.items()}
    replace_file(run / FILE, strict_json.encode(document, indent=1) + "\n")
