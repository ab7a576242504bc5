import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from florist.errors import TooFewClientsError
from florist.flower.messages import HELLO
from florist.flower.roster import ATTEMPTS, Roster
from tests.flower.grids import MemoryGrid
from tests.flower.participants import Light, app_of


def grid_of(clients: dict[int, Light]) -> MemoryGrid:
    return MemoryGrid(app_of(clients), {node: {} for node in clients})


def failing(node: int, times: int = 10**6) -> object:
    """Deliver: the node's first replies are errors."""
    left = [times]

    def deliver(message: Message, reply: Message) -> list[Message]:
        if message.metadata.dst_node_id != node or not left[0]:
            return [reply]
        left[0] -= 1
        return [Message(Error(2, "Traceback\n  in app\nOSError: no model"), reply_to=message)]

    return deliver


def test_clients_are_known_by_their_names() -> None:
    grid = grid_of({7: Light("b", rank=3, num_examples=5), 9: Light("a")})
    roster = Roster()
    assert roster.refresh(grid) == ("a", "b")
    assert roster.nodes == {"a": 9, "b": 7}
    assert (roster.members["b"].rank, roster.members["b"].num_examples, roster.members["b"].holds) == (3, 5, -1)
    assert sorted(each.client_id for each in roster.newcomers()) == ["a", "b"]
    assert roster.newcomers() == []


def test_nobody_is_asked_twice() -> None:
    grid = grid_of({7: Light("b"), 9: Light("a")})
    roster = Roster()
    for _ in range(3):
        roster.refresh(grid)
    assert sorted(grid.nodes_of(HELLO)) == [7, 9]


def test_a_node_that_fails_is_asked_again_and_then_left() -> None:
    grid = grid_of({7: Light("b"), 9: Light("a")})
    grid.deliver = failing(7)
    roster = Roster()
    for _ in range(ATTEMPTS + 3):
        assert roster.refresh(grid) == ("a",)
    assert grid.nodes_of(HELLO).count(7) == ATTEMPTS
    assert roster.refused == {7: "it did not introduce itself: OSError: no model"}


def test_a_node_that_failed_once_is_taken() -> None:
    grid = grid_of({7: Light("b")})
    grid.deliver = failing(7, times=ATTEMPTS - 1)
    roster = Roster()
    found = [roster.refresh(grid) for _ in range(ATTEMPTS)]
    assert found == [()] * (ATTEMPTS - 1) + [("b",)]
    assert not roster.refused


def test_a_node_that_was_refused_may_come_back_repaired() -> None:
    grid = grid_of({7: Light("b")})
    grid.deliver = failing(7, times=ATTEMPTS)
    roster = Roster()
    for _ in range(ATTEMPTS):
        roster.refresh(grid)
    assert 7 in roster.refused
    grid.absent = {7}
    roster.refresh(grid)
    grid.absent = set()
    assert roster.refresh(grid) == ("b",)
    assert not roster.refused


def test_a_second_node_of_one_name_is_refused_until_the_first_has_gone() -> None:
    grid = grid_of({7: Light("a"), 9: Light("a")})
    roster = Roster()
    assert roster.refresh(grid) == ("a",)
    assert roster.nodes == {"a": 7}
    assert roster.refused == {9: "a is already here on node 7; give every client a name of its own"}
    roster.refresh(grid)
    assert grid.nodes_of(HELLO) == [7, 9]
    grid.absent = {7}
    assert roster.refresh(grid) == ("a",)
    assert roster.nodes == {"a": 9}
    assert not roster.refused


def test_a_client_returns_on_another_node() -> None:
    clients = {7: Light("a"), 8: Light("b")}
    grid = grid_of(clients)
    roster = Roster()
    roster.refresh(grid)
    roster.newcomers()
    grid.absent = {7}
    assert roster.refresh(grid) == ("b",)
    assert set(roster.members) == {"a", "b"}  # it keeps its place
    clients[9] = Light("a", rank=4)
    grid.contexts[9] = grid_of(clients).contexts[9]
    assert roster.refresh(grid) == ("a", "b")
    assert roster.nodes["a"] == 9
    assert [each.rank for each in roster.newcomers()] == [4]


def test_one_newcomer_of_a_name_who_came_twice() -> None:
    clients = {7: Light("a", base="wrong"), 9: Light("a", base="right")}
    grid = grid_of(clients)
    grid.absent = {9}
    roster = Roster()
    roster.refresh(grid)
    grid.absent = {7}
    roster.refresh(grid)
    assert [each.base for each in roster.newcomers()] == ["right"]
    roster.refuse("a", "because")
    assert roster.refused == {9: "a: because"}
    assert not roster.members
    assert roster.connected(grid) == ()


def test_a_greeting_under_way_keeps_nobody_waiting() -> None:
    clients = {7: Light("slow"), 9: Light("a")}
    grid = grid_of(clients)
    held_back: list[Message] = []

    def deliver(message: Message, reply: Message) -> list[Message]:
        if message.metadata.dst_node_id == 7:
            held_back.append(reply)
            return []
        return [reply]

    grid.deliver = deliver
    roster = Roster()
    assert roster.refresh(grid) == ("a",)
    assert roster.refresh(grid) == ("a",)
    assert grid.nodes_of(HELLO) == [7, 9]
    grid._replies[held_back[0].metadata.reply_to_message_id] = held_back
    assert roster.refresh(grid) == ("a", "slow")


def test_who_goes_while_it_is_asked_is_asked_anew() -> None:
    grid = grid_of({7: Light("a")})
    grid.deliver = lambda _message, _reply: []
    roster = Roster()
    roster.refresh(grid)
    grid.absent = {7}
    roster.refresh(grid)
    grid.absent = set()
    grid.deliver = lambda _message, reply: [reply]
    assert roster.refresh(grid) == ("a",)


def test_nothing_is_kept_of_nodes_that_come_and_go() -> None:
    nodes = {node: Light("a") for node in range(2, 40)}
    grid = grid_of(nodes)
    grid.deliver = lambda message, reply: [] if message.metadata.dst_node_id % 2 else [reply]
    roster = Roster()
    for node in nodes:
        grid.absent = set(nodes) - {node}
        roster.refresh(grid)
    assert len(roster._asked) <= 1
    assert not roster.refused
    assert not roster._doubles


class _Unsendable(MemoryGrid):
    """As Flower's: no id for a node that has just gone, and no list at all for messages that are too large."""

    everything = False

    def push_messages(self, messages: list[Message]) -> list[str | None]:
        sent = list(super().push_messages(messages))
        return [] if self.everything else [None, *sent[1:]]

    def pull_messages(self, message_ids: list[str]) -> list[Message]:
        assert None not in message_ids
        return list(super().pull_messages(message_ids))


@pytest.mark.parametrize(("everything", "found"), [(False, ("b",)), (True, ())])
def test_a_greeting_that_cannot_be_sent_is_sent_again(everything: bool, found: tuple[str, ...]) -> None:
    clients = {7: Light("a"), 9: Light("b")}
    grid = _Unsendable(app_of(clients), {node: {} for node in clients})
    grid.everything = everything
    roster = Roster()
    assert roster.refresh(grid) == found
    roster.refresh(grid)
    assert grid.nodes_of(HELLO).count(7) == 2


def test_garbage_for_an_introduction_is_refused() -> None:
    grid = grid_of({7: Light("a")})
    grid.deliver = lambda message, _reply: [Message(RecordDict({"x": ConfigRecord({})}), reply_to=message)]
    roster = Roster()
    assert roster.refresh(grid) == ()
    assert roster.refused[7].startswith("expected a message of florist, got the records ['x']")


def test_too_few_says_who_is_missing_and_why() -> None:
    grid = grid_of({7: Light("slow"), 8: Light("a"), 9: Light("a"), 10: Light("b", rank=0)})
    grid.deliver = lambda message, reply: [] if message.metadata.dst_node_id == 7 else [reply]
    with pytest.raises(TooFewClientsError) as held:
        Roster().gather(grid, 4, 0.05)
    for telling in (
        "expected 4 clients within 0.05 s, got a;",
        "1 more did not answer",
        "node 9: a is already here on node 8",
        "node 10: Introduction.rank: Input should be greater than 0, got 0",
        "start more SuperNodes, or wait longer",
    ):
        assert telling in str(held.value)


def test_too_few_without_anybody() -> None:
    with pytest.raises(TooFewClientsError, match="expected 1 clients within 0 s, got none; start more"):
        Roster().gather(grid_of({}), 1, 0)


# --- who is asked anew, and who has left


def test_a_client_in_doubt_is_out_until_its_node_has_introduced_itself_anew() -> None:
    clients = {7: Light("a", num_examples=1), 9: Light("b")}
    grid = grid_of(clients)
    roster = Roster()
    roster.refresh(grid)
    roster.newcomers()
    clients[7] = Light("a", num_examples=5)
    roster.doubt("a")
    assert roster.connected(grid) == ("b",)
    assert roster.refresh(grid) == ("a", "b")
    assert [(each.client_id, each.num_examples) for each in roster.newcomers()] == [("a", 5)]
    assert roster.members["a"].num_examples == 5
    assert grid.nodes_of(HELLO) == [7, 9, 7]


def test_a_node_may_speak_for_another_client_than_before() -> None:
    clients = {7: Light("a"), 9: Light("b")}
    grid = grid_of(clients)
    roster = Roster()
    roster.refresh(grid)
    clients[7] = Light("c")
    roster.doubt("a")
    assert roster.refresh(grid) == ("b", "c")
    assert roster.nodes == {"b": 9, "c": 7}
    clients[9] = Light("c")
    roster.doubt("b")
    roster.doubt("b")
    assert roster.refresh(grid) == ("c",)
    assert roster.refused == {9: "c is already here on node 7; give every client a name of its own"}


def test_a_node_in_doubt_that_does_not_answer_any_more_is_refused() -> None:
    grid = grid_of({7: Light("a")})
    roster = Roster()
    roster.refresh(grid)
    grid.deliver = failing(7)
    roster.doubt("a")
    for _ in range(ATTEMPTS + 2):
        assert roster.refresh(grid) == ()
    assert set(roster.refused) == {7}


def test_who_is_away_for_some_rounds_is_let_go_but_not_below_the_least() -> None:
    clients = {node: Light(name) for node, name in enumerate("abcd", 7)}
    grid = grid_of(clients)
    roster = Roster()
    roster.refresh(grid)

    def round_with(*nodes: int, at_least: int = 1) -> set[str]:
        grid.absent = set(clients) - set(nodes)
        connected = roster.refresh(grid)
        roster.release(connected, at_least)
        roster.count_round(connected)
        return set(roster.members)

    assert round_with(7, 8, 9) == set("abcd")
    assert round_with(7, 8) == set("abcd")
    assert round_with(7, 8) == set("abcd")
    assert round_with(7, 8, at_least=4) == set("abcd")
    assert round_with(7, 8, at_least=3) == set("abc")  # the longest away goes first
    assert round_with(7, 8, 9) == set("abc")
    assert round_with(7, 8) == set("abc")  # it was back, and is counted from the beginning
    assert round_with(7, 8, 10) == set("abcd")  # who returns introduces itself anew
    assert grid.nodes_of(HELLO) == [7, 8, 9, 10, 10]


def test_what_a_client_says_makes_no_line_of_its_own() -> None:
    grid = grid_of({7: Light("a")})
    forged = "x\nb is here on node 9\x1b[0m"
    answers = [
        lambda message: Message(Error(2, forged.replace("\n", "\r")), reply_to=message),
        lambda message: Message(RecordDict({forged: ConfigRecord({})}), reply_to=message),
        lambda message: Message(RecordDict({"florist": ConfigRecord({"kind": 300 * forged})}), reply_to=message),
    ]
    for answer in answers:
        grid.deliver = lambda message, _reply, answer=answer: [answer(message)]
        roster = Roster()
        for _ in range(ATTEMPTS):
            roster.refresh(grid)
        (reason,) = roster.refused.values()
        assert reason.isprintable()
        assert len(reason) <= 400
