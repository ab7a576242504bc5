import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from florist.aggregation.halves import exact_stack, mean_and_residual
from tests.builders import SHAPES, adapter, dense_sum, federation, relative_error, update


@given(ranks=st.lists(st.integers(1, 8), min_size=1, max_size=4), seed=st.integers(0, 999))
@settings(max_examples=20)
def test_the_mean_and_the_residual_are_the_exact_sum(ranks: list[int], seed: int) -> None:
    updates = federation(ranks, counts=list(range(1, len(ranks) + 1)), seed=seed)
    for module in SHAPES:
        mean, residual = mean_and_residual(updates, module)
        exact = dense_sum(updates, module)
        assert mean.rank == max(ranks)
        assert relative_error(mean.delta_weight() + residual.delta_weight(), exact) < 1e-12
        assert relative_error(exact_stack(updates, module).delta_weight(), exact) < 1e-12


def test_unlike_ranks_are_padded_with_zeros() -> None:
    # A half of rank 1 must not spread over the 8 of another: (1, 64) + (8, 64) would go through.
    small, large = adapter(1, 1), adapter(8, 2)
    mean, _ = mean_and_residual([update("a", small), update("b", large)], "layers.1.up")
    own, other = small["layers.1.up"], large["layers.1.up"]
    torch.testing.assert_close(mean.A[1:], other.A[1:] / 2)
    torch.testing.assert_close(mean.A[:1], (own.A + other.A[:1]) / 2)
    torch.testing.assert_close(mean.B[:, 1:], other.B[:, 1:] / 2)


def test_clients_that_agree_leave_nothing_but_rounding() -> None:
    held = adapter(4, 1, dtype=torch.float32)
    updates = [update(f"c{k}", held, num_examples=k + 1) for k in range(5)]
    for module, factor in held.items():
        _, residual = mean_and_residual(updates, module)
        assert float(residual.delta_weight().norm()) < 1e-14 * float(factor.delta_weight().norm())
