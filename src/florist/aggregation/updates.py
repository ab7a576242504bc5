"""What methods share: they check updates, weigh them, and average what travels whole."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from florist.errors import IncompatibleAdaptersError, InvalidUpdateError, NonFiniteUpdateError
from florist.factors import LoraFactor
from florist.rounds import ClientUpdate, SavedParameters


def accepted_updates(updates: Sequence[ClientUpdate]) -> tuple[ClientUpdate, ...]:
    """The updates of one round, checked, in the order of their client ids.

    The order makes sums independent of the order of arrival.

    Raises:
        InvalidUpdateError: there is no update, two come from one client or from different rounds, or a count of
            examples is not positive.
        IncompatibleAdaptersError: clients disagree on the shape of a module, or on the saved parameters.
    """
    if not updates:
        raise InvalidUpdateError("expected at least one update to aggregate, got none")
    ordered = tuple(sorted(updates, key=lambda update: update.client_id))
    for earlier, later in pairwise(ordered):
        if earlier.client_id == later.client_id:
            raise InvalidUpdateError(f"expected one update a client, got two of {later.client_id!r}; send one of them")
        if earlier.round_number != later.round_number:
            raise InvalidUpdateError(
                f"expected updates of one round, got round {earlier.round_number} of {earlier.client_id!r} and round "
                f"{later.round_number} of {later.client_id!r}; drop the late one"
            )
    for update in ordered:
        if update.num_examples <= 0:
            raise InvalidUpdateError(
                f"expected a positive number of examples, got {update.num_examples} of {update.client_id!r}; "
                "leave the client out of the round"
            )
    _require_equal_shapes(ordered)
    return ordered


def client_weights(updates: Sequence[ClientUpdate]) -> tuple[float, ...]:
    """The weight of each update: its share of all examples. Weights sum to one."""
    total = sum(update.num_examples for update in updates)
    return tuple(update.num_examples / total for update in updates)


def module_names(updates: Sequence[ClientUpdate]) -> list[str]:
    """The names of the modules that any client adapted, sorted."""
    return sorted(set().union(*(update.adapter for update in updates)))


def weighted_factors(updates: Sequence[ClientUpdate], module: str) -> list[tuple[float, LoraFactor]]:
    """The weight and the factor of every client for one module. A client without the module has a factor of rank 0.

    Factors come in one dtype: float64 if any client's is, else float32, to which half precisions are widened.

    Raises:
        NonFiniteUpdateError: a factor holds NaN or infinity. The message names the client and the module.
    """
    specs = [update.adapter.specs[module] for update in updates if module in update.adapter.specs]
    dtype = torch.float64 if any(spec.dtype == torch.float64 for spec in specs) else torch.float32
    m, n = specs[0].shape
    found: list[tuple[float, LoraFactor | None]] = []
    for weight, update in zip(client_weights(updates), updates, strict=True):
        if module in update.adapter.specs:
            factor = update.adapter[module].to(dtype=dtype)
            if not (factor.B.isfinite().all() and factor.A.isfinite().all()):
                raise NonFiniteUpdateError(
                    f"{update.client_id!r}: expected finite factors, {module} holds NaN or infinity; leave the client "
                    "out"
                )
        else:
            factor = None
        found.append((weight, factor))
    device = next(factor.B.device for _, factor in found if factor is not None)
    nothing = LoraFactor(torch.zeros(m, 0, dtype=dtype, device=device), torch.zeros(0, n, dtype=dtype, device=device))
    return [(weight, factor if factor is not None else nothing) for weight, factor in found]


def average_saved_parameters(updates: Sequence[ClientUpdate]) -> SavedParameters:
    """The weighted mean of every saved parameter (FedAvg, arXiv:1602.05629, algorithm 1).

    Sums are taken in at least float32. The means have the dtype of the clients.

    Raises:
        NonFiniteUpdateError: a value is NaN or infinite. The message names the client and the parameter.
    """
    means: dict[str, Tensor] = {}
    for name in sorted(updates[0].saved_parameters):
        for update in updates:
            if not update.saved_parameters[name].isfinite().all():
                raise NonFiniteUpdateError(
                    f"{update.client_id!r}: expected finite values, {name} holds NaN or inf; leave the client out"
                )
        own = updates[0].saved_parameters[name]
        wide = own.double() if own.dtype.itemsize == 8 else own.float()
        total = wide.new_zeros(wide.shape)
        for weight, update in zip(client_weights(updates), updates, strict=True):
            total += weight * update.saved_parameters[name].to(total.dtype)
        means[name] = total.to(own.dtype)
    return means


def _require_equal_shapes(updates: Sequence[ClientUpdate]) -> None:
    _require_agreement(
        (update.client_id, {name: spec.shape for name, spec in update.adapter.specs.items()}) for update in updates
    )
    shapes = [
        (update.client_id, {name: tuple(tensor.shape) for name, tensor in update.saved_parameters.items()})
        for update in updates
    ]
    _require_agreement(shapes)
    first_id, first = shapes[0]
    for client_id, theirs in shapes[1:]:
        if theirs.keys() != first.keys():
            only_one = sorted(theirs.keys() ^ first.keys())
            raise IncompatibleAdaptersError(
                f"expected the same saved parameters of every client, and of {first_id!r} and {client_id!r} only one "
                f"has {only_one}; train the same modules_to_save everywhere"
            )


def _require_agreement(clients: Iterable[tuple[str, Mapping[str, tuple[int, ...]]]]) -> None:
    seen: dict[str, tuple[str, tuple[int, ...]]] = {}
    for client_id, shapes in clients:
        for name, shape in shapes.items():
            first_id, expected = seen.setdefault(name, (client_id, shape))
            if shape != expected:
                raise IncompatibleAdaptersError(
                    f"{name}: expected the shape {expected} that {first_id!r} has, got {shape} of {client_id!r}; "
                    "combine adapters of one base model only"
                )
