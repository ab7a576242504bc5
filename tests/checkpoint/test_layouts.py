"""Every way of storing a module: what PEFT computes, read, written back, and loaded by PEFT again."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoHaConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from florist.checkpoint import (
    AdapterLayout,
    ConvolutionLayout,
    EmbeddingLayout,
    EncodedAdapter,
    Export,
    SavedAdapter,
    check_compatible,
    encode,
    open_adapter,
)
from florist.errors import IncompatibleAdaptersError, InvalidAdapterError, NonFiniteUpdateError, UnsupportedAdapterError
from florist.factors import AdapterState, LoraFactor

from .adapters import deltas, edit_config, edit_tensors, loaded, logits, relative, saved, tiny_llama, trained, written
from .moe import tiny_gpt_oss, tiny_mixtral, tiny_qwen3_moe

EXPORTS = pytest.mark.parametrize("export", list(Export))


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=32)).eval()


def tiny_bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    return BertForSequenceClassification(BertConfig(**sizes, vocab_size=50, num_labels=3, pad_token_id=0)).eval()


class Convolutions(nn.Module):
    """All three kinds in a row, on tokens."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, 8)
        self.one = nn.Conv1d(8, 6, 3, padding=1)
        self.two = nn.Conv2d(6, 4, (2, 3), stride=2, groups=groups)
        self.point = nn.Conv2d(4, 4, 1)
        self.three = nn.Conv3d(4, 5, (1, 2, 2), padding=1)

    def forward(self, input_ids: torch.Tensor) -> "Output":
        x = self.one(self.embed(input_ids).mT)
        x = self.point(self.two(x.unsqueeze(2).expand(-1, -1, 4, -1)))
        return Output(self.three(x.unsqueeze(2)))


class Output:
    def __init__(self, values: torch.Tensor) -> None:
        self.logits = values


def encoded(adapter: AdapterState, source: SavedAdapter, **options: Any) -> EncodedAdapter:
    """An adapter with all that its source holds beside the factors."""
    return encode(
        adapter,
        layout=source.layout,
        saved_parameters=source.saved_parameters,
        additive=source.additive,
        task_type=source.task_type,
        **options,
    )


def cut(adapter: AdapterState) -> AdapterState:
    """Unlike ranks, as an aggregation leaves them: every second module at rank 1."""
    return AdapterState.of(
        {
            name: LoraFactor(factor.B[:, :1], factor.A[:1]) if index % 2 else factor
            for index, (name, factor) in enumerate(adapter.items())
        }
    )


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "gpt2": (tiny_gpt2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "embedding": (tiny_llama, {"target_modules": ["embed_tokens", "q_proj"]}),
    "head": (tiny_llama, {"target_modules": ["lm_head", "q_proj"]}),
    "both untied": (tiny_llama, {"target_modules": ["lm_head", "embed_tokens"], "use_rslora": True}),
    "convolutions": (Convolutions, {"target_modules": ["one", "two", "point", "three", "embed"]}),
    "output bias": (tiny_gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "lora_bias": True}),
    "token rows": (tiny_llama, {"target_modules": ["q_proj"], "trainable_token_indices": [1, 3, 40]}),
    "token rows, tied": (
        lambda: tiny_llama(tie_word_embeddings=True),
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [1, 3]}},
    ),
    "biases of adapted modules": (
        tiny_gpt2,
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "lora_only"},
    ),
    "all biases": (tiny_gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "all"}),
    "all biases, and a head with one": (
        tiny_bert,
        {"target_modules": ["query"], "bias": "all", "task_type": "SEQ_CLS"},
    ),
    "a head": (tiny_bert, {"target_modules": ["query"], "task_type": "SEQ_CLS", "lora_bias": True}),
    "saved modules": (tiny_llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "experts": (
        tiny_qwen3_moe,
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    ),
    "experts, unlike ranks": (
        tiny_qwen3_moe,
        {
            "target_modules": [],
            "target_parameters": ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"],
            "rank_pattern": {"gate_up_proj": 6},
            "alpha_pattern": {"down_proj": 5},
        },
    ),
    "experts, one parameter": (tiny_mixtral, {"target_modules": [], "target_parameters": ["experts.down_proj"]}),
    "experts, transposed": (
        tiny_gpt_oss,
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    ),
    "experts, by the names of transformers 4": (
        tiny_qwen3_moe,
        {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]},
    ),
    "a plain matrix as parameter": (
        tiny_llama,
        {"target_modules": ["q_proj"], "target_parameters": ["v_proj.weight"]},
    ),
}


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> "Case":
    base, settings = CASES[request.param]
    model = trained(base(), LoraConfig(**{"r": 3, "lora_alpha": 8} | settings), seed=1)
    return base, model, open_adapter(saved(model, tmp_path_factory.mktemp("case") / "client"))


Case = tuple[Callable[[], nn.Module], PeftModel, SavedAdapter]


def dense(adapter: SavedAdapter, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """florist's products in the shapes of PEFT's updates: what PEFT does on top of B A is spelt out here."""
    products: dict[str, torch.Tensor] = {}
    for name, delta in like.items():
        layout = adapter.layout.modules.get(name)
        if name in adapter.adapter and not isinstance(layout, ConvolutionLayout | EmbeddingLayout):
            product = adapter.adapter[name].delta_weight()
            products[name] = (
                product if product.shape == delta.shape and not adapter.layout.fan_in_fan_out else product.T
            )
        elif isinstance(layout, EmbeddingLayout):
            products[name] = adapter.adapter[name].delta_weight().T
        elif isinstance(layout, ConvolutionLayout):
            products[name] = adapter.adapter[name].delta_weight().reshape(delta.shape)
        else:
            experts = [adapter.adapter[f"{name}[{e}]"].delta_weight() for e in range(len(delta))]
            stacked = torch.stack(experts)
            products[name] = stacked if stacked.shape == delta.shape else stacked.mT
    return products


def test_products_are_the_updates_that_peft_computes(case: Case):
    _, model, adapter = case
    expected = deltas(model)
    found = dense(adapter, expected)
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        assert relative(found[name], delta) < 1e-6, name


@EXPORTS
def test_what_is_written_back_computes_the_same(case: Case, tmp_path: Path, export: Export):
    base, model, adapter = case
    again = loaded(base(), written(encoded(adapter.adapter, adapter, export=export), tmp_path / "out"))
    expected = logits(model)
    assert relative(logits(again), expected) < 1e-5
    assert relative(logits(base()), expected) > 0.01  # the update matters


@EXPORTS
def test_unlike_ranks_are_read_right_by_peft(case: Case, tmp_path: Path, export: Export):
    base, _, adapter = case
    reduced = cut(adapter.adapter)
    directory = written(encoded(reduced, adapter, export=export), tmp_path / "out")
    again = open_adapter(directory)
    for name, factor in reduced.items():
        assert relative(again.adapter[name].delta_weight(), factor.delta_weight()) < 1e-6
    expected = deltas(loaded(base(), directory))
    found = dense(again, expected)
    assert found.keys() == expected.keys()
    assert all(relative(found[name], delta) < 1e-6 for name, delta in expected.items())


def test_everything_beside_the_factors_survives_a_round_trip(case: Case, tmp_path: Path):
    _, _, adapter = case
    again = open_adapter(written(encoded(adapter.adapter, adapter), tmp_path / "out"))
    for name in ("saved_parameters", "additive"):
        before, after = getattr(adapter, name), getattr(again, name)
        assert before.shapes == after.shapes
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert again.layout == adapter.layout
    assert again.config["bias"] == adapter.config["bias"]


def test_copies_of_a_saved_bias_are_no_parameters_of_their_own(tmp_path: Path):
    # With bias="all" PEFT stores the bias of a saved module three times.
    settings = LoraConfig(r=2, target_modules=["query"], bias="all", task_type="SEQ_CLS")
    adapter = open_adapter(saved(trained(tiny_bert(), settings, seed=1), tmp_path / "a"))
    names = {name for name in adapter.saved_parameters if name.startswith("classifier")}
    assert names == {"classifier.weight", "classifier.bias"}
    query = "bert.encoder.layer.0.attention.self.query.bias"
    assert adapter.saved_parameters.shapes[query] == (32,)


def test_a_value_that_is_not_finite_is_refused_for_its_expert_alone(tmp_path: Path):
    settings = LoraConfig(r=2, target_modules=[], target_parameters=["experts.down_proj"])
    directory = saved(trained(tiny_qwen3_moe(), settings, seed=1), tmp_path / "a")
    stored = "model.layers.0.mlp.experts"
    for half, position in (("A", (2, 0)), ("B", (0, 1))):  # of expert 1: row 2 of A, column 1 of B

        def poison(tensors: dict[str, torch.Tensor], half: str = half, position: tuple[int, int] = position) -> None:
            tensors[f"base_model.model.{stored}.lora_{half}.weight"][position] = torch.nan

        adapter = open_adapter(edit_tensors(directory, poison)).adapter
        assert adapter[f"{stored}[0]"].rank == 2
        with pytest.raises(NonFiniteUpdateError, match=rf"lora_{half}\.weight"):
            adapter[f"{stored}[1]"]
        edit_tensors(directory, lambda tensors: tensors.update({k: t.nan_to_num() for k, t in tensors.items()}))


def test_a_resized_vocabulary_is_refused_with_the_remedy(tmp_path: Path):
    base = tiny_llama()
    model = trained(base, LoraConfig(r=2, target_modules=["q_proj"]), seed=1)
    model.save_pretrained(tmp_path / "a", save_embedding_layers=True)
    with pytest.raises(
        InvalidAdapterError, match=r"embed_tokens\.weight is a saved parameter .*save_embedding_layers=False"
    ):
        open_adapter(tmp_path / "a")


def test_conv1d_of_gpt2_keeps_its_orientation(tmp_path: Path):
    model = trained(tiny_gpt2(), LoraConfig(r=3, target_modules=["c_attn"], fan_in_fan_out=True), seed=1)
    adapter = open_adapter(saved(model, tmp_path / "a"))
    assert {spec.shape for spec in adapter.adapter.specs.values()} == {(96, 32)}
    assert encode(adapter.adapter, layout=adapter.layout).config["fan_in_fan_out"] is True


def test_frozen_copies_are_ignored_but_must_agree(tmp_path: Path):
    adapters = []
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        base = tiny_llama()
        if name == "c":
            with torch.no_grad():
                base.model.embed_tokens.weight[0, 0] += 1
        model = trained(base, LoraConfig(r=2, target_modules=["embed_tokens"]), seed)
        adapters.append(open_adapter(saved(model, tmp_path / name)))
    assert list(adapters[0].frozen) == ["model.embed_tokens.weight"]
    assert check_compatible(adapters[:2]).problems == ()
    with pytest.raises(
        IncompatibleAdaptersError, match=r"c and .*a hold unlike copies of the frozen model\.embed_tokens"
    ):
        check_compatible(adapters)
    tensors = encode(adapters[0].adapter, layout=adapters[0].layout).tensors
    assert not any("base_layer" in key for key in tensors)


@pytest.mark.parametrize("ensure_weight_tying", [False, True])
def test_an_adapted_embedding_with_its_tied_head_is_refused(tmp_path: Path, ensure_weight_tying: bool):
    settings = LoraConfig(r=2, target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=ensure_weight_tying)
    model = trained(tiny_llama(tie_word_embeddings=True), settings, seed=1)
    with pytest.raises(UnsupportedAdapterError, match=r"embed_tokens, lm_head.*two updates of one weight"):
        open_adapter(saved(model, tmp_path / "a"))


def test_a_grouped_convolution_is_refused(tmp_path: Path):
    model = trained(Convolutions(groups=2), LoraConfig(r=4, target_modules=["two"]), seed=1)
    with pytest.raises(UnsupportedAdapterError, match="two is a grouped convolution"):
        open_adapter(saved(model, tmp_path / "a"))


def test_multihead_attention_is_refused(tmp_path: Path):
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)

    model = trained(Attention(), LoraConfig(r=2, target_modules=["attention"]), seed=1)
    with pytest.raises(UnsupportedAdapterError, match=r"nn\.MultiheadAttention"):
        open_adapter(saved(model, tmp_path / "a"))


def test_a_factor_that_does_not_fit_its_kernel_is_refused():
    factor = AdapterState.of({"a": LoraFactor(torch.ones(3, 1), torch.ones(1, 7))})
    layout = AdapterLayout({"a": ConvolutionLayout(in_channels=2, kernel=(3,))})
    with pytest.raises(InvalidAdapterError, match="expected in_features 6 of the convolution a"):
        encode(factor, layout=layout)


def test_token_rows_of_unlike_tokens_have_no_mean(tmp_path: Path):
    adapters = []
    for name, rows in (("a", [1, 3]), ("b", [1, 4]), ("c", [1, 3, 4])):
        settings = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=rows)
        adapters.append(open_adapter(saved(trained(tiny_llama(), settings, seed=1), tmp_path / name)))
    assert check_compatible(adapters[:1] * 2).problems == ()
    with pytest.raises(
        IncompatibleAdaptersError, match=r"b trained the token rows \[1, 4\].*same trainable_token_indices"
    ):
        check_compatible(adapters[:2])
    with pytest.raises(IncompatibleAdaptersError, match=r"trainable_tokens_delta: \(3, 32\) and \(2, 32\)"):
        check_compatible([adapters[0], adapters[2]])


def test_experts_of_unlike_parameters_are_not_combined(tmp_path: Path):
    adapters = []
    for name, targets in (("a", ["experts.gate_up_proj"]), ("b", ["experts.down_proj"])):
        settings = LoraConfig(r=2, target_modules=[], target_parameters=targets)
        adapters.append(open_adapter(saved(trained(tiny_qwen3_moe(), settings, seed=1), tmp_path / name)))
    with pytest.raises(IncompatibleAdaptersError, match=r"b has target_parameters \['experts.down_proj'\]"):
        check_compatible(adapters)


def test_some_experts_alone_cannot_be_written(tmp_path: Path):
    settings = LoraConfig(r=2, target_modules=[], target_parameters=["experts.down_proj"])
    adapter = open_adapter(saved(trained(tiny_qwen3_moe(), settings, seed=1), tmp_path / "a"))
    some = AdapterState.of({name: adapter.adapter[name] for name in list(adapter.adapter)[:-1]})
    with pytest.raises(InvalidAdapterError, match="expected all experts of"):
        encode(some, layout=adapter.layout)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (LoraConfig(r=2, target_modules=["q_proj"], use_dora=True), "uses DoRA"),
        (LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="olora"), "initialised with olora"),
        (LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"), "initialised with pissa"),
        (AdaLoraConfig(target_modules=["q_proj"], total_step=10, tinit=2, tfinal=2), "is a ADALORA adapter"),
        (LoHaConfig(r=2, target_modules=["q_proj"]), "is a LOHA adapter"),
    ],
)
def test_variants_that_peft_saved_are_refused(tmp_path: Path, settings: PeftConfig, message: str):
    directory = saved(get_peft_model(tiny_llama(), settings), tmp_path / "a")
    with pytest.raises(UnsupportedAdapterError, match=message):
        open_adapter(directory)


def test_variants_are_known_by_their_tensors_when_the_config_is_silent(tmp_path: Path):
    dora = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))
    with pytest.raises(UnsupportedAdapterError, match="lora_magnitude_vector: this is DoRA"):
        open_adapter(edit_config(saved(dora, tmp_path / "dora"), use_dora=False))
    adalora = get_peft_model(tiny_llama(), AdaLoraConfig(target_modules=["q_proj"], total_step=9, tinit=2, tfinal=2))
    with pytest.raises(UnsupportedAdapterError, match="lora_E: this is AdaLoRA"):
        open_adapter(edit_config(saved(adalora, tmp_path / "adalora"), peft_type="LORA"))


def test_pissa_converted_by_peft_is_read(tmp_path: Path):
    base = tiny_llama()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"))
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(tmp_path / "start")
        model.peft_config["default"].init_lora_weights = "pissa"
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        expected = logits(model.eval())
        model.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    adapter = open_adapter(tmp_path / "converted")
    again = loaded(tiny_llama(), written(encoded(adapter.adapter, adapter), tmp_path / "out"))
    assert relative(logits(again), expected) < 1e-5
