"""What ``florist evaluate`` prints."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from florist.cli.output import plain_table
from florist.cli.summaries import number

if TYPE_CHECKING:
    from florist.config.measuring import Measured, ToMeasure


def metrics_table(to_measure: "ToMeasure", models: "Mapping[str, Measured]") -> Table:
    """A line for all examples, and before it one for each client, their mean and the worst of them.

    There is a column for each metric of each model.
    """
    names = list(dict.fromkeys(name for measured in models.values() for name in measured.metrics))
    columns = [(model, name) for name in names for model in models]
    heads = [name if len(models) == 1 else f"{name}, {model}" for model, name in columns]
    table = plain_table("", "examples", *heads)
    clients = to_measure.by_client or {}
    for client_id, examples in clients.items():
        own = {model: measured.by_client[client_id] for model, measured in models.items()}
        cells = [number(own[model][name]) if name in own[model] else "" for model, name in columns]
        table.add_row(client_id, str(len(examples)), *cells)
    if len(clients) > 1:
        across = {
            (model, name): [own[name] for own in models[model].by_client.values() if name in own]
            for model, name in columns
        }
        table.add_row("mean of clients", "", *(_mean(across[column]) for column in columns))
        table.add_row(
            "worst client", "", *(_worst(models[model], name, across[model, name]) for model, name in columns)
        )
    whole = [number(models[model].metrics[name]) for model, name in columns]
    table.add_row("all", str(len(to_measure.examples)), *whole)
    return table


def _mean(values: Sequence[float]) -> str:
    return number(sum(values) / len(values)) if values else ""


def _worst(measured: "Measured", name: str, values: Sequence[float]) -> str:
    """The worst value; empty where nobody knows which way the metric gets better."""
    lower_is_better = measured.metrics.lower_is_better.get(name)
    if not values or lower_is_better is None:
        return ""
    return number(max(values) if lower_is_better else min(values))
