"""Shapes from a configuration are those of the model that transformers builds of it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from florist.errors import ConfigurationError, MissingInputError, ModelError
from florist.planning.architectures import ARCHITECTURES, shape_of
from florist.planning.presets import PRESETS
from florist.planning.sources import default_targets, model_named, targeted, written_shapes

COMMON = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 50,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
GROUPED = {"num_key_value_heads": 2}
WIDE_HEADS = {**GROUPED, "head_dim": 32}
FIELDS: dict[str, dict[str, Any]] = {
    "llama": WIDE_HEADS,
    "mistral": GROUPED,
    "qwen2": GROUPED,
    "qwen3": WIDE_HEADS,
    "smollm3": GROUPED,
    "stablelm": GROUPED,
    "gemma": {"num_key_value_heads": 1, "head_dim": 32},
    "gemma2": WIDE_HEADS,
    "gemma3_text": WIDE_HEADS,
    "phi": GROUPED,
    "phi3": GROUPED,
    "gpt2": {"n_layer": 2, "n_embd": 64, "n_head": 4},
    "gpt_neox": {},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "bert": {},
    "roberta": {},
}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_shapes_are_those_of_the_built_model(model_type: str) -> None:
    own = {} if model_type == "gpt2" else {k: v for k, v in COMMON.items() if model_type != "opt" or k[:5] != "inter"}
    config = AutoConfig.for_model(model_type, **{"vocab_size": 50, **own, **FIELDS[model_type]})
    kind = AutoModelForSequenceClassification if model_type in {"bert", "roberta"} else AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(config)
    built = {
        name: tuple(module.weight.shape) if isinstance(module, nn.Linear) else tuple(module.weight.shape)[::-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name != "lm_head" and not name.startswith("classifier")
    }
    found = shape_of(model_type, config.to_dict())
    assert dict(found.linear) == built
    assert found.layers == 2


@pytest.mark.parametrize(
    ("preset", "billions"),
    [
        ("tinyllama", 1.10), ("llama-7b", 6.74), ("llama-3.2-1b", 1.24), ("llama-3.1-8b", 8.03), ("mistral-7b", 7.24),
        ("qwen2.5-0.5b", 0.494), ("qwen2.5-7b", 7.62), ("qwen3-0.6b", 0.596), ("qwen3-8b", 8.19), ("gemma-2-2b", 2.61),
        ("phi-3-mini", 3.82), ("smollm2-135m", 0.135), ("smollm2-360m", 0.362), ("smollm2-1.7b", 1.71),
    ],
)  # fmt: skip
def test_presets_have_as_many_parameters_as_their_authors_say(preset: str, billions: float) -> None:
    assert model_named(preset).parameters / 1e9 == pytest.approx(billions, rel=5e-3)


def test_every_preset_has_modules_to_adapt() -> None:
    for preset in PRESETS:
        model = model_named(preset)
        assert len(targeted(model, default_targets(model))) % model.layers == 0


def test_a_model_is_read_from_a_file_a_directory_and_the_cache(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model_named(str(tiny_llama)).linear
    assert expected["model.layers.1.self_attn.v_proj"] == (16, 32)
    assert model_named(str(tiny_llama / "config.json")).linear == expected
    snapshot = tmp_path / "models--some--model" / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes((tiny_llama / "config.json").read_bytes())
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert model_named("some/model").linear == expected


def test_what_florist_does_not_know_transformers_builds(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gpt_neo", "num_layers": 2, "attention_types": [[["global"], 2]], "hidden_size": 32,
                    "num_heads": 4, "vocab_size": 50, "intermediate_size": 48})
    )  # fmt: skip
    model = model_named(str(tmp_path))
    assert model.linear["transformer.h.1.mlp.c_fc"] == (48, 32)
    assert "lm_head" not in model.linear
    assert model.other_parameters > 50 * 32


def test_what_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="one of the presets tinyllama"):
        model_named("no-such-model")
    with pytest.raises(MissingInputError, match=r"expected a config\.json there"):
        model_named(str(tmp_path))
    file = tmp_path / "config.json"
    for text, refusal in (
        ("{", "expected JSON"),
        ("[]", "expected an object"),
        ('{"model_type": "no_such"}', "give the shapes yourself with --shapes"),
        (
            '{"model_type": "llama", "hidden_size": 0}',
            "expected hidden_size or n_embd as a positive whole number, got 0",
        ),
    ):
        file.write_text(text)
        with pytest.raises(ModelError, match=refusal):
            model_named(str(tmp_path))


def test_without_transformers_an_unknown_architecture_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt_neo"}')
    monkeypatch.delitem(__import__("sys").modules, "florist.planning.meta_model", raising=False)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ModelError, match=r"--shapes.*pip install -e \"\.\[train\]\" in a clone"):
        model_named(str(tmp_path))


def test_shapes_may_be_written_out() -> None:
    model = written_shapes("q_proj=8x4*2, v_proj=2x4*2,head=3x5")
    assert model.linear == {
        "0.q_proj": (8, 4), "1.q_proj": (8, 4), "0.v_proj": (2, 4), "1.v_proj": (2, 4), "0.head": (3, 5)
    }  # fmt: skip
    for wrong in ("q_proj", "q=0x4", "q=2x3*0", "q=2x3,q=2x3"):
        with pytest.raises(ConfigurationError, match="--shapes"):
            written_shapes(wrong)


def test_targets_are_names_or_their_last_parts() -> None:
    model = model_named("smollm2-135m")
    assert len(targeted(model, ["all-linear"])) == 7 * 30
    assert list(targeted(model, ["model.layers.3.mlp.up_proj"])) == ["model.layers.3.mlp.up_proj"]
    with pytest.raises(ConfigurationError, match=r"expected names out of down_proj, .* got c_attn"):
        targeted(model, ["q_proj", "c_attn"])


@pytest.mark.parametrize(
    ("spoil", "telling"),
    [
        (os.mkfifo, "found a FIFO"),
        (lambda file: file.symlink_to("/dev/zero"), "found a device"),
        (lambda file: os.truncate(file, 1 << 40) if file.touch() is None else None, "expected at most 16777216 bytes"),
    ],
)
def test_a_configuration_that_is_no_file_of_its_size_is_refused(
    spoil: Callable[[Path], object], telling: str, tmp_path: Path
) -> None:
    spoil(tmp_path / "config.json")
    for name in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(ModelError, match=f"expected JSON in .*{telling}"):
            model_named(str(name))
