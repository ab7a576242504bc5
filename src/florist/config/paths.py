"""The paths in a configuration: to what each of them is relative, and which of them no file can have."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from florist.config.sections import FROM_CODE
from florist.config.toml_text import encodable
from florist.errors import printable

_READ = (
    ("data", "path"),
    ("model", "name_or_path"),
    ("evaluation", "multiple_choice"),
    ("evaluation", "harness_task_path"),
    ("tracking", "mlflow_uri"),
)
"""The keys of what is read; `data.train`, `data.test` and `data.validation` are names in the directory `data.path`, and
`flower.run` is written, as ``-o`` is: relative to the current directory."""
_FILES = (
    *_READ[:-1],
    ("data", "train"),
    ("data", "test"),
    ("data", "validation"),
    ("flower", "run"),
)
"""The keys that a file system has to take."""
LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Bytes of the name of one file or folder, and of a whole path, on the file systems in use."""


def anchor(tables: dict[str, Any], folder: Path) -> None:
    """Make the relative paths in tables absolute; what no path can be stays as it is.

    Args:
        tables: the sections, which are changed.
        folder: to what the paths are relative.
    """
    for section, key in _READ:
        table = tables.get(section)
        value = table.get(key) if isinstance(table, dict) else None
        if not isinstance(table, dict) or not isinstance(value, str) or value == FROM_CODE:
            continue
        if "\0" in value or not encodable(value):
            continue
        # A model may be a hub id and a store a server, which look like relative paths; they are where something exists.
        may_be_a_name = section in {"model", "tracking"}
        # Unlike Path.exists and Path.resolve, these raise nothing for a name that is too long and a loop of links.
        if not may_be_a_name or value.startswith(".") or os.path.exists(folder / value):  # noqa: PTH110
            table[key] = os.path.realpath(folder / value)


def in_folder(tables: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the tables of a file with absolute paths.

    Args:
        tables: Its sections.
        folder: Where the file is, to which its paths are relative.
    """
    absolute = {section: dict(table) if isinstance(table, dict) else table for section, table in tables.items()}
    anchor(absolute, folder)
    return absolute


def wrong_paths(tables: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The keys, as ``section.key``, whose path no file can have, and why."""
    for section, key in _FILES:
        table = tables.get(section)
        value = table.get(key) if isinstance(table, Mapping) else None
        if not isinstance(value, str):
            continue
        if "\0" in value:
            yield f"{section}.{key}", f"expected a path without NUL characters, got '{printable(value, 60)}'"
            continue
        longest = max(len(part.encode()) for part in re.split(r"[/\\]", value))
        if longest > LONGEST_NAME:
            yield f"{section}.{key}", f"expected names of at most {LONGEST_NAME} bytes in a path, got one of {longest}"
        elif len(value.encode()) > LONGEST_PATH:
            yield f"{section}.{key}", f"expected a path of at most {LONGEST_PATH} bytes, got {len(value.encode())}"
