"""What reaches the terminal: no text of a file or of the network writes control characters there, or lines of its own.

A name of a file, a label of somebody's data or the base model of a stranger's adapter may hold escape sequences, which
recolour or move what a terminal shows, and line breaks, by which a line of florist is forged. Everything is therefore
escaped where it is printed. What florist itself breaks, the heads of columns, it hands over as `rich.text.Text`.
"""

from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

from florist.errors import one_line


class Terminal(Console):
    """A console on which a text is one line of printable characters: neither markup nor an emoji, but what it says.

    Args:
        stderr: whether it writes to stderr, and not to stdout.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        # A name in brackets or between colons is a name.
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print texts, each of which is made one line, and what rich draws, as it is."""
        super().print(*(one_line(each) if isinstance(each, str) else each for each in objects), **options)


class Cells(Table):
    """A table whose heads and cells, where they are texts, are made one line each before they are measured."""

    def add_column(self, header: RenderableType = "", *arguments: Any, **options: Any) -> None:
        """Add a column, as `rich.table.Table` does."""
        super().add_column(_shown(header), *arguments, **options)

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row, as `rich.table.Table` does."""
        super().add_row(*(_shown(cell) if cell is not None else None for cell in cells), **options)


def _shown(content: RenderableType) -> RenderableType:
    return one_line(content) if isinstance(content, str) else content
