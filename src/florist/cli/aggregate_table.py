"""What ``florist aggregate`` prints of its certificate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from florist.cli.output import plain_table
from florist.cli.summaries import span
from florist.one_shot.inspection import kind

_MOST_LINES = 40


def module_table(modules: Mapping[str, Mapping[str, Any]], *, every_module: bool) -> Table:
    """A line for the modules of one name and shape, which every layer has; or a line for every module."""
    groups: dict[tuple[str, int, int], list[Mapping[str, Any]]] = {}
    for name, module in modules.items():
        groups.setdefault((name if every_module else kind(name), *module["shape"]), []).append(module)
    heads = ("module", "shape", "how many", "rank in", "rank out", "energy kept", "relative error")
    table = plain_table(*heads)
    table.columns[0].overflow = "fold"  # cut short, modules of different layers would look alike
    lines = list(groups.items())
    shown = lines if every_module else lines[:_MOST_LINES]
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
    if len(shown) < len(lines):
        table.add_row(f"and {len(lines) - len(shown)} more kinds: --verbose", *[""] * (len(heads) - 1))
    return table


def totals(document: Mapping[str, Any], out: Path) -> tuple[str, str]:
    """What came in, what came out, and where that is."""
    bytes_in, bytes_out = document["bytes_in"], document["bytes_out"]
    count = len(document["inputs"])
    sizes = (
        f"{count} adapter{'s' if count != 1 else ''}, {bytes_in / 1e6:.2f} MB, total rank {document['input_rank']} -> "
        f"one adapter, {bytes_out / 1e6:.2f} MB, total rank {document['total_rank']} "
        f"({bytes_in / bytes_out:.1f} times smaller); relative error {document['relative_error']:.2e}"
    )
    return sizes, f"written to {out}, with its certificate in {out}/florist.json"
