"""``florist inspect``: what is in adapters, and what may be combined with what."""

from typing import Annotated

import typer

from florist.cli.options import AsJson, Quiet, Verbose
from florist.cli.weights import parse_weights
from florist.errors import ConfigurationError


def inspect_command(
    adapters: Annotated[list[str], typer.Argument(help="PEFT adapters: directories or hub ids in the local cache.")],
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Show what every threshold would make of their weighted sum.")
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option(help="With --sweep, the examples behind the adapters, as `florist aggregate` takes them."),
    ] = None,
    allow_base_mismatch: Annotated[
        bool,
        typer.Option("--allow-base-mismatch", help="The adapters name their base differently, and it is the same."),
    ] = False,
    average_full: Annotated[
        bool, typer.Option("--average-full", help="Parameters that were trained whole, as a head, may be averaged.")
    ] = False,
    every_module: Annotated[
        bool, typer.Option("--modules", help="Print a line for every module, not for every kind.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Show spectra, ranks and norms of adapters, and whether they may be aggregated.

    Adapters that may not be combined are a finding, not an error: the reasons are listed and the exit status is 0.
    If one of them cannot be read, the others are shown, and the exit status is 2.
    """
    if weights is not None and not sweep:
        raise ConfigurationError("--weights goes with --sweep: add --sweep, or leave --weights out")
    num_examples = parse_weights(weights) if weights is not None else None

    # torch takes seconds: it is not loaded before the arguments are known to be right.
    from florist.cli.inspect_work import look_at_adapters  # noqa: PLC0415
    from florist.cli.output import Output  # noqa: PLC0415

    look_at_adapters(
        adapters,
        sweep=sweep,
        num_examples=num_examples,
        allow_base_mismatch=allow_base_mismatch,
        average_full=average_full,
        every_module=every_module or verbose,
        output=Output(as_json=as_json, quiet=quiet, verbose=verbose),
    )
