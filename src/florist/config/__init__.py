"""TOML -> frozen, validated sections -> the objects of a simulation."""

from florist.config.reading import read_config, to_toml
from florist.config.sections import Config

__all__ = ["Config", "read_config", "to_toml"]
