"""Operations at the server, as the FLoRIST paper counts them and as florist's own solvers need them.

A multiplication with its addition is one operation, in both counts.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from florist.planning.sending import ModuleGroup, PlannedMethod, RoundRanks

_EIGENPROBLEM = 8.0
"""Operations of the symmetric eigenproblem of order R with all vectors, over R^3, with what forms it: a Cholesky
factorisation (1/3), two products (2), the reduction to a tridiagonal matrix (4/3) and the vectors (about 4). LAPACK's
own count depends on the matrix."""

Operations = Callable[[RoundRanks, ModuleGroup, float], float]
"""The operations for one module, from the ranks that come in and the rank that goes out."""


def _averaged_halves(ranks: RoundRanks, group: ModuleGroup, _kept: float) -> float:
    return ranks.stack * sum(group.shape)


def _averaged_b(ranks: RoundRanks, group: ModuleGroup, _kept: float) -> float:
    return ranks.stack * group.shape[0]


def _averaged_weights(ranks: RoundRanks, group: ModuleGroup, _kept: float) -> float:
    return float(ranks.clients * math.prod(group.shape))


def _paper_florist(ranks: RoundRanks, group: ModuleGroup, kept: float) -> float:
    # Two thin SVDs of the stacks, one of the R x R core, and the two products that form the factors that are kept.
    R = ranks.stack
    return sum(group.shape) * R**2 + R**3 + sum(group.shape) * R * kept


def _paper_flexlora(ranks: RoundRanks, group: ModuleGroup, _kept: float) -> float:
    # The dense SVD is nearly all of it. With K m n for the sum of K dense updates and (m + n) R^2 the paper's figure
    # comes out; to form these updates would take m n R more.
    m, n = group.shape
    return m * n * min(m, n) + ranks.clients * m * n + (m + n) * ranks.stack**2


def _decomposed_stack(ranks: RoundRanks, group: ModuleGroup, kept: float) -> float:
    return _decomposition(ranks.stack, group, kept)


def _decomposed_residual(ranks: RoundRanks, group: ModuleGroup, kept: float) -> float:
    # The residual has a component for each client and each component of the largest rank, zeros included.
    return _averaged_halves(ranks, group, kept) + _decomposition(ranks.clients * ranks.largest, group, kept)


def _decomposed_rows(ranks: RoundRanks, group: ModuleGroup, kept: float) -> float:
    return _averaged_b(ranks, group, kept) + _decomposition(ranks.largest, group, kept)


def _decomposition(rank: float, group: ModuleGroup, kept: float) -> float:
    """`linalg.decompose`: Gram matrices of the stack, or of the dense sum where the rank reaches the smaller side."""
    m, n = group.shape
    if rank < group.limit:
        return (m + n) * rank**2 + _EIGENPROBLEM * rank**3 + (m + n) * rank * kept
    side = group.limit
    return m * n * rank + m * n * side + _EIGENPROBLEM * side**3 + m * n * kept


PAPER: Mapping[str, Operations] = {
    "florist": _paper_florist,
    "flexlora": _paper_flexlora,
    "fedit": _averaged_halves,
    "ffa": _averaged_b,
    "flora": _averaged_b,
    "full": _averaged_weights,
}
"""The paper's formulas for FLoRIST and FlexLoRA; of the others, which it does not count, a pass over the uploads."""

SOLVERS: Mapping[str, Operations] = {
    "florist": _decomposed_stack,
    "flexlora": _decomposed_stack,
    "raflora": _decomposed_stack,
    "fedit": _averaged_halves,
    "ffa": _averaged_b,
    "flora": _averaged_b,
    "fedex": _decomposed_residual,
    "linear": _decomposed_rows,
    "fedsvd": _decomposed_rows,
    "full": _averaged_weights,
}
"""What florist's server computes for a broadcast, certificates and the sum of the global adapter left out."""


def operations(
    table: Mapping[str, Operations], method: PlannedMethod, ranks: RoundRanks, groups: Sequence[ModuleGroup]
) -> float | None:
    """The operations of a round for all modules; None where the table does not count the method."""
    count = table.get(method.name)
    if count is None:
        return None
    return sum(group.count * count(ranks, group, _sent_rank(method, ranks, group)) for group in groups)


def _sent_rank(method: PlannedMethod, ranks: RoundRanks, group: ModuleGroup) -> float:
    return max(method.sending.shared(ranks, group), method.sending.continued(ranks, group))
