"""Progress on stderr: bars where that is a terminal, and lines."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

from rich import progress
from rich.console import Console

from florist.cli.heartbeat import Heartbeat
from florist.errors import one_line


class Progress:
    """A bar for the whole of a command, and one for the part that it is at.

    Where stderr is no terminal there are no bars: lines are printed, and one that says what the command is at whenever
    there was none for a while.

    Args:
        console: the console on stderr.
        description: what the whole is called until something else is known.
        quiet: whether to show nothing but `stopped`.
        clock: tells the time in seconds.
    """

    def __init__(
        self,
        console: Console,
        description: str,
        *,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._quiet = quiet
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._whole = self._bars.add_task(one_line(description), total=None)
        self._part: tuple[str, progress.TaskID] | None = None
        self.heartbeat = None if quiet or console.is_terminal else Heartbeat(self.doing, self._print, clock)
        self._open = ExitStack()

    def __enter__(self) -> "Progress":
        self._open.enter_context(self._bars)
        if self.heartbeat is not None:
            self._open.enter_context(self.heartbeat)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def count(self, done: int, total: int | None = None) -> None:
        """Show how much of the whole is done, and of how much if that is new."""
        self._bars.update(self._whole, completed=done, total=total)

    def whole(self, description: str) -> None:
        """Say what the whole consists of."""
        self._bars.update(self._whole, description=one_line(description))

    def part(self, description: str, done: int = 0, total: int | None = None) -> None:
        """Show the part that the command is at; without a total, nobody knows how long it takes."""
        if self._part is None or self._part[0] != description:
            self.end_part()
            self._part = description, self._bars.add_task(one_line(description), total=total)
        self._bars.update(self._part[1], completed=done)

    def end_part(self) -> None:
        """Take the bar of the part away."""
        if self._part is not None:
            self._bars.remove_task(self._part[1])
        self._part = None

    def line(self, text: str) -> None:
        """Print a line that stays."""
        if not self._quiet:
            self._print(text)
            if self.heartbeat is not None:
                self.heartbeat.said()

    def stopped(self, text: str) -> None:
        """Print how an end came about that the command did not want, to the quiet, too."""
        self._print(text)

    def doing(self) -> str:
        """What the command is at: the whole and the part, each with how much of it is done."""
        return "; ".join(
            task.description + (f", {task.completed:.0f} of {task.total:.0f}" if task.total else "")
            for task in self._bars.tasks
        )

    def _print(self, text: str) -> None:
        self._console.print(one_line(text), soft_wrap=True)
