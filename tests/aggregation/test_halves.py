import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from florist.aggregation.halves import averaged_halves, exact_stack
from tests.builders import SHAPES, adapter, dense_sum, federation, relative_error, update


@given(ranks=st.lists(st.integers(1, 8), min_size=1, max_size=4), seed=st.integers(0, 999))
@settings(max_examples=20)
def test_the_mean_and_the_residual_are_the_exact_sum(ranks: list[int], seed: int) -> None:
    updates = federation(ranks, counts=list(range(1, len(ranks) + 1)), seed=seed)
    for module in SHAPES:
        halves = averaged_halves(updates, module)
        exact = dense_sum(updates, module)
        assert halves.mean.rank == max(ranks)
        assert relative_error(halves.mean.delta_weight() + halves.residual.delta_weight(), exact) < 1e-12
        assert relative_error(exact_stack(updates, module).delta_weight(), exact) < 1e-12


def test_unlike_ranks_are_padded_with_zeros() -> None:
    # A half of rank 1 must not spread over the 8 of another: (1, 64) + (8, 64) would go through.
    small, large = adapter(1, 1), adapter(8, 2)
    mean = averaged_halves([update("a", small), update("b", large)], "layers.1.up").mean
    own, other = small["layers.1.up"], large["layers.1.up"]
    torch.testing.assert_close(mean.A[1:], other.A[1:] / 2)
    torch.testing.assert_close(mean.A[:1], (own.A + other.A[:1]) / 2)
    torch.testing.assert_close(mean.B[:, 1:], other.B[:, 1:] / 2)


def test_clients_that_agree_leave_nothing_but_rounding() -> None:
    held = adapter(4, 1, dtype=torch.float32)
    updates = [update(f"c{k}", held, num_examples=k + 1) for k in range(5)]
    for module, factor in held.items():
        residual = averaged_halves(updates, module).residual
        assert float(residual.delta_weight().norm()) < 1e-14 * float(factor.delta_weight().norm())
