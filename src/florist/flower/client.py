"""Flower's ``ClientApp`` for a participant: it keeps what was downloaded, trains when asked, and answers."""

from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from torch import Tensor

from florist.errors import InvalidUpdateError
from florist.flower import protocol
from florist.flower.arrays import Rows
from florist.flower.client_state import ClientState
from florist.flower.messages import (
    EVALUATE,
    PROTOCOL,
    Assignment,
    Evaluation,
    Instruction,
    Introduction,
    OutOfStep,
    Report,
    Upload,
)
from florist.flower.participant import Participant
from florist.seeding import random_rows


def client_app(participant: Callable[[Context], Participant], mods: list[Mod] | None = None) -> ClientApp:
    """Make the app of a client.

    Nothing but adapters, saved parameters, counts and metrics leaves the client.

    Args:
        participant: gives the client of a node from Flower's context; it is called for every message. Where the engine
            keeps processes, it may keep the model.
        mods: Flower's mods, which are put around every message.
    """
    app = ClientApp(mods=mods)

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        return _introduce(participant(context), message, context)

    @app.query("saved_parameters")
    def saved_parameters(message: Message, context: Context) -> Message:
        return Message(protocol.write_saved_parameters(participant(context).saved_parameters), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return _follow(participant(context), message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return _follow(participant(context), message, context)

    return app


def _introduce(participant: Participant, message: Message, context: Context) -> Message:
    shapes = participant.shapes
    introduction = Introduction(
        protocol=PROTOCOL,
        client_id=participant.client_id,
        rank=participant.rank,
        num_examples=participant.num_examples,
        held_out=participant.held_out,
        base=participant.base,
        modules=list(shapes),
        out_features=[shape[0] for shape in shapes.values()],
        in_features=[shape[1] for shape in shapes.values()],
        saved_parameters=sorted(participant.saved_parameters),
        holds=ClientState.load(context.state).round_number,
    )
    return Message(protocol.write_introduction(introduction), reply_to=message)


def _follow(participant: Participant, message: Message, context: Context) -> Message:
    """Bring the state of the client up to date and do what is asked."""
    shapes = participant.shapes

    def rows_of(assignment: Assignment) -> Rows:
        if assignment.travels != participant.trained:
            raise InvalidUpdateError(
                f"expected a federation that trains {participant.trained!r} as this client does, got "
                f"{assignment.travels!r}; client and server need the same aggregation.method"
            )

        def rows(module: str, rank: int) -> Tensor:
            return random_rows(assignment.rows_seed, module, assignment.max_rank, shapes[module][1])[:rank]

        return rows

    instruction = protocol.read_instruction(message.content, rows_of)
    before = ClientState.load(context.state)
    state = before.after(instruction, shapes)
    if state is None:
        reply = OutOfStep(participant.client_id, before.round_number)
        return Message(protocol.write_reply(reply), reply_to=message)
    state.save(context.state)
    act = _evaluate if message.metadata.message_type.partition(".")[0] == EVALUATE else _train
    return Message(protocol.write_reply(act(participant, state, instruction), participant.trained), reply_to=message)


def _train(participant: Participant, state: ClientState, instruction: Instruction) -> Upload:
    outcome = participant.train(
        state.start(instruction, participant.rank, participant.shapes), state.saved_parameters, instruction.assignment
    )
    report = Report(
        client_id=participant.client_id,
        round_number=instruction.assignment.round_number,
        num_examples=participant.num_examples,
        base=participant.base,
        holds=state.round_number,
        loss=outcome.loss,
        seconds=outcome.seconds,
    )
    return Upload(report, outcome.adapter, outcome.saved_parameters)


def _evaluate(participant: Participant, state: ClientState, instruction: Instruction) -> Evaluation:  # noqa: ARG001  # as _train
    metrics = participant.evaluate(state.global_adapter, state.saved_parameters)
    names = sorted(metrics)
    return Evaluation(
        client_id=participant.client_id,
        holds=state.round_number,
        num_examples=participant.held_out,
        names=names,
        values=[float(metrics[name]) for name in names],
    )
