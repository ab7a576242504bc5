import importlib.util
import json
import random
import string
import sys
import tomllib
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import florist
from florist.errors import OutputExistsError
from florist.evaluation import ExactMatch
from florist.models.loading import load_causal_lm

PACKAGE = Path(florist.__file__).parent
ASSETS = PACKAGE / "demonstration"
SCRIPT = Path(__file__).parents[1] / "scripts" / "make_demonstration.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_demonstration", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(ASSETS / "model", local_files_only=True)


def examples(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (ASSETS / name).read_text().splitlines()]


def test_the_assets_are_data_only_and_small() -> None:
    files = [file for file in ASSETS.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} <= {".json", ".jsonl", ".md", ".safetensors"}
    assert sum(file.stat().st_size for file in files) <= 4_000_000


def test_the_weights_are_stored_in_float16() -> None:
    with safe_open(ASSETS / "model" / "model.safetensors", framework="pt") as stored:
        assert {stored.get_tensor(name).dtype for name in stored.keys()} == {torch.float16}  # noqa: SIM118  # safe_open is no mapping


def test_the_tokenizer_has_a_token_a_character_and_loses_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "".join(character for character in string.printable if character.isprintable() or character == "\n")
    ids = tokenizer(text)["input_ids"]
    assert len(tokenizer) == 99
    assert len(ids) == len(set(ids)) == len(text) == 96
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_sequences_end_and_pad_but_have_no_beginning(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.bos_token_id is None
    assert None not in {tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert tokenizer("a")["input_ids"] == tokenizer("a", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(("name", "count"), [("train.jsonl", 800), ("test.jsonl", 200)])
def test_every_example_is_what_its_task_makes_of_its_input(script: ModuleType, name: str, count: int) -> None:
    found = examples(name)
    for example in found:
        assert example == {
            "instruction": example["task"],
            "input": example["input"],
            "output": script.NEW_TASKS[example["task"]](example["input"]),
            "task": example["task"],
        }
    assert Counter(example["task"] for example in found) == dict.fromkeys(script.NEW_TASKS, count // 4)


def test_the_script_makes_the_shipped_examples(script: ModuleType) -> None:
    assert script.new_task_examples(seed=0) == (examples("train.jsonl"), examples("test.jsonl"))


def test_no_input_occurs_twice() -> None:
    inputs = [example["input"] for example in examples("train.jsonl") + examples("test.jsonl")]
    assert len(set(inputs)) == len(inputs)


def test_no_new_task_is_one_of_the_pretraining_tasks(script: ModuleType) -> None:
    assert not script.NEW_TASKS.keys() & script.SEEN_TASKS.keys()
    found = examples("test.jsonl")
    for seen in script.SEEN_TASKS.values():
        answered = sum(seen(example["input"]) == example["output"] for example in found)
        assert answered <= len(found) // 50


def test_the_configuration_asks_as_in_pretraining(script: ModuleType) -> None:
    config = tomllib.loads((PACKAGE / "demonstration.toml").read_text())
    assert config["data"]["prompt_template"] == script.PROMPT_TEMPLATE
    prompts = [
        script.PROMPT_TEMPLATE.format_map(example) for example in examples("train.jsonl") + examples("test.jsonl")
    ]
    answers = [example["output"] for example in examples("train.jsonl") + examples("test.jsonl")]
    longest = max(len(prompt + answer) for prompt, answer in zip(prompts, answers, strict=True)) + len(["<eos>"])
    assert longest <= min(script.MAX_LENGTH, config["data"]["max_length"])
    assert max(map(len, answers)) < config["evaluation"]["max_new_tokens"]


def test_the_model_masters_its_tasks_and_none_of_the_new_ones(
    script: ModuleType, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = load_causal_lm(str(ASSETS / "model"), torch.float32)
    generator = random.Random(12345)  # noqa: S311  # no secrets here
    seen = [script.example_of(task, script.sample_input(generator)) for task in script.SEEN_TASKS for _ in range(12)]

    def exact_match(found: list[dict[str, str]]) -> float:
        encoded = script.encoded(found, tokenizer)
        return ExactMatch(encoded, tokenizer, batch_size=100, max_new_tokens=40)(model)["exact_match"]

    assert exact_match(seen) >= 0.95
    assert exact_match(examples("test.jsonl")) <= 0.02


def test_the_script_does_not_overwrite_a_model(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(OutputExistsError, match="already exists"):
        script.make(tmp_path, seed=0, steps=1)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "-o", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert "already exists" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
