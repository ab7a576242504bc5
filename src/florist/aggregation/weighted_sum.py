"""The weighted sum of many adapters, one module at a time, in factor space."""

from collections.abc import Sequence
from functools import partial

from florist.aggregation.updates import client_weights
from florist.errors import NonFiniteUpdateError
from florist.factors import AdapterState, LoraFactor
from florist.linalg import NonFinitePartError, OverflowingSumError, ThinSvd, WeightedFactor, decompose
from florist.linalg.parallel import in_order
from florist.rounds import ClientUpdate


def decompose_module(updates: Sequence[ClientUpdate], module: str, energy: float) -> ThinSvd:
    """The SVD of ``sum_k w_k B_k A_k`` for one module. A client without the module adds nothing.

    Args:
        updates: the accepted updates, of which at least one has the module.
        module: the name of the module.
        energy: the largest fraction of the energy that will be asked for; see `linalg.decompose`.

    Raises:
        NonFiniteUpdateError: a factor holds NaN or infinity, or the sum overflows. The message names the module, and
            the client whose factor it is.
    """
    try:
        return decompose(module_parts(updates, module), energy=energy)
    except NonFinitePartError as error:
        culprit = [update.client_id for update in updates if module in update.adapter.specs][error.index]
        raise NonFiniteUpdateError(
            f"{culprit!r}: expected finite factors, {module} holds NaN or infinity; leave the client out"
        ) from error
    except OverflowingSumError as error:
        raise _overflow(module, error) from error


def module_parts(updates: Sequence[ClientUpdate], module: str) -> list[WeightedFactor]:
    """The parts of ``sum_k w_k B_k A_k`` for one module, in the order of the updates that have it."""
    weighted = zip(client_weights(updates), updates, strict=True)
    return [_share(update.adapter, module, weight) for weight, update in weighted if module in update.adapter.specs]


def decompose_factor(factor: LoraFactor, module: str, energy: float) -> ThinSvd:
    """The SVD of one factor, which may be a sum already.

    Raises:
        NonFiniteUpdateError: the product overflows. The message names the module.
    """
    try:
        return decompose([WeightedFactor(1.0, factor.spec, lambda: factor)], energy=energy)
    except OverflowingSumError as error:
        raise _overflow(module, error) from error


def lossless_sum(adapters: Sequence[AdapterState]) -> AdapterState:
    """The sum of adapters, with each module at its numerical rank, so that nothing is lost but rounding.

    Modules are stacked and decomposed: the result has no more components than the sum needs, however many adapters
    there are. The sum of no adapters is empty.

    Raises:
        NonFiniteUpdateError: a factor holds NaN or infinity, or a sum overflows. The message names the module.
    """
    names = sorted(set().union(*adapters)) if adapters else []

    def add(name: str) -> LoraFactor:
        holders = [number for number, adapter in enumerate(adapters) if name in adapter.specs]
        try:
            svd = decompose([_share(adapters[number], name, 1.0) for number in holders])
        except NonFinitePartError as error:
            raise NonFiniteUpdateError(
                f"expected finite factors to sum, {name} of adapter {holders[error.index] + 1} of {len(adapters)} "
                "holds NaN or infinity; leave that adapter out"
            ) from error
        except OverflowingSumError as error:
            raise _overflow(name, error) from error
        return svd.factor(svd.spectrum.numerical_rank)

    return AdapterState.of(dict(zip(names, in_order(add, names), strict=True)))


def _overflow(module: str, error: OverflowingSumError) -> NonFiniteUpdateError:
    return NonFiniteUpdateError(
        f"{module}: {error}, such as that of an adapter whose lora_alpha or learning rate was far too high"
    )


def _share(adapter: AdapterState, module: str, weight: float) -> WeightedFactor:
    return WeightedFactor(weight, adapter.specs[module], partial(adapter.__getitem__, module))
