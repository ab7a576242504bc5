import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from florist.aggregation import LinearRounds
from florist.errors import InvalidUpdateError
from florist.factors import AdapterState, LoraFactor
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.ranks import ByteBudget, EnergyThreshold, GlobalEnergyThreshold, RankRule
from florist.rounds import ClientUpdate
from tests.builders import SHAPES, adapter, dense_sum, relative_error, update, with_shared_rows

RULES = [EnergyThreshold(0.7), GlobalEnergyThreshold(0.7), ByteBudget(1500, 8)]


def trained(federation: Federation, state: ServerState, client_id: str, seed: int, modules: list[str]) -> ClientUpdate:
    """The update of a client that trained a random B along what it was given."""
    given = federation.start(state, client_id).local
    own = adapter(federation.client_ranks[client_id], seed)
    held = {name: LoraFactor(own[name].B, given[name].A.double()) for name in modules}
    return update(client_id, AdapterState.of(held), num_examples=seed + 1, round_number=state.round_number + 1)


@given(
    ranks=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    tau=st.sampled_from([0.5, 1.0]),
    absent=st.integers(0, 4),
    backwards=st.booleans(),
)
@settings(max_examples=20)
def test_every_round_adds_the_exact_sum_or_its_best_cut(
    ranks: list[int], tau: float, absent: int, backwards: bool
) -> None:
    clients = {f"client_{k}": rank for k, rank in enumerate(ranks)}
    federation = Federation(clients, LinearRounds(EnergyThreshold(tau)), SHAPES, seed=3, min_replies=1)
    state = ServerState.initial()
    for number in range(3):
        # One client lacks a module, and in the second round one is away.
        updates = [
            trained(federation, state, name, 10 * number + k, list(SHAPES)[int(k == absent) :])
            for k, name in enumerate(clients)
            if not (number == 1 and k == 0 and len(clients) > 1)
        ]
        closed = federation.close_round(state, updates[::-1] if backwards else updates)
        assert closed.dropped == ()
        assert closed.broadcast is not None
        for module in closed.broadcast.shared:
            exact = dense_sum(updates, module)
            added = closed.broadcast.shared[module].delta_weight()
            kept = closed.broadcast.certificate.modules[module]
            U, S, Vh = torch.linalg.svd(exact, full_matrices=False)
            assert relative_error(added, (U[:, : kept.rank] * S[: kept.rank]) @ Vh[: kept.rank]) < 1e-11
            assert kept.rank <= max(ranks)
            if tau == 1.0:
                assert relative_error(added, exact) < 1e-12
        state = closed.state


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_the_rule_chooses_the_ranks(rule: RankRule) -> None:
    updates = [update(f"c{k}", with_shared_rows(rank, k), num_examples=k + 1) for k, rank in enumerate((2, 8, 5))]
    broadcast = LinearRounds(rule)(updates)
    for module in SHAPES:
        U, S, Vh = torch.linalg.svd(dense_sum(updates, module), full_matrices=False)
        rank = broadcast.shared[module].rank
        assert relative_error(broadcast.shared[module].delta_weight(), (U[:, :rank] * S[:rank]) @ Vh[:rank]) < 1e-11
    assert 0 < broadcast.certificate.total_rank < 8 * len(SHAPES)


def test_the_uploads_are_b_alone_and_the_broadcast_is_both_halves() -> None:
    updates = [update(f"c{k}", with_shared_rows(3, k, dtype=torch.float32)) for k in range(2)]
    certificate = LinearRounds(EnergyThreshold(1.0))(updates).certificate
    assert certificate.bytes_in == 2 * 3 * 4 * sum(m for m, _ in SHAPES.values())
    assert certificate.bytes_out == 3 * 4 * sum(m + n for m, n in SHAPES.values())


def test_clients_along_unlike_rows_are_refused() -> None:
    with pytest.raises(InvalidUpdateError, match=r"expected every client to hold the same rows of A, and 'b' and 'a'"):
        LinearRounds(EnergyThreshold(1.0))([update("a", adapter(3, 1)), update("b", adapter(2, 2))])
