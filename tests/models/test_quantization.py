import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from florist.errors import FloristError, MissingDependencyError, UnsupportedHardwareError
from florist.models.quantization import prepared, quantization_config, quantized_loading

has_bitsandbytes = importlib.util.find_spec("bitsandbytes") is not None


@pytest.mark.skipif(has_bitsandbytes and torch.cuda.is_available(), reason="nothing is missing here")
def test_what_quantization_needs_is_told() -> None:
    with pytest.raises(FloristError, match=r"model\.quantization = '4bit'.* a CUDA device") as held:
        quantized_loading("4bit", torch.bfloat16)
    missing = UnsupportedHardwareError if has_bitsandbytes else MissingDependencyError
    assert isinstance(held.value, missing)
    assert has_bitsandbytes or "pip install bitsandbytes" in str(held.value)


def test_four_bits_are_nf4_computed_in_the_models_dtype() -> None:
    found = quantization_config("4bit", torch.bfloat16)
    assert found.load_in_4bit
    assert (found.bnb_4bit_quant_type, found.bnb_4bit_compute_dtype) == ("nf4", torch.bfloat16)
    assert quantization_config("8bit", torch.bfloat16).load_in_8bit


def test_preparing_changes_no_value(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = prepared(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in found.state_dict().items())
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert not found.is_gradient_checkpointing


@pytest.mark.slow
@pytest.mark.skipif(not (has_bitsandbytes and torch.cuda.is_available()), reason="needs bitsandbytes and a CUDA device")
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantized_base_trains_adapters_and_stays_as_it_is(tiny_llama: Path, bits: str) -> None:
    from florist.models.federated_model import FederatedModel, LocalLora
    from florist.models.loading import load_causal_lm

    base = prepared(load_causal_lm(str(tiny_llama), torch.bfloat16, **quantized_loading(bits, torch.bfloat16)))
    before = {name: parameter.detach().clone() for name, parameter in base.named_parameters()}
    model = FederatedModel(base, "all-linear", (), "CAUSAL_LM")
    assert model.shapes["model.layers.0.mlp.up_proj"] == (48, 32)
    model.start_local(LocalLora(4, 8.0), seed=0, max_rank=4)
    ids = torch.randint(3, 60, (2, 9), device="cuda")
    model.peft(input_ids=ids, labels=ids).loss.backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.peft.parameters())
    after = {name.replace(".base_layer", ""): p for name, p in model.peft.get_base_model().named_parameters()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
