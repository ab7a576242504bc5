import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from florist.aggregation import FlexLora, RaFlora
from florist.errors import ConfigurationError
from florist.rounds import ClientUpdate
from tests.builders import SHAPES, adapter, federation, relative_error, update


def weighed_among_holders(updates: list[ClientUpdate], module: str) -> Tensor:
    """The oracle: each component by itself, as a mean over the clients that have it, dense, in float64."""
    total = torch.zeros(SHAPES[module], dtype=torch.float64)
    for i in range(max(u.adapter[module].rank for u in updates)):
        having = [u for u in updates if u.adapter[module].rank > i]
        for u in having:
            factor = u.adapter[module]
            share = u.num_examples / sum(v.num_examples for v in having)
            total += share * torch.outer(factor.B[:, i].double(), factor.A[i].double())
    return total


@given(
    ranks=st.lists(st.integers(1, 8), min_size=1, max_size=5),
    counts=st.lists(st.integers(1, 1000), min_size=5, max_size=5),
    max_rank=st.sampled_from([1, 3, 99]),
)
@settings(max_examples=25)
def test_each_component_is_averaged_over_the_clients_that_have_it(
    ranks: list[int], counts: list[int], max_rank: int
) -> None:
    updates = federation(ranks, counts=counts[: len(ranks)])
    continued = RaFlora(max_rank)(updates).continued
    for module in SHAPES:
        U, S, Vh = torch.linalg.svd(weighed_among_holders(updates, module), full_matrices=False)
        best = (U[:, :max_rank] * S[:max_rank]) @ Vh[:max_rank]
        assert relative_error(continued[module].delta_weight(), best) < 1e-10
        assert continued[module].rank <= max_rank


def test_with_equal_ranks_it_is_flexlora() -> None:
    updates = federation([4, 4, 4], counts=[1, 2, 5])
    found, expected = RaFlora(4)(updates), FlexLora(4)(updates)
    for module in SHAPES:
        assert relative_error(found.continued[module].delta_weight(), expected.continued[module].delta_weight()) < 1e-12
        certified, known = found.certificate.modules[module], expected.certificate.modules[module]
        assert (certified.error, certified.norm) == pytest.approx((known.error, known.norm))


def test_the_energy_of_what_few_clients_have_does_not_fade() -> None:
    # Clients that change nothing: in FlexLoRA the component of one in four loses a factor of four a round.
    large = adapter(2, 1, shapes={"layers.1.up": SHAPES["layers.1.up"]})
    kept, faded = large, large
    for _ in range(3):
        kept, faded = (
            method([update("a", held), *(update(c, held.map(lambda f: f.leading(1))) for c in "bcd")]).continued
            for method, held in ((RaFlora(2), kept), (FlexLora(2), faded))
        )
    S, before = (torch.linalg.svdvals(held["layers.1.up"].delta_weight()) for held in (kept, large))
    torch.testing.assert_close(S[:2], before[:2])
    assert torch.linalg.svdvals(faded["layers.1.up"].delta_weight())[1] < before[1] / 20


def test_no_components_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 1, got 0"):
        RaFlora(0)
