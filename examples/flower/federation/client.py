"""A client trains on the examples of its node, and sends an adapter."""

from florist.config import DEMONSTRATION
from florist.flower import configured_client_app

app = configured_client_app(DEMONSTRATION)
