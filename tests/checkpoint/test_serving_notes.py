import pytest
import torch

from florist.checkpoint import Export, encode, serving_notes
from florist.factors import AdapterState, LoraFactor


def adapter(*ranks: int) -> AdapterState:
    return AdapterState.of(
        {f"m{i}": LoraFactor(torch.ones(4, rank), torch.ones(rank, 4)) for i, rank in enumerate(ranks)}
    )


def test_unlike_ranks_are_for_peft():
    (note,) = serving_notes(encode(adapter(3, 5)))
    assert "--export uniform" in note


@pytest.mark.parametrize("ranks", [(8, 8), (16,), (1, 0)])
def test_what_every_server_takes_needs_no_note(ranks: tuple[int, ...]):
    assert serving_notes(encode(adapter(*ranks))) == ()


def test_uniform_ranks_need_no_note():
    assert serving_notes(encode(adapter(3, 5), export=Export.UNIFORM)) == ()


@pytest.mark.parametrize(("rank", "allowed"), [(17, 32), (64, 64), (257, 320), (512, 512)])
def test_ranks_above_the_default_of_vllm_name_its_option(rank: int, allowed: int):
    assert serving_notes(encode(adapter(rank))) == (f"vLLM needs --max-lora-rank {allowed}; its default is 16",)


def test_ranks_beyond_vllm_are_named():
    assert serving_notes(encode(adapter(513))) == ("rank 513 is above vLLM's largest, 512; set --max-rank",)
