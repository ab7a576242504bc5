import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from florist.data.examples import IGNORED, EncodedExamples, Features
from florist.evaluation import Classification, ExactMatch, LanguageModelLoss, Metric

EOS = 1


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture
def llama(tiny_llama: Path) -> PreTrainedModel:
    """Sharper than a fresh one, so that tokens differ in their loss and greedy text depends on its prompt."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, attention_dropout=0.5)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.35, generator=draw)
    return model


@pytest.fixture
def bert(tiny_bert: Path) -> PreTrainedModel:
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)
    return model


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Random tokens, of 1 to 12 each."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 13, (count,), generator=draw).tolist()
    return [torch.randint(3, 60, (length,), generator=draw).tolist() for length in lengths]


def features(prompt: list[int], answer: list[int]) -> Features:
    return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}


def language_examples(tokenizer: PreTrainedTokenizerBase) -> EncodedExamples:
    # Short answers after long prompts and the other way round: padding would weigh tokens wrongly if it could.
    answers = [own[: 1 + k % 9] for k, own in enumerate(prompts(17, seed=1))]
    pairs = zip(prompts(17), answers, strict=True)
    return EncodedExamples([features(p, a) for p, a in pairs], DataCollatorForSeq2Seq(tokenizer))


def token_losses(model: Any, examples: EncodedExamples) -> list[list[float]]:
    """The oracle: one example at a time, one token at a time, without a batch or a pad."""
    model.eval()
    losses: list[list[float]] = []
    with torch.no_grad():
        for example in examples:
            ids = example["input_ids"]
            logits = model(input_ids=torch.tensor([ids])).logits[0].double()
            own = [
                float(logits[k - 1].logsumexp(0) - logits[k - 1, ids[k]])
                for k in range(1, len(ids))
                if example["labels"][k] != IGNORED
            ]
            losses.append(own)
    return losses


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_the_loss_is_the_mean_over_all_answer_tokens(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> None:
    examples = language_examples(tokenizer)
    losses = token_losses(llama, examples)
    every_token = [loss for own in losses for loss in own]
    expected = sum(every_token) / len(every_token)
    # Weighing every example alike, instead of every token, would be another number.
    assert abs(sum(sum(own) / len(own) for own in losses) / len(losses) - expected) > 1e-2
    found = LanguageModelLoss(examples, batch_size)(llama)
    assert found.keys() == {"loss", "perplexity"}
    assert found["loss"] == pytest.approx(expected, abs=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)


def test_a_hopeless_loss_has_a_finite_perplexity(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with torch.no_grad():
        llama.get_output_embeddings().weight.mul_(1e4)
    found = LanguageModelLoss(language_examples(tokenizer), 8)(llama)
    assert found["loss"] > 1000
    assert math.isfinite(found["perplexity"])


def greedy(model: Any, prompt: list[int], max_new_tokens: int) -> list[int]:
    """The oracle: the likeliest token, again and again."""
    model.eval()
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + max_new_tokens and (len(ids) == len(prompt) or ids[-1] != EOS):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def exact_match(
    rows: Sequence[Features], tokenizer: PreTrainedTokenizerBase, batch_size: int = 4, max_new_tokens: int = 6
) -> ExactMatch:
    return ExactMatch(EncodedExamples(rows, DataCollatorForSeq2Seq(tokenizer)), tokenizer, batch_size, max_new_tokens)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_exact_match_counts_the_answers_that_greedy_text_is(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> None:
    rows, texts = [], set[tuple[int, ...]]()
    for number, prompt in enumerate(prompts(15)):
        said = greedy(llama, prompt, 6)
        texts.add(tuple(said))
        if number % 3 == 2:
            said[0] = 3 + (said[0] - 2) % 50  # one wrong letter
        rows.append(features(prompt, said if said[-1] == EOS else [*said, EOS]))
    assert len(texts) > 10
    assert exact_match(rows, tokenizer, batch_size)(llama) == {"exact_match": 10 / 15}


def test_exact_match_agrees_with_generate_one_by_one(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows, hits = [], 0
    for number, prompt in enumerate(prompts(12, seed=5)):
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        said = llama.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=6, pad_token_id=0)
        text = tokenizer.decode(said[0, len(prompt) :], skip_special_tokens=True).strip()
        answer = [text, text[:-1], f"{text}.", text.swapcase()][number % 4]
        hits += answer.strip() == text
        rows.append(features(prompt, [*tokenizer(answer)["input_ids"], EOS]))
    assert 0 < hits < 12
    assert exact_match(rows, tokenizer)(llama)["exact_match"] == hits / 12


def test_exact_match_is_greedy_whatever_the_model_prefers(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [features(prompt, [*greedy(llama, prompt, 6), EOS]) for prompt in prompts(12)]
    metric = exact_match(rows, tokenizer)
    assert metric(llama) == {"exact_match": 1.0}
    # What published models bring along in their generation_config.json.
    for name, value in {
        "do_sample": True,
        "temperature": 2.0,
        "top_k": 3,
        "repetition_penalty": 5.0,
        "num_beams": 3,
        "no_repeat_ngram_size": 1,
        "max_length": 3,
    }.items():
        before = getattr(llama.generation_config, name)
        setattr(llama.generation_config, name, value)
        assert metric(llama) == {"exact_match": 1.0}, name
        setattr(llama.generation_config, name, before)


def test_exact_match_ignores_white_space_around_and_no_more(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    space, letter = tokenizer(" ")["input_ids"], tokenizer("a")["input_ids"]
    prompt = prompts(1)[0]
    said = greedy(llama, prompt, 6)
    surrounded = features(prompt, [*space, *said, *space, EOS])
    divided = features(prompt, [*said[:3], *space, *said[3:], EOS])
    longer = features(prompt, [*said, *letter, EOS])
    shorter = features(prompt, [*said[:-1], EOS])
    assert exact_match([surrounded], tokenizer)(llama) == {"exact_match": 1.0}
    assert exact_match([divided, longer, shorter], tokenizer)(llama) == {"exact_match": 0.0}


def test_a_longer_answer_than_is_generated_cannot_match(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [features(prompt, [*greedy(llama, prompt, 6), EOS]) for prompt in prompts(6)]
    assert exact_match(rows, tokenizer, max_new_tokens=6)(llama) == {"exact_match": 1.0}
    assert exact_match(rows, tokenizer, max_new_tokens=5)(llama) == {"exact_match": 0.0}


def test_of_a_conversation_the_last_answer_is_asked_for(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    first, second = prompts(2)
    asked = [*first, *greedy(llama, first, 4), *second]
    said = greedy(llama, asked, 6)
    earlier = [IGNORED] * len(first) + asked[len(first) : -len(second)]
    row = {"input_ids": [*asked, *said, EOS], "labels": [*earlier, *[IGNORED] * len(second), *said, EOS]}
    wrong = {"input_ids": [*asked, *said[::-1], EOS], "labels": row["labels"]}
    assert said != said[::-1]
    assert exact_match([row, wrong], tokenizer)(llama) == {"exact_match": 0.5}


def test_a_turn_ends_where_the_model_says_as_well(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = prompts(1)[0]
    said = greedy(llama, prompt, 6)
    end = next(token for token in said[1:] if token != said[0])
    row = features(prompt, said[: said.index(end) + 1])
    assert exact_match([row], tokenizer)(llama) == {"exact_match": 0.0}
    llama.generation_config.eos_token_id = [EOS, end]
    assert exact_match([row], tokenizer)(llama) == {"exact_match": 1.0}


def class_examples(tokenizer: PreTrainedTokenizerBase) -> EncodedExamples:
    rows = [{"input_ids": ids, "labels": number % 3} for number, ids in enumerate(prompts(20))]
    return EncodedExamples(rows, DataCollatorWithPadding(tokenizer))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_classification_is_the_mean_over_records(
    bert: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> None:
    examples = class_examples(tokenizer)
    bert.eval()
    losses: list[float] = []
    hits: list[bool] = []
    with torch.no_grad():
        for example in examples:
            logits = bert(input_ids=torch.tensor([example["input_ids"]])).logits[0].double()
            losses.append(float(logits.logsumexp(0) - logits[example["labels"]]))
            hits.append(int(logits.argmax()) == example["labels"])
    assert 0 < sum(hits) < 20
    assert max(losses) - min(losses) > 0.1
    found = Classification(examples, batch_size)(bert)
    assert found == {"loss": pytest.approx(sum(losses) / 20, abs=1e-5), "accuracy": sum(hits) / 20}


@pytest.fixture(params=["loss", "exact match", "classification"])
def measured(
    request: pytest.FixtureRequest, llama: PreTrainedModel, bert: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[Metric, PreTrainedModel]:
    examples = language_examples(tokenizer)
    metrics: dict[str, tuple[Metric, PreTrainedModel]] = {
        "loss": (LanguageModelLoss(examples, 4), llama),
        "exact match": (ExactMatch(examples, tokenizer, 4, 3), llama),
        "classification": (Classification(class_examples(tokenizer), 4), bert),
    }
    return metrics[request.param]


def test_measuring_is_deterministic_and_changes_nothing(measured: tuple[Metric, PreTrainedModel]) -> None:
    metric, model = measured
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    found = []
    for _ in range(2):
        model.train()  # with dropout, as training leaves it
        found.append(metric(model))
        assert not model.training
    assert found[0] == found[1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_model_that_fails_leaves_gradients_on(measured: tuple[Metric, PreTrainedModel]) -> None:
    metric, model = measured

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory") as held:
        metric(model)
    # The traceback keeps the frames alive: nothing may wait for them to go before gradients are back.
    assert held.value.__traceback__ is not None
    assert not torch.is_inference_mode_enabled()
