"""Examples as runs of text, some of which are only read and some of which the model learns to write."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from florist.data.fields import listed
from florist.data.reading import Example
from florist.data.shapes import ASSISTANT, SYSTEM, USER, ChatShape, Conversation, InstructionShape, Message, TextShape
from florist.errors import DataError

Span = tuple[int, int]
"""A run of characters in a text, from the first to after the last."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of text that is tokenised by itself.

    Attributes:
        text: The text, which may be empty.
        answer: Whether the model is to write it.
        framed: Whether the tokenizer adds its special tokens, which open a text or end an answer. Text from a chat
            template has special tokens of its own.
        cut: Where the whole is too long, these spans lose characters from their middle, one span after the other.
    """

    text: str
    answer: bool = False
    framed: bool = False
    cut: tuple[Span, ...] = ()


Renderer = Callable[[Example], Sequence[Segment]]
"""Turns an example into segments: a prompt, its answer, and in a conversation the next ones in turn."""


@dataclass(frozen=True, slots=True)
class PlainText:
    """Takes a whole text as what the model is to write, after no prompt but the tokens that open a text."""

    shape: TextShape

    def __call__(self, example: Example) -> Sequence[Segment]:
        """Return two segments, of which the first is empty.

        Raises:
            DataError: The example lacks the text.
        """
        return Segment("", framed=True), Segment(self.shape.value(example), answer=True, framed=True)


@dataclass(frozen=True, slots=True)
class InstructionPrompt:
    """Turns an instruction into plain text, a prompt and an answer.

    Args:
        shape: The shape of the examples.
        prompt: Turns the fields into the text before the answer.
    """

    shape: InstructionShape
    prompt: Callable[[Mapping[str, Any]], str]

    def __call__(self, example: Example) -> Sequence[Segment]:
        """Return two segments.

        Raises:
            DataError: The example lacks a field.
        """
        values = self.shape.values(example)
        text = self.prompt(values)
        return (
            Segment(text, framed=True, cut=_spans(text, [values["input"]])),
            Segment(values["output"], answer=True, framed=True),
        )


@dataclass(frozen=True, slots=True)
class InstructionConversation:
    """Turns an instruction into a conversation of one question and one answer.

    Args:
        shape: The shape of the examples.
        prompt: Turns the fields into what the user says.
    """

    shape: InstructionShape
    prompt: Callable[[Mapping[str, Any]], str]

    def __call__(self, example: Example) -> Conversation:
        """Return two messages.

        Raises:
            DataError: The example lacks a field.
        """
        values = self.shape.values(example)
        return (
            Message(USER, self.prompt(values), values["input"]),
            Message(ASSISTANT, values["output"]),
        )


@dataclass(frozen=True, slots=True)
class PlainChat:
    """Turns chat messages into Alpaca's headings, one after the other, for a tokenizer without a chat template."""

    shape: ChatShape

    def __call__(self, example: Example) -> Sequence[Segment]:
        """Return prompts and answers in turn; the end-of-sequence token closes every answer.

        Raises:
            DataError: The example has another shape, or a message has a role without a heading.
        """
        segments: list[Segment] = []
        asked: list[str] = []
        cut: list[str] = []
        for message in self.shape.conversation(example):
            if message.role == ASSISTANT:
                text = "\n\n".join([*asked, "### Response:\n"])
                # A later question comes after the end of an answer.
                text = f"\n\n{text}" if segments else text
                segments += [
                    Segment(text, framed=not segments, cut=_spans(text, cut)),
                    Segment(message.content, answer=True, framed=True),
                ]
                asked, cut = [], []
            elif message.role in {USER, SYSTEM}:
                asked.append(f"### Instruction:\n{message.content}" if message.role == USER else message.content)
                cut.insert(0, message.content)
            else:
                raise DataError(
                    f"expected the roles {SYSTEM}, {USER} and {ASSISTANT}, got {message.role!r}; take a model whose "
                    "tokenizer has a chat template, or remove the message"
                )
        return segments


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """Puts conversations through the tokenizer's chat template.

    The model is to write what the template makes of an answer, the end-of-turn token included. The rest is prompt, the
    opening of the assistant's turn included.

    Args:
        tokenizer: A tokenizer with a chat template.
        conversation: Turns an example into a conversation.
    """

    tokenizer: PreTrainedTokenizerBase
    conversation: Callable[[Example], Conversation]

    def __call__(self, example: Example) -> Sequence[Segment]:
        """Return prompts and answers in turn.

        Raises:
            DataError: The example is no conversation, the template refuses it, or the template writes its answers so
                that they cannot be told from the rest.
        """
        messages = self.conversation(example)
        text = self._text(messages)
        segments: list[Segment] = []
        done = 0
        for number, message in enumerate(messages):
            if message.role != ASSISTANT:
                continue
            start, end, closed = self._answer(text, messages, number)
            if start < done:
                raise DataError(f"{_REWRITES}: answer {number + 1} begins inside of the one before")
            before = text[done:start]
            asked = [each for each in messages[:number] if each.role != ASSISTANT]
            cut = [each.context for each in reversed(asked)] + [each.content for each in reversed(asked)]
            last = number == len(messages) - 1
            segments += [
                Segment(before, cut=_spans(before, cut)),
                Segment(text[start:end], answer=True, framed=last and not closed),
            ]
            done = end
        return segments

    def _answer(self, text: str, messages: Conversation, number: int) -> tuple[int, int, bool]:
        """Return where in the text the template's form of an answer starts and ends, and whether it closes the turn."""
        before = self._text(messages[:number], opened=True)
        after = self._text(messages[: number + 1])
        # The opening that generation starts from may hold more than the answer's own turn does, a thought for instance.
        start = _common(before, text)
        if start < len(before) and messages[number - 1].content.strip() not in text[:start]:
            raise DataError(f"{_REWRITES}: what comes before answer {number + 1} differs in the whole")
        content = messages[number].content.strip()
        body = after[_common(before, after) :]
        closing = (body.rpartition(content)[2] if content else body).rstrip()
        if text.startswith(body, start):
            return start, start + len(body.rstrip()), bool(closing)
        # Some templates leave out the thoughts of earlier answers.
        at = text.find(content, start)
        if at < 0:
            raise DataError(f"{_REWRITES}: answer {number + 1} is not in the whole as it was given")
        end = at + len(content)
        return start, end + (len(closing) if text.startswith(closing, end) else 0), bool(closing)

    def _text(self, messages: Conversation, *, opened: bool = False) -> str:
        try:
            rendered = self.tokenizer.apply_chat_template(
                [{"role": message.role, "content": message.content} for message in messages],
                tokenize=False,
                add_generation_prompt=opened,
            )
        except TemplateError as error:
            raise DataError(
                f"the tokenizer's chat template refuses the roles {listed(message.role for message in messages)}: "
                f"{error}; change the example, or set [data] chat_template = false"
            ) from error
        return str(rendered)


_REWRITES = "expected a chat template that writes the turns of a conversation one after the other"


def _common(first: str, second: str) -> int:
    """Return how many characters two texts have in common at their start."""
    if second.startswith(first):
        return len(first)
    return next((k for k, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(second))


def _spans(text: str, parts: Sequence[str]) -> tuple[Span, ...]:
    # The search goes from the right, because a text that also occurs earlier stands last where it is the part itself.
    found = ((text.rfind(part.strip()), len(part.strip())) for part in parts if part.strip())
    return tuple((start, start + length) for start, length in found if start >= 0)
