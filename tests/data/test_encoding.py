import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from florist.data.causal_lm import CausalLmEncoder
from florist.data.classification import ClassificationEncoder, classes
from florist.data.examples import IGNORED, EncodedExamples, encode_examples
from florist.data.prompts import alpaca_prompt, template_prompt
from florist.data.reading import read_examples
from florist.data.rendering import InstructionPrompt
from florist.data.shapes import ALPACA, InstructionShape
from florist.errors import DataError, MissingInputError

PAD, EOS, UNKNOWN = 0, 1, 2


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def framing_tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    """One that opens every text with <bos> and closes it with <eos>, as T5's and some Llamas' do."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", tokenizer.bos_token_id), ("<eos>", EOS)]
    )
    return tokenizer


def encoder(
    tokenizer: PreTrainedTokenizerBase, max_length: int = 100, template: str = "{instruction}:"
) -> CausalLmEncoder:
    return CausalLmEncoder(tokenizer, InstructionPrompt(ALPACA, template_prompt(template)), max_length)


# --- reading


def test_a_json_list_and_a_jsonl_file_hold_the_same_examples(tmp_path: Path) -> None:
    examples = [{"instruction": "é\u2028\x85中", "n": 1, "list": [None, True]}, {"instruction": "b\nc"}]
    (tmp_path / "a.json").write_text(json.dumps(examples, ensure_ascii=False, indent=1), encoding="utf-8")
    lines = [json.dumps(example, ensure_ascii=False) for example in examples]
    # The line separators of Unicode stand unescaped in JSON strings and end no example.
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines) + "\n  \n", encoding="utf-8")
    (tmp_path / "windows.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert read_examples(tmp_path / "a.json") == examples
    assert read_examples(tmp_path / "a.jsonl") == examples
    assert read_examples(tmp_path / "windows.jsonl") == examples


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"expected a data file at .*none\.json, found none; check"):
        read_examples(tmp_path / "none.json")
    with pytest.raises(MissingInputError, match="expected a data file"):
        read_examples(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "telling"),
    [
        ("a.json", b"[{]", r"a\.json: expected UTF-8 JSON.*line 1 column 3"),
        ("a.json", b"", r"a\.json: expected UTF-8 JSON"),
        ("a.json", b'[{"a": "\xff"}]', r"a\.json: expected UTF-8 JSON.*can't decode byte 0xff"),
        # Many data sets name a JSONL file .json.
        ("a.json", b'{"a": 1}\n{"a": 2}\n', r"a\.json: expected UTF-8 JSON.*Extra data.* one object a line"),
        ("a.jsonl", b'{"a": 1}\n\n{"a": }\n', r"a\.jsonl: expected UTF-8 JSON.*line 3"),
        ("a.jsonl", b'[\n{"a": 1}\n]\n', r"a\.jsonl: expected UTF-8 JSON.*line 1"),
    ],
)
def test_what_is_no_json_is_refused_and_located(tmp_path: Path, name: str, content: bytes, telling: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=telling):
        read_examples(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "telling"),
    [
        ("[]", "got an empty list"),
        ('{"train": [{"a": 1}]}', r"got an object with the keys \['train'\]"),
        ("3", "got 3"),
        ('[{"a": 1}, "text"]', "got 'text' as example 2"),
        ('[{"a": 1}, [{"a": 1}]]', r"got \[.*\] as example 2"),
    ],
)
def test_what_is_no_list_of_examples_is_refused(tmp_path: Path, content: str, telling: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(
        DataError, match=r"a\.json: expected a non-empty list of JSON objects, one an example, .*" + telling
    ):
        read_examples(tmp_path / "a.json")


def test_an_empty_jsonl_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="expected a non-empty list"):
        read_examples(tmp_path / "a.jsonl")


# --- shapes and prompts


def test_the_alpaca_prompt_has_a_form_with_an_input_and_one_without() -> None:
    without = alpaca_prompt({"instruction": "Do {it}.", "input": ""})
    assert without.endswith("request.\n\n### Instruction:\nDo {it}.\n\n### Response:\n")
    assert "### Input" not in without
    having = alpaca_prompt({"instruction": "Do {it}.", "input": "{x}"})
    assert having.endswith("### Instruction:\nDo {it}.\n\n### Input:\n{x}\n\n### Response:\n")


def test_a_template_takes_the_fields_and_literal_braces() -> None:
    render = template_prompt("{{json}} {instruction} [{category}] {instruction}")
    assert render({"instruction": "a{b}", "category": "{instruction}"}) == "{json} a{b} [{instruction}] a{b}"


@pytest.mark.parametrize("template", ["{instruction", "instruction}", "{", "a {instruction} }"])
def test_a_template_with_unpaired_braces_is_refused_at_once(template: str) -> None:
    with pytest.raises(DataError, match=r"prompt_template .*write a literal brace twice"):
        template_prompt(template)


@pytest.mark.parametrize(
    "template", ["{instruction!x}", "{instruction:d}", "{instruction:{width}}", "{a.b}", "{a[0]}", "{}"]
)
def test_a_template_field_is_a_plain_name(template: str) -> None:
    with pytest.raises(DataError, match=r"prompt_template .*expected plain fields as \{instruction\}, got"):
        template_prompt(template)


def test_a_template_field_that_an_example_lacks_is_named() -> None:
    with pytest.raises(
        DataError, match=r"expected an example with the fields \['topic', 'tpoic'\], got one with \['instruction'\]"
    ):
        template_prompt("{tpoic} {instruction} {topic}")({"instruction": "a"})


# --- causal language modelling


def test_the_loss_counts_the_answer_and_its_end_only(tokenizer: PreTrainedTokenizerBase) -> None:
    found = encoder(tokenizer)({"instruction": "say", "output": "yes"})
    assert tokenizer.decode(found["input_ids"]) == "say:yes<eos>"
    assert found["labels"] == [IGNORED] * 4 + found["input_ids"][4:]
    assert found["labels"][-1] == EOS


def test_the_border_is_that_of_generation(framing_tokenizer: PreTrainedTokenizerBase) -> None:
    found = encoder(framing_tokenizer)({"instruction": "say", "output": "yes"})
    # One <bos>, at the start; one <eos>, at the end: none between prompt and answer.
    assert framing_tokenizer.decode(found["input_ids"]) == "<bos>say:yes<eos>"
    assert found["labels"].count(IGNORED) == 5


def test_a_cut_prompt_keeps_its_opening_token(framing_tokenizer: PreTrainedTokenizerBase) -> None:
    found = encoder(framing_tokenizer, max_length=10)({"instruction": "abcdefghij", "output": "xyz"})
    # Models that were trained with <bos> derail without it.
    assert framing_tokenizer.decode(found["input_ids"]) == "<bos>ghij:xyz<eos>"


def test_an_empty_answer_is_answered_by_the_end(tokenizer: PreTrainedTokenizerBase) -> None:
    for answer in ("", None):
        found = encoder(tokenizer)({"instruction": "say", "output": answer})
        assert found["labels"] == [IGNORED] * 4 + [EOS]


def test_an_example_without_anything_to_learn_is_refused(tiny_llama: Path) -> None:
    endless = AutoTokenizer.from_pretrained(tiny_llama, eos_token=None)
    assert endless.eos_token_id is None
    # A batch of such alone has the mean of nothing, NaN, for a loss.
    with pytest.raises(
        DataError, match=r"data, example 2: expected at least one token of answer .* 2 tokens of prompt and 0 of"
    ):
        encode_examples(
            [{"instruction": "a", "output": "b"}, {"instruction": "a", "output": ""}], encoder(endless), list, "data"
        )
    # The first token of a sequence is predicted from nothing.
    with pytest.raises(DataError, match=r"expected at least one token of answer .* 0 tokens of prompt and 1 of"):
        encoder(endless, template="")({"instruction": "a", "output": "b"})


def test_text_beyond_the_vocabulary_is_encoded(tokenizer: PreTrainedTokenizerBase) -> None:
    found = encoder(tokenizer)({"instruction": "中👩‍👩‍👧", "output": "é\u0301\u0000"})
    assert len(found["input_ids"]) == len(found["labels"])
    assert UNKNOWN in found["labels"]


texts = st.text(st.sampled_from("ab \n.") | st.characters(exclude_categories=["Cs"]), max_size=40)


@given(instruction=texts, answer=texts, max_length=st.integers(2, 40), framed=st.booleans())
def test_cutting_keeps_the_answers_start_and_the_prompts_end(
    tokenizer: PreTrainedTokenizerBase,
    framing_tokenizer: PreTrainedTokenizerBase,
    instruction: str,
    answer: str,
    max_length: int,
    framed: bool,
) -> None:
    using = framing_tokenizer if framed else tokenizer
    example = {"instruction": instruction, "output": answer}
    whole = encoder(using, max_length=1000)(example)
    cut = encoder(using, max_length=max_length)(example)
    border, whole_border = cut["labels"].count(IGNORED), whole["labels"].count(IGNORED)
    prompt, tokens = cut["input_ids"][:border], cut["input_ids"][border:]
    whole_prompt, whole_tokens = whole["input_ids"][:whole_border], whole["input_ids"][whole_border:]

    assert len(cut["input_ids"]) == len(cut["labels"]) == min(max_length, len(whole["input_ids"]))
    assert cut["labels"] == [IGNORED] * border + tokens
    assert tokens == whole_tokens[: len(tokens)]
    assert len(tokens) >= min(len(whole_tokens), (max_length + 1) // 2)
    # Something before the answer and something of it: else the shifted loss would count nothing.
    assert prompt
    assert tokens
    if framed:
        assert prompt[0] == framing_tokenizer.bos_token_id
        prompt, whole_prompt = prompt[1:], whole_prompt[1:]
    assert prompt == whole_prompt[len(whole_prompt) - len(prompt) :]


def test_the_fields_of_the_shape_fill_the_prompt() -> None:
    shape = InstructionShape("question", "facts", "answer")
    render = InstructionPrompt(shape, template_prompt("{topic}: {input} {instruction}"))

    def texts(example: Mapping[str, Any]) -> tuple[str, str]:
        prompt, answer = render(example)
        return prompt.text, answer.text

    example = {"question": "q", "facts": "f", "answer": 7, "topic": "t"}
    assert texts(example) == ("t: f q", "7")
    assert texts({**example, "facts": None}) == ("t:  q", "7")
    del example["facts"]
    assert texts(example) == ("t:  q", "7")
    with pytest.raises(
        DataError, match=r"expected examples with the fields 'question' and 'answer', got \['question'\]"
    ):
        render({"question": "q"})


def test_an_error_names_the_source_and_the_example(tokenizer: PreTrainedTokenizerBase) -> None:
    examples = [{"instruction": "a", "output": "b"}, {"instruction": "a"}]
    with pytest.raises(
        DataError, match="client_3, example 2: expected examples with the fields 'instruction' and 'output'"
    ):
        encode_examples(examples, encoder(tokenizer), list, "client_3")


# --- classification


def classifier(tokenizer: PreTrainedTokenizerBase, max_length: int = 20) -> ClassificationEncoder:
    return ClassificationEncoder(tokenizer, template_prompt("{text}"), "label", ("bad", "good"), max_length)


def test_a_text_is_encoded_with_the_number_of_its_class(tokenizer: PreTrainedTokenizerBase) -> None:
    found = classifier(tokenizer)({"text": "fine", "label": "good"})
    assert tokenizer.decode(found["input_ids"]) == "fine"
    assert found["labels"] == 1
    assert classifier(tokenizer)({"text": "x" * 99, "label": "bad"})["input_ids"] == tokenizer("x" * 20)["input_ids"]


@pytest.mark.parametrize(
    ("example", "telling"),
    [
        (
            {"text": "a", "label": "ugly"},
            r"expected a class of \['bad', 'good'\], got 'ugly'; add it to \[task\] labels",
        ),
        ({"text": "a", "label": None}, "expected the class in the field 'label', got none"),
        ({"text": "a"}, r"expected the class in the field 'label', got the fields \['text'\]"),
        ({"label": "bad"}, r"expected an example with the fields \['text'\], got one with \['label'\]"),
        ({"text": "", "label": "bad"}, "expected a text, got an empty one"),
        ({"text": None, "label": "bad"}, "expected a text, got an empty one"),
    ],
)
def test_an_example_without_text_or_class_is_refused(
    tokenizer: PreTrainedTokenizerBase, example: Mapping[str, Any], telling: str
) -> None:
    with pytest.raises(DataError, match=telling):
        classifier(tokenizer)(example)


def test_classes_are_sorted_names() -> None:
    assert classes([{"y": "b"}, {"y": "a"}, {"y": "b"}], "y") == ("a", "b")
    assert classes([{"y": 1}, {"y": 0}], "y") == ("0", "1")


@pytest.mark.parametrize(
    ("examples", "telling"),
    [
        (
            [{"y": "a"}, {"x": "b"}],
            r"expected the class in the field 'y', got the fields \['x'\]; set \[data\] label_field",
        ),
        ([{"y": "a"}, {"y": "b"}, {"y": None}], "expected the class in the field 'y', got none"),
        ([{"y": "a"}, {"y": "a"}], r"expected at least two classes in 'y', got \['a'\]"),
    ],
)
def test_classes_that_cannot_be_told_are_refused(examples: list[Mapping[str, Any]], telling: str) -> None:
    with pytest.raises(DataError, match=telling):
        classes(examples, "y")


# --- examples


def test_examples_are_a_sequence_and_batches_cover_it_once(tokenizer: PreTrainedTokenizerBase) -> None:
    examples = [{"instruction": "a" * (7 * k % 11), "output": str(k)} for k in range(10)]
    encoded = encode_examples(examples, encoder(tokenizer), DataCollatorForSeq2Seq(tokenizer), "data")
    assert isinstance(encoded, EncodedExamples)
    assert len(encoded) == 10
    assert encoded[-1] == encoder(tokenizer)(examples[-1])
    assert encoded[2:4] == [encoded[2], encoded[3]]
    batches = list(encoded.batches(4))
    assert [len(batch["input_ids"]) for batch in batches] == [4, 4, 2]
    seen = [
        row[mask.bool()].tolist()
        for batch in batches
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert sorted(seen) == sorted(features["input_ids"] for features in encoded)
    assert [len(row) for row in seen] == sorted(len(row) for row in seen)
    for batch in batches:
        assert bool((batch["labels"][batch["attention_mask"] == 0] == IGNORED).all())


def test_the_examples_own_fields_do_not_stand_in_for_the_shapes(tokenizer: PreTrainedTokenizerBase) -> None:
    shape = InstructionShape("title", "instruction", "input")
    prompt, answer = InstructionPrompt(shape, template_prompt("{instruction}|{input}"))(
        {"title": "t", "instruction": "i", "input": "o"}
    )
    assert (prompt.text, answer.text) == ("t|i", "o")
