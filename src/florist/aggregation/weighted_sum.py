"""The weighted sum of many adapters, one module at a time, in factor space."""

from collections.abc import Sequence

from florist.aggregation.updates import weights
from florist.errors import NonFiniteUpdateError
from florist.factors import AdapterState, LoraFactor, stack
from florist.linalg import ThinSvd, qr_svd
from florist.ranks import Spectrum
from florist.rounds import ClientUpdate


def decompose(updates: Sequence[ClientUpdate], module: str) -> ThinSvd:
    """Thin SVD of ``sum_k w_k B_k A_k`` of one module; a client without the module adds nothing.

    Raises:
        NonFiniteUpdateError: a factor holds NaN or infinity.
    """
    shares: list[LoraFactor] = []
    for weight, update in zip(weights(updates), updates, strict=True):
        if module not in update.adapter:
            continue
        factor = update.adapter[module]
        if not (factor.B.isfinite().all() and factor.A.isfinite().all()):
            raise NonFiniteUpdateError(
                f"{update.client_id!r}: expected finite factors, {module} holds NaN or inf; leave the client out"
            )
        shares.append(factor.scaled(weight))
    return qr_svd(stack(shares))


def spectrum(svd: ThinSvd) -> Spectrum:
    """What a rank rule sees of a decomposition."""
    return Spectrum(svd.S.double(), svd.resolution, (svd.U.shape[0], svd.Vh.shape[1]), svd.tail_energy)


def lossless_sum(adapters: Sequence[AdapterState]) -> AdapterState:
    """The sum of adapters, each module at its numerical rank: nothing is lost but rounding.

    Modules are stacked and decomposed, so that the result does not grow with the number of adapters beyond what
    their sum holds. No adapter gives an empty one.
    """
    names = sorted(set().union(*adapters)) if adapters else []
    total: dict[str, LoraFactor] = {}
    for name in names:
        svd = qr_svd(stack([adapter[name] for adapter in adapters if name in adapter]))
        total[name] = svd.factor(spectrum(svd).numerical_rank)
    return AdapterState.of(total)
