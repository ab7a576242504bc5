"""How a client's next local adapter starts, and what its upload is then measured from.

Where a method sends a continued adapter, clients start from that (`Continued`). Where it trains B along rows of A that
everybody derives, they start from these (`Agreed`). For other methods a `LocalInit` is chosen: fresh, as in the papers;
aligned to the last global update; or warm, from the global adapter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from florist.factors import AdapterState, LoraFactor, stack
from florist.federation.state import ServerState
from florist.linalg import ThinSvd
from florist.linalg.parallel import in_order
from florist.rounds import NO_ADAPTER
from florist.seeding import random_rows

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

    def directions(self, state: ServerState, rank: int, /) -> AdapterState:
        """What the start needs of the last broadcast, as rows of A under zero B; empty where it needs nothing.

        They are sent to a client of this rank that lacks several broadcasts, since their sum does not show the last.
        """
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

    def directions(self, state: ServerState, rank: int, /) -> AdapterState:  # noqa: ARG002  # never any
        """The start needs no broadcast by itself."""
        return NO_ADAPTER

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

    def directions(self, state: ServerState, rank: int, /) -> AdapterState:
        """As many leading directions as the last update has, at most `rank`.

        Cost: one decomposition of the last update for all clients of a round, and a thin product for each.
        """
        decomposed = state.broadcasts.last_decomposed
        return AdapterState.of({name: _directions(svd, rank) for name, svd in decomposed.items()})

    def __call__(self, state: ServerState, rank: int, /) -> LocalStart:
        """The start has as many directions as the last update, at most `rank`."""
        return LocalStart(state.cumulative, self.directions(state, rank))

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

    def directions(self, state: ServerState, rank: int, /) -> AdapterState:  # noqa: ARG002  # never any
        """The start needs no broadcast by itself."""
        return NO_ADAPTER

    def __call__(self, state: ServerState, rank: int, /) -> LocalStart:
        """The start has the first `rank` components, since `ServerState.cumulative` has them in descending order."""
        return LocalStart(state.cumulative.map(lambda factor: factor.trailing(rank)), self.given(state, rank))

    def given(self, state: ServerState, rank: int, /) -> AdapterState:
        """The client is given the first `rank` components."""
        return state.cumulative.map(lambda factor: factor.leading(rank))


@dataclass(frozen=True, slots=True)
class Agreed:
    """A client starts with orthogonal rows of A, which everybody derives, and zero B.

    The first rows are those of the last broadcast, which are its right singular vectors, and the others are random.
    All are made orthogonal in this order, and each has the norm of a fresh row. Nobody trains or sends them: whoever
    has the last broadcast and the seed finds them, but for the rounding of the machine. They follow from the broadcast
    as it was sent, without a decomposition, since equal singular values would leave their vectors to chance.

    A client takes the first rows, as many as its rank. A module with fewer inputs than that has no more orthogonal
    rows: the others are zero there, so that their components never train.

    Source: florist's own.

    Args:
        seed: the seed of the random rows in this round.
        max_rank: how many rows are made.
        shapes: (out_features, in_features) of every module.

    >>> start = Agreed(seed=1, max_rank=3, shapes={"layer": (2, 8)})(ServerState.initial(), 2)
    >>> A = start.local["layer"].A
    >>> torch.allclose(A @ A.T, torch.eye(2) / 3, atol=1e-6), start.local["layer"].B.count_nonzero().item()
    (True, 0)
    """

    seed: int
    max_rank: int
    shapes: Mapping[str, tuple[int, int]]

    def directions(self, state: ServerState, rank: int, /) -> AdapterState:
        """The first rows of the last broadcast, as they were sent."""
        return state.broadcasts.last.map(lambda factor: _along(_nonzero_rows(factor.A)[:rank], factor.B.shape[0]))

    def __call__(self, state: ServerState, rank: int, /) -> LocalStart:
        """The start has `rank` rows in every module.

        Cost: one QR of n x `max_rank` a module, in float64, for all clients of a round.
        """
        last = state.broadcasts.last

        def rows_of(name: str) -> Tensor:
            drawn = random_rows(self.seed, name, self.max_rank, self.shapes[name][1])
            return _orthogonal_rows(_nonzero_rows(last[name].A) if name in last else drawn[:0], drawn)

        def all_rows() -> Mapping[str, Tensor]:
            return dict(zip(self.shapes, in_order(rows_of, self.shapes), strict=True))

        rows = state.broadcasts.once((type(self), self.seed, self.max_rank), all_rows)
        own = {name: _along(A[:rank], self.shapes[name][0]) for name, A in rows.items()}
        return LocalStart(state.cumulative, AdapterState.of(own))

    def given(self, state: ServerState, rank: int, /) -> AdapterState:  # noqa: ARG002  # never anything
        """The client is given nothing, so that its whole upload counts."""
        return NO_ADAPTER


@dataclass(frozen=True, slots=True)
class Continued:
    """A client trains on from the first components of the continued adapter.

    The next continued adapter takes the place of this one. Nothing is subtracted from an upload, since the methods that
    send such an adapter average the adapter itself and not its change.
    """

    def directions(self, state: ServerState, rank: int, /) -> AdapterState:  # noqa: ARG002  # never any
        """The start needs no broadcast by itself."""
        return NO_ADAPTER

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
    return _along(FRESH_ROW_NORM * A, svd.spectrum.shape[0])


def _along(A: Float[Tensor, "rank in_features"], out_features: int) -> LoraFactor:
    """The factor that has these rows of A under zero B."""
    return LoraFactor(A.new_zeros(out_features, A.shape[0]), A)


def _nonzero_rows(A: Float[Tensor, "rank in_features"]) -> Float[Tensor, "fewer in_features"]:
    return A[A.count_nonzero(dim=1) > 0]


def _orthogonal_rows(
    given: Float[Tensor, "some in_features"], drawn: Float[Tensor, "rank in_features"]
) -> Float[Tensor, "rank in_features"]:
    """As many rows as were drawn, orthogonal and of the norm of a fresh one; the given ones take the first places.

    A row keeps its direction, less what lies along the rows before it. Rows beyond `in_features` are zero.
    """
    rank, in_features = drawn.shape
    rows = torch.cat([given, drawn[given.shape[0] :]])[: min(rank, in_features)].double()
    Q, R = torch.linalg.qr((rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)).T)
    signs = torch.where(R.diagonal() < 0, -1.0, 1.0)  # LAPACK leaves them open
    found = (FRESH_ROW_NORM * signs * Q).T.to(given.dtype)
    return torch.cat([found, found.new_zeros(rank - found.shape[0], in_features)])


def _difference(upload: LoraFactor, given: LoraFactor) -> LoraFactor:
    rank = max(upload.rank, given.rank)
    dtype = torch.promote_types(upload.B.dtype, given.B.dtype)
    now, before = upload.padded(rank).to(dtype=dtype), given.padded(rank).to(dtype=dtype)
    moved = LoraFactor(before.B, now.A - before.A).leading(given.rank)
    return stack([LoraFactor(now.B - before.B, now.A), moved])
