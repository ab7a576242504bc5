"""What florist asks of a tracker."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

Place = Mapping[str, str]
"""Where a tracker keeps a run, in words of its own: what it needs to go on there after a process has ended."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What a tracker is told of a run as it begins, or goes on.

    Attributes:
        path: the directory of the run.
        project: what the tracker calls a group of runs: a project, an experiment.
        name: what the run is called there.
        hyperparameters: the whole configuration, by ``section.key``.
        next_step: the first step that the tracker was not told of.
        mlflow_uri: where MLflow keeps its runs; None for what its environment says.
    """

    path: Path
    project: str
    name: str
    hyperparameters: Mapping[str, str | int | float | bool]
    next_step: int = 0
    mlflow_uri: str | None = None


@runtime_checkable
class Tracker(Protocol):
    """A run at a tracker. Any method may raise anything: the run of florist goes on all the same."""

    @property
    def place(self) -> Place:
        """What is written down to go on with the same run."""
        ...

    def last_step(self) -> int | None:
        """The last step that the tracker has of this run, where it can tell."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the values of a round; step 0 is before the first."""
        ...

    def summarise(self, step: int, values: Mapping[str, float]) -> None:
        """Keep values of the whole run, which was over after `step`."""
        ...

    def close(self, *, finished: bool) -> None:
        """Write what is left; `finished` tells whether the run came to its end."""
        ...
