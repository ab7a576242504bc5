"""The server: florist's own. The run names the configuration."""

from florist.config import DEMONSTRATION
from florist.flower import configured_server_app

app = configured_server_app(DEMONSTRATION)
