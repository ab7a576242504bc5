"""Compression with feedback, in factor space: what a sender does not send is kept, and joins what it sends next.

For one module, U is what is new, E what was held back before, and ``T = U + E`` what is due. D is what really arrives:
T cut by a rank rule, through a codec. What is held back now is ``E' = T - D``, the cut and the codec's error together.
Over the rounds nothing is lost, only late:

    sum_t D_t + E_t + (what the bound on E's rank let go, which is certified) = sum_t U_t

Source: florist's own. Error feedback is known from gradient compression (1-bit SGD; PowerSGD, arXiv:1905.13727; EF21,
arXiv:2106.05203); here the compressor is a spectral cut with a quantiser, and the residual never leaves factor space.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from florist.compression.along_rows import with_expressible
from florist.compression.codecs import Codec
from florist.compression.held_back import Feedback, HeldBack, difference, product_norm
from florist.compression.packed import PackedAdapter, PackedFactor
from florist.errors import NonFiniteUpdateError
from florist.factors import AdapterState, LoraFactor, stack
from florist.linalg import ThinSvd, WeightedFactor, decompose, residual_norm
from florist.linalg.parallel import in_order
from florist.linalg.spectrum import Spectrum
from florist.ranks import RankRule
from florist.rounds import NO_ADAPTER, Trained

__all__ = ["Compression", "Feedback", "ModuleAccount", "Sent"]

_PROBED = 0.99
"""Up to this fraction of the energy, a decomposition needs only Gram matrices in float32."""


@dataclass(frozen=True, slots=True)
class ModuleAccount:
    """What became of one module, in Frobenius norms of its product.

    Attributes:
        due: norm of what was to be sent, with what was held back before.
        cut_error: norm of the directions that the rank rule left out, up to the rounding of the decomposition.
        codec_error: norm of what was kept, less what arrives of it.
        held_back: norm of what is to be sent later.
        let_go: norm of what is never sent, or an upper bound: what exceeds the bound on the residual's rank, or
            all that is missing where nothing is held back. With what is held back, it gives what is missing to a
            relative 1e-3; beside what is held back it may be less precise.
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
            module, twice where the rule needs all spectra beforehand, and with feedback the residual of each.
        """
        if not self.recuts:
            return self._sent_as_it_is(update, trained)
        if self.feedback is not None and trained == Trained.B:
            return self._sent_along_rows(update, owed, self.feedback)
        names = sorted({*update, *owed})
        ranks = self._joint_ranks(update, owed, names)

        def send(name: str) -> tuple[PackedFactor, LoraFactor, HeldBack, ModuleAccount]:
            svd = self._due(update, owed, name)
            rank = self._rank(name, svd.spectrum) if ranks is None else ranks[name]
            rank = rank if max_rank is None else min(rank, max_rank)
            kept = svd.factor(rank)
            packed = PackedFactor.of(name, kept, self.codec)
            decoded = packed.unpacked(name, self.codec)
            error = difference(kept, decoded)
            due, cut_error = svd.spectrum.total_energy**0.5, svd.spectrum.discarded_energy(rank) ** 0.5
            codec_error = product_norm(error)
            if self.feedback is None:
                held = HeldBack(kept.leading(0), 0.0, (cut_error**2 + codec_error**2) ** 0.5)
            else:
                held = self.feedback.residual(svd.trailing(rank), error, _new_rank(update, owed, name))
            if held.norm**2 + held.let_go**2 < svd.spectrum.known_from:
                # So little is missing that the rounding of the decomposition may exceed it.
                accounted = stack([each.to(dtype=torch.float64) for each in (decoded, held.factor)])
                held = replace(held, let_go=residual_norm(_parts(update, owed, name), accounted))
            return packed, decoded, held, ModuleAccount(due, cut_error, codec_error, held.norm, held.let_go)

        outcomes = dict(zip(names, in_order(send, names), strict=True))
        held_back = {name: held.factor for name, (_, _, held, _) in outcomes.items()}
        return Sent(
            packed=PackedAdapter(self.codec, {name: packed for name, (packed, _, _, _) in outcomes.items()}),
            decoded=AdapterState.of({name: decoded for name, (_, decoded, _, _) in outcomes.items()}),
            held_back=AdapterState.of({name: held for name, held in held_back.items() if held.rank}),
            accounts={name: account for name, (_, _, _, account) in outcomes.items()},
        )

    def _sent_along_rows(self, update: AdapterState, owed: AdapterState, feedback: Feedback) -> Sent:
        due, beyond = with_expressible(update, owed)
        packed = PackedAdapter.of(due, self.codec, Trained.B)
        decoded = packed.unpacked(due)

        def hold(name: str) -> tuple[LoraFactor, ModuleAccount]:
            error = LoraFactor(due[name].B - decoded[name].B.to(due[name].B.dtype), due[name].A)
            joined = stack([beyond[name], error]) if name in beyond else error
            held, let_go = feedback.bounded(joined, due[name].rank)
            rest = product_norm(beyond[name]) if name in beyond else 0.0
            # What no row expresses is orthogonal to what is sent.
            account = ModuleAccount(
                due=math.hypot(product_norm(due[name]), rest),
                cut_error=rest,
                codec_error=product_norm(error),
                held_back=product_norm(held),
                let_go=let_go,
            )
            return held, account

        outcomes = dict(zip(due, in_order(hold, list(due)), strict=True))
        held_back = {name: held for name, (held, _) in outcomes.items()}
        # A module that was not trained stays owed as it is.
        held_back |= {name: factor for name, factor in beyond.items() if name not in held_back}
        return Sent(
            packed,
            decoded,
            AdapterState.of({name: held for name, held in sorted(held_back.items()) if held.rank}),
            {name: account for name, (_, account) in outcomes.items()},
        )

    def _joint_ranks(self, update: AdapterState, owed: AdapterState, names: Sequence[str]) -> Mapping[str, int] | None:
        """Return the ranks by a rule that needs all spectra beforehand, and None for any other."""
        if self.rank_rule is None or self.rank_rule.per_module:
            return None

        # To hold every decomposition until the rule has seen them all could take more memory than all else.
        def look(name: str) -> Spectrum:
            return self._due(update, owed, name).spectrum

        return self.rank_rule(dict(zip(names, in_order(look, names), strict=True)))

    def _rank(self, name: str, spectrum: Spectrum) -> int:
        return spectrum.numerical_rank if self.rank_rule is None else self.rank_rule({name: spectrum})[name]

    def _due(self, update: AdapterState, owed: AdapterState, name: str) -> ThinSvd:
        """Return the decomposition of what is due for one module, with as many directions as can be used."""
        try:
            return self._decomposed(update, owed, name)
        except NonFiniteUpdateError as error:
            raise NonFiniteUpdateError(f"{name}: {error}") from error

    def _decomposed(self, update: AdapterState, owed: AdapterState, name: str) -> ThinSvd:
        parts = _parts(update, owed, name)
        required = 1.0 if self.rank_rule is None else self.rank_rule.required_energy
        if self.feedback is None:
            return decompose(parts, energy=required)
        bound = self.feedback.bound(_new_rank(update, owed, name))
        rank = sum(part.spec.rank for part in parts)
        if required <= _PROBED and 2 * bound <= rank <= min(parts[0].spec.shape) // 4:
            svd = decompose(parts, energy=_PROBED)
            if svd.S.numel() >= self._rank(name, svd.spectrum) + bound:
                return svd  # These directions fill the residual, and none that is missing is larger.
        return decompose(parts)

    def _sent_as_it_is(self, update: AdapterState, trained: Trained) -> Sent:
        packed = PackedAdapter.of(update, self.codec, trained)
        decoded = packed.unpacked(update)
        accounts: dict[str, ModuleAccount] = {}
        for name, factor in update.items():
            exact = factor.to(dtype=torch.float64)  # components of a client's own may cancel
            error = product_norm(difference(exact, decoded[name]))
            accounts[name] = ModuleAccount(product_norm(exact), 0.0, error, 0.0, error)
        return Sent(packed, decoded, NO_ADAPTER, accounts)


def _parts(update: AdapterState, owed: AdapterState, name: str) -> list[WeightedFactor]:
    """Return the parts of what is due for one module."""
    holders = [adapter for adapter in (update, owed) if name in adapter.specs]
    return [WeightedFactor(1.0, each.specs[name], partial(each.__getitem__, name)) for each in holders]


def _new_rank(update: AdapterState, owed: AdapterState, name: str) -> int:
    # Where nothing is new, there is no reason to let go of what is owed.
    return (update if name in update.specs and update.specs[name].rank else owed).specs[name].rank
