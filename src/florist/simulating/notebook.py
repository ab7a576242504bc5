"""What a notebook shows of a run: a small table, in HTML without scripts or styles of its own."""

from collections.abc import Sequence
from html import escape

from florist.evaluation import known_directions
from florist.federation.by_client import last_evaluated, spreads
from florist.federation.history import RunDirectory


def run_html(run: RunDirectory) -> str:
    """A table of the rounds, and below it how unlike the clients fare and where the adapter is."""
    facts, records = run.facts, run.records()
    names = list(facts.initial)
    head = ["round", *names, "clients", "rank", "KB up", "KB down", "s"]
    rows = [["0", *(f"{value:.3f}" for value in facts.initial.values()), "", "", "", "", ""]]
    for record in records:
        dropped = f" ({len(record.dropped)} dropped)" if record.dropped else ""
        rows.append(
            [
                str(record.round),
                *(f"{record.metrics[name]:.3f}" if name in record.metrics else "" for name in names),
                f"{len(record.clients)}{dropped}",
                str(record.total_rank) if record.ranks else "",
                f"{record.upload_bytes / 1e3:.0f}",
                f"{record.download_bytes / 1e3:.0f}",
                f"{record.seconds.get('total', 0.0):.1f}",
            ]
        )
    below = [f"{facts.method}; the run is in {run.path}"]
    last = last_evaluated(records)
    if last is not None:
        measured = spreads(last, known_directions(name for own in last.client_metrics.values() for name in own))
        below += [
            f"{each.metric} on each client's own examples after round {last.round}: {each.text}" for each in measured
        ]
    below.append(f"final adapter in {run.adapter}" if run.adapter.exists() else "no final adapter")
    return (
        f"<table><thead>{_row(head, 'th')}</thead><tbody>{''.join(_row(row, 'td') for row in rows)}</tbody></table>"
        + "".join(f"<p>{escape(line)}</p>" for line in below)
    )


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
