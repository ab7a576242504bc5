"""Mutated data files: each is refused in one line, or its examples are those of a plain reading, and are encoded."""

import csv
import io
import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from florist.data.causal_lm import CausalLmEncoder
from florist.data.examples import encode_examples
from florist.data.prompts import alpaca_prompt
from florist.data.reading import read_examples
from florist.data.rendering import InstructionPrompt, PlainChat
from florist.data.shapes import ChatShape, InstructionShape, recognise

from .mutations import mutated_bytes, mutated_document
from .oracle import refused_or_taken

INSTRUCTIONS: list[dict[str, Any]] = [
    {"instruction": f"say {n}, so", "input": "é\n" * (n % 2), "output": f'"{n}"', "category": "a"} for n in range(6)
]
CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": f"ask {n}"}, {"role": "assistant", "content": f"answer {n}"}]}
    for n in range(4)
]
KINDS = (".json", ".jsonl", ".csv", ".parquet")


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_llama)


def written(examples: list[Any], kind: str) -> bytes:
    """The examples as a file of a kind."""
    if kind == ".json":
        return json.dumps(examples, indent=1).encode()
    if kind == ".jsonl":
        return "\n".join(map(json.dumps, examples)).encode()
    if kind == ".csv":
        text = io.StringIO()
        table = csv.DictWriter(text, list(INSTRUCTIONS[0]), extrasaction="ignore")
        table.writeheader()
        table.writerows(each for each in examples if isinstance(each, dict))
        return text.getvalue().encode()
    stream = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(examples), stream)
    return stream.getvalue()


def case_of(number: int, seed: int) -> tuple[bytes, str]:
    rng = random.Random(f"data file {seed} {number}")  # noqa: S311  # cases, no secrets
    kind = KINDS[number % 4]
    examples = CHATS if kind != ".csv" and number % 3 == 0 else INSTRUCTIONS
    if rng.random() < 0.5:
        return mutated_bytes(written(examples, kind), rng), kind
    for _ in range(5):
        try:
            return written(mutated_document(examples, rng), kind), kind
        except (ValueError, TypeError, RecursionError, pa.ArrowException, AttributeError, OverflowError):
            continue  # what this kind of file cannot hold
    return mutated_bytes(written(examples, kind), rng), kind


def plainly_read(file: Path) -> list[Any]:
    """The examples by the libraries alone."""
    text = file.read_bytes().decode("utf-8-sig") if file.suffix != ".parquet" else ""
    if file.suffix == ".parquet":
        return parquet.read_table(file).to_pylist()
    if file.suffix == ".csv":
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
        return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    return json.loads(text)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def require_sound(number: int, seed: int, folder: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Try one case; tell whether its examples were taken."""
    content, kind = case_of(number, seed)
    file = folder / f"client_0{kind}"
    file.write_bytes(content)
    taken = False
    with refused_or_taken(f"{seed}/{number} {kind}"):
        examples = read_examples(file)
        assert same([dict(each) for each in examples], plainly_read(file)), "it is read as something else"
        shape = recognise(examples)
        render = PlainChat(shape) if isinstance(shape, ChatShape) else None
        if isinstance(shape, InstructionShape):
            render = InstructionPrompt(shape, alpaca_prompt)
        if render is not None:
            encoded = encode_examples(examples, CausalLmEncoder(tokenizer, render, 64), lambda some: {}, "client_0")
            assert len(encoded) == len(examples)
            assert all(1 < len(each["input_ids"]) == len(each["labels"]) <= 64 for each in encoded)
        taken = True
    assert sorted(folder.iterdir()) == [file], "something is left behind"
    file.unlink()
    return taken


def test_some_mutated_data_files(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    taken = sum(require_sound(number, 0, tmp_path, tokenizer) for number in range(80))
    assert 0 < taken < 80


@pytest.mark.slow
def test_mutated_data_files(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    taken = sum(require_sound(number, 1, tmp_path, tokenizer) for number in range(1_000))
    assert 50 < taken < 950
