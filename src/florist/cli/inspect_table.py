"""What ``florist inspect`` prints of adapters."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median_low

from rich.table import Table

from florist.checkpoint import SavedAdapter
from florist.cli.output import plain_table
from florist.cli.summaries import span
from florist.errors import some_of
from florist.one_shot.inspection import ModuleView, SweepPoint, kind

_BARS = " ▁▂▃▄▅▆▇█"


def heading(saved: SavedAdapter) -> str:
    """What an adapter is as a whole."""
    base = f"base {saved.base_model}" if saved.base_model else "no base model named"
    return (
        f"{saved.path}: {len(saved.adapter)} modules, total rank {saved.adapter.total_rank}, "
        f"{saved.stored_bytes / 1e6:.2f} MB, {base}"
    )


def module_table(modules: Mapping[str, ModuleView]) -> Table:
    """A line for every module."""
    table = _empty_table("module", modules)
    for name, module in modules.items():
        kept = (str(rank) for rank in module.ranks.values())
        line = sparkline(module.spectrum.S.tolist()[: module.rank])
        table.add_row(name, f"{module.norm:.3g}", str(module.rank), *kept, line)
    return table


def kind_table(modules: Mapping[str, ModuleView], fits: Callable[[Table], bool]) -> Table:
    """A line for the modules of one name, which every layer has.

    Args:
        modules: the modules of one adapter.
        fits: whether a table can be printed in full width; if not, their ranks are given by the median alone.
    """
    groups: dict[str, list[ModuleView]] = {}
    for name, module in modules.items():
        groups.setdefault(kind(name), []).append(module)
    table = _grouped(modules, groups, span, "least/median/most")
    if fits(table):
        return table
    return _grouped(modules, groups, lambda ranks: str(median_low(ranks)), "the median")


def sweep_table(points: Sequence[SweepPoint]) -> Table:
    """A line for every threshold."""
    table = plain_table("tau", "total rank", "KB", "relative error", words=())
    for point in points:
        table.add_row(
            f"{point.tau:g}", str(point.total_rank), f"{point.nbytes / 1e3:.0f}", f"{point.relative_error:.2e}"
        )
    return table


def findings(modules: Mapping[str, ModuleView]) -> list[str]:
    """What stands out among the modules of an adapter."""
    dead = [f"{name} ({module.dead_directions})" for name, module in modules.items() if module.dead_directions]
    count = sum(module.dead_directions for module in modules.values())
    outliers = [f"{name} ({m.outlier:.2g} times)" for name, m in modules.items() if m.outlier is not None]
    lines: list[str] = []
    if dead:
        lines.append(f"dead ranks: {count} directions in {len(dead)} modules carry nothing: {some_of(dead)}")
    if outliers:
        lines.append(f"outliers: norms far from the median of their kind: {some_of(outliers)}")
    return lines


def verdict(who: str, problems: Sequence[str], groups: Sequence[Sequence[str]]) -> list[str]:
    """Whether adapters may be aggregated, why not, and which of them may be.

    Args:
        who: what to call the adapters.
        problems: why they may not be.
        groups: the paths of those that may be aggregated with each other.
    """
    if not problems:
        return [f"{who} may be aggregated"]
    lines = [f"{who} cannot be aggregated as they are:", *(f"- {problem}" for problem in problems)]
    parts = [group for group in groups if len(group) > 1]
    if not parts:
        return [*lines, "no two of them may be aggregated"]
    return [*lines, *(f"these {len(group)} may be aggregated: {' '.join(group)}" for group in parts)]


def sparkline(values: Sequence[float], width: int = 12) -> str:
    """Draw non-increasing values against the largest of them, in at most `width` characters; zero is blank."""
    if not values or values[0] <= 0:
        return ""
    step = max(1, -(-len(values) // width))
    tops = [max(values[i : i + step]) / values[0] for i in range(0, len(values), step)]
    # Whatever is not zero shows at least the lowest bar.
    return "".join(_BARS[0] if top <= 0 else _BARS[max(1, round(top * (len(_BARS) - 1)))] for top in tops)


def _grouped(
    modules: Mapping[str, ModuleView],
    groups: Mapping[str, Sequence[ModuleView]],
    summarise: Callable[[Sequence[int]], str],
    summary: str,
) -> Table:
    table = _empty_table("modules", modules)
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
            f"{table.caption}; {summary} of the modules of a kind. Norm and spectrum: those of the module with the "
            "median norm. --modules: all of them"
        )
    return table


def _empty_table(first: str, modules: Mapping[str, ModuleView]) -> Table:
    taus = list(next(iter(modules.values())).ranks)
    heads = (first, "norm", "rank", *(f"{tau:g}" for tau in taus), "spectrum")
    table = plain_table(*heads, words=(0, len(heads) - 1))
    table.columns[0].overflow = "fold"  # cut short, modules of different layers would look alike
    for column in table.columns[1:]:
        column.no_wrap = True
    table.caption = f"columns {taus[0]:g} to {taus[-1]:g}: the rank that holds that fraction of the energy"
    return table
