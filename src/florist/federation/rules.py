"""The rules of the rounds: who takes part, what each client lacks, which updates count, and what the state is then.

They move a `ServerState` from one round to the next and know neither models nor networks. The engine in one process and
that over Flower drive the same steps.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from florist.aggregation.certifying import certified_inputs
from florist.aggregation.robust import RobustRule
from florist.compression.residual import NOTHING_OWED, Residual
from florist.errors import ConfigurationError
from florist.federation.admission import ROWS_TOLERANCE, Expected
from florist.federation.before_cuts import BeforeCuts
from florist.federation.broadcasts import CATCH_UP_ROUNDS
from florist.federation.client_starts import ClientStarts
from florist.federation.closed_round import ClosedRound
from florist.federation.communication import Communication, SentUpdate, upload_bytes_of
from florist.federation.downloads import NOTHING_LACKED, Download, Downloads
from florist.federation.geometry import Changes
from florist.federation.guard import Guard
from florist.federation.local_init import Aligned, LocalInit, LocalStart
from florist.federation.moving_on import MovingOn
from florist.federation.records import Drop
from florist.federation.state import ServerState
from florist.federation.weighing import weigh
from florist.rounds import Aggregator, ClientUpdate
from florist.seeding import generator


def clients_asked(fraction: float, clients: int) -> int:
    """How many of so many clients a round asks."""
    # 0.1 * 30 is 3.0000000000000004: the ceiling must not ask a fourth client for that.
    return max(1, math.ceil(round(fraction * clients, 9)))


@dataclass(frozen=True, slots=True)
class Federation:
    """The rules of a federation, the same in every round.

    Args:
        client_ranks: every client that may be asked, and the largest rank that it trains.
        aggregator: the method.
        shapes: (out_features, in_features) of every module that may be trained; anything else is refused.
        seed: the seed of the run.
        local_init: how local adapters start where the method continues none.
        shared_init: whether all clients of a round draw the same random rows of A, of which a smaller rank takes the
            first. Where each draws its own, the sum needs more directions. Methods that average halves apart share
            them in any case.
        fraction: the fraction of the clients that each round asks, rounded up (C of FedAvg, arXiv:1602.05629).
        min_replies: how many usable updates a round needs; by default half of the asked clients, rounded up.
        catch_up_rounds: for how many rounds broadcasts are kept. A client that was away for longer is sent the whole
            global adapter in the place of what it missed.
        communication: how updates and broadcasts travel; by default as they are, in float32.
        guard: refuses, or scales down, updates that no honest client sends.
        robust: the weights of the clients, where some may be hostile; by default their shares of the examples.
    """

    client_ranks: Mapping[str, int]
    aggregator: Aggregator
    shapes: Mapping[str, tuple[int, int]]
    seed: int
    local_init: LocalInit = field(default_factory=Aligned)
    shared_init: bool = True
    fraction: float = 1.0
    min_replies: int | None = None
    catch_up_rounds: int = CATCH_UP_ROUNDS
    communication: Communication = field(default_factory=Communication)
    guard: Guard = field(default_factory=Guard)
    robust: RobustRule | None = None

    @property
    def max_rank(self) -> int:
        """The largest rank of any client."""
        return max(self.client_ranks.values())

    @property
    def clients_per_round(self) -> int:
        """How many clients each round asks."""
        return clients_asked(self.fraction, len(self.client_ranks))

    @property
    def required_replies(self) -> int:
        """How many usable updates a round needs."""
        return self.min_replies if self.min_replies is not None else math.ceil(self.clients_per_round / 2)

    def require_possible(self) -> None:
        """Check that a round can get as many replies as it needs.

        Raises:
            ConfigurationError: it asks fewer clients.
        """
        if self.required_replies > self.clients_per_round:
            raise ConfigurationError(
                f"federation.min_replies = {self.required_replies}: expected at most the {self.clients_per_round} of "
                f"{len(self.client_ranks)} clients that a round asks"
            )

    def participants(self, round_number: int, among: Collection[str] | None = None) -> tuple[str, ...]:
        """The clients to ask in a round, sorted. They are drawn from the seed and the round number alone.

        Args:
            round_number: the round.
            among: the clients that can be reached; all of them by default. As many as in any other round are drawn.
        """
        ordered = sorted(self.client_ranks if among is None else among)
        draw = torch.randperm(len(ordered), generator=generator(self.seed, "participants", round_number))
        return tuple(sorted(ordered[i] for i in draw[: self.clients_per_round].tolist()))

    def download(self, state: ServerState, client_id: str) -> Download:
        """What a client lacks: every broadcast since it last held the global adapter, as one adapter.

        Several broadcasts are summed without loss, so that a client that was away is not sent each of them. A client
        that holds nothing, or was away for more than `catch_up_rounds`, is sent the global adapter itself. Of
        continued adapters only the latest counts. Broadcasts that a codec packed are sent again as they were, since
        their sum would take more bytes than they do. Every client has the base model, so that weights of adapted
        modules are not sent before a round has changed them; a head, which starts at random, is.

        Cost: at most one `lossless_sum` for all clients that lack the same rounds.
        """
        holds = state.holds.get(client_id)
        if holds is not None and holds >= state.latest:
            return NOTHING_LACKED
        start, rank = self.client_starts.init_of(state, client_id), self.client_ranks[client_id]
        return self._downloads.lacked(state, holds, rank, start=start, adapted=self.shapes)

    def with_holds(self, state: ServerState, told: Mapping[str, int | None]) -> ServerState:
        """The state with what clients say they hold, since an engine may lose a delivery, and a client what it had.

        Args:
            state: the state before.
            told: the round whose global adapter a client holds, by client id; None for nothing at all.
        """
        known = {name: round_number for name, round_number in told.items() if round_number is not None}
        kept = {name: round_number for name, round_number in state.holds.items() if name not in told}
        holds = {**kept, **known}
        return replace(state, holds=holds) if holds != state.holds else state

    def start(self, state: ServerState, client_id: str) -> LocalStart:
        """What a client starts the next round with, once it has downloaded what it lacked."""
        return self.client_starts.start(state, client_id)

    def rows(self, state: ServerState, client_id: str) -> Callable[[str], Tensor]:
        """The rows of A that a client starts the next round with, by module (`ClientStarts.starting_rows`)."""
        return self.client_starts.starting_rows(state, client_id)

    def local_seed(self, round_number: int, client_id: str) -> int:
        """The seed of a client's random rows of A. It draws as many as `max_rank` and takes the first of them."""
        return self.client_starts.local_seed(round_number, client_id)

    @property
    def client_starts(self) -> ClientStarts:
        """Where each client starts from in a round, and what its upload changed from there."""
        return ClientStarts(
            self.client_ranks,
            self.shapes,
            self.seed,
            self.aggregator.work,
            self.local_init,
            self.shared_init,
            self.communication.uploads_changes,
        )

    def sent_update(self, state: ServerState, update: ClientUpdate, owed: Residual = NOTHING_OWED) -> SentUpdate:
        """What a client sends of what it trained, and what it holds back.

        Args:
            state: the state before the round.
            update: as it was trained.
            owed: what the client held back before.

        Raises:
            NonFiniteUpdateError, InvalidUpdateError, IncompatibleAdaptersError: as `Communication.sent_update`.
        """
        rank = self.client_ranks[update.client_id]
        given = self.client_starts.init_of(state, update.client_id).given(state, rank)
        return self.communication.sent_update(update, owed, self.aggregator.work, given=given, max_rank=rank)

    def admitted(
        self, state: ServerState, updates: Sequence[ClientUpdate]
    ) -> tuple[dict[str, ClientUpdate], list[Drop]]:
        """The updates that can be used, by client id, and whose cannot; of two of a client the first counts."""
        counted: dict[str, ClientUpdate] = {}
        dropped: list[Drop] = []
        for update in updates:
            reason = self._refusal(update, state, counted)
            if reason is None:
                counted[update.client_id] = update
            else:
                dropped.append(Drop(update.client_id, reason))
        return counted, dropped

    def close_round(
        self,
        state: ServerState,
        updates: Sequence[ClientUpdate],
        unsent: Sequence[Drop] = (),
        claimed: Mapping[str, int] | None = None,
    ) -> ClosedRound:
        """Check the updates, aggregate those that can be used, and move the state on by one round.

        A round with too few usable updates keeps the global adapter as it was. The clients whose updates count are
        sent the broadcast of the round, and hold the new global adapter afterwards.

        Args:
            state: the state before the round.
            updates: what arrived.
            unsent: the clients that had nothing to send, and why.
            claimed: how many examples each client claimed when it first counted, by client id.
        """
        round_number, starts = state.round_number + 1, self.client_starts
        counted, refused = self.admitted(state, updates)
        dropped = [*unsent, *refused]
        admitted = {client_id: starts.summand(counted[client_id], state) for client_id in sorted(counted)}
        moved = {client_id: starts.judged(summand, state) for client_id, summand in admitted.items()}
        verdict = self.guard([*moved.values()], claimed or {})
        for drop in verdict.refused:
            dropped.append(drop)
            del counted[drop.client_id]
        usable = tuple(counted[client_id] for client_id in sorted(counted))
        upload_bytes = {update.client_id: upload_bytes_of(update, self.aggregator.work) for update in usable}
        trained = BeforeCuts(self.client_ranks, self.shapes, self.communication.uploads_changes)
        ranks, stack = trained.ranks(usable), trained.stack(usable)
        changes = Changes(tuple(admitted[update.client_id] for update in usable))
        if len(usable) < self.required_replies:
            unchanged = replace(state, round_number=round_number)
            return ClosedRound(unchanged, None, usable, upload_bytes, {}, tuple(dropped), ranks, *stack, changes)
        left = [moved[update.client_id] for update in usable]
        weighed = weigh(changes.updates, left, verdict.clipped, self.robust, starts.model_before(state, usable))
        aggregated = certified_inputs(self.aggregator(weighed.updates), changes.updates)
        moved_on = self.moving_on(state, aggregated, [*counted], sum(upload_bytes.values()))
        after, broadcast, deliveries = moved_on.state, moved_on.broadcast, moved_on.deliveries
        outcome = ClosedRound(
            after, broadcast, usable, upload_bytes, deliveries, tuple(dropped), ranks, *stack, changes
        )
        return replace(outcome, clipped=verdict.clipped, weights=weighed.weights)

    @property
    def moving_on(self) -> MovingOn:
        """How the state moves on, once what a round adds to the model is known."""
        return MovingOn(self.client_ranks, self.communication, self.aggregator.work, self.catch_up_rounds)

    @property
    def _downloads(self) -> Downloads:
        return Downloads(self.communication, self.aggregator.work)

    def _refusal(self, update: ClientUpdate, state: ServerState, counted: Mapping[str, ClientUpdate]) -> str | None:
        if update.client_id not in self.client_ranks:
            return "not a client of this federation"
        work = self.aggregator.work
        expected = Expected(
            round_number=state.round_number + 1,
            rank=self.client_ranks[update.client_id],
            shapes=self.shapes,
            saved_parameters=state.saved_parameters,
            trained=work.trained,
            rows=self.rows(state, update.client_id),
            rows_tolerance=ROWS_TOLERANCE if work.agreed_rows else 0.0,
            largest_norm=self.communication.largest_norm,
            largest_number=self.communication.largest_number,
        )
        reason = expected.refusal(update)
        if reason is None and update.client_id in counted:
            return "a second update in one round; the first counts"
        return reason
