"""The server waits for the clients, plays the rounds, and keeps them in a run directory."""

from florist.config import DEMONSTRATION
from florist.flower import configured_server_app

app = configured_server_app(DEMONSTRATION)
