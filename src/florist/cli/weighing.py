"""``--weights 3,1,1``, as `aggregate` and `inspect` take it."""

from fractions import Fraction

from florist.errors import InvalidUpdateError


def parse_weights(text: str) -> list[Fraction]:
    """Numbers with commas between, as they are written: 0.1 is a tenth.

    Raises:
        InvalidUpdateError: something else.
    """
    try:
        return [Fraction(part.strip()) for part in text.split(",")]
    except (ValueError, ZeroDivisionError) as error:
        raise InvalidUpdateError(f"expected --weights as numbers with commas, as 3,1,1, got {text!r}") from error
