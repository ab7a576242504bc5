import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from florist.aggregation import lossless_sum
from florist.factors import AdapterState, LoraFactor
from florist.federation.broadcasts import Broadcasts
from florist.federation.local_init import FRESH_ROW_NORM, Agreed, Aligned, Continued, Fresh, LocalInit, Warm, change
from florist.federation.state import ServerState
from florist.rounds import NO_ADAPTER
from tests.builders import SHAPES, adapter, relative_error


def state(**changes: object) -> ServerState:
    """After two rounds, each of which added an adapter."""
    first, second = adapter(3, 1), adapter(2, 2)
    settings = {
        "round_number": 2,
        "cumulative": lossless_sum([first, second]),
        "continued": NO_ADAPTER,
        "saved_parameters": {},
        "broadcasts": Broadcasts({1: first, 2: second}),
        "holds": {},
    }
    return ServerState(**{**settings, **changes})


def dense(module: str, *parts: AdapterState) -> Tensor:
    held = [part[module].delta_weight() for part in parts if module in part]
    return sum(held, start=torch.zeros(SHAPES[module], dtype=torch.float64))


every_init = pytest.mark.parametrize("init", [Fresh(), Aligned(), Warm()], ids=lambda init: type(init).__name__)


@every_init
@pytest.mark.parametrize("rank", [1, 4, 5, 8, 30])
def test_the_function_does_not_change_before_training(init: LocalInit, rank: int) -> None:
    held = state()
    start = init(held, rank)
    for module in SHAPES:
        assert relative_error(dense(module, start.frozen, start.local), dense(module, held.cumulative)) < 1e-12
        assert module not in start.local or start.local[module].rank <= rank


@every_init
def test_before_the_first_round_every_start_is_fresh(init: LocalInit) -> None:
    start = init(ServerState.initial(), 4)
    assert not start.frozen
    assert not start.local
    assert not init.given(ServerState.initial(), 4)


def test_aligned_rows_are_the_leading_directions_of_the_last_update_at_the_norm_of_fresh_ones() -> None:
    last = state().broadcasts[2]
    for rank, expected in ((1, 1), (2, 2), (6, 2)):
        start = Aligned()(state(), rank)
        for module, factor in start.local.items():
            assert factor.rank == expected
            assert float(factor.B.abs().max()) == 0.0
            gram = factor.A @ factor.A.T
            torch.testing.assert_close(gram, FRESH_ROW_NORM**2 * torch.eye(expected, dtype=torch.float64))
            Vh = torch.linalg.svd(last[module].delta_weight(), full_matrices=False).Vh[:expected]
            # Up to signs, each row by itself.
            torch.testing.assert_close((factor.A @ Vh.T).abs(), FRESH_ROW_NORM * torch.eye(expected).double())


def test_a_stack_is_aligned_to_by_its_directions_and_not_its_rows() -> None:
    twice = adapter(2, 3).map(lambda f: LoraFactor(torch.cat([f.B, f.B], 1), torch.cat([f.A, f.A])))
    start = Aligned()(state(broadcasts=Broadcasts({1: twice})), 4)
    assert {factor.rank for factor in start.local.values()} == {2}


def test_warm_takes_the_best_part_of_the_global_adapter() -> None:
    held = state()
    start = Warm()(held, 3)
    for module in SHAPES:
        U, S, Vh = torch.linalg.svd(dense(module, held.cumulative), full_matrices=False)
        assert relative_error(start.local[module].delta_weight(), (U[:, :3] * S[:3]) @ Vh[:3]) < 1e-10
        assert start.frozen[module].rank == held.cumulative[module].rank - 3
        assert torch.equal(Warm().given(held, 3)[module].B, start.local[module].B)


@pytest.mark.parametrize("max_rank", [1, 2, 8, 9, 16])
@pytest.mark.parametrize("begun", [False, True])
def test_agreed_rows_are_orthogonal_at_the_norm_of_fresh_ones_and_a_smaller_rank_takes_the_first(
    max_rank: int, begun: bool
) -> None:
    init, held = Agreed(5, max_rank, SHAPES), state() if begun else ServerState.initial()
    whole = init(held, max_rank)
    assert whole.frozen is held.cumulative
    assert not init.given(held, max_rank)
    for module, (_, n) in SHAPES.items():
        A = whole.local[module].A
        count = min(max_rank, n)
        torch.testing.assert_close(A[:count] @ A[:count].T, torch.eye(count, dtype=A.dtype) / 3, atol=1e-6, rtol=0)
        assert A.shape == (max_rank, n)
        assert not A[count:].any()  # there are no more orthogonal rows
        assert not whole.local[module].B.any()
        for rank in range(1, max_rank):
            assert torch.equal(init(held, rank).local[module].A, A[:rank])
    other = Agreed(6, max_rank, SHAPES)(held, max_rank).local
    assert all(torch.equal(whole.local[m].A, other[m].A) == (begun and max_rank <= 2) for m in SHAPES)


def test_the_first_agreed_rows_span_the_first_rows_of_the_last_broadcast() -> None:
    held = state()
    last = lossless_sum([held.broadcasts[2]])
    A = Agreed(5, 4, SHAPES)(state(broadcasts=Broadcasts({2: last})), 4).local
    for module in SHAPES:
        Vh = torch.linalg.svd(last[module].delta_weight(), full_matrices=False).Vh[:2]
        torch.testing.assert_close(A[module].A[:2] @ Vh.T, (A[module].A[:2] @ Vh.T).diagonal().diag())
        torch.testing.assert_close((A[module].A[:2] @ Vh.T).abs().diagonal(), torch.full((2,), 3**-0.5).double())


def test_agreed_rows_pass_over_rows_of_a_broadcast_that_are_zero() -> None:
    # A codec may send a component whose row was rounded to nothing.
    plain = adapter(2, 1)
    holed = plain.map(lambda f: LoraFactor(torch.cat([f.B[:, :1], f.B], 1), torch.cat([0 * f.A[:1], f.A])))
    found = (Agreed(5, 4, SHAPES)(state(broadcasts=Broadcasts({1: last})), 3).local for last in (plain, holed))
    expected, passed_over = found
    assert all(torch.equal(expected[m].A, passed_over[m].A) for m in SHAPES)
    shown = Agreed(5, 4, SHAPES).directions(state(broadcasts=Broadcasts({1: holed})), 1)
    assert all(torch.equal(shown[m].A, plain[m].A[:1]) for m in SHAPES)


def test_agreed_rows_are_made_once_for_all_clients_of_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    held, made = state(), list[int]()
    qr = torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "qr", lambda A: made.append(1) or qr(A))
    for rank in (1, 2, 3):
        Agreed(5, 3, SHAPES)(held, rank)
    assert len(made) == len(SHAPES)
    Agreed(6, 3, SHAPES)(held, 3)
    assert len(made) == 2 * len(SHAPES)


def test_continued_takes_the_first_components_beside_all_that_was_added() -> None:
    held = state(continued=adapter(6, 9))
    start = Continued()(held, 4)
    assert start.frozen is held.cumulative
    for module in SHAPES:
        assert torch.equal(start.local[module].A, held.continued[module].A[:4])
        assert torch.equal(start.local[module].B, held.continued[module].B[:, :4])
    assert not Continued().given(held, 4)


@given(uploaded=st.integers(0, 7), given_rank=st.integers(0, 7), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_the_change_is_the_difference_of_the_products(uploaded: int, given_rank: int, seed: int) -> None:
    upload, start = adapter(uploaded, seed), adapter(given_rank, 1000 + seed)
    found = change(upload, start)
    for module in SHAPES:
        expected = upload[module].delta_weight() - start[module].delta_weight()
        torch.testing.assert_close(found[module].delta_weight(), expected, atol=1e-12, rtol=1e-12)
        assert found[module].rank == max(uploaded, given_rank) + given_rank


def test_a_small_change_keeps_its_digits() -> None:
    start = adapter(4, 1, dtype=torch.float32)
    moved = start.map(lambda f: LoraFactor(f.B + 1e-4 * f.B.flip(0), f.A))
    for module, factor in change(moved, start).items():
        # The float32 difference of the dense products has lost three digits.
        expected = (moved[module].B.double() - start[module].B.double()) @ start[module].A.double()
        assert relative_error(factor.to(dtype=torch.float64).delta_weight(), expected) < 1e-12


def test_an_upload_without_the_module_changed_nothing_and_without_a_start_is_itself() -> None:
    upload = adapter(2, 1, shapes={"layers.1.up": (20, 9)})
    assert list(change(upload, adapter(2, 2))) == ["layers.1.up"]
    assert change(upload, NO_ADAPTER) is upload
