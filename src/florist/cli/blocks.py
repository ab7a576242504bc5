"""Tables that are wider than the terminal: their columns become blocks below each other, and nothing is cut.

rich narrows the columns of such a table until it fits, and ends what it cuts with an ellipsis: ``5.8e-…`` is no number.
"""

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text

_LEAST = 12
"""The first column is folded where it would leave no room for the others, but not below this width."""


def in_blocks(table: Table, console: Console) -> list[Table]:
    """Split a table into blocks that fit a console, each with the first column.

    The heads of columns are broken between words, so that fewer blocks are needed. What the first column says is folded
    where nothing else helps: all of it is still to be read.

    Args:
        table: one that `output.plain_table` made.
        console: where it is to be printed.

    Returns:
        The table itself if it fits.
    """
    if fits(table, console):
        return [table]
    first, others = (
        (table.columns[0], _width(table.columns[0])),
        [(column, _width(column)) for column in table.columns[1:]],
    )
    widest = max(others, key=lambda one: one[1], default=first)
    excess = _room(_block(table, [first, widest]), console) - console.width
    if excess > 0:
        first = (first[0], min(first[1], max(first[1] - excess, _LEAST)))
    groups: list[list[tuple[Column, int]]] = []
    for one in others:
        if groups and fits(_block(table, [first, *groups[-1], one]), console):
            groups[-1].append(one)
        else:
            groups.append([one])
    return [_block(table, [first, *group]) for group in groups or [[]]]


def fits(table: Table, console: Console) -> bool:
    """Whether a console has room for a table with every head and cell on a line of its own."""
    return _room(table, console) <= console.width


def _room(table: Table, console: Console) -> int:
    # Within the width of the console every table fits: it is measured as if there were room enough.
    return console.measure(table, options=console.options.update(max_width=10_000)).maximum


def _block(table: Table, columns: list[tuple[Column, int]]) -> Table:
    block = Table(box=table.box, pad_edge=table.pad_edge, padding=table.padding)
    for column, width in columns:
        block.add_column(column.header, justify=column.justify, overflow="fold", width=width)
    for cells in zip(*(column.cells for column, _ in columns), strict=True):
        block.add_row(*cells)
    return block


def _width(column: Column) -> int:
    """The width at which every cell has a line of its own, and no word of the head is broken.

    A column with a largest width, whose head may be any word of somebody's data, breaks its head there.
    """
    head = max((cell_len(word) for word in _text(column.header).split()), default=0)
    cells = [cell_len(line) for cell in column.cells for line in _text(cell).splitlines()]
    return max(1, *cells, min(head, column.max_width or head))


def _text(content: RenderableType) -> str:
    return content.plain if isinstance(content, Text) else str(content)
