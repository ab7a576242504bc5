from collections.abc import Mapping
from typing import Any

import pytest

from florist.data.shapes import ALPACA, DOLLY, MESSAGES, SHAREGPT, ExampleShape, Message, recognise
from florist.errors import DataError


def openai(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(
    ("example", "shape"),
    [
        ({"instruction": "", "input": "", "output": ""}, ALPACA),
        ({"instruction": "", "output": ""}, ALPACA),
        ({"instruction": "", "context": "", "response": "", "category": ""}, DOLLY),
        ({"instruction": "", "response": ""}, DOLLY),
        (openai(("user", "a"), ("assistant", "b")), MESSAGES),
        ({"id": 3, "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, SHAREGPT),
    ],
)
def test_the_shape_of_an_example_is_recognised(example: Mapping[str, Any], shape: ExampleShape) -> None:
    assert recognise([example]) == shape


@pytest.mark.parametrize(
    "example",
    [{"q": 1, "a": 2}, {"messages": []}, {"messages": "text"}, {"messages": [{"role": "user"}]}, {"messages": ["a"]}],
)
def test_an_unknown_shape_is_refused_with_what_to_set(example: Mapping[str, Any]) -> None:
    with pytest.raises(
        DataError,
        match=r"alpaca: .*dolly: .*messages: messages with role and content; sharegpt: .*got the fields \[.*output_fi",
    ):
        recognise([example])


def test_both_chat_shapes_give_the_same_conversation() -> None:
    share = {
        "conversations": [
            {"from": "system", "value": "be brief"},
            {"from": "human", "value": "hi"},
            {"from": "gpt", "value": "hello"},
        ]
    }
    expected = (Message("system", "be brief"), Message("user", "hi"), Message("assistant", "hello"))
    assert SHAREGPT.conversation(share) == expected
    assert MESSAGES.conversation(openai(("system", "be brief"), ("user", "hi"), ("assistant", "hello"))) == expected


def test_what_answers_nobody_and_what_nobody_answers_is_left_out() -> None:
    found = MESSAGES.conversation(
        openai(("system", "s"), ("assistant", "welcome"), ("user", "q"), ("assistant", "a"), ("user", "and?"))
    )
    assert [message.content for message in found] == ["s", "q", "a"]


def test_content_may_be_a_list_of_texts() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert MESSAGES.conversation(openai(("user", parts), ("assistant", "b")))[0].content == "one two"


@pytest.mark.parametrize(
    ("example", "telling"),
    [
        (openai(("user", "a")), r"expected a user's message and an assistant's answer to it, got the roles \['user'\]"),
        (openai(("assistant", "a")), "expected a user's message and an assistant's answer"),
        (openai(("user", [{"type": "image_url"}]), ("assistant", "b")), "expected a message's content to be text"),
        (openai(("user", "a"), ("assistant", None)), "expected a message's content to be text, got None"),
        ({"messages": [{"role": "user"}]}, "expected 'messages' to be a list of messages with 'role' and 'content'"),
    ],
)
def test_a_conversation_that_is_none_is_refused(example: Mapping[str, Any], telling: str) -> None:
    with pytest.raises(DataError, match=telling):
        MESSAGES.conversation(example)
