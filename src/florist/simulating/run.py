"""A run as code sees it: what was measured and sent, and the adapter that came out."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from florist.checkpoint import open_adapter
from florist.errors import MissingDependencyError, MissingInputError
from florist.factors import AdapterState
from florist.federation.history import RunDirectory
from florist.federation.records import FinalTest, RoundRecord
from florist.files.outputs import new_directory
from florist.simulating.notebook import run_html


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A run that has ended, or was interrupted.

    Attributes:
        directory: where it is on disk.
        kept: what keeps that directory there, where it is a temporary one.
    """

    directory: RunDirectory
    kept: object = None

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """A run that is on disk, however it was begun.

        Raises:
            MissingInputError, OtherVersionError, DamagedRunError: as `RunDirectory.open`.
        """
        return cls(RunDirectory.open(Path(path)))

    @property
    def path(self) -> Path:
        """The directory of the run. Without `out` it is a temporary one, which goes with this object."""
        return self.directory.path

    @property
    def records(self) -> list[RoundRecord]:
        """The records of all rounds."""
        return self.directory.records()

    @property
    def initial(self) -> Mapping[str, float]:
        """What the base model measured before the first round."""
        return self.directory.facts.initial

    @property
    def metrics(self) -> Mapping[str, float]:
        """What the global adapter measured last."""
        return next((record.metrics for record in reversed(self.records) if record.metrics), self.initial)

    @property
    def tested(self) -> FinalTest | None:
        """What the final adapter measured on the test examples; None where the rounds were measured on them."""
        return self.directory.tested

    @property
    def adapter(self) -> Path | None:
        """The directory of the final adapter, as PEFT reads it; None where no round had enough usable updates."""
        return self.directory.adapter if self.directory.adapter.exists() else None

    @property
    def state(self) -> AdapterState:
        """The factors of the final adapter.

        Raises:
            MissingInputError: there is none.
        """
        return open_adapter(self._adapter()).adapter

    def save_adapter(self, path: str | Path) -> Path:
        """Copy the final adapter to another directory, whole or not at all.

        Raises:
            MissingInputError: there is none.
            OutputExistsError, UnwritableOutputError: as `outputs.new_directory`.
        """
        source, target = self._adapter(), Path(path)
        with new_directory(target) as draft:
            for file in source.iterdir():
                shutil.copy2(file, draft / file.name)
        return target

    def to_pandas(self, by: Literal["round", "client"] = "round") -> Any:
        """The round records as a pandas DataFrame, a row a round or a row a client and round.

        Args:
            by: ``"round"``, of which round 0 is the base model; or ``"client"``.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                "run.to_pandas() needs pandas, which is not installed: pip install pandas; run.records has the same"
            ) from error
        if by not in {"round", "client"}:
            raise ValueError(f"expected by='round' or by='client', got {by!r}")
        rows = _rounds(self.initial, self.records) if by == "round" else _clients(self.records)
        return pandas.DataFrame(list(rows))

    def _adapter(self) -> Path:
        if self.adapter is None:
            raise MissingInputError(
                f"expected the final adapter in {self.directory.adapter}, found none: the run has not ended, or no "
                "round had enough usable updates"
            )
        return self.adapter

    def _repr_html_(self) -> str:
        return run_html(self.directory)

    def __repr__(self) -> str:
        measured = ", ".join(f"{name} {value:.3f}" for name, value in self.metrics.items())
        return f"<Run of {self.directory.facts.method}: {len(self.records)} rounds, {measured or 'nothing measured'}>"


def _rounds(initial: Mapping[str, float], records: list[RoundRecord]) -> Iterator[dict[str, Any]]:
    yield {"round": 0, **initial}
    for record in records:
        yield {
            "round": record.round,
            **record.metrics,
            "clients": len(record.clients),
            "dropped": len(record.dropped),
            "aggregated": record.aggregated,
            "total_rank": record.total_rank,
            "input_rank": record.input_rank,
            "cumulative_rank": record.cumulative_rank,
            "relative_error": record.relative_error,
            "upload_bytes": record.upload_bytes,
            "download_bytes": record.download_bytes,
            "broadcast_bytes": record.broadcast_bytes,
            "held_back": record.held_back,
            "epsilon": record.epsilon,
            "seconds": record.seconds.get("total"),
        }


def _clients(records: list[RoundRecord]) -> Iterator[dict[str, Any]]:
    for record in records:
        for client in record.clients:
            measured = record.client_metrics.get(client.client_id, {})
            yield {
                "round": record.round,
                "client": client.client_id,
                "rank": client.rank,
                "examples": client.num_examples,
                "training_loss": client.loss,
                **measured,
                "upload_bytes": client.upload_bytes,
                "download_bytes": client.download_bytes,
                "seconds": client.seconds,
            }
