from dataclasses import replace

import pytest
import torch

from florist.errors import InvalidAdapterError
from florist.factors import LoraFactor
from florist.linalg import WeightedFactor
from florist.linalg.accumulate import stack_parts, sum_parts
from tests.linalg.matrices import as_part, dense, gaussian, relative_error

PARTS = [as_part(gaussian(12, 9, rank, seed=rank), 0.1 * rank) for rank in (4, 2, 7)]


def test_a_stack_is_the_sum_with_the_weights_apart() -> None:
    stack = stack_parts(PARTS, torch.float64)
    assert stack.factor.rank == 13
    assert stack.weights.tolist() == pytest.approx([0.4] * 4 + [0.2] * 2 + [0.7] * 7)
    assert torch.equal(stack.factor.B[:, 4:6], PARTS[1].read().B)
    assert relative_error(stack.factor.B * stack.weights @ stack.factor.A, dense(*PARTS)) < 1e-14


def test_one_part_may_be_there_twice() -> None:
    stack = stack_parts([PARTS[0], PARTS[1], PARTS[0]], torch.float64)
    assert relative_error(stack.factor.B * stack.weights @ stack.factor.A, dense(PARTS[0], PARTS[1], PARTS[0])) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_without_loss(dtype: torch.dtype) -> None:
    narrow = gaussian(12, 9, 4, dtype=dtype)
    stack = stack_parts([as_part(narrow)], torch.float32)
    assert torch.equal(stack.factor.B, narrow.B.float())


@pytest.mark.parametrize("count", [1, 3, 300])
def test_a_dense_sum_is_the_same_sum(count: int) -> None:
    parts = [as_part(gaussian(12, 9, 5, seed=i), 1 / (i + 1)) for i in range(count)]
    total = sum_parts(parts, torch.float64)
    assert relative_error(total.W, dense(*parts)) < 1e-13
    assert total.rounding < 1e-13


def test_rounding_is_stated_where_terms_cancel() -> None:
    factor = gaussian(60, 50, 90, dtype=torch.float32)
    slightly_off = gaussian(60, 50, 90, dtype=torch.float32)
    slightly_off.B.mul_(1 + 1e-6)
    parts = [as_part(factor, 1.0), as_part(slightly_off, -1.0)]
    total = sum_parts(parts, torch.float32)
    error = torch.linalg.matrix_norm(total.W.double() - dense(*parts), 2)
    assert 0 < float(error) < total.rounding


def test_the_rounding_of_a_sum_is_that_of_its_terms_whatever_their_halves() -> None:
    # b a^T is the same term as (b / d) (d a)^T, and powers of two round nothing.
    factor = gaussian(30, 20, 25, dtype=torch.float32)
    d = 2.0 ** torch.arange(-12, 13)
    plain, moved = (
        sum_parts([as_part(each)], torch.float32) for each in (factor, LoraFactor(factor.B / d, d[:, None] * factor.A))
    )
    assert moved.rounding == pytest.approx(plain.rounding, rel=1e-6)
    assert relative_error(moved.W, plain.W.double()) < 1e-6


def test_each_part_is_read_once() -> None:
    reads: list[int] = []

    def counted(index: int) -> WeightedFactor:
        factor = gaussian(12, 9, 300, seed=index)
        return WeightedFactor(1.0, factor.spec, lambda: reads.append(index) or factor)

    parts = [counted(i) for i in range(4)]
    sum_parts(parts, torch.float64)
    stack_parts(parts, torch.float64)
    assert reads == [0, 1, 2, 3] * 2


def test_a_factor_unlike_its_spec_is_refused() -> None:
    # A half of rank 1 would broadcast into the place of 8.
    factor = gaussian(12, 9, 1)
    lying = WeightedFactor(1.0, replace(factor.spec, rank=8), lambda: factor)
    with pytest.raises(InvalidAdapterError, match=r"rank 8 as announced, got shape \(12, 9\) and rank 1"):
        stack_parts([lying], torch.float64)
