"""What `florist compare` shows while it runs: a bar over the runs and a line for each."""

from types import TracebackType
from typing import TYPE_CHECKING

from rich import progress
from rich.console import Console

from florist.cli.summaries import number

if TYPE_CHECKING:
    from florist.comparison.directory import ComparisonDirectory
    from florist.comparison.planning import Cell
    from florist.comparison.results import CellResult
    from florist.federation.records import RoundRecord


class CellsBar:
    """One bar for the runs and one for what the present run does; a line for every run that ended.

    Where stderr is no terminal, only the lines are printed. An `Observer` of the present run.
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
        self._cells = self._bars.add_task("checking the configurations", total=None)
        self._now = self._bars.add_task("", total=None, visible=False)
        self._cell = ""
        self._over, self._all = 0, 0

    def __enter__(self) -> "CellsBar":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def follow(self, directory: "ComparisonDirectory") -> None:
        """Count what is over already."""
        cells = directory.comparison.cells
        self._over, self._all = sum(directory.is_over(cell) for cell in cells), len(cells)
        self._bars.update(self._cells, description="runs", completed=self._over, total=self._all)
        if self._over:
            self._console.print(f"{self._over} of {self._all} runs are over", highlight=False)

    def started(self, cell: "Cell") -> None:
        """Show which run it is."""
        self._cell = cell.name
        self._bars.update(self._now, description=f"{cell.name}: loading", completed=0, total=None, visible=True)

    def ended(self, result: "CellResult") -> None:
        """Print what came out of a run."""
        self._over += 1
        self._bars.update(self._cells, completed=self._over)
        self._bars.update(self._now, visible=False)
        metrics = ", ".join(f"{name} {number(value)}" for name, value in result.metrics.items())
        came = metrics if result.failure is None else f"failed: {result.failure}"
        line = f"{self._over} of {self._all}: {result.cell.name}: {came}"
        self._console.print(line, highlight=False, soft_wrap=True)

    def evaluating(self, round_number: int) -> None:
        """Show that the global adapter is being evaluated."""
        what = f"{self._cell}, round {round_number}: evaluating"
        self._bars.update(self._now, description=what, completed=0, total=None)

    def training(self, round_number: int, client_id: str, done: int, total: int) -> None:
        """Move the bar of the present run."""
        what = f"{self._cell}, round {round_number}: {client_id} trains"
        self._bars.update(self._now, description=what, completed=done, total=total)

    def closed(self, record: "RoundRecord") -> None:
        """A round alone is not worth a line."""
