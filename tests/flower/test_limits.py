"""What a message may be at most, what of it reaches a log or a record, and what a client takes from its server."""

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from torch import Tensor

from florist.compression.codecs import codec_named
from florist.compression.feedback import Compression
from florist.errors import InvalidUpdateError
from florist.federation.records import Drop
from florist.flower import protocol
from florist.flower.arrays import digest
from florist.flower.limits import ContradictionError, Limits
from florist.flower.messages import MOST_MODULES, TRAIN, Instruction
from florist.flower.round_book import RoundBook
from tests.builders import SHAPES, adapter
from tests.flower.grids import as_in_a_process, identified
from tests.flower.participants import Light, app_of, play
from tests.flower.test_protocol import ASSIGNMENT, INTRODUCTION

FORGED = "q_proj\n[INFO] round 9: forged \x1b[31mline\x1b[0m"


def listing(names: list[str]) -> bytes:
    """The bytes of safetensors that list tensors without numbers."""
    header = json.dumps({name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in names}).encode()
    return len(header).to_bytes(8, "little") + header


def with_bytes(content: RecordDict, data: bytes, name: str = "adapter") -> RecordDict:
    """The content with these bytes in the place of an array, and the digest that fits."""
    content[name] = ArrayRecord({"tensors": Array("uint8", (len(data),), "safetensors", data)})
    order = ("added", "packed", "continued", "packed_continued", "directions", "adapter", "saved_parameters")
    head = dict(content.config_records["florist"])
    head["sha256"] = digest(content.array_records[each] for each in order if each in content.array_records)
    content["florist"] = ConfigRecord(head)
    return content


def first_sends(data: Callable[[], bytes], **settings: object) -> tuple[list[str], list[str]]:
    """The reasons of the drops of a round whose first client sends these bytes, and who counts."""
    clients = {7: Light("a"), 8: Light("b"), 9: Light("c")}

    def deliver(message: Message, reply: Message) -> list[Message]:
        if message.metadata.dst_node_id == 7 and message.metadata.message_type == TRAIN:
            return [Message(with_bytes(reply.content, data()), reply_to=message)]
        return [reply]

    strategy, _ = play(clients, deliver=deliver, **settings)
    (record,) = strategy.records
    return [drop.reason for drop in record.dropped], [client.client_id for client in record.clients]


@pytest.mark.parametrize("name", [FORGED, "a" * 3_000_000, "\u202e" * 500, "a" * 390 + "\n"])
def test_a_name_that_a_client_sends_forges_no_line_and_fills_no_record(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "flwr"):
        (reason,), counted = first_sends(lambda: listing([f"{name}.B", f"{name}.A"]))
    assert counted == ["b", "c"]
    assert reason.isprintable()
    assert len(reason) <= 400
    (line,) = [each.getMessage() for each in caplog.records if "is dropped" in each.getMessage()]
    assert line.isprintable()
    assert len(line) < 500
    assert not any("\x1b" in each.getMessage() or each.getMessage().startswith("[INFO]") for each in caplog.records)


def test_a_list_of_many_tensors_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    long = listing([f"tensor {number}" for number in range(20_000)])
    read: list[int] = []
    load = protocol.arrays_to_adapter

    def watched(arrays: ArrayRecord, *rest: object) -> object:
        read.extend(len(array.data) for array in arrays.values())
        return load(arrays, *rest)

    monkeypatch.setattr(protocol, "arrays_to_adapter", watched)
    (reason,), counted = first_sends(lambda: long)
    assert "expected a list of tensors of at most" in reason
    assert counted == ["b", "c"]
    assert max(read) < len(long)


def test_a_reply_that_is_larger_than_introduced_asks_the_node_anew() -> None:
    clients = {7: Light("a"), 8: Light("b"), 9: Light("c")}
    large = protocol.tensors_to_arrays({f"{name}.B": torch.zeros(m, 60_000) for name, (m, _) in SHAPES.items()})[
        "tensors"
    ].data

    def deliver(message: Message, reply: Message) -> list[Message]:
        if message.metadata.dst_node_id == 7 and message.metadata.message_type == TRAIN:
            return [Message(with_bytes(reply.content, large), reply_to=message)]
        return [reply]

    strategy, grid = play(clients, deliver=deliver)
    (drop,) = strategy.records[0].dropped
    assert "bytes of tensors, by what was introduced" in drop.reason
    assert grid.nodes_of("query.hello") == [7, 8, 9, 7]


@pytest.mark.parametrize(
    ("shapes", "rank"), [(SHAPES, 1), (SHAPES, 40), ({"模型." * 100: (3, 5)}, 2), ({"q" * 400: (300, 1)}, 300)]
)
@pytest.mark.parametrize("codec", [None, "int2", "int8", "float32"])
def test_what_was_introduced_fits(shapes: Mapping[str, tuple[int, int]], rank: int, codec: str | None) -> None:
    held = adapter(rank, 1, shapes=shapes)  # in float64, the widest
    packed = Compression(codec_named(codec))(held).packed if codec else None
    content = RecordDict(
        {"adapter": protocol.adapter_to_arrays(held), "packed": protocol._one_to_arrays(packed)}
    )  # as a reply is written
    Limits.of_reply(shapes, rank, {}).require(RecordDict({"adapter": content.array_records["adapter"]}))
    Limits.of_reply(shapes, rank, {}).require(RecordDict({"packed": content.array_records["packed"]}))


def test_a_header_that_is_not_there_is_left_to_who_reads_it() -> None:
    content = RecordDict({"adapter": ArrayRecord({"tensors": Array("uint8", (8,), "safetensors", b"\xff" * 8)})})
    Limits.of_names(()).require(content)
    with pytest.raises(ContradictionError, match="expected a list of tensors of at most 65536 bytes"):
        Limits.of_names(()).require(
            RecordDict(
                {"adapter": ArrayRecord({"tensors": Array("uint8", (1,), "safetensors", listing(["a" * 70_000]))})}
            )
        )


@pytest.mark.parametrize(
    ("fields", "telling"),
    [
        ({"client_id": "a" * 401}, "Introduction.client_id: String should have at most 400 characters"),
        ({"client_id": FORGED}, "Introduction.client_id: Value error, expected printable characters"),
        ({"client_id": ""}, "Introduction.client_id: String should have at least 1 character"),
        ({"out_features": [2**40] * 3}, "Introduction.out_features.0: Input should be less than or equal to"),
        ({"modules": [str(k) for k in range(MOST_MODULES + 1)]}, "Introduction.modules: List should have at most"),
        ({"saved_parameters": [str(k) for k in range(10_001)]}, "List should have at most 10000 items"),
    ],
)
def test_an_introduction_is_bounded(fields: Mapping[str, object], telling: str) -> None:
    content = protocol.write_introduction(INTRODUCTION)
    head = {**dict(content.config_records["florist"]), **fields}
    content["florist"] = ConfigRecord(head)  # pyright: ignore[reportArgumentType]  # some of them are wrong
    with pytest.raises(InvalidUpdateError) as refusal:
        protocol.read_introduction(content)
    assert telling in str(refusal.value)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 1000


def test_a_reason_is_one_line_wherever_it_is_made() -> None:
    drop = Drop("a", FORGED + "b" * 10_000)
    assert drop.reason.isprintable()
    assert len(drop.reason) == 400


def test_what_clients_counted_is_read_once_a_record() -> None:
    strategy, _ = play({7: Light("a"), 8: Light("b")}, rounds=3)
    records = strategy.records
    book = RoundBook(None, records[:1])
    assert book.last_counted() == {"a": 1, "b": 1}
    book.records[:] = [replace(records[0], clients=()), *records[1:]]  # the first one is not looked at again
    assert book.last_counted() == {"a": 3, "b": 3}
    book.records[:] = [replace(each, clients=()) for each in records]
    assert book.last_counted() == {"a": 3, "b": 3}


# --- a client and a hostile server


def told(instruction: Instruction, participant: Light | None = None) -> tuple[RecordDict, RecordDict]:
    """What a client answers, and what it keeps."""
    as_in_a_process()
    client = participant or Light("berlin", saved_parameters={"head": torch.ones(3)})
    message = identified(Message(protocol.write_instruction(instruction), 1, TRAIN), "1")
    memory = RecordDict()
    answer = app_of({1: client})(message, Context(1, 1, {}, memory, {}))
    return answer.content, memory


SOUND = Instruction(
    replace(ASSIGNMENT, round_number=1, since=-1, until=0, local_init="fresh"),
    adapter(2, 1, dtype=torch.float32),
    adapter(0, 2, dtype=torch.float32),
    {},
    {"head": torch.zeros(3)},
)


def with_number(value: float) -> Instruction:
    added = adapter(2, 1, dtype=torch.float32)
    added["layers.1.up"].A[1, 2] = value
    return replace(SOUND, added=added)


def test_a_sound_instruction_is_followed() -> None:
    answer, memory = told(replace(SOUND, added=adapter(2, 1, shapes={**SHAPES, "of another": (3, 2)})))
    assert answer.config_records["florist"]["kind"] == "Report"
    assert memory


@pytest.mark.parametrize(
    ("instruction", "telling"),
    [
        (with_number(math.nan), "layers.1.up holds NaN or inf"),
        (with_number(math.inf), "layers.1.up holds NaN or inf"),
        (replace(SOUND, added=adapter(2, 1, shapes={"layers.1.up": (9, 20)})), "layers.1.up: expected the shape (20"),
        (replace(SOUND, continued=adapter(2, 1, shapes={"layers.1.up": (1, 9)})), "layers.1.up: expected the shape"),
        (replace(SOUND, saved_parameters={"other": torch.ones(3)}), "other: expected no such parameter"),
        (replace(SOUND, saved_parameters={"head": torch.ones(4)}), "head: expected the shape (3,), got the shape (4,)"),
        (replace(SOUND, saved_parameters={"head": torch.tensor([1.0, math.nan, 0.0])}), "head holds NaN or inf"),
        (replace(SOUND, directions={"layers.1.up": torch.full((1, 9), math.inf)}), "layers.1.up holds NaN or inf"),
        (replace(SOUND, assignment=replace(SOUND.assignment, max_rank=2**40)), "expected at most 160 random rows"),
        (replace(SOUND, assignment=replace(SOUND.assignment, seed=2**31)), "Assignment.seed: Input should be less"),
        (replace(SOUND, assignment=replace(SOUND.assignment, local_init="os.system")), "expected a local_init of"),
    ],
)
def test_a_client_refuses_what_does_not_fit_it_and_keeps_nothing(instruction: Instruction, telling: str) -> None:
    client = Light("berlin", saved_parameters={"head": torch.ones(3)})
    with pytest.raises(InvalidUpdateError) as refusal:
        told(instruction, client)
    assert telling in str(refusal.value)
    assert client.starts == []


def test_an_int_half_is_refused_by_name() -> None:
    strange: Mapping[str, Tensor] = {"q.B": torch.ones(2, 1, dtype=torch.int64)}
    with pytest.raises(InvalidUpdateError, match="q: expected floating-point factors of 16, 32 or 64 bits"):
        protocol.arrays_to_adapter(protocol.tensors_to_arrays(strange), lambda _, rank: torch.ones(rank, 3))
