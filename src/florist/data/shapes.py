"""Which fields of a record hold what: instruction rows and chat messages, and how to recognise them."""

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
"""What data sets in the ShareGPT shape call the roles of chat templates."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: user, assistant or system; others are for the chat template to know.
        content: its text.
        context: the part of the content that is cut first where the whole is too long.
    """

    role: str
    content: str
    context: str = ""


Conversation = tuple[Message, ...]
"""Starts with a user's or a system message and ends with an assistant's."""


@dataclass(frozen=True, slots=True)
class InstructionShape:
    """Which fields of a record hold the instruction, its further input, and the answer."""

    instruction: str
    input: str
    output: str

    def fits(self, record: Example) -> bool:
        """Whether a record has the instruction and the answer; the input may be absent."""
        return self.instruction in record and self.output in record

    def values(self, record: Example) -> dict[str, str]:
        """The record's fields as text, and ``instruction``, ``input`` and ``output`` whatever they are called in it.

        Raises:
            DataError: the record lacks the instruction or the answer.
        """
        if not self.fits(record):
            raise DataError(f"expected records with {self.instruction!r} and {self.output!r}, got {sorted(record)}")
        values = as_text(record)
        # All at once: the record's own `input` may be what this shape calls otherwise.
        return values | {
            "instruction": values[self.instruction],
            "input": values.get(self.input, ""),
            "output": values[self.output],
        }


@dataclass(frozen=True, slots=True)
class ChatShape:
    """Which field of a record holds the list of messages, and which of a message its role and its text."""

    messages: str
    role: str
    content: str

    def fits(self, record: Example) -> bool:
        """Whether a record has the list, with objects that have both fields."""
        messages = record.get(self.messages)
        return (
            isinstance(messages, list)
            and bool(messages)
            and all(isinstance(each, dict) and self.role in each and self.content in each for each in messages)
        )

    def conversation(self, record: Example) -> Conversation:
        """The messages up to the last answer.

        Answers before the first question answer nobody, and questions after the last answer have none: both are
        left out.

        Raises:
            DataError: the record has no such list, a message's content is no text, or nobody is answered.
        """
        if not self.fits(record):
            raise DataError(
                f"expected {self.messages!r} to be a list of messages with {self.role!r} and {self.content!r}, got "
                f"the fields {sorted(record)}"
            )
        messages = [
            Message(_ROLES.get(each[self.role], each[self.role]), _text(each[self.content]))
            for each in record[self.messages]
        ]
        asked = next((k for k, message in enumerate(messages) if message.role == USER), len(messages))
        messages = [message for k, message in enumerate(messages) if k >= asked or message.role != ASSISTANT]
        while messages and messages[-1].role != ASSISTANT:
            messages.pop()
        if not messages:
            raise DataError(
                f"expected a user's message and an assistant's answer to it, got the roles "
                f"{[each[self.role] for each in record[self.messages]]}"
            )
        return tuple(messages)


ExampleShape = InstructionShape | ChatShape

ALPACA = InstructionShape("instruction", "input", "output")
DOLLY = InstructionShape("instruction", "context", "response")
MESSAGES = ChatShape("messages", "role", "content")
SHAREGPT = ChatShape("conversations", "from", "value")
KNOWN_SHAPES: Mapping[str, ExampleShape] = {
    "alpaca": ALPACA,
    "dolly": DOLLY,
    "messages": MESSAGES,
    "sharegpt": SHAREGPT,
}


def recognise(records: Sequence[Example]) -> ExampleShape:
    """The known shape that the first record has.

    Raises:
        DataError: none fits.
    """
    for shape in KNOWN_SHAPES.values():
        if shape.fits(records[0]):
            return shape
    known = "; ".join(f"{name}: {_described(shape)}" for name, shape in KNOWN_SHAPES.items())
    raise DataError(
        f"expected records of a known shape ({known}), got the fields {sorted(records[0])}; "
        "name yours with [data] instruction_field, input_field and output_field"
    )


def _described(shape: ExampleShape) -> str:
    if isinstance(shape, InstructionShape):
        return f"{shape.instruction}, {shape.input}, {shape.output}"
    return f"{shape.messages} with {shape.role} and {shape.content}"


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):  # OpenAI's list of parts
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if texts and len(texts) == len(parts):
            return "".join(texts)
    raise DataError(f"expected a message's content to be text, got {content!r}; remove the record")
