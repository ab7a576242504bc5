"""What the model is to write, told from what it only reads: to the character, then to the token."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from florist.data.causal_lm import CausalLmEncoder
from florist.data.examples import IGNORED
from florist.data.prompts import instruction_and_input, template_prompt
from florist.data.rendering import ChatTemplate, InstructionConversation, InstructionPrompt, PlainChat, Segment
from florist.data.shapes import ALPACA, MESSAGES
from florist.errors import DataError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% elif m['role'] == "
    "'assistant' %} {{ m['content'].strip() }}{{ eos_token }}{% else %}{{ raise_exception('No system role') }}"
    "{% endif %}{% endfor %}"
)
# Earlier answers lose their thought, as in Qwen 3.
THOUGHTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}"
    "<think></think>{% endif %}{{ m['content'].strip() }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Generation starts within a thought, as in DeepSeek R1.
OPENED = CHATML.replace("assistant\n{% endif", "assistant\n<think>{% endif")
UNCLOSED = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
REVERSED = "{% for m in messages | reverse %}{{ m['content'] }}<|im_end|>{% endfor %}"


def chat_tokenizer(directory: Path, template: str) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def chatml(tiny_llama: Path) -> PreTrainedTokenizerBase:
    return chat_tokenizer(tiny_llama, CHATML)


def chat(*contents: str, system: str | None = None) -> dict[str, Any]:
    roles = ["user", "assistant"] * len(contents)
    turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return {"messages": ([{"role": "system", "content": system}] if system else []) + turns}


def texts(segments: Sequence[Segment]) -> list[str]:
    assert [segment.answer for segment in segments] == [False, True] * (len(segments) // 2)
    return [segment.text for segment in segments]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            CHATML,
            [
                "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
                "hello<|im_end|>",
                "\n<|im_start|>user\nbye<|im_end|>\n<|im_start|>assistant\n",
                "ciao<|im_end|>",
            ],
        ),
        (INST, ["[INST] hi [/INST]", " hello<eos>", "[INST] bye [/INST]", " ciao<eos>"]),
        (
            THOUGHTS,
            [
                "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
                "hello<|im_end|>",
                "\n<|im_start|>user\nbye<|im_end|>\n<|im_start|>assistant\n",
                "<think></think>ciao<|im_end|>",
            ],
        ),
        (
            OPENED,
            [
                "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
                "hello<|im_end|>",
                "\n<|im_start|>user\nbye<|im_end|>\n<|im_start|>assistant\n",
                "ciao<|im_end|>",
            ],
        ),
        (UNCLOSED, ["user: hi\nassistant: ", "hello", "\nuser: bye\nassistant: ", "ciao"]),
    ],
    ids=["chatml", "inst", "thoughts", "opened", "unclosed"],
)
def test_a_chat_template_is_divided_at_its_answers(tiny_llama: Path, template: str, expected: list[str]) -> None:
    tokenizer = chat_tokenizer(tiny_llama, template)
    segments = ChatTemplate(tokenizer, MESSAGES.conversation)(chat("hi", "hello", "bye", "ciao"))
    assert texts(segments) == expected
    # Only a last answer that the template leaves open is closed by the tokenizer's own end.
    assert [segment.framed for segment in segments] == [False, False, False, template == UNCLOSED]


WORDS = st.text(st.sampled_from("ab \n.<|"), max_size=8)


@given(contents=st.lists(WORDS, min_size=2, max_size=6), system=st.none() | WORDS)
def test_the_segments_are_the_template_up_to_the_last_answer(
    chatml: PreTrainedTokenizerBase, contents: list[str], system: str | None
) -> None:
    example = chat(*contents, system=system)
    segments = ChatTemplate(chatml, MESSAGES.conversation)(example)
    whole = chatml.apply_chat_template(example["messages"], tokenize=False)
    assert str(whole).startswith("".join(texts(segments)))
    answers = [segment.text for segment in segments if segment.answer]
    assert answers == [f"{content}<|im_end|>" for content in contents[1::2]]


def test_masks_are_right_to_the_token(chatml: PreTrainedTokenizerBase) -> None:
    encoder = CausalLmEncoder(chatml, ChatTemplate(chatml, MESSAGES.conversation), 200)
    found = encoder(chat("hi", "hello", "bye", "ciao", system="s"))
    learnt = [token if token != IGNORED else chatml.pad_token_id for token in found["labels"]]
    assert chatml.decode(learnt).replace("<pad>", "_") == (
        "_" * (len("Xsystem\nsX\nXuser\nhiX\nXassistant\n"))
        + "hello<|im_end|>"
        + "_" * len("\nXuser\nbyeX\nXassistant\n")
        + "ciao<|im_end|>"
    )
    assert len(found["input_ids"]) == len(found["labels"])
    everything = CausalLmEncoder(chatml, encoder.render, 200, loss_on_prompts=True)(chat("hi", "hello", "bye", "ciao"))
    assert everything["labels"] == everything["input_ids"]


def test_the_prompt_is_what_generation_starts_from(chatml: PreTrainedTokenizerBase) -> None:
    example = chat("hi", "hello", system="s")
    found = CausalLmEncoder(chatml, ChatTemplate(chatml, MESSAGES.conversation), 200)(example)
    asked = chatml.apply_chat_template(example["messages"][:2], add_generation_prompt=True, return_dict=False)
    assert found["input_ids"][: found["labels"].count(IGNORED)] == asked


def test_an_open_last_answer_ends_with_the_end_of_sequence(tiny_llama: Path) -> None:
    tokenizer = chat_tokenizer(tiny_llama, UNCLOSED)
    found = CausalLmEncoder(tokenizer, ChatTemplate(tokenizer, MESSAGES.conversation), 200)(chat("hi", "yes"))
    assert tokenizer.decode([token for token in found["labels"] if token != IGNORED]) == "yes<eos>"


def test_an_instruction_row_is_a_conversation_of_one_question(chatml: PreTrainedTokenizerBase) -> None:
    example = {"instruction": "add", "input": "1 2", "output": "3"}
    render = ChatTemplate(chatml, InstructionConversation(ALPACA, instruction_and_input))
    assert texts(render(example)) == ["<|im_start|>user\nadd\n\n1 2<|im_end|>\n<|im_start|>assistant\n", "3<|im_end|>"]
    assert texts(render({**example, "input": None}))[0].startswith("<|im_start|>user\nadd<|im_end|>")
    own = ChatTemplate(chatml, InstructionConversation(ALPACA, template_prompt("{input}? {instruction}!")))
    assert "user\n1 2? add!<|" in texts(own(example))[0]


def test_what_a_template_refuses_is_told(tiny_llama: Path) -> None:
    tokenizer = chat_tokenizer(tiny_llama, INST)
    with pytest.raises(DataError, match=r"refuses the roles \['system', 'user', 'assistant'\]: No system role; change"):
        ChatTemplate(tokenizer, MESSAGES.conversation)(chat("a", "b", system="s"))


def test_a_template_that_shuffles_turns_is_refused(tiny_llama: Path) -> None:
    tokenizer = chat_tokenizer(tiny_llama, REVERSED)
    with pytest.raises(DataError, match="expected a chat template that writes the turns of a conversation one after"):
        ChatTemplate(tokenizer, MESSAGES.conversation)(chat("what", "this", "and", "that"))


def test_messages_without_a_chat_template_take_headings() -> None:
    segments = PlainChat(MESSAGES)(chat("hi", "hello", "bye", "ciao", system="be brief"))
    assert texts(segments) == [
        "be brief\n\n### Instruction:\nhi\n\n### Response:\n",
        "hello",
        "\n\n### Instruction:\nbye\n\n### Response:\n",
        "ciao",
    ]
    # Every answer is closed; only the first prompt opens the text.
    assert [segment.framed for segment in segments] == [True, True, False, True]
    with pytest.raises(
        DataError, match=r"expected the roles system, user and assistant, got 'tool'; take a model whose"
    ):
        PlainChat(MESSAGES)({"messages": [{"role": "tool", "content": "x"}, *chat("a", "b")["messages"]]})


# --- too long


def decoded(tokenizer: PreTrainedTokenizerBase, found: dict[str, Any]) -> str:
    return str(tokenizer.decode(found["input_ids"]))


def test_a_long_input_loses_its_middle_and_nothing_else(chatml: PreTrainedTokenizerBase) -> None:
    example = {"instruction": "sum up", "input": "0123456789", "output": "yes"}
    plain = InstructionPrompt(ALPACA, template_prompt("{instruction}: {input} ."))
    whole = CausalLmEncoder(chatml, plain, 100)(example)
    length = len(whole["input_ids"])
    assert decoded(chatml, CausalLmEncoder(chatml, plain, length - 4)(example)) == "sum up: 012789 .yes<eos>"
    in_chat = ChatTemplate(chatml, InstructionConversation(ALPACA, instruction_and_input))
    length = len(CausalLmEncoder(chatml, in_chat, 100)(example)["input_ids"])
    assert decoded(chatml, CausalLmEncoder(chatml, in_chat, length - 8)(example)) == (
        # Two line ends are no token of this tokenizer.
        "<|im_start|>user\nsum up<unk>09<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"
    )


def test_then_the_messages_are_cut_and_the_opening_of_the_answer_stays(chatml: PreTrainedTokenizerBase) -> None:
    render = ChatTemplate(chatml, MESSAGES.conversation)
    example = chat("abcdefghij", "yes")
    length = len(CausalLmEncoder(chatml, render, 100)(example)["input_ids"])
    assert decoded(chatml, CausalLmEncoder(chatml, render, length - 6)(example)) == (
        "<|im_start|>user\nabij<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"
    )


@given(
    contents=st.lists(st.text(st.sampled_from("ab \n."), max_size=12), min_size=2, max_size=6),
    max_length=st.integers(2, 120),
)
def test_cutting_never_loses_the_first_answer(
    chatml: PreTrainedTokenizerBase, contents: list[str], max_length: int
) -> None:
    render = ChatTemplate(chatml, MESSAGES.conversation)
    whole = CausalLmEncoder(chatml, render, 10_000)(chat(*contents))
    cut = CausalLmEncoder(chatml, render, max_length)(chat(*contents))
    assert len(cut["input_ids"]) == len(cut["labels"]) <= min(max_length, len(whole["input_ids"]))
    assert all(label in (IGNORED, token) for token, label in zip(cut["input_ids"], cut["labels"], strict=True))
    first = [*chatml(contents[1])["input_ids"], chatml.convert_tokens_to_ids("<|im_end|>")]
    learnt = [label for label in cut["labels"] if label != IGNORED]
    kept = min(len(first), (max_length + 1) // 2)
    assert learnt[:kept] == first[:kept]
    # A sequence ends with something to learn.
    assert cut["labels"][-1] != IGNORED
    if len(whole["input_ids"]) <= max_length:
        assert cut == whole
