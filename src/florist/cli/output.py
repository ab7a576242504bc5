"""Where a command prints, and what its tables look like: the same for every command."""

from collections.abc import Collection
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from florist.files import strict_json


class Output:
    """The two streams of a command.

    Results go to stdout: tables, and lines about them. Progress and notes go to stderr. With ``--json``, stdout holds
    one JSON document and nothing else: tables are left out, since the document says what they say, and the lines about
    the results go to stderr.

    Args:
        as_json: whether the command was given ``--json``.

    Attributes:
        status: the console on stderr.
    """

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self.status = _console(stderr=True)
        self._results = self.status if as_json else _console(stderr=False)

    def table(self, table: Table, *, heading: str | None = None) -> None:
        """Print a table of results, after its heading if it has one; print neither with ``--json``."""
        if self._as_json:
            return
        if heading is not None:
            self.lines(heading)
        self._results.print(table)

    def status_table(self, table: Table) -> None:
        """Print a table on stderr that is no result, but not with ``--json``."""
        if not self._as_json:
            self.status.print(table)

    def lines(self, *lines: str) -> None:
        """Print lines about the results."""
        for line in lines:
            self._results.print(line, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print something that the user should know and that is no result."""
        self.status.print(f"note: {text}", soft_wrap=True)

    def document(self, document: Any) -> None:
        """Print the JSON document, if the command was given ``--json``."""
        if self._as_json:
            print(strict_json.encode(document))  # noqa: T201  # rich would break long lines

    def fits(self, table: Table) -> bool:
        """Whether a table can be printed in full width."""
        # Within the width of the console every table fits: it is measured as if there were room enough.
        roomy = self._results.options.update(max_width=10_000)
        return self._results.measure(table, options=roomy).maximum <= self._results.width


def plain_table(*heads: str, words: Collection[int] = (0,)) -> Table:
    """An empty table in the one style of florist: a line under the heads, and numbers to the right.

    Args:
        heads: the titles of the columns.
        words: the numbers of the columns that hold words, which are printed to the left.
    """
    table = Table(*heads, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption_justify="left")
    for number, column in enumerate(table.columns):
        column.justify = "left" if number in words else "right"
    return table


def _console(*, stderr: bool) -> Console:
    # A name in brackets or between colons is a name: neither markup nor an emoji.
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)
