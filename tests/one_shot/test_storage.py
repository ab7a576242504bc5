"""What storing in a narrower dtype costs is in the certificate."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from florist.checkpoint import Export
from florist.factors import LoraFactor
from florist.one_shot import aggregate
from florist.one_shot.aggregated import storage_error
from florist.ranks import EnergyThreshold
from tests.builders import SHAPES, relative_error

from .sites import Site, products, weighted

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@HALVES
@pytest.mark.parametrize("tau", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("export", Export)
def test_the_error_is_that_of_what_was_written(tmp_path: Path, dtype: torch.dtype, tau: float, export: Export) -> None:
    sites = {Site(3, 5, seed=seed).save(tmp_path / str(seed)): count for seed, count in enumerate([3, 1, 2])}
    merged = aggregate(list(sites), rank_rule=EnergyThreshold(tau), num_examples=list(sites.values()))
    document = merged.write(tmp_path / "out", dtype=dtype, export=export)
    expected, found = weighted(sites), products(tmp_path / "out")
    for name, module in document["modules"].items():
        true = relative_error(found[name], expected[name])
        assert module["relative_error"] == pytest.approx(true, rel=1e-3, abs=1e-6)
        assert module["error"] == pytest.approx(true * float(expected[name].norm()), rel=1e-3, abs=1e-5)
        assert module["storage_error"] > 0
    total = [torch.cat([held[name].flatten() for name in SHAPES]) for held in (found, expected)]
    assert document["relative_error"] == pytest.approx(relative_error(*total), rel=1e-3)


@HALVES
def test_values_that_vanish_in_storage_are_lost_and_counted(dtype: torch.dtype) -> None:
    # Below the smallest number of float16 all of one half is gone; bfloat16 has the exponents of float32.
    factor = LoraFactor(torch.full((4, 1), 1e-9), torch.ones(1, 5))
    lost = storage_error(factor, dtype) / factor.energy() ** 0.5
    assert lost == pytest.approx(1.0) if dtype == torch.float16 else 0 < lost < 4e-3


@given(rank=st.integers(0, 6), seed=st.integers(0, 99), small=st.floats(-6, 0))
def test_rounding_is_measured_as_the_dense_products_differ(rank: int, seed: int, small: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    B = torch.randn(12, rank, generator=draw) * 10**small
    factor = LoraFactor(B, torch.randn(rank, 9, generator=draw))
    for dtype in (torch.bfloat16, torch.float16):
        rounded = factor.to(dtype=dtype).to(dtype=torch.float64).delta_weight()
        expected = float((factor.to(dtype=torch.float64).delta_weight() - rounded).norm())
        assert storage_error(factor, dtype) == pytest.approx(expected, rel=1e-9, abs=1e-30)


def test_what_is_stored_as_it_is_costs_nothing(tmp_path: Path) -> None:
    sites = [Site(3, 5, seed=seed).save(tmp_path / str(seed)) for seed in range(2)]
    document = aggregate(sites, rank_rule=EnergyThreshold(0.9)).write(tmp_path / "out")
    assert {module["storage_error"] for module in document["modules"].values()} == {0.0}


def test_double_precision_is_rounded_to_single(tmp_path: Path) -> None:
    sites = [Site(3, 5, seed=seed, dtype=torch.float64).save(tmp_path / str(seed)) for seed in range(2)]
    merged = aggregate(sites, rank_rule=EnergyThreshold(1.0))
    expected = weighted(dict.fromkeys(sites, 1))
    for dtype, low, high in ((torch.float32, 1e-9, 1e-6), (torch.float64, 0.0, 1e-13)):
        document = merged.write(tmp_path / str(dtype), dtype=dtype)
        found = products(tmp_path / str(dtype))
        for name, module in document["modules"].items():
            assert low <= module["relative_error"] <= high
            assert relative_error(found[name], expected[name]) == pytest.approx(
                module["relative_error"], rel=1e-3, abs=1e-13
            )
