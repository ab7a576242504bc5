"""What travels in a round, and what every aggregation method is: a function from updates to a broadcast."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Flag, auto
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from torch import Tensor

from florist.factors import AdapterState

SavedParameters = Mapping[str, Tensor]
"""Parameters trained and sent whole beside the factors, by their name in the model: a classification head."""

NOTHING: SavedParameters = MappingProxyType({})
NO_ADAPTER = AdapterState.of({})


class Trained(Flag):
    """What a client's optimiser changes, which is what travels between it and the server."""

    A = auto()
    B = auto()
    WEIGHTS = auto()
    """The weights of the adapted modules themselves, without an adapter; they travel as whole parameters."""
    FACTORS = A | B


@dataclass(frozen=True, slots=True)
class ClientWork:
    """What a method asks of its clients; engines read it and need not know which method runs.

    Attributes:
        trained: what a client trains and sends. A half of the factors that it does not train is known on both sides
            and never sent.
        shared_rows: the method averages halves apart, which has a meaning only where all clients of a round draw the
            same random rows of A.
        constant_rows: rows of A are drawn once for the whole run instead of anew in every round.
    """

    trained: Trained = Trained.FACTORS
    shared_rows: bool = False
    constant_rows: bool = False

    def sent_bytes(self, adapter: AdapterState) -> int:
        """Bytes of the halves that travel."""
        B, A = Trained.B in self.trained, Trained.A in self.trained
        return sum(
            spec.rank * (B * spec.out_features + A * spec.in_features) * spec.dtype.itemsize
            for spec in adapter.specs.values()
        )


@dataclass(frozen=True, slots=True, eq=False)
class ClientUpdate:
    """What one client uploads.

    Attributes:
        client_id: names the client in every round; updates are combined in its order.
        adapter: the trained factors, scaling folded in.
        num_examples: training examples behind the update; its weight is this over the round's sum.
        round_number: the round that asked for it, from 1.
        saved_parameters: trained values (not differences) of parameters that travel whole.
    """

    client_id: str
    adapter: AdapterState
    num_examples: int
    round_number: int
    saved_parameters: SavedParameters = field(default_factory=lambda: NOTHING)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.adapter.nbytes + saved_bytes(self.saved_parameters)


@dataclass(frozen=True, slots=True)
class ModuleCertificate:
    """What the aggregation of one module kept and lost.

    Attributes:
        shape: (out_features, in_features).
        rank: of what is broadcast, added and continued parts together.
        input_rank: R, the sum of the clients' ranks.
        energy_kept: ``1 - (error / norm)^2``: the fraction of ``||dW||_F^2`` in the broadcast where that is a cut of
            the exact sum; below 0 where a method that is not exact is further off than no update would be.
        norm: ``||dW||_F`` of the exact weighted sum.
        error: ``||dW - dW_g||_F``, where ``dW_g`` is what the broadcast makes of the uploads: the square root of
            the discarded energy for a cut, the aggregation noise for a mean of the halves.
        absent_from: clients that sent nothing for the module; each counts as a zero update.
    """

    shape: tuple[int, int]
    rank: int
    input_rank: int
    energy_kept: float
    norm: float
    error: float
    absent_from: tuple[str, ...] = ()

    @property
    def relative_error(self) -> float:
        """Error over norm; 0 for a zero update."""
        return self.error / self.norm if self.norm else 0.0


@dataclass(frozen=True, slots=True)
class Certificate:
    """What an aggregation kept, lost and moved; nothing in it needs a dense weight.

    Attributes:
        modules: by module name.
        bytes_in: of all uploads, as sent.
        bytes_out: of the broadcast, once, to a client of the largest rank.
    """

    modules: Mapping[str, ModuleCertificate]
    bytes_in: int
    bytes_out: int

    @property
    def total_rank(self) -> int:
        """Sum of the broadcast ranks."""
        return sum(module.rank for module in self.modules.values())

    @property
    def input_rank(self) -> int:
        """Sum of the ranks that came in: the total rank that FLoRA would send."""
        return sum(module.input_rank for module in self.modules.values())

    @property
    def relative_error(self) -> float:
        """Over all modules together, ``sqrt(sum error^2 / sum norm^2)``; 0 for a zero update."""
        norm = math.hypot(*(module.norm for module in self.modules.values()))
        error = math.hypot(*(module.error for module in self.modules.values()))
        return error / norm if norm else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Broadcast:
    """What the server sends after a round.

    The global model is base + all `shared` so far + the latest `continued`.

    Attributes:
        shared: the adapter for every client, to be added to the frozen global one.
        certificate: what the aggregation kept and lost.
        continued: the adapter that everybody trains on from, in the place of the one before; a client of a smaller
            rank takes its first components. Empty for methods that only add.
        saved_parameters: averaged values of the parameters that travel whole.
    """

    shared: AdapterState
    certificate: Certificate
    continued: AdapterState = field(default_factory=lambda: NO_ADAPTER)
    saved_parameters: SavedParameters = field(default_factory=lambda: NOTHING)


@runtime_checkable
class Aggregator(Protocol):
    """An aggregation method: updates of one round in, one broadcast out. It holds settings, never state."""

    @property
    def work(self) -> ClientWork:
        """What clients train for it."""
        ...

    def __call__(self, updates: Sequence[ClientUpdate], /) -> Broadcast:
        """Combine the updates, in the order of their client ids whatever order they come in."""
        ...


def weight_name(module: str) -> str:
    """The name under which the weight of an adapted module travels whole: that in the pristine model."""
    return f"{module}.weight"


def saved_bytes(parameters: SavedParameters) -> int:
    """Bytes of parameters that travel whole."""
    return sum(tensor.nbytes for tensor in parameters.values())
