"""The server of masked rounds, which are kept in the directory that the run names."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from florist.aggregation import LinearRounds
from florist.federation.private_rounds import PrivateRounds
from florist.federation.protections import Masks
from florist.flower import FloristStrategy, Journal
from florist.ranks import EnergyThreshold

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Play the rounds."""
    strategy = FloristStrategy(
        LinearRounds(EnergyThreshold(1.0)),
        min_clients=int(str(context.run_config["clients"])),
        evaluate_on_clients=False,
        journal=Journal(Path(str(context.run_config["run"])), "linear"),
        private=PrivateRounds(Masks()),
    )
    strategy.start(grid, num_rounds=int(str(context.run_config["rounds"])))
