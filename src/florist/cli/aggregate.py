"""``florist aggregate``: several adapters in, one out."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from florist.cli.hub import Private, PushToHub, require_hub
from florist.cli.options import AsJson, Quiet, Verbose
from florist.cli.weights import parse_weights
from florist.config.method_keys import one_shot_methods, require_one_shot
from florist.config.methods import DEFAULT_METHOD, DEFAULT_TAU
from florist.errors import ConfigurationError


class ExportName(Enum):
    """The names of `checkpoint.Export`, which needs torch."""

    PER_MODULE = "per-module"
    UNIFORM = "uniform"


class ScopeName(Enum):
    """What tau refers to."""

    PER_MODULE = "per-module"
    GLOBAL = "global"


class DtypeName(Enum):
    """The names of torch dtypes."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


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
    tau: Annotated[
        float | None,
        typer.Option(help=f"The fraction of the energy to keep, in (0, 1]; {DEFAULT_TAU} if nothing else is set."),
    ] = None,
    scope: Annotated[
        ScopeName | None,
        typer.Option(
            metavar="SCOPE",  # the choices side by side would leave no room for the names of options
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
    weights: Annotated[
        str | None,
        typer.Option(
            help="One number an adapter, as 3,1,1: the examples behind it; fractions are shares. By default the "
            "numbers that florist.json beside the adapters says, else all weigh the same."
        ),
    ] = None,
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
    allow_base_mismatch: Annotated[
        bool,
        typer.Option("--allow-base-mismatch", help="The adapters name their base differently, and it is the same."),
    ] = False,
    average_full: Annotated[
        bool, typer.Option("--average-full", help="Average the parameters that were trained whole, as a head.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where to decompose: cpu, cuda, cuda:1.")] = "cpu",
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
    wanted = {
        "tau": tau,
        "scope": scope.value if scope is not None else None,
        "budget": budget,
        "rank": rank,
        "max_rank": max_rank,
    }
    given = {name: value for name, value in wanted.items() if value is not None}
    require_one_shot(method, given)
    section = validated(AggregationSection, {"method": method, **given})
    if budget is not None and export is ExportName.UNIFORM:
        raise ConfigurationError(
            "--budget counts a rank for every module: use --rank or --max-rank with --export uniform"
        )
    if pad_rank_to is not None and export is not ExportName.UNIFORM:
        raise ConfigurationError("--pad-rank-to is the rank of --export uniform: add that, or leave --pad-rank-to out")

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
