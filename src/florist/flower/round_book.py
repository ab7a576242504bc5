"""The round records of a run: written as a round closes, and completed as more becomes known of it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from flwr.app import MetricRecord

from florist.federation.closed_round import ClosedRound
from florist.federation.recording import round_record
from florist.federation.records import RoundRecord
from florist.federation.state import ServerState
from florist.flower.journal import Journal
from florist.flower.open_round import OpenRound


@dataclass(slots=True)
class RoundBook:
    """The round records, in memory and in the journal.

    Attributes:
        journal: where they are saved; None for nowhere.
        records: one record for each closed round.
    """

    journal: Journal | None
    records: list[RoundRecord] = field(default_factory=list[RoundRecord])
    _counted: dict[str, int] = field(default_factory=dict[str, int])
    _read: int = 0
    _began: float = 0.0
    _trained: float = 0.0
    _aggregated: float = 0.0

    def round_begins(self) -> None:
        """Note the time as a round begins."""
        self._began = time.perf_counter()

    def training_ends(self) -> None:
        """Note the time as the last reply is there."""
        self._trained = time.perf_counter()

    def write(self, closed: ClosedRound, underway: OpenRound) -> RoundRecord:
        """Write the record of a closed round, and make the round permanent."""
        self._aggregated = time.perf_counter()
        self.records.append(self._record(closed, underway, {}))
        if self.journal is not None:
            self.journal.save(closed.state, self.records[-1])
        return self.records[-1]

    def amend(
        self, state: ServerState, closed: ClosedRound, underway: OpenRound, metrics: Mapping[str, float]
    ) -> RoundRecord:
        """Complete the last record by what was measured, or sent, after the round was made permanent."""
        self.records[-1] = self._record(closed, underway, {**self.records[-1].metrics, **metrics})
        self._save_last(state)
        return self.records[-1]

    def add_metrics(self, state: ServerState, metrics: Mapping[str, float]) -> None:
        """Complete the last record of a resumed run by metrics that an earlier process did not live to measure."""
        self.records[-1] = replace(self.records[-1], metrics=metrics)
        self._save_last(state)

    def last_counted(self) -> Mapping[str, int]:
        """The last round in which an update of a client counted, by client id.

        A client commits what it holds back by this. It follows from the records, so that a resumed run knows it too.

        Cost: each record is read once, however often this is asked.
        """
        for line in self.records[self._read :]:
            if line.aggregated:
                self._counted.update((client.client_id, line.round) for client in line.clients)
        self._read = len(self.records)
        return dict(self._counted)

    @staticmethod
    def summary(record: RoundRecord) -> MetricRecord:
        """The numbers of a record that Flower logs and keeps."""
        return MetricRecord(
            {
                "clients": len(record.clients),
                "dropped": len(record.dropped),
                "total_rank": record.total_rank,
                "relative_error": record.relative_error,
                "upload_bytes": record.upload_bytes,
                "broadcast_bytes": record.broadcast_bytes,
                "held_back": float(record.held_back),
            }
        )

    def _save_last(self, state: ServerState) -> None:
        if self.journal is not None:
            self.journal.amend(state, self.records[-1])

    def _record(self, closed: ClosedRound, underway: OpenRound, metrics: Mapping[str, float]) -> RoundRecord:
        now = time.perf_counter()
        seconds = {
            "train": self._trained - self._began,
            "aggregate": self._aggregated - self._trained,
            "evaluate": now - self._aggregated,
            "total": now - self._began,
        }
        return round_record(replace(closed, dropped=tuple(underway.dropped)), underway.work, metrics, seconds)
