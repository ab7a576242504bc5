"""A budget holds the file that is written, whatever lies in it beside the directions."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from florist.aggregation import Florist
from florist.errors import ConfigurationError
from florist.one_shot import AggregatedAdapter, FileBudget, Inputs, combine, open_inputs
from florist.ranks import ByteBudget, Capped, EnergyThreshold, RankRule
from tests.checkpoint.adapters import saved, tiny_llama, trained
from tests.checkpoint.moe import tiny_qwen3_moe

from .sites import Site

WEIGHTS = "adapter_model.safetensors"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def within(
    inputs: Inputs, nbytes: int, dtype: torch.dtype = torch.float32, max_rank: int | None = None
) -> AggregatedAdapter:
    def rule(left: int) -> RankRule:
        inner = ByteBudget(left, dtype.itemsize)
        return Capped(inner, max_rank) if max_rank is not None else inner

    return combine(inputs, Florist(FileBudget(nbytes, rule, inputs, dtype)))


def size(result: AggregatedAdapter, out: Path, nbytes: int, dtype: torch.dtype = torch.float32) -> int:
    result.write(out, dtype=dtype, max_bytes=nbytes)
    return (out / WEIGHTS).stat().st_size


def spread(path: Path, seed: int) -> Path:
    """An adapter of many modules with unlike spectra, so that a budget has something to choose."""
    draw = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(12):
        for name, (m, n) in {"q_proj": (24, 30), "down_proj": (30, 17)}.items():
            stem = f"base_model.model.layers.{layer}.{name}"
            strength = torch.logspace(0, -1 - layer / 4, 8).unsqueeze(1)
            tensors[f"{stem}.lora_A.weight"] = torch.randn(8, n, generator=draw) * strength
            tensors[f"{stem}.lora_B.weight"] = torch.randn(m, 8, generator=draw)
    path.mkdir()
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
    (path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, path / WEIGHTS)
    return path


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("linear")
    return open_inputs([spread(folder / str(seed), seed) for seed in range(3)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "nbytes", [11_000, 12_345, *(pytest.param(each, marks=pytest.mark.slow) for each in (20_000, 33_333, 47_000))]
)
@pytest.mark.quick(2)
def test_the_file_is_never_larger_and_leaves_little_more_than_a_direction(
    linear: Inputs, tmp_path: Path, nbytes: int, dtype: torch.dtype
) -> None:
    written = size(within(linear, nbytes, dtype), tmp_path / "out", nbytes, dtype)
    # A direction of the largest module, and a longer number in every entry of the header.
    assert nbytes - (24 + 30) * dtype.itemsize - 200 < written <= nbytes


@pytest.mark.slow
def test_a_budget_for_everything_cuts_nothing(linear: Inputs, tmp_path: Path) -> None:
    whole, all_of_it = combine(linear, Florist(EnergyThreshold(1.0))), within(linear, 10**9)
    assert all_of_it.certificate.total_rank == whole.certificate.total_rank
    exact = size(whole, tmp_path / "whole", 10**9)
    assert within(linear, exact).certificate.total_rank == whole.certificate.total_rank
    assert within(linear, exact - 1).certificate.total_rank < whole.certificate.total_rank


def test_a_cap_holds_within_the_budget(linear: Inputs, tmp_path: Path) -> None:
    result = within(linear, 60_000, max_rank=3)
    assert max(module.rank for module in result.certificate.modules.values()) == 3
    assert size(result, tmp_path / "out", 60_000) <= 60_000


def headed(path: Path, seed: int, base: PreTrainedModel, **changes: object) -> Path:
    return saved(trained(base, LoraConfig(**{"r": 4, "target_modules": ["q_proj"]} | changes), seed), path)


KINDS: Mapping[str, dict[str, object]] = {
    "a saved module": {"modules_to_save": ["lm_head"]},
    "output biases": {"lora_bias": True},
    "token rows": {"trainable_token_indices": [1, 3]},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_lies_beside_the_factors_is_counted(tmp_path: Path, kind: dict[str, object]) -> None:
    paths = [headed(tmp_path / str(seed), seed, tiny_llama(), **kind) for seed in (1, 2)]
    inputs = open_inputs(paths, average_full=True)
    whole = size(combine(inputs, Florist(ByteBudget(10**9))), tmp_path / "whole", 10**9)
    small = size(within(inputs, whole - 1000), tmp_path / "small", whole - 1000)
    assert whole - 2000 < small <= whole - 1000


@pytest.mark.parametrize("share", [0.45, 0.6, 0.8, 1.0])
@pytest.mark.quick(1)
def test_experts_that_share_a_rank_are_counted_as_they_are_stored(tmp_path: Path, share: float) -> None:
    targets = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    paths = [headed(tmp_path / str(seed), seed, tiny_qwen3_moe(), **targets) for seed in (1, 2)]
    inputs = open_inputs(paths)
    whole = size(combine(inputs, Florist(ByteBudget(10**9))), tmp_path / "whole", 10**9)
    nbytes = int(whole * share)
    result = within(inputs, nbytes)
    written = size(result, tmp_path / "out", nbytes)
    assert 0.85 * nbytes < written <= nbytes
    # What a group is padded to anyway holds directions: of one layer's experts, all have one rank.
    for layer in range(2):
        stem = f"model.layers.{layer}.mlp.experts"
        ranks = {m.rank for name, m in result.certificate.modules.items() if name.startswith(stem)}
        assert len(ranks) == 1


def test_a_module_without_an_update_takes_its_bytes(tmp_path: Path) -> None:
    paths = [spread(tmp_path / str(seed), seed) for seed in range(2)]
    for path in paths:
        adapter = open_inputs([path]).saved[0].adapter
        idle = {f"base_model.model.{name}.lora_B.weight" for name in list(adapter)[::2]}
        tensors = load_file(path / WEIGHTS)
        save_file({key: t * 0 if key in idle else t for key, t in tensors.items()}, path / WEIGHTS)
    inputs = open_inputs(paths)
    for nbytes in (15_000, 25_000):
        assert size(within(inputs, nbytes), tmp_path / str(nbytes), nbytes) <= nbytes


def test_a_budget_that_is_too_small_is_refused_with_the_smallest_that_is_not(linear: Inputs, tmp_path: Path) -> None:
    expected = r"rank 1 in each of the 24 modules, a file of (\d+) bytes .*, got 5000"
    with pytest.raises(ConfigurationError, match=expected) as caught:
        within(linear, 5000)
    match = re.search(expected, str(caught.value))
    assert match is not None
    smallest = int(match[1])
    assert size(within(linear, smallest), tmp_path / "out", smallest) == smallest
    with pytest.raises(ConfigurationError, match=f"a file of {smallest} bytes"):
        within(linear, smallest - 1)


def test_write_counts_the_file(tmp_path: Path) -> None:
    inputs = open_inputs([Site(3, 6, seed=seed).save(tmp_path / str(seed)) for seed in range(2)])
    result = combine(inputs, Florist(ByteBudget(10**9)))
    exact = size(result, tmp_path / "one", 10**9)
    assert size(result, tmp_path / "two", exact) == exact
    with pytest.raises(ConfigurationError, match=rf"expected a file of at most {exact - 1} bytes, got {exact}"):
        result.write(tmp_path / "three", max_bytes=exact - 1)
