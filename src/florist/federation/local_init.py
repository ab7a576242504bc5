"""How a client's next local adapter starts, and what its upload is then measured from.

Where a method sends a continued adapter, clients start from that (`Continued`). Where a method only adds, a `LocalInit`
chooses the start: fresh, as in the papers; aligned to the last global update; or warm, from the global adapter.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from florist.factors import AdapterState, LoraFactor, stack
from florist.federation.state import ServerState
from florist.linalg import ThinSvd
from florist.rounds import NO_ADAPTER

FRESH_ROW_NORM = 3**-0.5
"""The root mean square norm of a fresh row of A, which has n numbers uniform in ``+-1/sqrt(n)``; n does not matter."""


@dataclass(frozen=True, slots=True, eq=False)
class LocalStart:
    """What one client holds when it begins to train.

    Attributes:
        frozen: the part of the global adapter that it does not train.
        local: the first components of its local adapter, at most as many as its rank. The client fills the rest up with
            random rows of A and zero columns of B, which change nothing and can train.
    """

    frozen: AdapterState
    local: AdapterState


@runtime_checkable
class LocalInit(Protocol):
    """Chooses the start of a local adapter. Before training, the client's function is that of the global model."""

    @property
    def needs_last(self) -> bool:
        """Whether the start depends on the last broadcast, and not on the global adapter alone."""
        ...

    def __call__(self, state: ServerState, rank: int, /) -> LocalStart:
        """The start of a client of this rank."""
        ...

    def given(self, state: ServerState, rank: int, /) -> AdapterState:
        """The part of ``state.cumulative`` that such a client trains on from. Its upload is measured from there."""
        ...


@dataclass(frozen=True, slots=True)
class Fresh:
    """A client starts with random A and zero B, on top of the whole frozen global adapter.

    Source: FLoRIST, arXiv:2506.09199, and FLoRA, arXiv:2409.05976, start every round anew.

    >>> from dataclasses import replace
    >>> factor = LoraFactor(torch.eye(2), torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    >>> state = replace(ServerState.initial(), cumulative=AdapterState.of({"layer": factor}))
    >>> start = Fresh()(state, 1)
    >>> start.frozen["layer"].rank, list(start.local)
    (2, [])
    """

    @property
    def needs_last(self) -> bool:
        """The start needs no broadcast by itself."""
        return False

    def __call__(self, state: ServerState, rank: int, /) -> LocalStart:  # noqa: ARG002  # the same for every rank
        """The start is the whole global adapter, frozen, and nothing but random rows."""
        return LocalStart(state.cumulative, NO_ADAPTER)

    def given(self, state: ServerState, rank: int, /) -> AdapterState:  # noqa: ARG002  # never anything
        """The client is given nothing, so that its whole upload counts."""
        return NO_ADAPTER


@dataclass(frozen=True, slots=True)
class Aligned:
    """A client starts with the first rows of A along the last global update, and zero B.

    The rows are the leading right singular vectors ``V^T`` of the update. Each has the norm of a fresh row, so that the
    learning rate keeps its meaning. The other rows are random, and the whole global adapter is frozen, like in `Fresh`.

    Source: florist's own.

    >>> Aligned()(ServerState.initial(), 4).local.total_rank  # before the first broadcast, all rows are random
    0
    """

    @property
    def needs_last(self) -> bool:
        """The start follows the last broadcast."""
        return True

    def __call__(self, state: ServerState, rank: int, /) -> LocalStart:
        """The start has as many directions as the last update, at most `rank`.

        Cost: one decomposition of the last update for all clients of a round, and a thin product for each.
        """
        decomposed = state.broadcasts.last_decomposed
        return LocalStart(
            state.cumulative, AdapterState.of({name: _directions(svd, rank) for name, svd in decomposed.items()})
        )

    def given(self, state: ServerState, rank: int, /) -> AdapterState:  # noqa: ARG002  # never anything
        """The client is given nothing, so that its whole upload counts."""
        return NO_ADAPTER


@dataclass(frozen=True, slots=True)
class Warm:
    """A client trains on from the leading components of the global adapter, and the remainder is frozen.

    Its update is ``B_k A_k - T_r(G)``, where ``T_r(G)`` is what it started from. The new global adapter is therefore
    ``sum_k w_k (G - T_r(G) + B_k A_k)``: a client of small rank leaves untouched what it does not hold.

    Source: florist's own.

    >>> from dataclasses import replace
    >>> factor = LoraFactor(torch.eye(2), torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    >>> state = replace(ServerState.initial(), cumulative=AdapterState.of({"layer": factor}))
    >>> start = Warm()(state, 1)
    >>> start.frozen["layer"].rank, start.local["layer"].A
    (1, tensor([[3., 0.]]))
    """

    @property
    def needs_last(self) -> bool:
        """The start needs no broadcast by itself."""
        return False

    def __call__(self, state: ServerState, rank: int, /) -> LocalStart:
        """The start has the first `rank` components, since `ServerState.cumulative` has them in descending order."""
        return LocalStart(state.cumulative.map(lambda factor: factor.trailing(rank)), self.given(state, rank))

    def given(self, state: ServerState, rank: int, /) -> AdapterState:
        """The client is given the first `rank` components."""
        return state.cumulative.map(lambda factor: factor.leading(rank))


@dataclass(frozen=True, slots=True)
class Continued:
    """A client trains on from the first components of the continued adapter.

    The next continued adapter takes the place of this one. Nothing is subtracted from an upload, since the methods that
    send such an adapter average the adapter itself and not its change.
    """

    @property
    def needs_last(self) -> bool:
        """The start needs no broadcast by itself."""
        return False

    def __call__(self, state: ServerState, rank: int, /) -> LocalStart:
        """The start has the first `rank` components, beside all that was ever added."""
        return LocalStart(state.cumulative, state.continued.map(lambda factor: factor.leading(rank)))

    def given(self, state: ServerState, rank: int, /) -> AdapterState:  # noqa: ARG002  # never anything
        """The client is given nothing, so that its whole upload counts."""
        return NO_ADAPTER


def change(upload: AdapterState, given: AdapterState) -> AdapterState:
    """What the training of a client changed: its upload less what it was given.

    ``B_k A_k - B A = (B_k - B) A_k + B (A_k - A)`` has the sum of both ranks, and needs no difference of nearly equal
    products. A module that was not uploaded did not change.
    """
    changed = {name: _difference(upload[name], given[name]) for name in upload if name in given.specs}
    return AdapterState.of({**upload, **changed}) if changed else upload


def _directions(svd: ThinSvd, rank: int) -> LoraFactor:
    A = svd.leading(min(rank, svd.spectrum.numerical_rank)).Vh
    return LoraFactor(torch.zeros(svd.spectrum.shape[0], A.shape[0], dtype=A.dtype), FRESH_ROW_NORM * A)


def _difference(upload: LoraFactor, given: LoraFactor) -> LoraFactor:
    rank = max(upload.rank, given.rank)
    now, before = upload.padded(rank), given.padded(rank)
    moved = LoraFactor(before.B, now.A - before.A).leading(given.rank)
    return stack([LoraFactor(now.B - before.B, now.A), moved])
