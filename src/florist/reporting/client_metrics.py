"""How unlike the clients fare: what the global adapter measured on each client's own held-out examples."""

from collections.abc import Mapping, Sequence

from florist.federation.by_client import last_evaluated, spreads
from florist.federation.records import RoundRecord
from florist.reporting.content import Block, Table
from florist.reporting.contributions import by_client_and_round
from florist.reporting.curves import MOST_METRICS, slug
from florist.reporting.numbers import MISSING, number


def client_metrics(records: Sequence[RoundRecord], better: Mapping[str, bool]) -> list[Block]:
    """A table of mean, worst and spread, and a figure of each metric; nothing where no client was measured.

    Args:
        records: the round records.
        better: whether a smaller value is the better one, by metric, as far as it is known.
    """
    last = last_evaluated(records)
    if last is None:
        return []
    names = list(dict.fromkeys(name for record in records for own in record.client_metrics.values() for name in own))
    figures = [
        by_client_and_round(
            (
                (record.round, client, own[name])
                for record in records
                for client, own in record.client_metrics.items()
                if name in own
            ),
            name=f"by-client-{slug(name)}",
            title=f"{name.replace('_', ' ')} on each client's own examples, by round",
            caption="Of the global adapter, on examples that the client held out.",
            what=name.replace("_", " "),
        )
        for name in names[:MOST_METRICS]
    ]
    return [_table(last, better), *(figure for figure in figures if figure is not None)]


def _table(record: RoundRecord, better: Mapping[str, bool]) -> Table:
    lines = [
        [
            each.metric.replace("_", " "),
            number(each.mean),
            number(each.worst),
            each.worst_client or MISSING,
            number(each.lowest),
            number(each.highest),
            number(each.deviation),
        ]
        for each in spreads(record, better)
    ]
    count = len(record.client_metrics)
    return Table(
        f"The global adapter after round {record.round} on the own held-out examples of {count} clients, each of the "
        "same weight",
        ["metric", "mean", "worst", "whose", "lowest", "highest", "deviation"],
        lines,
    )
