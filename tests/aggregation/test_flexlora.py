import pytest
import torch

from florist.aggregation import FlexLora
from florist.errors import ConfigurationError
from tests.builders import SHAPES, dense_sum, federation, relative_error


def test_the_first_components_are_each_clients_own_best_cut() -> None:
    updates = federation([2, 4, 6])
    broadcast = FlexLora(max_rank=6)(updates)
    for module in SHAPES:
        U, S, Vh = torch.linalg.svd(dense_sum(updates, module), full_matrices=False)
        for rank in (1, 2, 4, 6):
            best = (U[:, :rank] * S[:rank]) @ Vh[:rank]
            assert relative_error(broadcast.continued[module].leading(rank).delta_weight(), best) < 1e-10
        certified = broadcast.certificate.modules[module]
        assert certified.rank == min(6, *SHAPES[module])
        assert certified.error == pytest.approx(float(S[6:].square().sum()) ** 0.5, abs=1e-7)
    assert not broadcast.shared


def test_a_client_that_was_not_in_the_round_gets_its_own_cut() -> None:
    broadcast = FlexLora(max_rank=8)(federation([2, 3]))
    assert broadcast.continued["layers.1.up"].rank == 5  # the numerical rank, all that there is for a rank of 8


def test_a_rank_below_one_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 1, got 0"):
        FlexLora(0)
