"""Where a command prints, how much, and what its tables look like: the same for every command."""

from collections.abc import Collection
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from florist.cli.blocks import fits, in_blocks
from florist.cli.progress import Progress
from florist.cli.terminal import Cells, Terminal
from florist.errors import ConfigurationError
from florist.files import strict_json


class Output:
    """The two streams of a command.

    Results go to stdout: tables, and lines about them. Progress and notes go to stderr. With ``--json``, stdout holds
    one JSON document and nothing else: tables are left out, since the document says what they say, and the lines about
    the results go to stderr.

    Every line, and every cell of a table, is made one line of printable characters, whatever it quotes (`terminal`).

    With ``--quiet``, nothing goes to stderr but errors. With ``--verbose``, stderr also says what is decided and why.

    Args:
        as_json: whether the command was given ``--json``.
        quiet: whether it was given ``--quiet``.
        verbose: whether it was given ``--verbose``.

    Attributes:
        status: the console on stderr.
        verbose: whether it was given ``--verbose``.

    Raises:
        ConfigurationError: it was given both.
    """

    def __init__(self, *, as_json: bool, quiet: bool = False, verbose: bool = False) -> None:
        if quiet and verbose:
            raise ConfigurationError("--quiet and --verbose contradict each other: give one, or neither")
        self._as_json = as_json
        self._quiet = quiet
        self.verbose = verbose
        self.status = Terminal(stderr=True)
        self._results = Terminal()

    def table(self, table: Table, *, heading: str | None = None, gap: bool = False) -> None:
        """Print a table of results, after its heading if it has one; print neither with ``--json``.

        Args:
            table: one that `plain_table` made.
            heading: the line above it.
            gap: whether a line is left out above the heading.
        """
        if self._as_json:
            return
        if gap:
            self.lines("")
        if heading is not None:
            self.lines(heading)
        _print_table(self._results, table)

    def status_table(self, table: Table) -> None:
        """Print a table on stderr that is no result, but not with ``--json`` or ``--quiet``."""
        if not self._as_json and not self._quiet:
            _print_table(self.status, table)

    def lines(self, *lines: str) -> None:
        """Print lines about the results; with ``--json`` on stderr, unless that is to be quiet."""
        if self._as_json and self._quiet:
            return
        for line in lines:
            (self.status if self._as_json else self._results).print(line, soft_wrap=True)

    def failures(self, *lines: str) -> None:
        """Print on stderr, also to the quiet, what an error that follows refers to."""
        for line in lines:
            self.status.print(line, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print something that the user should know and that is no result."""
        if not self._quiet:
            self.status.print(f"note: {text}", soft_wrap=True)

    def detail(self, *lines: str) -> None:
        """Print on stderr what was decided and why, with ``--verbose``."""
        for line in lines if self.verbose else ():
            self.status.print(line, soft_wrap=True)

    def document(self, document: Any) -> None:
        """Print the JSON document, if the command was given ``--json``."""
        if self._as_json:
            print(strict_json.encode(document))  # noqa: T201  # rich would break long lines

    def progress(self, description: str) -> Progress:
        """Show on stderr how the command goes; see `Progress`."""
        return Progress(self.status, description, quiet=self._quiet)

    def fits(self, table: Table) -> bool:
        """Whether a table can be printed in full width."""
        return fits(table, self._results)


def plain_table(*heads: str | Text, words: Collection[int] = (0,)) -> Table:
    """An empty table in the one style of florist: a line under the heads, and numbers to the right.

    Args:
        heads: the titles of the columns; one with line breaks is a `Text`.
        words: the numbers of the columns that hold words, which are printed to the left.
    """
    table = Cells(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption_justify="left")
    for head in heads:
        table.add_column(head)
    for number, column in enumerate(table.columns):
        column.justify = "left" if number in words else "right"
    return table


def _print_table(console: Terminal, table: Table) -> None:
    caption, table.caption = table.caption, None  # a block may be too narrow for it
    for block in in_blocks(table, console):
        console.print(block)
    if caption is not None:
        console.print(caption, style="table.caption")
