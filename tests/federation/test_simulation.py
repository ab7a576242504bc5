import gc
import json
import os
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from florist.config import read_config
from florist.config.building import build
from florist.federation.records import RoundRecord
from tests.tiny_federation import FAST, PLAIN, Silent, configure, run, weights


def test_two_clients_two_rounds(tiny_llama: Path, toy_data: Path, tmp_path: Path) -> None:
    directory = run(configure(tmp_path, tiny_llama, toy_data, steps=15), tmp_path / "run", PLAIN)
    records = [json.loads(line) for line in (directory.path / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in records] == [1, 2]
    assert records[1]["metrics"]["loss"] < records[0]["metrics"]["loss"] < directory.facts.initial["loss"]
    first = records[0]
    assert [client["client_id"] for client in first["clients"]] == ["client_0", "client_1"]
    assert [client["rank"] for client in first["clients"]] == [8, 4]
    assert [client["num_examples"] for client in first["clients"]] == [12, 24]
    assert first["input_rank"] == 14 * (8 + 4)
    assert 0 < first["total_rank"] < first["input_rank"]
    assert first["broadcast_bytes"] < first["stack_bytes"] == first["upload_bytes"]
    assert first["download_bytes"] == 2 * first["broadcast_bytes"]
    # The base is untouched, and base + final adapter is what was evaluated last.
    simulation = build(read_config(directory.config_file))
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    loaded = PeftModel.from_pretrained(base, directory.adapter)
    assert simulation.metrics[0](loaded)["loss"] == pytest.approx(records[1]["metrics"]["loss"], rel=1e-6)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(
    tiny_llama: Path, toy_data: Path, tmp_path: Path
) -> None:
    config = configure(tmp_path, tiny_llama, toy_data)
    first, second = run(config, tmp_path / "a"), run(config, tmp_path / "b")
    assert weights(first.path) == weights(second.path)
    assert weights(run(config, tmp_path / "c", "federation.seed=1").path) != weights(first.path)


@pytest.mark.slow
def test_partial_participation_counts_catch_up(tiny_llama: Path, toy_data: Path, tmp_path: Path) -> None:
    config = configure(tmp_path, tiny_llama, toy_data, steps=2, rounds=5, extra="fraction = 0.5\nseed = 3")
    records = run(config, tmp_path / "run").records()
    assert all(len(line.clients) == 1 for line in records)
    asked = [line.clients[0].client_id for line in records]
    assert set(asked) == {"client_0", "client_1"}
    for earlier, line in zip([None, *records], records, strict=False):
        own = line.clients[0].download_bytes - line.broadcast_bytes
        if earlier is None or earlier.clients[0].client_id == line.clients[0].client_id:
            assert own == 0
        else:
            assert own > 0


def test_a_classifier_with_its_head_in_the_round(tiny_bert: Path, toy_data: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    text = FAST.format(model=tiny_bert, data=toy_data, steps=20, rounds=2, extra="")
    text = text.replace('prompt_template = "{instruction}\\n"', 'label_field = "category"')
    text = text.replace("ranks = [8, 4]", 'ranks = [8, 4]\ntarget_modules = ["query", "value"]')
    file.write_text(text + '\n[task]\nkind = "sequence-classification"\n')
    directory = run(file, tmp_path / "run", PLAIN)
    records = directory.records()
    assert records[-1].metrics["loss"] < directory.facts.initial["loss"]
    head_bytes = 4 * (3 * 32 + 3)
    assert records[0].clients[0].upload_bytes == head_bytes + 4 * 4 * 8 * (32 + 32)
    # A new client is sent the head that everybody starts from.
    assert records[0].clients[0].download_bytes == head_bytes + records[0].broadcast_bytes
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3)
    loaded = PeftModel.from_pretrained(base, directory.adapter)
    metrics = build(read_config(directory.config_file)).metrics[0](loaded)
    assert metrics["loss"] == pytest.approx(records[-1].metrics["loss"], rel=1e-5)
    assert metrics["accuracy"] == records[-1].metrics["accuracy"]


@pytest.mark.parametrize("preset", ["paper", "compact"])
def test_a_client_that_diverges_is_dropped_and_the_round_goes_on(
    tiny_llama: Path, toy_data: Path, tmp_path: Path, preset: str
) -> None:
    config = configure(tmp_path, tiny_llama, toy_data, rounds=1)
    simulation = build(read_config(config, [f"communication.preset={preset}"]))
    diverges = simulation.clients[0]
    infinite = type(diverges)(
        diverges.client_id, diverges.examples, type(diverges.lora)(rank=8, alpha=float("inf")), diverges.training
    )
    broken = type(simulation)(
        **{name: getattr(simulation, name) for name in ("model", "base_model", "federation", "metrics", "rounds")},
        clients=(infinite, simulation.clients[1]),
    )
    directory = broken.start(tmp_path / "run", "", "florist", 1, Silent())
    (line,) = broken.run(directory, Silent())
    assert [client.client_id for client in line.clients] == ["client_1"]
    assert [drop.client_id for drop in line.dropped] == ["client_0"]
    assert "NaN or inf" in line.dropped[0].reason
    assert line.aggregated
    # What it downloaded counts all the same.
    assert line.download_bytes == line.clients[0].download_bytes
    assert not directory.client_residuals().of("client_0")
    assert bool(directory.client_residuals().of("client_1")) == (preset == "compact")


@pytest.mark.slow
def test_the_final_adapter_is_tested_once_on_what_no_round_saw(
    tiny_llama: Path, toy_data: Path, tmp_path: Path
) -> None:
    config = configure(tmp_path, tiny_llama, toy_data)
    directory = run(config, tmp_path / "run", "data.validation_fraction=0.2", PLAIN)
    tested = json.loads((directory.path / "test.json").read_text())
    simulation = build(read_config(directory.config_file))
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), directory.adapter)
    expected = build(read_config(config)).metrics[0](loaded)
    assert tested["metrics"] == {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()}
    assert tested["lower_is_better"] == {"loss": True, "perplexity": True}
    assert directory.records()[-1].metrics == {
        name: pytest.approx(value, rel=1e-5) for name, value in simulation.metrics[0](loaded).items()
    }
    # A run that ended is not tested again.
    written = (directory.path / "test.json").stat().st_mtime_ns
    simulation.run(directory, Silent())
    assert (directory.path / "test.json").stat().st_mtime_ns == written
    assert not (run(config, tmp_path / "plain").path / "test.json").exists()


def test_every_client_trains_by_its_own_settings(tiny_llama: Path, toy_data: Path, tmp_path: Path) -> None:
    simulation = build(read_config(configure(tmp_path, tiny_llama, toy_data, rounds=1), ["training.steps=[2, 5]"]))
    taken: dict[str, int] = {}

    class Counting(Silent):
        def training(self, round_number: int, client_id: str, done: int, total: int) -> None:
            taken[client_id] = done

    simulation.run(simulation.start(tmp_path / "run", "", "florist", 1, Silent()), Counting())
    assert taken == {"client_0": 2, "client_1": 5}


@pytest.mark.slow  # threads that wait for a busy machine
def test_threads_are_chosen_where_none_are_given(tiny_llama: Path, toy_data: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    simulation = build(read_config(configure(tmp_path, tiny_llama, toy_data)))
    directory = simulation.start(tmp_path / "run", "", "florist", None, Silent())
    assert directory.facts.threads in {1, len(os.sched_getaffinity(0))}
    torch.set_num_threads(before)


@pytest.mark.parametrize("method", ["florist", "fedit", "full"])
def test_a_run_whose_rounds_all_fail_ends_without_an_adapter(
    tiny_llama: Path, toy_data: Path, tmp_path: Path, method: str
) -> None:
    config = configure(tmp_path, tiny_llama, toy_data, rounds=1)
    overrides = ["training.learning_rate=1e38", f"aggregation.method={method}", "data.validation_fraction=0.2"]
    directory = run(config, tmp_path / "run", *overrides)
    (line,) = directory.records()
    assert (line.aggregated, len(line.dropped)) == (False, 2)
    assert not directory.adapter.exists()
    # What there is to deliver is the base as it was.
    assert directory.tested is not None


class Failing(Silent):
    def closed(self, record: RoundRecord) -> None:
        raise RuntimeError("told so")


def test_a_run_that_breaks_off_leaves_the_garbage_collector_as_it_was(
    tiny_llama: Path, toy_data: Path, tmp_path: Path
) -> None:
    simulation = build(read_config(configure(tmp_path, tiny_llama, toy_data, steps=1, rounds=1)))
    directory = simulation.start(tmp_path / "run", "", "florist", 1, Silent())
    with pytest.raises(RuntimeError, match="told so"):
        simulation.run(directory, Failing())
    assert gc.get_freeze_count() == 0
