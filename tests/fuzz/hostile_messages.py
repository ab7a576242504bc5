"""How the content of one of florist's messages is broken: its bytes, its documents, its names and its shapes.

Whatever is made here goes through Flower's own serialisation, so that it is what could come from the network.
"""

# ruff: noqa: S311  # cases are drawn, and no secrets

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from florist.flower.arrays import digest
from tests.fuzz.mutations import mutated_bytes, mutated_document, nasty_values
from tests.fuzz.oracle import refused_or_taken

HEAD = "florist"
ARRAYS = ("added", "packed", "continued", "packed_continued", "directions", "adapter", "saved_parameters", "private")
FORGED = "q_proj\n[INFO] round 9: forged \x1b[31mline\x1b[0m"


def refused(parsers: Sequence[tuple[RecordDict, Callable[[RecordDict], object]]], seeds: range) -> int:
    """How many broken messages, one a seed, their readers refuse."""
    count = 0
    for seed in seeds:
        content, read = parsers[seed % len(parsers)]
        hostile, taken = broken(content, random.Random(seed)), False
        with refused_or_taken(f"parser {seed}"):
            read(hostile)
            taken = True
        count += not taken
    return count


def broken(content: RecordDict, rng: random.Random) -> RecordDict:
    """A copy of a message with one to three faults, as it arrives; most of them carry a digest that fits."""
    while True:
        found = copied(content)
        try:
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                rng.choice(_FAULTS)(found, rng)
            if rng.random() < 0.85:
                seal(found)
            return recorddict_from_proto(recorddict_to_proto(found))
        except (TypeError, ValueError, OverflowError, RuntimeError):
            continue  # it cannot be made or sent: another one


def copied(content: RecordDict) -> RecordDict:
    """The same content, which may be changed."""
    return recorddict_from_proto(recorddict_to_proto(content))


def seal(content: RecordDict) -> None:
    """Put in the digest that fits the arrays, as a hostile sender does."""
    head = content.config_records.get(HEAD)
    if head is not None:
        head["sha256"] = digest(each for name in ARRAYS if (each := content.array_records.get(name)) is not None)


def with_tensors(content: RecordDict, name: str, tensors: Mapping[str, Tensor]) -> RecordDict:
    """A copy that brings these tensors, sealed."""
    found = copied(content)
    data = save({each: tensor.contiguous() for each, tensor in tensors.items()})
    found[name] = ArrayRecord({"tensors": Array("uint8", (len(data),), "safetensors", data)})
    seal(found)
    return found


def with_fields(content: RecordDict, **fields: Any) -> RecordDict:
    """A copy whose head says something else, sealed."""
    found = copied(content)
    head = dict(found.config_records[HEAD])
    head.update(fields)
    found[HEAD] = ConfigRecord(head)
    seal(found)
    return found


def _bytes(content: RecordDict, rng: random.Random) -> None:
    for record, name in _some_array(content, rng):
        _put(content, record, name, mutated_bytes(content.array_records[record][name].data, rng))


def _header(content: RecordDict, rng: random.Random) -> None:
    for record, name in _some_array(content, rng):
        data = content.array_records[record][name].data
        length = int.from_bytes(data[:8], "little")
        try:
            header = json.loads(data[8 : 8 + length])
            text = json.dumps(mutated_document(header, rng)).encode()
        except (ValueError, RecursionError):
            continue
        _put(content, record, name, len(text).to_bytes(8, "little") + text + data[8 + length :])


def _description(content: RecordDict, rng: random.Random) -> None:
    """Other shapes and ranks than the packed tensors have."""
    for record, name in _some_array(content, rng):
        data = content.array_records[record][name].data
        length = int.from_bytes(data[:8], "little")
        try:
            header = json.loads(data[8 : 8 + length])
            factors = json.loads(header["__metadata__"]["factors"])
            header["__metadata__"]["factors"] = json.dumps(mutated_document(factors, rng))
            if rng.random() < 0.3:
                header["__metadata__"]["codec"] = rng.choice(("int8", "int2", "float32", "none", "pickle", "a" * 10**5))
            text = json.dumps(header).encode()
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        _put(content, record, name, len(text).to_bytes(8, "little") + text + data[8 + length :])


def _tensors(content: RecordDict, rng: random.Random) -> None:
    """Sound bytes of tensors that are not what was asked for."""
    for record, name in _some_array(content, rng):
        data = content.array_records[record][name].data
        try:
            tensors = dict(load(data))
            length = int.from_bytes(data[:8], "little")
            metadata = json.loads(data[8 : 8 + length]).get("__metadata__")
        except (SafetensorError, ValueError, KeyError, TypeError):
            continue
        if tensors:
            rng.choice(_TENSOR_FAULTS)(tensors, rng.choice(sorted(tensors)), rng)
        _put(content, record, name, save({each: tensors[each].contiguous() for each in tensors}, metadata))


def _rename(tensors: dict[str, Tensor], name: str, rng: random.Random) -> None:
    long = rng.choice((900, 900, 10_000, 10_000, 1_000_000))
    other = rng.choice((FORGED + ".B", "a" * long + ".B", "", ".B", "B", name + ".B", "../../x.B", name.upper()))
    tensors[other] = tensors.pop(name)


def _reshape(tensors: dict[str, Tensor], name: str, rng: random.Random) -> None:
    tensor = tensors[name]
    tensors[name] = rng.choice(
        (tensor[:0], tensor.reshape(-1), tensor[None], tensor.T if tensor.ndim == 2 else tensor[:1], tensor.sum())
    ).clone()


def _retype(tensors: dict[str, Tensor], name: str, rng: random.Random) -> None:
    dtypes = (torch.int64, torch.uint8, torch.bool, torch.float16, torch.float64, torch.bfloat16, torch.complex64)
    tensors[name] = tensors[name].to(rng.choice((*dtypes, torch.float8_e4m3fn, torch.float8_e5m2)))


def _numbers(tensors: dict[str, Tensor], name: str, rng: random.Random) -> None:
    tensor = tensors[name].clone()
    if tensor.numel() and tensor.dtype.is_floating_point and tensor.dtype.itemsize > 1:
        value = torch.tensor(rng.choice((float("nan"), float("inf"), -float("inf"), 3e38, 1e30, 1e-40, 0.0)))
        value = value.to(tensor.dtype)
        tensor.view(-1)[rng.randrange(tensor.numel())] = value
        if rng.random() < 0.3:
            tensor.fill_(value)
    tensors[name] = tensor


def _ranks(tensors: dict[str, Tensor], name: str, rng: random.Random) -> None:
    """Both halves of a module with another rank."""
    module = name.rpartition(".")[0]
    times = rng.choice((0, 2, 3, 50))
    for half, dimension in ((f"{module}.B", 1), (f"{module}.A", 0)):
        tensor = tensors.get(half)
        if tensor is not None and tensor.ndim == 2:
            tensors[half] = torch.cat([tensor] * times, dimension) if times else tensor.narrow(dimension, 0, 0).clone()


def _drop(tensors: dict[str, Tensor], name: str, rng: random.Random) -> None:  # one of several faults
    del tensors[name]


def _many(tensors: dict[str, Tensor], name: str, rng: random.Random) -> None:
    for number in range(rng.choice((1, 10, 10, 1000))):
        tensors[f"{name}{number}"] = torch.zeros(rng.choice((0, 1)))


_TENSOR_FAULTS: tuple[Callable[[dict[str, Tensor], str, random.Random], None], ...] = (
    _rename,
    _reshape,
    _retype,
    _numbers,
    _ranks,
    _drop,
    _many,
)


def _field(content: RecordDict, rng: random.Random) -> None:
    """One to three faults in the document of the head."""
    head = content.config_records.get(HEAD)
    if head is None:
        return
    found = ConfigRecord()
    for key, value in mutated_document(dict(head), rng).items():
        try:
            found[key] = value if not isinstance(value, dict) else json.dumps(value)[:100]
        except (TypeError, ValueError, RecursionError):
            continue
    content[HEAD] = found


def _other_value(content: RecordDict, rng: random.Random) -> None:
    head = content.config_records.get(HEAD)
    if head:
        key = rng.choice(sorted(head))
        for value in (nasty_values(rng) for _ in range(20)):
            try:
                head[key] = value
            except (TypeError, ValueError):
                continue
            return


def _swapped(content: RecordDict, rng: random.Random) -> None:
    """Two fields, or two arrays, in each other's place."""
    head = content.config_records.get(HEAD)
    if head and len(head) > 1 and rng.random() < 0.6:
        first, second = rng.sample(sorted(head), 2)
        head[first], head[second] = head[second], head[first]
        return
    first, second = rng.sample(ARRAYS, 2)
    records = content.array_records
    one, other = records.get(first, ArrayRecord()), records.get(second, ArrayRecord())
    content[first], content[second] = other, one


def _records(content: RecordDict, rng: random.Random) -> None:
    """A record that is missing, of another kind, or one too many."""
    name = rng.choice((HEAD, *ARRAYS, "other", FORGED))
    fault = rng.randrange(4)
    if fault == 0:
        content.pop(name, None)
    elif fault == 1:
        content[name] = ConfigRecord({"kind": "Upload"})
    elif fault == 2:
        content[name] = ArrayRecord({rng.choice(("tensors", "0", "1", FORGED)): _array(rng.randbytes(40), rng)})
    else:
        content[name] = ArrayRecord()


def _stype(content: RecordDict, rng: random.Random) -> None:
    for record, name in _some_array(content, rng):
        old = content.array_records[record]
        data = old[name].data
        if rng.random() < 0.5:
            content[record] = ArrayRecord({**dict(old), name: _array(data, rng)})
        else:
            other = rng.choice(("tensors", "0", "1", "-1", "x" * 1000, FORGED))
            content[record] = ArrayRecord({other: old[name]})


def _array(data: bytes, rng: random.Random) -> Array:
    kind = rng.choice(("safetensors", "numpy.ndarray", "pickle", "", FORGED))
    shape = rng.choice(((len(data),), (2**40,), (), (0,)))
    return Array(rng.choice(("uint8", "float32", "object")), shape, kind, data)


def _some_array(content: RecordDict, rng: random.Random) -> list[tuple[str, str]]:
    places = [(record, name) for record in sorted(content.array_records) for name in content.array_records[record]]
    return [rng.choice(places)] if places else []


def _put(content: RecordDict, record: str, name: str, data: bytes) -> None:
    old = content.array_records[record]
    content[record] = ArrayRecord({**dict(old), name: Array("uint8", (len(data),), "safetensors", data)})


_FAULTS: tuple[Callable[[RecordDict, random.Random], None], ...] = (
    _bytes,
    _bytes,
    _header,
    _header,
    _description,
    _tensors,
    _tensors,
    _tensors,
    _field,
    _field,
    _other_value,
    _swapped,
    _records,
    _stype,
)
