"""An adapter from a model that was fine-tuned whole, against merged adapters and a dense float64 SVD."""

import json
import math
import shutil
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

from florist.checkpoint import open_adapter
from florist.checkpoint.model_weights import ModelWeights, open_model
from florist.errors import (
    ConfigurationError,
    InvalidAdapterError,
    MissingInputError,
    ModelError,
    NonFiniteUpdateError,
    UnsupportedAdapterError,
)
from florist.linalg import decompose_dense
from florist.models.layers import model_layers
from florist.one_shot import ExtractedAdapter, FileBudget, Others, compare_models, extract
from florist.ranks import ByteBudget, EnergyThreshold, FixedRank, GlobalEnergyThreshold, RankRule
from tests.builders import adapter, relative_error
from tests.checkpoint.adapters import loaded

TOKENS = torch.arange(4, 24).reshape(2, 10)
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
Change = Callable[[dict[str, Tensor]], None]


def changed(base: Path, out: Path, change: Change) -> Path:
    """A copy of a saved model with other tensors."""
    shutil.copytree(base, out)
    tensors = {name: tensor.clone() for name, tensor in load_file(base / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def merged(rank: int, modules: tuple[str, ...] = (Q, DOWN), scale: float = 0.05) -> Change:
    """Adds a random product of this rank to some weights."""

    def change(tensors: dict[str, Tensor]) -> None:
        for module in modules:
            m, n = tensors[f"{module}.weight"].shape
            tensors[f"{module}.weight"] += (
                scale * adapter(rank, 3, shapes={module: (m, n)})[module].delta_weight().float()
            )

    return change


def spread(tensors: dict[str, Tensor]) -> None:
    """Moves every linear weight by a random matrix of no low rank."""
    draw = torch.Generator().manual_seed(5)
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            tensors[name] = tensor + 0.02 * torch.randn(tensor.shape, generator=draw)


def extracted(base: Path, tuned: Path, rule: RankRule, others: Others = Others.REFUSE) -> ExtractedAdapter:
    return extract(compare_models(open_model(base), open_model(tuned), model_layers(tuned), others=others), rule)


def difference(base: Path, tuned: Path, module: str) -> Tensor:
    name = f"{module}.weight"
    return load_file(tuned / "model.safetensors")[name].double() - load_file(base / "model.safetensors")[name].double()


def logits(model: Any) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(TOKENS).logits


def test_an_adapter_that_was_merged_comes_back_at_its_own_rank(tiny_llama: Path, tmp_path: Path) -> None:
    tuned = changed(tiny_llama, tmp_path / "tuned", merged(3))
    found = extracted(tiny_llama, tuned, EnergyThreshold(1.0))
    assert {name: spec.rank for name, spec in found.adapter.specs.items()} == {Q: 3, DOWN: 3}
    for module, factor in found.adapter.items():
        assert relative_error(factor.delta_weight(), difference(tiny_llama, tuned, module)) < 1e-5
        assert found.certificate.modules[module].relative_error < 1e-5
    content = found.write(tmp_path / "out", base_model=str(tiny_llama))
    assert content["left_out"] == {}
    told = logits(AutoModelForCausalLM.from_pretrained(tuned))
    model = loaded(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path / "out")
    assert relative_error(logits(model), told) < 1e-5
    saved = open_adapter(tmp_path / "out")
    assert (saved.base_model, saved.task_type) == (str(tiny_llama), "CAUSAL_LM")


@pytest.mark.parametrize("tau", [0.5, 0.9, 0.99])
def test_a_cut_is_that_of_the_dense_oracle(tiny_llama: Path, tmp_path: Path, tau: float) -> None:
    tuned = changed(tiny_llama, tmp_path / "tuned", spread)
    found = extracted(tiny_llama, tuned, EnergyThreshold(tau))
    assert len(found.adapter) == 14
    for module, factor in found.adapter.items():
        exact = difference(tiny_llama, tuned, module)
        S = torch.linalg.svdvals(exact)
        rank = int((S.square().cumsum(0) < tau * S.square().sum()).sum()) + 1
        assert factor.rank == rank
        rounding = 5e-6 * float(exact.norm())  # of float32 factors
        error = float((exact - factor.delta_weight()).norm())
        assert error == pytest.approx(float(S[rank:].norm()), rel=1e-4, abs=rounding)
        one = found.certificate.modules[module]
        assert one.error == pytest.approx(float(S[rank:].norm()), rel=1e-3, abs=rounding)
        assert (one.energy_kept, one.input_rank) == (pytest.approx(1 - (one.error / one.norm) ** 2), min(one.shape))
        assert one.energy_kept >= tau - 1e-6


def test_other_rules_count_over_all_modules(tiny_llama: Path, tmp_path: Path) -> None:
    tuned = changed(tiny_llama, tmp_path / "tuned", spread)
    apart = extracted(tiny_llama, tuned, EnergyThreshold(0.9))
    together = extracted(tiny_llama, tuned, GlobalEnergyThreshold(0.9))
    assert together.adapter.nbytes <= apart.adapter.nbytes
    assert {spec.rank for spec in extracted(tiny_llama, tuned, FixedRank(2)).adapter.specs.values()} == {2}
    pair = compare_models(open_model(tiny_llama), open_model(tuned), model_layers(tuned))
    found = extract(pair, FileBudget(20_000, ByteBudget, pair))
    found.write(tmp_path / "out", base_model="b", max_bytes=20_000)
    assert 15_000 < (tmp_path / "out" / "adapter_model.safetensors").stat().st_size <= 20_000
    with pytest.raises(ConfigurationError, match="at most 9000 bytes"):
        found.write(tmp_path / "small", base_model="b", max_bytes=9_000)
    assert not (tmp_path / "small").exists()


def test_weights_in_half_precision_are_subtracted_in_float32(tiny_llama: Path, tmp_path: Path) -> None:
    def halve(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})

    base = changed(tiny_llama, tmp_path / "base", halve)
    tuned = changed(base, tmp_path / "tuned", merged(2, scale=0.5))
    found = extracted(base, tuned, EnergyThreshold(0.95))
    for module, factor in found.adapter.items():
        exact = difference(base, tuned, module)
        assert relative_error(factor.delta_weight(), exact) == pytest.approx(
            found.certificate.modules[module].relative_error, rel=1e-3
        )
    # A base in another dtype is no error, and what its rounding changed is told.
    notes = compare_models(
        open_model(tiny_llama), open_model(tuned), model_layers(tuned), others=Others.LEAVE_OUT
    ).notes
    assert "unlike dtypes (F32 and BF16)" in notes[0]


def test_one_tensor_is_read_at_a_time(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = changed(tiny_llama, tmp_path / "tuned", spread)
    held = Counter[str]()
    largest = 0
    original = ModelWeights.read

    def read(model: ModelWeights, name: str) -> Tensor:
        nonlocal largest
        tensor = original(model, name)
        held[name] += 1
        largest = max(largest, held.total())
        weakref.finalize(tensor, held.subtract, [name])
        return tensor

    monkeypatch.setattr(ModelWeights, "read", read)
    extracted(tiny_llama, tuned, EnergyThreshold(0.9))
    assert len(held) == 14  # what did not change is compared as bytes
    assert largest == 2  # the two weights of one module
    assert held.total() == 0


def norm_and_bias(tensors: dict[str, Tensor]) -> None:
    merged(2)(tensors)
    tensors["model.norm.weight"] += 0.1


def test_other_changes_are_refused_left_out_or_saved(tiny_llama: Path, tmp_path: Path) -> None:
    tuned = changed(tiny_llama, tmp_path / "tuned", norm_and_bias)
    with pytest.raises(ModelError, match=r"also changed model\.norm\.weight \(by 1\.0e-01.*--others leave-out"):
        extracted(tiny_llama, tuned, EnergyThreshold(1.0))
    without = extracted(tiny_llama, tuned, EnergyThreshold(1.0), Others.LEAVE_OUT)
    content = without.write(tmp_path / "without", base_model="b")
    assert content["left_out"]["model.norm.weight"] == pytest.approx(0.1, rel=1e-5)
    assert any("model.norm.weight" in note for note in content["notes"])
    content = extracted(tiny_llama, tuned, EnergyThreshold(1.0), Others.SAVE).write(tmp_path / "with", base_model="b")
    assert (content["saved"], content["left_out"]) == (["model.norm.weight"], {})
    told = logits(AutoModelForCausalLM.from_pretrained(tuned))
    model = loaded(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path / "with")
    assert relative_error(logits(model), told) < 1e-5


def gpt2(directory: Path, *, tied: bool = True) -> Path:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, n_positions=16, tie_word_embeddings=tied)
    GPT2LMHeadModel(config).save_pretrained(directory)
    return directory


def test_transposed_weights_biases_and_tied_layers_of_gpt2(tmp_path: Path) -> None:
    base, block = gpt2(tmp_path / "base"), "transformer.h.0"

    def tune(tensors: dict[str, Tensor]) -> None:
        merged(2, (f"{block}.attn.c_attn", f"{block}.attn.c_proj"))(tensors)
        tensors[f"{block}.attn.c_attn.bias"] += 0.3
        tensors[f"{block}.mlp.c_fc.bias"] -= 0.2  # its weight stays
        tensors[f"{block}.ln_1.weight"] *= 1.5

    tuned = changed(base, tmp_path / "tuned", tune)
    found = extracted(base, tuned, EnergyThreshold(1.0), Others.SAVE)
    assert {name.removeprefix(f"{block}."): spec.rank for name, spec in found.adapter.specs.items()} == {
        "attn.c_attn": 2,
        "attn.c_proj": 2,  # a square weight, which its shape alone would not tell from its transpose
        "mlp.c_fc": 0,
    }
    content = found.write(tmp_path / "out", base_model="b")
    saved = ["ln_1.bias", "ln_1.weight", "attn.c_attn.bias", "mlp.c_fc.bias"]
    assert content["saved"] == [f"{block}.{name}" for name in saved]
    told = logits(GPT2LMHeadModel.from_pretrained(tuned))
    assert relative_error(logits(loaded(GPT2LMHeadModel.from_pretrained(base), tmp_path / "out")), told) < 1e-5

    def embed(tensors: dict[str, Tensor]) -> None:
        tune(tensors)
        tensors["transformer.wte.weight"] += 0.1

    embedded = changed(base, tmp_path / "embedded", embed)
    with pytest.raises(UnsupportedAdapterError, match="the output layer is tied to it"):
        extracted(base, embedded, EnergyThreshold(1.0), Others.SAVE)
    kept = extracted(base, embedded, EnergyThreshold(1.0), Others.LEAVE_OUT)
    assert "transformer.wte.weight" in kept.difference.left_out
    assert "lm_head" not in kept.adapter


def test_an_untied_output_layer_is_a_linear_module(tiny_llama: Path, tmp_path: Path) -> None:
    tuned = changed(tiny_llama, tmp_path / "tuned", merged(2, ("lm_head",)))
    found = extracted(tiny_llama, tuned, EnergyThreshold(1.0))
    assert {name: spec.rank for name, spec in found.adapter.specs.items()} == {"lm_head": 2}


def test_a_classifier_is_kept_whole_over_a_base_without_one(tiny_bert: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3)
    with torch.no_grad():
        query = model.bert.encoder.layer[0].attention.self.query.weight
        query += 0.1 * torch.outer(torch.ones(32), torch.arange(32.0))
    model.save_pretrained(tmp_path / "tuned")
    found = extracted(tiny_bert, tmp_path / "tuned", EnergyThreshold(1.0))
    assert {name: s.rank for name, s in found.adapter.specs.items()} == {"bert.encoder.layer.0.attention.self.query": 1}
    content = found.write(tmp_path / "out", base_model=str(tiny_bert))
    assert content["saved"] == ["classifier.bias", "classifier.weight"]
    again: PeftModel = loaded(
        AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3), tmp_path / "out"
    )
    assert relative_error(logits(again), logits(model)) < 1e-5


def sharded(base: Path, out: Path) -> Path:
    shutil.copytree(base, out)
    tensors = load_file(out / "model.safetensors")
    (out / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, own in files.items():
        save_file({name: tensors[name] for name in own}, out / file, metadata={"format": "pt"})
    index = {"weight_map": {name: file for file, own in files.items() for name in own}}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    return out


def test_shards_are_read_by_their_index(tiny_llama: Path, tmp_path: Path) -> None:
    tuned = sharded(changed(tiny_llama, tmp_path / "one", merged(3)), tmp_path / "tuned")
    found = extracted(tiny_llama, tuned, EnergyThreshold(1.0))
    assert found.adapter.total_rank == 6
    assert sorted(found.difference.tuned.sha256()) == ["model-1.safetensors", "model-2.safetensors"]
    index = tuned / "model.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"]
    broken: Mapping[str, tuple[Any, type[Exception], str]] = {
        "no JSON": ("{", ModelError, "reading failed"),
        "no map": ({}, ModelError, "weight_map"),
        "outside": ({"weight_map": {"a": "../x.safetensors"}}, ModelError, "beside it"),
        "no file": ({"weight_map": {"a": "y.safetensors"}}, MissingInputError, "found none"),
        "lacking": ({"weight_map": {**names, "extra.weight": "model-1.safetensors"}}, ModelError, "lack extra"),
    }
    for content, error, told in broken.values():
        index.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(error, match=told):
            open_model(tuned)


def drop(name: str) -> Change:
    def change(tensors: dict[str, Tensor]) -> None:
        merged(2)(tensors)
        del tensors[name]

    return change


def quantised(tensors: dict[str, Tensor]) -> None:
    tensors[f"{Q}.weight"] = torch.ones(tensors[f"{Q}.weight"].shape, dtype=torch.int8)


def resized(tensors: dict[str, Tensor]) -> None:
    tensors["model.embed_tokens.weight"] = torch.ones(99, 32)


def diverged(tensors: dict[str, Tensor]) -> None:
    tensors[f"{Q}.weight"][0, 0] = math.nan


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        (lambda tensors: None, ModelError, "to differ from"),
        (drop("model.norm.weight"), ModelError, r"lacks model\.norm\.weight"),
        (drop(f"{DOWN}.weight"), ModelError, r"lacks model\.layers\.1\.mlp\.down_proj\.weight"),
        (resized, ModelError, r"model\.embed_tokens\.weight: \(99, 32\)"),
        (quantised, UnsupportedAdapterError, "quantised"),
        (diverged, NonFiniteUpdateError, r"q_proj\.weight"),
    ],
    ids=["same", "norm", "linear", "resized", "quantised", "diverged"],
)
def test_what_cannot_be_compared_is_named(
    tiny_llama: Path, tmp_path: Path, change: Change, error: type[Exception], told: str
) -> None:
    tuned = changed(tiny_llama, tmp_path / "tuned", change)
    with pytest.raises(error, match=told):
        extracted(tiny_llama, tuned, EnergyThreshold(0.9))


def test_models_of_unlike_architectures_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="two models of one architecture"):
        extracted(gpt2(tmp_path / "other"), tiny_llama, EnergyThreshold(0.9))


def test_what_is_no_model_is_named(saved_adapters: list[Path], tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="found a PEFT adapter"):
        open_model(saved_adapters[0])
    with pytest.raises(MissingInputError, match="found neither"):
        open_model(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(MissingInputError, match="pickles can run code"):
        open_model(tmp_path)
    with pytest.raises(MissingInputError, match="expected the directory of a model"):
        open_model(tiny_llama / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes((tiny_llama / "model.safetensors").read_bytes()[:-10])
    with pytest.raises(InvalidAdapterError, match="save the model again"):
        open_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InvalidAdapterError, match="Git LFS pointer"):
        open_model(tmp_path)
    with pytest.raises(ModelError, match="cannot build the model"):
        model_layers(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("energy", [0.7, 0.9999, 1.0])
@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (20, 20)])
def test_a_dense_decomposition_is_the_svd(shape: tuple[int, int], energy: float, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    W = torch.randn(*shape, generator=draw, dtype=torch.float64) @ torch.diag(0.7 ** torch.arange(shape[1]).double())
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    found = decompose_dense(W.to(dtype), energy=energy)
    rank = found.S.numel()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    assert torch.allclose(found.S, S[:rank], rtol=1e-3 if energy < 1 else 1e-2, atol=tolerance * float(S[0]))
    assert found.spectrum.total_energy == pytest.approx(float(S.square().sum()), rel=1e-5)
    assert float(S[:rank].square().sum()) >= energy * float(S.square().sum()) * (1 - 1e-5)
    assert relative_error(found.factor(rank).delta_weight(), (U[:, :rank] * S[:rank]) @ Vh[:rank]) < 1e-3
    assert found.left.dtype == dtype
