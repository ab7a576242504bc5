import math
from collections.abc import Mapping

import pytest
import torch

from florist.aggregation import products
from florist.aggregation.products import parameter_gram, product_gram
from florist.factors import AdapterState, LoraFactor
from florist.rounds import NO_ADAPTER, ClientUpdate
from tests.builders import SHAPES, adapter


def dense(held: AdapterState) -> torch.Tensor:
    """The oracle: the products of all modules as one float64 vector."""
    return torch.cat(
        [
            held[name].B.double().matmul(held[name].A.double()).flatten()
            if name in held
            else torch.zeros(m * n).double()
            for name, (m, n) in SHAPES.items()
        ]
    )


def head(seed: int, dtype: torch.dtype = torch.float32) -> Mapping[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {"score.weight": torch.randn(3, 5, generator=draw).to(dtype), "score.bias": torch.randn(3, generator=draw)}


@pytest.mark.parametrize("block", [1, 5, 1024])
def test_they_are_those_of_the_dense_updates(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(products, "_BLOCK", block)
    held = [
        adapter(4, 1),
        adapter(2, 2, dtype=torch.float32),
        AdapterState.of({"layers.1.up": adapter(3, 9)["layers.1.up"]}),
        NO_ADAPTER,
        adapter(0, 3),
        adapter(40, 4),
    ]
    vectors = torch.stack([dense(one) for one in held])
    torch.testing.assert_close(product_gram(held), vectors @ vectors.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 23])
def test_parameters_count_by_how_far_they_moved(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(products, "_CHUNK", chunk)
    before = head(0)
    updates = [ClientUpdate(str(k), adapter(2, k), 1, 1, head(k)) for k in range(4)]
    vectors = torch.stack(
        [
            torch.cat(
                [
                    dense(one.adapter),
                    *(
                        (one.saved_parameters[name].double() - before[name].double()).flatten()
                        for name in sorted(before)
                    ),
                ]
            )
            for one in updates
        ]
    )
    found = product_gram([one.adapter for one in updates])
    found += parameter_gram([one.saved_parameters for one in updates], before)
    torch.testing.assert_close(found, vectors @ vectors.T, rtol=1e-12, atol=1e-12)


def test_norms_of_1e15_and_1e_20_stand_side_by_side() -> None:
    one = adapter(3, 1, dtype=torch.float32)
    large = one.map(lambda factor: LoraFactor(factor.B * 1e18, factor.A * 1e-3))
    small = one.map(lambda factor: LoraFactor(factor.B * 1e-30, factor.A * 1e10))
    for precision in (torch.float64, None):
        inner = product_gram([one, large, small], precision)
        norms = inner.diagonal().sqrt()
        cosines = inner / (norms[:, None] * norms)
        torch.testing.assert_close(cosines, torch.ones_like(cosines), rtol=1e-5, atol=0)
        assert math.isclose(float(norms[1] / norms[0]), 1e15, rel_tol=1e-5)
        assert math.isclose(float(norms[2] / norms[0]), 1e-20, rel_tol=1e-5)


def test_parameters_as_large_as_float32_holds_do_not_overflow() -> None:
    found = parameter_gram([{"score": torch.full((2,), 3e38)}, {"score": torch.full((2,), -3e38)}, {}])
    assert math.isclose(float(found[0, 0]), 2 * 9e76, rel_tol=1e-6)
    assert float(found[0, 1]) == -float(found[0, 0])
    assert found[2].count_nonzero() == 0


def test_of_nothing_there_are_none() -> None:
    assert product_gram([]).shape == parameter_gram([]).shape == (0, 0)
    assert product_gram([NO_ADAPTER]).tolist() == parameter_gram([{}]).tolist() == [[0.0]]
