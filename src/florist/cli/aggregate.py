"""``florist aggregate``: several adapters in, one out."""

from pathlib import Path
from typing import Annotated

import typer

from florist.cli.cut_options import (
    Budget,
    Device,
    Dtype,
    DtypeName,
    ExportAs,
    ExportName,
    MaxRank,
    PadRankTo,
    Rank,
    Scope,
    Tau,
    how_much,
    require_export,
)
from florist.cli.hub import Private, PushToHub, require_hub
from florist.cli.options import AsJson, Quiet, Verbose
from florist.cli.weights import parse_weights
from florist.config.method_keys import one_shot_methods, require_one_shot
from florist.config.methods import DEFAULT_METHOD


def aggregate_command(
    adapters: Annotated[list[str], typer.Argument(help="PEFT adapters: directories or hub ids in the local cache.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory to create for the result.")],
    method: Annotated[
        str,
        typer.Option(
            help=f"The aggregation method: {', '.join(one_shot_methods())}; see docs/methods.md.",
            autocompletion=one_shot_methods,
        ),
    ] = DEFAULT_METHOD,
    tau: Tau = None,
    scope: Scope = None,
    budget: Budget = None,
    rank: Rank = None,
    max_rank: MaxRank = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="One number an adapter, as 3,1,1: the examples behind it; fractions are shares. By default the "
            "numbers that florist.json beside the adapters says, else all weigh the same."
        ),
    ] = None,
    export: ExportAs = ExportName.PER_MODULE,
    pad_rank_to: PadRankTo = None,
    dtype: Dtype = DtypeName.FLOAT32,
    allow_base_mismatch: Annotated[
        bool,
        typer.Option("--allow-base-mismatch", help="The adapters name their base differently, and it is the same."),
    ] = False,
    average_full: Annotated[
        bool, typer.Option("--average-full", help="Average the parameters that were trained whole, as a head.")
    ] = False,
    device: Device = "cpu",
    push_to_hub: PushToHub = None,
    private: Private = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Combine LoRA adapters of unlike ranks into one, exactly but for what tau leaves out.

    Each method takes its own of the options that say how much to keep, and refuses the others.

    The result is a PEFT adapter; beside it, florist.json certifies what was kept and what the inputs were.
    """
    from florist.config.reading import validated  # noqa: PLC0415
    from florist.config.sections import AggregationSection  # noqa: PLC0415
    from florist.files.outputs import require_absent  # noqa: PLC0415

    require_hub(push_to_hub, private=private)
    require_absent(out)
    num_examples = parse_weights(weights) if weights is not None else None
    given = how_much(tau, scope, budget, rank, max_rank)
    require_one_shot(method, given)
    section = validated(AggregationSection, {"method": method, **given})
    require_export(export, budget, pad_rank_to)

    # torch takes seconds: it is not loaded before the arguments are known to be right.
    from florist.cli.aggregate_work import combine_adapters  # noqa: PLC0415
    from florist.cli.output import Output  # noqa: PLC0415

    combine_adapters(
        adapters,
        out,
        section,
        num_examples=num_examples,
        export=export.value,
        pad_rank_to=pad_rank_to,
        dtype=dtype.value,
        allow_base_mismatch=allow_base_mismatch,
        average_full=average_full,
        device=device,
        push_to_hub=push_to_hub,
        private=private,
        output=Output(as_json=as_json, quiet=quiet, verbose=verbose),
    )
