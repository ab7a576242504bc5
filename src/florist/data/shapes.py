"""Which fields of an example hold what: the shapes of instructions and of chats, and how they are recognised."""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from florist.data.fields import listed, place_of, text_of
from florist.data.reading import Example
from florist.errors import DataError

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"

_ROLES: Mapping[str, str] = {
    "human": USER,
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bot": ASSISTANT,
    "model": ASSISTANT,
}
"""The names that data sets in the ShareGPT shape give to the roles of chat templates."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: The user, the assistant or the system, or another role that the chat template knows.
        content: The text of the message.
        context: The part of the content that is cut first where the whole is too long.
    """

    role: str
    content: str
    context: str = ""


Conversation = tuple[Message, ...]
"""Messages of which the first is the user's or the system's, and the last is the assistant's."""


@dataclass(frozen=True, slots=True)
class InstructionShape:
    """The names of the fields that hold the instruction, its further input, and the answer."""

    instruction: str
    input: str
    output: str

    def fits(self, example: Example) -> bool:
        """Tell whether an example has the instruction and the answer; the input may be absent."""
        return self.instruction in example and self.output in example

    def values(self, example: Example) -> dict[str, Any]:
        """Return the fields, and beside them ``instruction``, ``input`` and ``output`` as text, whatever their names.

        Raises:
            DataError: The example lacks the instruction or the answer, or one of the three is no text
                (`fields.text_of`).
        """
        if not self.fits(example):
            raise DataError(
                f"expected examples with the fields {self.instruction!r} and {self.output!r}, got {listed(example)}; "
                "set [data] format, or instruction_field and output_field"
            )
        # All three are set at once, because a field of the name `input` may be the instruction of this shape.
        return dict(example) | {
            "instruction": text_of(example, self.instruction),
            "input": text_of(example, self.input) if self.input in example else "",
            "output": text_of(example, self.output),
        }


@dataclass(frozen=True, slots=True)
class ChatShape:
    """The names of the field that holds the list of messages, and of the fields of a message for its role and text."""

    messages: str
    role: str
    content: str

    def fits(self, example: Example) -> bool:
        """Tell whether an example has the list, with objects that have both fields."""
        messages = example.get(self.messages)
        return (
            isinstance(messages, list)
            and bool(messages)
            and all(isinstance(each, dict) and self.role in each and self.content in each for each in messages)
        )

    def conversation(self, example: Example) -> Conversation:
        """Return the messages up to the last answer.

        Answers before the first question answer nobody, and questions after the last answer have no answer: both are
        left out.

        Raises:
            DataError: The example has no such list, the content of a message is no text, or no question is answered.
        """
        if not self.fits(example):
            raise DataError(
                f"expected {self.messages!r} to be a list of messages with {self.role!r} and {self.content!r}, got an "
                f"example with the fields {listed(example)}; set [data] format"
            )
        messages = [
            Message(_role(each[self.role]), _text(each[self.content], self.content)) for each in example[self.messages]
        ]
        asked = next((k for k, message in enumerate(messages) if message.role == USER), len(messages))
        messages = [message for k, message in enumerate(messages) if k >= asked or message.role != ASSISTANT]
        while messages and messages[-1].role != ASSISTANT:
            messages.pop()
        if not messages:
            raise DataError(
                f"expected a user's message and an assistant's answer to it, got the roles "
                f"{listed(each[self.role] for each in example[self.messages])}; remove the example"
            )
        return tuple(messages)


@dataclass(frozen=True, slots=True)
class TextShape:
    """The name of the field that holds a whole text, of which every token is to be learnt."""

    text: str

    def fits(self, example: Example) -> bool:
        """Tell whether an example has the text."""
        return isinstance(example.get(self.text), str)

    def value(self, example: Example) -> str:
        """Return the text.

        Raises:
            DataError: The example lacks it.
        """
        if not self.fits(example):
            got = reprlib.repr(example[self.text]) if self.text in example else f"the fields {listed(example)}"
            raise DataError(f"expected examples with a text in the field {self.text!r}, got {got}; set [data] format")
        return text_of(example, self.text)


ExampleShape = InstructionShape | ChatShape | TextShape

ALPACA = InstructionShape("instruction", "input", "output")
DOLLY = InstructionShape("instruction", "context", "response")
MESSAGES = ChatShape("messages", "role", "content")
SHAREGPT = ChatShape("conversations", "from", "value")
TEXT = TextShape("text")
KNOWN_SHAPES: Mapping[str, ExampleShape] = {
    "alpaca": ALPACA,
    "dolly": DOLLY,
    "messages": MESSAGES,
    "sharegpt": SHAREGPT,
    "text": TEXT,
}


def recognise(examples: Sequence[Example]) -> ExampleShape:
    """Return the known shape that the first example has.

    Raises:
        DataError: No known shape fits.
    """
    for shape in KNOWN_SHAPES.values():
        if shape.fits(examples[0]):
            return shape
    known = "; ".join(f"{name}: {_described(shape)}" for name, shape in KNOWN_SHAPES.items())
    raise DataError(
        f"{place_of(examples[0], 'the first example')}: expected examples of a known shape ({known}), got the fields "
        f"{listed(examples[0])}; "
        "name yours with [data] instruction_field, input_field and output_field"
    )


def _described(shape: ExampleShape) -> str:
    if isinstance(shape, InstructionShape):
        return f"{shape.instruction}, {shape.input}, {shape.output}"
    if isinstance(shape, TextShape):
        return shape.text
    return f"{shape.messages} with {shape.role} and {shape.content}"


def _role(role: Any) -> str:
    if not isinstance(role, str):
        raise DataError(f"expected the role of a message to be a text, got {reprlib.repr(role)}; correct the example")
    return _ROLES.get(role, role)


def _text(content: Any, field: str) -> str:
    if isinstance(content, str):
        return text_of({field: content}, field)
    if isinstance(content, list):  # a list of parts, as OpenAI writes it
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if texts and len(texts) == len(parts):
            return text_of({field: "".join(texts)}, field)
    raise DataError(f"expected a message's content to be text, got {reprlib.repr(content)}; remove the example")
