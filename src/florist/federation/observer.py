"""Who is told what a simulation does while it does it."""

from typing import Protocol, runtime_checkable

from florist.federation.records import RoundRecord


@runtime_checkable
class Observer(Protocol):
    """Is told what a simulation does, to show its progress; the command line draws bars from it."""

    def evaluating(self, round_number: int) -> None:
        """The global adapter is being evaluated; round 0 is the base model."""
        ...

    def training(self, round_number: int, client_id: str, done: int, total: int) -> None:
        """A client took a step."""
        ...

    def closed(self, record: RoundRecord) -> None:
        """A round was saved."""
        ...
