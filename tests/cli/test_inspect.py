"""``florist inspect``: what it shows of adapters, and what it says may be combined."""

import json
from pathlib import Path

import torch

from florist.cli.inspect import sparkline
from tests.breaking import copied, edit_config, edit_tensors

from .running import Run, refused


def test_modules_of_all_layers_share_a_row_unless_all_are_asked_for(florist: Run, saved_adapters: list[Path]) -> None:
    result = florist("inspect", *saved_adapters)
    assert result.returncode == 0
    assert "2 x q_proj" in result.stdout
    assert "model.layers.0.self_attn.q_proj" not in result.stdout
    assert "█" in result.stdout
    assert "these adapters may be aggregated" in result.stdout
    every = florist("inspect", *saved_adapters, "--modules")
    assert every.stdout.count("model.layers.0.self_attn.q_proj") == 3


def test_a_sweep_reaches_from_half_to_all_of_the_energy(florist: Run, saved_adapters: list[Path]) -> None:
    document = json.loads(florist("inspect", *saved_adapters, "--sweep", "--json").stdout)
    points = document["sweep"]
    assert (points[0]["tau"], points[-1]["tau"]) == (0.5, 1.0)
    for key, sign in (("total_rank", 1), ("bytes", 1), ("relative_error", -1)):
        values = [sign * point[key] for point in points]
        assert values == sorted(values)
        assert values[0] < values[-1]
    weighed = florist("inspect", *saved_adapters, "--sweep", "--weights", "9,1,1", "--json")
    assert json.loads(weighed.stdout)["sweep"] != points
    assert "as 3,1,1" in refused(florist("inspect", *saved_adapters, "--sweep", "--weights", "nine"))


def test_a_sweep_that_cannot_be_made_is_a_finding(florist: Run, saved_adapters: list[Path], tmp_path: Path) -> None:
    short = florist("inspect", *saved_adapters, "--sweep", "--weights", "9,1")
    assert short.returncode == 0
    assert "no sweep: expected a weight for each of the 3 adapters, got 2" in short.stdout
    a, b, c = saved_adapters
    assert florist("aggregate", a, b, "-o", tmp_path / "edge", "--weights", "3,1").returncode == 0
    mixed = florist("inspect", tmp_path / "edge", c, "--sweep")
    assert "no sweep: expected weights that can be compared" in mixed.stdout
    assert "q_proj" in mixed.stdout


def test_what_does_not_combine_is_explained_and_what_does_is_named(
    florist: Run, saved_adapters: list[Path], tmp_path: Path
) -> None:
    a, b, c = saved_adapters
    other = copied(a, tmp_path / "other", edit_config(base_model_name_or_path="elsewhere"))
    result = florist("inspect", b, other, c, "--sweep", "--json")
    assert result.returncode == 0
    document = json.loads(result.stdout)
    assert len(document["problems"]) == 1
    assert "elsewhere" in document["problems"][0]
    assert document["combinable"] == [[str(b), str(c)], [str(other)]]
    assert document["sweep"] == []
    assert len(document["adapters"]) == 3
    assert "cannot be aggregated as they are" in result.stderr
    assert f"these 2 may be aggregated: {b} {c}" in result.stderr
    assert "no sweep: " in result.stderr
    assert "no two of them may be aggregated" in florist("inspect", b, other).stdout


def test_dead_ranks_and_outliers_are_pointed_out(florist: Run, saved_adapters: list[Path], tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if "lora_B" in name:
                tensor[:, 0] = 0

    dead = copied(saved_adapters[0], tmp_path / "dead", edit_tensors(spoil))
    stdout = florist("inspect", dead).stdout
    assert "dead ranks: 14 directions in 14 modules carry nothing: model.layers.0.mlp.down_proj (1), " in stdout
    assert "and 9 more" in stdout


def test_a_sparkline_follows_the_values() -> None:
    assert sparkline([1.0, 0.5, 0.0]) == "█▄ "
    assert sparkline([4.0, 1e-9]) == "█▁"
    assert len(sparkline([1.0] * 100)) <= 12
    assert sparkline([]) == sparkline([0.0]) == ""
