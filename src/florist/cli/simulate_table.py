"""What ``florist simulate`` prints of a run."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from florist.cli.output import plain_table
from florist.data.partition import LabelCounts
from florist.federation.history import RunDirectory
from florist.federation.records import RoundRecord

_SHADES = " ░▒▓█"
_MOST_CLIENTS = 32


def examples_table(counted: LabelCounts) -> Table:
    """Which client has which examples: a line a client, a column a label; the shade is its share of the examples."""
    table = plain_table("examples of", *counted.labels, "all")
    for column in table.columns[1:]:
        column.overflow, column.max_width = "ellipsis", 12
    for client, counts in list(zip(counted.clients, counted.counts, strict=True))[:_MOST_CLIENTS]:
        total = sum(counts)
        # Rounded up: whatever a client has is to be seen.
        shades = [_SHADES[min(4, -(-4 * count // total))] if count else _SHADES[0] for count in counts]
        cells = [f"{count} {shade}" if count else "" for count, shade in zip(counts, shades, strict=True)]
        table.add_row(client, *cells, str(total))
    if len(counted.clients) > _MOST_CLIENTS:
        table.add_row(f"and {len(counted.clients) - _MOST_CLIENTS} more", *[""] * (len(counted.labels) + 1))
    return table


def rounds_table(initial: Mapping[str, float], records: Sequence[RoundRecord]) -> Table:
    """A line for the base model and one for every round."""
    names = [name.replace("_", " ") for name in initial]
    table = plain_table("round", *names, "clients", "rank", "FLoRA rank", "KB", "FLoRA KB", "s", words=())
    table.add_row("0", *(f"{value:.3f}" for value in initial.values()), *[""] * 6)
    for record in records:
        table.add_row(
            str(record.round),
            *(f"{record.metrics[name]:.3f}" if name in record.metrics else "" for name in initial),
            f"{len(record.clients)}" + (f" ({len(record.dropped)} dropped)" if record.dropped else ""),
            _rank(record),
            str(record.input_rank) if record.input_rank else "",
            f"{record.broadcast_bytes / 1e3:.0f}",
            f"{record.stack_bytes / 1e3:.0f}" if record.input_rank else "",
            f"{record.seconds['total']:.1f}",
        )
    return table


def totals(run: RunDirectory, records: Sequence[RoundRecord]) -> list[str]:
    """What all rounds together sent, who was dropped and why, and where the files are."""
    up, down = sum(r.upload_bytes for r in records), sum(r.download_bytes for r in records)
    sent = sum(r.broadcast_bytes for r in records)
    # Without adapters there is nothing that FLoRA could stack.
    stacks = sum(r.stack_bytes for r in records if r.input_rank)
    lines = [f"all clients together sent {up / 1e6:.2f} MB and received {down / 1e6:.2f} MB"]
    if sent:
        flora = f"; FLoRA's stacks of the same updates: {stacks / 1e3:.0f} KB ({stacks / sent:.1f} times as much)"
        lines.append(f"the broadcasts of all rounds, one copy: {sent / 1e3:.0f} KB{flora if stacks else ''}")
    lines += [
        f"{drop.client_id} dropped from round {record.round}: {drop.reason}"
        for record in records
        for drop in record.dropped
    ]
    adapter = (
        f"final adapter in {run.adapter}"
        if run.adapter.exists()
        else "no final adapter: no round had enough usable updates"
    )
    return [*lines, f"round records in {run.path}/rounds.jsonl; {adapter}"]


def _rank(record: RoundRecord) -> str:
    if not record.aggregated:
        return "none"
    return str(record.total_rank) if record.ranks else ""  # averaged weights have no rank
