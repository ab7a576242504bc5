"""``florist inspect``: what it shows of adapters, and what it says may be combined."""

import json
from pathlib import Path

import pytest
import torch

from florist.checkpoint import encode, write_adapter
from florist.cli.inspect_table import sparkline
from florist.factors import AdapterState
from tests.breaking import copied, edit_config, edit_tensors, last
from tests.builders import adapter

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
    result = florist("inspect", *saved_adapters, "--sweep", "--json")
    assert "─" not in result.stderr  # there is no table
    points = json.loads(result.stdout)["sweep"]
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
    assert "no sweep: expected weights in one unit, got weights that cannot be compared" in mixed.stdout
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


def test_an_adapter_that_cannot_be_read_hides_no_other(
    florist: Run, saved_adapters: list[Path], tmp_path: Path
) -> None:
    a, b, _ = saved_adapters
    poisoned = copied(a, tmp_path / "poisoned", edit_tensors(lambda t: t[last(t, "B")].fill_(float("nan"))))
    variant = copied(a, tmp_path / "variant", edit_config(use_dora=True))
    result = florist("inspect", poisoned, a, tmp_path / "nowhere", b, variant, "--sweep", "--json")
    assert result.returncode == 2
    document = json.loads(result.stdout)
    assert [one["path"] for one in document["adapters"]] == [str(a), str(b)]
    assert list(document["unreadable"]) == [str(poisoned), str(tmp_path / "nowhere"), str(variant)]
    for reason, expected in zip(document["unreadable"].values(), ("NaN", "found nothing", "DoRA"), strict=True):
        assert expected in reason
        assert f" cannot be read: {reason}\n" in result.stderr
    assert document["combinable"] == [[str(a), str(b)]]
    assert "the adapters that can be read may be aggregated" in result.stderr
    assert "no sweep: not all of the adapters can be read" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("florist: expected adapters that can be read, and 3 of 5 cannot")
    assert json.loads(florist("inspect", variant, "--json").stdout)["combinable"] == []


def test_why_no_adapter_can_be_read_is_said_on_stderr(florist: Run, tmp_path: Path) -> None:
    for words in ([], ["--quiet"]):
        result = florist("inspect", tmp_path / "a", tmp_path / "b", *words)
        assert (result.returncode, result.stdout) == (2, "")
        lines = result.stderr.splitlines()
        assert [line.partition(": ")[0] for line in lines] == [
            f"{tmp_path / 'a'} cannot be read",
            f"{tmp_path / 'b'} cannot be read",
            "florist",
        ]


def test_what_aggregate_would_allow_is_allowed_here(florist: Run, saved_adapters: list[Path], tmp_path: Path) -> None:
    def headed(tensors: dict[str, torch.Tensor]) -> None:
        tensors["base_model.model.lm_head.weight"] = torch.ones(3, 32)

    heads = [copied(source, tmp_path / f"headed-{source.name}", edit_tensors(headed)) for source in saved_adapters[:2]]
    for head in heads:
        edit_config(modules_to_save=["lm_head"], base_model_name_or_path=str(head))(head)
    for flags in ([], ["--average-full"], ["--allow-base-mismatch"]):
        document = json.loads(florist("inspect", *heads, *flags, "--sweep", "--json").stdout)
        assert document["problems"]
        assert document["sweep"] == []
    both = florist("inspect", *heads, "--average-full", "--allow-base-mismatch", "--sweep", "--json")
    document = json.loads(both.stdout)
    assert document["problems"] == []
    assert document["combinable"] == [[str(head) for head in heads]]
    assert document["sweep"]


def test_an_adapter_given_twice_is_not_combinable_with_itself(
    florist: Run, saved_adapters: list[Path], tmp_path: Path
) -> None:
    a, b, _ = saved_adapters
    again = a / "adapter_model.safetensors"
    document = json.loads(florist("inspect", a, again, b, "--json").stdout)
    assert len(document["adapters"]) == 3
    assert document["problems"] == [f"{again} is {a}, given twice: name it once, and raise its weight instead"]
    assert document["combinable"] == [[str(a), str(b)], [str(again)]]
    # One group is what aggregate takes, and it refuses the pair for the same reason.
    assert document["problems"][0] in refused(florist("aggregate", a, again, "-o", tmp_path / "out"))


def test_weights_without_a_sweep_are_refused(florist: Run, saved_adapters: list[Path]) -> None:
    assert "add --sweep" in refused(florist("inspect", *saved_adapters, "--weights", "3,1,1"))


@pytest.mark.parametrize("columns", [80, 120])
def test_names_of_kinds_stay_whole_in_a_narrow_terminal(florist: Run, saved_adapters: list[Path], columns: int) -> None:
    lines = florist("inspect", saved_adapters[1], columns=columns).stdout.splitlines()
    assert max(map(len, lines[1:])) <= columns
    assert sum("2 x down_proj" in line for line in lines) == 1
    rows = [line for line in lines if "_proj" in line]
    assert len(rows) == 7
    assert not any("…" in line for line in lines)


def test_ranks_are_medians_where_more_does_not_fit(florist: Run, tmp_path: Path) -> None:
    layers = {f"layers.{number}.q_proj": (64, 64) for number in range(3)}
    factors = dict(adapter(24, 1, shapes=layers, dtype=torch.float32))
    for name, rank in zip(layers, (12, 20, 24), strict=True):
        factors[name] = factors[name].leading(rank)
    (tmp_path / "a").mkdir()
    write_adapter(tmp_path / "a", encode(AdapterState.of(factors), base_model="org/base"))
    wide, narrow = (florist("inspect", tmp_path / "a", columns=columns).stdout for columns in (120, 72))
    assert " 12/20/24 " in wide
    assert "least/median/most of the modules" in " ".join(wide.split())
    assert "12/20/24" not in narrow
    assert " 20 " in narrow
    assert "the median of the modules" in " ".join(narrow.split())


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
