from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from florist.data.prompts import template_prompt
from florist.data.reading import read_examples
from florist.errors import DataError
from florist.evaluation import MultipleChoice, Question, read_questions
from florist.evaluation.choices import Questions

LORA = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
MMLU = Path(__file__).parents[3] / "shared" / "data" / "mmlu" / "mmlu_1444.json"


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.35, generator=draw)
    return model


def questions(
    tokenizer: PreTrainedTokenizerBase,
    *examples: Mapping[str, Any],
    prompt: str = "{question}:",
    answer: str = "{choice}",
    max_length: int = 60,
) -> Questions:
    return read_questions(
        examples,
        tokenizer,
        prompt=template_prompt(prompt),
        answer=template_prompt(answer),
        max_length=max_length,
        source="questions.json",
    )


def score(model: Any, question: Question, choice: int) -> float:
    """The oracle: one token at a time, one choice at a time, in float64."""
    ids, total = list(question.prompt), 0.0
    with torch.no_grad():
        for token in question.choices[choice]:
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
            total += float(logits[token] - logits.logsumexp(0))
            ids.append(token)
    return total / question.lengths[choice]


EXAMPLES = [
    {
        "question": "what is " + "very " * (k % 4) + str(k),
        "choices": ["yes", "no", "perhaps it is", f"{k}"][: 2 + k % 3],
        "answer": k % 2,
    }
    for k in range(14)
]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_likeliest_choice_for_its_length_is_taken(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> None:
    asked = questions(tokenizer, *EXAMPLES)
    scores = [[score(llama, question, c) for c in range(len(question.choices))] for question in asked]
    hits = [own.index(max(own)) == question.answer for own, question in zip(scores, asked, strict=True)]
    assert 0 < sum(hits) < len(hits)
    # Without the division by the length, other choices would be taken.
    raw = [
        [s * n for s, n in zip(own, question.lengths, strict=True)] for own, question in zip(scores, asked, strict=True)
    ]
    assert [own.index(max(own)) for own in raw] != [own.index(max(own)) for own in scores]
    assert MultipleChoice(asked, tokenizer, batch_size)(llama) == {"multiple_choice": sum(hits) / len(hits)}


def test_choices_that_differ_in_their_last_token_alone_go_through_the_model_once(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    asked = questions(tokenizer, *EXAMPLES[2::3], answer="{letter}")
    assert all(len(choice) == 1 for question in asked for choice in question.choices)
    seen: list[int] = []
    with_count = llama.register_forward_pre_hook(
        lambda _, __, given: seen.append(len(given["input_ids"])), with_kwargs=True
    )
    found = MultipleChoice(asked, tokenizer, 64)(llama)
    with_count.remove()
    assert seen == [len(asked)]
    scores = [[score(llama, question, c) for c in range(len(question.choices))] for question in asked]
    hits = sum(own.index(max(own)) == question.answer for own, question in zip(scores, asked, strict=True))
    assert 0 < hits < len(asked)
    assert found == {"multiple_choice": hits / len(asked)}


class _Unable(torch.nn.Module):
    """A model that always computes all logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.model(input_ids=input_ids, attention_mask=attention_mask)


def test_logits_of_prompts_are_not_computed_where_the_model_can_leave_them_out(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    asked = questions(tokenizer, *EXAMPLES)
    widths: list[tuple[int, int]] = []
    hook = llama.register_forward_hook(
        lambda _, __, given, made: widths.append((given["input_ids"].shape[1], made.logits.shape[1])), with_kwargs=True
    )
    found = [MultipleChoice(asked, tokenizer, 3)(model) for model in (llama, get_peft_model(deepcopy(llama), LORA))]
    hook.remove()
    assert found[0] == found[1] == MultipleChoice(asked, tokenizer, 3)(_Unable(llama))
    longest = max(len(choice) for question in asked for choice in question.choices)
    # Three texts of similar length go together.
    assert all(kept < width for width, kept in widths)
    assert sum(kept for _, kept in widths) < len(widths) * (longest + 4)


def test_a_question_of_which_every_choice_is_right_is_always_answered(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    found = [
        MultipleChoice(questions(tokenizer, {**EXAMPLES[3], "answer": answer}), tokenizer, 8)(llama)["multiple_choice"]
        for answer in range(len(EXAMPLES[3]["choices"]))
    ]
    assert sorted(found) == [0.0] * (len(found) - 1) + [1.0]


@pytest.mark.parametrize("answer", [1, "B", "b", " B ", "no"])
def test_an_answer_is_a_number_a_letter_or_a_text(tokenizer: PreTrainedTokenizerBase, answer: object) -> None:
    (found,) = questions(tokenizer, {"question": "q", "choices": ["yes", "no"], "answer": answer})
    assert found.answer == 1


def test_a_choice_that_looks_like_a_letter_is_itself(tokenizer: PreTrainedTokenizerBase) -> None:
    (found,) = questions(tokenizer, {"question": "q", "choices": ["B", "A"], "answer": "A"})
    assert found.answer == 1


def test_the_templates_make_prompt_and_choices(tokenizer: PreTrainedTokenizerBase) -> None:
    example = {"question": "q", "choices": ["yes", "no"], "answer": 0, "topic": "t"}
    (found,) = questions(tokenizer, example, prompt="{topic}\n{question}\n{options}\n", answer=" {letter}. {choice}")
    assert tokenizer.decode(found.prompt) == "t\nq\nA. yes\nB. no\n"
    assert [tokenizer.decode(choice) for choice in found.choices] == [" A. yes", " B. no"]
    assert found.lengths == (6, 5)


def test_a_long_prompt_loses_its_start_for_all_choices_alike(tokenizer: PreTrainedTokenizerBase) -> None:
    example = {"question": "0123456789", "choices": ["abcd", "e"], "answer": 0}
    (found,) = questions(tokenizer, example, max_length=8)
    assert tokenizer.decode(found.prompt) == "789:"


@pytest.mark.parametrize(
    ("example", "telling"),
    [
        ({"question": "q"}, r"example 1: expected the fields question, choices and answer, or an input .* got \['ques"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "expected the answer as a number from 0, .* got 2"),
        ({"question": "q", "choices": ["a", "b"], "answer": -1}, "expected the answer as a number from 0"),
        ({"question": "q", "choices": ["a", "b"], "answer": True}, "expected the answer as a number from 0"),
        ({"question": "q", "choices": ["a", "b"], "answer": "C"}, "expected the answer .* got 'C'"),
        ({"question": "q", "choices": ["a", ""], "answer": 0}, "expected a prompt, and choices of one token at least"),
        (
            {"question": "q", "choices": ["a", "b" * 60], "answer": 0},
            r"every question .* too long, .*at most 60 tokens with one .*, got 2 .*\[1, 60\] of choices",
        ),
        ({"input": "Question: a? Options: A. 1, B. 2", "output": "A"}, "expected the fields question, choices"),
    ],
)
def test_an_example_that_is_no_question_is_refused(
    tokenizer: PreTrainedTokenizerBase, example: Mapping[str, Any], telling: str
) -> None:
    with pytest.raises(DataError, match=telling):
        questions(tokenizer, example)


def test_the_papers_shape_is_read(tokenizer: PreTrainedTokenizerBase) -> None:
    example = {
        "instruction": "Please answer.",
        "input": "Qusetion: Which? Options: A. 47,XY,+13, B. A, or B, C. both, D. 45,Y",
        "output": "The answer is: D. 45,Y",
    }
    (found,) = questions(tokenizer, example, prompt="{question}\n{options}")
    assert tokenizer.decode(found.prompt).replace("<unk>", "+") == "Which?\nA. 47,XY,+13\nB. A, or B\nC. both\nD. 45,Y"
    assert found.answer == 3
    # The letter is meant, though another choice is called by it.
    example = {"input": "Question: Which? Options: A. B, B. ~A, C. C, D. A", "output": "The answer is: B. ~A"}
    (found,) = questions(tokenizer, example, prompt="{question}")
    assert found.answer == 1
    with pytest.raises(DataError, match="expected the answer as a number from 0, a letter"):
        questions(tokenizer, {**example, "output": "The answer is: E. none"})


@pytest.mark.skipif(not MMLU.is_file(), reason=f"the MMLU sample is not at {MMLU}")
def test_the_papers_mmlu_sample_is_read_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    examples = read_examples(MMLU)
    found = questions(tokenizer, *examples, prompt="{question}:", answer="{choice}", max_length=100_000)
    assert len(found) == 1444
    assert all(len(question.choices) == 4 for question in found)
    for example, question in zip(examples, found, strict=True):
        # The answer's letter and its text agree.
        text = example["output"].split(". ", 1)[1].strip()
        assert question.lengths[question.answer] == len(text)


def test_measuring_is_deterministic_and_changes_nothing(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    metric = MultipleChoice(questions(tokenizer, *EXAMPLES), tokenizer, 4)
    random = torch.get_rng_state()
    llama.train()
    assert metric(llama) == metric(llama)
    assert not llama.training
    assert torch.equal(torch.get_rng_state(), random)
