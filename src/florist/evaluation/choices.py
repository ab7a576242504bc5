"""Multiple choice by likelihood: the model answers what it finds likeliest for its length."""

import inspect
import logging
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from florist.data.causal_lm import opening_tokens
from florist.data.fields import listed, place_of, text_of
from florist.data.reading import Example
from florist.errors import DataError
from florist.evaluation.directions import Measurements

_LOG = logging.getLogger("florist.evaluation")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# The MMLU sample of the FLoRIST paper's repository: question and options in one text, whose first word is misspelt.
_IN_ONE_TEXT = re.compile(
    r"\s*Qu[a-z]+tion:\s*(.*?)\s*Options:\s*A\.\s*(.*?),\s*B\.\s*(.*?),\s*C\.\s*(.*?),\s*D\.\s*(.*?)\s*", re.DOTALL
)
_ANSWER = re.compile(r"\s*(?:The answer is:?)?\s*\(?([A-Z])\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Question:
    """A question as tokens.

    Attributes:
        prompt: the tokens before a choice, at least one.
        choices: the tokens of every choice.
        lengths: the length of every choice in characters.
        answer: the number of the right choice, from 0.
    """

    prompt: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class Questions(Sequence[Question]):
    """The questions of a file that can be measured.

    Attributes:
        asked: the questions.
        skipped: how many others there are, which are too long.
    """

    asked: tuple[Question, ...]
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.asked)

    @overload
    def __getitem__(self, index: int) -> Question: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Question, ...]: ...
    def __getitem__(self, index: int | slice) -> Question | tuple[Question, ...]:
        return self.asked[index]


class _TooLongError(DataError):
    """A question that no prompt of one token leaves room for."""


@dataclass(frozen=True, slots=True)
class MultipleChoice:
    """The fraction of questions whose right choice has the largest log-likelihood per character.

    The score of a choice is the sum of the log-probabilities of its tokens after the prompt, divided by the number
    of its characters. Characters do not depend on the tokenizer, so that models can be compared. Without the division,
    short choices would win. The first of equal scores wins.

    Source: ``acc_norm`` of lm-evaluation-harness.

    Args:
        questions: as `read_questions` encodes them; where some were skipped, their number is measured as well.
        tokenizer: the tokenizer of the model, which says how to pad.
        batch_size: how many texts are run together: choices that differ in their last token alone share one.
    """

    questions: Questions
    tokenizer: PreTrainedTokenizerBase
    batch_size: int

    def __call__(self, model: nn.Module, /) -> Measurements:
        """Measure ``multiple_choice``, and ``multiple_choice_skipped`` where questions were."""
        # Choices that differ in their last token alone are read off one pass: four letters take one and not four.
        sharing: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for q, question in enumerate(self.questions):
            for c, choice in enumerate(question.choices):
                sharing.setdefault((*question.prompt, *choice[:-1]), []).append((q, c))
        texts = sorted(sharing, key=len)  # texts of similar length go together: less padding
        scores = [[0.0] * len(question.choices) for question in self.questions]
        model.eval()
        with torch.inference_mode():
            for start in range(0, len(texts), self.batch_size):
                some = texts[start : start + self.batch_size]
                # No row that predicts a prompt is needed: with a large vocabulary they are most of the memory.
                first = min(len(text) - len(self.questions[q].choices[c]) for text in some for q, c in sharing[text])
                for text, logits in zip(some, self._logits(model, some, first), strict=True):
                    for q, c in sharing[text]:
                        likelihood = _log_likelihood(logits[: len(text) - first], self.questions[q].choices[c])
                        scores[q][c] = likelihood / self.questions[q].lengths[c]
        hits = sum(own.index(max(own)) == q.answer for own, q in zip(scores, self.questions, strict=True))
        measured = Measurements.own({"multiple_choice": hits / len(self.questions)})
        skipped = {"multiple_choice_skipped": float(self.questions.skipped)} if self.questions.skipped else {}
        return Measurements.together([measured, Measurements(skipped, {})])

    def _logits(self, model: nn.Module, texts: Sequence[tuple[int, ...]], first: int) -> Tensor:
        """The logits of some texts, padded on the right, from the position `first` on."""
        width, device = max(map(len, texts)), next(model.parameters()).device
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[*text, *[pad] * (width - len(text))] for text in texts], device=device)
        mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts], device=device)
        if _computes_the_last_alone(model):
            return model(input_ids=ids, attention_mask=mask, logits_to_keep=width - first).logits
        return model(input_ids=ids, attention_mask=mask).logits[:, first:]


def _computes_the_last_alone(model: nn.Module) -> bool:
    """Whether a model can leave out the logits of earlier positions, as nearly all of transformers' can."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    return "logits_to_keep" in inspect.signature(inner.forward).parameters


def _log_likelihood(logits: Tensor, choice: tuple[int, ...]) -> float:
    """The log-likelihood of a choice, whose tokens the last ``len(choice)`` rows of the logits predict."""
    predicted = logits[-len(choice) :].float().log_softmax(dim=1)
    return float(predicted.gather(1, torch.tensor(choice, device=logits.device)[:, None]).sum())


def read_questions(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt: Callable[[Mapping[str, Any]], str],
    answer: Callable[[Mapping[str, Any]], str],
    max_length: int,
    source: str,
) -> Questions:
    """Encode questions: examples with ``question``, ``choices`` and ``answer``, or in the shape of the paper's MMLU.

    The answer is the number of a choice, from 0, its letter, or its text. A prompt that is too long loses its start. A
    question with a choice that leaves no room for a prompt is skipped, counted and logged.

    Args:
        examples: one for every question.
        tokenizer: the tokenizer of the model.
        prompt: turns the fields, ``question`` and ``options`` (a line each) into the text before a choice.
        answer: turns ``choice`` and ``letter`` into the text whose likelihood is measured.
        max_length: how many tokens a prompt and a choice may have together.
        source: what errors call the place where the examples are from.

    Raises:
        DataError: an example is in neither of the two shapes, or a choice is empty, or every question is too long.
    """
    questions: list[Question] = []
    skipped: list[str] = []
    for number, example in enumerate(examples, start=1):
        place = place_of(example, f"{source}, example {number}")
        try:
            questions.append(_question(example, tokenizer, prompt, answer, max_length))
        except _TooLongError as error:
            skipped.append(f"{place}: {error}")
        except DataError as error:
            raise DataError(f"{place}: {error}") from error
    if skipped and not questions:
        raise DataError(f"every question of {source} is too long, the first at {skipped[0]}")
    if skipped:
        _LOG.warning(
            "%d of %d questions of %s are skipped, since they are too long, the first at %s",
            len(skipped),
            len(examples),
            source,
            skipped[0],
        )
    return Questions(tuple(questions), len(skipped))


def _question(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Callable[[Mapping[str, Any]], str],
    answer: Callable[[Mapping[str, Any]], str],
    max_length: int,
) -> Question:
    question, choices, right = _parsed(example)
    lettered = list(zip(_LETTERS, choices, strict=False))
    options = "\n".join(f"{letter}. {choice}" for letter, choice in lettered)
    before = opening_tokens(tokenizer, prompt(dict(example) | {"question": question, "options": options}))
    texts = [answer({"letter": letter, "choice": choice}) for letter, choice in lettered]
    tokens: list[list[int]] = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    room = max_length - max(len(own) for own in tokens)
    counts = listed((len(own) for own in tokens), most=len(_LETTERS))
    if not all(text.strip() for text in texts) or not all(tokens) or not before:
        raise DataError(
            f"expected a prompt, and choices of one token at least, got {len(before)} tokens of prompt and {counts} of "
            "choices; remove the question"
        )
    if room < 1:
        raise _TooLongError(
            f"expected choices that have at most {max_length} tokens with one of the prompt, got {len(before)} tokens "
            f"of prompt and {counts} of choices; raise data.max_length"
        )
    excess = max(0, len(before) - room)
    opening = 1 if before[0] == tokenizer.bos_token_id and room > 1 else 0
    before = before[:opening] + before[opening + excess :]
    return Question(
        tuple(before), tuple(tuple(own) for own in tokens), tuple(len(text.strip()) for text in texts), right
    )


def _parsed(example: Example) -> tuple[str, list[str], int]:
    """The question, its choices, and the number of the right one."""
    choices = example.get("choices")
    if isinstance(example.get("question"), str) and isinstance(choices, list) and "answer" in example:
        texts = [text_of({"choices": choice}, "choices") for choice in choices]
        return example["question"], texts, _right(example["answer"], texts)
    found = _IN_ONE_TEXT.fullmatch(str(example.get("input", "")))
    if found is None or "output" not in example:
        raise DataError(
            "expected the fields question, choices and answer, or an input 'Question: ... Options: A. ..., B. ..., "
            f"C. ..., D. ...' and an output 'The answer is: B. ...', got {listed(example)}"
        )
    question, *texts = found.groups()
    letter = _ANSWER.match(str(example["output"]))
    # The answer is a letter here, whatever the choices say: one of the sample's choices is "B".
    return question, texts, _right(_LETTERS.find(letter[1].upper()) if letter is not None else None, texts)


def _right(answer: Any, choices: Sequence[str]) -> int:
    if isinstance(answer, str):
        named = choices.index(answer) if answer in choices else -1
        letter = _LETTERS.find(answer.strip().upper()) if len(answer.strip()) == 1 else -1
        number = named if named >= 0 else letter
    else:
        number = answer
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < min(len(choices), len(_LETTERS)):
        raise DataError(
            f"expected the answer as a number from 0, a letter or the text of a choice, got {reprlib.repr(answer)}"
        )
    return number
