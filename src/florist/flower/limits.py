"""How large a message may be, where it is known what it should bring: looked at before any of it is unpacked.

Flower has the whole message in memory by then. What is prevented here is that reading it takes many times as much: a
header of safetensors that lists a million tensors without a number becomes gigabytes of objects.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from flwr.app import ArrayRecord, RecordDict

from florist.errors import InvalidUpdateError
from florist.rounds import SavedParameters

_ENTRY = 200
"""Bytes that the header says of a tensor beside its name."""
_CHARACTER = 12
"""Bytes that a character of a name may take in JSON: two escapes of six."""
_PARTS = 4
"""Tensors of a module at most: codes and scales of both halves."""
_SLACK = 65_536
"""Bytes beside all that is counted: metadata, and the padding of the header."""
_WIDEST = 8
"""Bytes of a number at most."""


class ContradictionError(InvalidUpdateError):
    """A reply contradicts what its client introduced itself with; the node is to be asked anew who it is."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the arrays of a message may be.

    Attributes:
        header_bytes: the largest header of one array, which lists its tensors.
        nbytes: all arrays together; None where nobody knows.
    """

    header_bytes: int
    nbytes: int | None = None

    @classmethod
    def of_names(cls, modules: Collection[str], parameters: Collection[str] = ()) -> "Limits":
        """What a message may be that brings tensors of these modules and parameters, however large they are."""
        names = _PARTS * sum(map(_listed, modules)) + sum(map(_listed, parameters))
        # What a codec packed has a description of every module in its metadata, as JSON in JSON.
        return cls(_SLACK + names + 2 * sum(map(_listed, modules)))

    @classmethod
    def of_reply(cls, shapes: Mapping[str, tuple[int, int]], rank: int, saved_parameters: SavedParameters) -> "Limits":
        """What a reply may be that brings factors of these shapes up to a rank, and values of saved parameters."""
        named = cls.of_names(shapes, saved_parameters)
        numbers = sum(rank * (m + n + 1) for m, n in shapes.values())
        numbers += sum(tensor.numel() for tensor in saved_parameters.values())
        return cls(named.header_bytes, _WIDEST * numbers + 3 * named.header_bytes)

    @classmethod
    def of_bytes(cls, nbytes: int) -> "Limits":
        """What a message may be that brings one tensor of so many bytes."""
        return cls(_SLACK, nbytes + _SLACK)

    def require(self, content: RecordDict) -> None:
        """Look at the sizes of all arrays.

        Raises:
            ContradictionError: a header or all of it is larger than it can be.
        """
        total = 0
        for record in content.array_records.values():
            total += self._nbytes(record)
        if self.nbytes is not None and total > self.nbytes:
            raise ContradictionError(
                f"expected at most {self.nbytes} bytes of tensors, by what was introduced, got {total}; introduce the "
                "client with its present rank and modules"
            )

    def _nbytes(self, record: ArrayRecord) -> int:
        total = 0
        for array in record.values():
            length = int.from_bytes(array.data[:8], "little")
            # A header that claims to be longer than what came is refused by safetensors, without a look at it.
            if self.header_bytes < length <= len(array.data):
                raise ContradictionError(
                    f"expected a list of tensors of at most {self.header_bytes} bytes, by what was introduced, got one "
                    f"of {length}; send the tensors of the modules that are trained, and no others"
                )
            total += len(array.data)
        return total


def _listed(name: str) -> int:
    return _ENTRY + _CHARACTER * len(name)
