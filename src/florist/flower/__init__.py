"""florist's rounds over Flower: the strategy of a server, and the app of a client.

The names below are loaded when they are first used, so that a server does not load transformers and PEFT, which its
clients train with.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from florist.errors import MissingDependencyError, how_to_install

if TYPE_CHECKING:
    from florist.flower.agreement import Agreement
    from florist.flower.client import client_app
    from florist.flower.configured_client import configured_client_app
    from florist.flower.configured_server import configured_server_app
    from florist.flower.journal import Journal
    from florist.flower.model_participant import ModelParticipant
    from florist.flower.participant import Participant, TrainedLocally
    from florist.flower.strategy import FloristStrategy

__all__ = [
    "Agreement",
    "FloristStrategy",
    "Journal",
    "ModelParticipant",
    "Participant",
    "TrainedLocally",
    "client_app",
    "configured_client_app",
    "configured_server_app",
]

_HOMES = {
    "Agreement": "agreement",
    "FloristStrategy": "strategy",
    "Journal": "journal",
    "ModelParticipant": "model_participant",
    "Participant": "participant",
    "TrainedLocally": "participant",
    "client_app": "client",
    "configured_client_app": "configured_client",
    "configured_server_app": "configured_server",
}
_EXTRAS = {"flwr": "flower", "transformers": "flower,train", "peft": "flower,train", "accelerate": "flower,train"}
"""The parts of florist that bring along what a module may lack."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'florist.flower' has no attribute {name!r}")
    try:
        return getattr(import_module(f"florist.flower.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        raise MissingDependencyError(
            f"florist.flower.{name} needs {error.name}, which is not installed: {how_to_install(_EXTRAS[error.name])}"
        ) from error


def __dir__() -> list[str]:
    return [*globals(), *__all__]
