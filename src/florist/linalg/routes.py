"""The one entry point, which decomposes a weighted sum of factors by the cheapest solver that is right for it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from florist.errors import IncompatibleAdaptersError, NonFiniteUpdateError
from florist.factors import LoraFactor
from florist.linalg.accumulate import WeightedFactor, stack_parts, sum_parts
from florist.linalg.dense import dense_gram_svd, dense_svd
from florist.linalg.gram import gram_svd
from florist.linalg.qr import qr_svd
from florist.linalg.spectrum import Spectrum, known_energy
from florist.linalg.thin_svd import ThinSvd, no_directions, rounding_floor

# A squared singular value may be off by this fraction of the energy that may be discarded.
_TOLERANCE = 1e-4


class NonFinitePartError(NonFiniteUpdateError):
    """One part of a sum holds NaN or infinity.

    Attributes:
        index: The index of the part.
    """

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index

    def __reduce__(self) -> tuple[type["NonFinitePartError"], tuple[str, int]]:
        """Pickle the index as well: by default `args`, the message alone, would be handed to the constructor."""
        return type(self), (str(self), self.index)


class OverflowingSumError(NonFiniteUpdateError):
    """The parts of a sum are finite, and the sum exceeds the range of its precision."""


@torch.no_grad()
def decompose(parts: Sequence[WeightedFactor], *, energy: float = 1.0) -> ThinSvd:
    """Compute the SVD of ``dW = sum_i weight_i B_i A_i`` exactly, and without ``dW`` unless that is the cheaper way.

    While R, the sum of the ranks, is below min(m, n), the factors are stacked and solved by Gram matrices, in float32
    where its precision will do for `energy`, and else in float64. Two kinds of stacks need more and are solved by QR in
    float64: float64 factors whose numerical rank is wanted, and factors that nearly cancel. For a larger R, the dense
    update is summed up and decomposed, which is faster from about there on. Memory therefore never grows with the
    number of clients.

    Args:
        parts: At least one part; all have one shape. Their order must be the same every time, because the rounding
            depends on it.
        energy: The largest fraction of ``||dW||_F^2`` that the caller will ask for, in (0, 1]. At 1, every singular
            value above the rounding of the factors is returned; where none is, the sum counts as zero and its energy
            as well.

    Returns:
        The singular values up to the rank that holds `energy`, and exactly how much energy is left out; in float64
        where a part is in float64, and else in float32. The result holds what was decomposed, the stack or the dense
        update, until it is let go.

    Raises:
        ValueError: There is no part, a weight is not finite, or `energy` lies outside (0, 1].
        IncompatibleAdaptersError: The parts have unlike shapes.
        NonFinitePartError: A part holds NaN or infinity. Parts of weight 0 are not looked at.
        OverflowingSumError: All parts are finite, and their sum is not.

    Cost: the time of `gram_svd` or `dense_gram_svd`; the memory of R (m + n) numbers, or of m n and a batch of clients,
    and of a few times the square of R or of min(m, n).
    """
    _check(parts, energy)
    spec = parts[0].spec
    live = [part for part in parts if part.weight != 0 and part.spec.rank > 0]
    dtype = torch.float64 if any(part.spec.dtype == torch.float64 for part in parts) else torch.float32
    if not live:
        zero = LoraFactor(torch.zeros(spec.out_features, 0, dtype=dtype), torch.zeros(0, spec.in_features, dtype=dtype))
        return no_directions(zero)
    solve = _solve_stacked if sum(part.spec.rank for part in live) < min(spec.shape) else _solve_dense
    try:
        svd = solve(live, dtype, energy)
    except NonFiniteUpdateError as error:
        _raise_culprit(parts)
        raise OverflowingSumError(
            f"expected a sum within the range of {dtype}, and that of finite factors of shape {spec.shape} overflows; "
            "look for a factor that is far too large"
        ) from error
    if svd.left.dtype == dtype:
        return svd
    rounded = max(svd.spectrum.known_from, known_energy(0.0, svd.spectrum.total_energy, dtype))
    return replace(svd, spectrum=replace(svd.spectrum, known_from=rounded)).formed(dtype)


@torch.no_grad()
def decompose_dense(W: Float[Tensor, "out_features in_features"], *, energy: float = 1.0) -> ThinSvd:
    """Compute the SVD of an update that is dense from the start, as the difference of two weights is.

    Args:
        W: The update, in float32 or float64.
        energy: The largest fraction of ``||W||_F^2`` that the caller will ask for, in (0, 1], as for `decompose`.

    Raises:
        NonFiniteUpdateError: `W` holds NaN or infinity, or its squares overflow float64.

    Cost: that of `dense_gram_svd`, O(m n min(m, n)) with a small constant; below an energy of 1 its eigenproblem is
    solved for the leading part alone, by `randomized.leading_pairs`. Where its precision does not do, `dense_svd`.
    """
    svd = _solve_matrix(W.to(_storage(W.dtype)), W.dtype, energy)
    if svd is None:
        svd = _cut(dense_svd(W.double()), W.dtype, energy)
    return svd if svd.left.dtype == W.dtype else svd.formed(W.dtype)


def _solve_matrix(W: Tensor, dtype: torch.dtype, energy: float) -> ThinSvd | None:
    for gram_dtype in _gram_dtypes(dtype, energy):
        svd = dense_gram_svd(W, energy=energy, gram_dtype=gram_dtype)
        if _resolves(svd, dtype, energy):
            return _cut(svd, dtype, energy)
    return None


def _solve_stacked(parts: Sequence[WeightedFactor], dtype: torch.dtype, energy: float) -> ThinSvd:
    stack = stack_parts(parts, _storage(dtype))
    for gram_dtype in _gram_dtypes(dtype, energy):
        svd = gram_svd(stack.factor, stack.weights, energy=energy, gram_dtype=gram_dtype)
        if _resolves(svd, dtype, energy):
            return _cut(svd, dtype, energy)
    return _cut(qr_svd(stack.factor.to(dtype=torch.float64), stack.weights), dtype, energy)


def _solve_dense(parts: Sequence[WeightedFactor], dtype: torch.dtype, energy: float) -> ThinSvd:
    dense = sum_parts(parts, _storage(dtype))
    for gram_dtype in _gram_dtypes(dtype, energy):
        svd = _with_rounding(dense_gram_svd(dense.W, energy=energy, gram_dtype=gram_dtype), dense.rounding)
        if _resolves(svd, dtype, energy):
            return _cut(svd, dtype, energy)
    dense = sum_parts(parts, torch.float64)
    return _cut(_with_rounding(dense_svd(dense.W), dense.rounding), dtype, energy)


def _cut(svd: ThinSvd, dtype: torch.dtype, energy: float) -> ThinSvd:
    """Cut to the rank that holds `energy`, and to what the precision of the factors can resolve."""
    spectrum = _with_resolution(svd.spectrum, rounding_floor(dtype))
    if spectrum.numerical_rank == 0:
        # Terms that cancel leave nothing but rounding, whose energy would certify an error of the whole sum.
        spectrum = replace(spectrum.leading(0), resolution=rounding_floor(dtype), tail_energy=0.0, known_from=0.0)
    return replace(svd, spectrum=spectrum).leading(spectrum.rank_holding(energy))


def _with_rounding(svd: ThinSvd, rounding: float) -> ThinSvd:
    """Raise the resolution to the rounding of the sum itself, which limits it where large terms cancel."""
    if rounding == 0:
        return svd
    largest = float(svd.S[0]) if svd.S.numel() else 0.0
    # Where nothing else is left of a sum of large terms, rounding may have hidden what it really is.
    spectrum = _with_resolution(svd.spectrum, rounding / largest if largest else math.inf)
    size = min(spectrum.shape) * (rounding / (8 * torch.finfo(svd.left.dtype).eps)) ** 2
    known_from = max(spectrum.known_from, known_energy(0.0, size, svd.left.dtype))
    return replace(svd, spectrum=replace(spectrum, known_from=known_from))


def _with_resolution(spectrum: Spectrum, at_best: float) -> Spectrum:
    return replace(spectrum, resolution=max(spectrum.resolution, at_best))


def _storage(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to stack in: TF32 and bfloat16 products, which torch may be told to use, lose the update."""
    return dtype if torch.get_float32_matmul_precision() == "highest" else torch.float64


def _gram_dtypes(dtype: torch.dtype, energy: float) -> Iterator[torch.dtype]:
    """Yield the precisions of Gram matrices that may resolve enough, the cheapest first."""
    needed = max(rounding_floor(dtype) ** 2, _TOLERANCE * (1 - energy))
    for gram_dtype in (torch.float32, torch.float64):
        # Rounding costs at least 2 eps of the energy (`eigenpairs`), and more where halves exceed their product.
        if gram_dtype.itemsize >= _storage(dtype).itemsize and needed >= 8 * torch.finfo(gram_dtype).eps:
            yield gram_dtype


def _resolves(svd: ThinSvd, dtype: torch.dtype, energy: float) -> bool:
    """Tell whether rounding is below what may be discarded, or below what the precision of the factors leaves."""
    spectrum = svd.spectrum
    if spectrum.resolution <= rounding_floor(dtype):
        return True
    discarded = (1 - energy) * spectrum.total_energy
    noise = (spectrum.resolution * float(spectrum.S[0])) ** 2 if spectrum.S.numel() else math.inf
    # Where many values are small, those above the noise may hold too little energy.
    return noise <= _TOLERANCE * discarded and spectrum.tail_energy <= discarded * (1 + 1e-9)


def _check(parts: Sequence[WeightedFactor], energy: float) -> None:
    if not parts:
        raise ValueError("expected at least one factor to decompose, got none")
    if not 0 < energy <= 1:
        raise ValueError(f"expected 0 < energy <= 1 (a fraction of the energy to hold), got {energy}")
    for index, part in enumerate(parts):
        if part.spec.shape != parts[0].spec.shape:
            raise IncompatibleAdaptersError(
                f"expected factors of one shape (out_features, in_features), got {parts[0].spec.shape} for part 0 "
                f"and {part.spec.shape} for part {index}; a module must have the same size in every adapter"
            )
        if not math.isfinite(part.weight):
            raise ValueError(f"expected a finite weight, got {part.weight} for part {index}")


def _raise_culprit(parts: Sequence[WeightedFactor]) -> None:
    """Raise for the part with NaN or infinity, if any; to look for it earlier would read every tensor for nothing."""
    for index, part in enumerate(parts):
        if part.weight == 0 or part.spec.rank == 0:
            continue
        factor = part.read()
        if not bool(factor.B.isfinite().all() & factor.A.isfinite().all()):
            raise NonFinitePartError(f"expected finite factors, got NaN or infinity in part {index}", index)
