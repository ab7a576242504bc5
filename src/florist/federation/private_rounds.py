"""Rounds whose single updates stay with the clients: bounded by a clip, summed under masks, hidden in noise.

Each is of use by itself. Masks keep single updates from a curious server, and leave the sum as it is. The clip and the
noise bound what anybody can learn of one client from the broadcasts, and trust whoever adds the noise. By default that
is the server, which with both has the sum without noise, and no single update. Under masks clients may add it, a share
each: then nobody has the sum without noise.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from florist.errors import (
    BelowThresholdError,
    BrokenSharesError,
    ConfigurationError,
    InvalidUpdateError,
    RosterError,
)
from florist.federation.bounding import Bounding
from florist.federation.closed_round import ClosedRound
from florist.federation.contributions import NOBODY, Contribution, Lost
from florist.federation.private_draws import noise_source, private_participants
from florist.federation.private_recording import begun_record
from florist.federation.private_records import PrivacyRecord
from florist.federation.private_sums import MaskedSums, PrivateSum, padded_to_all, sum_in_the_clear
from florist.federation.protections import Masks, Noise
from florist.federation.records import Drop, RoundRecord
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.federation.summed import Summed, change_of, close_summed_round
from florist.privacy.accounting import Sampling
from florist.privacy.clipping import BELOW
from florist.privacy.fixed_point import FixedPoint
from florist.privacy.noise_share import NoiseShare
from florist.rounds import Aggregator, ClientUpdate, SavedParameters


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
        secret: whether noise and participants are drawn by the system's source of randomness, which nobody can repeat.
            By default they follow from the seed, as a simulation needs it.

    Raises:
        ConfigurationError: there is noise and no clip, or noise by clients and no masks, or masks and draws by
            themselves, which go together with nothing: a round that draws one client has nobody to hide it among.
    """

    masks: Masks | None = None
    clip: float | None = None
    noise: Noise | None = None
    aggregator_at: Callable[[float], Aggregator] | None = None
    secret: bool = False

    def __post_init__(self) -> None:
        if self.noise is not None and not (self.clip is not None and self.clip > 0):
            raise ConfigurationError(
                f"expected a clip above 0 with noise, got {self.clip}: noise hides what is bounded"
            )
        if self.noise is not None and self.noise.by_clients and self.masks is None:
            raise ConfigurationError(
                "expected masks with noise that clients add: the share of one client is too small to hide it by itself"
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
        _ = self.bounding(federation, saved_parameters).clipped_to
        FixedPoint(self.masks.bits, asked)

    def participants(
        self, federation: Federation, round_number: int, among: Collection[str] | None = None
    ) -> tuple[str, ...]:
        """The clients of a round, sorted. It may be none.

        With noise they are drawn among all clients, whoever can be reached, since the accountant counts on that.

        Args:
            federation: the rules.
            round_number: the round, from which and the seed they are drawn where the draw is not secret.
            among: the clients that can be reached; all of them by default.
        """
        return private_participants(federation, round_number, among, self.noise, secret=self.secret)

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
        return replace(latest, privacy=self.judged(latest.privacy, latest.round, rounds))

    def judged(self, privacy: PrivacyRecord | None, round_number: int, rounds: int) -> PrivacyRecord | None:
        """As `marked`, of what is written down of the privacy of a round."""
        if privacy is None or round_number >= rounds:
            return privacy
        noise = self._continued(privacy).noise
        return (
            replace(privacy, spent=True)
            if noise is not None and round_number >= noise.rounds_within(rounds)
            else privacy
        )

    def continued(self, records: Sequence[RoundRecord]) -> "PrivateRounds":
        """The same with the clip that the rounds so far have led to, and with the noise that they had.

        Noise that was computed for a number of rounds would be another for more of them, and what was spent would be
        wrong for the earlier ones.
        """
        last = records[-1].privacy if records else None
        return self._continued(last) if last is not None else self

    def _continued(self, last: PrivacyRecord) -> "PrivateRounds":
        clip = last.next_clip if last.next_clip is not None else self.clip
        if self.noise is None or last.noise_multiplier is None:
            return replace(self, clip=clip)
        accountant = replace(self.noise.accountant, noise_multiplier=last.noise_multiplier)
        return replace(self, clip=clip, noise=replace(self.noise, accountant=accountant))

    def closed(
        self, federation: Federation, state: ServerState, updates: Sequence[ClientUpdate], lost: Lost = NOBODY
    ) -> ClosedRound:
        """Play a round from what the clients trained, with the clip of this round, and move the state on.

        Clients bound what they send, they or the server add noise, and the server divides the sum: by the sum of the
        weights, or with noise by the number of clients that a round asks, so that the denominator tells nothing.

        Args:
            federation: the rules.
            state: the state before the round.
            updates: what each client trained.
            lost: who is lost on the way.
        """
        given: dict[str, Contribution] = {}
        dropped: list[Drop] = []
        bounding = self.bounding(federation, state.saved_parameters)
        for update in sorted(updates, key=lambda each: each.client_id):
            change = change_of(state.continued, state.saved_parameters, update)
            try:
                source = noise_source(federation, state.round_number + 1, update.client_id, secret=self.secret)
                given[update.client_id] = bounding.contribution(change, update.num_examples, source)
            except InvalidUpdateError as error:
                dropped.append(Drop(update.client_id, str(error)))
        closed = self.concluded(federation, state, lambda: self._sum(federation, state, given, lost), dropped)
        if closed.failed is not None:
            return closed
        gone = sorted(given.keys() - closed.ranks.keys())
        return replace(
            closed, dropped=(*closed.dropped, *(Drop(name, "lost before its words arrived") for name in gone))
        )

    def concluded(
        self,
        federation: Federation,
        state: ServerState,
        summed: Callable[[], PrivateSum],
        dropped: Sequence[Drop] = (),
    ) -> ClosedRound:
        """Move the state on from the sum of a round, by whatever engine it was taken.

        Args:
            federation: the rules.
            state: the state before the round.
            summed: gives the sum; where it raises that nothing could be read, the state stays as it was.
            dropped: the clients that are not in it.
        """
        record = begun_record(federation, state.round_number + 1, self.masks, self.noise, self.clip)
        try:
            found = summed()
        except (BelowThresholdError, RosterError, BrokenSharesError) as error:
            reason = str(error).removeprefix(f"round {state.round_number + 1}: ")
            return self._unchanged(state, dropped, replace(record, failed=reason))
        took_part, total, denominator = found.sent_bytes, found.total, found.weight
        if self.noise is not None and self.clip is not None:
            denominator = federation.clients_per_round
            whole = padded_to_all(federation, state.saved_parameters, total)
            total, next_clip = self.noise.added(
                federation, state.round_number + 1, whole, self.clip, secret=self.secret
            )
            record = replace(record, next_clip=next_clip)
            if (share := self._share(federation)) is not None:
                record = replace(record, deviation=len(took_part) ** 0.5 * share.deviation / denominator)
        if self.aggregator_at is not None and record.deviation is not None:
            federation = replace(federation, aggregator=self.aggregator_at(record.deviation))
        mean = Summed(total.times(1 / denominator), denominator, took_part)
        closed = close_summed_round(federation, state, mean, dropped)
        return replace(closed, received_bytes=dict.fromkeys(took_part, found.received_bytes), privacy=record)

    def failed(self, federation: Federation, state: ServerState, reason: str) -> ClosedRound:
        """A round of which nothing could be read, and which counts all the same.

        Args:
            federation: the rules.
            state: the state before the round, which stays as it was.
            reason: why nothing could be read.
        """
        return self._unchanged(
            state,
            (),
            replace(begun_record(federation, state.round_number + 1, self.masks, self.noise, self.clip), failed=reason),
        )

    def bounding(self, federation: Federation, saved_parameters: SavedParameters) -> Bounding:
        """How clients bound what they send."""
        numbers = sum(out_features for out_features, _ in federation.shapes.values()) * federation.max_rank
        numbers += sum(tensor.numel() for tensor in saved_parameters.values())
        asked, share = federation.clients_per_round, self._share(federation)
        return Bounding(self.clip, self.follows, self.noise is None, self.masks, asked, numbers, share)

    def masked_sums(self, federation: Federation, saved_parameters: SavedParameters) -> MaskedSums:
        """The sums of the rounds under masks.

        Raises:
            ConfigurationError: there are no masks.
        """
        if self.masks is None:
            raise ConfigurationError("expected masks, got private rounds without: set privacy.secure_aggregation")
        shapes, share = self._saved_shapes(saved_parameters), self._share(federation)
        if share is not None and self.clip is not None:
            size = share.size(self.clip)
            return MaskedSums(self.masks, federation, shapes, size, weighted=False, bit_size=share.bit_size, whole=True)
        size = self.clip if self.clip is not None else self.masks.largest
        return MaskedSums(self.masks, federation, shapes, size, self.noise is None)

    @property
    def _poisson(self) -> bool:
        return self.noise is not None and self.noise.accountant.sampling is Sampling.POISSON

    @property
    def follows(self) -> bool:
        """Whether the clip follows the norms, which each client tells by one bit."""
        return self.noise is not None and self.noise.adaptive is not None

    def _share(self, federation: Federation) -> NoiseShare | None:
        if self.masks is None or self.noise is None or self.clip is None or not self.noise.by_clients:
            return None
        return self.noise.share(federation, self.clip, self.masks.threshold_of(federation))

    def _sum(
        self, federation: Federation, state: ServerState, given: Mapping[str, Contribution], lost: Lost
    ) -> PrivateSum:
        if self.masks is not None:
            return self.masked_sums(federation, state.saved_parameters)(state.round_number + 1, given, lost)
        left = {name: each for name, each in given.items() if name not in lost.before_the_sum}
        fewest = 0 if self._poisson else federation.required_replies
        return sum_in_the_clear(federation, self._saved_shapes(state.saved_parameters), left, fewest)

    def _saved_shapes(self, saved_parameters: SavedParameters) -> dict[str, tuple[int, ...]]:
        shapes = {name: tuple(tensor.shape) for name, tensor in saved_parameters.items()}
        return {**shapes, BELOW: (1,)} if self.follows else shapes

    @staticmethod
    def _unchanged(state: ServerState, dropped: Sequence[Drop], record: PrivacyRecord) -> ClosedRound:
        after = replace(state, round_number=state.round_number + 1)
        return ClosedRound(after, None, (), {}, {}, tuple(dropped), {}, 0, 0, privacy=record)
