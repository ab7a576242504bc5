"""What florist may do with hostile input: take it, and be right, or refuse it in one short line."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from florist.errors import FloristError

LONGEST_MESSAGE = 1_000
"""Characters that a refusal may have."""
LONGEST = 10.0
"""Seconds that one case may take, on a busy machine."""


def require_readable(message: str) -> None:
    """Check that a message of a refusal is one line that a person can read and no terminal obeys."""
    assert message.strip(), "an empty refusal"
    assert len(message) <= LONGEST_MESSAGE, f"{len(message)} characters: {message[:200]}..."
    assert message.isprintable(), f"not printable: {message!r}"


@contextmanager
def refused_or_taken(case: object) -> Iterator[None]:
    """Whatever is tried inside is taken or refused with a readable `FloristError`, in bounded time.

    Args:
        case: says which one it was, for the report.
    """
    started = time.monotonic()
    try:
        yield
    except FloristError as error:
        try:
            require_readable(str(error))
        except AssertionError as unreadable:
            raise AssertionError(f"case {case}: {unreadable}") from error
    except AssertionError as wrong:
        raise AssertionError(f"case {case}: {wrong}") from wrong
    except BaseException as escaped:
        raise AssertionError(f"case {case}: {type(escaped).__name__}: {str(escaped)[:300]}") from escaped
    assert time.monotonic() - started < LONGEST, f"case {case} took too long"
