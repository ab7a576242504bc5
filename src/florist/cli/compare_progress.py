"""What ``florist compare`` shows while it runs."""

from florist.cli.decisions import clients_of
from florist.cli.progress import Progress
from florist.cli.summaries import number
from florist.comparison.directory import ComparisonDirectory
from florist.comparison.planning import Cell
from florist.comparison.results import CellResult
from florist.federation.records import RoundRecord


class CellsProgress:
    """An `Observer` of the present run: a bar for the runs, one for what the present run does, and a line a run.

    Args:
        progress: where to show it.
        verbose: whether every client of a round has a line, too.
    """

    def __init__(self, progress: Progress, *, verbose: bool = False) -> None:
        self._progress = progress
        self._verbose = verbose
        self._cell = ""
        self._over, self._all = 0, 0

    def begin(self, directory: ComparisonDirectory) -> None:
        """Count the runs that are over already."""
        cells = directory.comparison.cells
        self._over, self._all = sum(directory.is_over(cell) for cell in cells), len(cells)
        self._progress.whole("runs")
        self._progress.count(self._over, self._all)
        if self._over:
            self._progress.line(f"{self._over} of {self._all} runs are over")

    def started(self, cell: Cell) -> None:
        """Show which run it is."""
        self._cell = cell.name
        self._progress.part(f"{cell.name}: loading")

    def ended(self, result: CellResult) -> None:
        """Count a run and print what came out."""
        self._over += 1
        self._progress.count(self._over)
        self._progress.end_part()
        metrics = ", ".join(f"{name} {number(value)}" for name, value in result.metrics.items())
        outcome = metrics if result.failure is None else f"failed: {result.failure}"
        self._progress.line(f"{self._over} of {self._all}: {result.cell.name}: {outcome}")

    def evaluating(self, round_number: int) -> None:
        """Show that the global adapter is being evaluated."""
        self._progress.part(f"{self._cell}, round {round_number}: evaluating")

    def training(self, round_number: int, client_id: str, done: int, total: int) -> None:
        """Show how far the training of a client is."""
        self._progress.part(f"{self._cell}, round {round_number}: {client_id} trains", done, total)

    def closed(self, record: RoundRecord) -> None:
        """Print nothing, unless all is to be told: a round alone is not worth a line."""
        for line in clients_of(record) if self._verbose else ():
            self._progress.line(f"{self._cell}, {line}")
