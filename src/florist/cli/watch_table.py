"""What ``florist watch`` shows of a run: a table, a curve, and a line for every round."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from florist.cli.output import plain_table
from florist.errors import one_line, printable
from florist.federation.records import RoundRecord

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_HEIGHT = 4


@dataclass(frozen=True, slots=True)
class Row:
    """What is kept of a round record: the ranks of every module and the numbers of every client are not shown.

    Attributes:
        round: the number of the round; 0 for the base model.
        metrics: what was measured after it.
        rank: the total rank of the broadcast, or why there is none.
        upload_bytes: what all clients sent.
        download_bytes: what was sent to all clients.
        held_back: what the server holds back as a fraction of the norm of what was due; None without feedback.
        seconds: how long the round took.
        clients: how many clients count.
        dropped: the clients that do not, and why.
        clipped: the clients whose updates the guard scaled down, and why.
        epsilon: what the rounds so far have spent of the clients' privacy; None without noise.
        failed: why nothing could be read of a masked sum; None where it was.
        ends: whether the rounds end after this one, though more were planned.
    """

    round: int
    metrics: Mapping[str, float]
    rank: str = ""
    upload_bytes: int = 0
    download_bytes: int = 0
    held_back: float | None = None
    seconds: float | None = None
    clients: int = 0
    dropped: tuple[str, ...] = ()
    clipped: tuple[str, ...] = ()
    epsilon: float | None = None
    failed: str | None = None
    ends: bool = False

    @classmethod
    def of(cls, record: RoundRecord) -> "Row":
        """The row of a record."""
        rank = str(record.total_rank) if record.ranks else ""  # averaged weights have no rank
        return cls(
            round=record.round,
            metrics={printable(name, 100): value for name, value in record.metrics.items()},
            rank=rank if record.aggregated else "none",
            upload_bytes=record.upload_bytes,
            download_bytes=record.download_bytes,
            held_back=record.relative_error if record.aggregated and record.held_back else None,
            seconds=record.seconds.get("total"),
            clients=len(record.clients),
            dropped=tuple(f"{printable(drop.client_id, 100)} dropped: {drop.reason}" for drop in record.dropped),
            clipped=tuple(f"{printable(clip.client_id, 100)} scaled down: {clip.reason}" for clip in record.clipped),
            epsilon=record.epsilon,
            failed=record.privacy.failed if record.privacy is not None else None,
            ends=record.ends,
        )


def rows_table(metric: str, rows: Sequence[Row]) -> Table:
    """A line a round; the columns fit 80 characters."""
    with_feedback, with_drops = any(row.held_back is not None for row in rows), any(row.dropped for row in rows)
    with_noise = any(row.epsilon is not None for row in rows)
    heads = [
        Text(one_line(metric).replace("_", "\n")),
        "rank",
        "up",
        "down",
        *([Text("held\nback")] if with_feedback else []),
        *(["epsilon"] if with_noise else []),
        "s",
        "clients",
    ]
    table = plain_table("round", *heads, *(["dropped"] if with_drops else []), words=())
    for column in table.columns:
        column.no_wrap = True
    for row in rows:
        played = row.round > 0
        table.add_row(
            str(row.round),
            f"{row.metrics[metric]:.3f}" if metric in row.metrics else "",
            row.rank,
            size(row.upload_bytes) if played else "",
            size(row.download_bytes) if played else "",
            *([f"{row.held_back:.0%}" if row.held_back is not None else ""] if with_feedback else []),
            *([f"{row.epsilon:.3g}" if row.epsilon is not None else ""] if with_noise else []),
            f"{row.seconds:.1f}" if row.seconds is not None else "",
            str(row.clients) if played else "",
            *([str(len(row.dropped) or "")] if with_drops else []),
        )
    return table


def line_of(row: Row) -> str:
    """One line for a round, where there is no terminal to draw a table on."""
    parts = [f"{name} {value:.3f}" for name, value in row.metrics.items()]
    if row.round:
        parts += [f"total rank {row.rank}"] if row.rank not in {"", "none"} else []
        parts += [row.failed or "too few replies, nothing changed"] if row.rank == "none" else []
        parts += [f"{size(row.upload_bytes)} up", f"{size(row.download_bytes)} down"]
        parts += [f"{row.held_back:.0%} held back"] if row.held_back is not None else []
        parts += [f"epsilon {row.epsilon:.3g}"] if row.epsilon is not None else []
        parts += [f"{row.seconds:.1f} s"] if row.seconds is not None else []
        parts += [f"{row.clients} clients", *row.dropped, *row.clipped]
    return f"round {row.round}: {', '.join(parts)}"


def curve(values: Sequence[float], width: int) -> Iterator[str]:
    """A curve of a metric as lines of text, its largest and smallest value at the side.

    Args:
        values: one for each evaluation; more than fit are averaged, so many to a column.
        width: how many characters a line may have.
    """
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return
    low, high = min(finite), max(finite)
    labels = [f"{high:.3f}", *[""] * (_HEIGHT - 2), f"{low:.3f}"]
    margin = max(map(len, labels))
    columns = list(_columns(values, max(1, width - margin - 1)))
    # Each column is filled to its height; the lowest value has one eighth, to be seen.
    span = 8 * _HEIGHT - 1
    heights = [1 + round(span * (value - low) / (high - low or 1)) if value is not None else 0 for value in columns]
    for number, label in enumerate(labels):
        below = 8 * (_HEIGHT - 1 - number)
        blocks = "".join(_EIGHTHS[min(8, max(0, height - below))] for height in heights)
        yield f"{label:>{margin}} {blocks}".rstrip()


def size(nbytes: int) -> str:
    """Bytes in a decimal unit that leaves few digits."""
    unit, name = next(((u, n) for u, n in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")) if nbytes >= u), (1e3, "KB"))
    return f"{nbytes / unit:.1f} {name}"


def _columns(values: Sequence[float], width: int) -> Iterator[float | None]:
    for number in range(min(width, len(values))):
        count = min(width, len(values))
        part = values[number * len(values) // count : (number + 1) * len(values) // count]
        finite = [value for value in part if math.isfinite(value)]
        yield sum(finite) / len(finite) if finite else None
