"""Data files that break those who read them: refused in one line that names the file and the line."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from florist.data.causal_lm import CausalLmEncoder
from florist.data.classification import classes
from florist.data.examples import as_features, encode_examples
from florist.data.fields import place_of
from florist.data.prompts import alpaca_prompt, template_prompt
from florist.data.reading import read_examples
from florist.data.rendering import InstructionPrompt, PlainChat
from florist.data.shapes import ALPACA, MESSAGES, TEXT
from florist.errors import DataError, FloristError, MissingInputError

DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("name", "content", "telling"),
    [
        ("a.json", '[{"a": 1},\n{"a": ' + DEEP, r"a\.json, line 2: expected lists .* nested a few times"),
        ("a.json", DEEP, r"a\.json, line 1: expected lists .* nested a few times"),
        ("a.json", '{"a": ' + DEEP, r"a\.json, line 1: expected lists .* nested a few times"),
        ("a.jsonl", '{"a": 1}\n\n{"a": ' + DEEP, r"a\.jsonl, line 3: expected lists .* nested a few times"),
        (
            "a.jsonl",
            '{"a": 1}\n{"a": ' + "9" * 5000 + "}",
            r"a\.jsonl, line 2: expected numbers of at most 4300 digits",
        ),
        ("a.json", '[{"a": ' + "9" * 5000 + "}]", r"a\.json, line 1: expected numbers of at most 4300 digits"),
        ("a.json", '[{"a": 1},\n\n"b"]', r"got 'b' as example 2, in line 3"),
        ("a.jsonl", '{"a": 1}\n\n"b"', r"got 'b' in line 3"),
        ("a.json", '[{"a": 1},]', "line 1 column 11"),
        ("a.json", '[{"a": 1} {"a": 1}]', "Expecting ',' delimiter: line 1 column 11"),
        ("a.json", '[{"a": 1}] 2', "Extra data: line 1 column 12"),
        ("a.json", '[{"a": 1}', "Expecting ',' delimiter"),
        ("a.jsonl", "\n \n\r\n", "expected a non-empty list"),
        ("a.csv", 'a,b\n1,"2\n3', r"reading failed in line 3: unexpected end"),
    ],
)
def test_a_file_that_breaks_its_reader_is_refused(tmp_path: Path, name: str, content: str, telling: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=telling) as refusal:
        read_examples(tmp_path / name)
    assert len(str(refusal.value)) < 1_000


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "zeros.json").symlink_to("/dev/zero")
    for name, telling in (("pipe.jsonl", "found a FIFO"), ("zeros.json", "found a device")):
        with pytest.raises(DataError, match=f"expected a regular file at .*{telling}.*more than once"):
            read_examples(tmp_path / name)
    for name in ("a" * 300 + ".json", "a\0.json"):
        with pytest.raises(MissingInputError, match="expected a data file"):
            read_examples(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("a.json", '\n[{"a": 1}, {"a": 2},\r\n{"a":\n3},\n\n{"a": 4}]', ["line 2 (example 1)", "line 2 (example 2)",
          "line 3 (example 3)", "line 6 (example 4)"]),
        ("a.jsonl", '\ufeff{"a": 1}\r\n\r\n{"a": "\u2028"}\n', ["line 1", "line 3"]),
        ("a.csv", 'a,b\n1,"x\ny"\n\n2,3\r\n4,5', ["line 2", "line 5", "line 6"]),
    ],
)  # fmt: skip
def test_an_example_knows_its_line(tmp_path: Path, name: str, content: str, places: list[str]) -> None:
    (tmp_path / name).write_bytes(content.encode())
    found = [place_of(example, "") for example in read_examples(tmp_path / name)]
    assert found == [f"{tmp_path / name}, {place}" for place in places]


@pytest.mark.parametrize(
    ("value", "telling"),
    [
        (float("nan"), "got nan"),
        (float("inf"), "got inf"),
        (["a"], r"got a list, \['a'\]"),
        ({"a": 1}, r"got an object, \{'a': 1\}"),
        ("a\ud800b", "got half of one, '.ud800'"),
    ],
)
@pytest.mark.parametrize("field", ["instruction", "input", "output", "label"])
def test_what_is_no_text_is_refused_with_its_line(
    tiny_llama: Path, tmp_path: Path, field: str, value: Any, telling: str
) -> None:
    example = {"instruction": "a", "input": "", "output": "b", "label": "c"}
    file = tmp_path / "a.jsonl"
    file.write_text(f"{json.dumps(example)}\n\n{json.dumps({**example, field: value})}\n")
    examples = read_examples(file)
    encoder = CausalLmEncoder(AutoTokenizer.from_pretrained(tiny_llama), InstructionPrompt(ALPACA, alpaca_prompt), 50)

    def use() -> object:
        return classes(examples, "label") if field == "label" else encode_examples(examples, encoder, dict, "client_0")

    with pytest.raises(DataError, match=rf"a\.jsonl, line 3: .* in the field '{field}', {telling}"):
        use()


def test_numbers_and_booleans_are_text_as_python_writes_them() -> None:
    render = template_prompt("{a} {b} {c} {d}")
    assert render({"a": 3, "b": 0.5, "c": True, "d": None, "e": [float("nan")]}) == "3 0.5 True "


def test_a_label_that_is_missing_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,topic\nx,1\n")
    with pytest.raises(DataError, match=r"a\.csv, line 2: expected the class in the field 'label'"):
        classes(read_examples(tmp_path / "a.csv"), "label")


def test_hostile_conversations_and_texts_are_refused() -> None:
    for role, content in ((["user"], "a"), (3, "a"), ("user", 3), ("user", [3]), ("user", "\ud800")):
        messages = [{"role": role, "content": content}, {"role": "assistant", "content": "b"}]
        with pytest.raises(DataError, match="expected"):
            PlainChat(MESSAGES)({"messages": messages})
    for text in (3, None, ["a"], "\ud800"):
        with pytest.raises(DataError, match="field 'text'"):
            TEXT.value({"text": text})


@pytest.mark.parametrize("ids", [[1.5, 2], ["1", 2], [True, 1], [[1], 2], [None, 1]])
def test_token_numbers_are_whole_numbers(ids: list[Any]) -> None:
    with pytest.raises(FloristError, match="expected input_ids to be whole numbers"):
        as_features({"input_ids": ids})


def test_many_fields_are_told_by_the_first_five() -> None:
    with pytest.raises(DataError, match=r"'f4' and 9995 more\]") as refusal:
        ALPACA.values({f"f{n}": n for n in range(10_000)})
    assert len(str(refusal.value)) < 300
