import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from florist.checkpoint import open_adapter
from florist.one_shot import aggregate, open_inputs
from florist.one_shot.inspection import USUAL_TAUS, combinable, kind, spectra, sweep_thresholds, unlike_norms, view
from florist.ranks import EnergyThreshold


def changed(source: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    target.mkdir()
    (target / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    tensors = load_file(source / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    return target


def test_a_module_view_is_that_of_the_dense_update(saved_adapters: list[Path]) -> None:
    saved = open_adapter(saved_adapters[1])
    for name, module in view(saved).items():
        dense = saved.adapter[name].to(dtype=torch.float64).delta_weight()
        values = torch.linalg.svdvals(dense)[: module.rank]
        assert module.norm == pytest.approx(float(dense.norm()), rel=1e-5)
        assert torch.allclose(module.spectrum.S, values, rtol=1e-4)
        energies = values.square().cumsum(0) / values.square().sum()
        for tau in USUAL_TAUS[:-1]:
            assert module.ranks[tau] == int((energies < tau).sum()) + 1
        assert (module.dead_directions, module.outlier) == (0, None)


def test_dead_directions_and_an_outlier_are_pointed_out(saved_adapters: list[Path], tmp_path: Path) -> None:
    dead, loud = "model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"base_model.model.{dead}.lora_B.weight"][:, :3] = 0
        tensors[f"base_model.model.{loud}.lora_B.weight"] *= 1000

    modules = view(open_adapter(changed(saved_adapters[1], tmp_path / "bad", spoil)))
    assert {name: m.dead_directions for name, m in modules.items() if m.dead_directions} == {dead: 3}
    # Two layers: the median of a kind lies between both, so that both stand out against it only where there are more.
    assert modules[dead].outlier is None


def test_an_adapter_that_forgot_its_scaling_stands_out_among_few(saved_adapters: list[Path], tmp_path: Path) -> None:
    def loud(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if "lora_B" in name:
                tensors[name] *= 50

    adapters = [*saved_adapters, changed(saved_adapters[0], tmp_path / "loud", loud)]
    opened = [open_adapter(path) for path in adapters]
    assert list(unlike_norms(opened)) == [str(tmp_path / "loud")]
    assert unlike_norms(opened[:3]) == {}
    assert unlike_norms(opened[2:]) == {}  # of two, neither is the rule


def test_a_sweep_gives_what_aggregating_at_each_threshold_gives(saved_adapters: list[Path]) -> None:
    points = sweep_thresholds(spectra(open_inputs(saved_adapters).updates), [0.5, 0.9, 1.0])
    for point in points:
        certificate = aggregate(saved_adapters, rank_rule=EnergyThreshold(point.tau)).certificate
        assert point.total_rank == certificate.total_rank
        assert point.nbytes == certificate.bytes_out
        assert point.relative_error == pytest.approx(certificate.relative_error, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("model.layers.0.self_attn.q_proj", "q_proj"),
        ("lm_head", "lm_head"),
        ("model.layers.1.mlp.experts[12]", "experts"),
        ("model.layers.1.mlp.experts.base_layer[3]", "experts.base_layer"),
        ("down_blocks.0.attn.to_out.0", "to_out.0"),
        ("0", "0"),
    ],
)
def test_a_kind_is_what_layers_share(module: str, expected: str) -> None:
    assert kind(module) == expected


def test_groups_hold_what_may_be_combined(saved_adapters: list[Path], tmp_path: Path) -> None:
    def copy(name: str, change: Callable[[dict[str, torch.Tensor]], None] = lambda tensors: None, **settings: object):
        path = changed(saved_adapters[0], tmp_path / name, change)
        config = json.loads((path / "adapter_config.json").read_text())
        (path / "adapter_config.json").write_text(json.dumps(config | settings))
        return path

    def headed(tensors: dict[str, torch.Tensor]) -> None:
        tensors["base_model.model.lm_head.weight"] = torch.ones(3, 32)

    head = copy("head", headed, modules_to_save=["lm_head"])
    one, two = (copy(name, base_model_name_or_path="elsewhere") for name in ("one", "two"))
    opened = [open_adapter(path) for path in (one, saved_adapters[0], head, two, *saved_adapters[1:])]
    groups = [[saved.path for saved in group] for group in combinable(opened)]
    # The one with a head trained whole needs a permission that nobody gave: it is in no group.
    assert groups == [saved_adapters, [one, two]]
