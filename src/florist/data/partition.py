"""Which client has which example: splits of one data set over clients, which a seed reproduces."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from florist.errors import DataError
from florist.seeding import derive_seed

Partition = list[list[int]]
"""The numbers of each client's examples, ascending; every example belongs to one client."""

Partitioner = Callable[[Sequence[Hashable], int, int], Partition]
"""A function of the label of every example, the number of clients and the seed."""


def iid(labels: Sequence[Hashable], num_clients: int, seed: int) -> Partition:
    """Shuffle and deal the examples: all clients draw from one distribution, and their sizes differ by one at most.

    Raises:
        DataError: There are fewer examples than clients, or no clients.
    """
    _require_examples(len(labels), num_clients, 1)
    order = _draw(seed, "partition").permutation(len(labels)).tolist()
    return [sorted(order[client::num_clients]) for client in range(num_clients)]


def dirichlet(
    labels: Sequence[Hashable], num_clients: int, seed: int, *, alpha: float = 1.0, min_examples: int = 1
) -> Partition:
    """Split the examples of every label over the clients in proportions that are drawn from Dirichlet(alpha).

    A small alpha gives each client few labels, a large one gives the iid split; client sizes differ. Draws are
    repeated until every client has `min_examples` examples.

    Raises:
        DataError: `alpha` is not positive and finite, there are too few examples or no clients, or no draw in a
            thousand gave every client its minimum.

    Source: Yurochkin et al., arXiv:1905.12022, sec. 4; Hsu et al., arXiv:1909.06335.
    """
    if not 0 < alpha < math.inf:
        raise DataError(f"expected a positive, finite Dirichlet concentration alpha, got {alpha}")
    _require_examples(len(labels), num_clients, min_examples)
    by_label: dict[Hashable, list[int]] = {}
    for number, label in enumerate(labels):
        by_label.setdefault(label, []).append(number)
    draw = _draw(seed, "partition")
    for _ in range(1000):
        clients: Partition = [[] for _ in range(num_clients)]
        for label in sorted(by_label, key=repr):
            examples = by_label[label]
            shuffled = draw.permutation(len(examples)).tolist()
            ends = _ends(draw.dirichlet([alpha] * num_clients), len(examples))
            for client, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
                clients[client].extend(examples[i] for i in shuffled[start:end])
        if min(len(examples) for examples in clients) >= min_examples:
            return [sorted(examples) for examples in clients]
    raise DataError(
        f"expected Dirichlet({alpha}) to give {num_clients} clients at least {min_examples} examples each, and no draw "
        f"of 1000 did with {len(labels)} examples; raise alpha, or lower the minimum or "
        "the number of clients"
    )


def shards(labels: Sequence[Hashable], num_clients: int, seed: int, *, shards_per_client: int = 2) -> Partition:
    """Sort the examples by label, cut them into equal shards, and deal every client `shards_per_client` of them.

    A client sees few labels: with two shards each, most see two. Shard sizes differ by one example at most, and client
    sizes by at most `shards_per_client`.

    Raises:
        DataError: There are fewer examples than shards, or no clients, or a client is to get no shard.

    Source: McMahan et al., arXiv:1602.05629, sec. 3 (200 shards of MNIST by digit, two each for 100 clients).
    """
    if shards_per_client < 1:
        raise DataError(f"expected at least one shard a client, got {shards_per_client}")
    _require_examples(len(labels), num_clients, shards_per_client)
    by_label = sorted(range(len(labels)), key=lambda number: repr(labels[number]))
    count = num_clients * shards_per_client
    ends = [len(labels) * (shard + 1) // count for shard in range(count)]
    cut = [by_label[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    order = _draw(seed, "partition").permutation(count).tolist()
    dealt = [order[client::num_clients] for client in range(num_clients)]
    return [sorted(number for shard in shards for number in cut[shard]) for shards in dealt]


def by_field(labels: Sequence[Hashable], num_clients: int) -> Partition:
    """Deal whole labels: the first label in sorted order to the first client, and round again where labels are more.

    With as many clients as labels, each client is one label. Nothing is drawn.

    Raises:
        DataError: There are fewer labels than clients, or no clients.
    """
    _require_examples(len(labels), num_clients, 1)
    client_of = {label: number % num_clients for number, label in enumerate(sorted(set(labels), key=repr))}
    if len(client_of) < num_clients:
        raise DataError(
            f"expected at least {num_clients} values to deal to {num_clients} clients, got {len(client_of)}; lower the "
            "number of clients"
        )
    clients: Partition = [[] for _ in range(num_clients)]
    for number, label in enumerate(labels):
        clients[client_of[label]].append(number)
    return clients


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """How many examples of which label each client has.

    Attributes:
        clients: The names of the clients, in order.
        labels: The labels in sorted order. Where there are many, these are the commonest, and the last one is `REST`.
        counts: For each client, how many examples it has of each label.
    """

    clients: tuple[str, ...]
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


REST = "others"
"""The name under which labels that have no column of their own are counted."""


def count_labels(labels_of: Mapping[str, Sequence[Hashable]], max_labels: int = 12) -> LabelCounts:
    """Count the labels of every client's examples.

    Args:
        labels_of: For each client, the label of each of its examples.
        max_labels: How many labels are counted apart, at most; the rarest are counted together.
    """
    per_client = {client: Counter(str(label) for label in labels) for client, labels in labels_of.items()}
    whole: Counter[str] = sum(per_client.values(), start=Counter())
    # The commonest come first, and ties in the order of their names.
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


def hold_out(num_examples: int, fraction: float, seed: int, purpose: str = "hold out") -> tuple[list[int], list[int]]:
    """Divide examples into those to train on and those held out, at least one each; their numbers are ascending.

    Args:
        num_examples: How many examples there are.
        fraction: The fraction of them to hold out.
        seed: The seed of the run.
        purpose: What they are held out for; another purpose draws other examples from the same seed.

    Raises:
        DataError: There are fewer than two examples.
    """
    if num_examples < 2:
        raise DataError(f"expected at least two examples to hold some out, got {num_examples}")
    order = _draw(seed, purpose).permutation(num_examples).tolist()
    held = min(max(1, round(fraction * num_examples)), num_examples - 1)
    return sorted(order[held:]), sorted(order[:held])


def _draw(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng(derive_seed(seed, purpose))


def _ends(proportions: NDArray[np.float64], total: int) -> list[int]:
    ends = (proportions.cumsum() * total).round().astype(int).tolist()
    return [*ends[:-1], total]


def _require_examples(num_examples: int, num_clients: int, min_examples: int) -> None:
    if num_clients < 1:
        raise DataError(f"expected at least one client, got {num_clients}")
    needed = num_clients * min_examples
    if num_examples < needed:
        raise DataError(
            f"expected at least {needed} examples to share out, got {num_examples}; use fewer clients or more data"
        )
