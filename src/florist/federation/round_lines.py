"""``rounds.jsonl``: the record of every whole round, a line each, that can be told from what a killed process left."""

import hashlib
import os
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

from pydantic import TypeAdapter

from florist.errors import DamagedRunError
from florist.federation.damage import damaged_run, errors_as_damage
from florist.federation.last_round import CURRENT, NO_LINES, LastRound, chained, read_last_round
from florist.federation.records import RoundRecord
from florist.files import strict_json
from florist.files.reading import read_bytes, require_regular
from florist.files.unwritable import unwritable_told

FILE = "rounds.jsonl"
MOST_BYTES = 1 << 31
"""Of the file: ten thousand rounds of a hundred clients take 400 MB."""
_RECORD = TypeAdapter(RoundRecord)


@dataclass(frozen=True, slots=True)
class RoundLines:
    """The lines of a run. The last of them is in ``state/current.json`` as well, which says where it begins.

    Attributes:
        run: the directory of the run.
    """

    run: Path

    def with_last_round(self, last: LastRound | None = None) -> tuple[LastRound, list[RoundRecord]]:
        """What current.json says, and the records, which belong together also while another process plays the run.

        Args:
            last: what current.json said, where that was read already.

        Raises:
            DamagedRunError: current.json cannot be read, or as `records`.

        Cost: as `records`.
        """
        last = last if last is not None else self._last_round()
        while True:
            try:
                return last, self.records(last)
            except DamagedRunError:
                before, last = last, self._last_round()
                if last == before:
                    raise

    def records(self, last: LastRound) -> list[RoundRecord]:
        """The records of all whole rounds.

        Args:
            last: the last whole round.

        Raises:
            DamagedRunError: a line is missing, cannot be read or is not as it was written, or there is one too many.

        Cost: the file is read and hashed once.
        """
        with errors_as_damage(self.run):
            content = read_bytes(self.file, MOST_BYTES)
            earlier, tail = content[: last.line_begins], content[last.line_begins :]
            lines = earlier.splitlines(keepends=True)
            if len(earlier) < last.line_begins or len(lines) != max(0, last.round - 1):
                raise damaged_run(self.run, f"{FILE} does not have one line for every round")
            if reduce(chained, lines, NO_LINES) != last.lines_before:
                raise damaged_run(self.run, f"{FILE} is not as it was written")
            if not _may_be_left(tail, last):
                if last.record is not None and tail.find(b"\n") == len(tail) - 1:
                    raise _edited(self.run, last)
                raise damaged_run(self.run, f"{FILE} has more than the {last.round} rounds of {CURRENT}")
            documents = [strict_json.decode(line) for line in lines]
            documents += [last.record] if last.record is not None else []
            records = [_RECORD.validate_python(document) for document in documents]
            if [record.round for record in records] != list(range(1, len(records) + 1)) or len(records) != last.round:
                raise damaged_run(self.run, f"{FILE} does not have one line for every round")
        return records

    def write(self, last: LastRound) -> None:
        """Put the line of the last round where it belongs, and cut what comes after.

        Raises:
            DamagedRunError: earlier lines are missing.
            UnwritableOutputError: there is no room. A part of a line may be there, which the next call cuts.
        """
        with errors_as_damage(self.run):
            require_regular(self.file)
        with unwritable_told(self.file), self.file.open("r+b") as lines:
            if lines.seek(0, os.SEEK_END) < last.line_begins:
                raise damaged_run(self.run, f"{FILE} lacks earlier rounds")
            lines.seek(last.line_begins)
            if lines.read() == last.line:
                return
            lines.truncate(last.line_begins)
            lines.seek(last.line_begins)
            lines.write(last.line)
            lines.flush()
            os.fsync(lines.fileno())

    def _last_round(self) -> LastRound:
        with errors_as_damage(self.run):
            return read_last_round(self.run / CURRENT)

    @property
    def file(self) -> Path:
        """Where they are."""
        return self.run / FILE


def _may_be_left(tail: bytes, last: LastRound) -> bool:
    """Whether a process that was killed may have left this after the lines before the last.

    It may be the line of the last round or its beginning, or the one that was to be replaced by it.
    """
    return last.line.startswith(tail) or hashlib.sha256(tail).hexdigest() == last.replaced_line


def _edited(run: Path, last: LastRound) -> DamagedRunError:
    return damaged_run(
        run,
        f"the line of round {last.round} in {FILE} is not as it was written",
        f"{CURRENT} has it as it was: remove that line from {FILE}, and it is read from there and written again by "
        "whoever goes on",
    )
