"""Codecs: how rows of numbers travel, what that costs in bytes, and what arrives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from florist.compression.packing import pack_codes, packed_length, unpack_codes
from florist.errors import InvalidUpdateError, NonFiniteUpdateError, UnknownCodecError

LARGEST_SCALE = 1e18
"""A scale above this is absurd: the squares of what it decodes to would overflow float32."""


@runtime_checkable
class Codec(Protocol):
    """Turns the rows of a matrix into tensors that travel, and back. It holds settings, never state."""

    @property
    def name(self) -> str:
        """The name by which both sides know it, as `CODECS` lists it."""
        ...

    @property
    def itemsize(self) -> float:
        """The bytes of one number."""
        ...

    @property
    def row_overhead(self) -> int:
        """The bytes of a row beside its numbers."""
        ...

    @property
    def largest(self) -> float:
        """The largest number that it can send."""
        ...

    def pack(self, rows: Float[Tensor, "count length"]) -> Mapping[str, Tensor]:
        """Return what is sent of the rows, by the names of its parts.

        Raises:
            NonFiniteUpdateError: a number is NaN, infinite, or does not fit the codec.
        """
        ...

    def unpack(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Float[Tensor, "count length"]:
        """Return the float32 rows that arrive.

        Raises:
            InvalidUpdateError: the parts are not what this codec sends for a matrix of that shape.
        """
        ...

    def leading(self, parts: Mapping[str, Tensor], shape: tuple[int, int], count: int) -> Mapping[str, Tensor]:
        """Return what is sent of the first `count` rows, from the parts of a matrix of that shape."""
        ...

    def packed_bytes(self, shape: tuple[int, int]) -> int:
        """Return the bytes of all parts of a matrix of that shape, without packing one."""
        ...


@dataclass(frozen=True, slots=True)
class FloatCodec:
    """Each number travels in a floating-point type.

    Args:
        dtype: ``torch.float32``, ``torch.float16`` or ``torch.bfloat16``.
    """

    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        """The name of the dtype."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def itemsize(self) -> float:
        """The bytes of one number."""
        return self.dtype.itemsize

    @property
    def row_overhead(self) -> int:
        """A row has nothing beside its numbers."""
        return 0

    @property
    def largest(self) -> float:
        """The largest number of the dtype."""
        return torch.finfo(self.dtype).max

    def pack(self, rows: Float[Tensor, "count length"]) -> Mapping[str, Tensor]:
        """Return the rows in `dtype`.

        Raises:
            NonFiniteUpdateError: a number is NaN, infinite, or beyond the range of `dtype`.
        """
        narrow = rows.to(self.dtype).contiguous()
        if not narrow.isfinite().all():
            raise NonFiniteUpdateError(
                f"expected finite numbers within the range of {self.dtype}, which ends at "
                f"{torch.finfo(self.dtype).max:.1e}, got others; send a wider type, or leave the factor out"
            )
        return {"values": narrow}

    def unpack(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Float[Tensor, "count length"]:
        """Return the float32 rows that arrive.

        Raises:
            InvalidUpdateError: the values are missing, of another shape or dtype, or not finite.
        """
        _require_parts(parts, {"values": (shape, self.dtype)})
        values = parts["values"]
        if not values.isfinite().all():
            raise InvalidUpdateError("expected finite values, got NaN or infinity; send them again")
        return values.float()

    def leading(self, parts: Mapping[str, Tensor], shape: tuple[int, int], count: int) -> Mapping[str, Tensor]:  # noqa: ARG002  # the values know it
        """Return the first `count` rows."""
        return {"values": parts["values"][:count].contiguous()}

    def packed_bytes(self, shape: tuple[int, int]) -> int:
        """Return the bytes of a matrix of that shape."""
        return shape[0] * shape[1] * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class IntegerCodec:
    """Each number travels as a whole number of a few bits, with one scale for each row.

    A row of largest magnitude c is sent as ``round(x / s)`` with ``s = c / q`` and ``q = 2^(bits - 1) - 1``. The codes
    are symmetric, so that zero stays zero. Scales are bfloat16 and rounded up, so that no code exceeds q. Rows of
    factors are columns of B and rows of A: where the singular values are split evenly, both halves of a component are
    equally large and lose equally much.

    Args:
        bits: from 2 to 8.
    """

    bits: int

    @property
    def name(self) -> str:
        """The name says how many bits a number has."""
        return f"int{self.bits}"

    @property
    def itemsize(self) -> float:
        """The bytes of one number."""
        return self.bits / 8

    @property
    def row_overhead(self) -> int:
        """The bytes of the scale."""
        return torch.bfloat16.itemsize

    @property
    def largest(self) -> float:
        """The largest code times the largest scale."""
        return LARGEST_SCALE * self.largest_code

    @property
    def largest_code(self) -> int:
        """Return q."""
        return 2 ** (self.bits - 1) - 1

    def pack(self, rows: Float[Tensor, "count length"]) -> Mapping[str, Tensor]:
        """Return the codes, packed, and the scales.

        Raises:
            NonFiniteUpdateError: a number is NaN, infinite, or too large to be scaled.
        """
        scales = self._scales(rows)
        divisors = scales.to(rows.dtype).clamp(min=torch.finfo(torch.bfloat16).tiny)
        codes = (rows / divisors[:, None]).round_().add_(self.largest_code + 1).to(torch.uint8)
        return {"codes": pack_codes(codes.reshape(-1), self.bits), "scales": scales}

    def unpack(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Float[Tensor, "count length"]:
        """Return the float32 rows that arrive.

        Raises:
            InvalidUpdateError: a part is missing, strange, or of another length or dtype; a scale is negative, NaN,
                absurd, or zero for a row that is not; a code is none.
        """
        count, length = shape
        wanted = {
            "codes": ((packed_length(count * length, self.bits),), torch.uint8),
            "scales": ((count,), torch.bfloat16),
        }
        _require_parts(parts, wanted)
        scales = parts["scales"].float()
        sound = (scales >= 0) & (scales <= LARGEST_SCALE)
        if not bool(sound.all()):
            raise InvalidUpdateError(
                f"expected scales from 0 to {LARGEST_SCALE:.0e}, got {float(scales[~sound][0]):.1e}; send them again"
            )
        offset = unpack_codes(parts["codes"], self.bits, count * length).view(count, length)
        if offset.numel() and int(offset.amin()) == 0:
            raise InvalidUpdateError(
                f"expected codes from {-self.largest_code} to {self.largest_code}, got {-self.largest_code - 1}; send "
                "them again"
            )
        codes = offset.float().sub_(self.largest_code + 1)
        unscaled = scales == 0
        if bool(unscaled.any()) and bool(codes[unscaled].any()):
            raise InvalidUpdateError("expected codes of 0 where the scale is 0, got others; send them again")
        return codes.mul_(scales[:, None])

    def leading(self, parts: Mapping[str, Tensor], shape: tuple[int, int], count: int) -> Mapping[str, Tensor]:
        """Return the codes and scales of the first `count` rows, with zeros after the last code."""
        bits = min(count, shape[0]) * shape[1] * self.bits
        codes = parts["codes"][: packed_length(bits, 1)].clone()
        if bits % 8:
            codes[-1] &= 2 ** (bits % 8) - 1
        return {"codes": codes, "scales": parts["scales"][:count].clone()}

    def packed_bytes(self, shape: tuple[int, int]) -> int:
        """Return the bytes of codes and scales."""
        return packed_length(shape[0] * shape[1], self.bits) + shape[0] * torch.bfloat16.itemsize

    def _scales(self, rows: Float[Tensor, "count length"]) -> Tensor:
        exact = rows.abs().amax(dim=1) / self.largest_code
        if not bool((exact <= LARGEST_SCALE).all()):  # false for NaN as well
            raise NonFiniteUpdateError(
                f"expected finite numbers of at most {LARGEST_SCALE * self.largest_code:.1e}, got others; leave the "
                "factor out"
            )
        near = exact.to(torch.bfloat16)
        above = torch.nextafter(near, torch.full_like(near, torch.inf))
        return torch.where(near.to(exact.dtype) < exact, above, near)


CODECS: Mapping[str, Codec] = {
    codec.name: codec
    for codec in (
        FloatCodec(torch.float32),
        FloatCodec(torch.float16),
        FloatCodec(torch.bfloat16),
        *(IntegerCodec(bits) for bits in (8, 4, 3, 2)),
    )
}
"""The codecs that both sides may agree on, by name."""


def codec_named(name: str) -> Codec:
    """Return the codec of a name.

    Raises:
        UnknownCodecError: there is none.
    """
    codec = CODECS.get(name)
    if codec is None:
        raise UnknownCodecError(
            f"expected one of the codecs {', '.join(CODECS)}, got {name!r}; use one of them on both sides, or install "
            "a version of florist that has it"
        )
    return codec


def _require_parts(parts: Mapping[str, Tensor], wanted: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
    if parts.keys() != wanted.keys():
        raise InvalidUpdateError(f"expected the parts {sorted(wanted)}, got {sorted(parts)}; both sides need one codec")
    for name, (shape, dtype) in wanted.items():
        if parts[name].dtype != dtype or tuple(parts[name].shape) != shape:
            raise InvalidUpdateError(
                f"expected {name} of shape {shape} in {dtype}, got {tuple(parts[name].shape)} in {parts[name].dtype}; "
                "both sides need one codec"
            )
