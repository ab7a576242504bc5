"""``florist evaluate``: a saved adapter measures what the run that made it measured."""

import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from florist.federation.history import RunDirectory
from tests.tiny_federation import configure, run

from .running import Result, Run, refused


@pytest.fixture(scope="module")
def config(tiny_llama: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return configure(tmp_path_factory.mktemp("measured"), tiny_llama, toy_data, steps=3, rounds=1)


HELD_OUT = ("data.validation_fraction=0.2", "evaluation.metrics=['loss', 'exact_match']")


@pytest.fixture(scope="module")
def played(config: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run(config, tmp_path_factory.mktemp("played") / "run", *HELD_OUT, "communication.preset=plain")


def document(result: Result) -> dict[str, Any]:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_run_measures_what_it_measured_itself(florist: Run, played: RunDirectory) -> None:
    assert played.tested is not None
    found = document(florist("evaluate", played.path, "--base", "--json"))
    assert found["metrics"]["adapter"] == pytest.approx(dict(played.tested.metrics), rel=1e-6)
    assert found["lower_is_better"] == {"loss": True, "perplexity": True, "exact_match": False}
    assert found["num_examples"] == 9
    validation = document(florist("evaluate", played.path, "--split", "validation", "--base", "--json"))
    assert validation["metrics"]["adapter"] == pytest.approx(dict(played.records()[-1].metrics), rel=1e-6)
    assert validation["metrics"]["base"] == pytest.approx(dict(played.facts.initial), rel=1e-6)
    assert validation["metrics"]["base"] != validation["metrics"]["adapter"]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_clients_together_are_the_whole(florist: Run, played: RunDirectory, split: str) -> None:
    told = florist(
        "evaluate", played.path, "--split", split, "--by-client", "--set", "evaluation.metrics=['exact_match']"
    )
    assert told.returncode == 0, told.stderr
    assert "worst client" in told.stdout
    found = document(florist("evaluate", played.path, "--split", split, "--by-client", "--json"))
    clients = found["clients"]
    assert list(clients) == ["client_0", "client_1"]
    assert sum(own["num_examples"] for own in clients.values()) == found["num_examples"] > 4
    hits = sum(own["num_examples"] * own["metrics"]["adapter"]["exact_match"] for own in clients.values())
    assert hits == pytest.approx(found["num_examples"] * found["metrics"]["adapter"]["exact_match"])
    assert clients["client_0"]["metrics"] != clients["client_1"]["metrics"]


def test_any_file_of_examples_and_any_adapter_of_peft(
    florist: Run, config: Path, played: RunDirectory, tiny_llama: Path, tmp_path: Path
) -> None:
    own = tmp_path / "rows.jsonl"
    rows = [{"instruction": "say a", "output": "a"}, {"instruction": "say b", "output": "b"}]
    own.write_text("\n".join(map(json.dumps, rows)))
    # The training files need not be there.
    elsewhere = ("--config", config, "--set", f"data.path={tmp_path}", "--data", own, "--json")
    alone = document(florist("evaluate", "--base", *elsewhere))
    assert list(alone["metrics"]) == ["base"]
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_llama),
        LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"], init_lora_weights=True),
    )
    model.save_pretrained(tmp_path / "fresh")
    fresh = document(florist("evaluate", tmp_path / "fresh", *elsewhere))
    assert fresh["metrics"]["adapter"] == pytest.approx(alone["metrics"]["base"])  # its B is zero
    trained = document(florist("evaluate", played.adapter, *elsewhere))
    assert trained["metrics"]["adapter"]["loss"] != pytest.approx(alone["metrics"]["base"]["loss"])


def test_clients_of_a_shared_file_are_the_values_of_the_field(
    florist: Run, played: RunDirectory, tmp_path: Path
) -> None:
    rows = [{"instruction": "x", "output": "y", "site": site} for site in "bab"]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    by_field = ("--set", "data.partition=by-field", "--set", "data.partition_field=site")
    asked = ("evaluate", played.path, "--data", tmp_path / "rows.json", "--by-client", "--json")
    found = document(florist(*asked, *by_field))
    assert {name: own["num_examples"] for name, own in found["clients"].items()} == {"a": 1, "b": 2}
    assert "expected examples of which it is known whose they are" in refused(florist(*asked))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["adapter"], "expected --config FILE"),
        ([], "expected an adapter or a run to measure, or --base"),
        (["run", "--split", "test", "--data", "x.json"], "--split and --data contradict"),
        (["run", "--set", "data.validation_fraction=0.1", "--split", "nonsense"], "Invalid value for '--split'"),
        (["run", "--by-client"], "expected examples of which it is known whose they are"),
        (["run", "--data", "missing.json"], "expected a data file at missing.json"),
        (
            ["run", "--set", "task.kind=sequence-classification", "--set", "data.label_field=output"],
            "got one for CAUSAL",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(florist: Run, played: RunDirectory, words: list[str], reason: str) -> None:
    known = {"run": played.path, "adapter": played.adapter}
    assert reason in refused(florist("evaluate", *(known.get(word, word) for word in words)))


def test_an_adapter_of_another_base_is_refused(
    florist: Run, config: Path, played: RunDirectory, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    settings = json.loads((played.adapter / "adapter_config.json").read_text())
    from safetensors.torch import load_file, save_file

    tensors = load_file(played.adapter / "adapter_model.safetensors")
    renamed = {key.replace("layers.1", "layers.9"): tensor for key, tensor in tensors.items()}
    text = json.dumps(settings).replace("layers.1", "layers.9")
    (other / "adapter_config.json").write_text(text)
    save_file(renamed, other / "adapter_model.safetensors")
    line = refused(florist("evaluate", other, "--config", config))
    assert "which lacks 7 of them, model.layers.9.mlp.down_proj" in line
