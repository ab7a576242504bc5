"""Adapters and saved parameters as they travel: what a codec makes of their halves, and exact byte counts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from florist.compression.codecs import Codec, codec_named
from florist.errors import InvalidUpdateError, NonFiniteUpdateError
from florist.factors import AdapterState, FactorSpec, LoraFactor
from florist.linalg.parallel import in_order
from florist.rounds import NO_ADAPTER, Trained

_Size = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
_FACTORS = TypeAdapter(dict[str, tuple[_Size, _Size, _Size]])


@dataclass(frozen=True, slots=True, eq=False)
class PackedFactor:
    """One module's factor as it travels.

    Attributes:
        shape: (out_features, in_features) of the weight.
        rank: of the factor.
        B: parts of the columns of B; None where B does not travel.
        A: parts of the rows of A; None where A does not travel.
    """

    shape: tuple[int, int]
    rank: int
    B: Mapping[str, Tensor] | None
    A: Mapping[str, Tensor] | None

    @classmethod
    def of(cls, name: str, factor: LoraFactor, codec: Codec, trained: Trained = Trained.FACTORS) -> "PackedFactor":
        """Pack the halves of one module that travel.

        Args:
            name: of the module, for errors.
            factor: to be sent.
            codec: how.
            trained: the halves that travel; the other is known on the other side.

        Raises:
            NonFiniteUpdateError: a number does not fit the codec; names the module.
        """
        try:
            return cls(
                shape=factor.spec.shape,
                rank=factor.rank,
                B=codec.pack(factor.B.T) if Trained.B in trained else None,
                A=codec.pack(factor.A) if Trained.A in trained else None,
            )
        except NonFiniteUpdateError as error:
            raise NonFiniteUpdateError(f"{name}: {error}") from error

    def unpacked(self, name: str, codec: Codec, known: AdapterState = NO_ADAPTER) -> LoraFactor:
        """Return the float32 factor that arrives.

        Args:
            name: of the module.
            codec: that packed it.
            known: has the half that did not travel.

        Raises:
            InvalidUpdateError: a half is not what the codec sends, or is neither sent nor known; names the module.
        """
        m, n = self.shape
        try:
            B = None if self.B is None else codec.unpack(self.B, (self.rank, m)).T.contiguous()
            A = None if self.A is None else codec.unpack(self.A, (self.rank, n))
        except InvalidUpdateError as error:
            raise InvalidUpdateError(f"{name}: {error}") from error
        if B is None or A is None:
            if name not in known.specs or known.specs[name].rank != self.rank:
                raise InvalidUpdateError(
                    f"{name}: expected both halves, or a known factor of rank {self.rank} for the other, got one "
                    "half alone; send both"
                )
            B, A = known[name].B.float() if B is None else B, known[name].A.float() if A is None else A
        return LoraFactor(B, A)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; shape and rank travel beside them."""
        return sum(tensor.nbytes for half in (self.B, self.A) if half is not None for tensor in half.values())

    def leading(self, rank: int, codec: Codec) -> "PackedFactor":
        """Return the first `rank` components as they travel."""
        if rank >= self.rank:
            return self
        (m, n), halves = self.shape, (self.B, self.A)
        B, A = (
            None if half is None else codec.leading(half, (self.rank, length), rank)
            for half, length in zip(halves, (m, n), strict=True)
        )
        return PackedFactor(self.shape, rank, B, A)


@dataclass(frozen=True, slots=True, eq=False)
class PackedAdapter:
    """A whole adapter as it travels.

    Attributes:
        codec: that packed it.
        factors: module name -> packed factor.
    """

    codec: Codec
    factors: Mapping[str, PackedFactor]

    @classmethod
    def of(cls, adapter: AdapterState, codec: Codec, trained: Trained = Trained.FACTORS) -> "PackedAdapter":
        """Pack the halves of an adapter that travel.

        Args:
            adapter: to be sent.
            codec: how.
            trained: the halves that travel; the other is known on the other side.

        Raises:
            NonFiniteUpdateError: a number does not fit the codec; names the module.
        """
        return cls(codec, {name: PackedFactor.of(name, factor, codec, trained) for name, factor in adapter.items()})

    def unpacked(self, known: AdapterState | None = None) -> AdapterState:
        """The float32 adapter that arrives.

        Args:
            known: has the halves that did not travel.

        Raises:
            InvalidUpdateError: a half is not what the codec sends, or is neither sent nor known; names the module.
        """
        held = known or NO_ADAPTER

        def unpack(name: str) -> LoraFactor:
            return self.factors[name].unpacked(name, self.codec, held)

        return AdapterState.of(dict(zip(self.factors, in_order(unpack, self.factors), strict=True)))

    def leading(self, rank: int) -> "PackedAdapter":
        """Return the first `rank` components of every module as they travel."""
        return PackedAdapter(self.codec, {name: each.leading(rank, self.codec) for name, each in self.factors.items()})

    def tensors(self) -> Mapping[str, Tensor]:
        """What travels, by ``module.half.part``."""
        return {
            f"{name}.{half}.{part}": tensor
            for name, packed in self.factors.items()
            for half in ("B", "A")
            for part, tensor in (getattr(packed, half) or {}).items()
        }

    def description(self) -> Mapping[str, str]:
        """What `described` needs beside the tensors: the codec, and the shape and rank of every module, as JSON."""
        factors = {name: [*packed.shape, packed.rank] for name, packed in self.factors.items()}
        return {"codec": self.codec.name, "factors": json.dumps(factors)}

    @classmethod
    def described(cls, description: Mapping[str, str], tensors: Mapping[str, Tensor]) -> "PackedAdapter":
        """Put together what `tensors` and `description` took apart.

        The parts are checked when they are unpacked, against the shapes and ranks of the description.

        Raises:
            UnknownCodecError: this version has no codec of that name.
            InvalidUpdateError: the description is none, or tensors are of no module that it names.
        """
        codec = codec_named(description.get("codec", "none"))
        try:
            listed = _FACTORS.validate_json(description.get("factors", ""))
        except ValidationError as error:
            raise InvalidUpdateError(
                "expected the shape and rank of every packed module, got something else; send the whole adapter again"
            ) from error
        halves: dict[str, dict[str, Tensor]] = {f"{name}.{half}": {} for name in listed for half in ("B", "A")}
        for name, tensor in tensors.items():
            owner, _, part = name.rpartition(".")
            if owner not in halves:
                raise InvalidUpdateError(f"expected tensors of the modules {sorted(listed)}, got {name}; send it again")
            halves[owner][part] = tensor
        return cls(
            codec,
            {
                name: PackedFactor((m, n), rank, halves[f"{name}.B"] or None, halves[f"{name}.A"] or None)
                for name, (m, n, rank) in listed.items()
            },
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(factor.nbytes for factor in self.factors.values())


def packed_factor_bytes(codec: Codec, spec: FactorSpec, trained: Trained = Trained.FACTORS) -> int:
    """Bytes of a factor of that shape and rank as it travels, without packing one."""
    B, A = Trained.B in trained, Trained.A in trained
    return B * codec.packed_bytes((spec.rank, spec.out_features)) + A * codec.packed_bytes(
        (spec.rank, spec.in_features)
    )
