"""The one table of trackers. None of their libraries is loaded before a run is tracked."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from florist.errors import MissingDependencyError
from florist.tracking.mlflow import Mlflow
from florist.tracking.tensorboard import TensorBoard
from florist.tracking.tracker import Place, TrackedRun, Tracker
from florist.tracking.trackio import Trackio
from florist.tracking.wandb import WeightsAndBiases


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of tracker.

    Attributes:
        title: what it calls itself.
        library: the package that it needs, which is the name of the extra, too.
        open: begins a run there, or goes on with one where its place is known.
    """

    title: str
    library: str
    open: Callable[[TrackedRun, Place], Tracker]


TRACKERS: Mapping[str, Kind] = {
    "tensorboard": Kind("TensorBoard", "tensorboard", TensorBoard.open),
    "mlflow": Kind("MLflow", "mlflow", Mlflow.open),
    "trackio": Kind("trackio", "trackio", Trackio.open),
    "wandb": Kind("Weights & Biases", "wandb", WeightsAndBiases.open),
}


def require_installed(names: Collection[str]) -> None:
    """Check that every tracker of a configuration can be used, before hours of training.

    Raises:
        MissingDependencyError: one of them is not installed.
    """
    for name in names:
        kind = TRACKERS[name]
        if find_spec(kind.library) is None:
            raise MissingDependencyError(
                f"tracking.to has {name!r}: {kind.title} is not installed; in a clone of florist run: "
                f"pip install -e '.[{kind.library}]'; or take it out of tracking.to"
            )
