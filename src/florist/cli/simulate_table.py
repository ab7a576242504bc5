"""What ``florist simulate`` prints of a run."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from florist.cli.output import plain_table
from florist.config.sections import FederationSection
from florist.data.partition import LabelCounts
from florist.federation.by_client import last_evaluated, spreads
from florist.federation.history import RunDirectory
from florist.federation.records import RoundRecord

_SHADES = " ░▒▓█"
_MOST_CLIENTS = 32


def examples_table(counted: LabelCounts) -> Table:
    """Which client has which examples: a line a client, a column a label; the shade is its share of the examples."""
    table = plain_table("examples of", *counted.labels, "all")
    for column in table.columns[1:]:
        column.overflow, column.max_width = "fold", 12
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
    """A line for the base model and one for every round.

    KB are those of all clients together, and those of FLoRA what it would send for the same updates. What the server
    holds back is a fraction of the norm of what was due.
    """
    names = [name.replace("_", " ") for name in initial]
    with_feedback = any(record.held_back for record in records)
    with_noise = any(record.epsilon is not None for record in records)
    heads = ["clients", "rank", "FLoRA rank", "KB up", "FLoRA up", "KB down", "FLoRA down"]
    heads += [*(["held back"] if with_feedback else []), *(["epsilon"] if with_noise else []), "s"]
    table = plain_table("round", *names, *heads, words=())
    table.columns[1 + len(names)].no_wrap = True
    table.add_row("0", *(f"{value:.3f}" for value in initial.values()), *[""] * len(heads))
    for record in records:
        table.add_row(
            str(record.round),
            *(f"{record.metrics[name]:.3f}" if name in record.metrics else "" for name in initial),
            f"{len(record.clients)}"
            + (f" ({len(record.dropped)} dropped)" if record.dropped else "")
            + (f" ({len(record.clipped)} clipped)" if record.clipped else ""),
            _rank(record),
            str(record.input_rank) if record.input_rank else "",
            _kilobytes(record.upload_bytes),
            _kilobytes(record.stack_bytes) if record.input_rank else "",
            _kilobytes(record.download_bytes),
            _kilobytes(record.stack_bytes * len(record.clients)) if record.input_rank else "",
            *([_held_back(record)] if with_feedback else []),
            *([f"{record.epsilon:.3g}" if record.epsilon is not None else ""] if with_noise else []),
            f"{record.seconds['total']:.1f}",
        )
    return table


def totals(
    run: RunDirectory, records: Sequence[RoundRecord], federation: FederationSection, *, flushed: bool
) -> list[str]:
    """What all rounds together sent, who was dropped and why, and where the files are.

    Args:
        run: the run.
        records: its round records.
        federation: says how its rounds were chosen.
        flushed: whether the final adapter has what the server still holds back.
    """
    up, down = sum(r.upload_bytes for r in records), sum(r.download_bytes for r in records)
    sent = sum(r.broadcast_bytes for r in records)
    # Without adapters there is nothing that FLoRA could stack.
    stacks = sum(r.stack_bytes for r in records if r.input_rank)
    both = sum(r.stack_bytes * (1 + len(r.clients)) for r in records if r.input_rank)
    flora = f"; FLoRA would take {both / 1e6:.2f} MB for both ({both / (up + down):.1f} times as much)" if both else ""
    lines = [f"all clients together sent {up / 1e6:.2f} MB and received {down / 1e6:.2f} MB{flora}"]
    if sent:
        flora = f"; FLoRA's stacks of the same updates: {stacks / 1e3:.0f} KB ({stacks / sent:.1f} times as much)"
        lines.append(f"the broadcasts of all rounds, one copy: {sent / 1e3:.0f} KB{flora if stacks else ''}")
    lines += [
        f"{drop.client_id} dropped from round {record.round}: {drop.reason}"
        for record in records
        for drop in record.dropped
    ]
    lines += [
        f"{clip.client_id} scaled down to {clip.factor:.2g} of its length in round {record.round}: {clip.reason}"
        for record in records
        for clip in record.clipped
    ]
    lines += privacy_lines(records)
    lines += clients_lines(records)
    lines += _choice(records, federation)
    if records and (final := final_record(records, federation)).held_back:
        has = "has it" if flushed else "does not have it"
        lines.append(
            f"the server still holds back {_held_back(final)} of what was due in round {final.round}; the "
            f"final adapter {has}"
        )
    adapter = (
        f"final adapter in {run.adapter}"
        if run.adapter.exists()
        else "no final adapter: no round had enough usable updates"
    )
    return [*lines, f"round records in {run.path}/rounds.jsonl; {adapter}"]


def clients_lines(records: Sequence[RoundRecord]) -> list[str]:
    """How unlike the clients fare on their own held-out examples, a line a metric, after the last round measured."""
    last = last_evaluated(records)
    if last is None:
        return []
    from florist.evaluation.directions import known_directions  # noqa: PLC0415  # its package needs transformers

    names = [name for own in last.client_metrics.values() for name in own]
    return [
        f"{each.metric.replace('_', ' ')} on each client's own examples after round {last.round}: {each.text}"
        for each in spreads(last, known_directions(names))
    ]


def privacy_lines(records: Sequence[RoundRecord]) -> list[str]:
    """What the rounds spent of the clients' privacy, where nothing could be read, and why the rounds ended."""
    lines = [
        f"round {record.round} changed nothing: {record.privacy.failed}"
        for record in records
        if record.privacy is not None and record.privacy.failed is not None
    ]
    last = records[-1].privacy if records else None
    if last is None:
        return lines
    if last.masked:
        lines.append(f"the server had sums of {last.threshold} clients or more, and no single update")
    if last.epsilon is not None:
        lines.append(
            f"{len(records)} rounds spent epsilon {last.epsilon:.3g} at delta {last.delta:g}, with noise of "
            f"{last.noise_multiplier:.3g} times the clip"
        )
    if last.noise == "clients":
        lines.append(
            f"clients added the noise in shares, which counts on {last.honest_fraction:.0%} honest ones a round"
        )
    if last.spent:
        lines.append(f"stopped after round {len(records)}: another would exceed privacy.epsilon")
    return lines


def final_record(records: Sequence[RoundRecord], federation: FederationSection) -> RoundRecord:
    """The record of the round whose adapter is the final one."""
    best = records[-1].best_round if federation.best_round else None
    return records[best - 1] if best is not None else records[-1]


def _choice(records: Sequence[RoundRecord], federation: FederationSection) -> list[str]:
    """Why the rounds stopped, and which was the best, where they were chosen among."""
    if not records or records[-1].best_round is None:
        return []
    last = records[-1]
    lines = [f"best round {last.best_round}"]
    if last.stopped:
        more = f" of more than {federation.min_delta:g}" if federation.min_delta else ""
        evaluations = f"{federation.early_stopping} evaluation{'s' if federation.early_stopping != 1 else ''}"
        lines = [
            f"stopped after round {last.round}: no improvement{more} in {evaluations}; best round {last.best_round}"
        ]
    if federation.best_round:
        lines.append(f"the final adapter is that of round {last.best_round}")
    return ["; ".join(lines)]


def _kilobytes(nbytes: int) -> str:
    return f"{nbytes / 1e3:.0f}"


def _held_back(record: RoundRecord) -> str:
    """The norm of what was not sent yet over the norm of what was due; empty where nothing was aggregated."""
    return f"{record.relative_error:.0%}" if record.aggregated and record.held_back else ""


def _rank(record: RoundRecord) -> str:
    if not record.aggregated:
        return "none"
    return str(record.total_rank) if record.ranks else ""  # averaged weights have no rank
