"""Reading a run while another process plays it: ``run.json``, ``config.toml``, ``rounds.jsonl`` and ``current.json``.

Nothing here imports torch, or writes: a run may be followed by whoever may read it.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from florist.errors import DamagedRunError, MissingInputError, printable
from florist.federation.damage import DamagedFileError, checked_file, damaged_run, said_by
from florist.federation.last_round import CURRENT, LastRound, read_last_round
from florist.federation.own_files import ALWAYS_READ, OwnFiles
from florist.federation.records import FinalTest, RoundRecord
from florist.federation.round_lines import FILE, RoundLines
from florist.federation.run_format import FACTS, facts_content, require_format
from florist.files import strict_json
from florist.files.locking import is_held
from florist.files.reading import read_bytes, require_regular
from florist.files.strict_json import Number

_RECORD, _TEST = TypeAdapter(RoundRecord), TypeAdapter(FinalTest)
_MOST_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How far a run is, beside its rounds.

    Attributes:
        method: the name of its aggregation method.
        initial: the metrics before the first round.
        rounds: how many rounds it is to have; None where no configuration says so.
        has_adapter: whether the final adapter is there, its weights not emptied and the rest as it was written. The
            weights are not hashed, since a run is looked at again and again: `result_damage` does, once at its end.
        at_work: whether a process plays the run (`locking.is_held`).
        test: the metrics of the final adapter, once they are there.
        record: the record of the last whole round as ``current.json`` has it, as a document; None before the first.
    """

    method: str
    initial: Mapping[str, Number]
    rounds: int | None
    has_adapter: bool
    at_work: bool
    test: FinalTest | None
    record: Mapping[str, Any] | None

    def is_over(self, played: int, *, ended: bool = False) -> bool:
        """Whether nothing more is to come.

        Args:
            played: how many rounds there are.
            ended: whether the record of the last of them says that the rounds end there, which `rounds` does not know.
        """
        every = ended or (self.rounds is not None and played >= self.rounds)
        # Between its last round and its adapter a run is tested, and over Flower the round is completed.
        return (every and not self.at_work) or (self.has_adapter and (every or self.rounds is None))


_FACTS = TypeAdapter(dict[str, Any])
_METRICS = TypeAdapter(dict[str, Number])


def read_status(run: Path) -> RunStatus | None:
    """How far a run is; None where there is none yet.

    Raises:
        MissingInputError: something else is at the path, which no run can then be written to.
        OtherVersionError: the run has a format that this version does not read.
        DamagedRunError: a file of the run cannot be read or is not as it was written.
    """
    if not (run / FACTS).is_file():
        if run.exists():
            several = (
                "; it is a comparison: follow one of its runs, in cells/" if (run / "comparison.json").exists() else ""
            )
            raise MissingInputError(f"expected the directory of a run at {run}, found no run.json in it{several}")
        return None
    require_format(run)
    try:
        last = read_last_round(run / CURRENT)
        own = OwnFiles(run)
        for name in ALWAYS_READ:
            own.whole(name, last)
        facts = _FACTS.validate_python(facts_content(run))
        config = tomllib.loads(read_bytes(own.played_config(last), _MOST_BYTES).decode())
        test = run / "test.json"
        return RunStatus(
            method=str(facts["method"]),
            initial=_METRICS.validate_python(facts["initial"]),
            rounds=config["federation"]["rounds"] if config else None,  # a strategy of one's own may have none
            has_adapter=_has_adapter(run, last.result),
            at_work=is_held(run),
            test=_TEST.validate_python(_decoded(test)) if _is_whole(run, test.name, last.result) else None,
            record=last.record,
        )
    except DamagedRunError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(run, error) from error


def _has_adapter(run: Path, result: Mapping[str, str]) -> bool:
    names = [name for name in result if name.startswith("adapter/")]
    if not names:  # a server over Flower writes down no hashes of its adapter, which it writes again at each end
        return (run / "adapter").exists()
    weights = [name for name in names if name.endswith(".safetensors")]
    there = all((run / name).is_file() and (run / name).stat().st_size > 0 for name in weights)
    return there and all(_is_whole(run, name, result) for name in names if name not in weights)


def _is_whole(run: Path, name: str, result: Mapping[str, str]) -> bool:
    try:
        checked_file(run, name, result)
    except DamagedFileError:
        return False
    return True


def result_damage(run: Path) -> str | None:
    """What was written at the end of a run and is missing or not as it was written; None where there is nothing.

    Raises:
        DamagedRunError: current.json cannot be read.

    Cost: the final adapter is read once.
    """
    before: LastRound | None = None
    while True:
        try:
            last = read_last_round(run / CURRENT)
        except (OSError, ValueError) as error:
            raise _damaged(run, error) from error
        try:
            for name in last.result:
                checked_file(run, name, last.result)
        except DamagedFileError as damage:
            if last == before:
                return str(damage)
            before = last  # a process that goes on with the run may just have set it aside
        else:
            return None


def require_records(run: Path) -> None:
    """Check that the records of a run are those that were written, also while another process plays it.

    Raises:
        DamagedRunError: a record is missing or is not as it was written, or there is one too many.

    Cost: all of them are read and hashed once.
    """
    RoundLines(run).with_last_round()


@dataclass(slots=True)
class Records:
    """The round records of a run as they are written, the last of them as ``current.json`` has it.

    The line of the last round may be missing, or be that of before it was amended, where a process was killed.

    Attributes:
        run: the directory of the run.
    """

    run: Path
    _tail: "RecordTail" = field(init=False)
    _round: int = 0
    _sealed: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        self._tail = RecordTail(self.run)

    def new(self, sealed: Mapping[str, Any] | None) -> Iterator[RoundRecord]:
        """The records that were written since the last call, in order, as `RecordTail.new` gives them.

        Args:
            sealed: the record of the last round in ``current.json``, as `RunStatus` has it.

        Raises:
            DamagedRunError: a whole line is no record, or current.json cannot be read.
        """
        newest: RoundRecord | None = None
        for record in self._tail.new():
            if newest is not None:
                yield newest
            newest = record
        if newest is None and sealed == self._sealed:
            return
        self._round = newest.round if newest is not None else self._round
        try:
            # Read after the lines, it is not older than they are.
            sealed = read_last_round(self.run / CURRENT).record
            last = _RECORD.validate_python(sealed) if sealed is not None else None
        except (OSError, ValueError) as error:
            raise _damaged(self.run, error) from error
        if last is not None and last.round in {self._round, self._round + 1}:
            if newest is not None and newest.round < last.round:
                yield newest
            newest, self._round, self._sealed = last, last.round, sealed
        if newest is not None:
            yield newest


@dataclass(slots=True)
class RecordTail:
    """The round records of a run, read as they are written.

    Only what is new is read. The last line may be rewritten, as a round is over Flower once its clients have measured
    it; a line without its end is left for the next time; and a file that is another one is read from its start.

    Attributes:
        run: the directory of the run.
    """

    run: Path
    _begins: int = 0
    _last: bytes = b""
    _round: int = 0
    _seen: tuple[int, int, int] = field(default=(0, 0, 0))

    def new(self) -> Iterator[RoundRecord]:
        """The records that were written since the last call, in order.

        A record with the number of an earlier one takes its place and that of all after it.

        Raises:
            DamagedRunError: a whole line is no record.
        """
        file = self.run / FILE
        try:
            found = file.stat()
        except FileNotFoundError:
            return
        seen = (found.st_ino, found.st_size, found.st_mtime_ns)
        if seen == self._seen:
            return
        another = self._seen[0] not in {0, found.st_ino} or found.st_size < self._begins
        self._seen = seen
        try:
            require_regular(file)
        except (OSError, ValueError) as error:
            raise _damaged(self.run, error) from error
        if another:
            self._begins, self._last, self._round = 0, b"", 0
        with file.open("rb") as lines:
            lines.seek(self._begins)
            first = True
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                # The last line of before comes first, as it was or rewritten.
                if not (first and line == self._last):
                    record = self._record(line)
                    if first and self._last and record.round != self._round:
                        self._begins, self._last, self._round, self._seen = 0, b"", 0, (0, 0, 0)
                        yield from self.new()
                        return
                    self._begins += 0 if first else len(self._last)
                    self._last, self._round = line, record.round
                    yield record
                first = False

    def _record(self, line: bytes) -> RoundRecord:
        try:
            return _RECORD.validate_json(line)
        except ValidationError as error:
            raise damaged_run(
                self.run, f"a line of {FILE} is no record of a round: {printable(said_by(error), 300)}"
            ) from error


def _decoded(file: Path) -> Any:
    return strict_json.decode(read_bytes(file, _MOST_BYTES))


def _damaged(run: Path, error: Exception) -> DamagedRunError:
    return damaged_run(run, printable(said_by(error), 300))
