"""Configurations: TOML files become frozen, validated sections, and sections become the objects of a simulation."""

from florist.config.reading import DEMONSTRATION, read_config, to_toml
from florist.config.sections import Config

__all__ = ["DEMONSTRATION", "Config", "read_config", "to_toml"]
