from dataclasses import replace

import pytest
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from florist.errors import InvalidUpdateError
from florist.flower.agreement import Agreement, ask_saved_parameters
from florist.flower.messages import PROTOCOL, Introduction
from tests.flower.grids import MemoryGrid


@pytest.fixture
def refusing_grid() -> Grid:
    """Clients that fail at whatever they are asked."""
    return MemoryGrid(ClientApp(), {1: {}, 2: {}, 3: {}})


SHAPES = {"k": (4, 6), "q": (6, 6)}


def introduction(client_id: str, base: str = "base", shapes: dict[str, tuple[int, int]] | None = None) -> Introduction:
    shapes = SHAPES if shapes is None else shapes
    out, into = [m for m, _ in shapes.values()], [n for _, n in shapes.values()]
    return Introduction(PROTOCOL, client_id, 2, 1, 0, base, list(shapes), out, into, [], -1)


def test_what_most_say_holds() -> None:
    found = Agreement.of([introduction("a", "z"), introduction("b", "y"), introduction("c", "z")])
    assert (found.base, found.shapes) == ("z", SHAPES)
    found = Agreement.of([introduction("a", shapes={"q": (1, 1)}), introduction("b"), introduction("c")])
    assert found.shapes == SHAPES


def test_of_equally_many_the_first_by_name_whatever_their_order() -> None:
    members = [introduction("a", "z"), introduction("b", "y")]
    assert Agreement.of(members).base == Agreement.of(members[::-1]).base == "y"


def test_the_order_of_the_modules_is_no_disagreement() -> None:
    members = [introduction("a"), introduction("b", shapes=dict(reversed(SHAPES.items())))]
    assert Agreement.of(members).shapes == SHAPES
    assert all(Agreement("base", SHAPES).refusal(member) is None for member in members)


def test_nobody_agrees_on_nothing() -> None:
    with pytest.raises(ValueError, match="empty"):
        Agreement.of([])


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (introduction("a"), None),
        (introduction("a", shapes={"q": (6, 6)}), None),
        (introduction("a", "other"), "expected the base base, got other"),
        (introduction("a", shapes={"q": (6, 7)}), "q: expected the shape (6, 6), got (6, 7)"),
        (introduction("a", shapes={**SHAPES, "v": (6, 6)}), "v: expected no such module, got (6, 6)"),
    ],
)
def test_who_may_take_part(member: Introduction, reason: str | None) -> None:
    assert Agreement("base", SHAPES).refusal(member) == reason


def test_one_client_alone_does_not_decide_that_no_parameters_are_saved(refusing_grid: Grid) -> None:
    members = [introduction("a"), *(replace(introduction(name), saved_parameters=["head"]) for name in "bc")]
    with pytest.raises(InvalidUpdateError, match="expected the saved parameters"):
        ask_saved_parameters(refusing_grid, {"a": 1, "b": 2, "c": 3}, members, 1.0)
    assert not ask_saved_parameters(refusing_grid, {"a": 1, "b": 2}, [members[0], introduction("d"), members[1]], 1.0)
