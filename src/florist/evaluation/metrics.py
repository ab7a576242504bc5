"""Metrics of a model on held-out examples: deterministic, batched, greedy where text is generated."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from florist.data.examples import IGNORED, EncodedExamples, Features
from florist.data.positions import positions_of
from florist.evaluation.directions import Measurements

# What is left out here comes from the model's generation_config.json, and published ones penalise repetitions.
_GREEDY: Mapping[str, Any] = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}


@runtime_checkable
class Metric(Protocol):
    """Measures a model on the examples that it holds."""

    def __call__(self, model: Any, /) -> Measurements:
        """Measure a model, and leave it in evaluation mode."""
        ...


@dataclass(frozen=True, slots=True)
class LanguageModelLoss:
    """The loss and the perplexity on held-out examples.

    ``loss`` is the mean negative log-likelihood in nats over all tokens that count (the answers), every token with the
    same weight whatever its batch; ``perplexity`` is its exponential.

    Args:
        examples: prompt and answer, encoded as for training.
        batch_size: how many examples are run together.
    """

    examples: EncodedExamples
    batch_size: int

    def __call__(self, model: nn.Module, /) -> Measurements:
        """Measure ``loss`` and ``perplexity``."""
        total, tokens = 0.0, 0
        for batch in _batches(model, self.examples, self.batch_size):
            labels = batch.pop("labels")
            logits, targets = model(**batch).logits[:, :-1], labels[:, 1:]
            counted = targets != IGNORED
            # Of the answers alone: over a large vocabulary, a softmax of all rows in float32 is most of the memory.
            total += float(functional.cross_entropy(logits[counted].float(), targets[counted], reduction="sum"))
            tokens += int(counted.sum())
        loss = total / tokens
        return Measurements.own({"loss": loss, "perplexity": math.exp(min(loss, 700.0))})


@dataclass(frozen=True, slots=True)
class ExactMatch:
    """The fraction of prompts whose greedy continuation is the answer, up to surrounding white space.

    A conversation is continued after everything that comes before its last answer.

    Args:
        examples: prompt and answer, encoded as for training.
        tokenizer: the tokenizer of the model.
        batch_size: how many prompts are continued together.
        max_new_tokens: the length of a continuation; a longer answer cannot match.
    """

    examples: EncodedExamples
    tokenizer: PreTrainedTokenizerBase
    batch_size: int
    max_new_tokens: int

    def __call__(self, model: Any, /) -> Measurements:
        """Measure ``exact_match``."""
        # Prompts of similar length go together: less padding.
        ordered = sorted(self.examples, key=_answer_start)
        hits = 0
        model.eval()
        with torch.inference_mode():
            for start in range(0, len(ordered), self.batch_size):
                for some, longest in self._within(model, ordered[start : start + self.batch_size]):
                    hits += self._hits(model, some, longest)
        return Measurements.own({"exact_match": hits / len(ordered)})

    def _within(self, model: Any, examples: Sequence[Features]) -> Iterator[tuple[Sequence[Features], int]]:
        """The examples with the tokens that may continue them: fewer where the model's table of positions ends."""
        positions = positions_of(model)
        if positions is None or not positions.fixed:
            yield examples, self.max_new_tokens
            return
        room = positions.most - max(_answer_start(features) for features in examples)
        if room >= self.max_new_tokens:
            yield examples, self.max_new_tokens
            return
        # Each length has another end, and an answer that fits is never cut by that of a longer prompt.
        for length, some in itertools.groupby(examples, key=_answer_start):
            yield list(some), min(self.max_new_tokens, positions.most - length)

    def _hits(self, model: Any, examples: Sequence[Features], longest: int) -> int:
        prompts = [features["input_ids"][: _answer_start(features)] for features in examples]
        answers = [features["input_ids"][len(prompt) :] for features, prompt in zip(examples, prompts, strict=True)]
        width = max(len(prompt) for prompt in prompts)
        pad = self.tokenizer.pad_token_id
        device = next(model.parameters()).device
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        generated = model.generate(
            input_ids=ids,
            attention_mask=mask,
            **_GREEDY,
            max_new_tokens=longest,
            pad_token_id=pad,
            eos_token_id=self._ends(model),
        )
        texts = self.tokenizer.batch_decode(generated[:, width:], skip_special_tokens=True)
        expected = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return sum(text.strip() == answer.strip() for text, answer in zip(texts, expected, strict=True))

    def _ends(self, model: Any) -> list[int] | None:
        # A chat model may end its turns by another token than its tokenizer ends texts.
        of_model = model.generation_config.eos_token_id
        of_model = of_model if isinstance(of_model, list) else [of_model]
        return sorted({end for end in (self.tokenizer.eos_token_id, *of_model) if isinstance(end, int)}) or None


@dataclass(frozen=True, slots=True)
class Classification:
    """The cross-entropy in nats and the accuracy of a classifier on held-out examples.

    Args:
        examples: texts and their classes, encoded as for training.
        batch_size: how many examples are run together.
    """

    examples: EncodedExamples
    batch_size: int

    def __call__(self, model: nn.Module, /) -> Measurements:
        """Measure ``loss`` and ``accuracy``."""
        total, hits = 0.0, 0
        for batch in _batches(model, self.examples, self.batch_size):
            labels = batch.pop("labels")
            logits = model(**batch).logits.float()
            total += float(functional.cross_entropy(logits, labels, reduction="sum"))
            hits += int((logits.argmax(dim=1) == labels).sum())
        return Measurements.own({"loss": total / len(self.examples), "accuracy": hits / len(self.examples)})


def _batches(model: nn.Module, examples: EncodedExamples, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
    model.eval()
    device = next(model.parameters()).device
    with torch.inference_mode():
        for batch in examples.batches(batch_size):
            yield {name: tensor.to(device) for name, tensor in batch.items()}


def _answer_start(features: Features) -> int:
    """The position at which the last run of tokens that count begins."""
    labels: Sequence[int] = features["labels"]
    return max(k for k, label in enumerate(labels) if label != IGNORED and (k == 0 or labels[k - 1] == IGNORED))
