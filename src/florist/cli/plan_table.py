"""What ``florist plan`` prints of a plan."""

from collections.abc import Callable, Mapping

from rich.table import Table

from florist.cli.output import plain_table
from florist.planning.plan import ClientCost, MethodCost, Setup

_BYTES = ("B", "kB", "MB", "GB", "TB", "PB")
_COUNTS = ("", "k", "M", "G", "T", "P")


def headline(setup: Setup) -> list[str]:
    """What was planned, in lines of up to 80 columns as far as names allow."""
    population, model = setup.population, setup.model
    kinds = sorted({name.rpartition(".")[2] for name in setup.modules})
    ranks = ", ".join(f"{count} of rank {rank}" for rank, count in sorted(population.counts.items(), reverse=True))
    asked = f"; each round asks {population.asked}" if population.asked < population.clients else ""
    size = f" of {scaled(model.parameters, _COUNTS)} parameters" if model.other_parameters else ""
    return [
        f"{model.name}{size}: {len(setup.modules)} modules ({', '.join(kinds)})",
        f"{population.clients} clients: {ranks}{asked}",
        f"up {setup.link.upload.name}, down {setup.link.download.name}; tau keeps {setup.kept.source}",
    ]


def federation_table(costs: Mapping[str, MethodCost]) -> Table:
    """The rank and the efficiency of every method, the bytes of all clients, and what the server computes and holds."""
    table = plain_table("method", "rank", "effic.", "up", "down", "operations", "paper's", "server")
    _never_cut(table)
    for name, cost in costs.items():
        table.add_row(
            name,
            "" if cost.total_rank is None else f"{cost.total_rank:.0f}",
            "" if cost.efficiency is None else f"{cost.efficiency * 1e4:.2f}",
            scaled(cost.upload_bytes, _BYTES),
            scaled(cost.download_bytes, _BYTES),
            scaled(cost.solver_flops, _COUNTS),
            "" if cost.server_flops is None else scaled(cost.server_flops, _COUNTS),
            scaled(cost.server_bytes, _BYTES),
        )
    return table


def client_table(costs: Mapping[str, MethodCost], seconds: Mapping[str, float | None]) -> Table:
    """What one client sends, receives and holds; the seconds where a rate is known."""
    timed = any(value is not None for value in seconds.values())
    table = plain_table("method", "up", "down", "client holds", *(["seconds"] if timed else []))
    _never_cut(table)
    for name, cost in costs.items():
        time = seconds[name]
        table.add_row(
            name,
            _span(cost, lambda client: client.upload_bytes),
            _span(cost, lambda client: client.download_bytes),
            _span(cost, lambda client: client.memory_bytes),
            *([_seconds(time)] if time is not None else []),
        )
    return table


def notes(setup: Setup, costs: Mapping[str, MethodCost], budget: int | None) -> list[str]:
    """What the tables do not show."""
    lines = [
        "",
        "effic.: the paper's communication efficiency, 1 / rank, or 2 / rank for B alone, times 1e4",
        "operations of a round: by florist's solvers for all modules; paper's: by its formulas for one module a layer",
    ]
    if setup.population.asked < setup.population.clients:
        missed = ", ".join(
            f"{name} {cost.catch_up_bytes / cost.download_bytes:.0%}"
            for name, cost in costs.items()
            if cost.download_bytes
        )
        lines.append(f"bytes are expectations; of what goes down, clients that were away need: {missed}")
    if budget is not None:
        ordered = sorted(costs.items(), key=lambda item: item[1].traffic_bytes)
        fit = [
            f"{name} ({scaled(cost.traffic_bytes, _BYTES)})" for name, cost in ordered if cost.traffic_bytes <= budget
        ]
        beyond = [
            f"{name} ({scaled(cost.traffic_bytes, _BYTES)})" for name, cost in ordered if cost.traffic_bytes > budget
        ]
        limit = scaled(budget, _BYTES)
        lines.append(f"within {limit}, both ways, all rounds: {', '.join(fit) or 'none of these methods'}")
        if beyond:
            lines.append(f"beyond {limit}: {', '.join(beyond)}")
    return lines


def scaled(value: float, units: tuple[str, ...]) -> str:
    """A number of three or four digits with a decimal unit, as ``36.04 MB``."""
    size = 0
    while abs(value) >= 999.5 and size < len(units) - 1:
        value, size = value / 1000, size + 1
    unit = units[size]
    digits = 0 if unit == units[0] and value == int(value) else 2 if value < 99.995 else 1
    return f"{value:.{digits}f} {unit}".rstrip()


def _span(cost: MethodCost, value: Callable[[ClientCost], float]) -> str:
    """The least and the most of all clients, or one number where all are equal."""
    values = [value(client) for client in cost.by_rank]
    low, high = scaled(min(values), _BYTES), scaled(max(values), _BYTES)
    if low == high:
        return high
    (least, unit), (_, other) = low.split(" "), high.split(" ")
    return f"{least}-{high}" if unit == other else f"{low}-{high}"


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _never_cut(table: Table) -> None:
    for column in table.columns:
        column.no_wrap = True
