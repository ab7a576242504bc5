"""The certificate of an aggregation, computed from the factors, and the broadcast that carries it."""

from collections.abc import Mapping, Sequence

from florist.aggregation.updates import average_saved_parameters
from florist.factors import AdapterState, LoraFactor
from florist.linalg.spectrum import Spectrum
from florist.rounds import NO_ADAPTER, Broadcast, Certificate, ClientUpdate, ClientWork, ModuleCertificate, saved_bytes


def certify_cut(updates: Sequence[ClientUpdate], module: str, spectrum: Spectrum, rank: int) -> ModuleCertificate:
    """Certify a module whose exact sum is cut to a rank.

    The error is the square root of the discarded energy (Eckart and Young, 1936).
    """
    return ModuleCertificate(
        shape=spectrum.shape,
        rank=rank,
        input_rank=_input_rank(updates, module),
        energy_kept=spectrum.kept_energy(rank),
        norm=spectrum.total_energy**0.5,
        error=spectrum.discarded_energy(rank) ** 0.5,
        absent_from=_absent_from(updates, module),
    )


def certify_error(
    updates: Sequence[ClientUpdate], module: str, rank: int, *, norm: float, error: float
) -> ModuleCertificate:
    """Certify a module of a method that does not cut the exact sum.

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
    """``||B @ A||_F``, without forming the product.

    A norm below 1e-8 of the norms of the components may be nothing but rounding.
    """
    return max(0.0, factor.energy()) ** 0.5


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


def _input_rank(updates: Sequence[ClientUpdate], module: str) -> int:
    return sum(update.adapter.specs[module].rank for update in updates if module in update.adapter.specs)


def _absent_from(updates: Sequence[ClientUpdate], module: str) -> tuple[str, ...]:
    return tuple(update.client_id for update in updates if module not in update.adapter.specs)
