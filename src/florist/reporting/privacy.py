"""The section of a page about private rounds: what was spent, who was in which sum, and what nobody was told."""

from collections.abc import Sequence

from florist.federation.records import RoundRecord
from florist.reporting.content import Block, Table
from florist.reporting.curves import by_round
from florist.reporting.figures import Row
from florist.reporting.numbers import MISSING, number

_MOST_ROUNDS = 50
_MOST_NAMES = 12
_NOISE = {
    "server": "added by the server to the sum",
    "clients": "added by clients in shares, before the server has the sum",
}


def privacy_blocks(records: Sequence[RoundRecord]) -> list[Block]:
    """A table of what was protected, a figure of epsilon, and a line a round; nothing where no round was private."""
    private = [record for record in records if record.privacy is not None]
    last = private[-1].privacy if private else None
    if last is None:
        return []
    lines = [
        ["single updates", "summed under masks, unseen by the server" if last.masked else "seen by the server"],
        ["clients that had to be left", str(last.threshold) if last.threshold is not None else MISSING],
        ["epsilon of all rounds", number(last.epsilon)],
        ["delta", f"{last.delta:g}" if last.delta is not None else MISSING],
        ["noise over clip", number(last.noise_multiplier)],
        ["noise", _NOISE.get(last.noise or "", MISSING)],
        ["honest clients of a round", f"{last.honest_fraction:.0%}" if last.honest_fraction is not None else MISSING],
        ["clip of the last round", number(last.clip)],
        ["ended", "before a round that would exceed the epsilon" if last.spent else MISSING],
        ["not written down", "numbers of examples, training losses, norms of updates, cosines between them"],
        ["not counted in epsilon", "metrics on examples of the clients, and the seconds that they trained"],
    ]
    rows: list[Row] = [
        {"series": "all rounds so far", "round": record.round, "value": record.epsilon}
        for record in private
        if record.epsilon is not None
    ]
    figure = by_round(
        "epsilon",
        "epsilon spent, by round",
        "epsilon",
        rows,
        "What the broadcasts so far tell of one client at most, for whoever does not know who took part.",
    )
    sums = [_line(record) for record in private]
    more = f"; the last {_MOST_ROUNDS} of {len(sums)} rounds" if len(sums) > _MOST_ROUNDS else ""
    heads = ["round", "clients", "who", "clip", "deviation of the mean", "epsilon"]
    return [
        Table("Privacy", ["", "value"], [line for line in lines if line[1] != MISSING]),
        *([figure] if figure is not None else []),
        Table(f"Who was in which sum{more}", heads, sums[-_MOST_ROUNDS:]),
    ]


def _line(record: RoundRecord) -> list[str]:
    privacy, names = record.privacy, [client.client_id for client in record.clients]
    if privacy is None:
        return []
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    who = f"nothing could be read: {privacy.failed}" if privacy.failed is not None else None
    return [
        str(record.round),
        str(len(names)),
        who or ", ".join(names[:_MOST_NAMES]) + more,
        number(privacy.clip),
        number(privacy.deviation),
        number(privacy.epsilon),
    ]
