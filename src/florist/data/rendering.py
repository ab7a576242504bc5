"""From a record to runs of text: what is only read, and what the model learns to write."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from florist.data.reading import Example
from florist.data.shapes import ASSISTANT, SYSTEM, USER, ChatShape, Conversation, InstructionShape, Message
from florist.errors import DataError

Span = tuple[int, int]
"""Characters of a text, from the first to after the last."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of text that is tokenised by itself.

    Attributes:
        text: may be empty.
        answer: the model is to write it.
        framed: with the tokenizer's own special tokens: those that open a text, or the end after an answer. Text from a
            chat template has its own.
        cut: what goes where the whole is too long, in this order, each from its middle.
    """

    text: str
    answer: bool = False
    framed: bool = False
    cut: tuple[Span, ...] = ()


Renderer = Callable[[Example], Sequence[Segment]]
"""A record as segments: a prompt, its answer, and in a conversation the next ones in turn."""


@dataclass(frozen=True, slots=True)
class InstructionPrompt:
    """An instruction row as plain text: a prompt and an answer.

    Args:
        shape: of the records.
        prompt: from the fields to the text before the answer.
    """

    shape: InstructionShape
    prompt: Callable[[Mapping[str, str]], str]

    def __call__(self, record: Example) -> Sequence[Segment]:
        """Two segments.

        Raises:
            DataError: the record lacks a field.
        """
        values = self.shape.values(record)
        text = self.prompt(values)
        return (
            Segment(text, framed=True, cut=_spans(text, [values["input"]])),
            Segment(values["output"], answer=True, framed=True),
        )


@dataclass(frozen=True, slots=True)
class InstructionConversation:
    """An instruction row as a conversation of one question and one answer.

    Args:
        shape: of the records.
        prompt: from the fields to what the user says.
    """

    shape: InstructionShape
    prompt: Callable[[Mapping[str, str]], str]

    def __call__(self, record: Example) -> Conversation:
        """Two messages.

        Raises:
            DataError: the record lacks a field.
        """
        values = self.shape.values(record)
        return (
            Message(USER, self.prompt(values), values["input"]),
            Message(ASSISTANT, values["output"]),
        )


@dataclass(frozen=True, slots=True)
class PlainChat:
    """Chat messages for a tokenizer without a chat template: Alpaca's headings, one after the other."""

    shape: ChatShape

    def __call__(self, record: Example) -> Sequence[Segment]:
        """A prompt and an answer in turn; every answer is closed by the end-of-sequence token.

        Raises:
            DataError: as the shape, or a role that has no heading.
        """
        segments: list[Segment] = []
        asked: list[str] = []
        cut: list[str] = []
        for message in self.shape.conversation(record):
            if message.role == ASSISTANT:
                text = "\n\n".join([*asked, "### Response:\n"])
                # Later questions follow an answer's end.
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
                    f"expected the roles {SYSTEM}, {USER} and {ASSISTANT}, got {message.role!r}, which needs a model "
                    "whose tokenizer has a chat template"
                )
        return segments


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """Conversations through the tokenizer's chat template.

    What the template writes for an answer, its end-of-turn token included, is what the model is to write; all else, the
    opening of the assistant's turn included, is prompt.

    Args:
        tokenizer: has a chat template.
        conversation: of a record.
    """

    tokenizer: PreTrainedTokenizerBase
    conversation: Callable[[Example], Conversation]

    def __call__(self, record: Example) -> Sequence[Segment]:
        """A prompt and an answer in turn.

        Raises:
            DataError: as the conversation, or the template refuses it or writes its answers so that they cannot be told
                from the rest.
        """
        messages = self.conversation(record)
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
        """(start, end, whether the template closes the turn) of what the template makes of one answer."""
        before = self._text(messages[:number], opened=True)
        after = self._text(messages[: number + 1])
        # The opening that generation starts from may promise more than an answer has, a thought for instance.
        start = _common(before, text)
        if start < len(before) and messages[number - 1].content.strip() not in text[:start]:
            raise DataError(f"{_REWRITES}: what comes before answer {number + 1} differs in the whole")
        content = messages[number].content.strip()
        body = after[_common(before, after) :]
        closing = (body.rpartition(content)[2] if content else body).rstrip()
        if text.startswith(body, start):
            return start, start + len(body.rstrip()), bool(closing)
        # Some templates leave the thoughts of earlier answers out.
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
                f"the tokenizer's chat template refuses the roles {[message.role for message in messages]}: {error}; "
                "change the record, or set [data] chat_template = false"
            ) from error
        return str(rendered)


_REWRITES = "expected a chat template that writes the turns of a conversation one after the other"


def _common(first: str, second: str) -> int:
    """How many characters two texts begin with in common."""
    if second.startswith(first):
        return len(first)
    return next((k for k, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(second))


def _spans(text: str, parts: Sequence[str]) -> tuple[Span, ...]:
    # From the right: where a part is found in what comes before it as well, the part itself stands last.
    found = ((text.rfind(part.strip()), len(part.strip())) for part in parts if part.strip())
    return tuple((start, start + length) for start, length in found if start >= 0)
