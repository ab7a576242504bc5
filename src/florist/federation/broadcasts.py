"""The broadcasts that clients may still lack, and what is computed from them once for all clients."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import cached_property, partial
from types import MappingProxyType
from typing import TypeVar

from florist.aggregation import lossless_sum
from florist.compression.packed import PackedAdapter
from florist.factors import AdapterState
from florist.linalg import ThinSvd, WeightedFactor, decompose
from florist.rounds import NO_ADAPTER

CATCH_UP_ROUNDS = 16
"""For how many rounds broadcasts are kept, so that a client that was away is sent those alone."""

Computed = TypeVar("Computed")


class Broadcasts(Mapping[int, AdapterState]):
    """What rounds added to the global adapter, by round: the last broadcast, and those that a client may still lack.

    A round that failed added nothing and is left out. An instance never changes, so that what is computed from it is
    computed once, however many clients need it.

    Args:
        kept: the adapters, by round.
        forgotten: the last round whose broadcast was let go; 0 where none was.
        packed: the adapters as they were sent, by round, where a codec packed them.
    """

    def __init__(
        self,
        kept: Mapping[int, AdapterState] = MappingProxyType({}),
        forgotten: int = 0,
        packed: Mapping[int, PackedAdapter] = MappingProxyType({}),
    ) -> None:
        self._kept = dict(sorted(kept.items()))
        self._sums: dict[int, AdapterState] = {}
        self._computed: tuple[Hashable, object] = (None, None)
        self.forgotten = forgotten
        self.packed = packed

    def __getitem__(self, round_number: int) -> AdapterState:
        return self._kept[round_number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def latest(self) -> int:
        """The last round that added something; 0 before any did."""
        return max(self._kept, default=0)

    @property
    def last(self) -> AdapterState:
        """The broadcast of that round; empty before any."""
        return self._kept.get(self.latest, NO_ADAPTER)

    @cached_property
    def last_decomposed(self) -> Mapping[str, ThinSvd]:
        """The singular value decomposition of the last broadcast, by module.

        Cost: one decomposition a module at the first access.
        """
        last = self.last
        return {
            name: decompose([WeightedFactor(1.0, spec, partial(last.__getitem__, name))])
            for name, spec in last.specs.items()
        }

    def once(self, key: Hashable, compute: Callable[[], Computed]) -> Computed:
        """What `compute` makes of these broadcasts, computed again only where another key was asked for since.

        Args:
            key: tells apart what is computed; not None.
            compute: gives the same for the same key.
        """
        if self._computed[0] != key:
            self._computed = (key, compute())
        return self._computed[1]  # pyright: ignore[reportReturnType]  # what the same key gave before

    def missed_since(self, round_number: int) -> list[AdapterState] | None:
        """What came after a round, in order; None where some of it was forgotten."""
        if round_number < self.forgotten:
            return None
        return [adapter for number, adapter in self._kept.items() if number > round_number]

    def packed_since(self, round_number: int) -> tuple[PackedAdapter, ...] | None:
        """What came after a round as it was sent, in order; None where some of it was forgotten or was not packed."""
        missed = [number for number in self._kept if number > round_number]
        if round_number < self.forgotten or not set(missed) <= self.packed.keys():
            return None
        return tuple(self.packed[number] for number in missed)

    def sum_since(self, round_number: int) -> AdapterState:
        """The sum of what came after a round: a single broadcast as it is, several decomposed without loss.

        Raises:
            ValueError: some of it was forgotten.

        Cost: one `lossless_sum` for all clients that hold the same round.
        """
        missed = self.missed_since(round_number)
        if missed is None:
            raise ValueError(
                f"expected a round from {self.forgotten} on, got {round_number}, and later broadcasts were forgotten"
            )
        if len(missed) == 1:
            return missed[0]
        if round_number not in self._sums:
            self._sums[round_number] = lossless_sum(missed)
        return self._sums[round_number]

    def followed_by(
        self, round_number: int, adapter: AdapterState, lacked_since: int, packed: PackedAdapter | None = None
    ) -> "Broadcasts":
        """These broadcasts and the next one, without those that no client may lack any more.

        Args:
            round_number: the round of the next broadcast.
            adapter: what it adds.
            lacked_since: the earliest round that a client holds which is to be caught up. Broadcasts up to it are
                forgotten.
            packed: what it adds, as it is sent; None where it is sent as it is.
        """
        kept = {number: added for number, added in self._kept.items() if number > lacked_since}
        forgotten = max((number for number in self._kept if number <= lacked_since), default=self.forgotten)
        sent = {number: each for number, each in self.packed.items() if number in kept}
        if packed is not None:
            sent[round_number] = packed
        return Broadcasts({**kept, round_number: adapter}, forgotten, sent)
