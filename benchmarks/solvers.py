"""CPU time of florist's decomposition against the paper's three SVDs, QR, the dense SVD, and bare matrix products.

    python benchmarks/solvers.py            # one to several minutes
    python benchmarks/solvers.py --dense    # and against FlexLoRA's and PEFT's dense SVDs, minutes more

Every time is from the clients' factors in memory to the finished rank-p factor of a module: stacking, weights,
choosing p at tau and forming both halves included. It is `time.process_time` (CPU time over all threads) per module, of
a pass over a few modules one after the other, as an aggregation makes it; the least of repeats that take turns. A model
of LLaMA-7B's size holds 32 modules of each kind; three of each shape are timed here, one of the largest.

Two kinds of update: "trained" factors are those after one gradient step from B = 0, on gradients of which half is
common to the clients and whose singular values fall as 1/j, each client with its own random A; "gaussian" factors are
independent random numbers, the flattest spectrum there is.
"""

import argparse
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor

from florist.cli.memory import keep_freed_memory
from florist.factors import LoraFactor, stack
from florist.linalg import WeightedFactor, decompose
from florist.linalg.parallel import in_order

UNLIKE = (64, 32, 16, 16, 8, 8, 4, 4)
HUNDRED = (4,) * 40 + (8,) * 20 + (16,) * 20 + (32,) * 10 + (64,) * 10


@dataclass(frozen=True)
class Case:
    """One module's shape and its clients' ranks."""

    name: str
    shape: tuple[int, int]
    ranks: tuple[int, ...]


CASES = (
    Case("LLaMA-7B q_proj, 8 unlike clients", (4096, 4096), UNLIKE),
    Case("LLaMA-7B q_proj, 8 clients of rank 16", (4096, 4096), (16,) * 8),
    Case("TinyLlama q_proj, 8 unlike clients", (2048, 2048), UNLIKE),
    Case("TinyLlama v_proj, 8 unlike clients", (256, 2048), UNLIKE),
)
MANY = Case("4096 x 4096, 100 clients", (4096, 4096), HUNDRED)

Solver = Callable[[Sequence[LoraFactor], Sequence[float], float], LoraFactor]


def trained_factors(case: Case, seed: int = 0) -> list[LoraFactor]:
    """Factors after one gradient step from B = 0: ``B_k = G_k A_k^T``."""
    generator = torch.Generator().manual_seed(seed)
    (m, n), spread = case.shape, 128
    fall = 1.0 / torch.arange(1, spread + 1)

    def gradient() -> tuple[Tensor, Tensor]:
        left = torch.randn(m, spread, generator=generator) / math.sqrt(m)
        return left * fall, torch.randn(n, spread, generator=generator) / math.sqrt(n)

    common = gradient()
    factors: list[LoraFactor] = []
    for rank in case.ranks:
        A = (2 * torch.rand(rank, n, generator=generator) - 1) / math.sqrt(n)
        own = gradient()
        B = common[0] @ (A @ common[1]).T + own[0] @ (A @ own[1]).T
        factors.append(LoraFactor(B, A))
    return factors


def gaussian_factors(case: Case, seed: int = 0) -> list[LoraFactor]:
    """Independent standard normal halves, scaled to norms of order 1."""
    generator = torch.Generator().manual_seed(seed)
    m, n = case.shape
    return [
        LoraFactor(
            torch.randn(m, rank, generator=generator) / math.sqrt(m),
            torch.randn(rank, n, generator=generator) / math.sqrt(n),
        )
        for rank in case.ranks
    ]


def florist(factors: Sequence[LoraFactor], weights: Sequence[float], tau: float) -> LoraFactor:
    """What the aggregation calls."""
    parts = [
        WeightedFactor(weight, factor.spec, lambda factor=factor: factor)
        for weight, factor in zip(weights, factors, strict=True)
    ]
    svd = decompose(parts, energy=tau)
    return svd.factor(svd.S.numel())


def three_svds(factors: Sequence[LoraFactor], weights: Sequence[float], tau: float) -> LoraFactor:
    """FLoRIST as its paper computes it: SVD of either stack, then of the R x R core (arXiv:2506.09199, eq. 2 to 5)."""
    B, A = stacked(factors, weights)
    U_B, S_B, Vh_B = torch.linalg.svd(B, full_matrices=False)
    U_A, S_A, Vh_A = torch.linalg.svd(A, full_matrices=False)
    U, S, Vh = torch.linalg.svd((S_B[:, None] * Vh_B) @ (U_A * S_A))
    p = rank_at(S, tau)
    return LoraFactor(U_B @ (U[:, :p] * S[:p]), Vh[:p] @ Vh_A)


def qr_and_core(factors: Sequence[LoraFactor], weights: Sequence[float], tau: float) -> LoraFactor:
    """Thin QR of both stacks and the SVD of the core."""
    B, A = stacked(factors, weights)
    Q_b, R_b = torch.linalg.qr(B)
    Q_a, R_a = torch.linalg.qr(A.T)
    U, S, Vh = torch.linalg.svd(R_b @ R_a.T)
    p = rank_at(S, tau)
    return LoraFactor(Q_b @ (U[:, :p] * S[:p]), Vh[:p] @ Q_a.T)


def dense_svd(factors: Sequence[LoraFactor], weights: Sequence[float], tau: float) -> LoraFactor:
    """FlexLoRA, and PEFT's ``combination_type="svd"``: the dense update and its full SVD."""
    B, A = stacked(factors, weights)
    U, S, Vh = torch.linalg.svd(B @ A, full_matrices=False)
    p = rank_at(S, tau)
    return LoraFactor(U[:, :p] * S[:p], Vh[:p].contiguous())


def peft_svd(factors: Sequence[LoraFactor], weights: Sequence[float], tau: float) -> LoraFactor:
    """PEFT's ``add_weighted_adapter(combination_type="svd")``, told the rank that holds tau."""
    (m, _), (_, n) = factors[0].B.shape, factors[0].A.shape
    names = [f"c{number}" for number in range(len(factors))]
    configs = [LoraConfig(r=factor.rank, lora_alpha=factor.rank, target_modules=["0"]) for factor in factors]
    model = PeftModel(torch.nn.Sequential(torch.nn.Linear(n, m, bias=False)), configs[0], names[0])
    for name, config in zip(names[1:], configs[1:], strict=True):
        model.add_adapter(name, config)
    layer: Any = model.get_submodule("base_model.model.0")
    for name, factor in zip(names, factors, strict=True):
        layer.lora_A[name].weight.data.copy_(factor.A)
        layer.lora_B[name].weight.data.copy_(factor.B)
    rank = florist(factors, weights, tau).rank
    merge: Any = model.base_model.add_weighted_adapter
    merge(names, list(weights), "merged", combination_type="svd", svd_rank=rank)
    return LoraFactor(layer.lora_B["merged"].weight.data, layer.lora_A["merged"].weight.data)


def stacked(factors: Sequence[LoraFactor], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The stacks of the baselines, weights folded into B."""
    B = torch.cat([factor.B * weight for factor, weight in zip(factors, weights, strict=True)], dim=1)
    return B, torch.cat([factor.A for factor in factors])


def rank_at(S: Tensor, tau: float) -> int:
    """The smallest rank that holds tau; for tau = 1 what stands above float32's rounding."""
    if tau == 1:
        return int((S > 1e-6 * S[0]).sum())
    held = torch.cumsum(S.double().square(), dim=0)
    return int((held < tau * held[-1]).sum()) + 1


def floor(factors: Sequence[LoraFactor], p: int, dtype: torch.dtype) -> Callable[[], object]:
    """The bare products that a Gram route cannot do without: two Gram matrices, two thin products."""
    B, A = stacked(factors, [1.0] * len(factors))
    wide_B, wide_A = B.to(dtype), A.to(dtype)
    X, Y = torch.randn(B.shape[1], p), torch.randn(p, A.shape[0])
    return lambda: (wide_B.T @ wide_B, wide_A @ wide_A.T, B @ X, Y @ A)


def relative_error(result: LoraFactor, factors: Sequence[LoraFactor], weights: Sequence[float]) -> float:
    """``||dW - B A||_F / ||dW||_F`` in float64: QR of the stacks of the difference, so that nothing cancels."""
    parts = [factor.to(dtype=torch.float64).scaled(w) for factor, w in zip(factors, weights, strict=True)]
    return norm(stack([*parts, result.to(dtype=torch.float64).scaled(-1.0)])) / norm(stack(parts))


def norm(factor: LoraFactor) -> float:
    """``||B A||_F`` of the triangular factors' product."""
    return float((torch.linalg.qr(factor.B, mode="r")[1] @ torch.linalg.qr(factor.A.T, mode="r")[1].T).norm())


def cpu_ms(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Least CPU time of each call, all threads together; they take turns, so that a busy machine is fair to all."""
    least = [math.inf] * len(calls)
    for repeat in range(repeats + 1):
        for i, call in enumerate(calls):
            start = time.process_time()
            call()
            if repeat > 0 or repeats == 0:  # the first turn warms up
                least[i] = min(least[i], 1000 * (time.process_time() - start))
    return least


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def compare(case: Case, kind: str, tau: float, baseline: tuple[str, Solver], *, repeats: int, modules: int = 3) -> None:
    """Print one row: florist, the baseline, the floor, their ratios and errors."""
    draw = trained_factors if kind == "trained" else gaussian_factors
    data = [draw(case, seed) for seed in range(modules)]
    clients, factors = len(case.ranks), data[0]
    weights = [(i + 1) / (clients * (clients + 1) / 2) for i in range(clients)]
    name, solve = baseline
    ours, theirs = florist(factors, weights, tau), solve(factors, weights, tau)
    # Beyond 0.96 florist needs its Gram matrices in float64.
    bare = [floor(each, ours.rank, torch.float64 if tau > 0.96 else torch.float32) for each in data]
    passes = (
        lambda: list(in_order(lambda each: florist(each, weights, tau), data)),
        lambda: [solve(each, weights, tau) for each in data],
        lambda: [products() for products in bare],
    )
    time_ours, time_theirs, time_floor = (ms / modules for ms in cpu_ms(passes, repeats))
    print(
        f"{case.name:38} {kind:9} {tau:4} {sum(case.ranks):5} {ours.rank:5} {theirs.rank:5} {time_ours:9.2f} "
        f"{name:>10} {time_theirs:9.1f} {time_theirs / time_ours:7.1f} {time_floor:8.2f} {time_ours / time_floor:6.2f} "
        f"{relative_error(ours, factors, weights):.7f} {relative_error(theirs, factors, weights):.7f}",
        flush=True,
    )


def main() -> None:
    """Print the table for 1 and 2 threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", action="store_true", help="also against a dense SVD (a minute or more a run)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    keep_freed_memory()  # as the command line does
    print(f"{processor()}, {os.cpu_count()} CPUs; torch {torch.__version__}; float32 factors; CPU ms, least of repeats")
    print(f"load average before the start: {os.getloadavg()[0]:.1f} (times on a busy machine mean little, least of all")
    print("with several threads: waiting for each other then counts as work)")
    for threads in args.threads:
        torch.set_num_threads(threads)
        print(f"\n{threads} thread{'s' if threads > 1 else ''}")
        print(
            f"{'module':38} {'update':9} {'tau':>4} {'R':>5} {'p':>5} {'p2':>5} {'florist':>9} {'against':>10}"
            f" {'takes':>9} {'times':>7} {'floor':>8} {'/floor':>6} {'error':9} {'its error':9}"
        )
        for case in CASES:
            for kind in ("trained", "gaussian"):
                for tau in (0.9, 1.0):
                    compare(case, kind, tau, ("three SVDs", three_svds), repeats=args.repeats)
        for kind in ("trained", "gaussian"):
            compare(MANY, kind, 0.9, ("QR + core", qr_and_core), repeats=min(args.repeats, 3), modules=1)
        if args.dense:
            compare(CASES[0], "trained", 0.9, ("dense SVD", dense_svd), repeats=0, modules=1)
            compare(CASES[0], "trained", 0.9, ("PEFT's svd", peft_svd), repeats=0, modules=1)


if __name__ == "__main__":
    main()
