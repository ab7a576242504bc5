"""The command line. Commands import what they need when they run, so that ``--help`` does not wait for torch."""

import sys
from typing import Annotated, Any

import click
import typer
from typer.core import TyperGroup

import florist
from florist.cli.aggregate import aggregate_command
from florist.cli.compare import compare_command
from florist.cli.evaluate import evaluate_command
from florist.cli.examples import examples_of
from florist.cli.export import export_command
from florist.cli.extract import extract_command
from florist.cli.init import init_command
from florist.cli.inspect import inspect_command
from florist.cli.plan import plan_command
from florist.cli.report import report_command
from florist.cli.simulate import simulate_command
from florist.cli.stopping import exit_status, stopped_by_signals
from florist.cli.tune import tune_command
from florist.cli.watch import watch_command
from florist.errors import FloristError, printable


class _InterruptedError(Exception):
    """Stands for Ctrl-C or SIGTERM on its way through click, which would end without a word.

    Args:
        status: the exit status.
    """

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _Commands(TyperGroup):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise _InterruptedError(exit_status(stop)) from None


app = typer.Typer(
    name="florist",
    cls=_Commands,
    help="Federated LoRA fine-tuning of language models: many adapters in, one compact adapter out.",
    epilog=examples_of(""),
    invoke_without_command=True,
    pretty_exceptions_enable=False,
)
for _name, _command in {
    "aggregate": aggregate_command,
    "compare": compare_command,
    "evaluate": evaluate_command,
    "export": export_command,
    "extract": extract_command,
    "init": init_command,
    "inspect": inspect_command,
    "plan": plan_command,
    "report": report_command,
    "simulate": simulate_command,
    "tune": tune_command,
    "watch": watch_command,
}.items():
    app.command(_name, epilog=examples_of(_name))(_command)


@app.callback()
def _without_command(
    context: click.Context,
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version of florist.")] = False,
) -> None:
    """Print the version if that is asked for, or the help if no command is named."""
    if version:
        typer.echo(f"florist {florist.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def main() -> None:
    """Run a command.

    What it refuses becomes one line on stderr and exit status 2; Ctrl-C becomes one line and 130, SIGTERM one line and
    143.
    """
    try:
        with stopped_by_signals():
            status = app(standalone_mode=False)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "florist"
        _stop(f"{error.format_message()} See {command} --help.", status=2)
    except click.ClickException as error:
        _stop(error.format_message(), status=2)
    except _InterruptedError as stop:
        _stop("interrupted", status=stop.status)
    except (FloristError, OSError) as error:  # an OSError is the system's: a full disk, a file where a folder should be
        _stop(str(error), status=2)
    else:
        sys.exit(status)


def _stop(message: str, *, status: int) -> None:
    typer.echo(f"florist: {printable(' '.join(message.split()))}", err=True)
    sys.exit(status)
