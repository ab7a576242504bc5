"""Examples as sequences of tokens for a causal language model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from florist.data.examples import IGNORED, Features
from florist.data.reading import Example
from florist.data.rendering import Renderer, Segment
from florist.errors import DataError


@dataclass(frozen=True, slots=True)
class CausalLmEncoder:
    """Encodes a prompt and its answer, or a whole conversation, as one sequence whose loss counts the answers.

    Prompts and answers are tokenised apart, so that the border between them is a token border in training and in
    generation alike, and an end-of-sequence token closes the last answer.

    A sequence that exceeds `max_length` is cut. A conversation loses its later turns first. The first answer keeps
    its start and at least half of the length. Its prompt loses the middle of the parts that its segment names (the
    input field of an instruction; in a chat, the messages as well), and where that is not enough, its start. It keeps
    the beginning-of-sequence token, without which some models derail.

    Args:
        tokenizer: The tokenizer of the model.
        render: Turns an example into text.
        max_length: The length of prompt and answer together, in tokens; at least 2.
        loss_on_prompts: Whether the loss counts every token.
    """

    tokenizer: PreTrainedTokenizerBase
    render: Renderer
    max_length: int
    loss_on_prompts: bool = False

    def __call__(self, example: Example) -> Features:
        """Return the token numbers and labels of one example.

        Raises:
            DataError: The example lacks a field, or it has no token whose loss could count.
        """
        prompt, answer, *further = self.render(example)
        before, tokens = self._tokens(prompt), self._tokens(answer)
        tokens = tokens[: max(self.max_length - len(before), self.max_length - self.max_length // 2)]
        excess = len(before) + len(tokens) - self.max_length
        if excess > 0:
            before = self._shortened(prompt, before, excess)
        # The first token of a sequence is predicted from nothing, so that its loss never counts.
        if not tokens or len(before) + len(tokens) < 2:
            raise DataError(
                f"expected at least one token of answer and one before it, got {len(before)} tokens of prompt and "
                f"{len(tokens)} of answer; remove the example"
            )
        ids, labels = before + tokens, [IGNORED] * len(before) + tokens
        for segment in further:
            more = self._tokens(segment)
            ids += more
            labels += more if segment.answer else [IGNORED] * len(more)
        # What comes after the last token that counts cannot change the loss.
        length = max(k for k, label in enumerate(labels[: self.max_length], start=1) if label != IGNORED)
        ids, labels = ids[:length], labels[:length]
        return {"input_ids": ids, "labels": list(ids) if self.loss_on_prompts else labels}

    def _tokens(self, segment: Segment) -> list[int]:
        if segment.framed and not segment.answer:
            return opening_tokens(self.tokenizer, segment.text)
        tokens: list[int] = self.tokenizer(segment.text, add_special_tokens=False)["input_ids"]
        end = self.tokenizer.eos_token_id
        return [*tokens, end] if segment.framed and isinstance(end, int) else tokens

    def _shortened(self, prompt: Segment, tokens: list[int], excess: int) -> list[int]:
        kept = list(range(len(tokens)))
        # Only fast tokenizers know offsets; with others, the prompt loses its start.
        places = self._places(prompt) if prompt.cut and self.tokenizer.is_fast else []
        for start, end in prompt.cut if places else ():
            inside = [k for k in kept if start <= places[k][0] < places[k][1] <= end]
            first = (len(inside) - min(excess, len(inside))) // 2
            gone = set(inside[first : first + excess])
            kept = [k for k in kept if k not in gone]
            excess -= len(gone)
        opening = 1 if tokens[0] == self.tokenizer.bos_token_id else 0
        return [tokens[k] for k in kept[:opening] + kept[opening + excess :]]

    def _places(self, prompt: Segment) -> list[tuple[int, int]]:
        encoded: Mapping[str, Any] = self.tokenizer(
            prompt.text, add_special_tokens=prompt.framed, return_offsets_mapping=True
        )
        return encoded["offset_mapping"]


def opening_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Return the tokens of a prompt, with the special ones that open a text and without one that closes it."""
    tokens: list[int] = tokenizer(prompt)["input_ids"]
    # Some tokenizers close every text; an end before the answer would teach the model to stop there.
    return tokens[:-1] if tokens and tokens[-1] == tokenizer.eos_token_id else tokens
