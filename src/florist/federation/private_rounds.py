"""Rounds whose single updates stay with the clients: bounded by a clip, summed under masks, hidden in noise.

Each is of use by itself. Masks keep single updates from a curious server, and leave the sum as it is. The clip and the
noise bound what anybody can learn of one client from the broadcasts, and trust whoever adds the noise, which is the
server. With both, the server has the sum without noise, and no single update.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from florist.errors import (
    BelowThresholdError,
    BrokenSharesError,
    ConfigurationError,
    InvalidUpdateError,
    RosterError,
)
from florist.federation.closed_round import ClosedRound
from florist.federation.contributions import NOBODY, Contribution, Lost
from florist.federation.private_records import PrivacyRecord
from florist.federation.private_sums import MaskedSums, PrivateSum, no_change, padded, plain_sum, tensors_of
from florist.federation.protections import Masks, Noise
from florist.federation.records import Drop, RoundRecord
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.federation.summed import Summed, change_of, close_summed_round
from florist.privacy.accounting import Sampling
from florist.privacy.clipping import BELOW, Change, noisy
from florist.privacy.fixed_point import FixedPoint
from florist.rounds import Aggregator, ClientUpdate, SavedParameters
from florist.seeding import generator


@dataclass(frozen=True, slots=True)
class PrivateRounds:
    """How a federation protects the updates of its clients, for methods that train B alone.

    Args:
        masks: how updates are summed under masks; None where the server has single ones.
        clip: the norm that a client's change is clipped to at the beginning, over all modules and heads together, in
            units of the product; None for none.
        noise: the noise of the sum; None for none. It needs a clip.
        aggregator_at: the method for a known deviation of the noise in the mean, along orthonormal rows of A; None
            where the method does not depend on it.

    Raises:
        ConfigurationError: there is noise and no clip, or masks and draws by themselves, which go together with
            nothing: a round that draws one client would have nobody to hide it among.
    """

    masks: Masks | None = None
    clip: float | None = None
    noise: Noise | None = None
    aggregator_at: Callable[[float], Aggregator] | None = None

    def __post_init__(self) -> None:
        if self.noise is not None and not (self.clip is not None and self.clip > 0):
            raise ConfigurationError(
                f"expected a clip above 0 with noise, got {self.clip}: noise hides what is bounded"
            )
        if self.masks is not None and self._poisson:
            raise ConfigurationError(
                "expected sampling = 'fixed' under masks: others may draw one client, and its sum is its update"
            )

    def require_possible(self, federation: Federation, saved_parameters: SavedParameters) -> None:
        """Check that a round can be played.

        Raises:
            ConfigurationError: it cannot; the message names the key.
        """
        if self.masks is None:
            return
        asked = federation.clients_per_round
        if self.masks.threshold_of(federation) > asked or self.masks.smallest_group > asked:
            raise ConfigurationError(
                f"privacy: expected at least {max(2, self.masks.smallest_group)} clients a round under masks, got "
                f"{asked}; raise federation.fraction, or lower privacy.smallest_group"
            )
        if self.clip is not None:
            self._bounded_by(self.clip, federation, saved_parameters)
        FixedPoint(self.masks.bits, asked)

    def participants(self, federation: Federation, round_number: int) -> tuple[str, ...]:
        """The clients of a round, sorted; drawn from the seed and the round number. It may be none."""
        if not self._poisson:
            return federation.participants(round_number)
        ordered = sorted(federation.client_ranks)
        draw = torch.rand(len(ordered), generator=generator(federation.seed, "participants", round_number))
        probability = federation.clients_per_round / len(ordered)
        return tuple(name for name, drawn in zip(ordered, draw.tolist(), strict=True) if drawn < probability)

    def rounds_within(self, most: int, records: Sequence[RoundRecord] = ()) -> int:
        """How many rounds, at most `most`, stay within what may be spent, with the noise that the rounds so far had."""
        noise = self.continued(records).noise
        return noise.rounds_within(most) if noise is not None else most

    def marked(self, latest: RoundRecord, rounds: int) -> RoundRecord:
        """The record of a round that says whether another would exceed what may be spent.

        Args:
            latest: the record.
            rounds: how many rounds are played where they do not stop early.
        """
        if latest.privacy is None or latest.round >= rounds or latest.round < self.rounds_within(rounds, [latest]):
            return latest
        return replace(latest, privacy=replace(latest.privacy, spent=True))

    def continued(self, records: Sequence[RoundRecord]) -> "PrivateRounds":
        """The same with the clip that the rounds so far have led to, and with the noise that they had.

        Noise that was computed for a number of rounds would be another for more of them, and what was spent would be
        wrong for the earlier ones.
        """
        last = records[-1].privacy if records else None
        if last is None:
            return self
        clip = last.next_clip if last.next_clip is not None else self.clip
        if self.noise is None or last.noise_multiplier is None:
            return replace(self, clip=clip)
        accountant = replace(self.noise.accountant, noise_multiplier=last.noise_multiplier)
        return replace(self, clip=clip, noise=replace(self.noise, accountant=accountant))

    def closed(
        self, federation: Federation, state: ServerState, updates: Sequence[ClientUpdate], lost: Lost = NOBODY
    ) -> ClosedRound:
        """Play a round from what the clients trained, with the clip of this round, and move the state on.

        Clients bound what they send, the server adds noise to the sum and divides it: by the sum of the weights, or
        with noise by the number of clients that a round asks, so that the denominator tells nothing.

        Args:
            federation: the rules.
            state: the state before the round.
            updates: what each client trained.
            lost: who is lost on the way.
        """
        given: dict[str, Contribution] = {}
        dropped: list[Drop] = []
        for update in sorted(updates, key=lambda each: each.client_id):
            try:
                given[update.client_id] = self._contribution(federation, state, update)
            except InvalidUpdateError as error:
                dropped.append(Drop(update.client_id, str(error)))
        record = self._record(federation, state.round_number + 1)
        try:
            summed = self._sum(federation, state, given, lost)
        except (BelowThresholdError, RosterError, BrokenSharesError) as error:
            reason = str(error).removeprefix(f"round {state.round_number + 1}: ")
            return self._unchanged(state, dropped, replace(record, failed=reason))
        took_part, total, denominator = summed.sent_bytes, summed.total, summed.weight
        dropped += [Drop(name, "lost before its words arrived") for name in sorted(given.keys() - took_part.keys())]
        if self.noise is not None:
            denominator = federation.clients_per_round
            total, record = self._with_noise(federation, state, total, record)
        if self.aggregator_at is not None and record.deviation is not None:
            federation = replace(federation, aggregator=self.aggregator_at(record.deviation))
        mean = Summed(total.times(1 / denominator), denominator, took_part)
        closed = close_summed_round(federation, state, mean, dropped)
        return replace(closed, received_bytes=dict.fromkeys(took_part, summed.received_bytes), privacy=record)

    @property
    def _poisson(self) -> bool:
        return self.noise is not None and self.noise.accountant.sampling is Sampling.POISSON

    @property
    def _follows(self) -> bool:
        return self.noise is not None and self.noise.adaptive is not None

    def _contribution(self, federation: Federation, state: ServerState, update: ClientUpdate) -> Contribution:
        """What a client sends, which nobody but itself looks at before.

        Raises:
            InvalidUpdateError: it cannot be bounded; with a clip every change can.
        """
        change = change_of(state, update)
        change = Change(
            {name: B.cpu() for name, B in change.B.items()},
            {name: tensor.cpu() for name, tensor in change.saved_parameters.items()},
        )
        if self.clip is None:
            sizes = [float(tensor.abs().max()) for tensor in tensors_of(change) if tensor.numel()]
            if self.masks is not None and not all(size <= self.masks.largest for size in sizes):
                raise InvalidUpdateError(
                    f"its change has a number above privacy.largest = {self.masks.largest:g}, or one that is "
                    "not finite: train with a smaller learning rate, raise that key at all sites, or set privacy.clip"
                )
            bounded = change
        else:
            bounded = change.clipped(self._bounded_by(self.clip, federation, state.saved_parameters))
            if self._follows:
                bit = torch.tensor([0.5 if change.norm <= self.clip else -0.5])
                bounded = Change(bounded.B, {**bounded.saved_parameters, BELOW: bit})
        most = self.masks.max_examples if self.masks is not None else update.num_examples
        return Contribution(bounded, 1 if self.noise is not None else min(update.num_examples, most))

    def _bounded_by(self, clip: float, federation: Federation, saved_parameters: SavedParameters) -> float:
        """The norm that a client clips to, so that what arrives has at most the norm of the clip after rounding.

        Raises:
            ConfigurationError: the bits are so few that rounding takes half of it.
        """
        if self.masks is None:
            return clip
        numbers = sum(out_features for out_features, _ in federation.shapes.values()) * federation.max_rank
        numbers += sum(tensor.numel() for tensor in saved_parameters.values())
        rounding = 0.5 * clip / FixedPoint(self.masks.bits, federation.clients_per_round).levels * numbers**0.5
        if rounding > clip / 2:
            raise ConfigurationError(
                f"privacy.bits = {self.masks.bits}: expected more, since rounding {numbers} numbers to so few may take "
                "half of the clip or more"
            )
        return (1 - 1e-9) * (clip - rounding)

    def _sum(
        self, federation: Federation, state: ServerState, given: Mapping[str, Contribution], lost: Lost
    ) -> PrivateSum:
        saved_shapes = {name: tuple(tensor.shape) for name, tensor in state.saved_parameters.items()}
        if self._follows:
            saved_shapes[BELOW] = (1,)
        if self.masks is None:
            left = {name: each for name, each in given.items() if name not in lost.before_the_sum}
            total = plain_sum(federation, saved_shapes, left)
            if not self._poisson and len(left) < federation.required_replies:
                raise BelowThresholdError(
                    f"expected {federation.required_replies} clients or more in the sum, got {len(left)}"
                )
            sent = {name: sum(tensor.nbytes for tensor in tensors_of(each.change)) for name, each in left.items()}
            return PrivateSum(total, sum(each.weight for each in left.values()), sent)
        size = self.clip if self.clip is not None else self.masks.largest
        sums = MaskedSums(self.masks, federation, saved_shapes, size, weighted=self.noise is None)
        return sums(state.round_number + 1, given, lost)

    def _with_noise(
        self, federation: Federation, state: ServerState, total: Change, record: PrivacyRecord
    ) -> tuple[Change, PrivacyRecord]:
        """The sum with noise in every number that a client might have changed, and the clip of the next round."""
        if self.noise is None or self.clip is None:
            return total, record
        everything = no_change(federation, {name: tuple(each.shape) for name, each in state.saved_parameters.items()})
        whole = Change(
            {name: padded(total.B[name], zeros.shape[1]) for name, zeros in everything.B.items()},
            {name: total.saved_parameters[name] for name in everything.saved_parameters},
        )
        draw = generator(federation.seed, "noise", record_round := state.round_number + 1)
        noised = noisy(whole, self.noise.multiplier * self.clip, draw)
        adaptive, asked = self.noise.adaptive, federation.clients_per_round
        if adaptive is None:
            return noised, record
        draw = generator(federation.seed, "noise of the count", record_round)
        drawn = float(torch.randn(1, generator=draw, dtype=torch.float64))
        below = asked / 2 + float(total.saved_parameters[BELOW]) + adaptive.count_noise * drawn
        return noised, replace(record, next_clip=adaptive.next_clip(self.clip, below, asked))

    def _record(self, federation: Federation, round_number: int) -> PrivacyRecord:
        masked = self.masks is not None
        threshold = self.masks.threshold_of(federation) if self.masks is not None else None
        if self.noise is None or self.clip is None:
            return PrivacyRecord(masked, threshold, clip=self.clip, next_clip=self.clip)
        accountant = self.noise.accountant
        return PrivacyRecord(
            masked,
            threshold,
            epsilon=accountant.epsilon(round_number),
            delta=accountant.delta,
            noise_multiplier=accountant.noise_multiplier,
            clip=self.clip,
            next_clip=self.clip,
            deviation=self.noise.multiplier * self.clip / federation.clients_per_round,
        )

    @staticmethod
    def _unchanged(state: ServerState, dropped: Sequence[Drop], record: PrivacyRecord) -> ClosedRound:
        after = replace(state, round_number=state.round_number + 1)
        return ClosedRound(after, None, (), {}, {}, tuple(dropped), {}, 0, 0, privacy=record)
