"""The trackers of one run: each is told of every round once, and none can stop the run."""

import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType

from florist.federation.history import RunDirectory
from florist.federation.records import RoundRecord
from florist.tracking.bookmark import Bookmark, read_bookmarks, write_bookmarks
from florist.tracking.series import Totals, values_before, values_of, values_of_test
from florist.tracking.tracker import TrackedRun, Tracker
from florist.tracking.trackers import TRACKERS

_LOG = logging.getLogger("florist.tracking")


@dataclass(slots=True)
class _Follower:
    """One tracker, and what it has still to be told."""

    name: str
    bookmark: Bookmark
    tracker: Tracker | None = None
    waiting: deque[tuple[int, Mapping[str, float]]] = field(default_factory=deque[tuple[int, Mapping[str, float]]])
    failing: bool = False


class Tracking:
    """Tells trackers of the rounds of a run; a context in which the run is played.

    What was told is written down in the directory of the run (`bookmark`), and every round that a tracker lacks is told
    first: those of a process that was killed, and those of a time in which the tracker was away. A tracker that fails
    is warned of once, and tried again after the next round.

    Args:
        about: the run, and how trackers are to call it.
        names: of `TRACKERS`.
        clients: whether trackers are told the loss of every client.
        warn: is given one line for a tracker that fails; by default the logger ``florist.tracking``.
    """

    def __init__(
        self,
        about: TrackedRun,
        names: Collection[str],
        *,
        clients: bool = True,
        warn: Callable[[str], None] = _LOG.warning,
    ) -> None:
        self._about = about
        self._names = names
        self._clients = clients
        self._warn = warn
        self._followers: list[_Follower] | None = None
        self._totals = Totals()
        self._last = 0

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._names and (self._about.path / "run.json").exists():
            self.begin()
            if kind is None:
                self._summarise()
        for follower in self._followers or ():
            if follower.tracker is not None:
                self._attempt(follower, lambda tracker: tracker.close(finished=kind is None))

    def begin(self) -> None:
        """Tell what is in the directory of the run already, which must be there; once.

        Raises:
            DamagedRunError: the records of the run cannot be read.
        """
        if self._followers is not None:
            return
        self._followers = []
        if not self._names:
            return
        try:
            bookmarks = read_bookmarks(self._about.path)
        except (OSError, ValueError) as problem:
            self._warn(f"the run is not tracked: {_reason(problem)}")
            return
        self._followers = [_Follower(name, bookmarks.get(name, Bookmark())) for name in self._names]
        run = RunDirectory.open(self._about.path)
        self._enqueue(0, values_before(run.facts.initial))
        for record in run.records():
            self._add(record)
        self._tell()

    def closed(self, record: RoundRecord) -> None:
        """Tell of a round, which was saved."""
        self.begin()
        if record.round > self._last:
            self._add(record)
            self._tell()

    def _add(self, record: RoundRecord) -> None:
        self._last = record.round
        self._totals = self._totals.followed_by(record)
        self._enqueue(record.round, values_of(record, self._totals, clients=self._clients))

    def _enqueue(self, step: int, values: Mapping[str, float]) -> None:
        for follower in self._followers or ():
            if step > follower.bookmark.step:
                follower.waiting.append((step, values))

    def _tell(self) -> None:
        for follower in self._followers or ():
            if follower.waiting:
                self._attempt(follower, lambda tracker, follower=follower: _tell_waiting(tracker, follower))

    def _summarise(self) -> None:
        self._tell()  # what is waiting for a tracker that was away gets its last chance
        tested = RunDirectory.open(self._about.path).tested
        values = values_of_test(tested) if tested is not None else {}
        for follower in self._followers or ():
            if values and not follower.waiting and dict(follower.bookmark.summary) != values:

                def summarise(tracker: Tracker, follower: _Follower = follower) -> None:
                    tracker.summarise(self._last, values)
                    follower.bookmark = replace(follower.bookmark, summary=values)

                self._attempt(follower, summarise)

    def _attempt(self, follower: _Follower, action: Callable[[Tracker], None]) -> None:
        """Do something with a tracker, which is opened first where it is not; whatever it raises becomes one line."""
        try:
            try:
                action(self._opened(follower))
            finally:
                self._save()
        except Exception as problem:  # noqa: BLE001  # no tracker, whatever it raises, may stop a run
            if not follower.failing:
                self._warn(
                    f"{TRACKERS[follower.name].title} failed: {_reason(problem)}; the run goes on, and what is "
                    "missing there is sent when it works again"
                )
            follower.failing = True
            with suppress(Exception):
                if follower.tracker is not None:
                    follower.tracker.close(finished=False)
            follower.tracker = None  # a writer whose disk was full stays broken
        else:
            follower.failing = False

    def _opened(self, follower: _Follower) -> Tracker:
        if follower.tracker is None:
            about = replace(self._about, next_step=follower.bookmark.step + 1)
            follower.tracker = tracker = TRACKERS[follower.name].open(about, follower.bookmark.place)
            # It may have more than the bookmark says, where a process was killed between the two.
            last = tracker.last_step()
            step = max(follower.bookmark.step, last if last is not None else -1)
            follower.bookmark = replace(follower.bookmark, place=tracker.place, step=step)
            while follower.waiting and follower.waiting[0][0] <= step:
                follower.waiting.popleft()
        return follower.tracker

    def _save(self) -> None:
        # Trackers that are no longer configured keep their bookmarks: they may come back.
        bookmarks = read_bookmarks(self._about.path)
        now = bookmarks | {each.name: each.bookmark for each in self._followers or () if each.bookmark.place}
        if now != bookmarks:
            write_bookmarks(self._about.path, now)


def _tell_waiting(tracker: Tracker, follower: _Follower) -> None:
    while follower.waiting:
        step, values = follower.waiting[0]
        tracker.log(step, values)
        follower.waiting.popleft()
        follower.bookmark = replace(follower.bookmark, step=step)


def _reason(problem: BaseException) -> str:
    text = " ".join(str(problem).split()) or type(problem).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."
