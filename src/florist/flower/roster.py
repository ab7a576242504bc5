"""Who the clients are: which node speaks for which client, as they introduced themselves.

Node ids change when a SuperNode is registered anew, and are random in a simulation. A client is its name, so that it
may return on another node, and so that draws of participants do not depend on node ids.
"""

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from florist.errors import FloristError, TooFewClientsError
from florist.flower import protocol
from florist.flower.client_texts import last_line, one_line
from florist.flower.messages import HELLO, Introduction

LOG = logging.getLogger("flwr")
"""Flower's own log, so that everything of a run is in one place."""

PAUSE = 1.0
"""Seconds between two looks at who is there."""
ATTEMPTS = 3
"""How often a node that fails is asked who it is."""
ROUNDS_AWAY = 3
"""How many rounds in a row a client may be away from before it is thought to have left."""


@dataclass(slots=True)
class Roster:
    """The clients that have introduced themselves.

    Attributes:
        members: the introductions by client id.
        nodes: the node that speaks for a client, by client id; a member without one is about to be asked again.
        refused: why a node may not take part; forgotten when the node goes, since it may come back repaired.
    """

    members: dict[str, Introduction] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    _asked: dict[str, int] = field(default_factory=dict)
    _failures: dict[int, int] = field(default_factory=dict)
    _doubles: dict[int, str] = field(default_factory=dict)
    _newcomers: dict[str, Introduction] = field(default_factory=dict)
    _rounds_away: dict[str, int] = field(default_factory=dict)

    def gather(self, grid: Grid, count: int, seconds: float) -> None:
        """Wait until so many clients are there.

        Raises:
            TooFewClientsError: in that time there were fewer.
        """
        deadline = time.monotonic() + seconds
        LOG.info("waiting for %d clients, for at most %.0f s", count, max(0.0, seconds))
        while True:
            connected = self.refresh(grid)
            if len(connected) >= count:
                return
            left = deadline - time.monotonic()
            if left <= 0:
                break
            time.sleep(min(PAUSE, left))
        refused = "".join(f"; node {node}: {reason}" for node, reason in self.refused.items())
        silent = f"; {len(self._asked)} more did not answer" if self._asked else ""
        raise TooFewClientsError(
            f"expected {count} clients within {seconds:g} s, got {', '.join(connected) or 'none'}{silent}{refused}; "
            "start more SuperNodes, or wait longer"
        )

    def refresh(self, grid: Grid) -> tuple[str, ...]:
        """Ask nodes that are new, take in what they answered, and say which clients can be reached, sorted.

        It does not wait: a node that is asked now speaks for a client once it has answered.
        """
        present = set(grid.get_node_ids())
        self._forget(present)
        known = {*self.nodes.values(), *self.refused, *self._asked.values()}
        greetings = [Message(RecordDict(), node, HELLO) for node in sorted(present - known)]
        if greetings:
            # A message that could not be sent, to a node that has just gone for instance, has no id.
            for message, message_id in zip(greetings, grid.push_messages(greetings), strict=False):
                if message_id:
                    self._asked[message_id] = message.metadata.dst_node_id
        if self._asked:
            for reply in grid.pull_messages(list(self._asked)):
                node = self._asked.pop(reply.metadata.reply_to_message_id, None)
                if node is not None:
                    self._answered(node, reply, present)
        return self._among(present)

    def connected(self, grid: Grid) -> tuple[str, ...]:
        """The clients that can be reached, sorted."""
        return self._among(set(grid.get_node_ids()))

    def _among(self, present: set[int]) -> tuple[str, ...]:
        return tuple(sorted(name for name, node in self.nodes.items() if node in present))

    def newcomers(self) -> list[Introduction]:
        """Those that introduced themselves since the last call."""
        found, self._newcomers = self._newcomers, {}
        return list(found.values())

    def refuse(self, client_id: str, reason: str) -> None:
        """Leave a client out from now on."""
        node = self.nodes.pop(client_id)
        del self.members[client_id]
        self._rounds_away.pop(client_id, None)
        self._refuse(node, f"{client_id}: {reason}")

    def doubt(self, client_id: str) -> None:
        """Let the node of a client introduce itself anew, since a reply contradicts what it said."""
        node = self.nodes.pop(client_id, None)
        if node is not None:
            LOG.info("node %d is asked anew who it is: a reply contradicts what it introduced %s with", node, client_id)

    def release(self, connected: Collection[str], at_least: int) -> None:
        """Forget clients that have been away for `ROUNDS_AWAY` rounds; one that returns introduces itself anew.

        Args:
            connected: the clients that can be reached now.
            at_least: how many members stay, however long they have been away; the longest away go first.
        """
        away = {name: rounds for name, rounds in self._rounds_away.items() if name not in connected}
        for name in sorted(away, key=lambda name: (-away[name], name)):
            if away[name] < ROUNDS_AWAY or len(self.members) <= at_least:
                break
            LOG.warning("%s has been away for %d rounds, and no longer counts", name, away[name])
            del self.members[name], self._rounds_away[name]
            self.nodes.pop(name, None)

    def count_round(self, connected: Collection[str]) -> None:
        """Note who is away as a round begins."""
        self._rounds_away = {name: self._rounds_away.get(name, 0) + 1 for name in self.members if name not in connected}

    def _forget(self, present: set[int]) -> None:
        # Nothing is kept of a node that has gone, except whom it spoke for. Who waits for a name may have it now.
        self._asked = {message_id: node for message_id, node in self._asked.items() if node in present}
        self._failures = {node: count for node, count in self._failures.items() if node in present}
        heirs = {node for node, name in self._doubles.items() if self.nodes.get(name) not in present}
        self._doubles = {node: name for node, name in self._doubles.items() if node in present - heirs}
        self.refused = {node: reason for node, reason in self.refused.items() if node in present - heirs}

    def _answered(self, node: int, reply: Message, present: set[int]) -> None:
        if reply.has_error():
            # It may have been restarted while it was asked, and is asked again; but not for ever.
            self._failures[node] = self._failures.get(node, 0) + 1
            reason = f"it did not introduce itself: {last_line(reply.error.reason)}"
            if self._failures[node] >= ATTEMPTS:
                self._refuse(node, reason)
            else:
                LOG.warning("node %d: %s", node, reason)
            return
        try:
            introduction = protocol.read_introduction(reply.content)
        except FloristError as error:
            self._refuse(node, str(error))
            return
        name = introduction.client_id
        if name in self.nodes and self.nodes[name] != node and self.nodes[name] in present:
            self._doubles[node] = name
            self._refuse(
                node, f"{name} is already here on node {self.nodes[name]}; give every client a name of its own"
            )
            return
        self.members[name], self.nodes[name] = introduction, node
        self._newcomers[name] = introduction
        count = introduction.num_examples
        told = f"{count} examples, {introduction.held_out} held out" if count is not None else "its examples untold"
        LOG.info("%s is here on node %d: rank %d, %s", name, node, introduction.rank, told)

    def _refuse(self, node: int, reason: str) -> None:
        self.refused[node] = one_line(reason)
        LOG.warning("node %d is refused: %s", node, self.refused[node])
