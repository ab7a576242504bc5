"""The server of private rounds: `federation.private_rounds` decides, and over Flower it draws in secret.

Under masks a round is four phases, of which `PrivatePhases` carries the last three. With noise alone clients send what
they trained, as in rounds in the clear: the server bounds it, and is trusted with it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from flwr.serverapp import Grid

from florist.errors import ConfigurationError
from florist.federation.closed_round import ClosedRound
from florist.federation.masked_round import MaskedRound
from florist.federation.private_rounds import PrivateRounds
from florist.federation.private_sums import read_sum
from florist.federation.records import RoundRecord
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.flower.exchange import Exchange
from florist.flower.journal import Journal
from florist.flower.messages import KEYS, TRAIN
from florist.flower.open_round import OpenRound
from florist.flower.private_exchange import PrivateExchange
from florist.flower.private_messages import Published
from florist.flower.private_phases import PrivatePhases
from florist.flower.private_terms import PrivacyTerms
from florist.flower.round_server import Answers, updates_in
from florist.rounds import NOTHING, Trained


@dataclass(frozen=True, slots=True)
class PrivateServer:
    """Rounds whose single updates stay with the clients, or go out in noise alone.

    Args:
        private: how updates are protected; noise and draws are secret, whatever it says.
        phase_timeout: seconds for the replies of each phase after the first.
        journal: where it is noted that words are asked for; None where no run is resumed.
    """

    private: PrivateRounds
    phase_timeout: float
    journal: Journal | None

    @property
    def kind(self) -> str:
        """Of a masked round it is another, so that a client of an earlier version does not answer in the clear."""
        return KEYS if self.masked else TRAIN

    @property
    def masked(self) -> bool:
        """Whether updates are summed under masks."""
        return self.private.masks is not None

    @property
    def settings(self) -> str:
        """What a run has to keep, since epsilon is counted for it."""
        private, noise = self.private, self.private.noise
        counted = ""
        if noise is not None:
            accountant = noise.accountant
            counted = (
                f", epsilon of {accountant.asked} of {accountant.clients} clients at delta {accountant.delta:g}, "
                f"{accountant.sampling.value}, {noise.adaptive}"
            )
            if noise.by_clients:
                counted += f", noise by clients of whom {noise.honest_fraction:g} are honest"
        return f"{private.masks}, clip {private.clip}{counted}"

    def require_possible(self, rules: Federation, state: ServerState) -> None:
        """As `RoundServer.require_possible`."""
        rules.require_possible()
        self.private.require_possible(rules, state.saved_parameters)

    def rules(self, federation: Federation) -> Federation:
        """Those of as many asked clients as epsilon is counted for, however many there are at present."""
        noise = self.private.noise
        if noise is None or not federation.client_ranks:
            return federation
        return replace(federation, fraction=noise.accountant.asked / len(federation.client_ranks))

    def rounds_within(self, most: int, records: Sequence[RoundRecord]) -> int:
        """As many as stay within what may be spent."""
        return self.private.rounds_within(most, records)

    def participants(self, rules: Federation, number: int, connected: Collection[str]) -> tuple[str, ...]:
        """Drawn in secret; with noise among all clients, since the accountant counts on that.

        Nobody, where so many clients have left that the round would be none: then it fails, and not the server.
        """
        if self._impossible(rules) is not None:
            return ()
        return replace(self.private, secret=True).participants(rules, number, connected)

    def exchange(self, exchange: Exchange, asked: Collection[str], records: Sequence[RoundRecord]) -> Exchange:
        """Under masks, that of the terms and keys."""
        if self.private.masks is None or not asked:
            return exchange
        private, rules, state = self.private.continued(records), exchange.federation, exchange.state
        sums = private.masked_sums(rules, state.saved_parameters)
        masked = sums.round(state.round_number + 1, asked)
        modules = sorted(rules.shapes)
        noise = private.noise if private.noise is not None and private.noise.by_clients else None

        def terms(client_id: str) -> PrivacyTerms:
            return PrivacyTerms(
                threshold=masked.threshold,
                smallest_group=masked.smallest_group,
                asked=rules.clients_per_round,
                bits=sums.masks.bits,
                largest=sums.masks.largest,
                max_examples=sums.masks.max_examples,
                weighted=sums.weighted,
                follows=private.follows,
                rank=masked.ranks[client_id],
                ranks=sorted(masked.layout.ranks),
                modules=modules,
                out_features=[rules.shapes[name][0] for name in modules],
                saved_parameters=sorted(state.saved_parameters),
                clip=private.clip,
                noise_multiplier=noise.multiplier if noise is not None else None,
                count_noise=noise.adaptive.count_noise if noise is not None and noise.adaptive is not None else None,
                honest_fraction=noise.honest_fraction if noise is not None else None,
            )

        return PrivateExchange(
            rules,
            state,
            exchange.introductions,
            exchange.max_examples,
            exchange.counted,
            masked=masked,
            terms={client_id: terms(client_id) for client_id in sorted(asked)},
        )

    def closed(
        self, grid: Grid, underway: OpenRound, state: ServerState, answers: Answers, records: Sequence[RoundRecord]
    ) -> ClosedRound:
        """Play the other phases, and move on from the sum by the same code as in one process."""
        private, exchange = replace(self.private, secret=True).continued(records), underway.exchange
        rules = exchange.federation
        if not isinstance(exchange, PrivateExchange):
            if self.masked:
                reason = self._impossible(rules) or "none of the clients that were drawn can be reached"
                return private.failed(rules, state, reason)
            usable, dropped = rules.admitted(state, updates_in(answers))
            closed = private.closed(rules, state, [usable[client_id] for client_id in sorted(usable)])
            return replace(closed, dropped=(*dropped, *closed.dropped))
        published = {name: each for name, some in answers.items() for each in some[:1] if isinstance(each, Published)}
        phases = PrivatePhases(
            grid, exchange.masked, underway, self.phase_timeout, lambda: self._words_follow(exchange.masked)
        )
        return private.concluded(rules, state, lambda: read_sum(phases(published)))

    def marked(self, closed: ClosedRound, rounds: int) -> ClosedRound:
        """A round that says whether another would exceed what may be spent."""
        return replace(closed, privacy=self.private.judged(closed.privacy, closed.state.round_number, rounds))

    def unfinished(self, rules: Federation, state: ServerState, records: Sequence[RoundRecord]) -> ClosedRound | None:
        """The round that words were asked for, and that was not closed: clients send their words in it once."""
        number = state.round_number + 1
        if self.journal is None or self.journal.words_followed < number:
            return None
        reason = (
            "the server was stopped after it had asked for masked words, of which clients send none twice in a round; "
            "the next round begins anew"
        )
        return self.private.continued(records).failed(rules, state, reason)

    def _impossible(self, rules: Federation) -> str | None:
        try:
            self.private.require_possible(rules, NOTHING)
        except ConfigurationError as error:
            return str(error)
        return None

    def _words_follow(self, masked: MaskedRound) -> None:
        if self.journal is not None:
            self.journal.words_follow(masked.round_number)


def require_private(private: PrivateRounds, federation: Federation, *, evaluate_on_clients: bool) -> None:
    """Check that rounds of a federation can be private.

    Raises:
        ConfigurationError: they cannot; the message says what does not go together.
    """
    communication = federation.communication
    if federation.aggregator.work.trained != Trained.B:
        raise ConfigurationError(
            f"expected a method whose clients train B alone for private rounds, got {federation.aggregator}; choose "
            "linear rounds or FFA-LoRA"
        )
    if communication.upload is not None or communication.saved_upload is not None:
        raise ConfigurationError(
            "expected updates that travel in float32 in private rounds: a codec rounds after the clip; the precision "
            "of masked sums is privacy.bits"
        )
    if federation.robust is not None:
        raise ConfigurationError(
            f"expected no robust rule in private rounds, got {federation.robust}: it weighs single updates; bound each "
            "client by privacy.clip"
        )
    if private.masks is not None and evaluate_on_clients:
        raise ConfigurationError(
            "flower.evaluation = 'clients' has each client tell what it measures, and of how many examples, which "
            "privacy.secure_aggregation keeps from the server: set it to 'server' or 'none'"
        )
