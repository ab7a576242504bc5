"""What hostile clients upload: attacks as plain functions of an update that a client trained.

They are for tests and for ``benchmarks/attacks.py``. An attack knows its own update, the updates of the honest clients
of the round, as a server or a spy would see them, and numbers that it draws. It makes the update that is uploaded in
the place of its own. What it uploads has the shapes, the rank and the name of what its client trained, so that nothing
but norms, angles and counts can tell it from an honest one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from florist.aggregation.updates import client_weights, module_names
from florist.factors import AdapterState, LoraFactor, stack
from florist.linalg import qr_svd
from florist.rounds import ClientUpdate

Attack = Callable[[ClientUpdate, Sequence[ClientUpdate], torch.Generator], ClientUpdate]
"""An attack: of the client's own update, those of the honest clients, and a source of random numbers."""


def norm_of(adapter: AdapterState) -> float:
    """The Frobenius norm of the products of all modules together."""
    return math.sqrt(math.fsum(factor.energy() for factor in adapter.values()))


def honest_mean(honest: Sequence[ClientUpdate]) -> AdapterState:
    """The weighted mean of the products, as the stack of all factors."""
    return AdapterState.of({name: stack(_weighted(honest, name)) for name in module_names(honest)})


@dataclass(frozen=True, slots=True)
class Scaled:
    """The trained update times a number: above 1 it drowns the others, below 0 it undoes what they learn.

    Source: model replacement, arXiv:1807.00459; sign flipping, arXiv:1811.03761.
    """

    factor: float

    def __call__(self, own: ClientUpdate, honest: Sequence[ClientUpdate], draw: torch.Generator) -> ClientUpdate:
        """Scale B."""
        return _with(own, own.adapter.map(lambda factor: factor.scaled(self.factor)))


@dataclass(frozen=True, slots=True)
class Noise:
    """Gaussian factors whose product has the median norm of the honest clients', times a number."""

    times: float = 1.0

    def __call__(self, own: ClientUpdate, honest: Sequence[ClientUpdate], draw: torch.Generator) -> ClientUpdate:
        """Draw both halves of every module, and scale B."""
        drawn = own.adapter.map(lambda factor: LoraFactor(_gaussian(factor.B, draw), _gaussian(factor.A, draw)))
        return _with(own, _of_norm(drawn, self.times * _median_norm(honest)))


@dataclass(frozen=True, slots=True)
class LittleIsEnough:
    """The mean of the honest products less z of their standard deviations, number by number.

    All colluders send the same. It is as far from the mean as many honest updates are.

    Source: arXiv:1902.06156, algorithm 3. Its rule for z gives 0 for 2 of 8 clients, so that z is chosen here. The
    result is cut to the rank that the client may send.
    """

    z: float = 1.5

    def __call__(self, own: ClientUpdate, honest: Sequence[ClientUpdate], draw: torch.Generator) -> ClientUpdate:
        """Make the dense products of a module, and cut the shifted mean."""
        made: dict[str, LoraFactor] = {}
        for name, factor in own.adapter.items():
            products = torch.stack([each.adapter[name].delta_weight().double() for each in honest])
            shifted = products.mean(dim=0) - self.z * products.std(dim=0)
            made[name] = _cut(LoraFactor(shifted, torch.eye(shifted.shape[1], dtype=shifted.dtype)), factor)
        return _with(own, AdapterState.of(made))


@dataclass(frozen=True, slots=True)
class InnerProduct:
    """The mean of the honest products times a negative number, so that the sum points away from where it should.

    All colluders send the same, cut to the rank that each may send.

    Source: inner product manipulation, arXiv:1903.03936.

    Args:
        epsilon: how many times the mean is sent, negated.
        of_median: whether the update is scaled to as many times the median norm of the honest clients instead, so that
            it stays just below a bound that it knows.
    """

    epsilon: float
    of_median: bool = False

    def __call__(self, own: ClientUpdate, honest: Sequence[ClientUpdate], draw: torch.Generator) -> ClientUpdate:
        """Cut the negated mean."""
        mean = honest_mean(honest)
        cut = AdapterState.of({name: _cut(mean[name], factor).scaled(-1.0) for name, factor in own.adapter.items()})
        if self.of_median:
            return _with(own, _of_norm(cut, self.epsilon * _median_norm(honest)))
        return _with(own, cut.map(lambda factor: factor.scaled(self.epsilon)))


@dataclass(frozen=True, slots=True)
class HarmlessHalves:
    """Halves of ordinary norms whose product is not ordinary.

    Each half is `times` as long as the trained one, which a bound of ten times per half lets pass. It lies in one
    direction, against that of the trained update, so that the product is as long as halves of these norms can make it:
    up to ``times^2 sqrt(rank)`` times as long as an honest one.
    """

    times: float = 9.0

    def __call__(self, own: ClientUpdate, honest: Sequence[ClientUpdate], draw: torch.Generator) -> ClientUpdate:
        """Put the energy of each half into one column of B and one row of A."""

        def aligned(factor: LoraFactor) -> LoraFactor:
            svd = qr_svd(factor)
            B, A = torch.zeros_like(factor.B), torch.zeros_like(factor.A)
            B[:, 0] = -self.times * factor.B.norm() * svd.U[:, 0].to(B)
            A[0] = self.times * factor.A.norm() * svd.Vh[0].to(A)
            return LoraFactor(B, A)

        return _with(own, own.adapter.map(aligned))


@dataclass(frozen=True, slots=True)
class Gauge:
    """The same product from other halves: B times a number, A divided by it. It is no attack, and looks like one."""

    times: float = 1e3

    def __call__(self, own: ClientUpdate, honest: Sequence[ClientUpdate], draw: torch.Generator) -> ClientUpdate:
        """Scale both halves."""
        return _with(own, own.adapter.map(lambda f: LoraFactor(f.B * self.times, f.A / self.times)))


@dataclass(frozen=True, slots=True)
class Claiming:
    """An attack that also claims many times the examples that it has, so that its weight is near 1."""

    attack: Attack
    times: int = 1_000_000

    def __call__(self, own: ClientUpdate, honest: Sequence[ClientUpdate], draw: torch.Generator) -> ClientUpdate:
        """Attack, and multiply the claim."""
        attacked = self.attack(own, honest, draw)
        return replace(attacked, num_examples=own.num_examples * self.times)


def as_trained(own: ClientUpdate, honest: Sequence[ClientUpdate], draw: torch.Generator) -> ClientUpdate:
    """What a client uploads that does as it should; also one that trained on poisoned examples."""
    return own


def mislabelled(examples: Sequence[Mapping[str, Any]], answer: str = "output") -> list[Mapping[str, Any]]:
    """Examples with wrong answers that can be learnt: each is written backwards, and a label of two is the other.

    Args:
        examples: examples as they are in a data file.
        answer: the field of the answer.
    """
    other = {"odd": "even", "even": "odd"}
    return [{**example, answer: other.get(str(example[answer]), str(example[answer])[::-1])} for example in examples]


def infiltrated(
    updates: Sequence[ClientUpdate], hostile: Sequence[str], attack: Attack, draw: torch.Generator
) -> list[ClientUpdate]:
    """The updates of a round of which some clients are hostile.

    Args:
        updates: as all clients trained them.
        hostile: the hostile clients.
        attack: what they do.
        draw: a source of random numbers.
    """
    honest = [update for update in updates if update.client_id not in hostile]
    return [attack(update, honest, draw) if update.client_id in hostile else update for update in updates]


def _with(own: ClientUpdate, adapter: AdapterState) -> ClientUpdate:
    """The update with other factors of its own dtypes, measured as it would be had it travelled as it is."""
    kept = {name: factor.to(dtype=own.adapter.specs[name].dtype) for name, factor in adapter.items()}
    return replace(own, adapter=AdapterState.of(kept))


def _weighted(updates: Sequence[ClientUpdate], name: str) -> list[LoraFactor]:
    weights = client_weights(updates)
    return [u.adapter[name].scaled(w) for u, w in zip(updates, weights, strict=True) if name in u.adapter.specs]


def _cut(factor: LoraFactor, like: LoraFactor) -> LoraFactor:
    """The leading directions of a product, at the rank of another."""
    svd = qr_svd(factor)
    return svd.factor(min(like.rank, svd.S.numel()))


def _of_norm(adapter: AdapterState, norm: float) -> AdapterState:
    found = norm_of(adapter)
    return adapter.map(lambda factor: factor.scaled(norm / found)) if found else adapter


def _median_norm(honest: Sequence[ClientUpdate]) -> float:
    return median(norm_of(update.adapter) for update in honest)


def _gaussian(like: Tensor, draw: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=draw, dtype=torch.float64).to(like.dtype)
