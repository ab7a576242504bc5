"""`florist.peft.add_weighted_adapter` against the dense float64 sum of what live adapters add, beside PEFT's own."""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from florist.checkpoint import open_adapter
from florist.errors import (
    ConfigurationError,
    IncompatibleAdaptersError,
    NonFiniteUpdateError,
    UnsupportedAdapterError,
)
from florist.peft import add_weighted_adapter, adding
from florist.ranks import EnergyThreshold, FixedRank
from tests.checkpoint.adapters import LINEARS, loaded, relative, tiny_llama

TOKENS = torch.arange(24).reshape(2, 12) % 50
UNLIKE: Mapping[str, Mapping[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8},
    "rs": {"r": 6, "lora_alpha": 3, "use_rslora": True, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "patterns": {"r": 2, "lora_alpha": 6, "rank_pattern": {"q_proj": 5}, "alpha_pattern": {"v_proj": 1}},
}
WEIGHTS = {"plain": 0.5, "rs": -1.5, "patterns": 2.0}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def live(
    adapters: Mapping[str, Mapping[str, Any]], base: Callable[[], Any] = tiny_llama, task: str | None = "CAUSAL_LM"
) -> PeftModel:
    """A model with adapters of random values."""
    model: Any = None
    for name, settings in adapters.items():
        config = LoraConfig(**{"target_modules": LINEARS, "task_type": task} | dict(settings))
        if model is None:
            model = get_peft_model(base(), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "lora_" in path or "modules_to_save" in path:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
    return model.eval()


def layers(model: PeftModel) -> dict[str, Any]:
    return {name: module for name, module in model.get_base_model().named_modules() if isinstance(module, LoraLayer)}


def product(layer: Any, name: str) -> Tensor:
    """s B A in float64 as PEFT's forward has it, from the layer's own numbers."""
    if name in layer.lora_embedding_A:
        B, A = layer.lora_embedding_B[name], layer.lora_embedding_A[name]
    elif name in layer.lora_A:
        B, A = layer.lora_B[name].weight, layer.lora_A[name].weight
    else:
        return torch.zeros((), dtype=torch.float64)
    return layer.scaling[name] * (B.detach().double().flatten(1) @ A.detach().double().flatten(1))


def expected(model: PeftModel, weights: Mapping[str, float]) -> dict[str, Tensor]:
    """The oracle: the dense weighted sum of every module."""
    return {
        module: sum((weight * product(layer, name) for name, weight in weights.items()), start=torch.zeros(()))
        for module, layer in layers(model).items()
    }


def error(model: PeftModel, name: str, weights: Mapping[str, float]) -> float:
    """The largest error of a module's product against the dense sum, over the norm of that."""
    oracle = expected(model, weights)
    return max(relative(product(layer, name), oracle[module]) for module, layer in layers(model).items())


def outputs(model: PeftModel, active: str) -> Tensor:
    model.set_adapter(active)
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def state(model: PeftModel) -> tuple[Any, ...]:
    """All that a refusal must leave as it was, bit for bit."""
    return (
        {name: (value.clone(), value.requires_grad) for name, value in model.named_parameters()},
        sorted(model.peft_config),
        list(model.active_adapters),
        [name for name, _ in model.named_modules()],
        {name: (dict(layer.scaling), dict(layer.r)) for name, layer in layers(model).items()},
    )


def assert_untouched(model: PeftModel, before: tuple[Any, ...]) -> None:
    now = state(model)
    assert now[1:] == before[1:]
    assert now[0].keys() == before[0].keys()
    for name, (value, trains) in before[0].items():
        assert torch.equal(now[0][name][0], value), name
        assert now[0][name][1] == trains, name


def test_the_sum_is_exact_for_rslora_patterns_unlike_ranks_and_absent_modules() -> None:
    model = live(UNLIKE)
    before = state(model)
    certificate = add_weighted_adapter(model, list(WEIGHTS), list(WEIGHTS.values()), "sum")
    assert error(model, "sum", WEIGHTS) < 2e-6
    found = layers(model)
    q, k = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"
    assert (found[q].r["sum"], found[k].r["sum"]) == (15, 6)  # 4 + 6 + 5, and 4 + 2: no more than the sum has
    assert {layer.scaling["sum"] for layer in found.values()} == {1.0}
    assert certificate.modules[k].absent_from == ("rs",)
    assert certificate.relative_error < 2e-6
    # Nothing else has changed, and the new adapter neither trains nor acts.
    now = state(model)
    assert now[2] == before[2]
    assert {name: now[0][name][1] for name in before[0]} == {name: trains for name, (_, trains) in before[0].items()}
    assert all(torch.equal(now[0][name][0], value) for name, (value, _) in before[0].items())
    assert not any(trains for name, (_, trains) in now[0].items() if ".sum." in name)


def test_the_forward_pass_is_that_of_the_merged_dense_sum() -> None:
    model = live(UNLIKE)
    add_weighted_adapter(model, list(WEIGHTS), list(WEIGHTS.values()), "sum")
    dense = tiny_llama()
    with torch.no_grad():
        for module, update in expected(model, WEIGHTS).items():
            dense.get_submodule(module).weight += update.float()
        told = dense(TOKENS).logits
    assert relative(outputs(model, "sum"), told) < 1e-5


def test_one_adapter_with_weight_one_is_that_adapter() -> None:
    model = live(UNLIKE)
    for name in UNLIKE:
        add_weighted_adapter(model, [name], [1.0], f"{name}_again")
        assert relative(outputs(model, f"{name}_again"), outputs(model, name)) < 1e-5


def test_what_set_scale_made_of_an_adapter_counts() -> None:
    model = live(UNLIKE)
    for layer in layers(model).values():
        layer.set_scale("plain", 3.0)
    add_weighted_adapter(model, ["plain", "rs"], [1.0, 1.0], "sum")
    assert error(model, "sum", {"plain": 1.0, "rs": 1.0}) < 2e-6


def test_a_saved_sum_is_reloaded_by_peft_and_by_florist(tmp_path: Path) -> None:
    model = live(UNLIKE)
    add_weighted_adapter(model, list(WEIGHTS), list(WEIGHTS.values()), "sum", EnergyThreshold(0.9))
    told = outputs(model, "sum")
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    assert len({layer.r["sum"] for layer in layers(model).values()}) > 1  # or there would be no patterns to test
    assert torch.equal(outputs(loaded(tiny_llama(), tmp_path / "sum"), "default"), told)
    again = open_adapter(tmp_path / "sum").adapter
    assert all(relative(again[m].delta_weight(), product(layer, "sum")) < 1e-6 for m, layer in layers(model).items())


@pytest.mark.parametrize("rule", [EnergyThreshold(0.9), FixedRank(3)], ids=str)
def test_a_cut_is_the_best_of_its_rank(rule: Any) -> None:
    model = live(UNLIKE)
    certificate = add_weighted_adapter(model, list(WEIGHTS), list(WEIGHTS.values()), "cut", rule)
    for module, update in expected(model, WEIGHTS).items():
        U, S, Vh = torch.linalg.svd(update, full_matrices=False)
        rank = layers(model)[module].r["cut"]
        if isinstance(rule, FixedRank):
            assert rank == 3
        else:
            held = S.square().cumsum(0) / S.square().sum()
            assert rank == int((held < 0.9).sum()) + 1
        best = (U[:, :rank] * S[:rank]) @ Vh[:rank]
        assert relative(product(layers(model)[module], "cut"), best) < 1e-5
        assert certificate.modules[module].error == pytest.approx(float(S[rank:].norm()), rel=1e-3)


def test_weights_that_cancel_leave_a_zero_update() -> None:
    model = live({"a": {"r": 3}, "b": {"r": 3}})
    with torch.no_grad():
        for layer in layers(model).values():
            layer.lora_A["b"].weight.copy_(layer.lora_A["a"].weight)
            layer.lora_B["b"].weight.copy_(layer.lora_B["a"].weight)
    add_weighted_adapter(model, ["a", "b"], [1.0, -1.0], "nothing")
    assert {layer.r["nothing"] for layer in layers(model).values()} == {1}
    assert all(float(product(layer, "nothing").norm()) == 0 for layer in layers(model).values())


def test_float64_stays_float64() -> None:
    model = live(UNLIKE, lambda: tiny_llama().double())
    add_weighted_adapter(model, list(WEIGHTS), list(WEIGHTS.values()), "sum")
    assert error(model, "sum", WEIGHTS) < 1e-13


def test_a_base_in_half_precision_gets_a_sum_in_float32() -> None:
    model = live(UNLIKE, lambda: tiny_llama().bfloat16())
    add_weighted_adapter(model, list(WEIGHTS), list(WEIGHTS.values()), "sum")
    assert error(model, "sum", WEIGHTS) < 2e-6


class Small(nn.Module):
    """Layers that a language model lacks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(50, 12)
        self.convolution = nn.Conv1d(12, 10, 3, padding=1)
        self.head = nn.Linear(10, 7)

    def forward(self, input_ids: Tensor) -> Any:
        hidden = self.convolution(self.table(input_ids).transpose(1, 2)).transpose(1, 2)
        return type("Output", (), {"logits": self.head(hidden)})


def test_embeddings_and_convolutions_are_summed_as_they_are_held(tmp_path: Path) -> None:
    targets = ["table", "convolution", "head"]
    model = live(
        {"a": {"r": 3, "target_modules": targets}, "b": {"r": 2, "target_modules": targets, "use_rslora": True}},
        Small,
        None,
    )
    weights = {"a": 2.0, "b": -1.0}
    add_weighted_adapter(model, list(weights), list(weights.values()), "sum")
    assert error(model, "sum", weights) < 2e-6
    told = outputs(model, "sum")
    merged = copy.deepcopy(model).merge_and_unload(adapter_names=["sum"])
    assert relative(told, merged(TOKENS).logits) < 1e-5
    model.save_pretrained(tmp_path, selected_adapters=["sum"], save_embedding_layers=False)
    assert torch.equal(outputs(loaded(Small(), tmp_path / "sum"), "default"), told)


def test_transposed_weights_of_gpt2_are_summed_right() -> None:
    def gpt2() -> GPT2LMHeadModel:
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, n_positions=16))

    names = ["c_attn", "c_fc"]
    model = live({"a": {"r": 2, "target_modules": names}, "b": {"r": 3, "target_modules": names}}, gpt2)
    add_weighted_adapter(model, ["a", "b"], [1.0, 1.0], "sum")
    assert error(model, "sum", {"a": 1.0, "b": 1.0}) < 2e-6
    dense = copy.deepcopy(model).merge_and_unload(adapter_names=["a", "b"])
    with torch.no_grad():
        told = dense(TOKENS).logits
    assert relative(outputs(model, "sum"), told) < 1e-5


def test_biases_of_lora_b_are_summed(tmp_path: Path) -> None:
    model = live({"a": {"r": 2, "lora_bias": True, "lora_alpha": 6}, "b": {"r": 3, "target_modules": ["q_proj"]}})
    add_weighted_adapter(model, ["a", "b"], [0.5, 1.0], "sum")
    assert error(model, "sum", {"a": 0.5, "b": 1.0}) < 2e-6
    for layer in layers(model).values():
        assert relative(layer.lora_B["sum"].bias, 0.5 * 3.0 * layer.lora_B["a"].bias) < 1e-6
    told = outputs(model, "sum")
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    assert torch.equal(outputs(loaded(tiny_llama(), tmp_path / "sum"), "default"), told)


def classifier() -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(**sizes, vocab_size=50, num_labels=3))


def test_a_head_that_all_adapters_share_is_kept_and_unlike_heads_are_refused(tmp_path: Path) -> None:
    model = live({"a": {"target_modules": ["query"]}, "b": {"target_modules": ["query"]}}, classifier, "SEQ_CLS")
    before = state(model)
    with pytest.raises(IncompatibleAdaptersError, match="same values of classifier"):
        add_weighted_adapter(model, ["a", "b"], [0.5, 0.5], "sum")
    assert_untouched(model, before)
    heads = model.get_base_model().classifier.modules_to_save
    heads["b"].load_state_dict(heads["a"].state_dict())
    add_weighted_adapter(model, ["a", "b"], [0.5, 0.5], "sum")
    assert torch.equal(heads["sum"].weight, heads["a"].weight)
    assert error(model, "sum", {"a": 0.5, "b": 0.5}) < 2e-6
    told = outputs(model, "sum")
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    assert torch.equal(outputs(loaded(classifier(), tmp_path / "sum"), "default"), told)


def test_a_head_that_one_adapter_lacks_is_refused() -> None:
    model = live({"a": {"modules_to_save": ["lm_head"]}, "b": {}})
    before = state(model)
    with pytest.raises(IncompatibleAdaptersError, match="lm_head"):
        add_weighted_adapter(model, ["a", "b"], [1.0, 1.0], "sum")
    assert_untouched(model, before)
    add_weighted_adapter(model, ["a"], [2.0], "one")
    heads = model.get_base_model().lm_head.modules_to_save
    assert torch.equal(heads["one"].weight, heads["a"].weight)


REFUSED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "DoRA"),
    "biases": ({"bias": "lora_only"}, "bias = 'lora_only'"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "changes the base"),
    "parameters": ({"target_modules": [], "target_parameters": ["gate_proj.weight"]}, "target_parameters"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_sum_of_factors_says_is_refused_and_the_model_is_as_it_was(case: str) -> None:
    settings, told = REFUSED[case]
    model = live({"odd": settings, "plain": {"r": 4, "target_modules": ["q_proj"]}})
    before = state(model)
    with pytest.raises(UnsupportedAdapterError, match=told) as refusal:
        add_weighted_adapter(model, ["plain", "odd"], [1.0, 1.0], "sum")
    assert "'odd'" in str(refusal.value)
    assert_untouched(model, before)
    add_weighted_adapter(model, ["plain"], [1.0], "fine")  # what is not in the sum does no harm


def test_grouped_convolutions_and_attention_inside_a_module_are_refused() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv1d(8, 8, 3, groups=2)

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)

    for base, target, told in ((Grouped, "convolution", "grouped"), (Attending, "attention", "MultiheadAttention")):
        model = live({"a": {"r": 4, "target_modules": [target]}}, base, None)
        with pytest.raises(UnsupportedAdapterError, match=told):
            add_weighted_adapter(model, ["a"], [1.0], "sum")


def test_biases_of_lora_b_beside_an_embedding_are_refused() -> None:
    model = live(
        {"a": {"target_modules": ["table"]}, "b": {"target_modules": ["head"], "lora_bias": True}}, Small, None
    )
    with pytest.raises(UnsupportedAdapterError, match="lora_bias"):
        add_weighted_adapter(model, ["a", "b"], [1.0, 1.0], "sum")


@pytest.mark.parametrize(
    ("adapters", "weights", "name", "told"),
    [
        ([], [], "sum", "expected names of adapters out of"),
        ("plain", [1.0], "sum", "expected names of adapters out of"),
        (["plain", "other"], [1.0, 1.0], "sum", "other"),
        (["plain", "plain"], [1.0, 1.0], "sum", "more often"),
        (["plain"], [1.0, 2.0], "sum", "a finite weight for each"),
        (["plain"], [float("nan")], "sum", "a finite weight for each"),
        (["plain"], [1.0], "rs", "has already"),
        (["plain"], [1.0], "a.b", "that torch takes"),
        (["plain"], [1.0], "keys", "that torch takes"),
        (["plain"], [1.0], "", "that torch takes"),
        (["plain"], [1.0], "lora", "PEFT takes for its own"),
    ],
)
def test_wrong_arguments_are_named(adapters: Any, weights: list[float], name: str, told: str) -> None:
    model = live(UNLIKE)
    before = state(model)
    with pytest.raises(ConfigurationError, match=told):
        add_weighted_adapter(model, adapters, weights, name)
    assert_untouched(model, before)


@pytest.mark.usefixtures("without_shape_checks")
def test_a_model_without_adapters_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"expected a peft\.PeftModel"):
        add_weighted_adapter(tiny_llama(), ["a"], [1.0], "sum")  # type: ignore[arg-type]


def test_values_that_are_not_finite_are_refused_by_adapter_and_module() -> None:
    model = live(UNLIKE)
    with torch.no_grad():
        layers(model)["model.layers.1.self_attn.v_proj"].lora_B["rs"].weight[0, 0] = float("nan")
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(NonFiniteUpdateError, match=r"layers\.1\.self_attn\.v_proj of the adapter 'rs'"):
        add_weighted_adapter(model, list(WEIGHTS), list(WEIGHTS.values()), "sum")
    assert [name for name, _ in model.named_modules()] == before


def test_what_fails_half_way_leaves_no_half_made_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    model = live(UNLIKE)
    before = state(model)
    filled: list[str] = []

    def fill(module: str, *_: object) -> None:
        filled.append(module)
        if len(filled) == 3:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(adding, "_fill", fill)
    with pytest.raises(RuntimeError, match="out of memory"):
        add_weighted_adapter(model, ["plain"], [1.0], "sum")
    assert_untouched(model, before)


def test_a_module_whose_name_ends_as_another_is_left_alone() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(2)
            self.head = nn.Linear(6, 6)
            self.inner = nn.ModuleDict({"head": nn.Linear(6, 6)})

    model = live({"a": {"target_modules": r"head"}}, Nested, None)
    add_weighted_adapter(model, ["a"], [1.0], "sum")
    assert list(layers(model)) == ["head"]
    assert error(model, "sum", {"a": 1.0}) < 2e-6


@pytest.mark.parametrize(
    ("settings", "combination"),
    [
        pytest.param({"use_rslora": True}, "svd", id="rsLoRA, svd"),
        pytest.param({"use_rslora": True}, "cat", id="rsLoRA, cat"),
        pytest.param({"lora_bias": True}, "svd", id="lora_bias, svd"),
        pytest.param({}, "linear", id="cross terms, linear"),
        pytest.param({}, "svd", id="cut without a word, svd"),
    ],
)
def test_where_the_method_of_peft_is_off_this_one_is_right(
    settings: Mapping[str, Any], combination: str, record_property: Callable[[str, object], None]
) -> None:
    """What PEFT makes of it is recorded and not required: a later PEFT may be right (its issues 3737 and 3761)."""
    model = live({"a": {"r": 4, **settings}, "b": {"r": 4, **settings}})
    weights = {"a": 0.5, "b": 0.5}
    dense = tiny_llama()
    with torch.no_grad():
        for module, update in expected(model, weights).items():
            target, layer = dense.get_submodule(module), layers(model)[module]
            target.weight += update.float()
            if layer.lora_B["a"].bias is not None:
                biases = (layer.scaling[name] * layer.lora_B[name].bias for name in weights)
                target.bias = nn.Parameter(0.5 * sum(biases, start=torch.zeros(())))
        told = dense(TOKENS).logits
    add_weighted_adapter(model, list(weights), list(weights.values()), "florist")
    assert relative(outputs(model, "florist"), told) < 1e-5
    model.add_weighted_adapter(list(weights), list(weights.values()), "peft", combination_type=combination)
    record_property("relative error of PEFT's logits", relative(outputs(model, "peft"), told))
