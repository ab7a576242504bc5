"""The eight Dolly clients of the paper's repository, where they are at hand."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from florist.config import Config
from florist.config.splits import read_splits, who_has_which
from florist.data.causal_lm import CausalLmEncoder
from florist.data.examples import IGNORED
from florist.data.prompts import alpaca_prompt
from florist.data.rendering import InstructionPrompt
from florist.data.shapes import DOLLY, recognise

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "dolly8"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"the Dolly clients are not at {FOLDER}")

CATEGORIES = 8


def config(**data: object) -> Config:
    tables = {"path": str(FOLDER), "test": "test.json", **data}
    return Config.model_validate({"model": {"name_or_path": "m"}, "data": tables, "lora": {"ranks": 4}})


def test_the_given_clients_are_counted_by_category() -> None:
    configured = config()
    splits = read_splits(configured)
    found = who_has_which(configured, splits)
    assert found is not None
    assert [sum(counts) for counts in found.counts] == [1579, 685, 3775, 1830, 2152, 1776, 2531, 607]
    assert len(found.labels) == CATEGORIES
    assert len(splits.test) == 10 * CATEGORIES


@pytest.mark.slow
def test_a_category_may_be_a_client() -> None:
    configured = config(partition="by-field", partition_field="category", validation_fraction=0.1)
    found = who_has_which(configured, read_splits(configured))
    assert found is not None
    assert found.clients == found.labels
    assert all(
        (count > 0) == (client == label)
        for client, counts in zip(found.clients, found.counts, strict=True)
        for label, count in zip(found.labels, counts, strict=True)
    )


@pytest.mark.slow
def test_every_row_keeps_its_answer_and_its_instruction(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    encoder = CausalLmEncoder(tokenizer, InstructionPrompt(DOLLY, alpaca_prompt), 1024)
    examples = read_splits(config()).training["client_7"]
    assert recognise(examples) == DOLLY
    cut = 0
    for example in examples:
        found = encoder(example)
        assert len(found["input_ids"]) <= 1024
        learnt = [token for token in found["labels"] if token != IGNORED]
        answer = [*tokenizer(example["response"])["input_ids"], tokenizer.eos_token_id]
        assert learnt == answer[: len(learnt)]
        assert len(learnt) >= min(len(answer), 512)
        if example["context"] and len(example["instruction"]) < 150:
            cut += len(found["input_ids"]) == 1024
            instruction = tokenizer.decode(tokenizer(example["instruction"])["input_ids"])
            assert instruction in tokenizer.decode(found["input_ids"])
    assert cut > 0
