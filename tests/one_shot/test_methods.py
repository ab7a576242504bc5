"""Saved adapters, combined as each method does in a round, against dense float64 sums of what was saved and written."""

from pathlib import Path

import pytest
import torch

from florist.aggregation import FedEx, FedIt, FlexLora, Flora
from florist.checkpoint import open_adapter
from florist.one_shot import combine, open_inputs
from florist.rounds import Aggregator
from tests.builders import SHAPES, relative_error

from .sites import Site, products, weighted

EXACT = {"flora": Flora(), "fedex": FedEx(), "flexlora": FlexLora(40)}
ALL = {**EXACT, "cut": FlexLora(2), "fedit": FedIt()}
every_method = pytest.mark.parametrize("aggregator", ALL.values(), ids=ALL)


@pytest.fixture
def sites(tmp_path: Path) -> dict[Path, int]:
    """Unlike ranks, alphas, examples and modules."""
    some = (
        Site(3, 5, examples=3),
        Site(2, 8, examples=1, seed=1, modules=tuple(SHAPES)[:2]),
        Site(4, 2, examples=2, seed=2),
    )
    return {site.save(tmp_path / str(k)): site.examples for k, site in enumerate(some)}


def write(sites: dict[Path, int], aggregator: Aggregator, out: Path, dtype: torch.dtype = torch.float32) -> dict:
    inputs = open_inputs(list(sites), num_examples=list(sites.values()))
    return combine(inputs, aggregator).write(out, dtype=dtype)


@pytest.mark.parametrize("aggregator", EXACT.values(), ids=EXACT)
def test_exact_methods_write_the_weighted_sum(sites: dict[Path, int], aggregator: Aggregator, tmp_path: Path) -> None:
    document = write(sites, aggregator, tmp_path / "out")
    expected, found = weighted(sites), products(tmp_path / "out")
    for name in SHAPES:
        assert relative_error(found[name], expected[name]) < 1e-5
    assert document["relative_error"] < 1e-5


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_certificate_is_that_of_what_was_written(
    sites: dict[Path, int], aggregator: Aggregator, dtype: torch.dtype, tmp_path: Path
) -> None:
    document = write(sites, aggregator, tmp_path / "out", dtype)
    expected, found, saved = weighted(sites), products(tmp_path / "out"), open_adapter(tmp_path / "out")
    assert document["bytes_out"] == saved.stored_bytes
    for name, module in document["modules"].items():
        true = relative_error(found[name], expected[name])
        assert module["relative_error"] == pytest.approx(true, rel=5e-3, abs=1e-6)
        # What FedIT gets wrong is not quite orthogonal to the rounding of what it writes, at these small shapes.
        assert abs(module["error"] - true * float(expected[name].norm())) <= module["storage_error"] + 1e-5
        assert module["energy_kept"] == pytest.approx(1 - true**2, abs=2e-3)
        assert module["energy_kept"] == pytest.approx(1 - module["relative_error"] ** 2, abs=1e-9)
        assert module["rank"] == saved.adapter.specs[name].rank


def test_the_means_of_the_halves_are_what_fedit_writes(sites: dict[Path, int], tmp_path: Path) -> None:
    write(sites, FedIt(), tmp_path / "out")
    shares = [count / sum(sites.values()) for count in sites.values()]
    held = [open_adapter(path).adapter for path in sites]
    for name, found in products(tmp_path / "out").items():
        padded = [(w, one[name].padded(4)) for w, one in zip(shares, held, strict=True) if name in one]
        B = sum((w * factor.B.double() for w, factor in padded), start=torch.zeros(()))
        A = sum((w * factor.A.double() for w, factor in padded), start=torch.zeros(()))
        assert relative_error(found, B @ A) < 1e-5
        assert relative_error(found, weighted(sites)[name]) > 0.1


def test_flexlora_writes_the_best_approximation_of_its_rank(sites: dict[Path, int], tmp_path: Path) -> None:
    write(sites, FlexLora(2), tmp_path / "out")
    for name, found in products(tmp_path / "out").items():
        U, S, Vh = torch.linalg.svd(weighted(sites)[name], full_matrices=False)
        assert relative_error(found, U[:, :2] @ torch.diag(S[:2]) @ Vh[:2]) < 1e-5


def test_a_stack_stays_a_stack(sites: dict[Path, int], tmp_path: Path) -> None:
    document = write(sites, Flora(), tmp_path / "out")
    assert document["total_rank"] == document["input_rank"] == 3 * 3 + 2 * 2 + 4 * 3
    one = open_adapter(next(iter(sites))).adapter
    written = open_adapter(tmp_path / "out").adapter
    for name in SHAPES:
        assert torch.equal(written[name].A[:3], one[name].A)


def test_fedex_is_one_adapter_of_no_more_rank_than_came_in(sites: dict[Path, int], tmp_path: Path) -> None:
    document = write(sites, FedEx(), tmp_path / "out")
    assert document["total_rank"] <= document["input_rank"]


def test_the_largest_rank_is_that_of_any_module(sites: dict[Path, int]) -> None:
    assert open_inputs(list(sites)).largest_rank == 4
