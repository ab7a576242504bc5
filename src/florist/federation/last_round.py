"""``state/current.json``: the last whole round of a run, and the SHA-256 of every file that the run is read from.

The file is replaced once a round, and is the only word on what the run is. It carries a hash of itself, of the tensors
of every round that are kept, of what says what the run is, of what was written at its end, and of every line of
``rounds.jsonl``. Whatever else is found in the directory is therefore what florist wrote, or is known not to be.

Nothing here imports torch: a run can be followed without it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from florist.files import strict_json
from florist.files.outputs import replace_file
from florist.files.reading import read_bytes

CURRENT = Path("state", "current.json")
"""Where the file is, in the directory of a run."""
MOST_BYTES = 1 << 28
"""Of current.json: a thousand rounds that are kept, or ten thousand clients that hold something back, take a few MB."""
NO_LINES = hashlib.sha256(b"").hexdigest()
"""What stands for no lines at all."""


def chained(before: str, line: bytes) -> str:
    """What stands for lines and one more: the SHA-256 of what stands for the lines before, and the line.

    A round is added at the cost of its own line.
    """
    return hashlib.sha256(before.encode() + line).hexdigest()


@dataclass(frozen=True, slots=True)
class LastRound:
    """What ``current.json`` says.

    Attributes:
        round: the number of the last whole round; 0 before the first.
        own_files: the SHA-256 of what says what the run is, by its name in the directory of the run (`own_files`).
        files: the SHA-256 of every tensor file that is kept, by its name in the folder ``state``.
        holds: the round whose global adapter a client has, by client id.
        broadcasts: the rounds whose broadcasts clients may still lack.
        forgotten: the last round whose broadcast was let go; 0 where none was.
        owed: whether the server holds something back.
        client_residuals: the round whose folder has what a client holds back, by client id.
        best: the best round so far, whose state is kept as well; None where no round is.
        line_begins: how many bytes of ``rounds.jsonl`` come before the line of the round.
        lines_before: what stands for these (`chained`).
        record: that line, as a document; None before the first round.
        replaced_line: the SHA-256 of the line that this one replaced when the round was amended, which may still be in
            ``rounds.jsonl`` in its place; None where the round was not amended.
        result: the SHA-256 of what was written at the end of the run, by its name in the directory of the run.
        being_replaced: the SHA-256 that a file of `own_files` had before, by its name, while it is replaced.
    """

    round: int
    own_files: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    holds: Mapping[str, int] = field(default_factory=dict[str, int])
    broadcasts: tuple[int, ...] = ()
    forgotten: int = 0
    owed: bool = False
    client_residuals: Mapping[str, int] = field(default_factory=dict[str, int])
    best: int | None = None
    line_begins: int = 0
    lines_before: str = NO_LINES
    record: dict[str, Any] | None = None
    replaced_line: str | None = None
    result: Mapping[str, str] = field(default_factory=dict[str, str])
    being_replaced: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def line(self) -> bytes:
        """The line of the round; empty before the first."""
        return (strict_json.encode(self.record) + "\n").encode() if self.record is not None else b""

    @property
    def line_ends(self) -> int:
        """How many bytes ``rounds.jsonl`` has with the line of the round."""
        return self.line_begins + len(self.line)

    @property
    def lines(self) -> str:
        """What stands for all lines, that of the round included."""
        return chained(self.lines_before, self.line) if self.record is not None else self.lines_before


_LAST_ROUND = TypeAdapter(LastRound)


def write_last_round(file: Path, last: LastRound) -> None:
    """Replace ``current.json``."""
    replace_file(file, document(last))


def document(last: LastRound) -> str:
    """The content of ``current.json``."""
    content = asdict(last)
    return strict_json.encode({"sha256": _seal(content), "last": content}, indent=1) + "\n"


def read_last_round(file: Path) -> LastRound:
    """What ``current.json`` says.

    Raises:
        OSError, ValueError: it is missing, cannot be read, or is not as it was written; the message names the file.

    Cost: it is decoded, encoded and hashed, 0.1 s for 5 MB.
    """
    content = read_bytes(file, MOST_BYTES)  # whose errors name the file
    try:
        found = strict_json.decode(content)
        if isinstance(found, dict) and found.keys() == {"sha256", "last"} and found["sha256"] == _seal(found["last"]):
            return _LAST_ROUND.validate_python(found["last"])
    except ValidationError as error:
        raise ValueError(f"{CURRENT} is not as florist wrote it") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{CURRENT} is not JSON: {error}") from error
    raise ValueError(f"{CURRENT} is not as florist wrote it")


def _seal(content: Any) -> str:
    return hashlib.sha256(strict_json.encode(content).encode()).hexdigest()
