from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from florist.checkpoint import encode, write_adapter
from florist.errors import ModelError
from florist.factors import AdapterState, LoraFactor
from florist.federation.local_init import FRESH_ROW_NORM
from florist.models.federated_model import FederatedModel, LocalLora
from florist.models.loading import load_causal_lm, load_classifier
from florist.rounds import NO_ADAPTER, Trained
from tests.builders import adapter, relative_error

IDS = torch.arange(5, 25).reshape(2, 10)


@pytest.fixture
def model(tiny_llama: Path) -> FederatedModel:
    return FederatedModel(load_causal_lm(str(tiny_llama), torch.float32), "all-linear", (), "CAUSAL_LM")


def logits(model: FederatedModel) -> torch.Tensor:
    model.peft.eval()
    with torch.inference_mode():
        return model.peft(input_ids=IDS).logits


def random_global(model: FederatedModel, seed: int = 0, rank: int = 3) -> AdapterState:
    held = adapter(rank, seed, shapes=model.shapes, dtype=torch.float32)
    return AdapterState.of({name: factor.scaled(0.05) for name, factor in held.items()})


def test_a_fresh_local_adapter_does_not_change_the_function(model: FederatedModel) -> None:
    model.set_global(random_global(model))
    before = logits(model)
    model.start_local(LocalLora(rank=4, alpha=8), NO_ADAPTER, seed=1, max_rank=8)
    assert torch.equal(logits(model), before)


def test_the_global_adapter_adds_its_dense_update(model: FederatedModel, tiny_llama: Path) -> None:
    held = random_global(model)
    model.set_global(held)
    dense = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float64)
    for name, factor in held.items():
        weight = dense.get_submodule(name).weight
        weight.data += factor.to(dtype=torch.float64).delta_weight()
    expected = dense(input_ids=IDS).logits
    assert relative_error(logits(model), expected) < 1e-5


def test_an_empty_global_adapter_is_the_base(model: FederatedModel, tiny_llama: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)(input_ids=IDS).logits
    assert torch.equal(logits(model), base)
    model.set_global(random_global(model))
    assert relative_error(logits(model), base) > 1e-3
    model.set_global(AdapterState.of({}))
    assert torch.equal(logits(model), base)


def test_a_global_adapter_without_components_changes_nothing(model: FederatedModel) -> None:
    # What a warm start leaves frozen where the client trains all of it.
    before = logits(model)
    model.set_global(random_global(model).map(lambda factor: factor.trailing(3)))
    assert torch.equal(logits(model), before)


def test_unlike_ranks_share_the_first_rows_of_one_random_start(model: FederatedModel) -> None:
    model.start_local(LocalLora(rank=8, alpha=16), NO_ADAPTER, seed=5, max_rank=8)
    large = model.read_local()
    model.start_local(LocalLora(rank=3, alpha=6), NO_ADAPTER, seed=5, max_rank=8)
    small = model.read_local()
    for name in large:
        assert torch.equal(small[name].A, large[name].A[:3])
        assert float(small[name].B.norm()) == 0.0
    model.start_local(LocalLora(rank=3, alpha=6), NO_ADAPTER, seed=6, max_rank=8)
    assert not torch.equal(model.read_local()["model.layers.0.mlp.up_proj"].A, small["model.layers.0.mlp.up_proj"].A)


@pytest.mark.parametrize(
    ("lora", "scaling"),
    [
        (LocalLora(rank=4, alpha=8), 2.0),
        (LocalLora(rank=4, alpha=6, use_rslora=True), 3.0),
        (LocalLora(rank=8, alpha=4), 0.5),
    ],
)
def test_reading_folds_in_the_scaling(model: FederatedModel, lora: LocalLora, scaling: float) -> None:
    model.start_local(lora, NO_ADAPTER, seed=0, max_rank=8)
    parameters = dict(model.peft.named_parameters())
    name = "model.layers.0.self_attn.q_proj"
    B = parameters[f"base_model.model.{name}.lora_B.local.weight"]
    with torch.no_grad():
        B.normal_(generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model.read_local()[name].B, B.detach() * scaling)


@pytest.mark.parametrize("lora", [LocalLora(rank=5, alpha=2.0), LocalLora(rank=8, alpha=6.0, use_rslora=True)])
def test_a_given_start_is_what_the_local_adapter_adds(model: FederatedModel, lora: LocalLora) -> None:
    given, frozen = random_global(model, seed=3), random_global(model, seed=4)
    model.set_global(frozen)
    model.start_local(lora, given, seed=5, max_rank=8)
    started, read = logits(model), model.read_local()
    model.start_local(lora, NO_ADAPTER, seed=5, max_rank=8)
    fresh = model.read_local()
    for name, factor in given.items():
        # The scaling of the client is divided out of B and folded in again.
        torch.testing.assert_close(read[name].B[:, :3], factor.B)
        assert torch.equal(read[name].A[:3], factor.A)
        # The rest is that of a fresh start: it changes nothing and can train.
        assert torch.equal(read[name].A[3:], fresh[name].A[3:])
        assert float(read[name].B[:, 3:].abs().max()) == 0.0
    stacked = {
        name: LoraFactor(torch.cat([factor.B, given[name].B], 1), torch.cat([factor.A, given[name].A]))
        for name, factor in frozen.items()
    }
    model.set_global(AdapterState.of(stacked))
    assert relative_error(logits(model), started) < 1e-5


def test_a_part_of_the_modules_may_be_given(model: FederatedModel) -> None:
    given = random_global(model)
    one = next(iter(given))
    model.start_local(LocalLora(rank=4, alpha=4), AdapterState.of({one: given[one]}), seed=0, max_rank=4)
    assert {name for name, factor in model.read_local().items() if factor.B.abs().max() > 0} == {one}


def test_fresh_rows_have_the_norm_that_aligned_ones_take(model: FederatedModel) -> None:
    model.start_local(LocalLora(rank=64, alpha=64), NO_ADAPTER, seed=0, max_rank=64)
    for factor in model.read_local().values():
        assert float(factor.A.square().sum(dim=1).mean().sqrt()) == pytest.approx(FRESH_ROW_NORM, rel=0.1)


def test_the_same_global_adapter_again_puts_the_local_one_aside(model: FederatedModel) -> None:
    held = random_global(model)
    model.set_global(held)
    before = logits(model)
    model.start_local(LocalLora(rank=2, alpha=4), random_global(model, seed=2, rank=2), seed=0, max_rank=2)
    assert relative_error(logits(model), before) > 1e-3
    model.set_global(held)
    assert torch.equal(logits(model), before)
    assert not any(parameter.requires_grad for parameter in model.peft.parameters())


def test_the_update_that_was_read_is_the_change_of_the_function(model: FederatedModel) -> None:
    model.set_global(random_global(model, seed=1))
    model.start_local(LocalLora(rank=4, alpha=6, use_rslora=True), NO_ADAPTER, seed=0, max_rank=4)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.peft.named_parameters():
            if ".lora_B.local." in name:
                parameter.normal_(std=0.05, generator=draw)
    trained = logits(model)
    local = model.read_local()
    both = {
        name: type(factor)(torch.cat([factor.B, local[name].B], 1), torch.cat([factor.A, local[name].A]))
        for name, factor in random_global(model, seed=1).items()
    }
    model.set_global(AdapterState.of(both))
    assert relative_error(logits(model), trained) < 1e-5


def test_only_the_local_adapter_is_trainable(model: FederatedModel) -> None:
    model.set_global(random_global(model))
    model.start_local(LocalLora(rank=2, alpha=4), NO_ADAPTER, seed=0, max_rank=2)
    trainable = [name for name, parameter in model.peft.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all(".local." in name for name in trainable)
    model.set_global(random_global(model))
    assert not any(parameter.requires_grad for parameter in model.peft.parameters())


def test_the_exported_global_adapter_gives_the_same_logits_through_peft(
    model: FederatedModel, tiny_llama: Path, tmp_path: Path
) -> None:
    held = random_global(model)
    model.set_global(held)
    write_adapter(tmp_path, encode(held, base_model=str(tiny_llama), task_type=model.task_type))
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path).eval()
    assert torch.equal(loaded(input_ids=IDS).logits, logits(model))


def test_a_head_is_trained_sent_and_put_back_whole(tiny_bert: Path) -> None:
    base, head = load_classifier(str(tiny_bert), torch.float32, ("a", "b", "c"), None, seed=0)
    model = FederatedModel(base, ["query", "value"], head, "SEQ_CLS")
    model.start_local(LocalLora(rank=2, alpha=4), NO_ADAPTER, seed=0, max_rank=2)
    assert model.saved_parameters.keys() == {"classifier.weight", "classifier.bias"}
    assert base.get_submodule("classifier").weight.requires_grad
    before = model.saved_parameters
    model.saved_parameters = {name: value + 1 for name, value in before.items()}
    assert torch.equal(model.saved_parameters["classifier.bias"], before["classifier.bias"] + 1)
    assert torch.equal(base.get_submodule("classifier").bias, before["classifier.bias"] + 1)


@pytest.mark.parametrize("target", [["c_attn"], ["q_proj", "v_prj"], ".*c_attn"])
def test_modules_that_the_model_does_not_have_are_refused_and_those_it_has_named(
    tiny_llama: Path, target: str | list[str]
) -> None:
    with pytest.raises(
        ModelError, match=r"target_modules = .*; the linear modules of this model are called q_proj, .*, down_proj, and"
    ):
        FederatedModel(load_causal_lm(str(tiny_llama), torch.float32), target, (), "CAUSAL_LM")


# --- what is trained


def of_llama(directory: Path, trained: Trained) -> FederatedModel:
    return FederatedModel(load_causal_lm(str(directory), torch.float32), "all-linear", (), "CAUSAL_LM", trained)


def trainable(model: FederatedModel) -> set[str]:
    return {name for name, parameter in model.peft.named_parameters() if parameter.requires_grad}


def test_where_one_half_is_trained_nothing_else_is(tiny_llama: Path) -> None:
    model = of_llama(tiny_llama, Trained.B)
    model.start_local(LocalLora(rank=2, alpha=4), NO_ADAPTER, seed=0, max_rank=2)
    assert len(trainable(model)) == len(model.shapes)
    assert all(".lora_B.local." in name for name in trainable(model))


def with_moved_weights(model: FederatedModel) -> torch.Tensor:
    """Logits after a training that moved every targeted weight."""
    model.set_global(NO_ADAPTER)
    model.start_local(LocalLora(rank=2, alpha=4), NO_ADAPTER, seed=0, max_rank=2)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.peft.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.02)
    return logits(model)


def test_whole_weights_train_without_adapters_and_are_delivered_as_one(tiny_llama: Path, tmp_path: Path) -> None:
    model = of_llama(tiny_llama, Trained.WEIGHTS)
    pristine = logits(model)
    trained = with_moved_weights(model)
    assert len(trainable(model)) == len(model.shapes)
    assert all(name.endswith(".base_layer.weight") for name in trainable(model))
    assert not model.read_local()
    values = model.saved_parameters
    assert {name: tuple(value.shape) for name, value in values.items()} == {
        f"{module}.weight": shape for module, shape in model.shapes.items()
    }
    adapter, heads = model.deliverable(NO_ADAPTER, values)
    assert not heads
    write_adapter(tmp_path, encode(adapter, base_model=str(tiny_llama), task_type=model.task_type))
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path).eval()
    assert relative_error(trained, pristine) > 1e-2
    assert relative_error(loaded(input_ids=IDS).logits.detach(), trained) < 1e-5


def test_transposed_weights_are_delivered_in_the_orientation_of_the_factors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1)
    ).save_pretrained(tmp_path / "gpt2")
    base = load_causal_lm(str(tmp_path / "gpt2"), torch.float32)
    model = FederatedModel(base, ["c_attn"], (), "CAUSAL_LM", Trained.WEIGHTS)
    trained = with_moved_weights(model)
    adapter, _ = model.deliverable(NO_ADAPTER, model.saved_parameters)
    assert {factor.spec.shape for factor in adapter.values()} == {(48, 16)}
    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", encode(adapter, base_model="gpt2", task_type=model.task_type))
    fresh = load_causal_lm(str(tmp_path / "gpt2"), torch.float32)
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    assert relative_error(loaded(input_ids=IDS).logits.detach(), trained) < 1e-5


def test_a_head_beside_whole_weights_stays_a_head(tiny_bert: Path) -> None:
    base, head = load_classifier(str(tiny_bert), torch.float32, ("a", "b"), None, seed=0)
    model = FederatedModel(base, ["query"], head, "SEQ_CLS", Trained.WEIGHTS)
    adapter, heads = model.deliverable(NO_ADAPTER, model.saved_parameters)
    assert heads.keys() == {"classifier.weight", "classifier.bias"}
    assert adapter.keys() == model.shapes.keys()
    assert adapter.total_rank == 0  # nothing has moved


def test_whole_weights_that_another_module_shares_are_refused() -> None:
    tied = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=16,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            tie_word_embeddings=True,
        )
    )
    with pytest.raises(ModelError, match=r"lm_head: expected a weight matrix of its own .* leave the module out"):
        FederatedModel(tied, ["lm_head"], (), "CAUSAL_LM", Trained.WEIGHTS)
