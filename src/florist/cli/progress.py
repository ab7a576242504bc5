"""Progress on stderr: bars where that is a terminal, and lines."""

from types import TracebackType

from rich import progress
from rich.console import Console


class Progress:
    """A bar for the whole of a command, and one for the part that it is at.

    Where stderr is no terminal there are no bars, and only the lines are printed.

    Args:
        console: the console on stderr.
        description: what the whole is called until something else is known.
    """

    def __init__(self, console: Console, description: str) -> None:
        self._console = console
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._whole = self._bars.add_task(description, total=None)
        self._part: tuple[str, progress.TaskID] | None = None

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def count(self, done: int, total: int | None = None) -> None:
        """Show how much of the whole is done, and of how much if that is new."""
        self._bars.update(self._whole, completed=done, total=total)

    def whole(self, description: str) -> None:
        """Say what the whole consists of."""
        self._bars.update(self._whole, description=description)

    def part(self, description: str, done: int = 0, total: int | None = None) -> None:
        """Show the part that the command is at; without a total, nobody knows how long it takes."""
        if self._part is None or self._part[0] != description:
            self.end_part()
            self._part = description, self._bars.add_task(description, total=total)
        self._bars.update(self._part[1], completed=done)

    def end_part(self) -> None:
        """Take the bar of the part away."""
        if self._part is not None:
            self._bars.remove_task(self._part[1])
        self._part = None

    def line(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, soft_wrap=True)
