"""The configuration of a server or a node: a file, and what Flower's own configurations override in it.

A key is overridden, in rising order, by Flower's run config (``flwr run --run-config``) and by a node's own
(``flower-supernode --node-config``), under its name in the file: ``data.path``. An empty text overrides nothing, since
Flower lets only those keys be set that the app's ``pyproject.toml`` has. The key ``config`` names another file, which
must then be there on every node.
"""

from pathlib import Path

from flwr.app import Context

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
    overrides = [f"{name}={_toml(value)}" for name, value in given.items() if "." in name]
    return read_config(Path(str(given.get(_ANOTHER_FILE, config_file))), overrides)


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
