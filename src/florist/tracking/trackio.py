"""trackio: a run in a project, in a database on this machine or in a Space."""

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from secrets import token_hex
from typing import Any

from florist.tracking.tracker import Place, TrackedRun


class Trackio:
    """A run in trackio."""

    def __init__(self, run: Any, name: str) -> None:
        self._run = run
        self._name = name

    @classmethod
    def open(cls, run: TrackedRun, place: Place) -> "Trackio":
        """Begin a run, or go on with the one at `place`.

        trackio finds a run by its name, which is therefore made unique. Its prints go to stderr: the results of a
        command are on stdout.
        """
        import trackio  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

        init: Any = trackio.init  # pyright: ignore[reportAttributeAccessIssue]  # not installed, it is taken for this file
        name = place.get("run", f"{run.name}-{token_hex(3)}")
        with redirect_stdout(sys.stderr):
            begun = init(project=run.project, name=name, config=dict(run.hyperparameters), resume="allow", embed=False)
        return cls(begun, name)

    @property
    def place(self) -> Place:
        """The name of the run."""
        return {"run": self._name}

    def last_step(self) -> int | None:
        """Nobody can tell."""
        return None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of a step."""
        with redirect_stdout(sys.stderr):
            self._run.log(dict(values), step=step)

    def summarise(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values at the last step."""
        self.log(step, values)

    def close(self, *, finished: bool) -> None:  # noqa: ARG002  # trackio knows no failed run
        """Send what is left."""
        with redirect_stdout(sys.stderr):
            self._run.finish()
