import pytest
import torch

from florist.aggregation import FfaLora
from florist.errors import InvalidUpdateError
from florist.factors import AdapterState, LoraFactor
from florist.rounds import ClientWork, Trained
from tests.builders import SHAPES, adapter, update, with_shared_rows


def test_what_is_not_trained_comes_back_as_it_was() -> None:
    # Reversed in the field: a random B frozen and A trained, so that training starts from a perturbed model.
    assert FfaLora().work == ClientWork(Trained.B, shared_rows=True, constant_rows=True)
    small, large = with_shared_rows(2, 1), with_shared_rows(6, 2)
    continued = FfaLora()([update("a", small), update("b", large)]).continued
    for module in SHAPES:
        assert torch.equal(continued[module].A, large[module].A)
        torch.testing.assert_close(continued[module].B[:, :2], (small[module].B + large[module].B[:, :2]) / 2)
        torch.testing.assert_close(continued[module].B[:, 2:], large[module].B[:, 2:] / 2)


def test_clients_whose_rows_differ_in_one_bit_are_refused() -> None:
    held = with_shared_rows(3, 1)
    moved = dict(with_shared_rows(2, 2))
    A = moved["layers.1.up"].A.clone()
    A[1, 4] = torch.nextafter(A[1, 4], A.new_tensor(torch.inf))
    moved["layers.1.up"] = LoraFactor(moved["layers.1.up"].B, A)
    with pytest.raises(
        InvalidUpdateError, match=r"layers\.1\.up: expected every client to hold the same rows of A, and 'b' and 'a'"
    ):
        FfaLora()([update("a", held), update("b", AdapterState.of(moved))])
    with pytest.raises(InvalidUpdateError, match="give all clients the same"):
        FfaLora()([update("a", adapter(2, 1)), update("b", adapter(2, 2))])
