"""Full fine-tuning of the adapted modules: no adapters, the weights themselves are averaged."""

from collections.abc import Sequence
from dataclasses import dataclass

from florist.aggregation.certifying import broadcast
from florist.aggregation.updates import (
    accepted_updates,
)
from florist.errors import InvalidUpdateError
from florist.rounds import Broadcast, ClientUpdate, ClientWork, Trained


@dataclass(frozen=True, slots=True)
class FullFineTuning:
    """The weighted mean of the weights of the adapted modules: what adapters are measured against.

    The weights travel as whole parameters, m n numbers a module and direction. Exact, and without modules in its
    certificate, since nothing is approximated.

    Source: FedAvg, arXiv:1602.05629, algorithm 1.
    """

    @property
    def work(self) -> ClientWork:
        """The weights."""
        return ClientWork(Trained.WEIGHTS)

    def __call__(self, updates: Sequence[ClientUpdate], /) -> Broadcast:
        """Aggregate one round.

        Raises:
            InvalidUpdateError, IncompatibleAdaptersError: as `accepted_updates`; and an update holds factors.
            NonFiniteUpdateError: a weight holds NaN or infinity; names client and parameter.

        Cost: O(K m n) a module.
        """
        accepted = accepted_updates(updates)
        for update in accepted:
            if update.adapter:
                raise InvalidUpdateError(
                    f"{update.client_id!r}: expected whole weights, got factors of {next(iter(update.adapter))}; train "
                    "without adapters, or aggregate with a method that combines them"
                )
        return broadcast(self.work, accepted, {})
