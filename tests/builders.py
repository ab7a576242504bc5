"""Random updates for tests: small, seeded, float64 unless said otherwise."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from florist.factors import AdapterState, LoraFactor
from florist.rounds import ClientUpdate
from florist.seeding import derive_seed, random_rows

SHAPES: Mapping[str, tuple[int, int]] = {
    "layers.0.q_proj": (12, 16),
    "layers.0.v_proj": (6, 16),
    "layers.1.up": (20, 9),
}


def adapter(
    rank: int, seed: int, *, shapes: Mapping[str, tuple[int, int]] = SHAPES, dtype: torch.dtype = torch.float64
) -> AdapterState:
    """Gaussian factors of one rank for every module."""
    draw = torch.Generator().manual_seed(seed)
    return AdapterState.of(
        {
            name: LoraFactor(
                torch.randn(m, rank, generator=draw, dtype=torch.float64).to(dtype),
                torch.randn(rank, n, generator=draw, dtype=torch.float64).to(dtype),
            )
            for name, (m, n) in shapes.items()
        }
    )


def with_shared_rows(
    rank: int, seed: int, *, shapes: Mapping[str, tuple[int, int]] = SHAPES, dtype: torch.dtype = torch.float64
) -> AdapterState:
    """As clients of FFA-LoRA hold it: a B of its own, and the first rows of the A that a run of seed 0 draws."""
    own = adapter(rank, seed, shapes=shapes, dtype=dtype)
    return AdapterState.of(
        {
            name: LoraFactor(
                factor.B, random_rows(derive_seed(0, "local adapter"), name, 40, factor.A.shape[1])[:rank].to(dtype)
            )
            for name, factor in own.items()
        }
    )


def update(client_id: str, held: AdapterState, *, num_examples: int = 1, round_number: int = 1) -> ClientUpdate:
    return ClientUpdate(client_id, held, num_examples, round_number)


def federation(
    ranks: Sequence[int], *, counts: Sequence[int] | None = None, seed: int = 0, dtype: torch.dtype = torch.float64
) -> list[ClientUpdate]:
    """One update a rank, of clients ``client_0``, ``client_1``, ..."""
    counts = counts or [1] * len(ranks)
    return [
        update(f"client_{k}", adapter(rank, 100 * seed + k, dtype=dtype), num_examples=count)
        for k, (rank, count) in enumerate(zip(ranks, counts, strict=True))
    ]


def dense_sum(updates: Sequence[ClientUpdate], module: str) -> Tensor:
    """The oracle: ``sum_k w_k B_k A_k`` as a dense float64 matrix."""
    total = sum(u.num_examples for u in updates)
    factors = [(u.num_examples / total, u.adapter[module]) for u in updates if module in u.adapter]
    return sum((w * f.B.double() @ f.A.double() for w, f in factors), start=torch.zeros(()))


def relative_error(found: Tensor, expected: Tensor) -> float:
    norm = float(expected.norm())
    return float((found.double() - expected.double()).norm()) / (norm or 1.0)
