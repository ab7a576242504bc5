import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from florist.compression.codecs import IntegerCodec, codec_named
from florist.compression.packed import PackedAdapter
from florist.errors import FloristError, InvalidUpdateError, UnknownCodecError
from florist.factors import AdapterState
from florist.federation.local_init import Agreed, Aligned, Continued, Fresh, Warm
from florist.flower.arrays import arrays_to_tensors, digest, packed_to_arrays, tensors_to_arrays
from florist.flower.messages import (
    PROTOCOL,
    Assignment,
    Evaluation,
    Instruction,
    Introduction,
    OutOfStep,
    Report,
    Upload,
    adapter_along,
    directions_of,
    name_of,
)
from florist.flower.protocol import (
    read_instruction,
    read_introduction,
    read_reply,
    read_saved_parameters,
    write_instruction,
    write_introduction,
    write_reply,
    write_saved_parameters,
)
from florist.flower.upload_terms import AS_THEY_ARE, UploadTerms
from florist.rounds import NO_ADAPTER, Trained
from tests.builders import SHAPES, adapter

INTRODUCTION = Introduction(
    PROTOCOL,
    "berlin",
    4,
    10,
    3,
    "base",
    list(SHAPES),
    [m for m, _ in SHAPES.values()],
    [n for _, n in SHAPES.values()],
    [],
    -1,
)
ASSIGNMENT = Assignment(
    3,
    1,
    2,
    replaces=False,
    seed=5,
    rows_seed=6,
    max_rank=8,
    trained=Trained.FACTORS.value,
    local_init="warm",
    counted=0,
    upload=AS_THEY_ARE,
)
REPORT = Report("berlin", 3, 10, "base", 2, 0.5, 1.5, 0.25, "")
UPLOAD = Upload(REPORT, adapter(2, 1, dtype=torch.float32), {"head": torch.ones(3)})
EVALUATION = Evaluation("berlin", 2, 10, ["loss"], [0.5])


def no_rows(module: str, rank: int) -> Tensor:
    raise KeyError(module)


def same(a: AdapterState, b: AdapterState) -> bool:
    return a.specs == b.specs and all(torch.equal(a[k].B, b[k].B) and torch.equal(a[k].A, b[k].A) for k in a)


def changed(content: RecordDict, **fields: Any) -> RecordDict:
    """The same records with other fields; None removes one."""
    fields_now = {**content.config_records["florist"], **fields}
    given = {name: value for name, value in fields_now.items() if value is not None}
    return RecordDict({**content, "florist": ConfigRecord(given)})


# --- round trips


@given(
    client_id=st.text(st.characters(categories=["L", "N", "P", "Zs"]), min_size=1, max_size=20).filter(str.isprintable),
    names=st.lists(st.text(min_size=1, max_size=5).filter(str.isprintable), max_size=3),
    holds=st.integers(-1, 2**40),
    count=st.integers(1, 2**62),
)
def test_an_introduction_comes_back(client_id: str, names: list[str], holds: int, count: int) -> None:
    sent = replace(INTRODUCTION, client_id=client_id, saved_parameters=names, holds=holds, num_examples=count)
    assert read_introduction(write_introduction(sent)) == sent
    assert sent.shapes == SHAPES


@pytest.mark.parametrize("travels", [Trained.FACTORS, Trained.B])
def test_an_instruction_comes_back(travels: Trained) -> None:
    added, continued = adapter(3, 1), adapter(2, 2)
    directions = directions_of(adapter(2, 3))
    assignment = replace(ASSIGNMENT, trained=travels.value)
    sent = Instruction(assignment, added, continued, directions, {"head": torch.ones(2, 2)})
    content = write_instruction(sent, travels)
    found = read_instruction(content, lambda _: lambda module, _rank: continued[module].A)
    assert found.assignment == assignment
    assert same(found.added, added)
    assert same(found.continued, continued)
    assert all(torch.equal(found.directions[name], directions[name]) for name in SHAPES)
    assert torch.equal(found.saved_parameters["head"], torch.ones(2, 2))
    assert f"{min(SHAPES)}.A" in arrays_to_tensors(content.array_records["added"])  # which no seed gives back
    assert (f"{min(SHAPES)}.A" in arrays_to_tensors(content.array_records["continued"])) == (travels == Trained.FACTORS)


@pytest.mark.parametrize("travels", [Trained.FACTORS, Trained.B])
@pytest.mark.parametrize("codec", ["int4", "float16"])
def test_what_codecs_packed_comes_back(codec: str, travels: Trained) -> None:
    own = adapter(2, 3, dtype=torch.float32)
    added = tuple(PackedAdapter.of(adapter(rank, rank), codec_named(codec)) for rank in (3, 1))
    continued = PackedAdapter.of(own, codec_named(codec), travels)
    terms = UploadTerms("int3", "tau", 0.75, feedback=True, rank_factor=1.0, saved_codec="float16")
    assignment = replace(ASSIGNMENT, trained=travels.value, counted=2, upload=terms)
    content = write_instruction(Instruction(assignment, NO_ADAPTER, NO_ADAPTER, {}, {}, added, continued))
    found = read_instruction(content, lambda _: lambda module, _rank: own[module].A)
    assert found.assignment == assignment
    assert same(found.continued, continued.unpacked(own))
    assert [each.nbytes for each in found.packed] == [each.nbytes for each in added]
    assert all(same(one.unpacked(), its.unpacked()) for one, its in zip(found.packed, added, strict=True))
    reply = read_reply(write_reply(replace(UPLOAD, adapter=NO_ADAPTER, packed=added[0])), no_rows)
    assert isinstance(reply, Upload)
    assert reply.packed is not None
    assert same(reply.packed.unpacked(), added[0].unpacked())
    assert not reply.adapter


def test_what_an_unknown_codec_packed_is_refused_by_name() -> None:
    strange = PackedAdapter(IntegerCodec(5), {})
    content = write_instruction(Instruction(ASSIGNMENT, NO_ADAPTER, NO_ADAPTER, {}, {}, (strange,)))
    with pytest.raises(UnknownCodecError, match=r"expected one of the codecs float32, .*int2, got 'int5'"):
        read_instruction(content, lambda _: no_rows)


def test_an_upload_packs_one_adapter() -> None:
    content = write_reply(UPLOAD)
    content["packed"] = packed_to_arrays([PackedAdapter(codec_named("int4"), {})] * 2)
    sealed = changed(
        content, sha256=digest(content.array_records[n] for n in ("packed", "adapter", "saved_parameters"))
    )
    with pytest.raises(InvalidUpdateError, match="expected one packed adapter, got 2"):
        read_reply(sealed, no_rows)


def test_an_upload_comes_back() -> None:
    found = read_reply(write_reply(UPLOAD), no_rows)
    assert isinstance(found, Upload)
    assert found.report == REPORT
    assert same(found.adapter, UPLOAD.adapter)
    assert torch.equal(found.saved_parameters["head"], torch.ones(3))


@pytest.mark.parametrize("sent", [EVALUATION, Evaluation("x", 1, 0, [], []), OutOfStep("berlin", -1)])
def test_other_replies_come_back(sent: OutOfStep | Evaluation) -> None:
    assert read_reply(write_reply(sent), no_rows) == sent


def test_a_loss_that_is_no_number_passes() -> None:
    for loss in (math.nan, math.inf, -math.inf):
        found = read_reply(write_reply(replace(UPLOAD, report=replace(REPORT, loss=loss))), no_rows)
        assert isinstance(found, Upload)
        assert found.report.loss == pytest.approx(loss, nan_ok=True)


def test_saved_parameters_come_back() -> None:
    found = read_saved_parameters(write_saved_parameters({"head": torch.ones(2).bfloat16()}))
    assert torch.equal(found["head"], torch.ones(2).bfloat16())


@pytest.mark.parametrize("start", [Fresh(), Aligned(), Warm()])
def test_a_start_is_told_by_name(start: Fresh | Aligned | Warm) -> None:
    assert replace(ASSIGNMENT, local_init=name_of(start)).start(SHAPES) == start


def test_rows_that_everybody_derives_take_the_place_of_a_named_start() -> None:
    start = replace(ASSIGNMENT, agreed_rows=True).start(SHAPES)
    assert start == Agreed(ASSIGNMENT.rows_seed, ASSIGNMENT.max_rank, SHAPES)


def test_a_start_without_a_name_cannot_be_told() -> None:
    with pytest.raises(InvalidUpdateError, match=r"expected a local_init of fresh, aligned, warm, got Continued\(\)"):
        name_of(Continued())


# --- strictness


@pytest.mark.parametrize(
    ("fields", "telling"),
    [
        ({"rank": "4"}, "Introduction.rank: Input should be a valid integer, got '4'"),
        ({"rank": 4.0}, "Introduction.rank: Input should be a valid integer"),
        ({"rank": True}, "Introduction.rank: Input should be a valid integer"),
        ({"rank": None}, "Introduction.rank: Field required"),
        ({"rank": 0}, "Introduction.rank: Input should be greater than 0, got 0"),
        ({"rank": -3}, "greater than 0, got -3"),
        ({"rank": 21}, "expected a rank of at most 20, the largest dimension of a module, got 21"),
        ({"num_examples": 0}, "Introduction.num_examples: Input should be greater than 0"),
        ({"num_examples": math.nan}, "Introduction.num_examples: Input should be a valid integer"),
        ({"num_examples": 10**5000}, "Introduction: expected numbers and texts"),
        ({"holds": -2}, "Introduction.holds: Input should be greater than or equal to -1"),
        ({"client_id": ""}, "Introduction.client_id: String should have at least 1 character"),
        ({"client_id": "x" * 401}, "Introduction.client_id: String should have at most 400"),
        ({"client_id": "x\nround 1: all is well"}, "Introduction.client_id: .*expected printable characters"),
        ({"client_id": 3}, "Introduction.client_id: Input should be a valid string"),
        ({"client_id": b"x"}, "Introduction: expected numbers and texts"),
        ({"base": [b"x"]}, "Introduction: expected numbers and texts"),
        ({"modules": "q"}, "Introduction.modules: Input should be a valid (array|list)"),
        ({"modules": ["a", "b"]}, "expected out_features and in_features of every module"),
        ({"in_features": [1, 2, 3, 4]}, "expected out_features and in_features of every module"),
        ({"modules": ["a", "a", "b"]}, "expected modules to train, each once"),
        ({"modules": [], "in_features": [], "out_features": []}, "expected modules to train"),
        ({"out_features": [12, -6, 20]}, "Introduction.out_features.1: Input should be greater than 0, got -6"),
        ({"protocol": PROTOCOL + 1}, f"expected protocol {PROTOCOL}, got {PROTOCOL + 1}; .*same version"),
        ({"kind": "Report"}, "expected the kind Introduction, got Report"),
        ({"kind": None}, "expected the kind Introduction, got None"),
        ({"sha256": "0" * 64}, "expected arrays of the SHA-256 that was sent with them"),
        ({"sha256": None}, "expected arrays of the SHA-256"),
    ],
)
def test_what_is_no_introduction_is_refused(fields: Mapping[str, Any], telling: str) -> None:
    with pytest.raises(InvalidUpdateError, match=telling):
        read_introduction(changed(write_introduction(INTRODUCTION), **fields))


def test_what_a_later_version_adds_is_passed_over() -> None:
    assert read_introduction(changed(write_introduction(INTRODUCTION), mood="good")) == INTRODUCTION


@pytest.mark.parametrize(
    ("sent", "fields", "telling"),
    [
        (UPLOAD, {"num_examples": "10"}, "Report.num_examples: Input should be a valid integer"),
        (UPLOAD, {"num_examples": -1}, "Report.num_examples: Input should be greater than 0"),
        (UPLOAD, {"round_number": -1}, "Report.round_number: Input should be greater than or equal to 0"),
        (UPLOAD, {"loss": "low"}, "Report.loss: Input should be a valid number"),
        (UPLOAD, {"holds": None}, "Report.holds: Field required"),
        (EVALUATION, {"names": ["a", "b"]}, "expected a value of every metric"),
        (EVALUATION, {"values": [1, "x"][:1] * 2}, "expected a value of every metric"),
        (EVALUATION, {"values": ["x"]}, "Evaluation.values.0: Input should be a valid number"),
        (EVALUATION, {"num_examples": -1}, "Evaluation.num_examples: Input should be greater than or equal to 0"),
        (OutOfStep("x", 1), {"holds": 1.5}, "OutOfStep.holds: Input should be a valid integer"),
        (OutOfStep("x", 1), {"kind": "Bribe"}, "expected the kind Report, got Bribe"),
    ],
)
def test_what_is_no_reply_is_refused(
    sent: Upload | Evaluation | OutOfStep, fields: Mapping[str, Any], telling: str
) -> None:
    with pytest.raises(InvalidUpdateError, match=telling):
        read_reply(changed(write_reply(sent), **fields), no_rows)


def test_arrays_that_changed_on_the_way_are_refused() -> None:
    content = write_reply(UPLOAD)
    content["adapter"] = write_reply(replace(UPLOAD, adapter=adapter(2, 2, dtype=torch.float32))).array_records[
        "adapter"
    ]
    with pytest.raises(InvalidUpdateError, match=r"SHA-256 .* differs; send them again"):
        read_reply(content, no_rows)
    without = write_reply(UPLOAD)
    del without["saved_parameters"]
    with pytest.raises(InvalidUpdateError, match="SHA-256"):
        read_reply(without, no_rows)


def test_a_message_of_somebody_else_is_refused() -> None:
    for content in (RecordDict(), RecordDict({"fedavg": ConfigRecord({})}), RecordDict({"florist": MetricRecord({})})):
        with pytest.raises(InvalidUpdateError, match="expected a message of florist, got one with the parts"):
            read_reply(content, no_rows)


@pytest.mark.parametrize(
    ("fields", "telling"),
    [
        ({"max_rank": 0}, "Assignment.max_rank: Input should be greater than 0"),
        ({"since": -2}, "Assignment.since: Input should be greater than or equal to -1"),
        ({"until": -1}, "Assignment.until: Input should be greater than or equal to 0"),
        ({"replaces": 1}, "Assignment.replaces: Input should be a valid boolean"),
        ({"seed": -1}, "Assignment.seed"),
        ({"counted": -1}, "Assignment.counted: Input should be greater than or equal to 0"),
        ({"upload.codec": 4}, "Assignment.upload.codec: Input should be a valid string, got 4"),
        ({"upload.cut": None}, "Assignment.upload.cut: Field required"),
        ({"upload.limit": -0.5}, "Assignment.upload.limit: Input should be greater than or equal to 0"),
        ({"upload.limit": math.nan}, "Assignment.upload.limit: Input should be a finite number"),
        ({"upload.rank_factor": math.inf}, "Assignment.upload.rank_factor: Input should be a finite number"),
        ({"upload.feedback": 1}, "Assignment.upload.feedback: Input should be a valid boolean"),
    ],
)
def test_what_is_no_assignment_is_refused(fields: Mapping[str, Any], telling: str) -> None:
    content = write_instruction(Instruction(ASSIGNMENT, NO_ADAPTER, NO_ADAPTER, {}, {}))
    with pytest.raises(InvalidUpdateError, match=telling):
        read_instruction(changed(content, **fields), lambda _assignment: no_rows)


@pytest.mark.parametrize("trained", [8, -9, 99])
def test_what_no_version_trains_is_refused(trained: int) -> None:
    with pytest.raises(InvalidUpdateError, match=f"expected a value of Trained up to 7, got {trained}"):
        replace(ASSIGNMENT, trained=trained).travels  # noqa: B018  # reading it is what raises


def test_an_unknown_start_is_refused() -> None:
    with pytest.raises(InvalidUpdateError, match=r"local_init of fresh, aligned, warm, got 'cold'; .*same version"):
        replace(ASSIGNMENT, local_init="cold").start(SHAPES)


@pytest.mark.parametrize(
    ("directions", "telling"),
    [
        ({"other": torch.ones(1, 16)}, "other: expected rows of a module of this model"),
        ({"layers.1.up": torch.ones(2, 16)}, r"layers\.1\.up: expected rows .* got the shape \(2, 16\)"),
        ({"layers.1.up": torch.ones(9)}, r"got the shape \(9,\)"),
    ],
)
def test_directions_must_fit_the_model(directions: Mapping[str, Tensor], telling: str) -> None:
    with pytest.raises(InvalidUpdateError, match=telling):
        adapter_along(directions, SHAPES)


def test_directions_are_rows_under_zero() -> None:
    sent = adapter(2, 1)
    found = adapter_along(directions_of(sent), SHAPES)
    assert all(torch.equal(found[name].A, sent[name].A) for name in SHAPES)
    assert all(not found[name].B.any() and found[name].B.shape == sent[name].B.shape for name in SHAPES)


# --- anything at all

SCALARS = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(), st.booleans(), st.text(max_size=8), st.binary(max_size=8)
)
VALUES = st.one_of(
    SCALARS,
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
    st.lists(st.floats(), max_size=4),
    st.lists(st.text(max_size=4), max_size=4),
    st.lists(st.binary(max_size=4), max_size=4),
)
FIELDS = st.dictionaries(
    st.sampled_from(
        [
            "kind",
            "sha256",
            "protocol",
            "client_id",
            "rank",
            "num_examples",
            "base",
            "modules",
            "out_features",
            "saved_parameters",
            "in_features",
            "holds",
            "loss",
            "seconds",
            "round_number",
            "names",
            "values",
            "held_back",
            "begins_anew",
            "loss.loss",
            "new",
        ]
    ),
    VALUES,
    max_size=6,
)
ARRAYS = st.dictionaries(
    st.sampled_from(["tensors", "0", "q.B", ""]),
    st.builds(
        Array,
        dtype=st.sampled_from(["float32", "bfloat16", "int64", "object", "complex64", "x"]),
        shape=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), max_size=3).map(tuple),
        stype=st.sampled_from(["safetensors", "numpy.ndarray", "pickle"]),
        data=st.binary(max_size=20),
    )
    | st.builds(
        lambda names, dtype, shape: tensors_to_arrays({name: torch.ones(shape, dtype=dtype) for name in names})[
            "tensors"
        ],
        st.lists(
            st.sampled_from(["q.B", "q.A", "layers.1.up.B", "layers.1.up.A", "B", ".", ""]), min_size=1, unique=True
        ),
        st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]),
        st.lists(st.integers(0, 3), max_size=3),
    ),
    max_size=3,
).map(ArrayRecord)
KINDS = [write_introduction(INTRODUCTION), write_reply(UPLOAD), write_reply(EVALUATION), write_reply(OutOfStep("x", 1))]


@given(
    base=st.sampled_from(KINDS), fields=FIELDS, arrays=ARRAYS | st.none(), packed=st.booleans(), sealed=st.booleans()
)
@example(base=KINDS[1], fields={}, arrays=ArrayRecord(), packed=False, sealed=True)
@pytest.mark.usefixtures("without_shape_checks")
def test_anything_that_comes_is_read_or_refused(
    base: RecordDict, fields: Mapping[str, Any], arrays: ArrayRecord | None, packed: bool, sealed: bool
) -> None:
    content = changed(base, **fields)
    if arrays is not None:
        content["packed" if packed else "adapter"] = arrays
    if sealed:
        sent = [
            content.array_records[name]
            for name in ("packed", "adapter", "saved_parameters")
            if name in content.array_records
        ]
        content = changed(content, sha256=digest(sent))
    for read in (read_introduction, lambda some: read_reply(some, lambda _, rank: torch.ones(rank, 9))):
        try:
            found = read(content)
        except FloristError as refusal:
            assert str(refusal)  # noqa: PT017  # what is sound passes
        else:
            assert isinstance(found, Introduction | Upload | Evaluation | OutOfStep)
