"""``--weights 3,1,1``, as several commands take it."""

import re
from fractions import Fraction

from florist.errors import InvalidUpdateError


def parse_weights(text: str) -> list[Fraction]:
    """Read numbers with commas between them exactly as they are written: 0.1 is a tenth.

    Raises:
        InvalidUpdateError: the text is something else.
    """
    # An exponent of three digits would be written out: in the worst case, a number of a billion digits.
    too_long = re.search(r"[eE][+-]?0*\d{3}", text)
    try:
        if not too_long:
            return [Fraction(part.strip()) for part in text.split(",")]
    except (ValueError, ZeroDivisionError):
        pass
    raise InvalidUpdateError(f"expected --weights as numbers with commas, as 3,1,1, got {text!r}")
