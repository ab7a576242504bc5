"""The three ways of ``benchmarks/noise_edge.py``: the edge of many rounds, and rows that stay."""

import pytest
import torch
from benchmarks.epsilon import LINES
from benchmarks.noise_edge import WAYS, KeptRows, OverRounds

from florist import AdapterState, ClientUpdate, LinearRounds, LoraFactor, NoiseEdge
from florist.federation.local_init import FRESH_ROW_NORM, Agreed
from florist.federation.state import ServerState
from florist.seeding import generator

SHAPE = (12, 20)
RANK = 3


def update(seed: int, rows: torch.Tensor, size: float) -> ClientUpdate:
    """A noisy mean along orthogonal rows, with one direction of a size."""
    B = torch.randn(SHAPE[0], RANK, generator=generator(seed, "B"))
    B[:, 0] += size * torch.ones(SHAPE[0])
    return ClientUpdate("the sum", AdapterState.of({"layer": LoraFactor(B / FRESH_ROW_NORM, rows)}), 1, 1)


def product(factor: LoraFactor) -> torch.Tensor:
    return factor.B @ factor.A


def rows_of(seed: int) -> torch.Tensor:
    drawn = torch.randn(SHAPE[1], RANK, generator=generator(seed, "A"))
    return FRESH_ROW_NORM * torch.linalg.qr(drawn).Q.T


@pytest.mark.parametrize("size", [0.0, 3.0])
def test_in_the_first_round_the_edge_is_that_of_florist(size: float) -> None:
    given = update(1, rows_of(1), size)
    expected = LinearRounds(NoiseEdge(1.0, RANK, 1.1))([given]).certificate.total_rank
    assert OverRounds(1.1).at(1.0)([given]).certificate.total_rank == expected
    assert expected == (0 if size == 0.0 else 1)


def test_what_is_not_sent_stays_due() -> None:
    over, sent, total = OverRounds(0.8), torch.zeros(SHAPE), torch.zeros(SHAPE)
    for seed in range(6):
        given = update(seed, rows_of(seed), 0.5)
        broadcast = over.at(1.0)([given])
        sent, total = sent + product(broadcast.shared["layer"]), total + product(given.adapter["layer"])
    assert 0 < sent.norm() < total.norm()
    assert torch.allclose(sent + over.due["layer"].float(), total, atol=1e-4)
    # What was sent has taken its noise along: the covariance has none of its rows.
    directions = broadcast.shared["layer"].A.double()
    assert float((directions @ over.covariance["layer"]).norm()) < 1e-4


def test_noise_of_many_rounds_along_the_same_rows_stays_below_the_edge() -> None:
    over, rows = OverRounds(1.1), rows_of(1)
    ranks = [over.at(1.0)([update(seed, rows, 0.0)]).certificate.total_rank for seed in range(20)]
    assert sum(ranks) <= 1


def test_rows_stay_where_nothing_was_sent() -> None:
    kept, shapes = KeptRows(), {"layer": SHAPE}
    with kept.patched():
        before = ServerState.initial()
        first = Agreed(1, RANK, shapes)(before, RANK).local["layer"].A
        after = ServerState(1, before.cumulative, before.continued, {}, before.broadcasts, {})
        second = Agreed(2, RANK, shapes)(after, RANK).local["layer"].A
    assert torch.allclose(first @ first.T, FRESH_ROW_NORM**2 * torch.eye(RANK), atol=1e-5)
    assert torch.allclose(second.T @ second, first.T @ first, atol=1e-5)
    assert not torch.allclose(Agreed(2, RANK, shapes)(after, RANK).local["layer"].A, second)


def test_every_way_begins_with_a_line_of_the_table() -> None:
    assert {way.line for way in WAYS} <= {line.name for line in LINES}
