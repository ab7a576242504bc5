"""A simulation that is tracked, and shown as well."""

from florist.federation.observer import Observer
from florist.federation.records import RoundRecord
from florist.tracking.tracking import Tracking


class TrackedObserver:
    """An `Observer` that tells another one everything, and the trackers of every round.

    Args:
        shown: the other one, which is told first.
        tracking: the trackers.
    """

    def __init__(self, shown: Observer, tracking: Tracking) -> None:
        self._shown = shown
        self._tracking = tracking

    def evaluating(self, round_number: int) -> None:
        """Tell the other one."""
        self._shown.evaluating(round_number)

    def training(self, round_number: int, client_id: str, done: int, total: int) -> None:
        """Tell the other one."""
        self._shown.training(round_number, client_id, done, total)

    def closed(self, record: RoundRecord) -> None:
        """Tell both."""
        self._shown.closed(record)
        self._tracking.closed(record)
