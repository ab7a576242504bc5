"""Configurations: TOML files become frozen, validated sections, and sections become the objects of a simulation.

The names below are loaded when they are first used: the command line reads the table of methods for its help, and the
sections, which take longer to load, only when a command runs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from florist.config.reading import DEMONSTRATION, read_config, to_toml
    from florist.config.sections import Config

__all__ = ["DEMONSTRATION", "Config", "read_config", "to_toml"]

_HOMES = {
    "Config": "florist.config.sections",
    "DEMONSTRATION": "florist.config.reading",
    "read_config": "florist.config.reading",
    "to_toml": "florist.config.reading",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'florist.config' has no attribute {name!r}")
