import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from transformers import LlamaForSequenceClassification

from florist.checkpoint import AdapterLayout, EncodedAdapter, Export, encode, open_adapter
from florist.errors import InvalidAdapterError, NonFiniteUpdateError
from florist.factors import AdapterState, LoraFactor

from .adapters import LINEARS, TOKENS, loaded, logits, relative, tiny_llama, written

EXPORTS = list(Export)


def modules(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    return {name: module for name, module in model.named_modules() if name.rpartition(".")[2] in LINEARS}  # type: ignore[misc]  # by name they are linear


def random_update(ranks: list[int], seed: int = 3, dtype: torch.dtype = torch.float32) -> AdapterState:
    generator = torch.Generator().manual_seed(seed)
    factors: dict[str, LoraFactor] = {}
    for index, (name, module) in enumerate(modules(tiny_llama()).items()):
        rank = ranks[index % len(ranks)]
        factors[name] = LoraFactor(
            torch.randn(module.out_features, rank, generator=generator, dtype=dtype) * 0.2,
            torch.randn(rank, module.in_features, generator=generator, dtype=dtype) * 0.2,
        )
    return AdapterState.of(factors)


def dense(adapter: AdapterState) -> torch.nn.Module:
    """The oracle: base + dense update, in float64."""
    model = tiny_llama().double()
    with torch.no_grad():
        for name, module in modules(model).items():
            module.weight += adapter[name].to(dtype=torch.float64).delta_weight()
    return model


@pytest.mark.parametrize("export", EXPORTS)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_peft_loads_the_logits_of_base_plus_update(tmp_path: Path, export: Export, low_cpu_mem_usage: bool):
    update = random_update([3, 1, 7, 0, 2])
    directory = written(encode(update, export=export, task_type="CAUSAL_LM"), tmp_path / "out")
    model = loaded(tiny_llama(), directory, low_cpu_mem_usage=low_cpu_mem_usage)
    expected = logits(dense(update))
    assert relative(logits(model), expected) < 1e-5
    assert relative(logits(tiny_llama()), expected) > 0.01  # the update matters


@pytest.mark.parametrize("export", EXPORTS)
def test_peft_saves_it_again_unchanged(tmp_path: Path, export: Export):
    update = random_update([3, 1, 7, 2])
    model = loaded(tiny_llama(), written(encode(update, export=export), tmp_path / "out"))
    model.save_pretrained(tmp_path / "again")
    again = open_adapter(tmp_path / "again").adapter
    for name, factor in update.items():
        assert relative(again[name].delta_weight(), factor.delta_weight()) < 1e-6


@pytest.mark.parametrize("export", EXPORTS)
def test_what_is_written_is_read_back(tmp_path: Path, export: Export):
    update = random_update([3, 1, 7, 2])
    saved = open_adapter(
        written(
            encode(update, base_model="org/base", revision="v2", task_type="CAUSAL_LM", export=export), tmp_path / "out"
        )
    )
    assert (saved.base_model, saved.revision, saved.task_type) == ("org/base", "v2", "CAUSAL_LM")
    for name, factor in update.items():
        found = saved.adapter[name]
        assert found.rank == (7 if export is Export.UNIFORM else factor.rank)
        assert torch.equal(found.B[:, : factor.rank], factor.B)
        assert torch.equal(found.A[: factor.rank], factor.A)
        assert not found.B[:, factor.rank :].any()
        assert not found.A[factor.rank :].any()


def test_every_scaling_is_exactly_one():
    config = encode(random_update([3, 1, 7, 2])).config
    model = get_peft_model(tiny_llama(), LoraConfig(**config))
    scalings = [module.scaling["default"] for module in model.modules() if isinstance(module, LoraLayer)]
    assert scalings == [1.0] * 14
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert len(config["rank_pattern"]) < 14  # modules of the largest rank need no entry


def test_uniform_needs_no_patterns():
    encoded = encode(random_update([3, 1, 7, 2]), export=Export.UNIFORM)
    assert encoded.config["rank_pattern"] == encoded.config["alpha_pattern"] == {}
    assert encoded.config["r"] == encoded.config["lora_alpha"] == 7
    assert {t.shape[0] for key, t in encoded.tensors.items() if "lora_A" in key} == {7}


def test_leaving_out_the_alpha_pattern_would_be_wrong_without_an_error(tmp_path: Path):
    # Why the pattern is written twice: PEFT would scale by R / p and say nothing.
    update = random_update([3, 1, 7, 2])
    encoded = encode(update)
    broken = EncodedAdapter(dict(encoded.config) | {"alpha_pattern": {}}, encoded.tensors)
    model = loaded(tiny_llama(), written(broken, tmp_path / "out"))
    assert relative(logits(model), logits(dense(update))) > 0.1


def test_keys_carry_the_prefix_without_which_peft_loads_nothing(tmp_path: Path):
    update = random_update([2])
    encoded = encode(update)
    assert all(key.startswith("base_model.model.model.layers.") for key in encoded.tensors)
    stripped = {key.removeprefix("base_model.model."): tensor for key, tensor in encoded.tensors.items()}
    directory = written(EncodedAdapter(encoded.config, stripped), tmp_path / "stripped")
    with pytest.warns(UserWarning, match="missing adapter keys"):
        model = PeftModel.from_pretrained(tiny_llama(), directory).eval()
    assert torch.equal(logits(model), logits(tiny_llama()))


def test_rank_zero_becomes_a_module_that_adds_zero_and_can_be_trained(tmp_path: Path):
    update = random_update([0])
    directory = written(encode(update), tmp_path / "out")
    model = loaded(tiny_llama(), directory, is_trainable=True)
    assert torch.equal(logits(model), logits(tiny_llama()))
    model(TOKENS, labels=TOKENS).loss.backward()
    gradients = [p.grad for name, p in model.named_parameters() if "lora_B" in name]
    assert len(gradients) == 14
    assert all(g is not None and g.any() for g in gradients)


def test_an_adapter_goes_into_a_live_model():
    update = random_update([3, 1, 7, 2])
    encoded = encode(update, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_llama(), LoraConfig(**encoded.config)).eval()
    result = set_peft_model_state_dict(model, dict(encoded.tensors))
    assert not result.unexpected_keys
    assert relative(logits(model), logits(dense(update))) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_are_stored_as_asked(tmp_path: Path, dtype: torch.dtype):
    update = random_update([2, 3], dtype=torch.float64)
    encoded = encode(update, dtype=dtype)
    assert {tensor.dtype for tensor in encoded.tensors.values()} == {dtype}
    assert encoded.nbytes == sum(s.rank * sum(s.shape) for s in update.specs.values()) * dtype.itemsize
    adapter = open_adapter(written(encoded, tmp_path / "out")).adapter
    name = "model.layers.0.self_attn.q_proj"
    assert relative(adapter[name].delta_weight(), update[name].delta_weight()) < 4 * torch.finfo(dtype).eps


def test_the_file_names_its_framework(tmp_path: Path):
    directory = written(encode(random_update([2])), tmp_path / "out")
    with safe_open(directory / "adapter_model.safetensors", framework="pt") as handle:
        assert handle.metadata() == {"format": "pt"}
    assert sorted(path.name for path in directory.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_the_files_are_the_same_at_every_run(tmp_path: Path):
    first, second = (written(encode(random_update([3, 1])), tmp_path / name) for name in ("a", "b"))
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_values_that_are_not_finite_are_never_written(value: float):
    factor = LoraFactor(torch.full((4, 1), value), torch.ones(1, 3))
    with pytest.raises(NonFiniteUpdateError, match=r"NaN or infinity in base_model.model.a.lora_B.weight"):
        encode(AdapterState.of({"a": factor}))


def test_values_beyond_half_precision_are_refused():
    factor = LoraFactor(torch.full((4, 1), 1e6), torch.ones(1, 3))
    with pytest.raises(NonFiniteUpdateError, match=r"beyond the range of torch.float16 .*write bfloat16"):
        encode(AdapterState.of({"a": factor}), dtype=torch.float16)


def test_an_adapter_without_modules_is_refused():
    with pytest.raises(InvalidAdapterError, match="at least one module"):
        encode(AdapterState.of({}))


@pytest.mark.parametrize("layout", [AdapterLayout(), AdapterLayout(modules_to_save=("classifier", "score"))])
def test_a_classification_head_is_written_as_peft_does(tmp_path: Path, layout: AdapterLayout):
    torch.manual_seed(0)
    base = LlamaForSequenceClassification(tiny_llama().config).eval()
    head = torch.randn_like(base.score.weight)
    update = random_update([2, 3])
    encoded = encode(update, layout=layout, saved_parameters={"score.weight": head}, task_type="SEQ_CLS")
    assert "score" in encoded.config["modules_to_save"]
    model = loaded(base, written(encoded, tmp_path / "out"))
    found = model.base_model.model.score.modules_to_save["default"].weight  # type: ignore[union-attr]  # PEFT's wrapper
    assert torch.equal(found, head)
    assert not any(name.endswith("score.lora_A") for name in encoded.tensors)


def test_a_head_of_several_layers_is_named_once():
    parameters = {"classifier.dense.weight": torch.ones(2, 2), "classifier.out_proj.weight": torch.ones(2, 2)}
    encoded = encode(random_update([2]), saved_parameters=parameters, task_type="SEQ_CLS")
    assert encoded.config["modules_to_save"] == ["classifier"]
    with pytest.raises(InvalidAdapterError, match="'weight'"):
        encode(random_update([2]), saved_parameters={"weight": torch.ones(2)})


def test_a_module_whose_name_ends_another_gets_its_own_rank(tmp_path: Path):
    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(6, 6)
            self.tower = torch.nn.ModuleDict({"head": torch.nn.Linear(6, 6)})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.tower["head"](self.head(x))

    torch.manual_seed(0)
    base = Tower()
    factors = {
        "head": LoraFactor(torch.randn(6, 2), torch.randn(2, 6)),
        "tower.head": LoraFactor(torch.randn(6, 4), torch.randn(4, 6)),
    }
    encoded = encode(AdapterState.of(factors))
    assert encoded.config["rank_pattern"] == {"^head": 2}
    x = torch.randn(3, 6)
    with torch.no_grad():
        middle = base.head(x) + x @ factors["head"].delta_weight().T
        expected = base.tower["head"](middle) + middle @ factors["tower.head"].delta_weight().T
        found = loaded(base, written(encoded, tmp_path / "out"))(x)
    assert relative(found, expected) < 1e-5


@settings(max_examples=50)
@given(st.lists(st.integers(0, 5), min_size=14, max_size=14), st.sampled_from(EXPORTS))
def test_peft_resolves_every_written_rank(ranks: list[int], export: Export):
    update = random_update(ranks)
    encoded = encode(update, export=export)
    config = json.loads(json.dumps(encoded.config, sort_keys=True))
    for name, spec in update.specs.items():
        expected = encoded.tensors[f"base_model.model.{name}.lora_A.weight"].shape[0]
        found = config["rank_pattern"].get(get_pattern_key(config["rank_pattern"].keys(), name), config["r"])
        assert found == expected == (config["r"] if export is Export.UNIFORM else max(spec.rank, 1))
