"""``rounds.jsonl``: the record of every whole round, a line each, that can be told from what a killed process left."""

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from florist.federation.damage import damage_told, damaged
from florist.federation.records import RoundRecord
from florist.federation.state_folder import LastRound
from florist.files import strict_json
from florist.files.unwritable import unwritable_told

_RECORD = TypeAdapter(RoundRecord)


@dataclass(frozen=True, slots=True)
class RoundLines:
    """The lines of a run. The last of them is in ``state/current.json`` as well, which says where it begins.

    Attributes:
        run: the directory of the run.
    """

    run: Path

    def records(self, last: LastRound | None) -> list[RoundRecord]:
        """The records of all whole rounds.

        Args:
            last: the last whole round; None where there is none yet.

        Raises:
            DamagedRunError: a line is missing or cannot be read.
        """
        with damage_told(self.run):
            earlier = self._file.read_bytes()[: last.line_begins if last is not None else None]
            if last is None and earlier:
                raise damaged(self.run, "rounds.jsonl has rounds, and there is no state/current.json")
            documents = [strict_json.decode(line) for line in earlier.splitlines()]
            if last is not None:
                documents.append(last.record)
            records = [_RECORD.validate_python(document) for document in documents]
            played = last.round if last is not None else 0
            if [record.round for record in records] != list(range(1, played + 1)):
                raise damaged(self.run, "rounds.jsonl does not have one line for every round")
        return records

    def write(self, last: LastRound) -> None:
        """Put the line of the last round where it belongs, and cut what comes after.

        Raises:
            DamagedRunError: earlier lines are missing.
            UnwritableOutputError: there is no room. A part of a line may be there, which the next call cuts.
        """
        with unwritable_told(self._file), self._file.open("r+b") as lines:
            if lines.seek(0, os.SEEK_END) < last.line_begins:
                raise damaged(self.run, "rounds.jsonl lacks earlier rounds")
            lines.seek(last.line_begins)
            if lines.read() == last.line:
                return
            lines.truncate(last.line_begins)
            lines.seek(last.line_begins)
            lines.write(last.line)
            lines.flush()
            os.fsync(lines.fileno())

    @property
    def _file(self) -> Path:
        return self.run / "rounds.jsonl"
