import json
import pickle
from collections.abc import Mapping

import pytest
import torch
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from florist.compression.codecs import codec_named
from florist.compression.packed import PackedAdapter
from florist.errors import FloristError, InvalidUpdateError
from florist.factors import AdapterState, LoraFactor
from florist.flower.arrays import (
    adapter_to_arrays,
    arrays_to_adapter,
    arrays_to_packed,
    arrays_to_tensors,
    digest,
    packed_to_arrays,
    tensors_to_arrays,
    unpacked,
)
from florist.rounds import Trained
from tests.builders import adapter

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def one(data: bytes, stype: str = "safetensors", name: str = "tensors") -> ArrayRecord:
    return ArrayRecord({name: Array(dtype="uint8", shape=(len(data),), stype=stype, data=data)})


def packed(header: object, body: bytes = bytes(24)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(shape: list[int], offsets: tuple[int, int] = (0, 24), dtype: str = "F32") -> dict[str, object]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}}


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@given(
    ranks=st.lists(st.integers(0, 5), min_size=0, max_size=4),
    dtype=st.sampled_from(FLOATS),
    seed=st.integers(0, 1000),
)
def test_an_adapter_comes_back_bit_for_bit(ranks: list[int], dtype: torch.dtype, seed: int) -> None:
    shapes = {f"layers.{k}.q": (k + 2, 5) for k in range(len(ranks))}
    sent = AdapterState.of(
        {
            name: adapter(rank, seed, shapes={name: shapes[name]}, dtype=dtype)[name]
            for name, rank in zip(shapes, ranks, strict=True)
        }
    )
    found = arrays_to_adapter(adapter_to_arrays(sent))
    assert found.specs == sent.specs
    for name in sent:
        assert bits(found[name].B) == bits(sent[name].B)
        assert bits(found[name].A) == bits(sent[name].A)


@given(
    dtype=st.sampled_from([*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]),
    shape=st.lists(st.integers(0, 3), max_size=4),
)
def test_any_tensor_comes_back_bit_for_bit(dtype: torch.dtype, shape: list[int]) -> None:
    sent = torch.arange(max(1, torch.Size(shape).numel()))[: torch.Size(shape).numel()].reshape(shape).to(dtype)
    found = arrays_to_tensors(tensors_to_arrays({"x": sent}))["x"]
    assert (found.shape, found.dtype) == (sent.shape, sent.dtype)
    assert torch.equal(found, sent)


def test_nan_payloads_and_negative_zero_come_back() -> None:
    sent = torch.tensor([0x7FC1, 0x8000 - 0x10000, 0x7F80, 0xFF81 - 0x10000], dtype=torch.int16).view(torch.bfloat16)
    assert bits(arrays_to_tensors(tensors_to_arrays({"x": sent}))["x"]) == bits(sent)


def test_a_view_and_a_parameter_are_written_as_they_are() -> None:
    view = torch.arange(12.0).reshape(3, 4).T[1:]
    for sent in (view, torch.nn.Parameter(view.clone())):
        assert torch.equal(arrays_to_tensors(tensors_to_arrays({"x": sent}))["x"], sent)


def test_what_is_read_can_be_written_to() -> None:
    found = arrays_to_tensors(tensors_to_arrays({"x": torch.zeros(3)}))["x"]
    found += 1
    assert found.tolist() == [1, 1, 1]


def test_b_alone_is_completed_with_rows() -> None:
    sent = adapter(3, 1, dtype=torch.bfloat16)
    arrays = adapter_to_arrays(sent, Trained.B)
    assert sorted(arrays_to_tensors(arrays)) == sorted(f"{name}.B" for name in sent)
    asked: list[tuple[str, int]] = []

    def rows(module: str, rank: int) -> Tensor:
        asked.append((module, rank))
        return sent[module].A.float()

    found = arrays_to_adapter(arrays, rows)
    assert asked == [(name, 3) for name in sent]
    assert all(torch.equal(found[name].A, sent[name].A) for name in sent)
    assert all(torch.equal(found[name].B, sent[name].B) for name in sent)


def test_halves_that_are_there_need_no_rows() -> None:
    sent = adapter(2, 1)
    found = arrays_to_adapter(adapter_to_arrays(sent), lambda _module, _rank: torch.zeros(0, 0))
    assert torch.equal(found["layers.1.up"].A, sent["layers.1.up"].A)


def test_b_of_a_module_that_nobody_trains_is_refused() -> None:
    def rows(module: str, rank: int) -> Tensor:
        raise KeyError(module)

    with pytest.raises(InvalidUpdateError, match="q is not a module that this federation trains"):
        arrays_to_adapter(tensors_to_arrays({"q.B": torch.ones(2, 1)}), rows)


B, A = torch.ones(2, 1), torch.ones(1, 3)


@pytest.mark.parametrize(
    ("tensors", "telling"),
    [
        ({"q.B": B}, r"expected a matrix q\.A, got nothing"),
        ({"q.A": A}, r"expected a matrix q\.B, got nothing"),
        ({"q.B": B[:, 0], "q.A": A}, r"expected a matrix q\.B, got the shape \(2,\)"),
        ({"q.B": B, "q.A": A[0, 0]}, r"expected a matrix q\.A, got the shape \(\)"),
        ({"q.B": B, "q.A": A, "q.C": A}, r"expected tensors named MODULE\.B and MODULE\.A, got q\.C"),
        ({"weight": B}, r"expected a matrix \.B, got nothing"),
        ({"q.B": B, "q.A": A.double()}, "one dtype"),
        ({"q.B": torch.ones(2, 2), "q.A": A}, "one rank r"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_what_is_no_adapter_is_refused(tensors: Mapping[str, Tensor], telling: str) -> None:
    with pytest.raises(FloristError, match=telling):
        arrays_to_adapter(tensors_to_arrays(tensors))


GOOD = tensors_to_arrays({"x": torch.zeros(2, 3)})["tensors"].data


@pytest.mark.parametrize(
    ("record", "telling"),
    [
        (one(GOOD, stype="numpy.ndarray"), "one array 'tensors' in 'safetensors', got 'tensors' in .'numpy.ndarray'"),
        (one(GOOD, name="x"), "one array 'tensors' in 'safetensors', got 'x'"),
        (ArrayRecord({**one(GOOD), **one(GOOD, name="z")}), "expected one array"),
        (one(b""), "as safetensors packs them, and reading failed"),
        (one(GOOD[:-1]), "reading failed"),
        (one(GOOD + bytes(1)), "reading failed"),
        (one(pickle.dumps({"x": 1})), "reading failed"),
        (one((2**60).to_bytes(8, "little") + b"{}"), "reading failed"),
        (one(packed(b"{nonsense")), "reading failed"),
        (one(packed(entry([3, 3]))), "reading failed"),
        (one(packed(entry([2, 3], (0, 48)))), "reading failed"),
        (one(packed(entry([2, 3], (8, 32)), bytes(32))), "reading failed"),
        (one(packed(entry([2, 3], dtype="F999"))), "reading failed"),
        (one(packed(entry([-1, 3]))), "reading failed"),
    ],
)
def test_a_record_that_lies_is_refused(record: ArrayRecord, telling: str) -> None:
    with pytest.raises(InvalidUpdateError, match=telling):
        arrays_to_tensors(record)


@pytest.mark.parametrize("shape", [[10**12], [2**40, 2**40], [10**30], [2**32, 2**32, 6]])
def test_an_absurd_shape_takes_no_memory(shape: list[int]) -> None:
    with pytest.raises(InvalidUpdateError, match="reading failed"):
        arrays_to_tensors(one(packed(entry(shape))))


@given(data=st.binary(max_size=200), keep=st.integers(0, len(GOOD)))
def test_damage_raises_nothing_else(data: bytes, keep: int) -> None:
    try:
        arrays_to_tensors(one(GOOD[:keep] + data))
    except InvalidUpdateError as refusal:
        assert "reading failed" in str(refusal)  # noqa: PT017  # good bytes are among those tried


def test_a_message_is_one_array_however_many_modules_there_are() -> None:
    """Flower pays for each array by requests of its own and writes to its database."""
    assert len(adapter_to_arrays(adapter(2, 1))) == 1
    assert len(adapter_to_arrays(AdapterState.of({}))) == 0


def test_the_digest_tells_name_dtype_shape_and_bytes_apart() -> None:
    plain = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    others: list[Mapping[str, Tensor]] = [
        {"a": torch.zeros(2, 3), "c": torch.ones(1)},
        {"a": torch.zeros(3, 2), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "b": torch.full((1,), 1 + 2**-23)},
        {"a": torch.zeros(2, 3)},
        {},
        {"a": torch.zeros(2, 3), "b": torch.ones(1), "c": torch.ones(0)},
    ]
    digests = [digest([tensors_to_arrays(each)]) for each in [plain, *others]]
    assert len(set(digests)) == len(digests)
    halves = [tensors_to_arrays({name: tensor}) for name, tensor in plain.items()]
    assert digest(halves) != digests[0]  # where one record ends counts
    assert digest([tensors_to_arrays(dict(reversed(plain.items())))]) == digests[0]


def test_a_factor_of_rank_0_keeps_its_shape() -> None:
    sent = AdapterState.of({"q": LoraFactor(torch.zeros(4, 0), torch.zeros(0, 6))})
    assert arrays_to_adapter(adapter_to_arrays(sent)).specs["q"].shape == (4, 6)


# --- what codecs packed


def described(header: object, name: str = "0") -> ArrayRecord:
    """An array whose metadata is what a stranger wrote."""
    content = json.dumps({"__metadata__": header} if header is not None else {}).encode()
    return one(packed(content, b""), name=name)


@pytest.mark.parametrize(
    ("record", "telling"),
    [
        (described({"codec": "int4", "factors": "{}"}, name="1"), "expected packed adapters numbered from 0, got .'1'"),
        (described(None), "expected a description of packed tensors, got none"),
        (described({}), "expected one of the codecs .* got 'none'"),
        (described({"codec": "int5", "factors": "{}"}), "expected one of the codecs .* got 'int5'"),
        (described({"codec": "int4"}), "expected the shape and rank of every packed module"),
        (described({"codec": "int4", "factors": '{"q": [1, 2]}'}), "expected the shape and rank"),
        (described({"codec": "int4", "factors": '{"q": [1, 2, -1]}'}), "expected the shape and rank"),
        (one(GOOD, name="0"), "expected a description of packed tensors, got none"),
        (one(b"", name="0"), "reading failed"),
        (one((2**60).to_bytes(8, "little") + b"{}", name="0"), "reading failed"),
        (one(GOOD, name="0", stype="pickle"), "expected the array '0' in 'safetensors', got 'pickle'"),
    ],
)
def test_what_no_codec_packed_is_refused(record: ArrayRecord, telling: str) -> None:
    with pytest.raises(FloristError, match=telling):
        arrays_to_packed(record)


def test_packed_adapters_keep_their_order() -> None:
    sent = [PackedAdapter.of(adapter(1, seed), codec_named("int8")) for seed in range(12)]
    found = arrays_to_packed(packed_to_arrays(sent))
    assert len(found) == 12
    for mine, its in zip(found, sent, strict=True):
        assert mine.tensors().keys() == its.tensors().keys()
        assert all(torch.equal(mine.tensors()[name], tensor) for name, tensor in its.tensors().items())
    assert arrays_to_packed(packed_to_arrays([])) == ()


def test_b_alone_is_decoded_with_the_rows_that_are_known() -> None:
    own = adapter(2, 1, dtype=torch.float32)
    sent = PackedAdapter.of(own, codec_named("int8"), Trained.B)
    found = unpacked(sent, lambda module, rank: own[module].A[:rank])
    assert all(torch.equal(found[name].A, own[name].A) for name in own)
    assert all(torch.equal(found[name].B, sent.unpacked(own)[name].B) for name in own)
    with pytest.raises(InvalidUpdateError, match="expected both halves, or a known factor of rank 2"):
        unpacked(sent, lambda module, _rank: own[module].A[:1])
    with pytest.raises(InvalidUpdateError, match="expected both halves"):
        unpacked(sent)


@given(data=st.binary(max_size=200), keep=st.integers(0, 400))
@pytest.mark.usefixtures("without_shape_checks")
def test_damage_of_what_was_packed_raises_nothing_else(data: bytes, keep: int) -> None:
    whole = packed_to_arrays([PackedAdapter.of(adapter(1, 1, shapes={"q": (3, 4)}), codec_named("int4"))])["0"].data
    try:
        for each in arrays_to_packed(one(whole[:keep] + data, name="0")):
            unpacked(each)
    except FloristError as refusal:
        assert "expected" in str(refusal)  # noqa: PT017  # good bytes are among those tried
