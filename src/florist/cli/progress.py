"""Progress bars, on stderr, where that is a terminal."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from rich import progress
from rich.console import Console

if TYPE_CHECKING:
    from florist.federation.history import RunDirectory
    from florist.federation.records import RoundRecord
    from florist.federation.simulation import Simulation


class Progress:
    """One bar for the rounds and one for the client that trains; a line for every closed round.

    Where stderr is no terminal, only the lines are printed.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._rounds = self._bars.add_task("loading the model", total=None)
        self._client = self._bars.add_task("", total=None, visible=False)

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def follow(self, simulation: "Simulation", directory: "RunDirectory") -> "list[RoundRecord]":
        """Run a simulation and show how it goes."""
        done = len(directory.records())
        self._bars.update(self._rounds, description="rounds", completed=done, total=simulation.rounds)
        return simulation.run(directory, self)

    def evaluating(self, round_number: int) -> None:
        """Show that the global adapter is being evaluated."""
        what = f"evaluating after round {round_number}" if round_number else "evaluating the base model"
        self._bars.update(self._client, description=what, completed=0, total=None, visible=True)

    def training(self, round_number: int, client_id: str, done: int, total: int) -> None:
        """Move the client's bar."""
        what = f"round {round_number}: {client_id} trains"
        self._bars.update(self._client, description=what, completed=done, total=total, visible=True)

    def closed(self, record: "RoundRecord") -> None:
        """Move the rounds' bar and print what came out."""
        self._bars.update(self._rounds, completed=record.round)
        metrics = ", ".join(f"{name} {value:.3f}" for name, value in record.metrics.items())
        aggregated = f"total rank {record.total_rank}" if record.ranks else "whole weights averaged"
        outcome = aggregated if record.aggregated else "too few replies, nothing changed"
        self._console.print(f"round {record.round}: {metrics}{', ' if metrics else ''}{outcome}", highlight=False)


@contextmanager
def module_bar(console: Console, what: str) -> Generator[Callable[[int, int], None]]:
    """A bar over the modules of an adapter; what it yields is told how many are done, and of how many."""
    bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("modules"),
        progress.TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task(what, total=None)
    with bar:
        yield lambda done, total: bar.update(task, completed=done, total=total)
