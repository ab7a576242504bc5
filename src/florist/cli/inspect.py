"""``florist inspect``: what is in adapters, and what may be combined with what."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from florist.checkpoint import SavedAdapter
    from florist.inspection import ModuleView, SweepPoint

_BARS = " ▁▂▃▄▅▆▇█"
_SWEEP = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999, 1.0)


def inspect(
    adapters: Annotated[list[str], typer.Argument(help="PEFT adapters: directories or hub ids in the local cache.")],
    sweep: Annotated[
        bool, typer.Option("--sweep", help="What every threshold would make of their equally weighted sum.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Show spectra, ranks and norms of adapters, and whether they may be aggregated.

    Adapters that may not be combined are a finding, not an error: the reasons are listed and the exit status is 0.
    """
    from rich.console import Console  # noqa: PLC0415  # keeps --help fast

    from florist.checkpoint import compare, locate, open_adapter  # noqa: PLC0415
    from florist.inspection import spectra, unlike_norms, view  # noqa: PLC0415
    from florist.inspection import sweep as sweep_thresholds  # noqa: PLC0415
    from florist.one_shot import open_inputs  # noqa: PLC0415

    console = Console(stderr=as_json)
    saved = [open_adapter(locate(adapter)) for adapter in adapters]
    views = {str(one.path): view(one) for one in saved}
    comparison = compare(saved)
    outliers = unlike_norms(saved)
    points: list[SweepPoint] = []
    if sweep and not comparison.problems:
        points = sweep_thresholds(spectra(open_inputs(adapters).updates), _SWEEP)
    for one in saved:
        console.print(_heading(one))
        console.print(_module_table(views[str(one.path)]))
        for line in _findings(views[str(one.path)]):
            console.print(line)
    if len(saved) > 1:
        for path, times in outliers.items():
            console.print(f"outlier: the update of {path} is {times:.2g} times as large as the median of all")
        for line in _verdict(comparison.problems, {m: list(map(str, p)) for m, p in comparison.absent.items()}):
            console.print(line)
    if points:
        console.print(_sweep_table(points))
    if as_json:
        document: dict[str, Any] = {
            "adapters": [{"path": path, "modules": _as_json(modules)} for path, modules in views.items()],
            "problems": list(comparison.problems),
            "absent": {module: list(map(str, paths)) for module, paths in comparison.absent.items()},
            "outliers": outliers,
        }
        if points:
            document["sweep"] = [
                {
                    "tau": point.tau,
                    "total_rank": point.total_rank,
                    "bytes": point.nbytes,
                    "relative_error": point.relative_error,
                }
                for point in points
            ]
        typer.echo(json.dumps(document))


def _heading(saved: "SavedAdapter") -> str:
    base = saved.base_model or "no base model named"
    return (
        f"{saved.path}: {len(saved.adapter)} modules, total rank {saved.adapter.total_rank}, "
        f"{saved.stored_bytes / 1e6:.2f} MB, base {base}"
    )


def _module_table(modules: "Mapping[str, ModuleView]") -> "Table":
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    taus = list(next(iter(modules.values())).ranks)
    table = Table(
        "module", "norm", "rank", *(f"{tau:g}" for tau in taus), "spectrum", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.columns[0].overflow = "fold"  # cut short, modules of different layers would look alike
    for column in table.columns[1:-1]:
        column.justify = "right"
    for name, module in modules.items():
        kept = (str(module.ranks[tau]) for tau in taus)
        line = sparkline(module.spectrum.S.tolist()[: module.rank])
        table.add_row(name, f"{module.norm:.3g}", str(module.rank), *kept, line)
    table.caption = f"columns {taus[0]:g} to {taus[-1]:g}: the rank that holds that fraction of the energy"
    return table


def sparkline(values: Sequence[float], width: int = 12) -> str:
    """The course of non-increasing values against their largest, at most `width` characters; zero is blank."""
    if not values or values[0] <= 0:
        return ""
    step = max(1, -(-len(values) // width))
    tops = [max(values[i : i + step]) / values[0] for i in range(0, len(values), step)]
    # Whatever is not zero shows at least the lowest bar.
    return "".join(_BARS[0] if top <= 0 else _BARS[max(1, round(top * (len(_BARS) - 1)))] for top in tops)


def _findings(modules: "Mapping[str, ModuleView]") -> list[str]:
    dead = {name: module.dead_directions for name, module in modules.items() if module.dead_directions}
    lines: list[str] = []
    if dead:
        some = ", ".join(f"{name} ({count})" for name, count in list(dead.items())[:5])
        lines.append(f"dead ranks: {sum(dead.values())} directions in {len(dead)} modules carry nothing: {some}")
    lines += [
        f"outlier: the norm of {name} is {module.outlier:.2g} times the median of its kind"
        for name, module in modules.items()
        if module.outlier is not None
    ]
    return lines


def _verdict(problems: Sequence[str], absent: Mapping[str, Sequence[str]]) -> list[str]:
    lines = [f"{module} is absent from {', '.join(paths)}: a zero update" for module, paths in absent.items()]
    if problems:
        return [*lines, "these adapters cannot be aggregated as they are:", *(f"- {problem}" for problem in problems)]
    return [*lines, "these adapters may be aggregated"]


def _sweep_table(points: "Sequence[SweepPoint]") -> "Table":
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table("tau", "total rank", "KB", "relative error", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        column.justify = "right"
    for point in points:
        table.add_row(
            f"{point.tau:g}", str(point.total_rank), f"{point.nbytes / 1e3:.0f}", f"{point.relative_error:.2e}"
        )
    return table


def _as_json(modules: "Mapping[str, ModuleView]") -> dict[str, Any]:
    return {
        name: {
            "shape": list(module.spectrum.shape),
            "rank": module.rank,
            "numerical_rank": module.spectrum.numerical_rank,
            "norm": module.norm,
            "singular_values": module.spectrum.S.tolist(),
            "rank_at": {f"{tau:g}": rank for tau, rank in module.ranks.items()},
            "dead_directions": module.dead_directions,
            "outlier": module.outlier,
        }
        for name, module in modules.items()
    }
