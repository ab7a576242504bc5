"""The folder ``state`` of a run directory: the tensors of the server's state, and what the last whole round was."""

import hashlib
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import load_file

from florist.compression.packed import PackedAdapter
from florist.compression.residual import NOTHING_OWED, Residual
from florist.factors import AdapterState, LoraFactor
from florist.federation.broadcasts import Broadcasts
from florist.federation.client_residuals import ClientResiduals
from florist.federation.records import RoundRecord
from florist.federation.state import ServerState
from florist.files import strict_json
from florist.files.outputs import new_directory, replace_file
from florist.files.tensors import save_tensors
from florist.rounds import SavedParameters


@dataclass(frozen=True, slots=True)
class LastRound:
    """What ``current.json`` says of the last whole round.

    Attributes:
        round: the number of the round.
        holds: the round whose global adapter a client has, by client id.
        broadcasts: the rounds whose broadcasts are kept.
        forgotten: the last round whose broadcast was let go; 0 where none was.
        owed: whether the server holds something back.
        client_residuals: the round whose folder has what a client holds back, by client id.
        best: the best round so far, whose state is kept as well; None where no round is.
        line_begins: how many bytes of ``rounds.jsonl`` come before the line of the round.
        record: that line, as a document.
    """

    round: int
    holds: Mapping[str, int]
    broadcasts: tuple[int, ...]
    forgotten: int
    line_begins: int
    record: dict[str, Any]
    owed: bool = False
    client_residuals: Mapping[str, int] = field(default_factory=dict[str, int])
    best: int | None = None

    @property
    def line(self) -> bytes:
        """The line of the round."""
        return (strict_json.encode(self.record) + "\n").encode()

    @property
    def line_ends(self) -> int:
        """How many bytes ``rounds.jsonl`` has with the line of the round."""
        return self.line_begins + len(self.line)


_LAST_ROUND = TypeAdapter(LastRound)
_DESCRIBED = TypeAdapter(dict[str, str])
_DESCRIPTION = "packed"
"""The entry in the header of a file that has what a codec packed."""
_BROADCAST = "broadcast.safetensors"
_OWED = ("owed.safetensors", "owed_parameters.safetensors")
_LAST_ALONE = (
    "cumulative.safetensors",
    "continued.safetensors",
    "packed_continued.safetensors",
    "saved_parameters.safetensors",
    *_OWED,
)
"""The files that only the last round needs."""


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

    def save(
        self, state: ServerState, record: RoundRecord, line_begins: int, owed: ClientResiduals, best: int | None = None
    ) -> LastRound:
        """Write the tensors of a round and make it the last."""
        folder = self._folder(state.round_number)
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed before it said so in current.json
        with new_directory(folder) as draft:
            _save_adapter(state.cumulative, draft / "cumulative.safetensors")
            _save_adapter(state.continued, draft / "continued.safetensors")
            if state.packed_continued is not None:
                _save_packed(state.packed_continued, draft / "packed_continued.safetensors")
            if state.round_number in state.broadcasts.packed:
                _save_packed(state.broadcasts.packed[state.round_number], draft / _BROADCAST)
            elif state.round_number in state.broadcasts:
                _save_adapter(state.broadcasts[state.round_number], draft / _BROADCAST)
            _save_tensors(state.saved_parameters, draft / "saved_parameters.safetensors")
            _save_residual(state.owed, *(draft / name for name in _OWED))
            for client_id, round_number in owed.rounds.items():
                if round_number == state.round_number:
                    _save_residual(owed[client_id], *(draft / name for name in _owed_by(client_id)))
        return self.make_current(state, record, line_begins, owed.rounds, best)

    def make_current(
        self,
        state: ServerState,
        record: RoundRecord,
        line_begins: int,
        client_residuals: Mapping[str, int],
        best: int | None = None,
    ) -> LastRound:
        """Make a round whose tensors are written the last one, or change what is said of it."""
        last = LastRound(
            round=state.round_number,
            holds=dict(state.holds),
            broadcasts=tuple(state.broadcasts),
            forgotten=state.broadcasts.forgotten,
            owed=bool(state.owed),
            client_residuals=dict(client_residuals),
            line_begins=line_begins,
            record=asdict(record),
            best=best,
        )
        replace_file(self._current, strict_json.encode(asdict(last), indent=1) + "\n")
        return last

    def load(self, last: LastRound) -> ServerState:
        """The state after the last round.

        Raises:
            OSError, KeyError, SafetensorError, InvalidUpdateError, UnknownCodecError: a file of it cannot be read.
        """
        folder = self._folder(last.round)
        files = {number: self._folder(number) / _BROADCAST for number in last.broadcasts}
        packed = {number: found for number, file in files.items() if (found := _load_packed(file)) is not None}
        continued = _load_adapter(folder / "continued.safetensors")
        file_of_packed = folder / "packed_continued.safetensors"
        packed_continued = _load_packed(file_of_packed) if file_of_packed.exists() else None
        if packed_continued is not None:
            packed_continued.unpacked(continued)  # a broken one is found now, and not by the clients
        owed = [folder / name for name in _OWED]
        return ServerState(
            round_number=last.round,
            cumulative=_load_adapter(folder / "cumulative.safetensors"),
            continued=continued,
            saved_parameters=load_file(folder / "saved_parameters.safetensors"),
            broadcasts=Broadcasts(
                {
                    number: packed[number].unpacked() if number in packed else _load_adapter(file)
                    for number, file in files.items()
                },
                last.forgotten,
                packed,
            ),
            holds=last.holds,
            packed_continued=packed_continued,
            owed=_load_residual(*owed) if last.owed else NOTHING_OWED,
        )

    def client_residuals(self, last: LastRound) -> ClientResiduals:
        """What the clients of a simulation held back after the last round.

        Raises:
            OSError, KeyError, SafetensorError: a file of it cannot be read.
        """
        kept = {
            client_id: _load_residual(*(self._folder(number) / name for name in _owed_by(client_id)))
            for client_id, number in last.client_residuals.items()
        }
        return ClientResiduals(kept, last.client_residuals)

    def has_broadcast(self, round_number: int) -> bool:
        """Whether the broadcast of a round is there."""
        return (self._folder(round_number) / _BROADCAST).exists()

    def has_owed(self, round_number: int) -> bool:
        """Whether there is what the server held back after a round."""
        return (self._folder(round_number) / _OWED[0]).exists()

    def load_broadcast(self, round_number: int) -> AdapterState:
        """What a round added.

        Raises:
            OSError, KeyError, SafetensorError, InvalidUpdateError, UnknownCodecError: its file cannot be read.
        """
        return _load_broadcast(self._folder(round_number) / _BROADCAST)

    def load_around(self, round_number: int, cumulative: AdapterState | None = None) -> ServerState:
        """The state after a round without clients and broadcasts, whose cumulative sum may be given.

        Raises:
            OSError, KeyError, SafetensorError: a file of it cannot be read.
        """
        folder = self._folder(round_number)
        owed = [folder / name for name in _OWED]
        return ServerState(
            round_number=round_number,
            cumulative=cumulative if cumulative is not None else _load_adapter(folder / "cumulative.safetensors"),
            continued=_load_adapter(folder / "continued.safetensors"),
            saved_parameters=load_file(folder / "saved_parameters.safetensors"),
            broadcasts=Broadcasts(),
            holds={},
            owed=_load_residual(*owed) if self.has_owed(round_number) else NOTHING_OWED,
        )

    def remove_all_but(self, last: LastRound | None, kept: Collection[str] = ()) -> None:
        """Remove what neither a later round nor a resumption needs.

        Args:
            last: the last whole round; None before the first.
            kept: the names of files that stay of every round that has a broadcast.
        """
        if last is None:
            needed = set[Path]()
        else:
            folder = self._folder(last.round)
            needed = {folder / name for name in _LAST_ALONE}
            needed |= {self._folder(number) / _BROADCAST for number in last.broadcasts}
            needed |= {
                self._folder(number) / name
                for client_id, number in last.client_residuals.items()
                for name in _owed_by(client_id)
            }
            if last.best is not None:
                needed |= {self._folder(last.best) / name for name in _LAST_ALONE}
            for number in range(1, last.round + 1) if kept else ():
                if self.has_broadcast(number):
                    needed |= {self._folder(number) / name for name in kept}
        for folder in self.path.glob("round-*"):
            if not any(file in needed for file in folder.iterdir()):
                shutil.rmtree(folder, ignore_errors=True)
                continue
            for file in folder.iterdir():
                if file not in needed:
                    file.unlink(missing_ok=True)

    @property
    def _current(self) -> Path:
        return self.path / "current.json"

    def _folder(self, round_number: int) -> Path:
        return self.path / f"round-{round_number:04d}"


def _owed_by(client_id: str) -> tuple[str, str]:
    """The names of a client's files. A client may be called what no file can be."""
    short = hashlib.sha256(client_id.encode()).hexdigest()[:32]
    return f"owed-by-{short}.safetensors", f"owed-parameters-by-{short}.safetensors"


def _save_residual(residual: Residual, adapter: Path, saved_parameters: Path) -> None:
    if residual:
        _save_adapter(residual.adapter, adapter)
        _save_tensors(residual.saved_parameters, saved_parameters)


def _load_residual(adapter: Path, saved_parameters: Path) -> Residual:
    return Residual(_load_adapter(adapter), load_file(saved_parameters))


def _load_broadcast(file: Path) -> AdapterState:
    packed = _load_packed(file)
    return packed.unpacked() if packed is not None else _load_adapter(file)


def _save_packed(packed: PackedAdapter, file: Path) -> None:
    # One entry: several come in any order, and a run that goes on has to end with the same bytes.
    metadata = {_DESCRIPTION: strict_json.encode(dict(packed.description()))}
    save_tensors(packed.tensors(), file, metadata)


def _load_packed(file: Path) -> PackedAdapter | None:
    """Read what a codec packed; None where the file has an adapter as it is."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    if not metadata:
        return None
    return PackedAdapter.described(_DESCRIBED.validate_json(metadata[_DESCRIPTION]), load_file(file))


def _save_adapter(adapter: AdapterState, file: Path) -> None:
    _save_tensors(
        {f"{name}.{half}": getattr(factor, half) for name, factor in adapter.items() for half in ("B", "A")}, file
    )


def _save_tensors(tensors: SavedParameters, file: Path) -> None:
    save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def _load_adapter(file: Path) -> AdapterState:
    halves: SavedParameters = load_file(file)
    names = sorted({name.rpartition(".")[0] for name in halves})
    return AdapterState.of({name: LoraFactor(halves[f"{name}.B"], halves[f"{name}.A"]) for name in names})
