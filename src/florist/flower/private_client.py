"""A client in the phases of a masked round.

It trains in the first, and keeps what it is going to send to itself. Whatever the server asks, it shares its secrets
and reveals shares once a round, and sends words once a round number: `PrivateMemory` sees to that from one process to
the next. A phase that fails changes nothing of what is kept.
"""

from flwr.app import Message, RecordDict

from florist.errors import InvalidUpdateError, RosterError
from florist.federation.summed import change_of
from florist.flower import private_protocol
from florist.flower.client_state import ClientState
from florist.flower.messages import Assignment, Instruction
from florist.flower.participant import Participant
from florist.flower.private_memory import PrivateMemory
from florist.flower.private_messages import PublishedKeys
from florist.flower.private_terms import Demands, PrivacyTerms
from florist.privacy.turn import Turn
from florist.rounds import ClientUpdate


def require_protected(participant: Participant, demands: Demands, assignment: Assignment, memory: RecordDict) -> None:
    """Check what a masked round asks, before anything is trained.

    Raises:
        InvalidUpdateError: it protects less than the client demands, or does not fit it.
        RosterError: the client has sent words in that round.
    """
    terms = _terms(assignment)
    demands.require(terms)
    terms.require_possible(participant.rank, assignment.max_rank, participant.shapes, participant.saved_parameters)
    PrivateMemory.load(memory).require_unsent(participant.client_id, assignment.round_number)


def published(participant: Participant, state: ClientState, instruction: Instruction, memory: RecordDict) -> RecordDict:
    """Train, bound what training changed, add noise where the terms say so, keep it, and answer with new public keys.

    Raises:
        InvalidUpdateError: what was trained cannot be bounded.
    """
    assignment, terms = instruction.assignment, _terms(instruction.assignment)
    before = {**participant.saved_parameters, **state.saved_parameters}
    start = state.start(instruction, participant.rank, participant.shapes)
    outcome = participant.train(start, state.saved_parameters, assignment)
    update = ClientUpdate(
        participant.client_id,
        outcome.adapter,
        participant.num_examples,
        assignment.round_number,
        outcome.saved_parameters,
    )
    bounding = terms.bounding(assignment.max_rank, before)
    mine = bounding.contribution(change_of(state.continued, before, update), participant.num_examples)
    words = terms.layout(before).encoded(mine.change.B, mine.change.saved_parameters, mine.weight, terms.rank)
    turn = Turn.begun(
        participant.client_id,
        assignment.round_number,
        len(words),
        smallest_threshold=terms.threshold,
        smallest_group=terms.smallest_group,
    )
    PrivateMemory.load(memory).begun(turn, words).save(memory)
    said = PublishedKeys(
        participant.client_id,
        assignment.round_number,
        participant.base,
        state.round_number,
        len(words),
        bounding.share.deviation if bounding.share is not None else None,
    )
    return private_protocol.write_keys(said, turn.public)


def shared(message: Message, memory: RecordDict) -> RecordDict:
    """Take the roster, and seal shares for its clients.

    Raises:
        RosterError: there is no round under way, or the roster is not one that the client takes part in.
    """
    kept = PrivateMemory.load(memory)
    roster = private_protocol.read_roster(message.content)
    sealed, turn = kept.in_turn().shared(roster)
    kept.after(turn).save(memory)
    return private_protocol.write_sealed(roster, sealed)


def masked(message: Message, memory: RecordDict) -> RecordDict:
    """Take what was sealed for the client, and send its words under masks.

    Raises:
        RosterError: there is no round under way, words were sent before, or the message is of another roster.
        BelowThresholdError: too few have shared.
    """
    kept = PrivateMemory.load(memory)
    turn = kept.in_turn()
    kept.require_unsent(turn.client_id, turn.round_number)
    if turn.roster is None or kept.words is None:
        raise RosterError(f"{turn.client_id}: expected the roster of round {turn.round_number} first; it sends nothing")
    received = private_protocol.read_received(message.content, turn.roster)
    words, after = turn.masked(received, kept.words)
    kept.after(after).save(memory)
    return private_protocol.write_words(turn.roster, words)


def revealed(message: Message, memory: RecordDict) -> RecordDict:
    """Reveal the shares that take the masks off the sum, and let all secrets go.

    Raises:
        RosterError: there is no round under way, shares were revealed before, or the message is of another roster.
        BelowThresholdError: too few are left.
        BrokenSharesError: shares cannot be opened.
    """
    kept = PrivateMemory.load(memory)
    turn = kept.in_turn()
    if turn.roster is None:
        raise RosterError(
            f"{turn.client_id}: expected the roster of round {turn.round_number} first; it reveals nothing"
        )
    survivors = private_protocol.read_survivors(message.content, turn.roster)
    shares, after = turn.revealed(survivors)
    kept.after(after).save(memory)
    return private_protocol.write_revealed(turn.roster, shares)


def _terms(assignment: Assignment) -> PrivacyTerms:
    if assignment.privacy is None:
        raise InvalidUpdateError("expected the terms of a masked round, got an instruction without; nothing is trained")
    return assignment.privacy
