"""Weights & Biases: a run in a project, at its server or offline."""

import secrets
from collections.abc import Mapping
from typing import Any

from florist.tracking.tracker import Place, TrackedRun


class WeightsAndBiases:
    """A run in Weights & Biases."""

    def __init__(self, run: Any) -> None:
        self._run = run

    @classmethod
    def open(cls, run: TrackedRun, place: Place) -> "WeightsAndBiases":
        """Begin a run, or go on with the one at `place`.

        The run is one beside any other that the process has, and what the process prints stays its own.
        """
        import wandb  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

        library: Any = wandb  # not installed, it is taken for this file
        return cls(
            library.init(
                project=run.project,
                name=run.name,
                id=place.get("run", secrets.token_hex(4)),
                resume="allow",
                dir=str(run.path),
                config=dict(run.hyperparameters),
                allow_val_change=True,
                reinit="create_new",
                settings=library.Settings(console="off"),
            )
        )

    @property
    def place(self) -> Place:
        """The id of the run."""
        return {"run": self._run.id}

    def last_step(self) -> int | None:
        """What the server says of a run that goes on; offline nobody can tell."""
        return self._run.step - 1 if self._run.resumed and self._run.step else None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write a row of the run's history."""
        self._run.log(dict(values), step=step, commit=True)

    def summarise(self, step: int, values: Mapping[str, float]) -> None:  # noqa: ARG002  # a summary has no step
        """Write into the summary of the run."""
        self._run.summary.update(dict(values))

    def close(self, *, finished: bool) -> None:
        """End the run; one that can go on counts as failed until it does."""
        self._run.finish(exit_code=0 if finished else 1)
