import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from florist.compression.codecs import Codec, FloatCodec, IntegerCodec
from florist.compression.packing import pack_codes, packed_length, unpack_codes
from florist.errors import InvalidUpdateError, NonFiniteUpdateError

CODECS: dict[str, Codec] = {
    "float32": FloatCodec(torch.float32),
    "float16": FloatCodec(torch.float16),
    "bfloat16": FloatCodec(torch.bfloat16),
    **{f"int{bits}": IntegerCodec(bits) for bits in range(2, 9)},
}


def rows(count: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(count, 13, generator=torch.Generator().manual_seed(seed))


@given(bits=st.integers(1, 8), count=st.integers(0, 50), seed=st.integers(0, 99))
def test_codes_come_back(bits: int, count: int, seed: int) -> None:
    codes = torch.randint(2**bits, (count,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = pack_codes(codes, bits)
    assert packed.numel() == packed_length(count, bits)
    assert torch.equal(unpack_codes(packed, bits, count), codes)


@pytest.mark.parametrize("count", [0, 1, 7])
@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_bytes_are_known_beforehand(codec: Codec, count: int) -> None:
    parts = codec.pack(rows(count))
    assert sum(part.nbytes for part in parts.values()) == codec.packed_bytes((count, 13))
    assert codec.unpack(parts, (count, 13)).shape == (count, 13)


@pytest.mark.parametrize(
    ("name", "scale", "error"),
    [
        *(("float32", scale, 1e-7) for scale in (1e-6, 1.0, 1e3)),
        *(("bfloat16", scale, 8e-3) for scale in (1e-6, 1.0, 1e3)),
        *(("float16", scale, 1e-3) for scale in (1e-3, 1.0, 1e3)),
        *(("int8", scale, 1e-2) for scale in (1e-6, 1.0, 1e3)),
        *(("int4", scale, 0.2) for scale in (1e-6, 1.0, 1e3)),
    ],
)
def test_what_arrives_is_near(name: str, scale: float, error: float) -> None:
    sent = rows(5, scale=scale)
    arrived = CODECS[name].unpack(CODECS[name].pack(sent), (5, 13))
    assert arrived.dtype == torch.float32
    assert float((arrived - sent).norm()) <= error * float(sent.norm())


@pytest.mark.parametrize("bits", range(2, 9))
def test_no_number_is_off_by_more_than_half_a_step(bits: int) -> None:
    codec, sent = IntegerCodec(bits), rows(6)
    arrived = codec.unpack(codec.pack(sent), (6, 13))
    steps = sent.abs().amax(dim=1, keepdim=True) / codec.largest_code * (1 + 2**-7)
    assert ((arrived - sent).abs() <= steps / 2).all()


def test_rows_of_zeros_stay_zero() -> None:
    sent = torch.cat([rows(3), torch.zeros(2, 13)])
    arrived = IntegerCodec(4).unpack(IntegerCodec(4).pack(sent), (5, 13))
    assert torch.equal(arrived[3:], torch.zeros(2, 13))
    assert bool(arrived[:3].any())


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("name", ["float16", "int8", "int4"])
def test_what_does_not_fit_is_refused(name: str, value: float) -> None:
    sent = rows(2)
    sent[1, 3] = value
    with pytest.raises(NonFiniteUpdateError, match="expected finite numbers"):
        CODECS[name].pack(sent)


@pytest.mark.parametrize(
    ("changed", "telling"),
    [
        ({"scales": None}, r"expected the parts \['codes', 'scales'\], got \['codes'\]"),
        ({"values": torch.zeros(3)}, "expected the parts"),
        ({"codes": torch.zeros(38, dtype=torch.uint8)}, r"expected codes of shape \(39,\)"),
        ({"codes": torch.zeros(39, dtype=torch.int8)}, r"expected codes of shape .* in torch\.uint8"),
        ({"scales": torch.ones(4, dtype=torch.bfloat16)}, r"expected scales of shape \(3,\)"),
        ({"scales": torch.ones(3)}, r"expected scales of shape .* in torch\.bfloat16"),
        ({"scales": torch.tensor([1, math.nan, 1]).bfloat16()}, "expected scales from 0 to .*, got nan"),
        ({"scales": torch.tensor([1, -1, 1]).bfloat16()}, "expected scales from 0 to .*, got -1"),
        ({"scales": torch.tensor([1, math.inf, 1]).bfloat16()}, "expected scales from 0 to .*, got inf"),
        ({"scales": torch.tensor([1, 1e30, 1]).bfloat16()}, r"expected scales from 0 to .*, got 1\.0e\+30"),
        ({"scales": torch.tensor([1, 0, 1]).bfloat16()}, "expected codes of 0 where the scale is 0"),
        ({"codes": torch.zeros(39, dtype=torch.uint8)}, "expected codes from -127 to 127, got -128"),
    ],
)
def test_what_the_codec_does_not_send_is_refused(changed: dict[str, Tensor | None], telling: str) -> None:
    codec = IntegerCodec(8)
    parts = {name: part for name, part in {**codec.pack(rows(3)), **changed}.items() if part is not None}
    with pytest.raises(InvalidUpdateError, match=telling):
        codec.unpack(parts, (3, 13))


def test_values_of_another_type_or_not_finite_are_refused() -> None:
    half = FloatCodec(torch.float16)
    with pytest.raises(InvalidUpdateError, match=r"expected values of shape .* torch\.float16, got .* torch\.bfloat16"):
        half.unpack(FloatCodec(torch.bfloat16).pack(rows(2)), (2, 13))
    with pytest.raises(InvalidUpdateError, match="expected finite values"):
        half.unpack({"values": torch.full((2, 13), math.nan, dtype=torch.float16)}, (2, 13))


@pytest.mark.parametrize(("codec", "nbytes"), [(IntegerCodec(8), 1), (IntegerCodec(3), 0.375), (FloatCodec(), 4)])
def test_the_bytes_of_one_number_are_its_bits_over_eight(codec: Codec, nbytes: float) -> None:
    assert codec.itemsize == nbytes
