"""What travels in a round, and what every aggregation method is: a function from updates to a broadcast."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Protocol

from torch import Tensor

from florist.factors import AdapterState

FullParameters = Mapping[str, Tensor]
"""Parameters trained and sent whole beside the factors, by their name in the model: a classification head."""

NOTHING: FullParameters = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class ClientUpdate:
    """What one client uploads.

    Attributes:
        client_id: names the client in every round; updates are combined in its order.
        adapter: the trained factors, scaling folded in.
        num_examples: training examples behind the update; its weight is this over the round's sum.
        round_number: the round that asked for it, from 1.
        full_parameters: trained values (not differences) of parameters that travel whole.
    """

    client_id: str
    adapter: AdapterState
    num_examples: int
    round_number: int
    full_parameters: FullParameters = NOTHING

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.adapter.nbytes + full_bytes(self.full_parameters)


class ClientAction(Enum):
    """What a client does with a broadcast."""

    CONTINUE = "continue"
    """Train on from it."""
    ADD = "add"
    """Add it to the frozen global adapter and start a new local one."""


@dataclass(frozen=True, slots=True)
class ModuleCertificate:
    """What the aggregation of one module kept and lost.

    Attributes:
        shape: (out_features, in_features).
        rank: p, of the broadcast factor.
        input_rank: R, the sum of the clients' ranks.
        energy_kept: fraction of ``||dW||_F^2`` in the broadcast.
        norm: ``||dW||_F`` of the exact weighted sum.
        error: ``||dW - B_g A_g||_F``, the square root of the discarded energy.
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
        bytes_in: of all uploads.
        bytes_out: of the broadcast, once.
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

    Attributes:
        shared: the adapter for every client.
        action: what clients do with it.
        certificate: what the aggregation kept and lost.
        per_client: adapters for single clients, where a method cuts one for each.
        full_parameters: averaged values of the parameters that travel whole.
    """

    shared: AdapterState
    action: ClientAction
    certificate: Certificate
    per_client: Mapping[str, AdapterState] = field(default_factory=dict)
    full_parameters: FullParameters = NOTHING


class Aggregator(Protocol):
    """An aggregation method: updates of one round in, one broadcast out. It holds settings, never state."""

    def __call__(self, updates: Sequence[ClientUpdate], /) -> Broadcast:
        """Combine the updates, in the order of their client ids whatever order they come in."""
        ...


def full_bytes(parameters: FullParameters) -> int:
    """Bytes of parameters that travel whole."""
    return sum(tensor.nbytes for tensor in parameters.values())
