import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig

from florist.checkpoint.experts import (
    ExpertPair,
    adapted_parameters,
    base_module,
    join_experts,
    resolve_pairs,
    split_expert,
)
from florist.checkpoint.keys import ModuleKeys
from florist.checkpoint.modules import stored_modules
from florist.checkpoint.patterns import ModulePattern
from florist.checkpoint.settings import LoraSettings
from florist.checkpoint.tensor_file import StoredTensor, TensorFile
from florist.checkpoint.unchanged_file import UnchangedFile
from florist.errors import InvalidAdapterError, UnsupportedAdapterError
from florist.factors import LoraFactor


def settings(**config: Any) -> LoraSettings:
    return LoraSettings(
        config=config,
        sha256="",
        rank=config.get("r", 2),
        alpha=config.get("lora_alpha", 2.0),
        use_rslora=False,
        ranks=ModulePattern.of(config.get("rank_pattern", {})),
        alphas=ModulePattern.of(config.get("alpha_pattern", {})),
        modules_to_save=(),
        target_parameters=tuple(config.get("target_parameters", ())),
        trainable_token_indices=None,
    )


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
def test_experts_split_and_join_as_peft_multiplies_them(experts: int, rank: int, outs: int, ins: int):
    torch.manual_seed(0)
    A, B = torch.randn(experts * rank, ins), torch.randn(outs, rank * experts)
    # The expression of PEFT's ParamWrapper.get_delta_weight.
    expected = torch.einsum("o r e, e r i -> e o i", B.reshape(outs, rank, experts), A.reshape(experts, rank, ins))
    pair = ExpertPair(experts, rank, scaling=1.0)
    factors = []
    for expert in range(experts):
        A_e, B_e = split_expert(A, B, pair, expert)
        torch.testing.assert_close(B_e @ A_e, expected[expert])
        factors.append(LoraFactor(B_e, A_e))
    joined = join_experts(factors)
    assert torch.equal(joined.A, A)
    assert torch.equal(joined.B, B)


def ranks(own: LoraSettings, *parameters: str) -> dict[str, tuple[int, float]]:
    return own.resolve([f"m.{parameter}" for parameter in parameters])


def test_a_stored_pair_is_read_once_for_all_of_its_experts():
    draw = torch.Generator().manual_seed(0)
    held = {
        f"{stored}.{half}": torch.randn(shape, generator=draw)
        for stored in ("m", "m.base_layer")
        for half, shape in (("A", (2 * 9, 5)), ("B", (7, 2 * 9)))
    }
    reads: list[str] = []

    def read(key: str) -> torch.Tensor:
        reads.append(key)
        return held[key]

    file = TensorFile(
        UnchangedFile(Path("file"), ()), {k: StoredTensor(tuple(t.shape), t.dtype) for k, t in held.items()}, read
    )
    keys = {stored: ModuleKeys(f"{stored}.A", f"{stored}.B", None, embedding=False) for stored in ("m", "m.base_layer")}
    modules = stored_modules(file, settings(target_parameters=["m.up", "m.down"], lora_alpha=6.0), keys)
    assert len(modules) == 2 * 9
    for name, module in modules.items():
        stored, _, expert = name.removesuffix("]").partition("[")
        A, B = split_expert(held[f"{stored}.A"], held[f"{stored}.B"], ExpertPair(9, 2, 3.0), int(expert))
        factor = module.read()
        assert torch.equal(factor.A, A)
        assert torch.equal(factor.B, 3 * B)
    assert sorted(reads) == sorted(held)


def test_a_parameter_is_named_by_the_end_of_its_path():
    named = settings(
        target_modules=["q_proj"], target_parameters=["mlp.experts.up", "experts.down", "gate", "p.experts.x"]
    )
    modules = ["layers.0.mlp.experts", "layers.0.mlp.q_proj", "layers.0.other"]
    assert adapted_parameters(named, modules) == {modules[0]: ("up", "down", "gate"), modules[2]: ("gate",)}
    assert adapted_parameters(settings(), modules) == {}


def test_an_expression_that_settles_nothing_is_not_matched():
    # Python's `re` takes time exponential in the length of this name, and has no limit of its own.
    hostile = settings(target_modules="(a+)+")
    started = time.perf_counter()
    assert adapted_parameters(hostile, ["a" * 26 + "!"]) == {}
    assert time.perf_counter() - started < 0.5


def test_base_layers_at_the_end_are_nesting():
    assert base_module("a.experts.base_layer.base_layer") == "a.experts"
    assert base_module("a.base_layer.b") == "a.base_layer.b"


def test_unlike_ranks_are_told_apart_by_the_number_of_experts():
    own = settings(r=2, rank_pattern={"up": 6}, alpha_pattern={"up": 3})
    pairs = resolve_pairs(ranks(own, "down", "up"), "m", ("down", "up"), {"m": 8, "m.base_layer": 24})
    assert pairs == {"m": ExpertPair(4, 2, 1.0), "m.base_layer": ExpertPair(4, 6, 0.5)}


def test_a_parameter_that_the_module_lacks_does_not_matter():
    own = settings(r=2, rank_pattern={"up": 6})
    assert resolve_pairs(ranks(own, "down", "gate"), "m", ("down", "gate"), {"m": 8}) == {"m": ExpertPair(4, 2, 1.0)}


@pytest.mark.parametrize(
    ("own", "rows"),
    [
        (settings(r=2, alpha_pattern={"up": 5}), {"m": 8, "m.base_layer": 8}),
        (settings(r=2, rank_pattern={"up": 4}), {"m": 8}),
    ],
)
def test_what_shapes_cannot_tell_apart_is_refused(own: LoraSettings, rows: dict[str, int]):
    with pytest.raises(UnsupportedAdapterError, match="down, up of m have unlike ranks or alphas"):
        resolve_pairs(ranks(own, "down", "up"), "m", ("down", "up"), rows)


@pytest.mark.parametrize(
    "rows", [{"m": 7}, {"m": 8, "m.base_layer": 10}, {"m": 8, "m.base_layer": 8, "m.base_layer.base_layer": 8}]
)
def test_rows_that_fit_no_rank_are_refused(rows: dict[str, int]):
    with pytest.raises(
        InvalidAdapterError, match=r"expected lora_A of m to have E r rows with the config's ranks \[2, 2\]"
    ):
        resolve_pairs(ranks(settings(r=2), "down", "up"), "m", ("down", "up"), rows)


def test_a_config_that_names_very_many_parameters_is_refused():
    with pytest.raises(UnsupportedAdapterError, match="at most 6"):
        resolve_pairs(ranks(settings(r=2), *"abcdefg"), "m", tuple("abcdefg"), {"m": 2})


@pytest.mark.parametrize(
    ("targets", "module", "expected"),
    [
        (["q_proj"], "layers.0.q_proj", True),
        (["q_proj"], "layers.0.xq_proj", False),
        (["layers.0.q_proj"], "layers.0.q_proj", True),
        (r".*\.q_proj", "layers.0.q_proj", True),
        (r".*\.q", "layers.0.q_proj", False),
        ([], "layers.0.q_proj", False),
        (None, "layers.0.q_proj", False),
    ],
)
def test_target_modules_mean_what_they_mean_to_peft(targets: Any, module: str, expected: bool):
    from peft.tuners.tuners_utils import check_target_module_exists

    assert settings(target_modules=targets).targeted([module]) == ({module} if expected else set())
    if targets is not None:
        assert bool(check_target_module_exists(LoraConfig(target_modules=targets), module)) is expected
