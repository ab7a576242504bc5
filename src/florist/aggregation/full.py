"""Full fine-tuning: there are no adapters, and the weights of the targeted modules themselves are averaged."""

from collections.abc import Sequence
from dataclasses import dataclass

from florist.aggregation.certifying import certified_broadcast
from florist.aggregation.updates import accepted_updates
from florist.errors import InvalidUpdateError
from florist.rounds import Broadcast, ClientUpdate, ClientWork, Trained


@dataclass(frozen=True, slots=True)
class FullFineTuning:
    """The server sends the weighted mean of the weights of the targeted modules: the reference without adapters.

    The weights travel whole, like saved parameters: m n numbers a module, up and down. The method is exact, and its
    certificate has no modules, since nothing is approximated.

    Source: FedAvg, arXiv:1602.05629, algorithm 1.

    >>> import torch
    >>> from florist import AdapterState, ClientUpdate, FullFineTuning
    >>> def site(name, num_examples, weight):
    ...     return ClientUpdate(name, AdapterState.of({}), num_examples, 1, {"layer.weight": torch.tensor(weight)})
    >>> FullFineTuning()([site("a", 3, [[1.0, 2.0]]), site("b", 1, [[1.0, 6.0]])]).saved_parameters
    {'layer.weight': tensor([[1., 3.]])}
    """

    @property
    def work(self) -> ClientWork:
        """Clients train the weights."""
        return ClientWork(Trained.WEIGHTS)

    def __call__(self, updates: Sequence[ClientUpdate], /) -> Broadcast:
        """Aggregate the updates of one round.

        Raises:
            InvalidUpdateError: an update holds factors, or `updates.accepted_updates` refuses the updates.
            IncompatibleAdaptersError: `updates.accepted_updates` refuses the updates.
            NonFiniteUpdateError: a weight holds NaN or infinity. The message names the client and the parameter.

        Cost: O(K m n) a module.
        """
        accepted = accepted_updates(updates)
        for update in accepted:
            if update.adapter:
                raise InvalidUpdateError(
                    f"{update.client_id!r}: expected whole weights, got factors of {next(iter(update.adapter))}; train "
                    "without adapters, or aggregate with a method that combines them"
                )
        return certified_broadcast(self.work, accepted, {})
