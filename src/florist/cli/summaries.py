"""Summaries of many values in few words, for tables and notes."""

import statistics
from collections.abc import Collection, Mapping
from pathlib import Path

from florist.errors import some_of


def span(values: Collection[int]) -> str:
    """Least, median and most, as ``2/5/9``; one number if all are equal."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}/{statistics.median_low(values)}/{high}"


def absences(absent: Mapping[str, Collection[Path]]) -> list[str]:
    """Lines that name absent modules: one for all the modules that the same adapters lack."""
    together: dict[tuple[str, ...], list[str]] = {}
    for module, paths in absent.items():
        together.setdefault(tuple(map(str, paths)), []).append(module)
    return [
        f"absent from {', '.join(paths)}, where it counts as a zero update: {some_of(modules)}"
        for paths, modules in together.items()
    ]


def number(value: float) -> str:
    """A number with three decimals, or with three digits if it is large."""
    return f"{value:.3f}" if abs(value) < 1e4 else f"{value:.3g}"
