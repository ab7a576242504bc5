"""Where each client starts from in a round, and what its upload changed from there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from florist.factors import AdapterState, LoraFactor
from florist.federation.local_init import Agreed, Continued, LocalInit, LocalStart, change
from florist.federation.moved import Moved, model_as_update
from florist.federation.state import ServerState
from florist.rounds import NO_ADAPTER, ClientUpdate, ClientWork
from florist.seeding import derive_seed, random_rows


@dataclass(frozen=True, slots=True)
class ClientStarts:
    """Where each client starts from in a round: it follows from the state, the seed and the settings of a federation.

    Args:
        client_ranks: the largest rank that each client trains, by client id.
        shapes: (out_features, in_features) of every module.
        seed: the seed of the run.
        work: what the method asks of its clients.
        local_init: how local adapters start where the method continues none.
        shared_init: whether all clients of a round draw the same random rows of A.
        uploads_changes: whether clients upload changes, and not what they trained on from.
    """

    client_ranks: Mapping[str, int]
    shapes: Mapping[str, tuple[int, int]]
    seed: int
    work: ClientWork
    local_init: LocalInit
    shared_init: bool
    uploads_changes: bool

    @property
    def max_rank(self) -> int:
        """The largest rank of any client."""
        return max(self.client_ranks.values())

    def start(self, state: ServerState, client_id: str) -> LocalStart:
        """What a client starts the next round with, once it has downloaded what it lacked."""
        return self.init_of(state, client_id)(state, self.client_ranks[client_id])

    def starting_rows(self, state: ServerState, client_id: str) -> Callable[[str], Tensor]:
        """The rows of A that a client starts the next round with, by module, and more up to `max_rank`.

        The result raises KeyError for a module that does not exist. It computes the start when it is first called.
        """
        seed = self.local_seed(state.round_number + 1, client_id)

        @cache
        def local() -> AdapterState:
            return self.start(state, client_id).local

        def rows_of(module: str) -> Tensor:
            drawn = random_rows(seed, module, self.max_rank, self.shapes[module][1])
            given = local()[module].A if module in local() else drawn[:0]
            return torch.cat([given, drawn[given.shape[0] :]])

        return rows_of

    def local_seed(self, round_number: int, client_id: str) -> int:
        """The seed of a client's random rows of A. It draws as many as `max_rank` and takes the first of them."""
        work = self.work
        when = () if work.constant_rows else (round_number,)
        whose = () if self.shared_init or work.shared_rows else (client_id,)
        return derive_seed(self.seed, "local adapter", *when, *whose)

    def init_of(self, state: ServerState, client_id: str) -> LocalInit:
        """How a client's local adapter starts in the next round."""
        if state.continued:
            return Continued()
        if self.work.agreed_rows:
            return Agreed(self.local_seed(state.round_number + 1, client_id), self.max_rank, self.shapes)
        return self.local_init

    def summand(self, update: ClientUpdate, state: ServerState) -> ClientUpdate:
        """What an update adds to the sum: its change from what the client was given of the global adapter."""
        adapter = update.adapter
        if self.work.agreed_rows:
            # The client's own differ by rounding, and the sum needs one A.
            rows = self.starting_rows(state, update.client_id)
            adapter = AdapterState.of(
                {name: LoraFactor(f.B, rows(name)[: f.rank].to(f.B)) for name, f in adapter.items()}
            )
        if self.uploads_changes:
            return replace(update, adapter=adapter)
        given = self.init_of(state, update.client_id).given(state, self.client_ranks[update.client_id])
        return replace(update, adapter=change(adapter, given))

    def judged(self, summand: ClientUpdate, state: ServerState) -> Moved:
        """What the guard and robust rules judge: how far the training of a client moved the model.

        Args:
            summand: the result of `summand`.
            state: the state before the round.
        """
        rank = self.max_rank if self.work.averages_halves else 0
        return Moved.of(summand, self._trained_from(state, summand.client_id), state.saved_parameters, rank)

    def _trained_from(self, state: ServerState, client_id: str) -> AdapterState:
        """The adapter that a client trained on from: the continued one, with the drawn rows of A where halves count."""
        if not self.work.averages_halves:
            return self.start(state, client_id).local if state.continued else NO_ADAPTER
        local, rows = self.start(state, client_id).local, self.starting_rows(state, client_id)
        rank = self.client_ranks[client_id]

        def at_full_rank(name: str, shape: tuple[int, int]) -> LoraFactor:
            A = rows(name)[:rank]
            B = local[name].padded(rank).B if name in local else A.new_zeros(shape[0], rank)
            return LoraFactor(B.to(A), A)

        return AdapterState.of({name: at_full_rank(name, shape) for name, shape in self.shapes.items()})

    def model_before(self, state: ServerState, usable: Sequence[ClientUpdate]) -> ClientUpdate:
        """The model before the round, as an update that can be combined with those of clients.

        Args:
            state: the state before the round.
            usable: the updates, at least one.
        """
        longest = max(usable, key=lambda update: self.client_ranks[update.client_id]).client_id
        halves = self.work.averages_halves
        return model_as_update(state, self._trained_from(state, longest) if halves else state.continued)
