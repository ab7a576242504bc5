"""``florist extract``: an adapter from a model that was fine-tuned whole."""

from enum import Enum
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
from florist.config.methods import DEFAULT_METHOD


class OthersName(Enum):
    """The names of `one_shot.Others`, which needs torch."""

    REFUSE = "refuse"
    LEAVE_OUT = "leave-out"
    SAVE = "save"


def extract_command(
    base: Annotated[str, typer.Argument(help="The base model: a directory, or a hub id in the local cache.")],
    tuned: Annotated[str, typer.Argument(help="The model that was fine-tuned from it, as a directory or a hub id.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory to create for the adapter.")],
    tau: Tau = None,
    scope: Scope = None,
    budget: Budget = None,
    rank: Rank = None,
    max_rank: MaxRank = None,
    others: Annotated[
        OthersName,
        typer.Option(
            metavar="OTHERS",
            help="What becomes of changes that are no linear weights, as of norms: refuse, leave-out, or save, which "
            "keeps them whole.",
        ),
    ] = OthersName.REFUSE,
    export: ExportAs = ExportName.PER_MODULE,
    pad_rank_to: PadRankTo = None,
    dtype: Dtype = DtypeName.FLOAT32,
    device: Device = "cpu",
    push_to_hub: PushToHub = None,
    private: Private = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Make a LoRA adapter of what fine-tuning changed in a whole model.

    The difference of every linear weight is decomposed, one module at a time, and cut to the smallest rank that keeps
    the fraction tau of its energy. The result is a PEFT adapter of the base; beside it, florist.json certifies what was
    kept and what the models were.
    """
    from florist.config.reading import validated  # noqa: PLC0415
    from florist.config.sections import AggregationSection  # noqa: PLC0415
    from florist.files.outputs import require_absent  # noqa: PLC0415

    require_hub(push_to_hub, private=private)
    require_absent(out)
    given = how_much(tau, scope, budget, rank, max_rank)
    section = validated(AggregationSection, {"method": DEFAULT_METHOD, **given})
    require_export(export, budget, pad_rank_to)

    # torch takes seconds: it is not loaded before the arguments are known to be right.
    from florist.cli.extract_work import extract_adapter  # noqa: PLC0415
    from florist.cli.output import Output  # noqa: PLC0415

    extract_adapter(
        base,
        tuned,
        out,
        section,
        others=others.value,
        export=export.value,
        pad_rank_to=pad_rank_to,
        dtype=dtype.value,
        device=device,
        push_to_hub=push_to_hub,
        private=private,
        output=Output(as_json=as_json, quiet=quiet, verbose=verbose),
    )
