"""What a run keeps of the rounds that are over, and the global adapter that one of them had."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from florist.aggregation import lossless_sum
from florist.errors import MissingInputError
from florist.federation.last_round import LastRound
from florist.federation.records import RoundRecord
from florist.federation.state import ServerState
from florist.federation.state_folder import StateFolder
from florist.rounds import NO_ADAPTER


class KeepRounds(StrEnum):
    """What stays on disk of every round, beside what a resumption or a client needs."""

    LAST = "last"
    """Nothing: the last round alone can be exported."""
    SENT = "sent"
    """The broadcast, as it was sent: every round can be exported."""
    ALL = "all"
    """The broadcast and what the server held back: every round can be exported with that as well."""

    @property
    def files(self) -> Collection[str]:
        """The names of the files that stay in the folder of a round."""
        sent = {"broadcast.safetensors", "continued.safetensors", "saved_parameters.safetensors"}
        owed = {"owed.safetensors", "owed_parameters.safetensors"}
        return {KeepRounds.LAST: set[str](), KeepRounds.SENT: sent, KeepRounds.ALL: sent | owed}[self]


@dataclass(frozen=True, slots=True)
class KeptRounds:
    """The rounds of a run that can be read again.

    Attributes:
        run: the directory of the run, for messages.
        state: its folder ``state``.
        last: the last whole round.
        records: the records of all rounds.
        keep: what was kept of the others.
    """

    run: Path
    state: StateFolder
    last: LastRound
    records: Sequence[RoundRecord]
    keep: KeepRounds

    def has_held_back(self, round_number: int) -> bool:
        """Whether it is known what the server held back after a round, which may be nothing.

        Raises:
            MissingInputError: as `state_after`.
        """
        changed = self._changed_up_to(round_number)
        return (
            self._whole(changed) is not None
            or self._owed_nothing(changed[-1])
            or self.state.has_owed(self.last, changed[-1])
        )

    def state_after(self, round_number: int, *, with_held_back: bool) -> ServerState:
        """The state of the server after a round, as far as it makes the global adapter, bit for bit.

        The exact sum is added up again in the order of the rounds, as the server did. The last round, and the best one
        where it is kept, are read as they are. Clients, and broadcasts to be sent again, are left out.

        Args:
            round_number: the round.
            with_held_back: whether the state has to have what the server held back then.

        Raises:
            MissingInputError: there is no such round, nothing was added up to it, or it was not kept. The message says
                what to do.
            DamagedFileError: a file is not what was written; none is used before it was found whole.
            OSError, ValueError, KeyError, SafetensorError: a file cannot be read.

        Cost: every file is read twice, once to hash it. A round that is neither the last nor the best takes one
        `lossless_sum` for each round up to it as well.
        """
        changed = self._changed_up_to(round_number)
        whole = self._whole(changed)
        if whole is not None:
            return self.state.load_around(self.last, whole)
        number = changed[-1]
        missing = [each for each in changed if not self.state.has_broadcast(self.last, each)]
        if missing:
            raise MissingInputError(
                f"{self.run}: expected the broadcasts of all rounds up to {round_number}, and {len(missing)} of "
                f"{len(changed)} were not kept (federation.keep_rounds = {self.keep.value!r}); {self._instead()}"
            )
        if with_held_back and not self.has_held_back(round_number):
            raise MissingInputError(
                f"{self.run}: expected what the server held back after round {round_number}, which was not kept "
                f"(federation.keep_rounds = {self.keep.value!r}); leave it out with --no-flush, or simulate again with "
                "--set federation.keep_rounds=all"
            )
        cumulative = NO_ADAPTER
        for each in changed:
            cumulative = lossless_sum([cumulative, self.state.load_broadcast(self.last, each)])
        return self.state.load_around(self.last, number, cumulative)

    def last_whole(self) -> int | None:
        """The last round whose adapter can be exported, since all of its files are as they were written.

        Cost: up to every file that is kept is read once.
        """
        known: dict[str, bool] = {}

        def whole_file(name: str) -> bool:
            if name not in known:
                known[name] = self.state.whole(self.last, [name])
            return known[name]

        for number in range(len(self.records), 0, -1):
            changed = [record.round for record in self.records[:number] if record.aggregated]
            if not changed:
                return None
            whole = self._whole(changed)
            if whole is None and not all(self.state.has_broadcast(self.last, each) for each in changed):
                continue
            read = self.state.files_around(self.last, whole or changed[-1], () if whole is not None else changed)
            if all(map(whole_file, read)):
                return number
        return None

    def _changed_up_to(self, round_number: int) -> list[int]:
        """The rounds up to one that changed the global adapter."""
        if not 1 <= round_number <= len(self.records):
            raise MissingInputError(
                f"{self.run}: expected a round from 1 to {len(self.records)}, which the run has played, got "
                f"{round_number}"
            )
        changed = [record.round for record in self.records[:round_number] if record.aggregated]
        if not changed:
            raise MissingInputError(
                f"{self.run}: no round up to {round_number} had enough usable updates, so that there is no adapter; "
                "choose a later round"
            )
        return changed

    def _whole(self, changed: Sequence[int]) -> int | None:
        """A round whose state is kept whole and that has the same global adapter; None if there is none."""
        for number in (self.last.round, self.last.best):
            if number is not None and number >= changed[-1] and not self._changes(changed[-1] + 1, number):
                return number
        return None

    def _changes(self, first: int, last: int) -> bool:
        return any(record.aggregated for record in self.records[first - 1 : last])

    def _owed_nothing(self, round_number: int) -> bool:
        return not self.records[round_number - 1].held_back

    def _instead(self) -> str:
        kept = [f"round {self.last.round}"]
        if self.last.best is not None and self.last.best != self.last.round:
            kept.append(f"the best, round {self.last.best}")
        return (
            f"export {' or '.join(kept)}, or simulate again with --set federation.keep_rounds=sent, which plays the "
            "same rounds"
        )
