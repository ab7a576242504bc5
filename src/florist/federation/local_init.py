"""How a client's next local adapter starts, and what its upload is then measured from.

A method that sends a continued adapter has said so itself (`continue_from`). For methods that only add, a `LocalInit`
says it: fresh as in the papers, aligned to the last update, or warm from the global adapter.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from florist.factors import AdapterState, LoraFactor, stack
from florist.federation.state import ServerState
from florist.linalg import ThinSvd
from florist.rounds import NO_ADAPTER

FRESH_ROW_NORM = 3**-0.5
"""Of a fresh row of A, root mean square: n numbers uniform in ``+-1/sqrt(n)``, whatever n is."""


@dataclass(frozen=True, slots=True, eq=False)
class LocalStart:
    """What one client holds when it begins to train.

    Attributes:
        frozen: its part of the global adapter that does not train.
        local: the first components of its local adapter, at most its rank. It fills up with random rows of A and zero
            columns of B, which change nothing and can train.
    """

    frozen: AdapterState
    local: AdapterState


@runtime_checkable
class LocalInit(Protocol):
    """Chooses the start of a local adapter; the function before training is that of the global model."""

    @property
    def needs_last(self) -> bool:
        """Whether the start depends on the last broadcast by itself, and not on the global adapter alone."""
        ...

    def __call__(self, state: ServerState, rank: int, /) -> LocalStart:
        """The start of a client of that rank."""
        ...

    def given(self, state: ServerState, rank: int, /) -> AdapterState:
        """The part of ``state.cumulative`` that such a client trains on from: its upload is measured from there."""
        ...


@dataclass(frozen=True, slots=True)
class Fresh:
    """A random and B zero, on top of the whole frozen global adapter.

    Source: FLoRIST, arXiv:2506.09199, and FLoRA, arXiv:2409.05976, which start every round anew.
    """

    @property
    def needs_last(self) -> bool:
        """Never."""
        return False

    def __call__(self, state: ServerState, rank: int, /) -> LocalStart:  # noqa: ARG002  # the same for every rank
        """Nothing but random rows."""
        return LocalStart(state.cumulative, NO_ADAPTER)

    def given(self, state: ServerState, rank: int, /) -> AdapterState:  # noqa: ARG002  # never anything
        """Nothing."""
        return NO_ADAPTER


@dataclass(frozen=True, slots=True)
class Aligned:
    """As `Fresh`, with the first rows of A along the last global update instead of random.

    They are the update's leading right singular vectors ``V^T``, each at the norm of a fresh row, so that the learning
    rate keeps its meaning; B is zero. The other rows are random.

    Source: florist's own.
    """

    @property
    def needs_last(self) -> bool:
        """Always."""
        return True

    def __call__(self, state: ServerState, rank: int, /) -> LocalStart:
        """As many directions as the last update has, at most `rank`.

        Cost: one decomposition of the last update for all clients of a round, and a thin product for each.
        """
        decomposed = state.broadcasts.last_decomposed
        return LocalStart(
            state.cumulative, AdapterState.of({name: _directions(svd, rank) for name, svd in decomposed.items()})
        )

    def given(self, state: ServerState, rank: int, /) -> AdapterState:  # noqa: ARG002  # never anything
        """Nothing."""
        return NO_ADAPTER


@dataclass(frozen=True, slots=True)
class Warm:
    """Train on from the leading components of the cumulative global adapter; the remainder is frozen.

    A client's update is ``B_k A_k - T_r(G)`` with the ``T_r(G)`` that it started from, so that the new global adapter
    is ``sum_k w_k (G - T_r(G) + B_k A_k)``: a client of small rank leaves untouched what it does not hold.

    Source: florist's own.
    """

    @property
    def needs_last(self) -> bool:
        """Never."""
        return False

    def __call__(self, state: ServerState, rank: int, /) -> LocalStart:
        """The first `rank` components; `ServerState.cumulative` holds them in descending order."""
        return LocalStart(state.cumulative.map(lambda factor: factor.trailing(rank)), self.given(state, rank))

    def given(self, state: ServerState, rank: int, /) -> AdapterState:
        """The first `rank` components."""
        return state.cumulative.map(lambda factor: factor.leading(rank))


@dataclass(frozen=True, slots=True)
class Continued:
    """Train on from the first components of the continued adapter, whose successor takes its place.

    For methods that send one; nothing is subtracted, since what they average is the adapter and not its change.
    """

    @property
    def needs_last(self) -> bool:
        """Never."""
        return False

    def __call__(self, state: ServerState, rank: int, /) -> LocalStart:
        """The first `rank` components, beside all that was ever added."""
        return LocalStart(state.cumulative, state.continued.map(lambda factor: factor.leading(rank)))

    def given(self, state: ServerState, rank: int, /) -> AdapterState:  # noqa: ARG002  # never anything
        """Nothing."""
        return NO_ADAPTER


def change(upload: AdapterState, given: AdapterState) -> AdapterState:
    """What a client's training changed: its upload less what it was given.

    ``B_k A_k - B A = (B_k - B) A_k + B (A_k - A)``: of the sum of both ranks, and without the cancellation of a
    difference of two nearly equal products. A module that was not uploaded did not change.
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
