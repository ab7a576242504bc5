"""Who holds which row: splits of one data set over clients that reproduce from a seed."""

import math
from collections.abc import Callable, Hashable, Sequence

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


def hold_out(num_rows: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """(rows to train on, rows held out), both ascending; at least one row on each side.

    Raises:
        DataError: fewer than two rows.
    """
    if num_rows < 2:
        raise DataError(f"expected at least two rows to hold some out, got {num_rows}")
    order = _draw(seed, "hold out").permutation(num_rows).tolist()
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
