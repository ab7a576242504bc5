import json
import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from florist.compression.codecs import CODECS as AGREED
from florist.compression.codecs import Codec, IntegerCodec
from florist.compression.packed import PackedAdapter, PackedFactor, packed_factor_bytes
from florist.errors import FloristError, InvalidUpdateError, NonFiniteUpdateError, UnknownCodecError
from florist.factors import AdapterState
from florist.rounds import Trained
from tests.builders import SHAPES, adapter
from tests.compression.test_codecs import CODECS

NAME = min(SHAPES)


@pytest.mark.parametrize("trained", [Trained.FACTORS, Trained.B, Trained.A], ids=str)
@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_halves_that_travel_are_counted_and_come_back(codec: Codec, trained: Trained) -> None:
    sent = adapter(4, 1, dtype=torch.float32)
    packed = PackedAdapter.of(sent, codec, trained)
    assert packed.nbytes == sum(packed_factor_bytes(codec, spec, trained) for spec in sent.specs.values())
    arrived = packed.unpacked(sent)
    for name, factor in sent.items():
        assert arrived.specs[name] == factor.spec
        if Trained.A not in trained:
            assert torch.equal(arrived[name].A, factor.A)
        if Trained.B not in trained:
            assert torch.equal(arrived[name].B, factor.B)


def test_the_module_of_a_number_that_does_not_fit_is_named() -> None:
    sent = adapter(2, 0, dtype=torch.float32)
    sent[NAME].A[0, 0] = torch.inf
    with pytest.raises(NonFiniteUpdateError, match=f"{NAME}: expected finite"):
        PackedAdapter.of(sent, IntegerCodec(4))


def test_the_module_of_a_broken_half_is_named() -> None:
    packed = PackedAdapter.of(adapter(2, 0, dtype=torch.float32), IntegerCodec(4))
    broken = PackedFactor(packed.factors[NAME].shape, 3, packed.factors[NAME].B, packed.factors[NAME].A)
    with pytest.raises(InvalidUpdateError, match=f"{NAME}: expected codes of shape"):
        PackedAdapter(packed.codec, {**packed.factors, NAME: broken}).unpacked()


@pytest.mark.parametrize("known", [None, AdapterState.of({}), adapter(3, 0)], ids=["nothing", "empty", "other rank"])
def test_half_a_factor_needs_the_other(known: AdapterState | None) -> None:
    packed = PackedAdapter.of(adapter(2, 0, dtype=torch.float32), IntegerCodec(8), Trained.B)
    with pytest.raises(InvalidUpdateError, match="expected both halves, or a known factor of rank 2"):
        packed.unpacked(known)


# --- across a wire or a disk

ODD = {"layers.0.q_proj": (13, 7), "layers.0.v_proj": (5, 3), "layers.1.up": (1, 9)}


def assert_same(found: PackedAdapter, expected: PackedAdapter) -> None:
    assert found.codec == expected.codec
    assert found.description() == expected.description()
    assert found.tensors().keys() == expected.tensors().keys()
    for name, tensor in expected.tensors().items():
        assert found.tensors()[name].dtype == tensor.dtype
        assert torch.equal(found.tensors()[name], tensor), name


@pytest.mark.parametrize("trained", [Trained.FACTORS, Trained.B, Trained.A], ids=str)
@pytest.mark.parametrize("codec", AGREED.values(), ids=AGREED)
def test_what_is_taken_apart_is_put_together(codec: Codec, trained: Trained) -> None:
    sent = adapter(3, 1, shapes=ODD, dtype=torch.float32)
    packed = PackedAdapter.of(AdapterState.of({**sent, "nothing": sent[NAME].leading(0)}), codec, trained)
    assert_same(PackedAdapter.described(packed.description(), packed.tensors()), packed)


@pytest.mark.parametrize("rank", [0, 1, 2, 3, 4, 9])
@pytest.mark.parametrize("trained", [Trained.FACTORS, Trained.B], ids=str)
@pytest.mark.parametrize("codec", AGREED.values(), ids=AGREED)
def test_the_leading_components_travel_as_if_packed_alone(codec: Codec, trained: Trained, rank: int) -> None:
    sent = adapter(4, 1, shapes=ODD, dtype=torch.float32)
    leading = sent.map(lambda factor: factor.leading(rank))
    assert_same(PackedAdapter.of(sent, codec, trained).leading(rank), PackedAdapter.of(leading, codec, trained))


SENT = PackedAdapter.of(adapter(2, 0, dtype=torch.float32), IntegerCodec(4))
FACTORS = json.loads(SENT.description()["factors"])
SCALES = f"{NAME}.B.scales"


def with_tensor(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
    return {**SENT.tensors(), name: tensor}


@pytest.mark.parametrize(
    ("description", "kind", "telling"),
    [
        ({}, UnknownCodecError, "expected one of the codecs float32, .*, got 'none'"),
        ({"codec": "int5"}, UnknownCodecError, "got 'int5'; use one of them on both sides, or install"),
        ({"codec": "int4"}, InvalidUpdateError, "expected the shape and rank of every packed module"),
        *(
            ({"codec": "int4", "factors": factors}, InvalidUpdateError, "expected the shape and rank of every packed")
            for factors in (
                *("{", "[]", "null", f'{{"{NAME}": [12, 16]}}', f'{{"{NAME}": [12, 16, 2, 2]}}'),
                *(f'{{"{NAME}": [12, 16, {rank}]}}' for rank in ("-1", "2.5", '"2"', "NaN", "1e99", str(10**30))),
                f'{{"{NAME}": [12, {10**30}, 0]}}',
            )
        ),
        (
            {"codec": "int4", "factors": json.dumps({NAME: FACTORS[NAME]})},
            InvalidUpdateError,
            rf"expected tensors of the modules \['{NAME}'\], got layers\.0\.v_proj\.B",
        ),
    ],
)
def test_a_description_that_is_none_is_refused(
    description: Mapping[str, str], kind: type[FloristError], telling: str
) -> None:
    with pytest.raises(kind, match=telling):
        PackedAdapter.described(description, SENT.tensors())


@pytest.mark.parametrize("name", ["codes", f"{NAME}.codes", f"{NAME}.C.codes", "other.B.codes", ""])
def test_a_tensor_of_no_module_is_refused(name: str) -> None:
    with pytest.raises(InvalidUpdateError, match="expected tensors of the modules"):
        PackedAdapter.described(SENT.description(), with_tensor(name, torch.zeros(1)))


@pytest.mark.parametrize(
    ("name", "tensor", "telling"),
    [
        (f"{NAME}.B.codes", torch.zeros(11, dtype=torch.uint8), r"expected codes of shape \(12,\)"),
        (f"{NAME}.B.codes", torch.zeros(12, dtype=torch.int8), r"expected codes of shape .* torch\.uint8"),
        (f"{NAME}.B.more", torch.zeros(1), r"expected the parts \['codes', 'scales'\]"),
        (SCALES, torch.ones(3, dtype=torch.bfloat16), r"expected scales of shape \(2,\)"),
        (SCALES, torch.zeros(2, dtype=torch.bfloat16), "expected codes of 0 where the scale is 0"),
        *(
            (SCALES, torch.tensor([1.0, scale], dtype=torch.bfloat16), "expected scales from 0 to")
            for scale in (math.nan, math.inf, -1.0, 1e30)
        ),
    ],
)
def test_parts_that_are_not_those_of_the_description_are_refused_by_module(
    name: str, tensor: Tensor, telling: str
) -> None:
    with pytest.raises(InvalidUpdateError, match=f"{NAME}: {telling}"):
        PackedAdapter.described(SENT.description(), with_tensor(name, tensor)).unpacked()


@pytest.mark.parametrize("missing", ["B", "A"])
def test_a_half_that_did_not_come_is_refused_by_module(missing: str) -> None:
    tensors = {name: each for name, each in SENT.tensors().items() if not name.startswith(f"{NAME}.{missing}.")}
    with pytest.raises(InvalidUpdateError, match=f"{NAME}: expected both halves"):
        PackedAdapter.described(SENT.description(), tensors).unpacked()


def test_another_shape_than_was_packed_is_refused() -> None:
    factors = json.dumps({**FACTORS, NAME: [16, 12, 3]})
    with pytest.raises(InvalidUpdateError, match=f"{NAME}: expected codes of shape"):
        PackedAdapter.described({"codec": "int4", "factors": factors}, SENT.tensors()).unpacked()
