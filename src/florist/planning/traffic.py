"""Bytes of uploads, broadcasts and catch-up, as codecs pack them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from florist.compression.codecs import Codec, FloatCodec, codec_named
from florist.compression.packed import packed_factor_bytes
from florist.config.communication import saved_codec
from florist.factors import FactorSpec
from florist.planning.absences import Absences, absences
from florist.planning.architectures import Shape
from florist.planning.sending import ModuleGroup, PlannedMethod, RoundRanks
from florist.rounds import Trained

FLOAT32 = FloatCodec(torch.float32)


@dataclass(frozen=True, slots=True)
class Link:
    """How numbers travel.

    Attributes:
        upload: the codec of uploads.
        download: the codec of broadcasts.
        weight_upload_itemsize: the bytes of one number of weights that are trained themselves, on their way up.
        weight_download_itemsize: the same, on their way down.
        upload_rank: the largest rank that a client uploads of a module, for methods that can cut uploads.
    """

    upload: Codec = FLOAT32
    download: Codec = FLOAT32
    weight_upload_itemsize: int = 4
    weight_download_itemsize: int = 4
    upload_rank: int | None = None

    @classmethod
    def named(cls, upload: str, download: str, weight_itemsize: int = 4, upload_rank: int | None = None) -> "Link":
        """The link of two codecs, as ``[communication]`` names them.

        Args:
            upload: the name of the codec of uploads.
            download: the name of the codec of broadcasts.
            weight_itemsize: the bytes of a weight where no codec makes them fewer.
            upload_rank: see the class.

        Raises:
            UnknownCodecError: there is no codec of that name.
        """

        def of_weights(name: str) -> int:
            codec = saved_codec(name)
            return weight_itemsize if codec is None else codec.dtype.itemsize

        return cls(codec_named(upload), codec_named(download), of_weights(upload), of_weights(download), upload_rank)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one method sends, for given modules.

    Args:
        method: the method.
        groups: the adapted modules.
        ranks: what a round is expected to receive.
        link: how it travels.
        aligned: whether local adapters start along the last broadcast, where the method leaves that open.
    """

    method: PlannedMethod
    groups: Sequence[ModuleGroup]
    ranks: RoundRanks
    link: Link
    aligned: bool = True

    def upload(self, rank: int) -> float:
        """The bytes that a client of a rank uploads in a round."""
        if self.method.whole_weights:
            return self._weights(self.link.weight_upload_itemsize)
        most = self.upload_rank
        if most is None:
            return self._sum(lambda _: rank, self.link.upload, self.method.work.trained)
        # What is cut is decomposed, and has no more directions than the module.
        return self._sum(lambda group: min(rank, most, group.limit), self.link.upload, self.method.work.trained)

    @property
    def upload_rank(self) -> int | None:
        """The rank that uploads are cut to; None where they are not."""
        return self.link.upload_rank if self.method.cuts_uploads else None

    def broadcast(self, rank: float) -> float:
        """The bytes that a client of a rank is sent after a round."""
        if self.method.whole_weights:
            return self._weights(self.link.weight_download_itemsize)
        return self.shared(1, self.link.download) + self.continued(rank)

    def shared(self, rounds: int, codec: Codec = FLOAT32) -> float:
        """The bytes of what so many rounds added, as one sum; what one round added has all of its components."""
        return self._sum(lambda group: self._added_rank(group, rounds), codec, Trained.FACTORS)

    def continued(self, rank: float, *, absent: bool = False) -> float:
        """The bytes of what a client of a rank trains on from.

        Args:
            rank: the rank of the client.
            absent: whether the round was another's, which may have had no client of so large a rank.
        """
        if not self.method.continues:
            return 0.0

        def components(group: ModuleGroup) -> float:
            most = self.method.sending.continued(self.ranks, group) if absent else math.inf
            return min(rank, most, self.method.sending.own_limit(group))

        return self._sum(components, self.link.download, self.method.work.broadcast)

    def catch_up(self, asked_share: float, rounds: int) -> Callable[[int], float]:
        """The expected bytes that a client is sent when it is asked, for the rounds that it missed.

        They are the mean over all rounds of a run. Ranks are expectations, too; see ``docs/plan.md``.

        Args:
            asked_share: the probability that a round asks a client.
            rounds: how many rounds are played.

        Returns:
            A function of the client's rank.
        """
        packed = self.method.shares and self.link.download.name != FLOAT32.name
        away = absences(asked_share, rounds, packed=packed)
        if away.any == 0:
            return lambda _rank: 0.0
        if self.method.whole_weights:
            weights = away.any * self._weights(self.link.weight_download_itemsize)
            return lambda _rank: weights
        added = self._missed_shared(away, packed=packed) if self.method.shares else 0.0
        # Broadcasts that are sent as they were packed, and one alone, show their directions.
        several = sum(share for d, share in away.missed.items() if d > 1 and not packed) + float(away.whole.sum())
        return lambda rank: added + several * self._directions(rank) + away.any * self.continued(rank, absent=True)

    def _missed_shared(self, away: Absences, *, packed: bool) -> float:
        if packed:
            once = self.shared(1, self.link.download)
            missed = sum(share * d * once for d, share in away.missed.items())
        else:
            missed = sum(share * self.shared(d) for d, share in away.missed.items())
        return missed + sum(float(away.whole @ self._whole_bytes(group, len(away.whole))) for group in self.groups)

    def _added_rank(self, group: ModuleGroup, rounds: int) -> float:
        sending = self.method.sending
        return sending.shared(self.ranks, group) if rounds == 1 else sending.summed_rank(self.ranks, group, rounds)

    def _whole_bytes(self, group: ModuleGroup, rounds: int) -> NDArray[np.float64]:
        """The bytes of the global adapter before each round, in float32; none before the first."""
        first, new = self.method.sending.growth(self.ranks, group)
        ranks = np.minimum(first + np.arange(rounds - 1) * new, group.limit)
        return np.concatenate([[0.0], ranks]) * (group.count * sum(group.shape) * FLOAT32.itemsize)

    def _directions(self, rank: int) -> float:
        """The bytes of the rows of A that a start needs and a sum of several broadcasts does not show."""
        if not (self.method.shares and (self.method.work.agreed_rows or (self.aligned and self.method.adds))):
            return 0.0
        return self._sum(
            lambda group: min(rank, self.method.sending.shared(self.ranks, group), group.limit), FLOAT32, Trained.A
        )

    def _weights(self, itemsize: int) -> float:
        return float(sum(group.count * math.prod(group.shape) for group in self.groups) * itemsize)

    def _sum(self, rank_of: Callable[[ModuleGroup], float], codec: Codec, halves: Trained) -> float:
        return sum(group.count * factor_bytes(codec, group.shape, rank_of(group), halves) for group in self.groups)


def factor_bytes(codec: Codec, shape: Shape, rank: float, halves: Trained = Trained.FACTORS) -> float:
    """The bytes of a factor as it travels. Those of a rank that is an expectation lie between its neighbours'."""
    below = math.floor(rank)
    low = _exact_bytes(codec, shape, below, halves)
    if below == rank:
        return float(low)
    return low + (rank - below) * (_exact_bytes(codec, shape, below + 1, halves) - low)


@lru_cache(maxsize=65536)
def _exact_bytes(codec: Codec, shape: Shape, rank: int, halves: Trained) -> int:
    return packed_factor_bytes(codec, FactorSpec(*shape, rank, torch.float32), halves)
