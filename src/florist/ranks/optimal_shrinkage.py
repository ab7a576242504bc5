"""The singular values of a signal behind noise of a known size, from those of both together."""

import math
from dataclasses import dataclass

from jaxtyping import Float64
from torch import Tensor

from florist.errors import ConfigurationError
from florist.linalg.spectrum import Spectrum
from florist.ranks.rule import require_rank


@dataclass(frozen=True, slots=True)
class OptimalShrinkage:
    """Directions that a rule keeps are sent with smaller values: noise makes each of them larger than it was.

    A rank rule says how many directions are kept, and this with which values. Of noise of standard deviation s in m x r
    numbers, a value y above the edge ``s (sqrt(m) + sqrt(r))`` becomes

    ``sqrt((y^2 - s^2 (m + r))^2 - 4 s^4 m r) / y``,

    and one below it 0. Among all functions of singular values this has the smallest Frobenius error in the limit of
    large m and r of a fixed ratio, for a signal of few directions. The direction is off as well, so that the value that
    serves best is smaller than that of the signal.

    Source: M. Gavish and D. L. Donoho, Optimal shrinkage of singular values, IEEE Transactions on Information Theory
    63(4), 2017, arXiv:1405.7511, eq. 7, here without dividing by the size of the noise.

    Args:
        deviation: the standard deviation of a number of the noise, along orthonormal rows.
        rank: r, in how many directions the noise is, which is the largest rank of a client.

    Raises:
        ConfigurationError: a number is out of range.

    >>> import torch
    >>> spectrum = Spectrum(torch.tensor([50.0, 6.0, 5.0]).double(), resolution=1e-6, shape=(9, 100))
    >>> OptimalShrinkage(deviation=1.0, rank=4)(spectrum, 2)  # the edge is 3 + 2
    tensor([49.7394,  3.2702], dtype=torch.float64)
    """

    deviation: float
    rank: int

    def __post_init__(self) -> None:
        if not 0 <= self.deviation < math.inf:
            raise ConfigurationError(f"expected a standard deviation of the noise from 0, got {self.deviation}")
        require_rank(self.rank)

    def __call__(self, spectrum: Spectrum, rank: int) -> Float64[Tensor, " p"]:
        """The values of the leading directions of a module, at most those of the spectrum.

        Args:
            spectrum: of the module, with noise.
            rank: p, how many directions are kept.
        """
        S, m, r = spectrum.S[:rank], spectrum.shape[0], self.rank
        variance = self.deviation**2
        beyond = (S.square() - variance * (m + r)).clamp(min=0)  # below the edge the other root has no meaning
        under = (beyond.square() - 4 * variance**2 * m * r).clamp(min=0).sqrt()
        return under / S.clamp(min=1e-300)
