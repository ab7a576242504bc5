"""What ``florist simulate`` shows while it runs."""

from florist.cli.decisions import clients_of
from florist.cli.progress import Progress
from florist.federation.records import RoundRecord


class RoundsProgress:
    """An `Observer` of a simulation: a bar for the rounds, one for the client that trains, and a line a round.

    Args:
        progress: where to show it.
        verbose: whether every client of a round has a line, too.
    """

    def __init__(self, progress: Progress, *, verbose: bool = False) -> None:
        self._progress = progress
        self._verbose = verbose

    def begin(self, done: int, total: int) -> None:
        """Count the rounds that are over already."""
        self._progress.whole("rounds")
        self._progress.count(done, total)

    def evaluating(self, round_number: int) -> None:
        """Show that the global adapter is being evaluated."""
        self._progress.part(f"evaluating after round {round_number}" if round_number else "evaluating the base model")

    def training(self, round_number: int, client_id: str, done: int, total: int) -> None:
        """Show how far the training of a client is."""
        self._progress.part(f"round {round_number}: {client_id} trains", done, total)

    def closed(self, record: RoundRecord) -> None:
        """Count a round and print what came out."""
        self._progress.count(record.round)
        for line in clients_of(record) if self._verbose else ():
            self._progress.line(line)
        self._progress.line(record.text)

    def line(self, text: str) -> None:
        """Print a line that stays."""
        self._progress.line(text)

    def stopped(self, text: str) -> None:
        """Print how an end came about that nobody wanted."""
        self._progress.stopped(text)
