"""What travels in a round, and what an aggregation method is: a function from updates to a broadcast."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Flag, auto
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from torch import Tensor

from florist.factors import AdapterState

SavedParameters = Mapping[str, Tensor]
"""Parameters that are trained and sent whole beside the factors, such as a classification head, by their name."""

NOTHING: SavedParameters = MappingProxyType({})
NO_ADAPTER = AdapterState.of({})


class Trained(Flag):
    """What the optimiser of a client changes, which is what travels between the client and the server."""

    A = auto()
    B = auto()
    WEIGHTS = auto()
    """The weights of the adapted modules themselves, without an adapter; they travel as saved parameters."""
    FACTORS = A | B


@dataclass(frozen=True, slots=True)
class ClientWork:
    """What a method asks of its clients. Engines read it, so that they need not know which method runs.

    Attributes:
        trained: what a client trains and sends. A half of the factors that it does not train is known on both sides
            and is never sent.
        shared_rows: whether all clients of a round have to draw the same random rows of A, without which averaging
            the halves apart has no meaning.
        constant_rows: whether rows of A are drawn once for the whole run instead of anew in every round.
        agreed_rows: whether everybody derives orthogonal rows of A from the last broadcast and the seed of the round.
            Such rows are neither trained nor sent.
        moved_rows: whether the server changes rows of A that clients do not train. Both halves of a continued adapter
            then travel down, though fewer travel up.
    """

    trained: Trained = Trained.FACTORS
    shared_rows: bool = False
    constant_rows: bool = False
    agreed_rows: bool = False
    moved_rows: bool = False

    @property
    def averages_halves(self) -> bool:
        """Whether B and A are averaged apart. A product then does not bound what either half does to the mean."""
        return self.shared_rows and self.trained == Trained.FACTORS

    @property
    def broadcast(self) -> Trained:
        """The halves that travel to a client."""
        return Trained.FACTORS if self.agreed_rows or self.moved_rows else self.trained

    def sent_bytes(self, adapter: AdapterState) -> int:
        """The bytes of the halves that travel to the server."""
        return _bytes_of(adapter, self.trained)

    def continued_bytes(self, adapter: AdapterState) -> int:
        """The bytes of the halves of a continued adapter that travel to a client."""
        return _bytes_of(adapter, self.broadcast)


@dataclass(frozen=True, slots=True, eq=False)
class ClientUpdate:
    """What one client uploads in a round.

    Attributes:
        client_id: names the client in every round. Updates are combined in the order of these names.
        adapter: the trained factors, with the scaling folded in.
        num_examples: how many training examples are behind the update. Its weight is this number over the sum of all.
        round_number: the round that asked for the update, counted from 1.
        saved_parameters: the trained values, not differences, of the parameters that travel whole.
        sent_bytes: the bytes that really travelled, where a codec made them fewer; None where the tensors did.
        held_back: the norm of what the client held back and sends later.

    >>> import torch
    >>> from florist.factors import LoraFactor
    >>> factor = LoraFactor(B=torch.ones(4, 2), A=torch.ones(2, 3))  # of a weight with 4 outputs and 3 inputs
    >>> update = ClientUpdate("site_a", AdapterState.of({"layers.0.q_proj": factor}), num_examples=120, round_number=1)
    >>> update.nbytes
    56
    """

    client_id: str
    adapter: AdapterState
    num_examples: int
    round_number: int
    saved_parameters: SavedParameters = field(default_factory=lambda: NOTHING)
    sent_bytes: int | None = None
    held_back: float = 0.0

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        return self.adapter.nbytes + saved_bytes(self.saved_parameters)


@dataclass(frozen=True, slots=True)
class ModuleCertificate:
    """What the aggregation of one module kept and lost.

    Attributes:
        shape: (out_features, in_features).
        rank: the rank of what is broadcast, added and continued parts together.
        input_rank: R, the sum of the clients' ranks.
        energy_kept: ``1 - (error / norm)^2``. Where the broadcast is a cut of the exact sum, this is the fraction of
            ``||dW||_F^2`` that it holds; where a method is further off than no update would be, it is below 0.
        norm: ``||dW||_F`` of the exact weighted sum.
        error: ``||dW - dW_g||_F``, where ``dW_g`` is what the broadcast makes of the uploads. It is the square root of
            the discarded energy for a cut, and the aggregation noise for a mean of the halves. It is right to a
            relative 1e-3, the rounding of what is broadcast included, or to about 1e-15 of the norms of the uploads and
            of what is sent, where that is more: float64 knows no better. A sum that is less than that beside its own
            terms counts as zero, and its error as well.
            With feedback the norm is that of what was due, and the error that of what has not been sent yet.
        absent_from: the clients that sent nothing for the module; each counts as a zero update.
        codec_error: the part of the error that the codec made.
        held_back: the part of the error that the server keeps and sends later.
    """

    shape: tuple[int, int]
    rank: int
    input_rank: int
    energy_kept: float
    norm: float
    error: float
    absent_from: tuple[str, ...] = ()
    codec_error: float = 0.0
    held_back: float = 0.0

    @property
    def relative_error(self) -> float:
        """The error over the norm; 0 for a zero update."""
        return self.error / self.norm if self.norm else 0.0


@dataclass(frozen=True, slots=True)
class Certificate:
    """What an aggregation kept, lost and moved. No dense weight is needed to compute it.

    Attributes:
        modules: the certificate of every module, by its name.
        bytes_in: the bytes of all uploads, as they were sent.
        bytes_out: the bytes of the broadcast to one client of the largest rank.

    >>> kept = ModuleCertificate((64, 48), rank=3, input_rank=8, energy_kept=0.91, norm=10.0, error=3.0)
    >>> exact = ModuleCertificate((64, 48), rank=8, input_rank=8, energy_kept=1.0, norm=5.0, error=0.0)
    >>> certificate = Certificate({"q_proj": kept, "v_proj": exact}, bytes_in=7168, bytes_out=4928)
    >>> certificate.total_rank, certificate.input_rank, round(certificate.relative_error, 3)
    (11, 16, 0.268)
    """

    modules: Mapping[str, ModuleCertificate]
    bytes_in: int
    bytes_out: int

    @property
    def total_rank(self) -> int:
        """The sum of the broadcast ranks."""
        return sum(module.rank for module in self.modules.values())

    @property
    def input_rank(self) -> int:
        """The sum of the ranks that came in, which is the total rank that FLoRA would send."""
        return sum(module.input_rank for module in self.modules.values())

    @property
    def relative_error(self) -> float:
        """The error of all modules together, ``sqrt(sum error^2 / sum norm^2)``; 0 for a zero update."""
        norm = math.hypot(*(module.norm for module in self.modules.values()))
        error = math.hypot(*(module.error for module in self.modules.values()))
        return error / norm if norm else 0.0

    @property
    def codec_error(self) -> float:
        """The codec's error of all modules together."""
        return math.hypot(*(module.codec_error for module in self.modules.values()))

    @property
    def held_back(self) -> float:
        """The norm of what the server keeps and sends later, of all modules together."""
        return math.hypot(*(module.held_back for module in self.modules.values()))


@dataclass(frozen=True, slots=True, eq=False)
class Broadcast:
    """What the server sends after a round.

    The global model is the base with every `shared` adapter so far and the latest `continued` one.

    Attributes:
        shared: the adapter that every client adds to its frozen global adapter.
        certificate: what the aggregation kept and lost.
        continued: the adapter that clients train on from, in the place of the one before. A client of a smaller rank
            takes its first components. It is empty for methods that only add.
        saved_parameters: the averaged values of the parameters that travel whole.

    >>> import torch
    >>> from florist import EnergyThreshold, Florist, LoraFactor
    >>> def update(client_id: str, scale: float) -> ClientUpdate:
    ...     factor = LoraFactor(B=torch.eye(4, 2), A=scale * torch.eye(2, 3))
    ...     return ClientUpdate(client_id, AdapterState.of({"q_proj": factor}), num_examples=10, round_number=1)
    >>> broadcast = Florist(EnergyThreshold(1.0))([update("a", 1.0), update("b", 3.0)])
    >>> broadcast.shared["q_proj"].rank, broadcast.certificate.input_rank
    (2, 4)
    >>> torch.allclose(broadcast.shared["q_proj"].delta_weight(), 2.0 * torch.eye(4, 3) * (torch.arange(3) < 2))
    True
    """

    shared: AdapterState
    certificate: Certificate
    continued: AdapterState = field(default_factory=lambda: NO_ADAPTER)
    saved_parameters: SavedParameters = field(default_factory=lambda: NOTHING)


@runtime_checkable
class Aggregator(Protocol):
    """An aggregation method, which makes one broadcast of the updates of a round. It has settings and no state."""

    @property
    def work(self) -> ClientWork:
        """What clients train for the method."""
        ...

    def __call__(self, updates: Sequence[ClientUpdate], /) -> Broadcast:
        """Combine the updates in the order of their client ids, whatever order they come in."""
        ...


def weight_name(module: str) -> str:
    """The name under which the weight of an adapted module travels whole, which is its name in the pristine model."""
    return f"{module}.weight"


def saved_bytes(parameters: SavedParameters) -> int:
    """The bytes of parameters that travel whole."""
    return sum(tensor.nbytes for tensor in parameters.values())


def _bytes_of(adapter: AdapterState, halves: Trained) -> int:
    B, A = Trained.B in halves, Trained.A in halves
    return sum(
        spec.rank * (B * spec.out_features + A * spec.in_features) * spec.dtype.itemsize
        for spec in adapter.specs.values()
    )
