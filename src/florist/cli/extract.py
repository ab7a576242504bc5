"""``florist extract``: an adapter from a model that was fine-tuned whole."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from florist.cli.aggregate import DtypeName, ExportName, ScopeName
from florist.cli.hub import Private, PushToHub, require_hub
from florist.cli.options import AsJson, Quiet, Verbose
from florist.config.methods import DEFAULT_METHOD, DEFAULT_TAU
from florist.errors import ConfigurationError


class OthersName(Enum):
    """The names of `one_shot.Others`, which needs torch."""

    REFUSE = "refuse"
    LEAVE_OUT = "leave-out"
    SAVE = "save"


def extract_command(
    base: Annotated[str, typer.Argument(help="The base model: a directory, or a hub id in the local cache.")],
    tuned: Annotated[str, typer.Argument(help="The model that was fine-tuned from it, as a directory or a hub id.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory to create for the adapter.")],
    tau: Annotated[
        float | None,
        typer.Option(help=f"The fraction of the energy to keep, in (0, 1]; {DEFAULT_TAU} if nothing else is set."),
    ] = None,
    scope: Annotated[
        ScopeName | None,
        typer.Option(
            metavar="SCOPE",  # as in `aggregate`
            help="Whether tau holds in each module (per-module), as by default, or over all of them (global).",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="The largest file of weights that may be written, as 20MB; it keeps the most energy that fits."
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="The same rank for every module.")] = None,
    max_rank: Annotated[
        int | None, typer.Option(help="The largest rank that a module may keep, whatever else says how much.")
    ] = None,
    others: Annotated[
        OthersName,
        typer.Option(
            metavar="OTHERS",
            help="What becomes of changes that are no linear weights, as of norms: refuse, leave-out, or save, which "
            "keeps them whole.",
        ),
    ] = OthersName.REFUSE,
    export: Annotated[
        ExportName,
        typer.Option(
            metavar="EXPORT",
            help="A rank for every module (per-module), or one for all (uniform), for servers that know no other.",
        ),
    ] = ExportName.PER_MODULE,
    pad_rank_to: Annotated[
        int | None,
        typer.Option(help="With --export uniform: the rank of all modules, if it is to be more than the largest."),
    ] = None,
    dtype: Annotated[
        DtypeName, typer.Option(metavar="DTYPE", help="How tensors are stored: float32, bfloat16 or float16.")
    ] = DtypeName.FLOAT32,
    device: Annotated[str, typer.Option(help="Where to decompose: cpu, cuda, cuda:1.")] = "cpu",
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
    wanted = {
        "tau": tau,
        "scope": scope.value if scope is not None else None,
        "budget": budget,
        "rank": rank,
        "max_rank": max_rank,
    }
    given = {name: value for name, value in wanted.items() if value is not None}
    section = validated(AggregationSection, {"method": DEFAULT_METHOD, **given})
    if budget is not None and export is ExportName.UNIFORM:
        raise ConfigurationError(
            "--budget counts a rank for every module: use --rank or --max-rank with --export uniform"
        )
    if pad_rank_to is not None and export is not ExportName.UNIFORM:
        raise ConfigurationError("--pad-rank-to is the rank of --export uniform: add that, or leave --pad-rank-to out")

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
