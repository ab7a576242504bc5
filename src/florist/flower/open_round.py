"""A round under way: what was sent to whom, who answered, and who is dropped and why."""

import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from flwr.app import Message
from flwr.serverapp import Grid

from florist.errors import FloristError
from florist.federation.recording import LocalWork
from florist.federation.records import Drop
from florist.federation.state import ServerState
from florist.flower.client_texts import last_line, one_line
from florist.flower.exchange import Exchange
from florist.flower.limits import ContradictionError
from florist.flower.messages import EVALUATE, KEYS, TRAIN, Evaluation, OutOfStep, Upload
from florist.flower.private_messages import Published
from florist.flower.roster import LOG

GRACE = 30.0
"""Seconds that Flower keeps a message after the deadline: an expired one comes back as an error, and that it came too
late is said more clearly here."""

Answer = Upload | Evaluation | Published
"""What a client answers an instruction with that it has followed."""
_EXPECTED: Mapping[str, type[Answer]] = {TRAIN: Upload, EVALUATE: Evaluation, KEYS: Published}


@dataclass(slots=True, eq=False)
class OpenRound:
    """One round's messages and their fate.

    Attributes:
        exchange: what clients are told.
        number: the number of the round.
        nodes: the nodes by client id.
        timeout: seconds for the replies.
        dropped: the clients that do not count, and why.
        contradicted: the clients whose reply contradicts what they introduced themselves with.
        download_bytes: the bytes of all that was sent, by client that was asked.
        reported: what clients reported of their training, by client.
        holds: the rounds that clients say they hold, where they said so.
    """

    exchange: Exchange
    number: int
    nodes: Mapping[str, int]
    timeout: float
    dropped: list[Drop] = field(default_factory=list)
    contradicted: set[str] = field(default_factory=set)
    download_bytes: Counter[str] = field(default_factory=Counter)
    reported: dict[str, LocalWork] = field(default_factory=dict)
    holds: dict[str, int | None] = field(default_factory=dict)
    _sent: list[tuple[Message, str]] = field(default_factory=list)
    _sent_at: float = 0.0
    _kind: str = TRAIN

    def drop(self, client_id: str, reason: str) -> None:
        """Note that a client does not count in this round; the reason may be the client's own words.

        A client that trained and then does not evaluate counts all the same: only its metrics are missing.
        """
        shown = one_line(reason)
        if self._kind == EVALUATE:
            LOG.warning("round %d: the metrics of %s are left out: %s", self.number, client_id, shown)
            return
        LOG.warning("round %d: %s is dropped: %s", self.number, client_id, shown)
        self.dropped.append(Drop(client_id, shown))

    def messages(self, clients: Iterable[str], kind: str) -> list[Message]:
        """The instructions for clients, as a list, since Flower's deployment cannot send a generator."""
        self._kind, self._sent_at = kind, time.monotonic()
        make = self.exchange.to_evaluate if kind == EVALUATE else self.exchange.to_train
        self._sent = []
        for client_id in clients:
            content, download = make(client_id)
            node, lifetime = self.nodes[client_id], self.timeout + GRACE
            message = Message(content, node, kind, ttl=lifetime, group_id=str(self.number))
            self._sent.append((message, client_id))
            self.download_bytes[client_id] += download.nbytes
        return [message for message, _ in self._sent]

    def answers(self, grid: Grid, replies: Iterable[Message]) -> dict[str, list[Answer]]:
        """What clients sent, by client; a client that held another round than was thought is asked once more.

        Args:
            grid: carries the messages.
            replies: the replies to the last `messages`.
        """
        found: dict[str, list[Answer]] = {}
        expected = _EXPECTED[self._kind]
        behind = self._take(replies, expected, found)
        if behind:
            self.exchange = replace(self.exchange, state=self.as_told(self.exchange.state))
            left = max(1.0, self.timeout - (time.monotonic() - self._sent_at))
            again = grid.send_and_receive(self.messages(behind, self._kind), timeout=left)
            for client_id in self._take(again, expected, found):
                self.drop(client_id, "it holds something else after it was sent what it misses")
        return found

    def as_told(self, state: ServerState) -> ServerState:
        """A state with the rounds that clients say they hold."""
        return self.exchange.federation.with_holds(state, self.holds)

    @property
    def work(self) -> Mapping[str, LocalWork]:
        """What each client did that was asked, for the round record."""
        idle = LocalWork(0, 0.0, 0.0)
        return {
            client_id: replace(self.reported.get(client_id, idle), download_bytes=nbytes)
            for client_id, nbytes in self.download_bytes.items()
        }

    def _take(
        self,
        replies: Iterable[Message],
        expected: type[Answer],
        found: dict[str, list[Answer]],
    ) -> Collection[str]:
        """Sort the replies into `found` and `dropped`; the result is the clients that hold another round."""
        # A reply is known by the message that it answers: Flower's report of a lost node does not carry the node's id.
        clients = {message.metadata.message_id: client_id for message, client_id in self._sent}
        waiting = dict.fromkeys(client_id for _, client_id in self._sent)
        behind: dict[str, None] = {}
        for reply in replies:
            client_id = clients.get(reply.metadata.reply_to_message_id)
            if client_id is None:
                continue  # it answers a message of another round
            waiting.pop(client_id, None)
            answer = self._read(client_id, reply, expected)
            if isinstance(answer, OutOfStep):
                LOG.info(
                    "round %d: %s holds round %d, and is sent what it misses", self.number, client_id, answer.holds
                )
                behind[client_id] = None
                self.holds[client_id] = self.exchange.plausible(answer.holds)
            elif answer is not None:
                if isinstance(answer, Upload):
                    self.reported[client_id] = LocalWork(0, answer.report.loss, answer.report.seconds)
                    if answer.report.begins_anew:
                        why = one_line(answer.report.begins_anew)
                        LOG.warning("round %d: %s begins with nothing held back: %s", self.number, client_id, why)
                found.setdefault(client_id, []).append(answer)
                self.holds[client_id] = self.exchange.state.latest
        for client_id in waiting:
            self.drop(client_id, f"no reply within {self.timeout:g} s")
        return behind

    def _read(self, client_id: str, reply: Message, expected: type[Answer]) -> Answer | OutOfStep | None:
        """The reply of a client that can be used; None where the client is dropped."""
        if reply.has_error():
            self.drop(client_id, last_line(reply.error.reason))
            return None
        try:
            answer = self.exchange.read(client_id, reply.content)
        except FloristError as error:
            if isinstance(error, ContradictionError):
                self.contradicted.add(client_id)
            self.drop(client_id, str(error))
            return None
        if not isinstance(answer, OutOfStep | expected):
            self.drop(client_id, f"expected the kind {expected.__name__}, got {type(answer).__name__}")
            return None
        reason = self.exchange.contradiction(client_id, answer)
        if reason is not None:
            self.contradicted.add(client_id)
        elif not isinstance(answer, OutOfStep):
            reason = self.exchange.refusal(client_id, answer)
        if reason is not None:
            self.drop(client_id, reason)
            return None
        return answer
