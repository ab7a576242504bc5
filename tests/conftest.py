"""Tiny models and data that tests of several modules share; nothing is downloaded."""

import gc
import json
import os
import signal
import string
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jaxtyping
import torch
from hypothesis import settings
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

# A test says what is right, not how fast this machine is today.
settings.register_profile("florist", deadline=None, max_examples=40)
settings.load_profile("florist")
# Several threads only cost at these sizes.
torch.set_num_threads(1)
# A shell starts background jobs with interruptions ignored, and their children inherit it: Ctrl-C could not be tested.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test that is marked `quick(n)`, the first n variants are quick and the others slow."""
    variants: Counter[str] = Counter()
    for item in items:
        marker = item.get_closest_marker("quick")
        if marker is not None and item.get_closest_marker("slow") is None:
            test = item.nodeid.partition("[")[0]
            variants[test] += 1
            if variants[test] > marker.args[0]:
                item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """What the libraries made at import stays: the collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


def save_tokenizer(directory: Path) -> int:
    """A tokenizer of single characters; returns the size of its vocabulary."""
    characters = [*string.ascii_letters, *string.digits, *" .,:;!?#\n'-"]
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<eos>", "<unk>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    fast.save_pretrained(directory)
    return len(vocabulary)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a random Llama of two layers and its tokenizer."""
    directory = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=save_tokenizer(directory),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a random BERT encoder, without a head, and its tokenizer."""
    directory = tmp_path_factory.mktemp("tiny-bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=save_tokenizer(directory),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
    )
    BertForSequenceClassification(config).bert.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clients and held-out rows of a task that a tiny model learns: say the letter of the colour."""
    directory = tmp_path_factory.mktemp("toy-data")
    colours = {"red": "r", "blue": "b", "green": "g"}

    def rows(count: int, first: int) -> list[dict[str, str]]:
        names = list(colours)
        return [
            {
                "instruction": f"{number} {names[number % 3]}",
                "input": "",
                "output": colours[names[number % 3]],
                "category": names[number % 3],
            }
            for number in range(first, first + count)
        ]

    for name, count, first in (("client_0", 12, 0), ("client_1", 24, 100), ("test", 9, 500)):
        (directory / f"{name}.json").write_text(json.dumps(rows(count, first)))
    return directory


@pytest.fixture
def without_shape_checks() -> Iterator[None]:
    """As a user runs florist: what jaxtyping would catch reaches florist's own checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def saved_adapters(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters of the tiny Llama as PEFT saves them, of unlike r, alpha and scaling rule."""
    folder = tmp_path_factory.mktemp("adapters")
    settings = {
        "A": {"r": 4, "lora_alpha": 8},
        "B": {"r": 8, "lora_alpha": 4, "use_rslora": True},
        "C": {"r": 2, "lora_alpha": 6, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v_proj": 5}},
    }
    for seed, (name, own) in enumerate(settings.items()):
        base = LlamaForCausalLM.from_pretrained(tiny_llama)
        model = get_peft_model(base, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **own))
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.1, generator=draw)
        model.save_pretrained(folder / name)
    return [folder / name for name in settings]
