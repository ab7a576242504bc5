"""``florist export``: the global adapter of a round of a run."""

from pathlib import Path
from typing import Annotated

import typer

from florist.cli.hub import Private, PushToHub, require_hub
from florist.cli.options import AsJson, Quiet, Verbose
from florist.errors import ConfigurationError


def export_command(
    run: Annotated[Path, typer.Argument(help="The directory of a run, of this machine or of a server over Flower.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory to create for the adapter.")],
    round_number: Annotated[
        int | None, typer.Option("--round", help="The round; by default the one that the final adapter is of.")
    ] = None,
    best: Annotated[
        bool,
        typer.Option("--best", help="The round with the best first metric of the validation examples."),
    ] = False,
    flush: Annotated[
        bool | None,
        typer.Option(
            help="Whether the adapter has what the server held back after the round; by default as the run says, where "
            "that was kept.",
            show_default=False,
        ),
    ] = None,
    push_to_hub: PushToHub = None,
    private: Private = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Write the global adapter that a run had after a round, as PEFT reads it, with a model card and a certificate.

    The last round can always be exported, and the best one if federation.best_round is set. The others can if the run
    has kept them: federation.keep_rounds = "sent" or "all".
    """
    from florist.files.outputs import require_absent  # noqa: PLC0415

    if best and round_number is not None:
        raise ConfigurationError("--round and --best contradict each other: each names a round; give one")
    require_hub(push_to_hub, private=private)
    require_absent(out)

    # torch takes seconds: it is not loaded before the arguments are known to be right.
    from florist.cli.export_work import export_round  # noqa: PLC0415
    from florist.cli.output import Output  # noqa: PLC0415

    export_round(
        run,
        out,
        round_number,
        best=best,
        flush=flush,
        push_to_hub=push_to_hub,
        private=private,
        output=Output(as_json=as_json, quiet=quiet, verbose=verbose),
    )
