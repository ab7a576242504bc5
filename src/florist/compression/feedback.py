"""Compression with feedback, in factor space: what a sender does not send is kept, and joins what it sends next.

For one module, U is what is new, E what was held back before, and ``T = U + E`` what is due. D is what really arrives:
T cut by a rank rule, through a codec. What is held back now is ``E' = T - D``, the cut and the codec's error together.
Over the rounds nothing is lost, only late:

    sum_t D_t + E_t + (what the bound on E's rank let go, which is certified) = sum_t U_t

Source: florist's own. Error feedback is known from gradient compression (1-bit SGD; PowerSGD, arXiv:1905.13727; EF21,
arXiv:2106.05203); here the compressor is a spectral cut with a quantiser, and the residual never leaves factor space.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from florist.compression.codecs import Codec
from florist.compression.packed import PackedAdapter
from florist.errors import NonFiniteUpdateError
from florist.factors import AdapterState, LoraFactor, stack
from florist.linalg import ThinSvd, WeightedFactor, decompose
from florist.linalg.parallel import in_order
from florist.ranks import RankRule
from florist.rounds import NO_ADAPTER, Trained

_NEGLIGIBLE = 1e-8
"""A residual lets go the directions that hold this fraction of its energy: a relative error of 1e-4 of it."""


@dataclass(frozen=True, slots=True)
class ModuleAccount:
    """What became of one module, in Frobenius norms of its product.

    Attributes:
        due: norm of what was to be sent, with what was held back before.
        cut_error: norm of the directions that the rank rule left out.
        codec_error: norm of what was kept, less what arrives of it.
        held_back: norm of what is to be sent later.
        let_go: norm of what is never sent: what exceeds the bound on the residual's rank, or all that is missing where
            nothing is held back.
    """

    due: float
    cut_error: float
    codec_error: float
    held_back: float
    let_go: float


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """An adapter after compression.

    Attributes:
        packed: what travels.
        decoded: what arrives, in float32.
        held_back: the residual; empty without feedback.
        accounts: by module.
    """

    packed: PackedAdapter
    decoded: AdapterState
    held_back: AdapterState
    accounts: Mapping[str, ModuleAccount]


@dataclass(frozen=True, slots=True)
class Feedback:
    """How a residual is kept.

    Args:
        rank_factor: the residual of a module keeps at most this many times the rank of what was new: the sum of the
            clients' ranks at the server, the client's rank at a client.
    """

    rank_factor: float = 1.0

    def residual(
        self, withheld: LoraFactor, kept: LoraFactor, decoded: LoraFactor, new_rank: int
    ) -> tuple[LoraFactor, float]:
        """``T - D`` as one factor of bounded rank, and the norm of what the bound lets go.

        ``T - D = withheld + B (A - A') + (B - B') A'`` with the kept ``B A`` and the decoded ``B' A'``. The halves are
        subtracted, so that nothing is lost to the cancellation of two nearly equal products.

        Args:
            withheld: the directions that the cut left out.
            kept: the directions that it kept.
            decoded: what arrives of them.
            new_rank: the rank of what was new.

        Cost: one decomposition of rank ``withheld.rank + 2 kept.rank``.
        """
        near = decoded.to(dtype=kept.B.dtype)
        parts = [withheld, LoraFactor(kept.B, kept.A - near.A), LoraFactor(kept.B - near.B, near.A)]
        joined = stack(parts)
        svd = decompose([WeightedFactor(1.0, joined.spec, lambda: joined)])
        rank = min(svd.spectrum.rank_holding(1.0 - _NEGLIGIBLE), round(self.rank_factor * new_rank))
        return svd.factor(rank), svd.spectrum.discarded_energy(rank) ** 0.5


@dataclass(frozen=True, slots=True)
class Compression:
    """What becomes of an adapter before it travels: it is cut, packed, and the rest is kept.

    Args:
        codec: how numbers travel.
        rank_rule: how many directions each module keeps. None sends the factors as they are, or, with feedback, at
            their numerical rank.
        feedback: how what is not sent is kept. None forgets it.
    """

    codec: Codec
    rank_rule: RankRule | None = None
    feedback: Feedback | None = None

    @property
    def recuts(self) -> bool:
        """Whether what is sent is chosen anew, in place of the factors as they come."""
        return self.rank_rule is not None or self.feedback is not None

    def __call__(
        self,
        update: AdapterState,
        owed: AdapterState = NO_ADAPTER,
        *,
        max_rank: int | None = None,
        trained: Trained = Trained.FACTORS,
    ) -> Sent:
        """Compress one update.

        Args:
            update: what is new.
            owed: what was held back before. A module that it alone has is due as well.
            max_rank: no module is sent above it.
            trained: the halves that travel, where the factors are sent as they are.

        Raises:
            NonFiniteUpdateError: a number is not finite or does not fit the codec; names the module.

        Cost: that of the codec where the factors are sent as they are; else a decomposition of what is due for every
            module, twice where the rule needs all spectra beforehand, and with feedback one of the residual.
        """
        if not self.recuts:
            return self._sent_as_it_is(update, trained)
        names = sorted({*update, *owed})
        kept: dict[str, LoraFactor] = {}
        withheld: dict[str, LoraFactor] = {}
        norms: dict[str, tuple[float, float]] = {}
        for name, svd, rank in self._ranked(update, owed, names, max_rank):
            whole = svd.factor(svd.spectrum.numerical_rank if self.feedback is not None else rank)
            kept[name], withheld[name] = whole.leading(rank), whole.trailing(rank)
            norms[name] = svd.spectrum.total_energy**0.5, svd.spectrum.discarded_energy(rank) ** 0.5
        packed = PackedAdapter.of(AdapterState.of(kept), self.codec)
        decoded = packed.unpacked()

        def account(name: str) -> tuple[LoraFactor, ModuleAccount]:
            due, cut_error = norms[name]
            codec_error = difference_norm(kept[name], decoded[name])
            if self.feedback is None:
                let_go = (cut_error**2 + codec_error**2) ** 0.5
                return withheld[name].leading(0), ModuleAccount(due, cut_error, codec_error, 0.0, let_go)
            # Where nothing is new, there is no reason to let go of what is owed.
            new_rank = (update if name in update.specs and update.specs[name].rank else owed).specs[name].rank
            held, let_go = self.feedback.residual(withheld[name], kept[name], decoded[name], new_rank)
            return held, ModuleAccount(due, cut_error, codec_error, max(0.0, held.energy()) ** 0.5, let_go)

        outcomes = dict(zip(names, in_order(account, names), strict=True))
        return Sent(
            packed=packed,
            decoded=decoded,
            held_back=AdapterState.of({name: held for name, (held, _) in outcomes.items() if held.rank}),
            accounts={name: outcome for name, (_, outcome) in outcomes.items()},
        )

    def _ranked(
        self, update: AdapterState, owed: AdapterState, names: Sequence[str], max_rank: int | None
    ) -> Iterator[tuple[str, ThinSvd, int]]:
        """Every module with the decomposition of what is due and the rank to send."""
        rule, energy = self.rank_rule, 1.0
        if rule is not None and self.feedback is None:
            energy = rule.required_energy
        due = partial(_due, update, owed, energy=energy)
        if rule is not None and not rule.per_module:
            # To hold every decomposition until the rule has seen them all could take more memory than all else.
            ranks = rule({name: svd.spectrum for name, svd in zip(names, in_order(due, names), strict=True)})
        else:
            ranks = None
        for name, svd in zip(names, in_order(due, names), strict=True):
            if ranks is not None:
                rank = ranks[name]
            elif rule is not None:
                rank = rule({name: svd.spectrum})[name]
            else:
                rank = svd.spectrum.numerical_rank
            yield name, svd, rank if max_rank is None else min(rank, max_rank)

    def _sent_as_it_is(self, update: AdapterState, trained: Trained) -> Sent:
        packed = PackedAdapter.of(update, self.codec, trained)
        decoded = packed.unpacked(update)
        accounts: dict[str, ModuleAccount] = {}
        for name, factor in update.items():
            error = difference_norm(factor, decoded[name])
            accounts[name] = ModuleAccount(max(0.0, factor.energy()) ** 0.5, 0.0, error, 0.0, error)
        return Sent(packed, decoded, NO_ADAPTER, accounts)


def difference_norm(exact: LoraFactor, near: LoraFactor) -> float:
    """``||B A - B' A'||_F`` of two factors of one rank that are nearly equal, without either product.

    Cost: O((m + n) r^2) in float64.
    """
    one, other = exact.to(dtype=torch.float64), near.to(dtype=torch.float64)
    parts = [LoraFactor(one.B, one.A - other.A), LoraFactor(one.B - other.B, other.A)]
    return max(0.0, stack(parts).energy()) ** 0.5


def _due(update: AdapterState, owed: AdapterState, module: str, *, energy: float) -> ThinSvd:
    holders = [adapter for adapter in (update, owed) if module in adapter.specs]
    parts = [WeightedFactor(1.0, each.specs[module], partial(each.__getitem__, module)) for each in holders]
    try:
        return decompose(parts, energy=energy)
    except NonFiniteUpdateError as error:
        raise NonFiniteUpdateError(f"{module}: {error}") from error
