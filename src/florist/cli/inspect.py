"""``florist inspect``: what is in adapters, and what may be combined with what."""

import json
from collections.abc import Callable, Mapping, Sequence
from statistics import median_low
from typing import TYPE_CHECKING, Annotated, Any

import typer

from florist.cli.summaries import absences, some, span
from florist.cli.weighing import parse_weights
from florist.errors import ConfigurationError, FloristError, InvalidAdapterError, InvalidUpdateError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from florist.checkpoint import SavedAdapter
    from florist.one_shot.inspection import ModuleView, SweepPoint

_BARS = " ▁▂▃▄▅▆▇█"
_SWEEP = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999, 1.0)


def inspect_command(
    adapters: Annotated[list[str], typer.Argument(help="PEFT adapters: directories or hub ids in the local cache.")],
    sweep: Annotated[
        bool, typer.Option("--sweep", help="What every threshold would make of their weighted sum.")
    ] = False,
    weights: Annotated[
        str | None, typer.Option(help="For --sweep, as `florist aggregate` takes them: examples behind the adapters.")
    ] = None,
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="The adapters name unlike bases that are the same.")
    ] = False,
    average_full: Annotated[
        bool, typer.Option("--average-full", help="Parameters that were trained whole, as a head, may be averaged.")
    ] = False,
    every: Annotated[bool, typer.Option("--modules", help="A row for every module, not for every kind.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Show spectra, ranks and norms of adapters, and whether they may be aggregated.

    Adapters that may not be combined are a finding, not an error: the reasons are listed and the exit status is 0.
    Where one cannot be read, the others are shown, and the exit status is 2.
    """
    if weights is not None and not sweep:
        raise ConfigurationError("--weights are those of --sweep: add --sweep, or leave --weights out")
    counts = parse_weights(weights) if weights is not None else None

    from rich.console import Console  # noqa: PLC0415  # keeps --help fast

    from florist.checkpoint import compare  # noqa: PLC0415
    from florist.cli.progress import module_bar  # noqa: PLC0415
    from florist.one_shot import open_inputs  # noqa: PLC0415
    from florist.one_shot.inspection import combinable, spectra, unlike_norms  # noqa: PLC0415
    from florist.one_shot.inspection import sweep as sweep_thresholds  # noqa: PLC0415

    # A name in brackets is a name, and no markup.
    console, progress = Console(stderr=as_json, markup=False), Console(stderr=True, markup=False)
    allowed = {"allow_base_mismatch": allow_base_mismatch, "average_full": average_full}
    points: list[SweepPoint] = []
    with module_bar(progress, "decomposing") as on_module:
        looked, unreadable = _looked_at(adapters, on_module)
        saved = [one for one, _ in looked]
        comparison = compare(saved, **allowed)
        groups = combinable(saved, **allowed) if comparison.problems or not saved else [tuple(saved)]
        obstacle = _obstacle(unreadable, comparison.problems)
        if sweep and obstacle is None:
            try:
                inputs = open_inputs(adapters, num_examples=counts, **allowed)
                points = sweep_thresholds(spectra(inputs.updates, on_module), _SWEEP, layout=inputs.comparison.layout)
            except InvalidUpdateError as error:
                obstacle = str(error)
    outliers = unlike_norms(saved)
    for one, modules in looked:
        console.print(_heading(one), soft_wrap=True)
        console.print(_module_table(modules) if every else _kind_table(modules, console))
        _say(console, _findings(modules))
    _say(console, [f"{adapter} cannot be read: {reason}" for adapter, reason in unreadable.items()])
    _say(console, [f"outlier: the update of {p} is {times:.2g} times the median" for p, times in outliers.items()])
    if len(saved) > 1 or comparison.problems:
        who = "the adapters that can be read" if unreadable else "these adapters"
        _say(console, absences(comparison.absent))
        _say(console, _verdict(who, comparison.problems, [[str(one.path) for one in group] for group in groups]))
    if points:
        console.print(_sweep_table(points))
    elif sweep:
        _say(console, [f"no sweep: {obstacle}"])
    if as_json:
        document: dict[str, Any] = {
            "adapters": [{"path": str(one.path), "modules": _as_json(modules)} for one, modules in looked],
            "unreadable": unreadable,
            "problems": list(comparison.problems),
            "combinable": [[str(one.path) for one in group] for group in groups],
            "absent": {module: list(map(str, paths)) for module, paths in comparison.absent.items()},
            "outliers": outliers,
        }
        if sweep:
            document["sweep"] = [_point_as_json(point) for point in points]
        typer.echo(json.dumps(document))
    if unreadable:
        raise InvalidAdapterError(
            f"expected adapters that can be read, and {len(unreadable)} of {len(adapters)} cannot be, for the reasons "
            "given with their names"
        )


def _looked_at(
    adapters: Sequence[str], on_module: Callable[[int, int], None]
) -> "tuple[list[tuple[SavedAdapter, Mapping[str, ModuleView]]], dict[str, str]]":
    """Those that can be read, and of the others why not."""
    from florist.checkpoint import locate, open_adapter  # noqa: PLC0415
    from florist.one_shot.inspection import view  # noqa: PLC0415

    looked: list[tuple[SavedAdapter, Mapping[str, ModuleView]]] = []
    unreadable: dict[str, str] = {}
    for adapter in adapters:
        try:
            one = open_adapter(locate(adapter))
            looked.append((one, view(one, on_module)))
        except FloristError as error:
            unreadable[adapter] = " ".join(str(error).split())
    return looked, unreadable


def _obstacle(unreadable: Mapping[str, str], problems: Sequence[str]) -> str | None:
    """Why there is nothing to sweep over."""
    if unreadable:
        return "not all of the adapters can be read"
    return "the adapters cannot be combined as they are" if problems else None


def _say(console: "Console", lines: Sequence[str]) -> None:
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _heading(saved: "SavedAdapter") -> str:
    base = f"base {saved.base_model}" if saved.base_model else "no base model named"
    return (
        f"{saved.path}: {len(saved.adapter)} modules, total rank {saved.adapter.total_rank}, "
        f"{saved.stored_bytes / 1e6:.2f} MB, {base}"
    )


def _module_table(modules: "Mapping[str, ModuleView]") -> "Table":
    table = _table("module", modules)
    for name, module in modules.items():
        kept = (str(rank) for rank in module.ranks.values())
        line = sparkline(module.spectrum.S.tolist()[: module.rank])
        table.add_row(name, f"{module.norm:.3g}", str(module.rank), *kept, line)
    return table


def _kind_table(modules: "Mapping[str, ModuleView]", console: "Console") -> "Table":
    """A row for the modules of one name, which every layer has; ranks in the median alone where more does not fit."""
    from florist.one_shot.inspection import kind  # noqa: PLC0415

    groups: dict[str, list[ModuleView]] = {}
    for name, module in modules.items():
        groups.setdefault(kind(name), []).append(module)
    table = _grouped(modules, groups, span, "least/median/most")
    # Measured as if there were room enough: within the console's width, no table is too wide.
    if console.measure(table, options=console.options.update(max_width=10_000)).maximum <= console.width:
        return table
    return _grouped(modules, groups, lambda ranks: str(median_low(ranks)), "the median")


def _grouped(
    modules: "Mapping[str, ModuleView]",
    groups: "Mapping[str, Sequence[ModuleView]]",
    summarise: Callable[[Sequence[int]], str],
    summary: str,
) -> "Table":
    table = _table("modules", modules)
    for name, group in groups.items():
        kept = (summarise([module.ranks[tau] for module in group]) for tau in group[0].ranks)
        typical = sorted(group, key=lambda module: module.norm)[len(group) // 2]
        table.add_row(
            name if len(group) == 1 else f"{len(group)} x {name}",
            f"{typical.norm:.3g}",
            summarise([module.rank for module in group]),
            *kept,
            sparkline(typical.spectrum.S.tolist()[: typical.rank]),
        )
    if len(groups) < len(modules):
        table.caption = (
            f"{table.caption}; {summary} of the modules of a kind. Norm and spectrum: of the module with the "
            "median norm. --modules: all of them"
        )
    return table


def _table(first: str, modules: "Mapping[str, ModuleView]") -> "Table":
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    taus = list(next(iter(modules.values())).ranks)
    heads = (first, "norm", "rank", *(f"{tau:g}" for tau in taus), "spectrum")
    table = Table(*heads, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption_justify="left")
    table.columns[0].overflow = "fold"  # cut short, modules of different layers would look alike
    for column in table.columns[1:]:
        column.no_wrap = True
    for column in table.columns[1:-1]:
        column.justify = "right"
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
    dead = [f"{name} ({module.dead_directions})" for name, module in modules.items() if module.dead_directions]
    count = sum(module.dead_directions for module in modules.values())
    outliers = [f"{name} ({m.outlier:.2g} times)" for name, m in modules.items() if m.outlier is not None]
    lines: list[str] = []
    if dead:
        lines.append(f"dead ranks: {count} directions in {len(dead)} modules carry nothing: {some(dead)}")
    if outliers:
        lines.append(f"outliers: norms far from the median of their kind: {some(outliers)}")
    return lines


def _verdict(who: str, problems: Sequence[str], groups: Sequence[Sequence[str]]) -> list[str]:
    if not problems:
        return [f"{who} may be aggregated"]
    lines = [f"{who} cannot be aggregated as they are:", *(f"- {problem}" for problem in problems)]
    parts = [group for group in groups if len(group) > 1]
    if not parts:
        return [*lines, "no two of them may be aggregated"]
    return [*lines, *(f"these {len(group)} may be aggregated: {' '.join(group)}" for group in parts)]


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


def _point_as_json(point: "SweepPoint") -> dict[str, Any]:
    return {
        "tau": point.tau,
        "total_rank": point.total_rank,
        "bytes": point.nbytes,
        "relative_error": point.relative_error,
    }


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
