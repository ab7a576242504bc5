"""TOML from files and overrides, as far as a configuration may hold it: nothing in it takes long, or breaks later.

TOML itself allows what no key of florist takes and what breaks whoever reads it: tables nested without end, numbers of
thousands of digits. It is refused before anything else looks at it.
"""

import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from florist.config.sections.section import LARGEST_NUMBER
from florist.errors import ConfigurationError, MissingInputError, UnreadableFileError, printable
from florist.files.reading import read_bytes

LARGEST_FILE = 1 << 20
"""Bytes of a configuration file; one with every key and its explanation has some ten thousand."""
_DEEPEST = 20  # lists and tables in each other; no key takes more than three

# tomllib takes quadratic time for keys of many parts: half a minute for 32 kB.
_KEY_OF_MANY_PARTS = re.compile(r"""(?<!["'A-Za-z0-9_-])(?:["'A-Za-z0-9_-]++[ \t]*+\.[ \t]*+){50}""")


def read_tables(path: Path) -> dict[str, Any]:
    """Read the tables of a TOML file.

    Raises:
        MissingInputError: There is no such file.
        ConfigurationError: It is no regular file, larger than `LARGEST_FILE`, or not TOML in UTF-8.
    """
    # Unlike the methods of Path, these tell of a name that cannot be as of one that is not there.
    if not os.path.exists(path) or os.path.isdir(path):  # noqa: PTH110, PTH112
        raise MissingInputError(f"expected a configuration file at {path}, found none; check the path")
    try:
        # Some editors begin a file with a byte order mark.
        return parsed(read_bytes(path, LARGEST_FILE).decode("utf-8-sig").replace("\r\n", "\n"))
    except UnreadableFileError as error:
        raise ConfigurationError(f"{error}; give a configuration file") from error
    except ValueError as error:
        raise ConfigurationError(f"{path}: expected TOML, and reading failed: {error}") from error


def parsed(text: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        ValueError: It is not TOML, or has what no configuration may have.
    """
    if _KEY_OF_MANY_PARTS.search(text):
        raise ValueError("expected keys of one section and one name, got one of 50 parts or more")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(f"expected lists and tables to a depth of {_DEEPEST}, got deeper ones") from error


def wrong_values(tables: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What in the tables no configuration may hold: the key, as ``section.key``, and what is wrong with it."""
    for section, table in tables.items():
        keys = table.items() if isinstance(table, Mapping) else [("", table)]
        for key, value in keys:
            wrong = _wrong(value)
            if wrong is not None:
                yield f"{section}.{key}".rstrip("."), wrong


def encodable(text: str) -> bool:
    """Whether a text can be written to a file; one from a command line may hold bytes that were no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _wrong(value: Any) -> str | None:
    stack = [(value, 0)]
    while stack:
        each, depth = stack.pop()
        if depth > _DEEPEST:
            return f"expected lists and tables to a depth of {_DEEPEST}, got deeper ones"
        if isinstance(each, int) and abs(each) > LARGEST_NUMBER:
            return f"expected a whole number of at most 64 bits, got one of {int(math.log10(abs(each))) + 1} digits"
        if isinstance(each, str) and not encodable(each):
            return f"expected a text in UTF-8, got '{printable(each, 60)}'"
        if isinstance(each, Mapping):
            stack += [(part, depth + 1) for item in each.items() for part in item]
        elif isinstance(each, list | tuple):
            stack += [(part, depth + 1) for part in each]
    return None
