"""Which number of a masked update is where: clients of unlike ranks send one vector, a smaller rank its first part."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float64, UInt64
from torch import Tensor

from florist.errors import InvalidUpdateError
from florist.privacy.fixed_point import FixedPoint
from florist.rounds import SavedParameters


def padded_ranks(ranks: Mapping[str, int], smallest_group: int) -> dict[str, int]:
    """The rank that each client sends, so that each column of B is sent by a group of clients and not by few.

    The clients of the largest ranks, as many as the smallest group, send zeros up to the largest rank of all. The
    others send what they have: fewer bytes than padding all of them to one rank.

    Args:
        ranks: the rank that each client trains, by id.
        smallest_group: how many clients send each column at least.

    >>> padded_ranks({"a": 64, "b": 32, "c": 16, "d": 4}, smallest_group=2)
    {'a': 64, 'b': 64, 'c': 16, 'd': 4}
    """
    largest = max(ranks.values(), default=0)
    by_rank = sorted(ranks, key=lambda client_id: (-ranks[client_id], client_id))
    return {**ranks, **dict.fromkeys(by_rank[:smallest_group], largest)}


@dataclass(frozen=True, slots=True)
class MaskedSum:
    """What the server reads of a masked round.

    Attributes:
        B: by module, the sum of the clients' weighted B, of the largest rank among them.
        saved_parameters: the sum of their weighted changes of the parameters that travel whole.
        weight: the sum of their weights.
        terms: how many clients are in the sum.
    """

    B: Mapping[str, Tensor]
    saved_parameters: SavedParameters
    weight: int
    terms: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The order of the numbers of an update in the words of a masked sum.

    First comes the weight, then the parameters that travel whole, then the columns of B of all modules, a block for
    each rank that a client sends: the words of a smaller rank are the first of those of a larger one.

    Args:
        numbers: how a number becomes bits.
        out_features: the rows of B, by module.
        saved_shapes: the shapes of the parameters that travel whole, by name.
        ranks: the ranks that clients send, padded.
        bounds: the largest size of a number, by module and by name of a saved parameter; a larger one is cut to it.
        largest_weight: the largest weight of a client; numbers are multiplied by the weight over this.
    """

    numbers: FixedPoint
    out_features: Mapping[str, int]
    saved_shapes: Mapping[str, tuple[int, ...]]
    ranks: frozenset[int]
    bounds: Mapping[str, float]
    largest_weight: int

    def words(self, rank: int) -> int:
        """How many words a client of a rank sends."""
        rows = sum(self.out_features.values())
        blocks = sum(self.numbers.words(rows * (stop - start)) for start, stop in self._blocks(rank))
        return 1 + self.numbers.words(self._saved_numbers) + blocks

    def encoded(
        self, B: Mapping[str, Tensor], saved_parameters: SavedParameters, weight: int, rank: int
    ) -> UInt64[np.ndarray, " words"]:
        """The words of one update, before they are masked.

        Args:
            B: the client's B by module, in float; a module or a column that it lacks counts as zero.
            saved_parameters: its changes of the parameters that travel whole.
            weight: its weight, a whole number from 0 to `largest_weight`.
            rank: the rank that it sends.

        Raises:
            InvalidUpdateError: the weight is larger, or a shape is not as agreed.
            NonFiniteUpdateError: a number is not finite.
        """
        if not 0 <= weight <= self.largest_weight:
            raise InvalidUpdateError(
                f"expected a weight from 0 to {self.largest_weight}, which the round has agreed on, got {weight}; "
                "raise privacy.max_examples at all sites, or leave the client out"
            )
        share = weight / self.largest_weight
        parts = [np.array([weight], dtype=np.uint64), self.numbers.encoded(share * self._saved(saved_parameters))]
        for start, stop in self._blocks(rank):
            columns = [self._columns(B, name, start, stop) for name in sorted(self.out_features)]
            parts.append(self.numbers.encoded(share * np.concatenate(columns)))
        return np.concatenate(parts)

    def decoded(self, words: UInt64[np.ndarray, " words"], sent: Mapping[str, int]) -> MaskedSum:
        """The sum of updates, from the sum of their words.

        Args:
            words: the sum.
            sent: the rank that each client in it sent.
        """
        found: dict[str, list[Tensor]] = {name: [] for name in sorted(self.out_features)}
        at = 1 + self.numbers.words(self._saved_numbers)
        flat = self.numbers.decoded(words[1:at], len(sent), self._saved_numbers) * self.largest_weight
        rows = sum(self.out_features.values())
        for start, stop in self._blocks(max(sent.values())):
            count, width = rows * (stop - start), stop - start
            after = at + self.numbers.words(count)
            terms = sum(rank >= stop for rank in sent.values())
            values = self.numbers.decoded(words[at:after], terms, count) * self.largest_weight
            at, first = after, 0
            for name, columns in found.items():
                size = self.out_features[name] * width
                block = values[first : first + size] * self.bounds[name]
                columns.append(torch.from_numpy(block.reshape(self.out_features[name], width)))
                first += size
        return MaskedSum(
            B={name: torch.cat(columns, dim=1) for name, columns in found.items()},
            saved_parameters=self._saved_from(flat),
            weight=int(words[0]),
            terms=len(sent),
        )

    @property
    def _saved_numbers(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.saved_shapes.values())

    def _blocks(self, rank: int) -> list[tuple[int, int]]:
        return [*pairwise([0, *sorted(each for each in self.ranks if each <= rank)])]

    def _columns(self, B: Mapping[str, Tensor], name: str, start: int, stop: int) -> Float64[np.ndarray, " numbers"]:
        block = np.zeros((self.out_features[name], stop - start))
        if name in B:
            if B[name].shape[0] != self.out_features[name]:
                raise InvalidUpdateError(
                    f"{name}: expected {self.out_features[name]} rows of B, got {B[name].shape[0]}; the shapes of a "
                    "round are agreed"
                )
            own = B[name][:, start:stop].double().cpu().numpy()
            block[:, : own.shape[1]] = own
        return (block / self.bounds[name]).reshape(-1)

    def _saved(self, saved_parameters: SavedParameters) -> Float64[np.ndarray, " numbers"]:
        parts = [np.zeros(0)]
        for name, shape in sorted(self.saved_shapes.items()):
            if tuple(saved_parameters[name].shape) != shape:
                raise InvalidUpdateError(
                    f"{name}: expected shape {shape}, got {tuple(saved_parameters[name].shape)}; the shapes of a round "
                    "are agreed"
                )
            parts.append(saved_parameters[name].double().cpu().numpy().reshape(-1) / self.bounds[name])
        return np.concatenate(parts)

    def _saved_from(self, flat: Float64[np.ndarray, " numbers"]) -> SavedParameters:
        found: dict[str, Tensor] = {}
        first = 0
        for name, shape in sorted(self.saved_shapes.items()):
            size = int(np.prod(shape))
            found[name] = torch.from_numpy((flat[first : first + size] * self.bounds[name]).reshape(shape))
            first += size
        return found
