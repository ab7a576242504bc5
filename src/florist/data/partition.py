"""Who holds which row: splits of one data set over clients that reproduce from a seed."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from florist.errors import DataError
from florist.seeding import derive_seed

Partition = list[list[int]]
"""Row numbers of each client, ascending; every row belongs to one client."""

Partitioner = Callable[[Sequence[Hashable], int, int], Partition]
"""(label of every row, number of clients, seed) -> partition."""


def iid(labels: Sequence[Hashable], num_clients: int, seed: int) -> Partition:
    """Shuffle and deal: every client draws from the same distribution, and sizes differ by one at most.

    Raises:
        DataError: there are fewer rows than clients, or no clients.
    """
    _require_rows(len(labels), num_clients, 1)
    order = _draw(seed, "partition").permutation(len(labels)).tolist()
    return [sorted(order[client::num_clients]) for client in range(num_clients)]


def dirichlet(
    labels: Sequence[Hashable], num_clients: int, seed: int, *, alpha: float = 1.0, min_rows: int = 1
) -> Partition:
    """Split every label's rows over the clients in proportions drawn from Dirichlet(alpha).

    A small alpha gives each client few labels, a large one gives the iid split; client sizes differ. Draws are
    repeated until every client has `min_rows` rows.

    Source: Yurochkin et al., arXiv:1905.12022, sec. 4; Hsu et al., arXiv:1909.06335.

    Raises:
        DataError: `alpha` is not positive and finite, there are too few rows or no clients, or no draw in a thousand
            gave every client its minimum.
    """
    if not 0 < alpha < math.inf:
        raise DataError(f"expected a positive, finite Dirichlet concentration alpha, got {alpha}")
    _require_rows(len(labels), num_clients, min_rows)
    by_label: dict[Hashable, list[int]] = {}
    for row, label in enumerate(labels):
        by_label.setdefault(label, []).append(row)
    draw = _draw(seed, "partition")
    for _ in range(1000):
        clients: Partition = [[] for _ in range(num_clients)]
        for label in sorted(by_label, key=repr):
            rows = by_label[label]
            shuffled = draw.permutation(len(rows)).tolist()
            ends = _ends(draw.dirichlet([alpha] * num_clients), len(rows))
            for client, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
                clients[client].extend(rows[i] for i in shuffled[start:end])
        if min(len(rows) for rows in clients) >= min_rows:
            return [sorted(rows) for rows in clients]
    raise DataError(
        f"expected Dirichlet({alpha}) to give {num_clients} clients at least {min_rows} rows each, and no draw of 1000 "
        f"did with {len(labels)} rows; raise alpha or lower the number of clients"
    )


def shards(labels: Sequence[Hashable], num_clients: int, seed: int, *, shards_per_client: int = 2) -> Partition:
    """Sort the rows by label, cut them into equal shards, and deal every client `shards_per_client` of them.

    A client sees few labels: with two shards each, most see two. Shard sizes differ by one row at most, and client
    sizes by at most `shards_per_client`.

    Source: McMahan et al., arXiv:1602.05629, sec. 3 (200 shards of MNIST by digit, two each for 100 clients).

    Raises:
        DataError: there are fewer rows than shards, no clients, or no shards each.
    """
    if shards_per_client < 1:
        raise DataError(f"expected at least one shard a client, got {shards_per_client}")
    _require_rows(len(labels), num_clients, shards_per_client)
    by_label = sorted(range(len(labels)), key=lambda row: repr(labels[row]))
    count = num_clients * shards_per_client
    ends = [len(labels) * (shard + 1) // count for shard in range(count)]
    cut = [by_label[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    order = _draw(seed, "partition").permutation(count).tolist()
    return [sorted(row for shard in order[client::num_clients] for row in cut[shard]) for client in range(num_clients)]


def by_field(labels: Sequence[Hashable], num_clients: int) -> Partition:
    """Deal whole labels: the first label in sorted order to the first client, and round again where labels are more.

    With as many clients as labels, each client is one label. Nothing is drawn.

    Raises:
        DataError: there are fewer labels than clients, or no clients.
    """
    _require_rows(len(labels), num_clients, 1)
    client_of = {label: number % num_clients for number, label in enumerate(sorted(set(labels), key=repr))}
    if len(client_of) < num_clients:
        raise DataError(
            f"expected at least {num_clients} values to deal to {num_clients} clients, got {len(client_of)}; lower the "
            "number of clients"
        )
    clients: Partition = [[] for _ in range(num_clients)]
    for row, label in enumerate(labels):
        clients[client_of[label]].append(row)
    return clients


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """Who holds how many rows of which label.

    Attributes:
        clients: their names, in order.
        labels: sorted, the commonest of them where there are many; the last is `REST` if some were put together.
        counts: rows of each label (columns) that each client (rows) holds.
    """

    clients: tuple[str, ...]
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


REST = "others"
"""Name of the column for labels that have none of their own."""


def count_labels(held: Mapping[str, Sequence[Hashable]], max_labels: int = 12) -> LabelCounts:
    """Count the labels of every client's rows.

    Args:
        held: client -> label of each of its rows.
        max_labels: columns at most; the rarest labels share the last one.
    """
    per_client = {client: Counter(str(label) for label in labels) for client, labels in held.items()}
    whole: Counter[str] = sum(per_client.values(), start=Counter())
    # The commonest first, ties in the order of their names.
    ranked = sorted(whole, key=lambda label: (-whole[label], label))
    shown = ranked if len(ranked) <= max_labels else ranked[: max_labels - 1]
    own = sorted(shown)
    rest = set(ranked) - set(shown)
    return LabelCounts(
        clients=tuple(per_client),
        labels=(*own, REST) if rest else tuple(own),
        counts=tuple(
            tuple(counted[label] for label in own) + ((sum(counted[label] for label in rest),) if rest else ())
            for counted in per_client.values()
        ),
    )


def hold_out(num_rows: int, fraction: float, seed: int, purpose: str = "hold out") -> tuple[list[int], list[int]]:
    """(rows to train on, rows held out), both ascending; at least one row on each side.

    Args:
        num_rows: how many there are.
        fraction: of them to hold out.
        seed: of the run.
        purpose: another one draws other rows from the same seed.

    Raises:
        DataError: fewer than two rows.
    """
    if num_rows < 2:
        raise DataError(f"expected at least two rows to hold some out, got {num_rows}")
    order = _draw(seed, purpose).permutation(num_rows).tolist()
    held = min(max(1, round(fraction * num_rows)), num_rows - 1)
    return sorted(order[held:]), sorted(order[:held])


def _draw(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng(derive_seed(seed, purpose))


def _ends(proportions: NDArray[np.float64], total: int) -> list[int]:
    ends = (proportions.cumsum() * total).round().astype(int).tolist()
    return [*ends[:-1], total]


def _require_rows(rows: int, num_clients: int, min_rows: int) -> None:
    if num_clients < 1:
        raise DataError(f"expected at least one client, got {num_clients}")
    needed = num_clients * min_rows
    if rows < needed:
        raise DataError(f"expected at least {needed} rows to share out, got {rows}; use fewer clients or more data")
