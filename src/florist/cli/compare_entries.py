"""``--methods`` and ``--variant``: the entries of a comparison, as `florist compare` takes them."""

import re
from collections.abc import Sequence

from florist.comparison.planning import Entry, method_entry
from florist.config.methods import METHODS
from florist.config.sections import Config
from florist.errors import ConfigurationError

# A value may hold commas itself, as a list does: a comma ends it only before the next key.
_NEXT_KEY = re.compile(r",(?=\s*\w+\.\w+\s*=)")


def entries_from(methods: str | None, variants: Sequence[str], base: Config) -> list[Entry]:
    """The entries that the user asked for.

    Args:
        methods: names with commas between them, or ``all``; None for all, or for that of `base` beside variants.
        variants: ``NAME: key=value, key=value``.
        base: the configuration that all entries start from.

    Raises:
        ConfigurationError: a method is unknown, or a variant is written otherwise.
    """
    if methods is None and variants:
        entries = [Entry(base.aggregation.method)]
    else:
        entries = [method_entry(name) for name in _method_names(methods or "all")]
    return entries + [_variant(text) for text in variants]


def _method_names(methods: str) -> list[str]:
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if names == ["all"]:
        return list(METHODS)
    if unknown := [name for name in names if name not in METHODS]:
        raise ConfigurationError(
            f"--methods {','.join(unknown)}: expected all, or some of {', '.join(METHODS)}, with commas between them"
        )
    return names


def _variant(text: str) -> Entry:
    name, colon, rest = text.partition(":")
    overrides = tuple(part.strip() for part in _NEXT_KEY.split(rest) if part.strip())
    if not (colon and name.strip() and overrides):
        raise ConfigurationError(f"expected --variant 'NAME: section.key=value, section.key=value', got {text!r}")
    return Entry(name.strip(), overrides)
