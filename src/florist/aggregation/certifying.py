"""The certificate of an aggregation, computed from the factors, and the broadcast that carries it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from florist.aggregation.updates import average_saved_parameters
from florist.factors import AdapterState, LoraFactor
from florist.linalg import residual_norm
from florist.linalg.residual import Parts
from florist.linalg.thin_svd import working_dtype
from florist.rounds import NO_ADAPTER, Broadcast, Certificate, ClientUpdate, ClientWork, ModuleCertificate, saved_bytes

# Rounding below this fraction of an error changes it by less than 1e-3, whatever direction it has.
_ROUNDING_MARGIN = 1e3


def certify_error(
    updates: Sequence[ClientUpdate], module: str, rank: int, *, norm: float, error: float
) -> ModuleCertificate:
    """Certify a module.

    Args:
        updates: the accepted updates.
        module: the name of the module.
        rank: the rank of what is broadcast.
        norm: the Frobenius norm of the exact sum.
        error: the Frobenius norm of the exact sum less what the broadcast makes of it.
    """
    holder = next(update for update in updates if module in update.adapter.specs)
    return ModuleCertificate(
        shape=holder.adapter.specs[module].shape,
        rank=rank,
        input_rank=_input_rank(updates, module),
        energy_kept=1.0 - (error / norm) ** 2 if norm else 1.0,
        norm=norm,
        error=error,
        absent_from=_absent_from(updates, module),
    )


def frobenius_norm(factor: LoraFactor) -> float:
    """``||B @ A||_F``, without forming the product; see `LoraFactor.energy`."""
    return factor.energy() ** 0.5


def error_above_rounding(found: float, parts: Parts, sent: LoraFactor, *, rounded: Sequence[LoraFactor] = ()) -> float:
    """The error that an algebraic formula found, or, where rounding may exceed it, that of the stored numbers.

    Args:
        found: what the formula says of exact arithmetic.
        parts: the parts of the exact sum.
        sent: what the broadcast makes of it.
        rounded: further factors on the way to `sent` to whose size rounding was proportional.

    Cost: none, or that of `linalg.residual.residual_norm`.
    """
    rounding = torch.finfo(working_dtype(sent.B.dtype)).eps * math.hypot(*map(_size, (sent, *rounded)))
    return found if found >= _ROUNDING_MARGIN * rounding else residual_norm(parts(), sent)


def _size(factor: LoraFactor) -> float:
    """The norm that the product would have if its components were orthogonal."""
    B, A = factor.B.double(), factor.A.double()
    return float(torch.linalg.norm(B.norm(dim=0) * A.norm(dim=1)))


def certified_broadcast(
    work: ClientWork,
    updates: Sequence[ClientUpdate],
    modules: Mapping[str, ModuleCertificate],
    *,
    shared: AdapterState = NO_ADAPTER,
    continued: AdapterState = NO_ADAPTER,
) -> Broadcast:
    """The broadcast of a method: it also averages the saved parameters and counts the bytes.

    Args:
        work: what the method asks of its clients.
        updates: the accepted updates.
        modules: the certificate of every module.
        shared: what every client adds.
        continued: what every client trains on from.

    Raises:
        NonFiniteUpdateError: a saved parameter holds NaN or infinity.
    """
    saved_parameters = average_saved_parameters(updates)
    certificate = Certificate(
        modules=modules,
        bytes_in=sum(work.sent_bytes(update.adapter) + saved_bytes(update.saved_parameters) for update in updates),
        bytes_out=shared.nbytes + work.continued_bytes(continued) + saved_bytes(saved_parameters),
    )
    return Broadcast(shared, certificate, continued, saved_parameters)


def certified_inputs(broadcast: Broadcast, updates: Sequence[ClientUpdate]) -> Broadcast:
    """A broadcast whose certificate counts these updates as what went in, and no update of the server's own.

    Args:
        broadcast: made of these and of one that the server added, which stands for the model as it was.
        updates: those of the clients.
    """
    modules = {
        name: replace(module, input_rank=_input_rank(updates, name), absent_from=_absent_from(updates, name))
        for name, module in broadcast.certificate.modules.items()
    }
    return replace(broadcast, certificate=replace(broadcast.certificate, modules=modules))


def _input_rank(updates: Sequence[ClientUpdate], module: str) -> int:
    return sum(update.adapter.specs[module].rank for update in updates if module in update.adapter.specs)


def _absent_from(updates: Sequence[ClientUpdate], module: str) -> tuple[str, ...]:
    return tuple(update.client_id for update in updates if module not in update.adapter.specs)
