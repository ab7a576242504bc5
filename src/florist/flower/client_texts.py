"""What a client may call itself and other things, and how the rest of what it says is shown.

Texts of a client reach the server's log and the round records. Whatever a client sends, it must not begin a line there
that looks like one of the server's own.
"""

from typing import Annotated

from pydantic import AfterValidator, Field

LONGEST = 400
"""The largest number of characters of a name, and of a text that is shown."""


def _printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("expected printable characters")
    return name


Name = Annotated[str, Field(min_length=1, max_length=LONGEST), AfterValidator(_printable)]
"""A name that a client gives: a message with any other is refused."""


def one_line(text: str) -> str:
    """Show any text on one line.

    White space becomes single spaces, characters that are not printable are escaped, and a long text is cut.
    """
    # What is cut off below must not be worked on first: a client may send any number of characters.
    words = " ".join(text[: 2 * LONGEST].split())
    shown = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in words)
    return shown if len(shown) <= LONGEST and len(text) <= 2 * LONGEST else f"{shown[: LONGEST - 3]}..."


def last_line(reason: str | None) -> str:
    """Show what an exception on the other side said: the last line of its traceback."""
    lines = [line for line in (reason or "").splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else "no reason given"
