"""Updates of unlike ranks as one vector of words."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from florist.errors import InvalidUpdateError
from florist.privacy.fixed_point import FixedPoint
from florist.privacy.layout import Layout, padded_ranks

OUT = {"q": 5, "v": 3}


def layout(ranks: Mapping[str, int], bits: int = 40, largest_weight: int = 100) -> Layout:
    return Layout(
        FixedPoint(bits, len(ranks)),
        OUT,
        {"head": (2, 2)},
        frozenset(ranks.values()),
        {"q": 2.0, "v": 4.0, "head": 3.0},
        largest_weight,
    )


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 9), min_size=2), st.integers(2, 6), st.integers(0, 99))
@settings(max_examples=50)
def test_the_sum_of_words_is_the_weighted_sum(ranks: dict[str, int], group: int, seed: int) -> None:
    sent = padded_ranks(ranks, group)
    where = layout(sent)
    torch.manual_seed(seed)
    total = np.zeros(where.words(max(sent.values())), dtype=np.uint64)
    dense = {name: torch.zeros(rows, max(ranks.values()), dtype=torch.float64) for name, rows in OUT.items()}
    head, weights = torch.zeros(2, 2, dtype=torch.float64), 0
    for i, (client_id, rank) in enumerate(sorted(ranks.items())):
        B = {name: torch.rand(rows, rank) * 2 - 1 for name, rows in OUT.items()}
        own_head, weight = torch.rand(2, 2), 7 * i + 1
        words = where.encoded(B, {"head": own_head}, weight, sent[client_id])
        assert len(words) == where.words(sent[client_id])
        total[: len(words)] += words
        head, weights = head + weight * own_head.double(), weights + weight
        for name in OUT:
            dense[name][:, :rank] += weight * B[name].double()
    found = where.decoded(total, sent)
    assert found.weight == weights
    assert found.terms == len(ranks)
    for name in OUT:
        assert torch.allclose(found.B[name], dense[name], atol=1e-5)
    assert torch.allclose(found.saved_parameters["head"], head, atol=1e-5)


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from([4, 8, 16, 64]), min_size=1), st.integers(1, 8))
def test_each_column_is_sent_by_the_smallest_group(ranks: dict[str, int], group: int) -> None:
    sent = padded_ranks(ranks, group)
    assert all(sent[name] >= ranks[name] for name in ranks)
    for column in range(max(ranks.values())):
        assert sum(rank > column for rank in sent.values()) >= min(group, len(ranks))


def test_blocks_take_fewer_bytes_than_padding() -> None:
    ranks = dict(zip("abcdefgh", (64, 32, 16, 16, 8, 8, 4, 4), strict=True))
    blocks = padded_ranks(ranks, 3)
    assert sum(blocks.values()) == 3 * 64 + 16 + 8 + 8 + 4 + 4
    assert sum(padded_ranks(ranks, len(ranks)).values()) == 8 * 64
    assert sum(ranks.values()) == 152


def test_what_was_not_agreed_on_is_refused() -> None:
    where = layout({"a": 2, "b": 2})
    B = {name: torch.ones(rows, 2) for name, rows in OUT.items()}
    head = {"head": torch.zeros(2, 2)}
    with pytest.raises(InvalidUpdateError, match="weight from 0 to 100"):
        where.encoded(B, head, 101, 2)
    with pytest.raises(InvalidUpdateError, match="expected 5 rows"):
        where.encoded({**B, "q": torch.ones(4, 2)}, head, 1, 2)
    with pytest.raises(InvalidUpdateError, match="expected shape"):
        where.encoded(B, {"head": torch.zeros(3)}, 1, 2)


def test_a_large_number_is_cut_to_its_bound() -> None:
    where = layout({"a": 1, "b": 1})
    B = {"q": torch.full((5, 1), 50.0), "v": torch.full((3, 1), -1.0)}
    words = where.encoded(B, {"head": torch.zeros(2, 2)}, 100, 1)
    found = where.decoded(words, {"a": 1})
    assert torch.allclose(found.B["q"] / found.weight, torch.full((5, 1), 2.0, dtype=torch.float64))
    assert torch.allclose(found.B["v"] / found.weight, torch.full((3, 1), -1.0, dtype=torch.float64), atol=1e-6)
