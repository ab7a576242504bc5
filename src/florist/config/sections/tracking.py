"""The experiment trackers of a configuration."""

from typing import Annotated

from pydantic import BeforeValidator

from florist.config.sections.section import Section, one_of
from florist.tracking.trackers import TRACKERS


def _one_or_more(given: object) -> object:
    """One name alone is a list of one, so that ``--set tracking.to=tensorboard`` needs no brackets."""
    return (given,) if isinstance(given, str) else given


class TrackingSection(Section):
    """``[tracking]``: which experiment trackers are told of the rounds."""

    to: Annotated[tuple[Annotated[str, one_of(TRACKERS)], ...], BeforeValidator(_one_or_more)] = ()
    """The trackers, each of which is an extra of florist: ``tensorboard``, ``mlflow``, ``trackio``, ``wandb``."""
    project: str = "florist"
    """What trackers call a group of runs; the experiment of MLflow."""
    run_name: str | None = None
    """What the run is called there; by default as its directory is."""
    client_losses: bool = True
    """Whether trackers are told the loss of every client, a curve each."""
    mlflow_uri: str | None = None
    """MLflow's server, or a folder; by default ``MLFLOW_TRACKING_URI`` or the folder ``mlruns``."""
