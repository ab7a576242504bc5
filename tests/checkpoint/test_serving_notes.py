import pytest
import torch

from florist.checkpoint import EncodedAdapter, Export, encode, serving_notes
from florist.errors import ConfigurationError
from florist.factors import AdapterState, LoraFactor


def adapter(*ranks: int) -> AdapterState:
    return AdapterState.of(
        {f"m{i}": LoraFactor(torch.ones(4, rank), torch.ones(rank, 4)) for i, rank in enumerate(ranks)}
    )


def stored_ranks(encoded: EncodedAdapter) -> set[int]:
    return {tensor.shape[0] for key, tensor in encoded.tensors.items() if "lora_A" in key}


def test_unlike_ranks_are_for_peft_and_vllm():
    (note,) = serving_notes(encode(adapter(3, 5)))
    assert "PEFT, transformers and vLLM read right" in note
    assert "--export uniform" in note


@pytest.mark.parametrize("ranks", [(8, 8), (16,)])
def test_what_every_server_takes_needs_no_note(ranks: tuple[int, ...]):
    assert serving_notes(encode(adapter(*ranks))) == ()


@pytest.mark.parametrize(("ranks", "padded"), [((1, 0), 8), ((3, 5), 8), ((9,), 16), ((17, 2), 32), ((40,), 48)])
def test_a_rank_that_tgi_pads_itself_is_named_with_the_one_to_pad_to(ranks: tuple[int, ...], padded: int):
    encoded = encode(adapter(*ranks), export=Export.UNIFORM)
    note = next(note for note in serving_notes(encoded) if "TGI" in note)
    assert f"--pad-rank-to {padded}" in note
    again = encode(adapter(*ranks), export=Export.UNIFORM, pad_rank_to=padded)
    assert stored_ranks(again) == {padded}
    assert not any("TGI" in note for note in serving_notes(again))


@pytest.mark.parametrize(("rank", "allowed"), [(32, 32), (64, 64), (272, 320), (512, 512)])
def test_ranks_above_the_default_of_vllm_name_its_option(rank: int, allowed: int):
    assert serving_notes(encode(adapter(rank))) == (f"vLLM needs --max-lora-rank {allowed}; its default is 16",)


def test_the_rank_that_vllm_needs_is_the_largest_of_any_module():
    experts = {f"experts.{e}.w1": LoraFactor(torch.ones(4, 2), torch.ones(2, 4)) for e in range(2)}
    notes = serving_notes(encode(AdapterState.of({**experts, **adapter(40)})))
    assert any("vLLM needs --max-lora-rank 64" in note for note in notes)


def test_ranks_beyond_vllm_are_named():
    assert serving_notes(encode(adapter(528))) == ("rank 528 is above vLLM's largest, 512; set --max-rank",)


def test_what_vllm_refuses_beside_the_factors_is_named():
    one = adapter(8)
    head = {"score.weight": torch.ones(2, 4)}
    assert serving_notes(encode(one, saved_parameters=head)) == ()
    both = serving_notes(encode(one, saved_parameters={"lm_head.weight": torch.ones(2, 4), **head}))
    assert both == (
        "vLLM refuses the saved modules of this adapter (lm_head): it takes no others than classifier and score",
    )
    (note,) = serving_notes(encode(one, saved_parameters={"m0.bias": torch.ones(4)}))
    assert note.startswith("vLLM refuses this adapter because it brings biases of the base model (bias = 'lora_only')")
    (note,) = serving_notes(encode(one, additive={"m0": torch.ones(4)}))
    assert note.startswith("vLLM refuses this adapter because its lora_B has biases (lora_bias)")


def test_padding_adds_components_that_are_zero():
    update = adapter(3, 5)
    encoded = encode(update, export=Export.UNIFORM, pad_rank_to=16)
    assert encoded.config["r"] == encoded.config["lora_alpha"] == 16
    assert encoded.config["rank_pattern"] == {}
    for name, factor in update.items():
        A, B = (encoded.tensors[f"base_model.model.{name}.lora_{half}.weight"] for half in "AB")
        assert torch.equal(A[: factor.rank], factor.A)
        assert not A[factor.rank :].any()
        assert not B[:, factor.rank :].any()


@pytest.mark.parametrize(
    ("export", "rank", "message"),
    [
        (Export.UNIFORM, 4, r"pad_rank_to to be at least the largest rank, 5, got 4; .*smaller max_rank"),
        (Export.PER_MODULE, 8, r"pad_rank_to goes with export uniform, got per-module"),
    ],
)
def test_a_rank_that_cannot_be_padded_to_is_refused(export: Export, rank: int, message: str):
    with pytest.raises(ConfigurationError, match=message):
        encode(adapter(3, 5), export=export, pad_rank_to=rank)
