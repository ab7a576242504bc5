"""How numbers are written for people."""

import math

MISSING = "\N{EN DASH}"
"""What stands in the place of a number that there is not."""


def number(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits; a dash for one that is missing or not finite."""
    return f"{value:,.{digits}g}" if value is not None and math.isfinite(value) else MISSING


def nbytes(value: float | None) -> str:
    """Bytes in decimal units."""
    if value is None:
        return MISSING
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if value >= size:
            return f"{value / size:.2f}\N{NO-BREAK SPACE}{unit}"
    return f"{value:.0f}\N{NO-BREAK SPACE}B"
