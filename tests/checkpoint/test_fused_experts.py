"""Experts that older transformers kept in linear modules of their own, and that PEFT stacks when it loads them now."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel

from florist.checkpoint import Export, encode, open_adapter, stored_bytes
from florist.factors import AdapterState, LoraFactor

from .adapters import deltas, loaded, saved, trained, written
from .moe import tiny_mixtral, tiny_qwen3_moe

HIDDEN, INTERMEDIATE, EXPERTS = 16, 12, 3


class OldExpert(nn.Module):
    """One expert, with the names that its three linear modules had in transformers 4."""

    def __init__(self, up: str, gate: str, down: str) -> None:
        super().__init__()
        for name, outs, ins in ((up, INTERMEDIATE, HIDDEN), (gate, INTERMEDIATE, HIDDEN), (down, HIDDEN, INTERMEDIATE)):
            self.add_module(name, nn.Linear(ins, outs, bias=False))


class Old(nn.Module):
    """The modules of one of the tiny mixtures that matter here, as transformers 4 named them; it computes nothing."""

    def __init__(self, block: str, expert: tuple[str, str, str]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            mixture = nn.ModuleDict(
                {
                    "gate": nn.Linear(HIDDEN, EXPERTS, bias=False),
                    "experts": nn.ModuleList(OldExpert(*expert) for _ in range(EXPERTS)),
                }
            )
            attention = nn.ModuleDict({"q_proj": nn.Linear(HIDDEN, 16, bias=False)})
            layers.append(nn.ModuleDict({"self_attn": attention, block: mixture}))
        self.model = nn.ModuleDict({"layers": nn.ModuleList(layers)})


Family = tuple[Callable[[], PreTrainedModel], str, tuple[str, str, str]]
"""The model as it is now; the block's old name; the old names of an expert's up, gate and down projections."""

FAMILIES: dict[str, Family] = {
    "mixtral": (tiny_mixtral, "block_sparse_moe", ("w3", "w1", "w2")),
    "qwen": (tiny_qwen3_moe, "mlp", ("up_proj", "gate_proj", "down_proj")),
}
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def client(family: Family, directory: Path, *, gate: bool = True) -> Path:
    _, block, expert = family
    targets = ["q_proj", *expert, *(["gate"] if gate else [])]
    return saved(trained(Old(block, expert), LoraConfig(r=3, lora_alpha=6, target_modules=targets), seed=1), directory)


def cut(adapter: AdapterState, ranks: dict[str, int]) -> AdapterState:
    """Unlike ranks, as an aggregation leaves them: those given by the end of a name, else 0, 1 and 2 in turn."""
    kept: dict[str, LoraFactor] = {}
    for index, (name, factor) in enumerate(adapter.items()):
        rank = next((rank for end, rank in ranks.items() if name.endswith(end)), index % 3)
        kept[name] = factor.padded(rank).leading(rank)
    return AdapterState.of(kept)


def stacked(adapter: AdapterState, family: Family, layer: int) -> dict[str, torch.Tensor]:
    """What PEFT should compute after it has stacked the experts of a layer."""
    _, block, (up, gate, down) = family
    stem = f"model.layers.{layer}.{block}.experts"
    dense = {name: factor.delta_weight() for name, factor in adapter.items()}
    return {
        f"model.layers.{layer}.mlp.experts": torch.stack([dense[f"{stem}.{e}.{down}"] for e in range(EXPERTS)]),
        f"model.layers.{layer}.mlp.experts.base_layer": torch.stack(
            [torch.cat([dense[f"{stem}.{e}.{gate}"], dense[f"{stem}.{e}.{up}"]]) for e in range(EXPERTS)]
        ),
        f"model.layers.{layer}.mlp.gate": dense[f"model.layers.{layer}.{block}.gate"],
        f"model.layers.{layer}.self_attn.q_proj": dense[f"model.layers.{layer}.self_attn.q_proj"],
    }


@every_family
@pytest.mark.parametrize("export", Export)
@pytest.mark.parametrize("attention", [1, 7], ids=["attention below", "attention above"])
def test_peft_loads_experts_of_unlike_ranks(tmp_path: Path, family: Family, export: Export, attention: int) -> None:
    source = open_adapter(client(family, tmp_path / "in"))
    adapter = cut(source.adapter, {"q_proj": attention})
    directory = written(encode(adapter, layout=source.layout, export=export), tmp_path / "out")
    found = deltas(loaded(family[0](), directory))
    expected = {**stacked(adapter, family, 0), **stacked(adapter, family, 1)}
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        torch.testing.assert_close(found[name].reshape(delta.shape), delta)


@every_family
def test_peft_saves_the_stacked_experts_again(tmp_path: Path, family: Family) -> None:
    source = open_adapter(client(family, tmp_path / "in", gate=False))
    adapter = cut(source.adapter, {"q_proj": 5})
    model = loaded(family[0](), written(encode(adapter, layout=source.layout), tmp_path / "out"))
    again = loaded(family[0](), saved(model, tmp_path / "again"))
    expected = deltas(model)
    found = deltas(again)
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        torch.testing.assert_close(found[name], delta)


@every_family
def test_padding_stays_within_the_stacked_modules(tmp_path: Path, family: Family) -> None:
    source = open_adapter(client(family, tmp_path / "in"))
    adapter = cut(source.adapter, {"layers.0.self_attn.q_proj": 1, "layers.1.self_attn.q_proj": 7})
    encoded = encode(adapter, layout=source.layout)
    ranks = {key: t.shape[0] for key, t in encoded.tensors.items() if key.endswith("lora_A.weight")}
    attention = {key: rank for key, rank in ranks.items() if "q_proj" in key}
    assert sorted(attention.values()) == [1, 7]
    assert {rank for key, rank in ranks.items() if key not in attention} == {2}  # the largest of theirs
    again = open_adapter(written(encoded, tmp_path / "out")).adapter  # PEFT with transformers 4 reads the old names
    for name, factor in adapter.items():
        torch.testing.assert_close(again[name].delta_weight(), factor.delta_weight())
    shapes = {name: spec.shape for name, spec in adapter.specs.items()}
    bytes_of_ranks = stored_bytes(shapes, {name: spec.rank for name, spec in adapter.specs.items()})
    assert encoded.nbytes == bytes_of_ranks


def test_linear_modules_that_nothing_stacks_keep_their_ranks() -> None:
    # A dense feed-forward block, shared experts, and a list of modules that are no experts.
    names = ("mlp.gate_proj", "mlp.shared_expert.up_proj", "towers.1.w1", "my_experts.1.w1", "experts.1.w12", "a.gate")
    adapter = AdapterState.of(
        {f"layers.0.{name}": LoraFactor(torch.ones(4, rank), torch.ones(rank, 4)) for rank, name in enumerate(names, 1)}
    )
    ranks = [t.shape[0] for key, t in encode(adapter).tensors.items() if key.endswith("lora_A.weight")]
    assert sorted(ranks) == [1, 2, 3, 4, 5, 6]
