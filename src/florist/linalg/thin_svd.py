"""The singular value decomposition of an update, as every solver returns it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from florist.factors import LoraFactor


@dataclass(frozen=True, slots=True, eq=False)
class ThinSvd:
    """``dW = U @ diag(S) @ Vh``, all of it or its leading part.

    Attributes:
        U: orthonormal columns.
        S: non-increasing.
        Vh: orthonormal rows.
        resolution: relative to ``S[0]``: singular values below are the solver's rounding noise.
        tail_energy: ``||dW||_F^2`` less the energy in `S`; 0 where nothing was truncated.
    """

    U: Float[Tensor, "out_features k"]
    S: Float[Tensor, " k"]
    Vh: Float[Tensor, "k in_features"]
    resolution: float
    tail_energy: float = 0.0

    def factor(self, rank: int) -> LoraFactor:
        """The best approximation of rank `rank`, with the singular values split evenly.

        ``B = U_p S_p^(1/2)``, ``A = S_p^(1/2) V_p^T``. FLoRIST (arXiv:2506.09199, eq. 5) puts all of S into B: the
        product is the same, and halves of equal norm survive fp16 and 8-bit storage, where an all-in-B split of a
        small update underflows.
        """
        root = self.S[:rank].sqrt()
        return LoraFactor((self.U[:, :rank] * root).contiguous(), (root[:, None] * self.Vh[:rank]).contiguous())


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision to compute in: float64 stays, everything narrower becomes float32 (LAPACK knows no half)."""
    return torch.float64 if dtype == torch.float64 else torch.float32
