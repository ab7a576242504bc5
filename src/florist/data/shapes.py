"""Which fields of an example hold what: the shapes of instructions and of chats, and how they are recognised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from florist.data.reading import Example, as_text
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

    def values(self, example: Example) -> dict[str, str]:
        """Return the fields as text, and beside them ``instruction``, ``input`` and ``output``, whatever their names.

        Raises:
            DataError: The example lacks the instruction or the answer.
        """
        if not self.fits(example):
            raise DataError(
                f"expected examples with the fields {self.instruction!r} and {self.output!r}, got {sorted(example)}; "
                "set [data] format, or instruction_field and output_field"
            )
        values = as_text(example)
        # All three are set at once, because a field of the name `input` may be the instruction of this shape.
        return values | {
            "instruction": values[self.instruction],
            "input": values.get(self.input, ""),
            "output": values[self.output],
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
                f"example with the fields {sorted(example)}; set [data] format"
            )
        messages = [
            Message(_ROLES.get(each[self.role], each[self.role]), _text(each[self.content]))
            for each in example[self.messages]
        ]
        asked = next((k for k, message in enumerate(messages) if message.role == USER), len(messages))
        messages = [message for k, message in enumerate(messages) if k >= asked or message.role != ASSISTANT]
        while messages and messages[-1].role != ASSISTANT:
            messages.pop()
        if not messages:
            raise DataError(
                f"expected a user's message and an assistant's answer to it, got the roles "
                f"{[each[self.role] for each in example[self.messages]]}; remove the example"
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
            raise DataError(
                f"expected examples with a text in the field {self.text!r}, got {sorted(example)}; set [data] format"
            )
        return str(example[self.text])


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
        f"expected examples of a known shape ({known}), got the fields {sorted(examples[0])}; "
        "name yours with [data] instruction_field, input_field and output_field"
    )


def _described(shape: ExampleShape) -> str:
    if isinstance(shape, InstructionShape):
        return f"{shape.instruction}, {shape.input}, {shape.output}"
    if isinstance(shape, TextShape):
        return shape.text
    return f"{shape.messages} with {shape.role} and {shape.content}"


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):  # a list of parts, as OpenAI writes it
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if texts and len(texts) == len(parts):
            return "".join(texts)
    raise DataError(f"expected a message's content to be text, got {content!r}; remove the example")
