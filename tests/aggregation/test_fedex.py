import torch

from florist.aggregation import FedEx, FedIt
from florist.factors import AdapterState
from tests.builders import SHAPES, adapter, dense_sum, federation, relative_error, update


def test_clients_train_on_from_the_means_and_add_what_these_lack() -> None:
    updates = federation([2, 3, 3], counts=[1, 2, 5])
    broadcast, means = FedEx()(updates), FedIt()(updates).continued
    for module in SHAPES:
        assert torch.equal(broadcast.continued[module].B, means[module].B)
        assert torch.equal(broadcast.continued[module].A, means[module].A)
        lacking = dense_sum(updates, module) - means[module].delta_weight()
        assert relative_error(broadcast.shared[module].delta_weight(), lacking) < 1e-12
        assert broadcast.shared[module].rank <= min(*SHAPES[module], 2 + 3 + 3 + 3)


def test_the_residual_of_clients_that_agree_is_sent_as_nothing() -> None:
    held = adapter(4, 1, dtype=torch.float32)
    broadcast = FedEx()([update(f"c{k}", held, num_examples=3 * k + 1) for k in range(7)])
    assert broadcast.shared.total_rank == 0
    assert broadcast.certificate.total_rank == 4 * len(SHAPES)


def test_the_residual_counts_on_the_way_down() -> None:
    # Counted in the field as the sum of ranks, without the residual.
    updates = federation([2, 3], dtype=torch.float32)
    broadcast = FedEx()(updates)
    assert isinstance(broadcast.shared, AdapterState)
    assert broadcast.certificate.bytes_out == broadcast.shared.nbytes + broadcast.continued.nbytes
    assert broadcast.certificate.bytes_out > sum(u.nbytes for u in updates)
