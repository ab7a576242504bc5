"""``florist aggregate``: exit status, stdout, stderr, and what is left on disk."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from florist.checkpoint import encode, open_adapter, write_adapter
from tests.breaking import Break, copied, edit_config, edit_tensors, first, last
from tests.builders import adapter, relative_error

from .hub import Hub
from .running import Run, refused


def test_aggregate_prints_a_table_and_writes_an_adapter(
    florist: Run, saved_adapters: list[Path], tmp_path: Path
) -> None:
    result = florist("aggregate", *saved_adapters, "-o", tmp_path / "out", "--tau", "0.8", "--weights", "0.5,0.25,0.25")
    assert result.returncode == 0, result.stderr
    assert "q_proj" in result.stdout
    assert "times smaller" in result.stdout
    certificate = json.loads((tmp_path / "out" / "florist.json").read_text())
    assert [entry["weight"] for entry in certificate["inputs"]] == [0.5, 0.25, 0.25]
    assert {entry["num_examples"] for entry in certificate["inputs"]} == {None}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "florist.json",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_aggregate_is_uploaded_with_its_card_and_its_certificate(
    florist: Run, saved_adapters: list[Path], tmp_path: Path, hub: Hub
) -> None:
    asked = ("aggregate", *saved_adapters, "-o", tmp_path / "out", "--push-to-hub", "me/adapter")
    result = florist(*asked, "--private", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["repository"] == "me/adapter"
    assert "uploaded to https://hub.example/me/adapter" in result.stderr
    files = ["README.md", "adapter_config.json", "adapter_model.safetensors", "florist.json"]
    assert hub.asked == [("me/adapter", True, True), ("me/adapter", files)]
    assert "repository" not in json.loads((tmp_path / "out" / "florist.json").read_text())


def test_an_upload_is_refused_before_anything_is_written_or_leaves_the_aggregate(
    florist: Run, saved_adapters: list[Path], tmp_path: Path, hub: Hub
) -> None:
    asked = ("aggregate", *saved_adapters, "-o", tmp_path / "out")
    assert "expected --push-to-hub as organisation/name" in refused(florist(*asked, "--push-to-hub", "a b"))
    assert "--private is for --push-to-hub" in refused(florist(*asked, "--private"))
    assert not (tmp_path / "out").exists()
    hub.error = OSError("no route")
    told = florist(*asked, "--push-to-hub", "me/adapter")
    assert told.returncode == 2
    assert "uploading it to me/adapter failed: no route" in told.stderr.splitlines()[-1]
    assert open_adapter(tmp_path / "out").adapter.total_rank > 0


class ConnectError(Exception):
    """As HTTP clients have: neither an OSError nor any other error of Python's own."""


def test_a_hub_that_does_not_answer_is_not_asked_to_take_an_upload(
    florist: Run, saved_adapters: list[Path], tmp_path: Path, hub: Hub
) -> None:
    hub.unreachable, hub.error = ConnectError("timed out\nafter 5 s"), AssertionError("it was asked")
    told = florist("aggregate", saved_adapters[0], "-o", tmp_path / "out", "--push-to-hub", "me/adapter")
    assert told.returncode == 2
    assert "uploading it to me/adapter failed: timed out; see that" in told.stderr.splitlines()[-1]
    assert (tmp_path / "out").exists()


def test_a_name_of_the_hub_is_looked_for_on_this_machine_alone(
    florist: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blocked(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", blocked)
    monkeypatch.setattr(socket, "getaddrinfo", blocked)
    for command in (["aggregate", "-o", tmp_path / "out"], ["inspect"]):
        told = florist(*command, "nobody/nothing")
        assert told.returncode == 2
        assert "florist does not download: run `hf download nobody/nothing` first" in told.stdout + told.stderr


def test_aggregate_json_is_all_of_stdout(florist: Run, saved_adapters: list[Path], tmp_path: Path) -> None:
    result = florist("aggregate", *saved_adapters, "-o", tmp_path / "out", "--json")
    document = json.loads(result.stdout)
    assert {"method", "tau", "total_rank", "input_rank", "bytes_in", "bytes_out", "modules"} <= document.keys()
    module = next(iter(document["modules"].values()))
    assert {"rank", "input_rank", "energy_kept", "relative_error", "shape"} <= module.keys()
    assert "q_proj" not in result.stderr  # there is no table
    assert "times smaller" in result.stderr


@pytest.mark.parametrize("method", ["florist", "fedit", "flora", "flexlora", "fedex", "raflora"])
def test_every_method_says_who_it_is(florist: Run, saved_adapters: list[Path], tmp_path: Path, method: str) -> None:
    result = florist("aggregate", *saved_adapters, "-o", tmp_path / "out", "--method", method, "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["method"] == method
    assert document["tau"] == (0.9 if method == "florist" else None)
    assert json.loads((tmp_path / "out" / "florist.json").read_text()) == document
    assert open_adapter(tmp_path / "out").adapter.total_rank == document["total_rank"]
    if method in {"fedit", "flexlora", "raflora"}:
        assert max(module["rank"] for module in document["modules"].values()) == 8


def test_flexlora_takes_a_largest_rank(florist: Run, saved_adapters: list[Path], tmp_path: Path) -> None:
    result = florist(
        "aggregate", *saved_adapters, "-o", tmp_path / "out", "--method", "flexlora", "--max-rank", 3, "--json"
    )
    document = json.loads(result.stdout)
    assert document["max_rank"] == 3
    assert {module["rank"] for module in document["modules"].values()} == {3}


BROKEN: dict[str, tuple[Break, str]] = {
    "no lora_B": (edit_tensors(lambda t: t.pop(first(t, "B"))), "has no lora_B"),
    "unlike ranks": (edit_config(r=5), "where the config says rank"),
    "nan": (edit_tensors(lambda t: t[last(t, "A")].fill_(float("nan"))), "NaN"),
    "inf": (edit_tensors(lambda t: t[last(t, "B")].fill_(float("inf"))), "infinity"),
    "integers": (edit_tensors(lambda t: t.update({first(t, "A"): t[first(t, "A")].int()})), "is I32"),
    "shape": (
        edit_tensors(lambda t: t.update({first(t, "A"): torch.zeros(4, 7)})),
        "updates a weight",
    ),
    "base": (edit_config(base_model_name_or_path="elsewhere"), "--allow-base-mismatch"),
    "dora": (edit_config(use_dora=True), "DoRA"),
    "deep config": (lambda a: (a / "adapter_config.json").write_text('{"a":' * 100_000), "expected JSON"),
    "no expression": (edit_config(target_modules="("), "over module names in target_modules of"),
    "no names": (edit_config(target_modules=5), "to be names or a regular expression, got 5"),
    "huge alpha": (edit_config(lora_alpha=10**400), "expected lora_alpha in"),
    "huge rank": (edit_config(r=10**400), "to be a whole number from 1"),
    "truncated": (lambda a: os.truncate(a / "adapter_model.safetensors", 500), "adapter_model.safetensors"),
    "no weights": (lambda a: (a / "adapter_model.safetensors").unlink(), "expected adapter_model.safetensors"),
    "no config": (lambda a: (a / "adapter_config.json").unlink(), "adapter_config.json"),
    "no json": (lambda a: (a / "adapter_config.json").write_text("{"), "adapter_config.json"),
}


@pytest.mark.parametrize(("spoil", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_adapter_is_refused_in_one_line_and_leaves_nothing(
    florist: Run, saved_adapters: list[Path], tmp_path: Path, spoil: Break, reason: str
) -> None:
    broken = copied(saved_adapters[0], tmp_path / "broken", spoil)
    line = refused(florist("aggregate", saved_adapters[1], broken, "-o", tmp_path / "out"))
    assert reason in line
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_file_that_is_no_adapter_is_refused_by_its_name(
    florist: Run, saved_adapters: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "README.md").touch()
    line = refused(florist("aggregate", tmp_path / "README.md", saved_adapters[0], "-o", tmp_path / "out"))
    assert f"got the file {tmp_path / 'README.md'}" in line


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--weights", "3,1"], "a weight for each of the 3 adapters, got 2"),
        (["--weights", "3,1,0"], "C; leave that adapter out, or give it a positive weight"),
        (["--weights", "3,1,-2"], "a positive weight for every adapter, got -2 for "),
        (["--weights", "a,b,c"], "as 3,1,1"),
        (["--tau", "0"], "--tau: expected a fraction of the energy in (0, 1], got 0.0"),
        (["--budget", "foo"], "--budget: expected a size as 20MB or 300KB, got 'foo'"),
        (["--tau", "1.5"], "--tau: expected a fraction of the energy in (0, 1], got 1.5"),
        (["--tau", "0.5", "--budget", "1MB"], "--tau 0.5 and --budget 1000000 contradict each other"),
        (["--scope", "global", "--rank", "3"], "--scope 'global' goes with --tau, not with --rank"),
        (["--budget", "1MB", "--export", "uniform"], "use --rank or --max-rank"),
        (["--budget", "100"], "rank 1 in each of the 14 modules"),
        (["--pad-rank-to", "16"], "--pad-rank-to is the rank of --export uniform"),
        (
            ["--export", "uniform", "--rank", "5", "--pad-rank-to", "4"],
            "--pad-rank-to to be at least the largest rank, 5, got 4; pad to 5 or more, or keep fewer directions with",
        ),
        (["--max-rank", "0"], "--max-rank: expected a number greater than 0, got 0"),
        (["--rank", "0"], "--rank: expected a number greater than 0"),
        (["--method", "average"], "--method average: expected one of florist, fedit, flora, flexlora, fedex, raflora"),
        (["--method", "ffa"], "saved adapters have trained theirs. Choose one of these, or run ffa in rounds"),
        (["--method", "full"], "saved adapters hold factors. Choose one of these, or run full in rounds"),
        (
            ["--method", "fedit", "--tau", "0.9"],
            "--method fedit takes none of these options, got --tau: leave that out, or use --method florist",
        ),
        (["--method", "flora", "--max-rank", "3"], "got --max-rank: leave that out, or use --method florist, or use"),
        (["--method", "fedex", "--scope", "per-module", "--budget", "1MB"], "got --scope, --budget"),
        (["--method", "flexlora", "--rank", "3"], "--method flexlora takes --max-rank, got --rank"),
    ],
)
def test_wrong_options_are_refused(
    florist: Run, saved_adapters: list[Path], tmp_path: Path, arguments: list[str], reason: str
) -> None:
    line = refused(florist("aggregate", *saved_adapters, "-o", tmp_path / "out", *arguments))
    assert reason in line
    assert list(tmp_path.iterdir()) == []


def test_a_budget_that_saved_parameters_exceed_is_refused_and_leaves_nothing(
    florist: Run, saved_adapters: list[Path], tmp_path: Path
) -> None:
    heads: list[Path] = []
    for number, source in enumerate(saved_adapters[:2]):
        heads.append(copied(source, tmp_path / f"headed{number}"))
        edit_config(modules_to_save=["lm_head"])(heads[-1])
        edit_tensors(lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(64, 64)}))(heads[-1])
    arguments = ("aggregate", *heads, "--average-full", "-o", tmp_path / "out", "--budget")
    line = refused(florist(*arguments, "12KB"))
    assert "all that lies beside the factors, got 12000" in line
    assert not (tmp_path / "out").exists()
    assert florist(*arguments, "1MB").returncode == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_size < 1e6


@pytest.mark.parametrize("options", [[], ["--max-rank", "6"], ["--dtype", "bfloat16"]], ids=" ".join)
@pytest.mark.quick(1)
def test_a_budget_is_that_of_the_file(
    florist: Run, saved_adapters: list[Path], tmp_path: Path, options: list[str]
) -> None:
    result = florist("aggregate", *saved_adapters, "-o", tmp_path / "out", "--budget", "20KB", *options)
    assert result.returncode == 0, result.stderr
    assert 18_000 < (tmp_path / "out" / "adapter_model.safetensors").stat().st_size <= 20_000


def test_too_little_padding_is_refused_by_the_names_of_the_flags(
    florist: Run, saved_adapters: list[Path], tmp_path: Path
) -> None:
    words = ("aggregate", *saved_adapters, "-o", tmp_path / "out", "--rank", 4, "--export", "uniform")
    line = refused(florist(*words, "--pad-rank-to", 2))
    assert "--pad-rank-to to be at least the largest rank, 4, got 2" in line
    assert line.endswith("a smaller --max-rank")
    assert "_rank" not in line


def test_one_adapter_is_counted_as_one(florist: Run, saved_adapters: list[Path], tmp_path: Path) -> None:
    result = florist("aggregate", saved_adapters[0], "-o", tmp_path / "one")
    assert "1 adapter, " in " ".join(result.stdout.split())
    result = florist("aggregate", *saved_adapters, "-o", tmp_path / "three")
    assert "3 adapters, " in " ".join(result.stdout.split())


def test_ranks_are_padded_as_asked(florist: Run, saved_adapters: list[Path], tmp_path: Path) -> None:
    words = ("aggregate", *saved_adapters, "-o", tmp_path / "out", "--rank", 5, "--export", "uniform", "--pad-rank-to")
    result = florist(*words, 16, "--json")
    assert result.returncode == 0, result.stderr
    assert "TGI" not in result.stderr
    assert json.loads(result.stdout)["pad_rank_to"] == 16
    out = open_adapter(tmp_path / "out")
    assert {spec.rank for spec in out.adapter.specs.values()} == {16}
    assert out.config["rank_pattern"] == {}


@pytest.mark.parametrize("weights", ["1e99999999999,1", "1,1e-400", "nan,1"])
def test_weights_that_no_number_holds_are_refused(
    florist: Run, saved_adapters: list[Path], tmp_path: Path, weights: str
) -> None:
    arguments = ("aggregate", *saved_adapters[:2], "-o", tmp_path / "out", "--weights", weights)
    assert "expected --weights as numbers with commas" in refused(florist(*arguments))


def test_an_output_that_exists_is_refused_before_any_work(
    florist: Run, saved_adapters: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    assert "already exists" in refused(florist("aggregate", tmp_path / "nothing", "-o", tmp_path / "out"))


def test_an_adapter_that_is_not_there_is_refused(florist: Run, tmp_path: Path) -> None:
    assert "nothing" in refused(florist("aggregate", tmp_path / "nothing", "-o", tmp_path / "out"))


@pytest.mark.slow
def test_two_levels_through_the_command_line_equal_one(
    florist: Run, saved_adapters: list[Path], tmp_path: Path
) -> None:
    def merge(out: str, *words: object) -> dict[str, Any]:
        result = florist("aggregate", *words, "-o", tmp_path / out, "--tau", "1", "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    a, b, c = saved_adapters
    assert merge("edge", a, b, "--weights", "30,10")["num_examples"] == 40
    merge("other", c, "--weights", "5")
    nested, flat = (
        merge("nested", tmp_path / "edge", tmp_path / "other"),
        merge("flat", a, b, c, "--weights", "30,10,5"),
    )
    assert [entry["num_examples"] for entry in nested["inputs"]] == [40, 5]
    assert (
        (nested["num_examples"], nested["counted_in"]) == (flat["num_examples"], flat["counted_in"]) == (45, "examples")
    )
    one, two = (open_adapter(tmp_path / out).adapter for out in ("nested", "flat"))
    for name in two:
        assert relative_error(one[name].delta_weight(), two[name].delta_weight()) < 1e-5


def test_an_unweighed_adapter_beside_a_weighed_aggregate_is_refused(
    florist: Run, saved_adapters: list[Path], tmp_path: Path
) -> None:
    a, b, c = saved_adapters
    assert florist("aggregate", a, b, "-o", tmp_path / "edge", "--weights", "30,10").returncode == 0
    line = refused(florist("aggregate", tmp_path / "edge", c, "-o", tmp_path / "out"))
    assert "edge: 40 examples" in line
    assert "(--weights)" in line
    assert not (tmp_path / "out").exists()


def test_a_certificate_of_other_weights_is_noted(florist: Run, saved_adapters: list[Path], tmp_path: Path) -> None:
    a, b, c = saved_adapters
    assert florist("aggregate", a, b, "-o", tmp_path / "edge").returncode == 0
    edit_tensors(lambda tensors: tensors[first(tensors, "A")].mul_(2))(tmp_path / "edge")
    result = florist("aggregate", tmp_path / "edge", c, "-o", tmp_path / "out", "--json")
    assert "note: expected" in result.stderr
    assert "has changed since" in result.stderr
    assert [entry["num_examples"] for entry in json.loads(result.stdout)["inputs"]] == [1, 1]


def test_every_module_has_a_row_where_that_is_asked_for(
    florist: Run, saved_adapters: list[Path], tmp_path: Path
) -> None:
    short = florist("aggregate", *saved_adapters, "-o", tmp_path / "short").stdout
    full = florist("aggregate", *saved_adapters, "-o", tmp_path / "full", "--verbose").stdout
    assert "layers" not in short
    assert full.count("model.layers.") == 14


@pytest.mark.slow
def test_a_table_stays_readable_whatever_the_modules_are_called(tmp_path: Path, florist: Run) -> None:
    # No two layers share a name here, so that every module is of its own kind.
    names = {f"block.stage{number}": (6, 5) for number in range(50)}
    for seed in (1, 2):
        encoded = encode(adapter(2, seed, shapes=names, dtype=torch.float32), base_model="org/base")
        (tmp_path / str(seed)).mkdir()
        write_adapter(tmp_path / str(seed), encoded)
    words = ("aggregate", tmp_path / "1", tmp_path / "2", "-o")
    short, full = florist(*words, tmp_path / "short"), florist(*words, tmp_path / "full", "--verbose")
    assert "and 10 more kinds: --verbose" in short.stdout
    assert (short.stdout.count("stage"), full.stdout.count("stage")) == (40, 50)
    assert "more kinds" not in full.stdout


def test_hub_ids_in_the_cache_are_adapters(
    florist: Run, saved_adapters: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As huggingface_hub lays it out: a snapshot is links to files that are named by their content.
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--org--adapter"
    for folder in ("refs", "blobs", "snapshots/abc"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    for file in saved_adapters[0].iterdir():
        (repository / "blobs" / file.stem).write_bytes(file.read_bytes())
        (repository / "snapshots" / "abc" / file.name).symlink_to(f"../../blobs/{file.stem}")
    weights = saved_adapters[1] / "adapter_model.safetensors"
    result = florist("aggregate", "org/adapter", weights, "-o", tmp_path / "out", "--tau", "1")
    assert result.returncode == 0, result.stderr
    same = florist("aggregate", *saved_adapters[:2], "-o", tmp_path / "same", "--tau", "1")
    assert same.returncode == 0
    found, expected = (open_adapter(tmp_path / out).adapter for out in ("out", "same"))
    for name in expected:
        assert relative_error(found[name].delta_weight(), expected[name].delta_weight()) < 1e-6
    line = refused(florist("aggregate", "org/other", weights, "-o", tmp_path / "more"))
    assert "hf download org/other" in line
