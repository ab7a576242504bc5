"""The singular value decomposition of an update, in the form that every solver returns."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from florist.factors import LoraFactor
from florist.linalg.spectrum import Spectrum


@dataclass(frozen=True, slots=True, eq=False)
class ThinSvd:
    """All or the leading part of ``dW = U @ diag(S) @ Vh``, with the singular vectors not yet multiplied out.

    ``U`` is ``left @ X`` and ``Vh`` is ``Y @ right``: a rank rule looks at the spectrum first, and only the directions
    that it keeps are ever formed. Until then the stacked factors, or the dense update, are held: take `factor` and let
    the rest go.

    Attributes:
        spectrum: Every singular value that can be asked for.
        left: A basis of the columns of ``U``.
        X: The coordinates of ``U`` in `left`; None where `left` is ``U``.
        Y: The coordinates of ``Vh`` in `right`; None where `right` is ``Vh``.
        right: A basis of the rows of ``Vh``.
    """

    spectrum: Spectrum
    left: Float[Tensor, "out_features left_rank"]
    X: Float[Tensor, "left_rank k"] | None
    Y: Float[Tensor, "k right_rank"] | None
    right: Float[Tensor, "right_rank in_features"]

    @property
    def S(self) -> Float64[Tensor, " k"]:
        """The singular values, non-increasing."""
        return self.spectrum.S

    @property
    def U(self) -> Float[Tensor, "out_features k"]:
        """The left singular vectors as columns, formed anew at each access."""
        return self._left(torch.ones_like(self.S))

    @property
    def Vh(self) -> Float[Tensor, "k in_features"]:
        """The right singular vectors as rows, formed anew at each access."""
        return self._right(torch.ones_like(self.S))

    def factor(self, rank: int, values: Float64[Tensor, " p"] | None = None) -> LoraFactor:
        """Return the best approximation of rank p = `rank`, with the singular values split evenly over both halves.

        The halves are ``B = U_p S_p^(1/2)`` and ``A = S_p^(1/2) V_p^T``. FLoRIST (arXiv:2506.09199, eq. 5) puts all of
        S into B. The product is the same, but halves of equal norm survive storage in fp16 and in 8 bits, where a small
        update with all of S in B underflows.

        Args:
            rank: p, how many directions are kept.
            values: what they get in the place of their singular values, from 0.

        Raises:
            ValueError: `rank` is negative or above k.

        Cost: two thin products, O(p (left_rank m + right_rank n)).
        """
        if not 0 <= rank <= self.S.numel():
            raise ValueError(
                f"expected a rank of 0 to {self.S.numel()}, the directions that were resolved, got {rank}; "
                "decompose with a larger energy to hold more"
            )
        root = (self.S[:rank] if values is None else values).sqrt()
        return LoraFactor(self._left(root).contiguous(), self._right(root).contiguous())

    def leading(self, rank: int) -> "ThinSvd":
        """Return the first `rank` directions, with the energy of the others in the tail; nothing is copied."""
        return ThinSvd(
            spectrum=self.spectrum.leading(rank),
            left=self.left if self.X is not None else self.left[:, :rank],
            X=None if self.X is None else self.X[:, :rank],
            Y=None if self.Y is None else self.Y[:rank],
            right=self.right if self.Y is not None else self.right[:rank],
        )

    def trailing(self, rank: int) -> "ThinSvd":
        """Return the directions without the first `rank`; nothing is copied."""
        return ThinSvd(
            spectrum=self.spectrum.trailing(rank),
            left=self.left if self.X is not None else self.left[:, rank:],
            X=None if self.X is None else self.X[:, rank:],
            Y=None if self.Y is None else self.Y[rank:],
            right=self.right if self.Y is not None else self.right[rank:],
        )

    def formed(self, dtype: torch.dtype) -> "ThinSvd":
        """Return the decomposition in another precision, with ``U`` and ``Vh`` multiplied out.

        Cost: two thin products.
        """
        return ThinSvd(self.spectrum, self.U.to(dtype), None, None, self.Vh.to(dtype))

    def transposed(self) -> "ThinSvd":
        """Return the decomposition of ``dW.T``."""
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
    """Return the decomposition of a zero update that has the shape of `factor`."""
    none = torch.zeros(0, dtype=torch.float64)
    spectrum = Spectrum(none, rounding_floor(factor.B.dtype), factor.spec.shape)
    return ThinSvd(spectrum, factor.B[:, :0], None, None, factor.A[:0])


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision to compute in: float64 stays, and the rest becomes float32 (LAPACK knows no half)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rounding_floor(dtype: torch.dtype) -> float:
    """Return the fraction of the largest singular value below which a value says nothing about the update.

    An update is only known to the rounding of its factors. Equal clients whose weights were folded into float32
    factors come back with noise of 1e-8 to 1e-7 of the largest value, which must not count as rank. A value above 8
    eps is real.

    Args:
        dtype: The dtype of the input; half precisions count as float32, because nothing is lost when they are widened.
    """
    return 8 * torch.finfo(working_dtype(dtype)).eps
