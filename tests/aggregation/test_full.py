import pytest
import torch

from florist.aggregation import FullFineTuning
from florist.errors import InvalidUpdateError
from florist.rounds import NO_ADAPTER, ClientUpdate
from tests.builders import adapter, update


def test_weights_are_averaged_and_all_of_them_travel() -> None:
    updates = [
        ClientUpdate(c, NO_ADAPTER, n, 1, {"q.weight": torch.full((3, 5), v)})
        for c, n, v in (("a", 1, 4.0), ("b", 3, 8.0))
    ]
    broadcast = FullFineTuning()(updates)
    assert torch.equal(broadcast.saved_parameters["q.weight"], torch.full((3, 5), 7.0))
    assert (broadcast.certificate.bytes_in, broadcast.certificate.bytes_out) == (2 * 60, 60)
    assert not broadcast.shared
    assert not broadcast.continued


def test_factors_are_refused() -> None:
    with pytest.raises(InvalidUpdateError, match=r"'a': expected whole weights, got factors of layers\.0\.q_proj"):
        FullFineTuning()([update("a", adapter(2, 1))])
