"""Figures of who contributed what: examples, the size of updates, how far they agree, and the losses of training."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import altair as alt

from florist.data.partition import LabelCounts
from florist.federation.records import RoundRecord
from florist.reporting.content import Table
from florist.reporting.figures import Figure, Row, heat_map
from florist.reporting.numbers import MISSING, number
from florist.reporting.theme import DIVERGING, SEQUENTIAL

MOST_DROPS = 200
"""The table of drops has at most so many lines."""


def examples_by_label(counted: LabelCounts) -> Figure:
    """How many training examples of which label each client has."""
    rows: list[Row] = [
        {"client": client, "label": label, "examples": count}
        for client, counts in zip(counted.clients, counted.counts, strict=True)
        for label, count in zip(counted.labels, counts, strict=True)
    ]
    totals = [sum(counts) for counts in counted.counts]
    return Figure(
        name="examples",
        title="training examples by client and label",
        caption="How unlike the clients are: a line for each client, a column for each label.",
        alt=f"Heat map of the training examples of {len(counted.clients)} clients by {len(counted.labels)} labels. The "
        f"clients have {min(totals, default=0)} to {max(totals, default=0)} examples.",
        chart=heat_map(
            alt.X("label:N", title="label", sort=list(counted.labels), axis=alt.Axis(labelAngle=-40, labelLimit=90)),
            _clients(counted.clients),
            alt.Color("examples:Q", title="examples", scale=alt.Scale(scheme=SEQUENTIAL)),
            [alt.Tooltip("client:N"), alt.Tooltip("label:N"), alt.Tooltip("examples:Q")],
            lines=len(counted.clients),
        ),
        columns={"client": "client", "label": "label", "examples": "examples"},
        rows=rows,
    )


def update_norms(records: Sequence[RoundRecord]) -> Figure | None:
    """The norm of what each client's training changed, by round."""
    return by_client_and_round(
        ((record.round, client.client_id, client.update_norm) for record in records for client in record.clients),
        name="update-norms",
        title="norm of the updates by client and round",
        caption="The Frobenius norm over all modules, from the factors, before any weight. A client that is far larger "
        "or smaller than the rest stands out as a line of another colour.",
        what="norm",
    )


def training_losses(records: Sequence[RoundRecord]) -> Figure | None:
    """The mean training loss of each client, by round."""
    return by_client_and_round(
        ((record.round, client.client_id, client.loss) for record in records for client in record.clients),
        name="training-losses",
        title="training loss by client and round",
        caption="The mean over the steps of the round, on the client's own training examples.",
        what="loss",
    )


def cosines(records: Sequence[RoundRecord]) -> Figure | None:
    """The cosines between the clients' updates in the last round that has them."""
    last = next((record for record in reversed(records) if record.cosines), None)
    if last is None:
        return None
    names = [client.client_id for client in last.clients[: len(last.cosines)]]
    rows: list[Row] = [
        {"client": names[i], "with": names[j], "cosine": cosine}
        for i, line in enumerate(last.cosines)
        for j, cosine in enumerate(line)
        if cosine is not None
    ]
    if not rows:
        return None
    values = [row["cosine"] for row in rows]
    left_out = len(last.clients) - len(names)
    note = f" The first {len(names)} clients of {len(last.clients)} are shown." if left_out else ""
    return Figure(
        name="cosines",
        title=f"cosine between the clients' updates in round {last.round}",
        caption="1 where two clients changed the model alike, 0 where what they changed has nothing in common, below 0 "
        f"where they pull apart. Computed from the factors, over all modules together.{note}",
        alt=f"Heat map of the cosines between the updates of {len(names)} clients in round {last.round}: from "
        f"{min(values):.2f} to {max(values):.2f}, {sum(values) / len(values):.2f} in the mean.",
        chart=heat_map(
            alt.X("with:N", title=None, sort=names, axis=alt.Axis(labelAngle=-40, labelLimit=90)),
            _clients(names),
            alt.Color("cosine:Q", title="cosine", scale=alt.Scale(scheme=DIVERGING, domain=[-1, 1])),
            [alt.Tooltip("client:N"), alt.Tooltip("with:N"), alt.Tooltip("cosine:Q", format=".3f")],
            lines=len(names),
        ),
        columns={"client": "client", "with": "with", "cosine": "cosine"},
        rows=rows,
    )


def mean_cosines(records: Sequence[RoundRecord]) -> list[Row]:
    """The mean cosine between the clients' updates, for each round that has them."""
    found: list[Row] = []
    for record in records:
        values = [cosine for line in record.cosines for cosine in line if cosine is not None]
        if values:
            found.append({"series": "all pairs of clients", "round": record.round, "value": sum(values) / len(values)})
    return found


def drops(runs: Sequence[tuple[str, Sequence[RoundRecord]]]) -> Table | None:
    """The clients that were asked and do not count, or count less than their share, and why.

    Args:
        runs: the records of each run, and what the run is called; the name of a single run is left out.
    """
    with_run = len(runs) > 1
    lines = [
        [*([name] if with_run else []), str(record.round), client_id, reason]
        for name, records in runs
        for record in records
        for client_id, reason in [
            *((drop.client_id, drop.reason) for drop in record.dropped),
            *((clip.client_id, f"scaled down to {clip.factor:.2g}: {clip.reason}") for clip in record.clipped),
        ]
    ]
    if not lines:
        return None
    heads = [*(["run"] if with_run else []), "round", "client", "reason"]
    more = f"; the first {MOST_DROPS} of {len(lines)}" if len(lines) > MOST_DROPS else ""
    return Table(f"Refused and dropped updates{more}", heads, lines[:MOST_DROPS])


def parts(records: Sequence[RoundRecord]) -> Table | None:
    """A line for each client: how often it took part, with what, and what it sent."""
    counted = [client for record in records for client in record.clients]
    if not counted:
        return None
    refused = Counter(drop.client_id for record in records for drop in record.dropped)
    lines: list[list[str]] = []
    for client_id in sorted({client.client_id for client in counted} | set(refused)):
        own = [client for client in counted if client.client_id == client_id]
        norms = [client.update_norm for client in own if client.update_norm is not None]
        lines.append(
            [
                client_id,
                str(len(own)),
                str(refused[client_id]),
                str(own[-1].rank) if own else MISSING,
                f"{examples:,}" if own and (examples := own[-1].num_examples) is not None else MISSING,
                number(sum(norms) / len(norms) if norms else None, 3),
                f"{sum(client.upload_bytes for client in own) / 1e6:.2f}",
                f"{sum(client.download_bytes for client in own) / 1e6:.2f}",
                f"{sum(client.seconds for client in own):.1f}",
            ]
        )
    heads = ["client", "rounds", "dropped", "rank", "examples", "mean norm", "MB up", "MB down", "s training"]
    return Table("The clients, over all rounds", heads, lines)


def by_client_and_round(
    values: Iterable[tuple[int, str, float | None]], *, name: str, title: str, caption: str, what: str
) -> Figure | None:
    """A heat map with a line for each client and a column for each round; None where no value is there, or all are 0.

    Args:
        values: the round, the client, and the value; one that is missing or not finite leaves its place free.
        name: the name of the figure.
        title: its title.
        caption: how to read it.
        what: what the values are.
    """
    rows: list[Row] = [
        {"client": client, "round": number, "value": float(f"{value:.5g}")}
        for number, client, value in values
        if value is not None and math.isfinite(value)
    ]
    if not rows or not any(row["value"] for row in rows):
        return None
    clients = sorted({row["client"] for row in rows})
    values = [row["value"] for row in rows]
    rounds = sorted({row["round"] for row in rows})
    # A tick for every round would be a black band.
    step = max(1, -(-len(rounds) // 15))
    return Figure(
        name=name,
        title=title,
        caption=caption,
        alt=f"Heat map of the {what} of {len(clients)} clients over {len(rounds)} rounds: from {min(values):.3g} to "
        f"{max(values):.3g}.",
        chart=heat_map(
            alt.X("round:O", title="round", axis=alt.Axis(labelAngle=0, values=rounds[::step])),
            _clients(clients),
            alt.Color("value:Q", title=what, scale=alt.Scale(scheme=SEQUENTIAL, zero=_spread(values))),
            [alt.Tooltip("client:N"), alt.Tooltip("round:O"), alt.Tooltip("value:Q", format=".3g", title=what)],
            lines=len(clients),
        ),
        columns={"client": "client", "round": "round", "value": what},
        rows=rows,
    )


def _spread(values: Sequence[float]) -> bool:
    """Whether a scale begins at 0: where it did not, equal values would look unlike by their rounding."""
    ordered = sorted(values)
    return all(abs(b - a) <= 1e-3 * abs(b) for a, b in pairwise(ordered)) and ordered[-1] - ordered[0] < 0.01 * abs(
        ordered[-1]
    )


def _clients(names: Sequence[str]) -> alt.Y:
    return alt.Y("client:N", title=None, sort=list(names), axis=alt.Axis(labelLimit=110, labelOverlap=True))
