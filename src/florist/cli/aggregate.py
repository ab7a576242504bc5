"""``florist aggregate``: several adapters in, one out."""

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from florist.cli.summaries import absences, span
from florist.cli.weighing import parse_weights
from florist.config.methods import DEFAULT_METHOD, DEFAULT_TAU, make_aggregator, one_shot_methods, require_one_shot
from florist.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.table import Table

_MOST_ROWS = 40


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


def aggregate_command(
    adapters: Annotated[list[str], typer.Argument(help="PEFT adapters: directories or hub ids in the local cache.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to create for the result.")],
    method: Annotated[
        str, typer.Option(help=f"{', '.join(one_shot_methods())}: docs/methods.md says what each does.")
    ] = DEFAULT_METHOD,
    tau: Annotated[
        float | None,
        typer.Option(help=f"Fraction of the energy to keep, in (0, 1]; {DEFAULT_TAU} where nothing else is set."),
    ] = None,
    scope: Annotated[
        ScopeName | None, typer.Option(help="Whether tau holds in each module, as by default, or over all.")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Bytes of the result, as 20MB: the most energy that fits.")] = None,
    rank: Annotated[int | None, typer.Option(help="The same rank for every module.")] = None,
    max_rank: Annotated[
        int | None, typer.Option(help="No module above this rank, whatever the rule; for flexlora too.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="One each, as 3,1,1: examples behind the adapters; fractions are shares. By default what florist.json "
            "beside an adapter says, else equal."
        ),
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
    device: Annotated[str, typer.Option(help="Where to decompose: cpu, cuda, cuda:1.")] = "cpu",
    verbose: Annotated[bool, typer.Option("--verbose", help="A row of the table for every module.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Combine LoRA adapters of unlike ranks into one, exactly but for what tau leaves out.

    A method takes its own of the options that say how much to keep, and refuses the others.

    The result is a PEFT adapter; beside it, florist.json certifies what was kept and what the inputs were.
    """
    from florist.config.reading import validated  # noqa: PLC0415
    from florist.config.sections import AggregationSection  # noqa: PLC0415
    from florist.files.outputs import require_absent  # noqa: PLC0415  # light, but torch comes with what follows

    require_absent(out)
    counts = parse_weights(weights) if weights is not None else None
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

    import torch  # noqa: PLC0415  # takes seconds: not before the arguments are known to be right
    from rich.console import Console  # noqa: PLC0415

    from florist import one_shot  # noqa: PLC0415
    from florist.checkpoint import Export  # noqa: PLC0415
    from florist.cli.progress import module_bar  # noqa: PLC0415

    # A name in brackets is a name, and no markup.
    console, progress = Console(stderr=as_json, markup=False), Console(stderr=True, markup=False)
    torch_dtype: torch.dtype = getattr(torch, dtype.value)
    inputs = one_shot.open_inputs(
        adapters, num_examples=counts, allow_base_mismatch=allow_base_mismatch, average_full=average_full
    )
    aggregator = make_aggregator(section, inputs.largest_rank, torch_dtype.itemsize)
    with module_bar(progress, f"aggregating {len(adapters)} adapters") as on_module:
        result = one_shot.combine(inputs, aggregator, device=device, on_module=on_module)
        settings = {**section.model_dump(mode="json"), "export": export.value, "dtype": dtype.value}
        document = result.write(
            out,
            export=Export(export.value),
            dtype=torch_dtype,
            max_bytes=int(section.budget) if section.budget is not None else None,
            settings=settings,
        )
    console.print(_table(document["modules"], every=verbose))
    console.print(_totals(document, out), highlight=False, soft_wrap=True)
    for note in (*absences(result.inputs.comparison.absent), *document["notes"]):
        progress.print(f"note: {note}", highlight=False, soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(document))


def _table(modules: Mapping[str, Mapping[str, Any]], *, every: bool) -> "Table":
    """A row for the modules of one name and shape, which every layer has; or a row a module."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from florist.one_shot.inspection import kind  # noqa: PLC0415

    groups: dict[tuple[str, int, int], list[Mapping[str, Any]]] = {}
    for name, module in modules.items():
        groups.setdefault((name if every else kind(name), *module["shape"]), []).append(module)
    heads = ("module", "shape", "how many", "rank in", "rank out", "energy kept", "relative error")
    table = Table(*heads, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption_justify="left")
    table.columns[0].overflow = "fold"  # cut short, modules of different layers would look alike
    for column in table.columns[1:]:
        column.justify = "right"
    rows = list(groups.items())
    shown = rows if every else rows[:_MOST_ROWS]
    for (name, out_features, in_features), group in shown:
        table.add_row(
            name,
            f"{out_features} x {in_features}",
            str(len(group)),
            span([module["input_rank"] for module in group]),
            span([module["rank"] for module in group]),
            f"{min(module['energy_kept'] for module in group):.4f}",
            f"{max(module['relative_error'] for module in group):.2e}",
        )
    if len(modules) > len(groups):
        table.caption = "ranks: least, median and most; energy: the least; error: the largest. --verbose: every module"
    if len(shown) < len(rows):
        table.add_row(f"and {len(rows) - len(shown)} more kinds: --verbose", *[""] * (len(heads) - 1))
    return table


def _totals(document: Mapping[str, Any], out: Path) -> str:
    bytes_in, bytes_out = document["bytes_in"], document["bytes_out"]
    return (
        f"{len(document['inputs'])} adapters, {bytes_in / 1e6:.2f} MB, total rank {document['input_rank']} -> "
        f"one adapter, {bytes_out / 1e6:.2f} MB, total rank {document['total_rank']} "
        f"({bytes_in / bytes_out:.1f} times smaller); relative error {document['relative_error']:.2e}\n"
        f"written to {out}, with its certificate in {out}/florist.json"
    )
