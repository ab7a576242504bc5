"""The command line. Commands import what they need when they run, so that ``--help`` does not wait for torch."""

import sys

import typer

from florist.cli.aggregate import aggregate
from florist.cli.inspect import inspect
from florist.cli.simulate import simulate
from florist.errors import FloristError

app = typer.Typer(
    name="florist",
    help="Federated LoRA fine-tuning of language models: many adapters in, one compact adapter out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(aggregate)
app.command()(inspect)
app.command()(simulate)


@app.callback()
def _several_commands() -> None:
    """Keep the name of the command required, however many there are."""


def main() -> None:
    """Run a command; what florist refuses becomes one line on stderr and exit status 2."""
    try:
        app()
    except (FloristError, OSError) as error:  # an OSError is the system's: a full disk, a file where a folder should be
        typer.echo(f"florist: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
