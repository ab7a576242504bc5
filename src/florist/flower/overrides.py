"""The configuration of a server or a node: a file, and what Flower's own configurations override in it.

A key is overridden, in rising order, by Flower's run config (``flwr run --run-config``) and by a node's own
(``flower-supernode --node-config``), under its name in the file: ``data.path``. An empty text overrides nothing, since
Flower lets only those keys be set that the app's ``pyproject.toml`` has. The key ``config`` names another file, which
must then be there on every node.
"""

import contextlib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomli_w
from flwr.app import Context
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from florist.config import Config, read_config

_ANOTHER_FILE = "config"
"""The key of the run config that names a file in the place of the app's own."""


def overridden_config(config_file: Path, context: Context) -> Config:
    """Read the file of an app and apply what the run and the node override.

    Raises:
        MissingInputError: there is no such file.
        ConfigurationError: one or more keys are unknown, wrong or contradict each other.
    """
    given = {
        name: value
        for config in (context.run_config, context.node_config)
        for name, value in config.items()
        if value != ""
    }
    overrides = [f"{name}={_toml(name, value)}" for name, value in given.items() if "." in name]
    return read_config(Path(str(given.get(_ANOTHER_FILE, config_file))), overrides, option="")


def _toml(name: str, value: object) -> str:
    """A value in TOML, of the type that its key has.

    Flower's configurations know texts, numbers and flags. A text may therefore stand for a list or a number, and a
    number for the name of a directory: the first reading that the key takes is meant.
    """
    field = _field(name)
    readings = list(_readings(value))
    meant = next((each for each in readings if field is not None and _accepts(field, each)), readings[0])
    # A text that was read as TOML is TOML.
    return value if isinstance(value, str) and meant is not value else tomli_w.dumps({"x": meant}).partition("=")[2]


def _readings(value: object) -> Iterator[object]:
    if isinstance(value, str):
        with contextlib.suppress(tomllib.TOMLDecodeError):
            yield tomllib.loads(f"value = {value}")["value"]
    yield value
    if type(value) is int:
        yield str(value)


def _field(name: str) -> FieldInfo | None:
    """The field of a key; None for a key that there is not, of which `read_config` tells."""
    section, _, key = name.partition(".")
    table: Any = Config.model_fields[section].annotation if section in Config.model_fields else None
    return table.model_fields.get(key) if table is not None else None


def _accepts(field: FieldInfo, value: object) -> bool:
    try:
        TypeAdapter(field.rebuild_annotation()).validate_python(value)
    except ValidationError:
        return False
    return True
