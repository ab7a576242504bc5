"""How many tokens a model takes: tables of positions end, rotary positions do not."""

import logging
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from florist.data.examples import EncodedExamples
from florist.data.positions import Lengths, Positions, positions_of
from florist.errors import ConfigurationError, DataError
from florist.evaluation import ExactMatch

SMALL = {"vocab_size": 64, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
GPT2 = GPT2Config(vocab_size=80, n_embd=16, n_head=2, n_layer=1, n_positions=24, bos_token_id=1, eos_token_id=1)


def models() -> dict[str, tuple[PreTrainedModel, Positions | None]]:
    wide = {**SMALL, "intermediate_size": 16, "max_position_embeddings": 24}
    return {
        "gpt2": (GPT2LMHeadModel(GPT2), Positions(24, fixed=True)),
        "bert": (BertForSequenceClassification(BertConfig(**wide)), Positions(24, fixed=True)),
        "roberta": (RobertaForSequenceClassification(RobertaConfig(**wide, pad_token_id=1)), Positions(22, fixed=True)),
        "opt": (OPTForCausalLM(OPTConfig(**SMALL, ffn_dim=16, max_position_embeddings=24, word_embed_proj_dim=16)),
                Positions(24, fixed=True)),
        "gptj": (GPTJForCausalLM(GPTJConfig(vocab_size=64, n_embd=16, n_head=2, n_layer=1, n_positions=24,
                                            rotary_dim=4)), Positions(24, fixed=True)),
        "llama": (LlamaForCausalLM(LlamaConfig(**wide)), Positions(24, fixed=False)),
        "bloom": (BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=16, n_head=2, n_layer=1)), None),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(models()))
def test_the_positions_are_those_up_to_which_a_model_works(name: str) -> None:
    model, expected = models()[name]
    assert positions_of(model) == expected
    most = expected.most if expected is not None else 24
    with torch.inference_mode():
        model(input_ids=torch.full((1, most), 5))
        if expected is not None and expected.fixed:
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.full((1, most + 1), 5))
        else:
            model(input_ids=torch.full((1, most + 1), 5))


def test_an_adapter_hides_no_positions() -> None:
    model = get_peft_model(GPT2LMHeadModel(GPT2), LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    assert positions_of(model) == Positions(24, fixed=True)


def test_a_length_beyond_a_table_is_refused_and_one_beyond_rotary_positions_is_told(
    tiny_llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    fixed = Lengths.of(GPT2LMHeadModel(GPT2), tokenizer, "this-gpt2")
    fixed.require(24)
    with pytest.raises(ConfigurationError, match=r"data\.max_length = 25: expected at most 24, since this-gpt2"):
        fixed.require(25)
    with pytest.raises(DataError, match=r"expected at most 24 tokens.*got 25"):
        fixed.require_short({"input_ids": [1] * 25, "labels": [1] * 25})
    tokenizer.model_max_length = 10
    turned = Lengths.of(LlamaForCausalLM.from_pretrained(tiny_llama), tokenizer, "this-llama")
    turned.require(10_000)
    with caplog.at_level(logging.WARNING, "florist.data"):
        for length in (10, 11, 256, 257, 257):
            turned.tell(EncodedExamples([{"input_ids": [1] * length}], lambda some: {}))
    assert [record.getMessage().partition(" of at most ")[2][:3] or "tokenizer" for record in caplog.records] == [
        "tokenizer",
        "256",
    ]


def test_an_exact_match_needs_no_position_that_is_not_there(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2)
    examples = [{"input_ids": [5] * n + [6, 1], "labels": [-100] * n + [6, 1]} for n in (2, 20, 22)]
    metric = ExactMatch(EncodedExamples(examples, lambda some: {}), tokenizer, 8, 64)
    assert 0 <= metric(model)["exact_match"] <= 1
