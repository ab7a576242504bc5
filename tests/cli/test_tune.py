"""``florist tune``: what it picks, what it writes, and what it refuses, on runs of a tiny model."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from florist.checkpoint import open_adapter
from florist.compression.codecs import codec_named
from florist.compression.packed import PackedAdapter
from florist.config import read_config, to_toml
from florist.config.building import build
from florist.factors import AdapterState
from florist.federation.history import RunDirectory
from florist.federation.records import RoundRecord
from tests.breaking import copied, edit_config
from tests.builders import relative_error

from .running import Run, refused

CONFIG = """
[model]
name_or_path = "{model}"
[data]
path = "{data}"
test = "test.json"
validation_fraction = 0.25
prompt_template = "{{instruction}}\\n"
[lora]
ranks = [4, 2]
[training]
learning_rate = 1e-2
steps = {steps}
threads = 1
[communication]
preset = "plain"
[federation]
rounds = 1
"""
TAUS = "0.3,0.6,0.9,1"


class Silent:
    def evaluating(self, round_number: int) -> None: ...
    def training(self, round_number: int, client_id: str, done: int, total: int) -> None: ...
    def closed(self, record: RoundRecord) -> None: ...


def simulated(folder: Path, name: str, text: str) -> Path:
    file = folder / f"{name}.toml"
    file.write_text(text)
    config = read_config(file)
    simulation = build(config)
    directory = simulation.start(folder / name, to_toml(config), config.aggregation.method, 1, Silent())
    simulation.run(directory, Silent())
    return directory.path


@pytest.fixture(scope="module")
def runs(tiny_llama: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs on the same validation examples, and one without any; and the first one's configuration."""
    folder = tmp_path_factory.mktemp("runs")
    text = CONFIG.format(model=tiny_llama, data=toy_data, steps=8)
    simulated(folder, "florist", text)
    simulated(
        folder, "full", CONFIG.format(model=tiny_llama, data=toy_data, steps=2) + '[aggregation]\nmethod = "full"\n'
    )
    simulated(folder, "untold", text.replace("validation_fraction = 0.25\n", "").replace("steps = 8", "steps = 1"))
    simulated(folder, "other", text.replace("steps = 8", "steps = 1") + "seed = 5\n")
    return folder


def tuned(florist: Run, *words: object) -> dict[str, Any]:
    result = florist("tune", *words, "--json")
    assert result.returncode == 0, result.stderr
    assert "─" not in result.stderr  # there is no table
    return json.loads(result.stdout)


def test_a_run_is_swept_and_the_picks_are_written(florist: Run, runs: Path, tiny_llama: Path, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in sorted((runs / "florist").rglob("*")) if file.is_file()}
    out = tmp_path / "out"
    document = tuned(florist, runs / "florist", "--taus", TAUS, "--margin", "0.05", "-o", out)
    assert document.keys() >= {"source", "metric", "split", "points", "florist_o", "florist_e", "evaluations"}
    assert (document["source"], document["metric"], document["split"]) == (
        {"run": str(runs / "florist")},
        "loss",
        "validation",
    )
    points = document["points"]
    assert [point["tau"] for point in points] == [0.3, 0.6, 0.9, 1.0]
    assert [point["total_rank"] for point in points] == sorted(point["total_rank"] for point in points)
    assert points[-1]["relative_error"] == 0 < points[0]["relative_error"] < 1
    assert document["evaluations"] == 4
    # At tau = 1 it is the final adapter, as the last round measured it on the same records.
    last = RunDirectory.open(runs / "florist").records()[-1].metrics
    assert points[-1]["metrics"]["loss"] == pytest.approx(last["loss"], rel=1e-5)
    losses = {point["tau"]: point["metrics"]["loss"] for point in points}
    assert document["florist_o"]["metrics"]["loss"] == min(losses.values())
    efficient = document["florist_e"]
    assert efficient["tau"] == min(tau for tau, loss in losses.items() if loss <= losses[1.0] + 0.05)
    # What was written is what was measured.
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors", "florist.json", "tune.csv", "tune.json"]
    assert sorted(file.name for file in out.iterdir()) == names
    assert json.loads((out / "tune.json").read_text()) == document
    config = read_config(runs / "florist" / "config.toml")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), out)
    assert build(config).metrics[0](loaded)["loss"] == pytest.approx(efficient["metrics"]["loss"], rel=1e-5)
    certificate = json.loads((out / "florist.json").read_text())
    assert (certificate["method"], certificate["tau"]) == ("florist", efficient["tau"])
    assert certificate["total_rank"] == efficient["total_rank"]
    written, final = open_adapter(out).adapter, open_adapter(runs / "florist" / "adapter").adapter
    for name, module in certificate["modules"].items():
        error = relative_error(written[name].delta_weight(), final[name].delta_weight())
        assert module["relative_error"] == pytest.approx(error, abs=1e-5)
        assert module["energy_kept"] == pytest.approx(1 - error**2, abs=1e-5)
    assert before == {file: file.read_bytes() for file in sorted((runs / "florist").rglob("*")) if file.is_file()}


@pytest.mark.slow
def test_the_bytes_of_a_codec_are_those_that_it_sends(florist: Run, runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text((runs / "florist" / "config.toml").read_text().replace('download = "float32"', 'download = "int4"'))
    words = (runs / "florist" / "adapter", "--config", file, "--taus", "0.6,1", "--verbose")
    document = tuned(florist, *words)
    assert document["codec"] == "int4"
    whole = open_adapter(runs / "florist" / "adapter").adapter
    for point in document["points"]:
        cut = AdapterState.of({name: factor.leading(point["ranks"][name]) for name, factor in whole.items()})
        assert point["sent_bytes"] == PackedAdapter.of(cut, codec_named("int4")).nbytes < point["bytes"] / 5
    told = florist("tune", *words)
    assert "int4" in told.stdout
    assert f"({document['florist_o']['sent_bytes'] / 1e6:.3g} in int4)" in told.stdout
    assert "loss decides, the first that the configuration can choose by; lower is better" in told.stderr
    assert "thresholds: 0.6, 1" in told.stderr


def test_the_table_the_progress_and_the_csv(florist: Run, runs: Path, tmp_path: Path) -> None:
    result = florist("tune", runs / "florist", "--taus", "0.3,1", "-o", tmp_path / "out", "--metric", "perplexity")
    assert result.returncode == 0, result.stderr
    assert "tau 0.3: total rank" in result.stderr
    assert "float32" not in result.stdout
    for told in ("relative error", "FLoRIST-O: tau", "FLoRIST-E: tau", "2 evaluations", "█", "written to"):
        assert told in result.stdout
    lines = list(csv.DictReader((tmp_path / "out" / "tune.csv").open()))
    assert [line["tau"] for line in lines] == ["0.3", "1.0"]
    assert sorted("".join(line["pick"] for line in lines)) == ["E", "O"]
    assert float(lines[0]["perplexity"]) > 1


@pytest.mark.slow
def test_bisecting_picks_the_same_with_fewer_evaluations(florist: Run, runs: Path) -> None:
    taus = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,0.95,0.99"
    swept = tuned(florist, runs / "florist", "--taus", taus, "--margin", "0.1")
    losses = [point["metrics"]["loss"] for point in swept["points"]]
    few = tuned(florist, runs / "florist", "--taus", taus, "--margin", "0.1", "--bisect")
    assert few["bisected"]
    assert few["evaluations"] <= len(few["points"]) <= 5
    assert few["evaluations"] < swept["evaluations"]
    assert few["florist_o"]["metrics"]["loss"] == min(point["metrics"]["loss"] for point in few["points"])
    matching = [loss <= losses[-1] + 0.1 for loss in losses]
    assert matching == sorted(matching)  # as bisecting assumes; were it not, the next line would prove nothing
    assert few["florist_e"] == swept["florist_e"]


@pytest.mark.slow
def test_the_best_of_several_baselines_is_measured(florist: Run, runs: Path) -> None:
    last = {name: RunDirectory.open(runs / name).records()[-1].metrics["loss"] for name in ("florist", "full")}
    flags = [word for name in last for word in ("--baseline-run", runs / name)]
    document = tuned(florist, runs / "florist", "--taus", TAUS, *flags)
    assert document["baseline"] == pytest.approx(min(last.values()), rel=1e-5)
    assert document["baseline_runs"] == [str(runs / name) for name in last]


@pytest.mark.slow
def test_full_fine_tuning_can_be_cut_as_well(florist: Run, runs: Path) -> None:
    document = tuned(florist, runs / "full", "--taus", "0.5,1")
    last = RunDirectory.open(runs / "full").records()[-1].metrics
    assert document["points"][-1]["metrics"]["loss"] == pytest.approx(last["loss"], rel=1e-5)
    assert document["points"][0]["total_rank"] < document["points"][1]["total_rank"]


@pytest.mark.slow
def test_a_baseline_out_of_reach_is_said_and_nothing_written(florist: Run, runs: Path, tmp_path: Path) -> None:
    document = tuned(florist, runs / "florist", "--taus", TAUS, "--baseline", "0.001")
    assert document["florist_e"] is None
    assert document["florist_o"] is not None
    result = florist("tune", runs / "florist", "--taus", TAUS, "--baseline", "0.001", "-o", tmp_path / "out")
    assert result.returncode == 2
    assert "FLoRIST-E: no tau that was tried reaches loss 0.001 within 0" in result.stdout
    assert result.stderr.splitlines()[-1].startswith("florist: nothing was written to")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_adapters_are_weighed_and_measured_with_a_configuration(
    florist: Run, runs: Path, saved_adapters: list[Path], tmp_path: Path
) -> None:
    config, out = runs / "florist.toml", tmp_path / "out"
    words = (*saved_adapters, "--config", config, "--weights", "3,1,1")
    document = tuned(florist, *words, "--taus", "0.5,1", "--baseline", "100", "-o", out)
    assert document["source"] == {"adapters": [str(path) for path in saved_adapters], "config": str(config)}
    merged = florist(
        "aggregate", *saved_adapters, "--weights", "3,1,1", "--tau", "0.5", "-o", tmp_path / "ref", "--json"
    )
    expected, found = json.loads(merged.stdout), json.loads((out / "florist.json").read_text())
    assert found["inputs"] == expected["inputs"]
    for name, module in expected["modules"].items():
        assert found["modules"][name]["rank"] == module["rank"] == document["florist_e"]["ranks"][name]
        assert found["modules"][name]["relative_error"] == pytest.approx(module["relative_error"], abs=1e-5)
    ours, theirs = open_adapter(out).adapter, open_adapter(tmp_path / "ref").adapter
    assert all(relative_error(ours[name].delta_weight(), theirs[name].delta_weight()) < 1e-4 for name in theirs)


@pytest.mark.slow
def test_a_classifier_is_measured_with_its_head(florist: Run, tiny_bert: Path, toy_data: Path, tmp_path: Path) -> None:
    text = CONFIG.format(model=tiny_bert, data=toy_data, steps=4)
    text = text.replace('prompt_template = "{instruction}\\n"', 'label_field = "category"')
    text = text.replace("ranks = [4, 2]", 'ranks = [4, 2]\ntarget_modules = ["query", "value"]')
    run = simulated(tmp_path, "run", text + '[task]\nkind = "sequence-classification"\n')
    document = tuned(florist, run, "--taus", "0.5", "--metric", "accuracy")
    assert document["metric"] == "accuracy"
    last = RunDirectory.open(run).records()[-1].metrics
    assert document["points"][-1]["metrics"]["accuracy"] == last["accuracy"]
    assert document["points"][-1]["metrics"]["loss"] == pytest.approx(last["loss"], rel=1e-5)
    assert document["florist_o"]["metrics"]["accuracy"] == max(p["metrics"]["accuracy"] for p in document["points"])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["florist", "--config", "florist.toml"], "a configuration of its own"),
        (["florist", "full"], "one run or several adapters"),
        (["florist/adapter"], "--config CONFIG.toml names the model"),
        (["nowhere"], "expected the directory of a run"),
        (["florist", "--weights", "1"], "are for ADAPTERs"),
        (["florist", "--baseline", "1", "--baseline-run", "full"], "contradict each other"),
        (["florist", "--taus", "a,b"], "as 0.8,0.9,1, got 'a,b'"),
        (["florist", "--taus", "0.5,2"], "--taus: expected a fraction of the energy in (0, 1], got 2.0"),
        (["florist", "--metric", "accuracy"], "one of ['loss', 'perplexity', 'exact_match'], got 'accuracy'"),
        (["florist", "--metric", "multiple_choice"], "count as a test"),
        (["florist", "--margin", "-1"], "expected a margin of 0 or more"),
        (["florist", "--baseline", "nan"], "expected a finite baseline"),
        (["untold"], "expected validation examples to choose by"),
        (["florist", "--baseline-run", "untold"], "has others or none"),
        (["florist", "--baseline-run", "other"], "has others or none"),
        (["florist", "--baseline-run", "nowhere"], "no run.json"),
        (["florist", "-o", "full"], "already exists"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_tuned_is_refused_in_one_line(
    florist: Run, runs: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], reason: str
) -> None:
    monkeypatch.chdir(runs)
    assert reason in refused(florist("tune", *words))


def test_a_run_that_has_not_ended_is_refused(florist: Run, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "florist", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "adapter")
    line = refused(florist("tune", tmp_path / "run"))
    assert f"florist simulate --resume {tmp_path / 'run'}" in line


@pytest.mark.slow
def test_adapters_of_another_model_are_refused(
    florist: Run, runs: Path, saved_adapters: list[Path], tmp_path: Path
) -> None:
    shutil.copytree(saved_adapters[0], tmp_path / "renamed")
    file = tmp_path / "renamed" / "adapter_model.safetensors"
    tensors = {key.replace("q_proj", "z_proj"): tensor for key, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    line = refused(florist("tune", tmp_path / "renamed", "--config", runs / "florist.toml"))
    assert "z_proj" in line
    assert "unknown there" in line
    tensors = {
        key: torch.cat([t, t], dim=1) if "q_proj.lora_A" in key else t
        for key, t in load_file(saved_adapters[0] / "adapter_model.safetensors").items()
    }
    shutil.copy(saved_adapters[0] / "adapter_config.json", tmp_path / "renamed")
    save_file(tensors, file, metadata={"format": "pt"})
    assert "of shape (32, 32) there" in refused(
        florist("tune", tmp_path / "renamed", "--config", runs / "florist.toml")
    )


@pytest.mark.slow
def test_the_test_records_have_no_say(
    florist: Run, runs: Path, saved_adapters: list[Path], toy_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(toy_data, tmp_path / "rows")
    rows = json.loads((toy_data / "test.json").read_text())
    (tmp_path / "rows" / "test.json").write_text(json.dumps([row | {"output": "zzz"} for row in rows]))
    text = (runs / "florist.toml").read_text()
    for name, more in (("a", ""), ("b", '[evaluation]\nsplit = "test"\n')):
        folder = toy_data if name == "a" else tmp_path / "rows"
        (tmp_path / f"{name}.toml").write_text(text.replace(str(toy_data), str(folder)) + more)
    one, other = (
        tuned(florist, saved_adapters[0], "--config", tmp_path / f"{name}.toml", "--taus", "0.5") for name in "ab"
    )
    assert one["points"] == other["points"]


def test_another_name_of_the_base_is_noted(
    florist: Run, runs: Path, saved_adapters: list[Path], tmp_path: Path
) -> None:
    renamed = copied(saved_adapters[0], tmp_path / "renamed", edit_config(base_model_name_or_path="elsewhere"))
    result = florist("tune", renamed, "--config", runs / "florist.toml", "--taus", "0.5")
    assert result.returncode == 0
    assert "note: the adapters name the base model elsewhere, and are measured on" in result.stderr


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"lora_bias": True}, "got some with lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "the configuration trains, none, got {'lm_head.weight': "),
    ],
)
def test_what_would_be_measured_without_a_part_of_it_is_refused(
    florist: Run, runs: Path, tiny_llama: Path, tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    get_peft_model(base, config).save_pretrained(tmp_path / "site")
    line = refused(florist("tune", tmp_path / "site", "--config", runs / "florist.toml", "--average-full"))
    assert reason in line


def test_adapters_need_a_model_and_validation_examples_alone(
    florist: Run, runs: Path, tiny_llama: Path, toy_data: Path, tmp_path: Path
) -> None:
    # No [lora], no training file but the one to choose by, and no test file.
    shutil.copy(toy_data / "client_0.json", tmp_path / "all.json")
    file = tmp_path / "own.toml"
    file.write_text(
        f'[model]\nname_or_path = "{tiny_llama}"\n[data]\npath = "."\ntrain = "all.json"\nvalidation = "all.json"\n'
        'prompt_template = "{instruction}\\n"\n'
    )
    document = tuned(florist, runs / "florist" / "adapter", "--config", file, "--taus", "0.5,1")
    assert document["evaluations"] == 2
    # A run of the same file would train on nothing.
    assert "missing lora" in refused(florist("simulate", file))
    told = refused(florist("simulate", file, "--set", "lora.ranks=2"))
    assert "expected files to train on, got none but what data.validation names" in told


@pytest.mark.slow
def test_without_a_margin_the_margin_that_would_help_is_told(florist: Run, runs: Path) -> None:
    words = ("tune", runs / "florist", "--taus", "0.3,0.6,0.9,1")
    points = tuned(florist, *words[1:])["points"]
    losses = {point["tau"]: point["metrics"]["loss"] for point in points}
    assert losses[1.0] == min(losses.values())  # or there would be nothing to tell
    printed = florist(*words).stdout
    nearest = min((tau for tau in losses if tau < 1), key=lambda tau: losses[tau])
    assert f"falls short by {losses[nearest] - losses[1.0]:.2g}" in printed
    assert f"tau {nearest:g} (total rank" in printed
    assert "--margin" in printed
    assert "without a margin" not in florist(*words, "--margin", "10").stdout
