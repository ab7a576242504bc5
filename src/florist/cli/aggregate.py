"""``florist aggregate``: several adapters in, one out."""

import json
import math
from collections.abc import Mapping
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from florist.errors import ConfigurationError, InvalidUpdateError

if TYPE_CHECKING:
    from rich.table import Table

    from florist.rounds import Certificate, ModuleCertificate


class ExportName(Enum):
    """Names of `checkpoint.Export`, which needs torch."""

    PER_MODULE = "per-module"
    UNIFORM = "uniform"


class ScopeName(Enum):
    """What tau refers to."""

    PER_MODULE = "per-module"
    GLOBAL = "global"


class DtypeName(Enum):
    """Names of torch dtypes."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def aggregate(
    adapters: Annotated[list[str], typer.Argument(help="PEFT adapters: directories or hub ids in the local cache.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to create for the result.")],
    tau: Annotated[
        float | None, typer.Option(help="Fraction of the energy to keep, in (0, 1]; 0.9 where nothing else is set.")
    ] = None,
    scope: Annotated[
        ScopeName, typer.Option(help="Whether tau holds in each module or over all.")
    ] = ScopeName.PER_MODULE,
    budget: Annotated[str | None, typer.Option(help="Bytes of the result, as 20MB: the most energy that fits.")] = None,
    rank: Annotated[int | None, typer.Option(help="The same rank for every module.")] = None,
    max_rank: Annotated[int | None, typer.Option(help="No module above this rank, whatever the rule.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="One each, as 3,1,1: examples behind the adapters. Equal by default.")
    ] = None,
    export: Annotated[
        ExportName, typer.Option(help="A rank for every module, or one for all (for servers that know no other).")
    ] = ExportName.PER_MODULE,
    dtype: Annotated[DtypeName, typer.Option(help="Of the stored tensors.")] = DtypeName.FLOAT32,
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="The adapters name unlike bases that are the same.")
    ] = False,
    average_full: Annotated[
        bool, typer.Option("--average-full", help="Average parameters that were trained whole, as a head.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Combine LoRA adapters of unlike ranks into one, exactly but for what tau leaves out.

    The result is a PEFT adapter; beside it, florist.json certifies what was kept and what the inputs were.
    """
    from florist.config.reading import validated  # noqa: PLC0415
    from florist.config.sections import AggregationSection  # noqa: PLC0415
    from florist.outputs import require_absent  # noqa: PLC0415  # light, but torch comes with what follows

    require_absent(out)
    counts = _counts(weights) if weights is not None else None
    wanted = {"tau": tau, "scope": scope.value, "budget": budget, "rank": rank, "max_rank": max_rank}
    section = validated(AggregationSection, {name: value for name, value in wanted.items() if value is not None})
    if budget is not None and export is ExportName.UNIFORM:
        raise ConfigurationError(
            "--budget counts a rank for every module: use --rank or --max-rank with --export uniform"
        )

    import torch  # noqa: PLC0415  # takes seconds: not before the arguments are known to be right
    from rich.console import Console  # noqa: PLC0415

    from florist import one_shot  # noqa: PLC0415
    from florist.checkpoint import Export  # noqa: PLC0415
    from florist.config.methods import DEFAULT_TAU, rank_rule  # noqa: PLC0415

    console = Console(stderr=as_json)
    progress = Console(stderr=True)
    torch_dtype: torch.dtype = getattr(torch, dtype.value)
    if section.tau is None and section.budget is None and section.rank is None:
        section = section.model_copy(update={"tau": DEFAULT_TAU})
    with progress.status(f"aggregating {len(adapters)} adapters"):
        result = one_shot.aggregate(
            adapters,
            rank_rule=rank_rule(section, torch_dtype.itemsize),
            num_examples=counts,
            allow_base_mismatch=allow_base_mismatch,
            average_full=average_full,
        )
        settings = {**section.model_dump(mode="json"), "export": export.value, "dtype": dtype.value}
        document = result.write(out, export=Export(export.value), dtype=torch_dtype, settings=settings)
    console.print(_table(result.certificate))
    console.print(_totals(document, out))
    notes = [
        f"{module} is absent from {', '.join(map(str, paths))}, which counts as a zero update"
        for module, paths in result.inputs.comparison.absent.items()
    ]
    for note in (*notes, *document["notes"]):
        progress.print(f"note: {note}")
    if as_json:
        typer.echo(json.dumps(document))


def _counts(weights: str) -> list[int]:
    """``0.5,0.25,0.25`` -> 2, 1, 1: weights as whole examples, without rounding."""
    try:
        parts = [Fraction(part.strip()) for part in weights.split(",")]
    except (ValueError, ZeroDivisionError) as error:
        raise InvalidUpdateError(f"expected --weights as numbers with commas, as 3,1,1, got {weights!r}") from error
    return [int(part * math.lcm(*(part.denominator for part in parts))) for part in parts]


def _table(certificate: "Certificate") -> "Table":
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    kinds: dict[tuple[str, tuple[int, int]], list[ModuleCertificate]] = {}
    for name, module in certificate.modules.items():
        kinds.setdefault((name.rpartition(".")[2], module.shape), []).append(module)
    heads = ("module", "shape", "how many", "rank in", "rank out", "energy kept", "relative error")
    table = Table(*heads, box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for (kind, shape), modules in kinds.items():
        table.add_row(
            kind,
            f"{shape[0]} x {shape[1]}",
            str(len(modules)),
            _span([module.input_rank for module in modules]),
            _span([module.rank for module in modules]),
            f"{min(module.energy_kept for module in modules):.4f}",
            f"{max(module.relative_error for module in modules):.2e}",
        )
    return table


def _span(values: list[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _totals(document: Mapping[str, Any], out: Path) -> str:
    bytes_in, bytes_out = document["bytes_in"], document["bytes_out"]
    return (
        f"{len(document['inputs'])} adapters, {bytes_in / 1e6:.2f} MB, total rank {document['input_rank']} -> "
        f"one adapter, {bytes_out / 1e6:.2f} MB, total rank {document['total_rank']} "
        f"({bytes_in / bytes_out:.1f} times smaller); relative error {document['relative_error']:.2e}\n"
        f"written to {out}, with its certificate in {out}/florist.json"
    )
