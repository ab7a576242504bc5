"""``florist watch``: follow a run in the terminal while it is played."""

from pathlib import Path
from typing import Annotated

import typer

from florist.cli.options import Quiet, Verbose


def watch_command(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="The directory of a run; it need not be there yet.", show_default=False),
    ],
    once: Annotated[bool, typer.Option("--once", help="Print how far the run is, and end.")] = False,
    interval: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks at the run.")] = 1.0,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the record of every round on stdout, one JSON document a line.")
    ] = False,
) -> None:
    """Follow a run: a table of its rounds and a curve of its metric, renewed as rounds end.

    It works for the runs of simulate and for those of a server over Flower, reads their files alone, and writes
    nothing. It ends with the run. Where stdout is no terminal, a line is printed for every round.
    """
    from florist.cli.output import Output  # noqa: PLC0415
    from florist.cli.watch_work import follow, show_once  # noqa: PLC0415

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    if once:
        show_once(run, output, as_json=as_json)
    else:
        follow(run, interval, output, as_json=as_json)
