"""The options of commands that write a cut adapter: how much it keeps, and how it is stored."""

from enum import Enum
from typing import Annotated

import typer

from florist.config.methods import DEFAULT_TAU
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


Tau = Annotated[
    float | None,
    typer.Option(help=f"The fraction of the energy to keep, in (0, 1]; {DEFAULT_TAU} if nothing else is set."),
]
Scope = Annotated[
    ScopeName | None,
    typer.Option(
        metavar="SCOPE",  # the choices side by side would leave no room for the names of options
        help="Whether tau holds in each module (per-module), as by default, or over all of them (global).",
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(help="The largest file of weights that may be written, as 20MB; it keeps the most energy that fits."),
]
Rank = Annotated[int | None, typer.Option(help="The same rank for every module.")]
MaxRank = Annotated[
    int | None, typer.Option(help="The largest rank that a module may keep, whatever else says how much.")
]
ExportAs = Annotated[
    ExportName,
    typer.Option(
        metavar="EXPORT",
        help="A rank for every module (per-module), or one for all (uniform), for servers that know no other.",
    ),
]
PadRankTo = Annotated[
    int | None,
    typer.Option(help="With --export uniform: the rank of all modules, if it is to be more than the largest."),
]
Dtype = Annotated[
    DtypeName, typer.Option(metavar="DTYPE", help="How tensors are stored: float32, bfloat16 or float16.")
]
Device = Annotated[str, typer.Option(help="Where to decompose: cpu, cuda, cuda:1.")]


def how_much(
    tau: float | None, scope: ScopeName | None, budget: str | None, rank: int | None, max_rank: int | None
) -> dict[str, float | int | str]:
    """The keys of ``[aggregation]`` that were given."""
    wanted = {
        "tau": tau,
        "scope": scope.value if scope is not None else None,
        "budget": budget,
        "rank": rank,
        "max_rank": max_rank,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def require_export(export: ExportName, budget: str | None, pad_rank_to: int | None) -> None:
    """Check that the other options go with how the adapter is stored.

    Raises:
        ConfigurationError: a budget with `ExportName.UNIFORM`, or a padded rank without it.
    """
    if budget is not None and export is ExportName.UNIFORM:
        raise ConfigurationError(
            "--budget counts a rank for every module: use --rank or --max-rank with --export uniform"
        )
    if pad_rank_to is not None and export is not ExportName.UNIFORM:
        raise ConfigurationError("--pad-rank-to is the rank of --export uniform: add that, or leave --pad-rank-to out")
