"""Rank rules without a number to choose, which `auto_rank.py` compares with fixed tau; they are no part of florist.

`SignFlips` asks which directions stand above what the clients' updates make under random signs; `Elbow` where a
spectrum bends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from florist.aggregation import Florist
from florist.aggregation.updates import accepted_updates, weighted_factors
from florist.factors import LoraFactor, stack
from florist.linalg.spectrum import Spectrum
from florist.rounds import Broadcast, ClientUpdate, ClientWork
from florist.seeding import generator


def sign_patterns(clients: int, draws: int, seed: int) -> Float64[Tensor, "draws clients"]:
    """Unlike patterns of signs for the clients, none of which gives all of them the same.

    Singular values do not see the sign of a whole sum: a pattern and its negative count as one, and the first client
    has 1 in each. Where there are no more than `draws`, all are returned: 1 for two clients, 3 for three, none for one.
    """
    if 2 ** (clients - 1) - 1 <= draws:
        numbers = torch.arange(1, 2 ** (clients - 1))
        rest = 1.0 - 2.0 * ((numbers[:, None] >> torch.arange(clients - 1)) & 1).double()
        return torch.cat([torch.ones(len(numbers), 1, dtype=torch.float64), rest], dim=1)
    draw = generator(seed, "signs")
    found: dict[tuple[float, ...], None] = {}
    while len(found) < draws:
        rest = 1.0 - 2.0 * torch.randint(2, (clients - 1,), generator=draw).double()
        if (rest < 0).any():
            found.setdefault((1.0, *rest.tolist()))
    return torch.tensor(list(found), dtype=torch.float64)


def null_spectra(
    weighted: Sequence[tuple[float, LoraFactor]], signs: Float64[Tensor, "draws clients"]
) -> Float64[Tensor, "draws k"]:
    """The singular values of ``sum_k s_k w_k B_k A_k`` for each pattern s of signs, without the sum.

    With the triangular factors of the stacked halves, ``B = Q_B R_B`` and ``A^T = Q_A R_A``, they are those of
    ``R_B diag(s w) R_A^T``, of size min(m, R) x min(n, R).

    Cost: two QR factorisations, O((m + n) R^2), and the singular values of one small core a pattern.
    """
    stacked = stack([factor for _, factor in weighted]).to(dtype=torch.float64)
    ranks = torch.tensor([factor.rank for _, factor in weighted])
    weights = torch.tensor([weight for weight, _ in weighted], dtype=torch.float64)
    R_B, R_A = (torch.linalg.qr(half, mode="r").R for half in (stacked.B, stacked.A.T))
    components = (signs * weights).repeat_interleave(ranks, dim=1)
    return torch.linalg.svdvals((R_B * components[:, None, :]) @ R_A.T)


@dataclass(frozen=True, slots=True, eq=False)
class AboveEdges:
    """A rank rule: each module keeps its leading directions as long as each is above an edge of its own.

    Attributes:
        edges: the edge of each direction, by module; a direction beyond the last edge is not kept.
    """

    edges: Mapping[str, Float64[Tensor, " k"]]
    required_energy: float = 1.0
    per_module: bool = True

    def __call__(self, spectra: Mapping[str, Spectrum], /) -> Mapping[str, int]:
        """Choose the rank of each module."""
        return {name: min(self._above(name, each.S), each.numerical_rank) for name, each in spectra.items()}

    def _above(self, name: str, S: Tensor) -> int:
        edges = self.edges[name]
        k = min(len(S), len(edges))
        return int((S[:k] > edges[:k]).long().cumprod(dim=0).sum())


@dataclass(frozen=True, slots=True)
class SignFlips:
    """FLoRIST whose modules keep what stands above the spectrum of their clients' updates under random signs.

    Signs leave each update what it is and take away what updates have in common. It is the parallel analysis of J. L.
    Horn (Psychometrika 30, 1965) with the clients in the place of the samples, and with signs in the place of random
    data, as D. Hong, Y. Sheng and E. Dobriban flip them (arXiv:2012.02985).

    One client has no pattern, and keeps everything. Two have one, the difference of their updates.

    Args:
        quantile: the quantile of the null's values over the patterns.
        draws: how many patterns are drawn.
        of_largest: whether every direction has the edge of the first; else each that of its own position.
        seed: of the patterns.
    """

    quantile: float = 0.95
    draws: int = 8
    of_largest: bool = False
    seed: int = 0

    @property
    def work(self) -> ClientWork:
        """Clients train both halves."""
        return ClientWork()

    def edges(self, updates: Sequence[ClientUpdate]) -> Mapping[str, Tensor]:
        """The edge of each direction, by module."""
        accepted = accepted_updates(updates)
        signs = sign_patterns(len(accepted), self.draws, self.seed + accepted[0].round_number)
        found: dict[str, Tensor] = {}
        for name in accepted[0].adapter:
            null = null_spectra(weighted_factors(accepted, name), signs)
            edges = null.quantile(self.quantile, dim=0) if len(signs) else torch.zeros(null.shape[1]).double()
            found[name] = edges[:1].expand_as(edges) if self.of_largest else edges
        return found

    def __call__(self, updates: Sequence[ClientUpdate], /) -> Broadcast:
        """Aggregate the updates of one round; as `Florist`."""
        return Florist(AboveEdges(self.edges(updates)))(updates)


@dataclass(frozen=True, slots=True)
class Elbow:
    """A rank rule: each module keeps its directions as long as each brings more than all do on average.

    What p directions hold is a concave curve of their bytes, since all directions of a module cost the same. This p is
    where the curve is furthest above its chord: the elbow. For principal components it is the criterion of Kaiser and
    Guttman.

    Args:
        power: of the singular values, which a direction brings; 2 is the energy, and less keeps more.
    """

    power: float = 2.0
    required_energy: float = 1.0
    per_module: bool = True

    def __call__(self, spectra: Mapping[str, Spectrum], /) -> Mapping[str, int]:
        """Choose the rank of each module."""
        resolved = {name: each.S[: each.numerical_rank] ** self.power for name, each in spectra.items()}
        # Equal directions are all at the mean, and none is above it.
        return {name: max(int((own > own.mean()).sum()), min(1, len(own))) for name, own in resolved.items()}
