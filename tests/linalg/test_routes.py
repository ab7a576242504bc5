import pickle
import weakref
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from florist.errors import FloristError, IncompatibleAdaptersError, NonFiniteUpdateError
from florist.factors import FactorSpec, LoraFactor
from florist.linalg import NonFinitePartError, WeightedFactor, decompose
from tests.linalg.matrices import (
    as_part,
    dense,
    falling,
    gaussian,
    generator,
    oracle_rank,
    orthonormal,
    reconstruction,
    relative_error,
    with_spectrum,
)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Stacked, at the border, and dense: the smaller side is 20.
RANKS = (1, 7, 19, 20, 24, 40, 130)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("shape", [(24, 20), (20, 24)])
def test_everything_that_can_be_resolved_is_the_sum(shape: tuple[int, int], rank: int, dtype: torch.dtype) -> None:
    part = as_part(gaussian(*shape, rank, dtype=dtype), 0.7)
    svd = decompose([part])
    assert svd.S.numel() == min(rank, 20)
    assert svd.left.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert relative_error(reconstruction(svd), dense(part)) < (1e-12 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.95, 0.99, 0.9999])
@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6, 1e9, 1e12])
@pytest.mark.parametrize("gauge", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rank_error_and_tail_are_the_oracle_s(
    energy: float, condition: float, gauge: float, dtype: torch.dtype
) -> None:
    # Whatever the precision that the solver chooses, and whatever gauge the client's factors are in.
    part = as_part(with_spectrum(falling(condition, 30), 90, 70, gauge=gauge, dtype=dtype))
    expected = dense(part)
    squares = torch.linalg.svdvals(expected).square()
    svd = decompose([part], energy=energy)
    k, total = svd.S.numel(), float(squares.sum())
    assert k == oracle_rank(squares, energy)
    error = float((expected - reconstruction(svd)).square().sum())
    discarded = float(squares[k:].sum())
    assert error == pytest.approx(discarded, rel=1e-4)
    assert svd.spectrum.tail_energy == pytest.approx(discarded, rel=1e-3)
    assert svd.spectrum.total_energy == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("rank", [40, 200])
@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
def test_the_same_for_updates_that_are_summed_densely(rank: int, energy: float) -> None:
    parts = [as_part(gaussian(24, 20, 8, seed=i, dtype=torch.float32), 1 / (i + 1)) for i in range(rank // 8)]
    squares = torch.linalg.svdvals(dense(*parts)).square()
    svd = decompose(parts, energy=energy)
    assert svd.S.numel() == oracle_rank(squares, energy)
    assert svd.spectrum.tail_energy == pytest.approx(float(squares[svd.S.numel() :].sum()), rel=1e-3)


def test_large_stacks_that_decay_take_the_rank_of_the_oracle() -> None:
    # 800 components of a 900 x 900 module: large enough for the randomized solver.
    draw, spread = generator(0), 64
    fall = 1.0 / torch.arange(1, spread + 1, dtype=torch.float64)
    left, right = orthonormal(900, spread, draw) * fall, orthonormal(900, spread, draw)
    parts = []
    for _ in range(50):
        A = torch.randn(16, 900, generator=draw, dtype=torch.float64)
        parts.append(as_part(LoraFactor((left @ (A @ right).T).float(), A.float()), 0.02))
    wide = [part.read().to(dtype=torch.float64) for part in parts]
    B, A = 0.02 * torch.cat([f.B for f in wide], dim=1), torch.cat([f.A for f in wide])
    squares = torch.linalg.svdvals(torch.linalg.qr(B)[1] @ torch.linalg.qr(A.T)[1].T).square()
    svd = decompose(parts, energy=0.9)
    k = svd.S.numel()
    assert k == oracle_rank(squares, 0.9)
    assert torch.allclose(svd.S.square(), squares[:k], rtol=1e-3)
    assert svd.spectrum.tail_energy == pytest.approx(float(squares[k:].sum()), rel=1e-3)
    best = svd.factor(k).to(dtype=torch.float64)
    error = float((B @ A - best.delta_weight()).square().sum())
    assert error == pytest.approx(svd.spectrum.tail_energy, rel=1e-4)


@given(
    ranks=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    weights=st.lists(st.floats(-2, 2), min_size=6, max_size=6),
    shape=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    energy=st.one_of(st.floats(0.05, 1.0), st.just(1.0)),
    seed=st.integers(0, 999),
)
@settings(max_examples=80)
def test_any_sum_holds_the_energy_that_was_asked_for(
    ranks: list[int], weights: list[float], shape: tuple[int, int], energy: float, seed: int
) -> None:
    parts = [
        as_part(gaussian(*shape, rank, seed=seed + i), weight)
        for i, (rank, weight) in enumerate(zip(ranks, weights, strict=False))
    ]
    expected = dense(*parts)
    total = float(expected.square().sum())
    svd = decompose(parts, energy=energy)
    error = float((expected - reconstruction(svd)).square().sum())
    assert error <= (1 - energy + 1e-10) * total
    assert svd.spectrum.tail_energy == pytest.approx(error, rel=1e-6, abs=1e-12 * total)
    assert svd.S.numel() <= min(*shape, sum(ranks))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rank", [8, 30])
def test_one_client_is_the_identity(dtype: torch.dtype, rank: int) -> None:
    factor = gaussian(24, 20, rank, dtype=dtype)
    svd = decompose([as_part(factor)])
    expected = factor.to(dtype=torch.float64).delta_weight()
    assert relative_error(reconstruction(svd), expected) < (1e-12 if dtype == torch.float64 else 1e-6)
    assert svd.S.numel() == min(rank, 20)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("copies", [2, 7, 30])
def test_equal_clients_have_the_rank_of_one(copies: int, dtype: torch.dtype) -> None:
    # 2 and 7 copies are stacked, 30 are summed.
    factor = gaussian(80, 60, 8, dtype=dtype)
    weights = [(i + 1) / (copies * (copies + 1) / 2) for i in range(copies)]
    svd = decompose([as_part(factor, weight) for weight in weights])
    assert svd.S.numel() == 8
    expected = factor.to(dtype=torch.float64).delta_weight()
    assert relative_error(reconstruction(svd), expected) < (1e-12 if dtype == torch.float64 else 1e-6)


def test_weights_folded_into_float32_make_no_rank() -> None:
    # Rounding unlike in every copy, below the floor of float32.
    factor = gaussian(80, 60, 8, dtype=torch.float32)
    parts = [as_part(factor.scaled(weight)) for weight in (0.1, 0.3, 0.17, 0.43)]
    assert decompose(parts).S.numel() == 8


@pytest.mark.parametrize("copies", [1, 10])
@pytest.mark.parametrize("energy", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_cancels_is_zero(copies: int, energy: float, dtype: torch.dtype) -> None:
    factor = gaussian(80, 60, 8, dtype=dtype)
    # The weights of equal clients are no binary fractions: what is left of the sum is rounding.
    svd = decompose([as_part(factor, weight) for weight in (0.1, 0.2, -0.3)] * copies, energy=energy)
    assert (svd.S.numel(), svd.spectrum.numerical_rank, svd.spectrum.total_energy) == (0, 0, 0.0)


@pytest.mark.parametrize("energy", [0.9, 1.0])
@pytest.mark.parametrize("rank", [8, 70], ids=["stacked", "dense"])
def test_what_cancels_to_the_last_bit_is_zero(rank: int, energy: float) -> None:
    # Products of small whole numbers are exact in any order of the sum.
    factor = gaussian(80, 60, rank, dtype=torch.float32)
    factor = LoraFactor((20 * factor.B).round(), (20 * factor.A).round())
    svd = decompose([as_part(factor), as_part(factor, -1.0)], energy=energy)
    assert (svd.S.numel(), svd.spectrum.total_energy) == (0, 0.0)


@pytest.mark.parametrize("energy", [0.9, 1.0])
@pytest.mark.parametrize("rank", [4, 60])
def test_what_nearly_cancels_is_resolved_as_far_as_it_can_be(energy: float, rank: int) -> None:
    # The difference is a thousandth of each; what float32 Gram matrices would return is noise.
    factor, small = gaussian(80, 60, rank, dtype=torch.float32), gaussian(80, 60, 3, seed=1, dtype=torch.float32)
    parts = [as_part(factor), as_part(factor, -1.0), as_part(small, 1e-3)]
    svd = decompose(parts, energy=energy)
    assert svd.S.numel() == 3
    assert relative_error(reconstruction(svd), dense(*parts)) < 1e-3


def test_zero_updates_have_no_directions() -> None:
    nothing = LoraFactor(torch.zeros(6, 2), torch.ones(2, 5))
    absent = gaussian(6, 5, 0, dtype=torch.float32)
    ignored = gaussian(6, 5, 3, dtype=torch.float32)
    for parts in ([as_part(nothing)], [as_part(nothing)] * 20, [as_part(absent)], [as_part(ignored, 0.0)]):
        for energy in (0.9, 1.0):
            svd = decompose(parts, energy=energy)
            assert (svd.S.numel(), svd.spectrum.total_energy, svd.spectrum.shape) == (0, 0.0, (6, 5))
            assert svd.factor(0).delta_weight().shape == (6, 5)


@pytest.mark.parametrize("scale", [1e-35, 1e-20, 1e-8, 1e8, 1e20])
@pytest.mark.parametrize("energy", [0.9, 1.0])
def test_size_does_not_matter(scale: float, energy: float) -> None:
    factor = gaussian(24, 20, 6, dtype=torch.float32)
    plain, scaled = (
        decompose([as_part(factor)], energy=energy),
        decompose([as_part(factor.scaled(scale))], energy=energy),
    )
    assert scaled.S.numel() == plain.S.numel()
    assert torch.allclose(scaled.S / scale, plain.S, rtol=1e-2 if scale == 1e-35 else 1e-5)


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
@pytest.mark.parametrize("energy", [0.9, 1.0])
@pytest.mark.parametrize("rank", [7, 40], ids=["stacked", "dense"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_known_of_a_sum_has_its_units(dtype: torch.dtype, rank: int, energy: float, scale: float) -> None:
    # A bound in other units than those of the energy would certify small updates wrongly.
    factor = gaussian(24, 20, rank, dtype=dtype)
    plain, scaled = (decompose([as_part(each)], energy=energy).spectrum for each in (factor, factor.scaled(scale)))
    assert torch.allclose(scaled.S, scale * plain.S, rtol=1e-6, atol=0)
    assert scaled.resolution == pytest.approx(plain.resolution, rel=1e-6)
    assert scaled.total_energy == pytest.approx(scale**2 * plain.total_energy, rel=1e-6)
    assert scaled.known_from == pytest.approx(scale**2 * plain.known_from, rel=1e-6)


def test_equal_inputs_give_equal_results() -> None:
    parts = [as_part(gaussian(24, 20, 4, seed=i, dtype=torch.float32), 0.1 * (i + 1)) for i in range(3)]
    first, second = decompose(parts, energy=0.9), decompose(parts, energy=0.9)
    assert torch.equal(first.S, second.S)
    assert torch.equal(first.U, second.U)


@pytest.fixture
def highest_precision_again() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("rank", [8, 80])
@pytest.mark.usefixtures("highest_precision_again")
def test_reduced_precision_products_are_not_used(rank: int) -> None:
    part = as_part(gaussian(80, 60, rank, dtype=torch.float32))
    torch.set_float32_matmul_precision("medium")
    svd = decompose([part], energy=0.9)
    U, Vh = svd.left, svd.right
    assert svd.X is None  # multiplied out in float64: later products would round
    torch.set_float32_matmul_precision("highest")
    squares = torch.linalg.svdvals(dense(part)).square()
    error = float((dense(part) - U.double() * svd.S @ Vh.double()).square().sum())
    assert error == pytest.approx(float(squares[svd.S.numel() :].sum()), rel=1e-5)


def test_a_thousand_clients_need_the_memory_of_one_module() -> None:
    alive: set[int] = set()
    most = 0

    def client(index: int) -> WeightedFactor:
        def read() -> LoraFactor:
            nonlocal most
            factor = gaussian(40, 30, 8, seed=index, dtype=torch.float32)
            alive.add(index)
            weakref.finalize(factor.B, alive.discard, index)
            most = max(most, len(alive))
            return factor

        return WeightedFactor(1e-3, FactorSpec(40, 30, 8, torch.float32), read)

    svd = decompose([client(i) for i in range(1000)], energy=0.9)
    assert most <= 3
    assert svd.left.numel() + svd.right.numel() <= 2 * 30 * (40 + 30)


@pytest.mark.parametrize(("bad", "half"), [(float("nan"), "B"), (float("inf"), "A"), (float("-inf"), "B")])
@pytest.mark.parametrize("clients", [3, 12])
@pytest.mark.parametrize("energy", [0.9, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_is_named(bad: float, half: str, clients: int, energy: float, dtype: torch.dtype) -> None:
    factors = [gaussian(24, 20, 4, seed=i, dtype=dtype) for i in range(clients)]
    getattr(factors[2], half)[1, 1] = bad
    with pytest.raises(NonFinitePartError, match="expected finite factors, got NaN or infinity in part 2") as caught:
        decompose([as_part(factor) for factor in factors], energy=energy)
    assert caught.value.index == 2
    assert isinstance(caught.value, NonFiniteUpdateError)
    assert isinstance(caught.value, FloristError)


def test_the_named_part_survives_the_way_out_of_another_process() -> None:
    bad = gaussian(6, 5, 2)
    bad.B.fill_(float("nan"))
    with pytest.raises(NonFinitePartError) as caught:
        decompose([as_part(gaussian(6, 5, 2)), as_part(bad)])
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301  # made in this test
    assert (type(copy), str(copy), copy.index) == (NonFinitePartError, str(caught.value), 1)


def test_a_client_without_weight_is_not_read() -> None:
    bad = gaussian(6, 5, 2)
    bad.B.fill_(float("nan"))
    assert decompose([as_part(bad, 0.0), as_part(gaussian(6, 5, 2))]).S.numel() == 2


def test_of_parts_that_are_not_finite_the_first_that_counts_is_named() -> None:
    parts = [as_part(gaussian(6, 5, 2, seed=k), weight) for k, weight in enumerate((1.0, 0.0, -1.0))]
    for part in parts[1:]:
        part.read().B.fill_(float("nan"))
    with pytest.raises(NonFinitePartError, match="part 2"):
        decompose(parts)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(IncompatibleAdaptersError, match=r"\(6, 5\) for part 0 and \(5, 6\) for part 1"):
        decompose([as_part(gaussian(6, 5, 2)), as_part(gaussian(5, 6, 2))])


@pytest.mark.parametrize("energy", [0.0, -0.1, 1.1, float("nan")])
def test_a_fraction_outside_is_refused(energy: float) -> None:
    with pytest.raises(ValueError, match="0 < energy <= 1"):
        decompose([as_part(gaussian(6, 5, 2))], energy=energy)


def test_nothing_and_endless_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one factor"):
        decompose([])
    with pytest.raises(ValueError, match="finite weight, got inf for part 0"):
        decompose([replace(as_part(gaussian(6, 5, 2)), weight=float("inf"))])
