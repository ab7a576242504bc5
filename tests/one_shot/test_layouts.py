"""Whatever PEFT can store: the aggregate of two clients against the mean of the two models that PEFT itself merges."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, PeftModel
from torch import nn

from florist.checkpoint import Export
from florist.one_shot import aggregate
from florist.ranks import EnergyThreshold
from tests.checkpoint.adapters import LINEARS, loaded, logits, relative, saved, tiny_llama, trained
from tests.checkpoint.test_layouts import CASES

ALL_CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "linear": (tiny_llama, {"target_modules": LINEARS}),
    "patterns": (
        tiny_llama,
        {"target_modules": LINEARS, "rank_pattern": {"q_proj": 5}, "alpha_pattern": {r"layers\.1\..*": 3}},
    ),
    "gaussian start": (tiny_llama, {"target_modules": LINEARS, "init_lora_weights": "gaussian"}),
    "orthogonal start": (tiny_llama, {"target_modules": ["q_proj"], "r": 2, "init_lora_weights": "orthogonal"}),
    "rank as large as the module": (tiny_llama, {"target_modules": ["q_proj", "k_proj"], "r": 32}),
} | CASES
CLIENTS = ({}, {"r": 4, "lora_alpha": 9, "use_rslora": True})


def merged_mean(base: nn.Module, models: Sequence[PeftModel], shares: Sequence[float]) -> nn.Module:
    """The oracle: the same model with the weighted mean of the weights that PEFT merges."""
    states = [model.merge_and_unload().state_dict() for model in models]
    base.load_state_dict(
        {key: sum(share * state[key] for share, state in zip(shares, states, strict=True)) for key in states[0]}
    )
    return base


@pytest.mark.parametrize("export", Export)
@pytest.mark.parametrize("name", ALL_CASES)
def test_two_unlike_clients_make_the_mean_of_the_merged_models(name: str, export: Export, tmp_path: Path) -> None:
    base, settings = ALL_CASES[name]
    models = [
        trained(base(), LoraConfig(**{"r": 3, "lora_alpha": 8} | settings | own), seed)
        for seed, own in enumerate(CLIENTS)
    ]
    paths = [saved(model, tmp_path / str(number)) for number, model in enumerate(models)]
    merged = aggregate(paths, rank_rule=EnergyThreshold(1.0), num_examples=[3, 1], average_full=True)
    merged.write(tmp_path / "out", export=export)
    found = logits(loaded(base(), tmp_path / "out"))
    expected = logits(merged_mean(base(), models, [0.75, 0.25]))
    assert relative(found, expected) < 1e-5
    assert relative(logits(base()), expected) > 0.01  # the update matters


@pytest.mark.parametrize(
    "name", ["linear", "convolutions", "output bias", "token rows", "a head", "experts, unlike ranks"]
)
@pytest.mark.quick(1)
def test_an_aggregate_may_be_aggregated_again_whatever_it_holds(name: str, tmp_path: Path) -> None:
    base, settings = ALL_CASES[name]
    models = [trained(base(), LoraConfig(**{"r": 3, "lora_alpha": 8} | settings), seed) for seed in range(3)]
    paths = [saved(model, tmp_path / str(number)) for number, model in enumerate(models)]
    exact = EnergyThreshold(1.0)
    for out, parts, counts in (
        ("edge", paths[:2], [3, 1]),
        ("other", paths[2:], [4]),
        ("all", [tmp_path / "edge", tmp_path / "other"], None),
    ):
        aggregate(parts, rank_rule=exact, num_examples=counts, average_full=True).write(tmp_path / out)
    found = logits(loaded(base(), tmp_path / "all"))
    expected = logits(merged_mean(base(), models, [3 / 8, 1 / 8, 1 / 2]))
    assert relative(found, expected) < 1e-5
