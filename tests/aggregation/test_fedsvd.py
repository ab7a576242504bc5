import pytest
import torch

from florist.aggregation import FedSvd
from florist.factors import AdapterState, LoraFactor
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.rounds import Trained
from tests.builders import SHAPES, adapter, dense_sum, relative_error, update, with_shared_rows


@pytest.mark.parametrize("ranks", [(1, 1), (3, 5), (8, 2), (12, 12)])
def test_rows_of_a_are_orthonormal_and_b_has_the_singular_values_in_order(ranks: tuple[int, int]) -> None:
    updates = [update(f"c{k}", with_shared_rows(rank, k), num_examples=k + 1) for k, rank in enumerate(ranks)]
    continued = FedSvd()(updates).continued
    for module, (_, n) in SHAPES.items():
        B, A = continued[module].B, continued[module].A
        count = min(max(ranks), n)
        torch.testing.assert_close(A @ A.T, torch.eye(count).double())
        expected = torch.linalg.svdvals(dense_sum(updates, module))[:count]
        found = torch.linalg.vector_norm(B, dim=0)
        torch.testing.assert_close(found[: expected.numel()], expected)
        assert relative_error(continued[module].delta_weight(), dense_sum(updates, module)) < 1e-12
        products = B.T @ B
        assert relative_error(products, torch.diag(products.diagonal())) < 1e-12


def test_where_the_mean_has_a_smaller_rank_its_rows_complete_the_space_of_a() -> None:
    held = with_shared_rows(4, 1).map(lambda f: LoraFactor(f.B[:, :1] @ torch.ones(1, 4, dtype=f.B.dtype), f.A))
    continued = FedSvd()([update("a", held)]).continued
    for module, before in held.items():
        A = continued[module].A
        torch.testing.assert_close(A @ A.T, torch.eye(4).double())
        assert relative_error(before.A @ A.T @ A, before.A) < 1e-12
        assert float(continued[module].B[:, 1:].abs().max()) < 1e-12


def test_both_halves_travel_down_and_b_alone_travels_up() -> None:
    assert (FedSvd().work.trained, FedSvd().work.broadcast) == (Trained.B, Trained.FACTORS)
    updates = [update(f"c{k}", with_shared_rows(3, k, dtype=torch.float32)) for k in range(2)]
    certificate = FedSvd()(updates).certificate
    assert certificate.bytes_in == 2 * 3 * 4 * sum(m for m, _ in SHAPES.values())
    assert certificate.bytes_out == 3 * 4 * sum(m + n for m, n in SHAPES.values())


def test_a_round_goes_on_from_what_was_sent_and_who_changes_its_rows_is_dropped() -> None:
    ranks = {"a": 2, "b": 5, "c": 8}
    federation = Federation(ranks, FedSvd(), SHAPES, seed=0, min_replies=1)
    first = [update(name, with_shared(federation, ServerState.initial(), name, k)) for k, name in enumerate("ab")]
    state = federation.close_round(ServerState.initial(), first).state
    # The largest client was away: its first rows are those that were sent, the rest are drawn for all alike.
    sent = [update(name, with_shared(federation, state, name, k), round_number=2) for k, name in enumerate("abc")]
    closed = federation.close_round(state, sent)
    assert closed.dropped == ()
    for module in SHAPES:
        for u in sent:
            common = min(5, ranks[u.client_id])
            assert torch.equal(u.adapter[module].A[:common], state.continued[module].A[:common])
        assert relative_error(closed.state.continued[module].delta_weight(), dense_sum(sent, module)) < 1e-12
    liar = update("b", sent[1].adapter.map(lambda f: LoraFactor(f.B, f.A * (1 + 1e-6))), round_number=2)
    dropped = federation.close_round(state, [sent[0], liar, sent[2]]).dropped
    assert [drop.client_id for drop in dropped] == ["b"]
    assert "expected A as the client was given it" in dropped[0].reason


def with_shared(federation: Federation, state: ServerState, client_id: str, seed: int) -> AdapterState:
    """A random B along the rows that a client was given."""
    rank, rows = federation.client_ranks[client_id], federation.rows(state, client_id)
    own = adapter(rank, seed)
    return AdapterState.of({name: LoraFactor(own[name].B, rows(name)[:rank].double()) for name in SHAPES})
