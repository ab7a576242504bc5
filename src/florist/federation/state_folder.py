"""The folder ``state`` of a run directory: the tensors of the server's state, and what the last whole round was."""

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from safetensors.torch import load_file

from florist.compression.residual import NOTHING_OWED
from florist.factors import AdapterState
from florist.federation.broadcasts import Broadcasts
from florist.federation.client_residuals import ClientResiduals
from florist.federation.damage import DamagedFileError, checked_file
from florist.federation.last_round import CURRENT, LastRound, read_last_round, write_last_round
from florist.federation.records import RoundRecord
from florist.federation.state import ServerState
from florist.federation.tensor_files import (
    load_adapter,
    load_broadcast,
    load_packed,
    load_residual,
    save_adapter,
    save_packed,
    save_residual,
    save_tensors,
)
from florist.files.outputs import new_directory, remove
from florist.files.reading import sha256

_BROADCAST = "broadcast.safetensors"
_OWED = ("owed.safetensors", "owed_parameters.safetensors")
_PACKED_CONTINUED = "packed_continued.safetensors"
_ALWAYS = ("cumulative.safetensors", "continued.safetensors", "saved_parameters.safetensors")
_LAST_ALONE = (*_ALWAYS, _PACKED_CONTINUED, *_OWED)
"""The files that only the last round needs."""
_FOLDER = re.compile(r"round-\d{4,}")


@dataclass(frozen=True, slots=True)
class StateFolder:
    """The folder; `history` describes its files.

    Attributes:
        path: where it is.
    """

    path: Path

    def last_round(self) -> LastRound:
        """What ``current.json`` says; round 0 before the first.

        Raises:
            OSError, ValueError: it is missing, cannot be read, or is not as it was written.
        """
        return read_last_round(self._current)

    def save(
        self,
        state: ServerState,
        record: RoundRecord,
        before: LastRound,
        owed: ClientResiduals,
        *,
        best: int | None = None,
        kept: Collection[str] = (),
    ) -> LastRound:
        """Write the tensors of a round and make it the last.

        Args:
            state: the state after it.
            record: what is written down of it.
            before: what was the last round.
            owed: what the clients hold back after it.
            best: the best round, whose state is to be kept.
            kept: the names of files that stay of every round that has a broadcast.

        Cost: the files of the round are written, and read once more for their hashes.
        """
        folder = self._folder(state.round_number)
        remove(folder)  # left by a run that was killed before it said so in current.json
        with new_directory(folder) as draft:
            save_adapter(state.cumulative, draft / "cumulative.safetensors")
            save_adapter(state.continued, draft / "continued.safetensors")
            if state.packed_continued is not None:
                save_packed(state.packed_continued, draft / _PACKED_CONTINUED)
            if state.round_number in state.broadcasts.packed:
                save_packed(state.broadcasts.packed[state.round_number], draft / _BROADCAST)
            elif state.round_number in state.broadcasts:
                save_adapter(state.broadcasts[state.round_number], draft / _BROADCAST)
            save_tensors(state.saved_parameters, draft / "saved_parameters.safetensors")
            save_residual(state.owed, *(draft / name for name in _OWED))
            for client_id, round_number in owed.rounds.items():
                if round_number == state.round_number:
                    save_residual(owed[client_id], *(draft / name for name in _owed_by(client_id)))
            written = {f"{folder.name}/{file.name}": sha256(file) for file in sorted(draft.iterdir())}
        after = LastRound(
            round=state.round_number,
            own_files=before.own_files,
            being_replaced=before.being_replaced,
            client_residuals=dict(owed.rounds),
            best=best,
            line_begins=before.line_ends,
            lines_before=before.lines,
        )
        after = _of_state(after, state, record)
        needed = _needed(after, {**before.files, **written}, kept)
        return self.make_current(replace(after, files=needed))

    def amend(self, state: ServerState, record: RoundRecord, before: LastRound) -> LastRound:
        """Change what is said of the last round, whose tensors are written."""
        after = replace(before, replaced_line=hashlib.sha256(before.line).hexdigest())
        return self.make_current(_of_state(after, state, record))

    def make_current(self, last: LastRound) -> LastRound:
        """Replace ``current.json``; return what it now says."""
        write_last_round(self._current, last)
        return last

    def verify(self, last: LastRound) -> None:
        """Check every file that a resumption reads, the state of the best round included.

        Raises:
            DamagedFileError: one is missing, cannot be read, or is not what was written.

        Cost: these files are read once.
        """
        if last.round == 0:
            return
        required = {f"{_folder_name(last.round)}/{name}" for name in _ALWAYS}
        required |= {f"{_folder_name(number)}/{_BROADCAST}" for number in last.broadcasts}
        for name in sorted(required | _needed(last, last.files).keys()):
            checked_file(self.path, name, last.files)

    def load(self, last: LastRound) -> ServerState:
        """The state after the last round, once `verify` has found it whole.

        Raises:
            OSError, KeyError, SafetensorError, InvalidUpdateError, UnknownCodecError: a file of it cannot be read.
        """
        folder = self._folder(last.round)
        files = {number: self._folder(number) / _BROADCAST for number in last.broadcasts}
        packed = {number: found for number, file in files.items() if (found := load_packed(file)) is not None}
        continued = load_adapter(folder / "continued.safetensors")
        packed_continued = None
        if f"{folder.name}/{_PACKED_CONTINUED}" in last.files:
            packed_continued = load_packed(folder / _PACKED_CONTINUED)
        if packed_continued is not None:
            packed_continued.unpacked(continued)  # a broken one is found now, and not by the clients
        owed = [folder / name for name in _OWED]
        return ServerState(
            round_number=last.round,
            cumulative=load_adapter(folder / "cumulative.safetensors"),
            continued=continued,
            saved_parameters=load_file(folder / "saved_parameters.safetensors"),
            broadcasts=Broadcasts(
                {
                    number: packed[number].unpacked() if number in packed else load_adapter(file)
                    for number, file in files.items()
                },
                last.forgotten,
                packed,
            ),
            holds=last.holds,
            packed_continued=packed_continued,
            owed=load_residual(*owed) if last.owed else NOTHING_OWED,
        )

    def client_residuals(self, last: LastRound) -> ClientResiduals:
        """What the clients of a simulation held back after the last round, once `verify` has found it whole.

        Raises:
            OSError, KeyError, SafetensorError: a file of it cannot be read.
        """
        kept = {
            client_id: load_residual(*(self._folder(number) / name for name in _owed_by(client_id)))
            for client_id, number in last.client_residuals.items()
        }
        return ClientResiduals(kept, last.client_residuals)

    def has_broadcast(self, last: LastRound, round_number: int) -> bool:
        """Whether the broadcast of a round was kept."""
        return f"{_folder_name(round_number)}/{_BROADCAST}" in last.files

    def has_owed(self, last: LastRound, round_number: int) -> bool:
        """Whether what the server held back after a round was kept."""
        return f"{_folder_name(round_number)}/{_OWED[0]}" in last.files

    def load_broadcast(self, last: LastRound, round_number: int) -> AdapterState:
        """What a round added.

        Raises:
            DamagedFileError: its file is not what was written.
            OSError, KeyError, SafetensorError, InvalidUpdateError, UnknownCodecError: it cannot be read.
        """
        return load_broadcast(checked_file(self.path, f"{_folder_name(round_number)}/{_BROADCAST}", last.files))

    def load_around(self, last: LastRound, round_number: int, cumulative: AdapterState | None = None) -> ServerState:
        """The state after a round without clients and broadcasts, whose cumulative sum may be given.

        Raises:
            DamagedFileError: a file of it is not what was written.
            OSError, KeyError, SafetensorError: a file of it cannot be read.
        """

        def file(name: str) -> Path:
            return checked_file(self.path, f"{_folder_name(round_number)}/{name}", last.files)

        has_owed = self.has_owed(last, round_number)
        return ServerState(
            round_number=round_number,
            cumulative=cumulative if cumulative is not None else load_adapter(file("cumulative.safetensors")),
            continued=load_adapter(file("continued.safetensors")),
            saved_parameters=load_file(file("saved_parameters.safetensors")),
            broadcasts=Broadcasts(),
            holds={},
            owed=load_residual(*(file(name) for name in _OWED)) if has_owed else NOTHING_OWED,
        )

    def files_around(self, last: LastRound, round_number: int, summed: Collection[int]) -> list[str]:
        """The names of the files that make the adapter of a round.

        Args:
            last: what ``current.json`` says.
            round_number: the round.
            summed: the rounds whose broadcasts are added up; empty where the sum is read.
        """
        folder = _folder_name(round_number)
        names = [f"{_folder_name(number)}/{_BROADCAST}" for number in summed]
        names += [f"{folder}/{name}" for name in ("continued.safetensors", "saved_parameters.safetensors")]
        names += [] if summed else [f"{folder}/cumulative.safetensors"]
        return [*names, *(f"{folder}/{name}" for name in _OWED if self.has_owed(last, round_number))]

    def whole(self, last: LastRound, names: Collection[str]) -> bool:
        """Whether files are as they were written.

        Cost: they are read once.
        """
        try:
            for name in names:
                checked_file(self.path, name, last.files)
        except DamagedFileError:
            return False
        return True

    def remove_all_but(self, last: LastRound) -> None:
        """Remove the files of rounds that neither a later round nor a resumption needs. Links are left alone."""
        for folder in self.path.iterdir():
            if not _FOLDER.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
                continue
            files = {file: f"{folder.name}/{file.name}" in last.files for file in folder.iterdir()}
            if not any(files.values()):
                remove(folder)
            for file, needed in files.items():
                if not needed:
                    remove(file)

    @property
    def _current(self) -> Path:
        return self.path / CURRENT.name

    def _folder(self, round_number: int) -> Path:
        return self.path / _folder_name(round_number)


def _of_state(last: LastRound, state: ServerState, record: RoundRecord) -> LastRound:
    return replace(
        last,
        holds=dict(state.holds),
        broadcasts=tuple(state.broadcasts),
        forgotten=state.broadcasts.forgotten,
        owed=bool(state.owed),
        record=asdict(record),
    )


def _needed(last: LastRound, files: Mapping[str, str], kept: Collection[str] = ()) -> Mapping[str, str]:
    """Of all files, those that a later round or a resumption needs, and those of `kept` of every round."""
    needed = {f"{_folder_name(last.round)}/{name}" for name in _LAST_ALONE}
    needed |= {f"{_folder_name(number)}/{_BROADCAST}" for number in last.broadcasts}
    needed |= {
        f"{_folder_name(number)}/{name}"
        for client_id, number in last.client_residuals.items()
        for name in _owed_by(client_id)
    }
    if last.best is not None:
        needed |= {f"{_folder_name(last.best)}/{name}" for name in _LAST_ALONE}
    if kept:
        sent = [folder for folder, _, file in (name.partition("/") for name in files) if file == _BROADCAST]
        needed |= {f"{folder}/{name}" for folder in sent for name in kept}
    return {name: digest for name, digest in files.items() if name in needed}


def _folder_name(round_number: int) -> str:
    return f"round-{round_number:04d}"


def _owed_by(client_id: str) -> tuple[str, str]:
    """The names of a client's files. A client may be called what no file can be."""
    short = hashlib.sha256(client_id.encode()).hexdigest()[:32]
    return f"owed-by-{short}.safetensors", f"owed-parameters-by-{short}.safetensors"
