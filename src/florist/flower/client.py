"""Flower's ``ClientApp`` for a participant: it keeps what was downloaded, trains when asked, and answers."""

from collections.abc import Callable
from dataclasses import replace

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from torch import Tensor

from florist.compression.residual import NOTHING_OWED, Residual
from florist.errors import InvalidUpdateError
from florist.flower import private_client, protocol
from florist.flower.arrays import Rows
from florist.flower.client_state import ClientState
from florist.flower.download_checks import require_possible, require_sound
from florist.flower.limits import Limits
from florist.flower.messages import (
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
from florist.flower.pending_residuals import PendingResiduals, misfit
from florist.flower.private_terms import ANYTHING, Demands
from florist.rounds import NO_ADAPTER, ClientUpdate, ClientWork
from florist.seeding import random_rows


def client_app(
    participant: Callable[[Context], Participant],
    mods: list[Mod] | None = None,
    demands: Callable[[Context], Demands] = lambda _context: ANYTHING,
) -> ClientApp:
    """Make the app of a client.

    Nothing but adapters, saved parameters, counts and metrics leaves the client; in masked rounds, nothing but keys,
    sealed shares and masked words.

    Args:
        participant: gives the client of a node from Flower's context; it is called for every message, but for those of
            a masked round after the first, which need no model. Where the engine keeps processes, it may keep the
            model.
        mods: Flower's mods, which are put around every message.
        demands: gives the least protection that the client takes part with; by default none.
    """
    app = ClientApp(mods=mods)

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        return _introduce(participant(context), demands(context), message, context)

    @app.query("saved_parameters")
    def saved_parameters(message: Message, context: Context) -> Message:
        return Message(protocol.write_saved_parameters(participant(context).saved_parameters), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        own = participant(context)

        def answer(state: ClientState, instruction: Instruction) -> RecordDict:
            return protocol.write_reply(_train(own, state, instruction, context.state), own.trained)

        def check(assignment: Assignment) -> None:
            demands(context).require_unmasked("train in the clear")
            if assignment.privacy is not None:
                raise InvalidUpdateError("expected no terms of a masked round in an instruction that is not of one")

        return _follow(own, message, context, answer, check)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        own = participant(context)

        def answer(state: ClientState, _instruction: Instruction) -> RecordDict:
            return protocol.write_reply(_evaluate(own, state))

        return _follow(own, message, context, answer, lambda _: demands(context).require_unmasked("tell its metrics"))

    @app.train("keys")
    def keys(message: Message, context: Context) -> Message:
        own = participant(context)

        def answer(state: ClientState, instruction: Instruction) -> RecordDict:
            return private_client.published(own, state, instruction, context.state)

        def check(assignment: Assignment) -> None:
            private_client.require_protected(own, demands(context), assignment, context.state)

        return _follow(own, message, context, answer, check)

    @app.query("shares")
    def shares(message: Message, context: Context) -> Message:
        return Message(private_client.shared(message, context.state), reply_to=message)

    @app.query("words")
    def words(message: Message, context: Context) -> Message:
        return Message(private_client.masked(message, context.state), reply_to=message)

    @app.query("reveal")
    def reveal(message: Message, context: Context) -> Message:
        return Message(private_client.revealed(message, context.state), reply_to=message)

    return app


def _introduce(participant: Participant, demands: Demands, message: Message, context: Context) -> Message:
    shapes = participant.shapes
    introduction = Introduction(
        protocol=PROTOCOL,
        client_id=participant.client_id,
        rank=participant.rank,
        num_examples=None if demands.masked else participant.num_examples,
        held_out=0 if demands.masked else participant.held_out,
        base=participant.base,
        modules=list(shapes),
        out_features=[shape[0] for shape in shapes.values()],
        in_features=[shape[1] for shape in shapes.values()],
        saved_parameters=sorted(participant.saved_parameters),
        holds=ClientState.load(context.state).round_number,
    )
    return Message(protocol.write_introduction(introduction), reply_to=message)


def _follow(
    participant: Participant,
    message: Message,
    context: Context,
    answer: Callable[[ClientState, Instruction], RecordDict],
    check: Callable[[Assignment], None],
) -> Message:
    """Bring the state of the client up to date and do what is asked.

    Args:
        participant: the client.
        message: the instruction.
        context: has the client's memory.
        answer: does what is asked, and gives the content of the reply.
        check: refuses an assignment, before its arrays are read.
    """
    shapes = participant.shapes

    def rows_of(assignment: Assignment) -> Rows:
        check(assignment)
        require_possible(assignment, shapes)
        if assignment.travels != participant.trained:
            raise InvalidUpdateError(
                f"expected a federation that trains {participant.trained!r} as this client does, got "
                f"{assignment.travels!r}; client and server need the same aggregation.method"
            )

        def rows(module: str, rank: int) -> Tensor:
            return random_rows(assignment.rows_seed, module, assignment.max_rank, shapes[module][1])[:rank]

        return rows

    Limits.of_names(shapes, participant.saved_parameters).require(message.content)
    instruction = protocol.read_instruction(message.content, rows_of)
    require_sound(instruction, shapes, participant.saved_parameters)
    before = ClientState.load(context.state)
    own = protocol.widened(instruction.saved_parameters, participant.saved_parameters)
    state = before.after(replace(instruction, saved_parameters=own), shapes)
    if state is None:
        reply = OutOfStep(participant.client_id, before.round_number)
        return Message(protocol.write_reply(reply), reply_to=message)
    state.save(context.state)
    return Message(answer(state, instruction), reply_to=message)


def _train(participant: Participant, state: ClientState, instruction: Instruction, memory: RecordDict) -> Upload:
    """Train, and send what the terms of the assignment let through; the rest is held back in the memory."""
    assignment = instruction.assignment
    communication = assignment.upload.communication
    owed, begins_anew = _owed(participant, assignment, memory)
    start = state.start(instruction, participant.rank, participant.shapes)
    outcome = participant.train(start, state.saved_parameters, assignment)
    sent = communication.sent_update(
        ClientUpdate(
            participant.client_id,
            outcome.adapter,
            participant.num_examples,
            assignment.round_number,
            outcome.saved_parameters,
        ),
        owed,
        ClientWork(participant.trained),
        given=state.given(instruction, participant.rank, participant.shapes),
        max_rank=participant.rank,
    )
    if assignment.upload.feedback:
        PendingResiduals.either(assignment.counted, owed, assignment.round_number, sent.owed).save(
            memory, participant.client_id
        )
    report = Report(
        client_id=participant.client_id,
        round_number=assignment.round_number,
        num_examples=participant.num_examples,
        base=participant.base,
        holds=state.round_number,
        loss=outcome.loss,
        seconds=outcome.seconds,
        held_back=sent.update.held_back,
        begins_anew=begins_anew,
    )
    adapter = sent.update.adapter if sent.packed is None else NO_ADAPTER
    saved = protocol.narrowed(sent.update.saved_parameters, communication.saved_upload)
    return Upload(report, adapter, saved, sent.packed)


def _owed(participant: Participant, assignment: Assignment, memory: RecordDict) -> tuple[Residual, str]:
    """What the client holds back as training begins, and why that is nothing where it should be something."""
    if not assignment.upload.feedback:
        return NOTHING_OWED, ""
    owed = PendingResiduals.load(memory, participant.client_id).since(assignment.counted)
    if owed is None:
        return NOTHING_OWED, f"it has not kept what it held back after round {assignment.counted}"
    reason = misfit(owed, participant.shapes, participant.saved_parameters)
    return (NOTHING_OWED, reason) if reason is not None else (owed, "")


def _evaluate(participant: Participant, state: ClientState) -> Evaluation:
    metrics = participant.evaluate(state.global_adapter, state.saved_parameters)
    names = sorted(metrics)
    return Evaluation(
        client_id=participant.client_id,
        holds=state.round_number,
        num_examples=participant.held_out,
        names=names,
        values=[float(metrics[name]) for name in names],
    )
