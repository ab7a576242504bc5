"""The folder ``state`` of a run directory: the tensors of the server's state, and what the last whole round was."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from florist.factors import AdapterState, LoraFactor
from florist.federation.broadcasts import Broadcasts
from florist.federation.records import RoundRecord
from florist.federation.state import ServerState
from florist.files import strict_json
from florist.files.outputs import new_directory, replace_file
from florist.rounds import SavedParameters


@dataclass(frozen=True, slots=True)
class LastRound:
    """What ``current.json`` says of the last whole round.

    Attributes:
        round: the number of the round.
        holds: the round whose global adapter a client has, by client id.
        broadcasts: the rounds whose broadcasts are kept.
        forgotten: the last round whose broadcast was let go; 0 where none was.
        line_begins: how many bytes of ``rounds.jsonl`` come before the line of the round.
        record: that line, as a document.
    """

    round: int
    holds: Mapping[str, int]
    broadcasts: tuple[int, ...]
    forgotten: int
    line_begins: int
    record: dict[str, Any]

    @property
    def line(self) -> bytes:
        """The line of the round."""
        return (strict_json.encode(self.record) + "\n").encode()

    @property
    def line_ends(self) -> int:
        """How many bytes ``rounds.jsonl`` has with the line of the round."""
        return self.line_begins + len(self.line)


_LAST_ROUND = TypeAdapter(LastRound)


@dataclass(frozen=True, slots=True)
class StateFolder:
    """The folder; `history` describes its files.

    Attributes:
        path: where it is.
    """

    path: Path

    def last_round(self) -> LastRound | None:
        """The last whole round; None before the first.

        Raises:
            OSError, ValueError: current.json cannot be read.
        """
        if not self._current.exists():
            return None
        return _LAST_ROUND.validate_python(strict_json.decode(self._current.read_bytes()))

    def save(self, state: ServerState, record: RoundRecord, line_begins: int) -> LastRound:
        """Write the tensors of a round and make it the last."""
        folder = self._folder(state.round_number)
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed before it said so in current.json
        with new_directory(folder) as draft:
            _save_adapter(state.cumulative, draft / "cumulative.safetensors")
            _save_adapter(state.continued, draft / "continued.safetensors")
            if state.round_number in state.broadcasts:
                _save_adapter(state.broadcasts[state.round_number], draft / "broadcast.safetensors")
            _save_tensors(state.saved_parameters, draft / "saved_parameters.safetensors")
        return self.make_current(state, record, line_begins)

    def make_current(self, state: ServerState, record: RoundRecord, line_begins: int) -> LastRound:
        """Make a round whose tensors are written the last one, or change what is said of it."""
        last = LastRound(
            round=state.round_number,
            holds=dict(state.holds),
            broadcasts=tuple(state.broadcasts),
            forgotten=state.broadcasts.forgotten,
            line_begins=line_begins,
            record=asdict(record),
        )
        replace_file(self._current, strict_json.encode(asdict(last), indent=1) + "\n")
        return last

    def load(self, last: LastRound) -> ServerState:
        """The state after the last round.

        Raises:
            OSError, KeyError, SafetensorError: a file of it cannot be read.
        """
        folder = self._folder(last.round)
        broadcasts = {
            number: _load_adapter(self._folder(number) / "broadcast.safetensors") for number in last.broadcasts
        }
        return ServerState(
            round_number=last.round,
            cumulative=_load_adapter(folder / "cumulative.safetensors"),
            continued=_load_adapter(folder / "continued.safetensors"),
            saved_parameters=load_file(folder / "saved_parameters.safetensors"),
            broadcasts=Broadcasts(broadcasts, last.forgotten),
            holds=last.holds,
        )

    def remove_all_but(self, last: LastRound | None) -> None:
        """Remove what neither a later round nor a resumption needs."""
        kept = {self._folder(number) for number in last.broadcasts} if last is not None else set[Path]()
        current = self._folder(last.round) if last is not None else None
        for folder in self.path.glob("round-*"):
            if folder == current:
                continue
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            for name in ("cumulative", "continued", "saved_parameters"):
                (folder / f"{name}.safetensors").unlink(missing_ok=True)

    @property
    def _current(self) -> Path:
        return self.path / "current.json"

    def _folder(self, round_number: int) -> Path:
        return self.path / f"round-{round_number:04d}"


def _save_adapter(adapter: AdapterState, file: Path) -> None:
    _save_tensors(
        {f"{name}.{half}": getattr(factor, half) for name, factor in adapter.items() for half in ("B", "A")}, file
    )


def _save_tensors(tensors: SavedParameters, file: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def _load_adapter(file: Path) -> AdapterState:
    halves: SavedParameters = load_file(file)
    names = sorted({name.rpartition(".")[0] for name in halves})
    return AdapterState.of({name: LoraFactor(halves[f"{name}.B"], halves[f"{name}.A"]) for name in names})
