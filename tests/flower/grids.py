"""A grid in memory: messages go straight to the apps of the clients, through Flower's own serialisation.

Of the tests, this file alone touches what is not of Flower's documented API.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity


def as_in_a_process() -> None:
    """Set what Flower's processes set, without which it makes no messages."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def identified(message: Message, name: str) -> Message:
    """The message with the id that it has once it was sent."""
    message.metadata.__dict__["_message_id"] = name
    return message


Deliver = Callable[[Message, Message], list[Message]]
"""Message and reply -> the replies that arrive."""


class MemoryGrid(Grid):
    """Nodes whose apps run in this process, in the order of their messages.

    Args:
        app: of all clients.
        nodes: node id -> its node config.
        deliver: what arrives of a reply; by default the reply, once.
    """

    def __init__(
        self,
        app: ClientApp,
        nodes: Mapping[int, Mapping[str, str | int]],
        deliver: Deliver = lambda _message, reply: [reply],
        run_config: Mapping[str, str | int] | None = None,
    ) -> None:
        as_in_a_process()
        self.app = app
        self.deliver = deliver
        self.contexts = {
            node: Context(1, node, dict(config), RecordDict(), dict(run_config or {})) for node, config in nodes.items()
        }
        self.absent: set[int] = set()
        self.sent: list[Message] = []
        self._replies: dict[str, list[Message]] = {}
        self._numbers = itertools.count(1)

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in self.contexts if node not in self.absent]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names: list[str] = []
        for message in messages:
            assert isinstance(messages, list)  # Flower's deployment sends no generator
            name = f"message-{next(self._numbers)}"
            self.sent.append(identified(message, name))
            reply = message_from_proto(message_to_proto(self._answer(message_from_proto(message_to_proto(message)))))
            self._replies[name] = self.deliver(message, reply)
            names.append(name)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [reply for name in message_ids for reply in self._replies.pop(name, [])]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        if node in self.absent:
            return unavailable(message)
        try:
            return self.app(message, self.contexts[node])
        except Exception as error:  # noqa: BLE001  # as Flower does with whatever an app raises
            return Message(Error(2, f"Traceback\n{type(error).__name__}: {error}"), reply_to=message)

    def nodes_of(self, message_type: str) -> list[int]:
        """Where messages of a type went, in their order."""
        return [each.metadata.dst_node_id for each in self.sent if each.metadata.message_type == message_type]

    def forget(self, node: int) -> None:
        """As when a SuperNode is started anew."""
        self.contexts[node].state = RecordDict()


def unavailable(message: Message) -> Message:
    """As Flower reports a lost node, in the name of node 1."""
    reply = Message(Error(5, "Node Unavailable"), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = 1
    return reply
