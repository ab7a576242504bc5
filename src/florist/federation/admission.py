"""Which updates count: the checks that stand between what a client sends and the aggregator.

No aggregation method fails on an update that passes, so that one bad client costs a round no more than its own update.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from florist.factors import LoraFactor
from florist.rounds import ClientUpdate, SavedParameters, Trained

LARGEST_NORM = torch.finfo(torch.float32).max ** 0.5
"""The largest norm of a half, and of the product of both: squares of larger ones overflow in float32."""

ROWS_TOLERANCE = 1e-4
"""How far a row of A that a client derives may be from the server's, as a fraction of its norm."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The dtypes that factors may have."""


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """What an update of one client in one round has to be.

    Attributes:
        round_number: the round.
        rank: the largest rank that the client may send.
        shapes: (out_features, in_features) of every module that may be trained.
        saved_parameters: the parameters that travel whole, as they were before the round.
        trained: what the method trains. Where that is B alone, A has to be what the client was given.
        rows: gives the rows of A that the client was given in a module, at least as many as `rank`.
        rows_tolerance: how far a row may be from the one that was given, as a fraction of its norm. It is 0 unless the
            client computes its rows, whose rounding depends on the machine.
        largest_norm: the largest norm of a half, and of the product of both, that a broadcast can carry.
        largest_number: the largest number of a parameter that travels whole that a broadcast can carry.
    """

    round_number: int
    rank: int
    shapes: Mapping[str, tuple[int, int]]
    saved_parameters: SavedParameters
    trained: Trained
    rows: Callable[[str], Tensor]
    rows_tolerance: float = 0.0
    largest_norm: float = LARGEST_NORM
    largest_number: float = math.inf

    def refusal(self, update: ClientUpdate) -> str | None:
        """The reason why an update cannot count; None where it can. Every factor is read once."""
        if update.round_number != self.round_number:
            return f"expected an update of round {self.round_number}, got one of round {update.round_number}"
        if type(update.num_examples) is not int or update.num_examples <= 0:
            return f"expected a positive whole number of examples, got {update.num_examples!r}"
        if update.adapter and not self.trained & Trained.FACTORS:
            return f"expected whole weights, got factors of {next(iter(update.adapter))}"
        for name, spec in update.adapter.specs.items():
            if name not in self.shapes:
                return f"{name} is not a module that this federation trains"
            if spec.shape != self.shapes[name]:
                return f"{name}: expected the shape {self.shapes[name]}, got {spec.shape}"
            if spec.dtype not in FLOATS:
                return f"{name}: expected floating-point factors of 16, 32 or 64 bits, got {spec.dtype}"
            if spec.rank > self.rank:
                return f"{name}: expected at most the client's rank {self.rank}, got {spec.rank}"
        for name, factor in update.adapter.items():
            reason = self._refusal_of_factor(name, factor)
            if reason is not None:
                return reason
        return self._refusal_of_saved(update.saved_parameters)

    def _refusal_of_factor(self, name: str, factor: LoraFactor) -> str | None:
        if not (factor.B.isfinite().all() and factor.A.isfinite().all()):
            return f"{name} holds NaN or inf"
        B, A = (float(torch.linalg.vector_norm(half, dtype=torch.float64)) for half in (factor.B, factor.A))
        if max(B, A, B * A) > self.largest_norm:
            return f"{name}: expected norms below {self.largest_norm:.1e}, got {B:.1e} of B and {A:.1e} of A"
        if self.trained == Trained.B:
            given = self.rows(name)[: factor.rank].to(factor.A.device)
            if not _close(factor.A.double(), given.double(), self.rows_tolerance):
                return f"{name}: expected A as the client was given it, since B alone is trained, and it differs"
        return None

    def _refusal_of_saved(self, parameters: SavedParameters) -> str | None:
        if parameters.keys() != self.saved_parameters.keys():
            return f"expected the saved parameters {sorted(self.saved_parameters)}, got {sorted(parameters)}"
        for name, tensor in parameters.items():
            before = self.saved_parameters[name]
            if tensor.shape != before.shape:
                return f"{name}: expected {tuple(before.shape)}, got {tuple(tensor.shape)}"
            if tensor.dtype != before.dtype:
                return f"{name}: expected {before.dtype}, got {tensor.dtype}"
            if not tensor.isfinite().all():
                return f"{name} holds NaN or inf"
            largest = float(tensor.abs().max()) if tensor.numel() else 0.0
            if largest > self.largest_number:
                return f"{name}: expected numbers below {self.largest_number:.1e}, got {largest:.1e}"
        return None


def _close(rows: Tensor, given: Tensor, tolerance: float) -> bool:
    """Whether each row is as given, up to a fraction of its norm."""
    if tolerance == 0:
        return torch.equal(rows, given)
    off = torch.linalg.vector_norm(rows - given, dim=1)
    return bool((off <= tolerance * torch.linalg.vector_norm(given, dim=1)).all())
