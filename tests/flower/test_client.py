import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from florist.errors import InvalidUpdateError
from florist.flower.arrays import arrays_to_tensors
from florist.flower.client_state import ClientState
from florist.flower.messages import EVALUATE, HELLO, TRAIN, Assignment, Evaluation, Instruction, OutOfStep, Upload
from florist.flower.protocol import read_introduction, read_reply, write_instruction
from florist.flower.upload_terms import AS_THEY_ARE
from florist.rounds import NO_ADAPTER, Trained
from tests.builders import SHAPES, adapter
from tests.flower.grids import as_in_a_process, identified
from tests.flower.participants import Light, app_of

ASSIGNMENT = Assignment(
    1,
    -1,
    0,
    replaces=False,
    seed=5,
    rows_seed=6,
    max_rank=4,
    trained=3,
    local_init="fresh",
    counted=0,
    upload=AS_THEY_ARE,
)


def ask(client: Light, content: RecordDict, kind: str, context: Context) -> RecordDict:
    as_in_a_process()
    return app_of({7: client})(identified(Message(content, 7, kind), "m"), context).content


def node() -> Context:
    return Context(1, 7, {}, RecordDict(), {})


def instruction(assignment: Assignment) -> RecordDict:
    return write_instruction(Instruction(assignment, NO_ADAPTER, NO_ADAPTER, {}, {}))


def answer(client: Light, assignment: Assignment, kind: str, context: Context) -> Upload | OutOfStep | Evaluation:
    return read_reply(
        ask(client, instruction(assignment), kind, context), lambda module, _rank: adapter(1, 1)[module].A
    )


def test_a_client_introduces_itself_and_what_it_holds() -> None:
    context = node()
    found = read_introduction(ask(Light("a", rank=3, num_examples=9), RecordDict(), HELLO, context))
    assert (found.client_id, found.rank, found.num_examples, found.base) == ("a", 3, 9, "the base")
    assert (found.shapes, found.holds) == (SHAPES, -1)
    ClientState(4, adapter(2, 1)).save(context.state)
    assert read_introduction(ask(Light("a"), RecordDict(), HELLO, context)).holds == 4


def test_it_trains_and_remembers() -> None:
    context, client = node(), Light("a")
    found = answer(client, ASSIGNMENT, TRAIN, context)
    assert isinstance(found, Upload)
    assert (found.report.round_number, found.report.holds, found.report.seconds) == (1, 0, 0.25)
    assert ClientState.load(context.state).round_number == 0
    again = answer(client, ASSIGNMENT, EVALUATE, context)
    assert again == Evaluation("a", 0, 0, [], [])


def test_it_says_what_it_holds_where_a_download_does_not_fit() -> None:
    context, client = node(), Light("a")
    assignment = Assignment(
        3,
        1,
        2,
        replaces=False,
        seed=5,
        rows_seed=6,
        max_rank=4,
        trained=3,
        local_init="fresh",
        counted=0,
        upload=AS_THEY_ARE,
    )
    assert answer(client, assignment, TRAIN, context) == OutOfStep("a", -1)
    assert client.starts == []
    assert not context.state


def test_a_server_of_another_method_is_refused() -> None:
    client = Light("a", trained=Trained.B)
    with pytest.raises(
        InvalidUpdateError, match=r"expected a federation that trains .*need the same aggregation.method"
    ):
        ask(client, instruction(ASSIGNMENT), TRAIN, node())


def test_a_message_of_another_server_is_refused() -> None:
    with pytest.raises(InvalidUpdateError, match="expected a message of florist, got one with the parts"):
        ask(Light("a"), RecordDict({"config": ConfigRecord({"lr": 0.1})}), TRAIN, node())


def test_random_rows_of_b_alone_are_those_of_the_assignment() -> None:
    client, context = Light("a", trained=Trained.B), node()
    assignment = Assignment(
        1,
        -1,
        0,
        replaces=False,
        seed=5,
        rows_seed=6,
        max_rank=4,
        trained=Trained.B.value,
        local_init="fresh",
        counted=0,
        upload=AS_THEY_ARE,
    )
    content = ask(client, instruction(assignment), TRAIN, context)
    assert sorted(arrays_to_tensors(content.array_records["adapter"])) == sorted(f"{name}.B" for name in SHAPES)
