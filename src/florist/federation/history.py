"""The directory of a run: its configuration, the server's state after every round, and the record of each.

    RUN/config.toml          the whole configuration, defaults included
    RUN/run.json             version, method, threads, metrics before the first round
    RUN/rounds.jsonl         one record a round
    RUN/state/current        the name of the folder to resume from
    RUN/state/round-0003/    after round 3: broadcast.safetensors, cumulative.safetensors (all that was added),
                             continued.safetensors, saved_parameters.safetensors, round.json (its record)
    RUN/.lock                held by the process that plays the rounds
    RUN/test.json            metrics of the final adapter that are no rounds'
    RUN/adapter/             the final adapter, as PEFT writes it; none where no round had enough usable updates

A round becomes visible by one replacement of ``state/current``, after its files are on disk: a run that is killed at
any point resumes from the last whole round. ``rounds.jsonl`` is written from the saved records, never the other way. A
number that is not finite is null in these files (`strict_json`).
"""

import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from florist.errors import DamagedRunError, MissingInputError
from florist.factors import AdapterState, LoraFactor
from florist.federation.records import RoundRecord
from florist.federation.state import ServerState
from florist.files import strict_json
from florist.files.outputs import new_directory, remove_drafts, replace_file
from florist.rounds import SavedParameters

_RECORD = TypeAdapter(RoundRecord)


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a run needs to know of itself beside its configuration.

    Attributes:
        florist: version that started it.
        method: name of the aggregation method.
        threads: torch threads, kept on resuming because sums in another order round differently.
        initial: metrics before the first round.
    """

    florist: str
    method: str
    threads: int
    initial: Mapping[str, float]


_FACTS = TypeAdapter(RunFacts)
_METRICS = TypeAdapter(Mapping[str, float])


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """A run on disk; `create` or `open` it."""

    path: Path

    @classmethod
    def create(cls, path: Path, config_toml: str, facts: RunFacts) -> "RunDirectory":
        """Start a run directory, whole or not at all.

        Raises:
            OutputExistsError, MissingInputError: as `outputs.require_absent`.
        """
        with new_directory(path) as draft:
            (draft / "config.toml").write_text(config_toml, encoding="utf-8")
            (draft / "run.json").write_text(strict_json.encode(asdict(facts), indent=2) + "\n", encoding="utf-8")
            (draft / "rounds.jsonl").touch()
            (draft / "state").mkdir()
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """An existing run directory.

        Raises:
            MissingInputError: it is none.
        """
        if not (path / "run.json").is_file():
            raise MissingInputError(f"expected the directory of a run at {path}, found no run.json in it")
        return cls(path)

    @property
    def config_file(self) -> Path:
        """The configuration that the run was started with."""
        return self.path / "config.toml"

    @property
    def adapter(self) -> Path:
        """Where the final adapter is, once a run has ended of which a round was aggregated."""
        return self.path / "adapter"

    @property
    def facts(self) -> RunFacts:
        """What `create` was given.

        Raises:
            DamagedRunError: run.json cannot be read.
        """
        with _damage(self.path):
            return _FACTS.validate_python(strict_json.decode((self.path / "run.json").read_bytes()))

    @property
    def tested(self) -> Mapping[str, float] | None:
        """Metrics of the final adapter that are no rounds'; None where there are none, or not yet.

        Raises:
            DamagedRunError: test.json cannot be read.
        """
        with _damage(self.path):
            file = self.path / "test.json"
            return _METRICS.validate_python(strict_json.decode(file.read_bytes())) if file.exists() else None

    def save_tested(self, metrics: Mapping[str, float]) -> None:
        """Make the metrics of the final adapter permanent."""
        replace_file(self.path / "test.json", strict_json.encode(dict(metrics), indent=2) + "\n")

    def save(self, state: ServerState, record: RoundRecord) -> None:
        """Make a closed round permanent."""
        folder = self._folder(state.round_number)
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed before it said so in `current`
        with new_directory(folder) as draft:
            _save(state.cumulative, draft / "cumulative.safetensors")
            _save(state.continued, draft / "continued.safetensors")
            if state.round_number in state.broadcasts:
                _save(state.broadcasts[state.round_number], draft / "broadcast.safetensors")
            _save_tensors(state.saved_parameters, draft / "saved_parameters.safetensors")
            summary = {"holds": dict(state.holds), "record": asdict(record)}
            (draft / "round.json").write_text(strict_json.encode(summary, indent=1), encoding="utf-8")
        replace_file(self.path / "state" / "current", folder.name + "\n")
        # Only the newest are read again; a round's broadcast stays, for clients that missed it.
        for name in ("cumulative", "continued", "saved_parameters"):
            (self._folder(state.round_number - 1) / f"{name}.safetensors").unlink(missing_ok=True)
        self._write_records(self.records())

    def amend(self, state: ServerState, record: RoundRecord) -> None:
        """Replace the record of the last saved round, and who holds what: what became known after it was saved."""
        summary = {"holds": dict(state.holds), "record": asdict(record)}
        replace_file(self._folder(state.round_number) / "round.json", strict_json.encode(summary, indent=1))
        self._write_records(self.records())

    def records(self) -> list[RoundRecord]:
        """The records of all whole rounds.

        Raises:
            DamagedRunError: a file is missing or cannot be read.
        """
        with _damage(self.path):
            return [
                _RECORD.validate_python(self._summary(number)["record"]) for number in range(1, self._current() + 1)
            ]

    def load(self, initial: ServerState) -> tuple[ServerState, list[RoundRecord]]:
        """The state after the last whole round, or `initial` where there is none, and the records so far.

        Raises:
            DamagedRunError: a file is missing or cannot be read.
        """
        with _damage(self.path):
            for folder in (self.path, self.path / "state"):
                remove_drafts(folder)
        records = self.records()
        self._write_records(records)
        if not records:
            return initial, records
        with _damage(self.path):
            return self._state(len(records)), records

    def _state(self, round_number: int) -> ServerState:
        folder = self._folder(round_number)
        broadcasts = {
            number: _load(file)
            for number in range(1, round_number + 1)
            if (file := self._folder(number) / "broadcast.safetensors").is_file()
        }
        return ServerState(
            round_number=round_number,
            cumulative=_load(folder / "cumulative.safetensors"),
            continued=_load(folder / "continued.safetensors"),
            saved_parameters=load_file(folder / "saved_parameters.safetensors"),
            broadcasts=broadcasts,
            holds=self._summary(round_number)["holds"],
        )

    def _write_records(self, records: Sequence[RoundRecord]) -> None:
        replace_file(
            self.path / "rounds.jsonl", "".join(strict_json.encode(asdict(record)) + "\n" for record in records)
        )

    def _current(self) -> int:
        pointer = self.path / "state" / "current"
        return int(pointer.read_text(encoding="utf-8").strip().removeprefix("round-")) if pointer.exists() else 0

    def _folder(self, round_number: int) -> Path:
        return self.path / "state" / f"round-{round_number:04d}"

    def _summary(self, round_number: int) -> dict[str, Any]:
        return strict_json.decode((self._folder(round_number) / "round.json").read_bytes())


@contextmanager
def _damage(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise DamagedRunError(
            f"expected a whole run in {path}, and reading it failed ({reason}); restore the directory from a copy, or "
            "start the run anew"
        ) from error


def _save(adapter: AdapterState, file: Path) -> None:
    _save_tensors(
        {f"{name}.{half}": getattr(factor, half) for name, factor in adapter.items() for half in ("B", "A")}, file
    )


def _save_tensors(tensors: SavedParameters, file: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def _load(file: Path) -> AdapterState:
    halves: SavedParameters = load_file(file)
    names = sorted({name.rpartition(".")[0] for name in halves})
    return AdapterState.of({name: LoraFactor(halves[f"{name}.B"], halves[f"{name}.A"]) for name in names})
