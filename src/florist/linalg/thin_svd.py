"""The singular value decomposition of an update, as every solver returns it."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from florist.factors import LoraFactor
from florist.linalg.spectrum import Spectrum


@dataclass(frozen=True, slots=True, eq=False)
class ThinSvd:
    """``dW = U @ diag(S) @ Vh``, all of it or its leading part, with the singular vectors not yet multiplied out.

    ``U = left @ X`` and ``Vh = Y @ right``: a rank rule looks at the spectrum first, and only the directions that it
    keeps are ever formed. Until then the stacked factors, or the dense update, are held: take `factor` and let go.

    Attributes:
        spectrum: every singular value that can be asked for.
        left: basis of the columns of ``U``.
        X: coordinates of ``U`` in it; None where `left` is ``U``.
        Y: coordinates of ``Vh``; None where `right` is ``Vh``.
        right: basis of the rows of ``Vh``.
    """

    spectrum: Spectrum
    left: Float[Tensor, "out_features left_rank"]
    X: Float[Tensor, "left_rank k"] | None
    Y: Float[Tensor, "k right_rank"] | None
    right: Float[Tensor, "right_rank in_features"]

    @property
    def S(self) -> Float64[Tensor, " k"]:
        """Singular values, non-increasing."""
        return self.spectrum.S

    @property
    def U(self) -> Float[Tensor, "out_features k"]:
        """Left singular vectors, as columns; formed anew at each access."""
        return self._left(torch.ones_like(self.S))

    @property
    def Vh(self) -> Float[Tensor, "k in_features"]:
        """Right singular vectors, as rows; formed anew at each access."""
        return self._right(torch.ones_like(self.S))

    def factor(self, rank: int) -> LoraFactor:
        """The best approximation of rank `rank`, with the singular values split evenly.

        ``B = U_p S_p^(1/2)``, ``A = S_p^(1/2) V_p^T``. FLoRIST (arXiv:2506.09199, eq. 5) puts all of S into B: the
        product is the same, and halves of equal norm survive fp16 and 8-bit storage, where an all-in-B split of a
        small update underflows.

        Raises:
            ValueError: `rank` is negative or above k.

        Cost: two thin products, O(p (left_rank m + right_rank n)).
        """
        if not 0 <= rank <= self.S.numel():
            raise ValueError(
                f"expected a rank of 0 to {self.S.numel()}, the directions that were resolved, got {rank}; "
                "decompose with a larger energy to hold more"
            )
        root = self.S[:rank].sqrt()
        return LoraFactor(self._left(root).contiguous(), self._right(root).contiguous())

    def leading(self, rank: int) -> "ThinSvd":
        """The first `rank` directions, the energy of the others in the tail; nothing is copied."""
        return ThinSvd(
            spectrum=self.spectrum.leading(rank),
            left=self.left if self.X is not None else self.left[:, :rank],
            X=None if self.X is None else self.X[:, :rank],
            Y=None if self.Y is None else self.Y[:rank],
            right=self.right if self.Y is not None else self.right[:rank],
        )

    def formed(self, dtype: torch.dtype) -> "ThinSvd":
        """The same with ``U`` and ``Vh`` multiplied out, in another precision.

        Cost: two thin products.
        """
        return ThinSvd(self.spectrum, self.U.to(dtype), None, None, self.Vh.to(dtype))

    def transposed(self) -> "ThinSvd":
        """The decomposition of ``dW.T``."""
        out_features, in_features = self.spectrum.shape
        return ThinSvd(
            spectrum=replace(self.spectrum, shape=(in_features, out_features)),
            left=self.right.T,
            X=None if self.Y is None else self.Y.T,
            Y=None if self.X is None else self.X.T,
            right=self.left.T,
        )

    def _left(self, scale: Float64[Tensor, " p"]) -> Float[Tensor, "out_features p"]:
        scale, p = scale.to(self.left.device), scale.numel()
        if self.X is None:
            return (self.left[:, :p] * scale).to(self.left.dtype)
        return self.left @ (self.X[:, :p] * scale).to(self.left.dtype)

    def _right(self, scale: Float64[Tensor, " p"]) -> Float[Tensor, "p in_features"]:
        scale, p = scale[:, None].to(self.right.device), scale.numel()
        if self.Y is None:
            return (scale * self.right[:p]).to(self.right.dtype)
        return (scale * self.Y[:p]).to(self.right.dtype) @ self.right


def no_directions(factor: LoraFactor) -> ThinSvd:
    """The decomposition of a zero update of that shape."""
    none = torch.zeros(0, dtype=torch.float64)
    spectrum = Spectrum(none, rounding_floor(factor.B.dtype), factor.spec.shape)
    return ThinSvd(spectrum, factor.B[:, :0], None, None, factor.A[:0])


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision to compute in: float64 stays, everything narrower becomes float32 (LAPACK knows no half)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rounding_floor(dtype: torch.dtype) -> float:
    """Relative to the largest singular value: below this a value says nothing about the update.

    An update is only known to the rounding of its factors. Equal clients whose weights were folded into float32
    factors come back with noise of 1e-8 to 1e-7 of the largest value, which must not count as rank; a value above 8
    eps is real.

    Args:
        dtype: of the input; half precisions count as float32, because widening them loses nothing.
    """
    return 8 * torch.finfo(working_dtype(dtype)).eps
