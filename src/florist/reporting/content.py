"""What a page consists of: sections of figures, tables, texts and code."""

from collections.abc import Sequence
from dataclasses import dataclass

from florist.reporting.figures import Figure


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph.

    Attributes:
        text: its words.
    """

    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        caption: what it shows.
        heads: the titles of the columns. The first column names the line, the others are printed to the right.
        lines: the cells.
    """

    caption: str
    heads: Sequence[str]
    lines: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Code:
    """A piece of code or a file.

    Attributes:
        caption: what it is.
        text: the code.
        folded: whether the reader unfolds it.
    """

    caption: str
    text: str
    folded: bool = False


Block = Text | Table | Code | Figure


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """A section of a page.

    Attributes:
        name: its anchor.
        title: its title.
        blocks: what is in it; a section without blocks is left out of the page.
    """

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """A page.

    Attributes:
        title: what it is about.
        summary: what came of it, in a sentence or two.
        sections: its sections, top to bottom, those without data left out.
        notes: what whoever has the page written should be told beside.
    """

    title: str
    summary: str
    sections: Sequence[Section]
    notes: Sequence[str] = ()

    @property
    def figures(self) -> list[Figure]:
        """All figures, in their order."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Figure)]


def filled(sections: Sequence[Section]) -> list[Section]:
    """The sections that have something in them."""
    return [section for section in sections if section.blocks]
