"""florist's rounds over Flower: the strategy for a server, the app for a client."""

from florist.flower.agreement import Agreement
from florist.flower.client import client_app
from florist.flower.configured import configured_client_app, configured_server_app
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
