import torch

from florist.factors import AdapterState, LoraFactor
from florist.federation.geometry import MOST_CLIENTS, Changes, update_geometry
from florist.rounds import NO_ADAPTER, ClientUpdate
from tests.builders import SHAPES, adapter, federation, update


def dense(one: ClientUpdate) -> torch.Tensor:
    """The oracle: all modules of an update as one vector."""
    return torch.cat(
        [
            one.adapter[name].delta_weight().double().flatten() if name in one.adapter else torch.zeros(m * n).double()
            for name, (m, n) in SHAPES.items()
        ]
    )


def test_norms_and_cosines_are_those_of_the_dense_updates() -> None:
    updates = federation([4, 2, 7])
    # A client that lacks a module has a zero there; an update and its multiple point the same way.
    lacking = AdapterState.of({"layers.1.up": adapter(3, seed=9)["layers.1.up"]})
    opposite = updates[0].adapter.map(lambda factor: factor.scaled(-2.0))
    updates = [*updates, update("lacking", lacking), update("opposite", opposite)]
    found = update_geometry(updates)
    vectors = [dense(one) for one in updates]
    torch.testing.assert_close(torch.tensor(found.norms, dtype=torch.float64), torch.stack([v.norm() for v in vectors]))
    assert [len(line) for line in found.cosines] == [0, 1, 2, 3, 4]
    for i, line in enumerate(found.cosines):
        for j, cosine in enumerate(line):
            expected = float(vectors[i] @ vectors[j] / (vectors[i].norm() * vectors[j].norm()))
            assert cosine is not None
            assert abs(cosine - expected) < 1e-4
    assert found.cosines[4][0] == -1.0


def test_float32_factors_of_unlike_scale_keep_their_cosine() -> None:
    one = adapter(4, seed=1, dtype=torch.float32)
    far = one.map(lambda factor: LoraFactor(factor.B * 1e-6, factor.A * 1e3))
    found = update_geometry([update("a", one), update("b", far)])
    assert found.cosines == ((), (1.0,))


def test_a_zero_update_has_a_norm_and_no_direction() -> None:
    zero = adapter(2, seed=0).map(lambda factor: factor.scaled(0.0))
    found = update_geometry([update("a", adapter(2, seed=1)), update("b", zero)])
    assert found.norms[1] == 0.0
    assert found.cosines == ((), (None,))


def test_an_update_without_factors_has_neither() -> None:
    found = update_geometry([update("a", NO_ADAPTER), update("b", NO_ADAPTER)])
    assert found.norms == (None, None)
    assert found.cosines == ()
    assert update_geometry([]).norms == ()


def test_beyond_the_most_clients_there_are_norms_alone() -> None:
    updates = federation([1] * (MOST_CLIENTS + 3))
    found = update_geometry(updates)
    assert len(found.cosines) == MOST_CLIENTS
    expected = torch.stack([dense(one).norm() for one in updates])
    torch.testing.assert_close(torch.tensor(found.norms, dtype=torch.float64), expected)


def test_the_geometry_of_a_round_is_computed_once() -> None:
    changes = Changes(tuple(federation([2, 3])))
    assert changes.geometry is changes.geometry
