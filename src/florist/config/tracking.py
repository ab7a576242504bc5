"""The section ``[tracking]`` as the trackers of a run."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

from florist.config.sections import Config
from florist.tracking.tracker import TrackedRun
from florist.tracking.tracking import Tracking

_LOG = logging.getLogger("florist.tracking")


def tracking_of(config: Config, path: Path, *, cell: str = "", warn: Callable[[str], None] = _LOG.warning) -> Tracking:
    """The trackers of a run.

    Args:
        config: of the run.
        path: its directory.
        cell: the name of the run in a comparison, which follows the configured name.
        warn: is given one line for a tracker that fails.
    """
    section = config.tracking
    name = section.run_name or path.resolve().name
    if cell:
        name = f"{section.run_name}/{cell}" if section.run_name else cell
    about = TrackedRun(path, section.project, name, hyperparameters(config), mlflow_uri=section.mlflow_uri)
    return Tracking(about, section.to, clients=section.client_losses, warn=warn)


def hyperparameters(config: Config) -> dict[str, str | int | float | bool]:
    """All keys that are set, defaults included, as ``section.key``; what is no number, flag or text is JSON."""
    return {
        f"{section}.{key}": value if isinstance(value, str | int | float | bool) else json.dumps(value)
        for section, values in config.model_dump(mode="json", exclude_none=True, exclude={"tracking"}).items()
        for key, value in values.items()
    }
