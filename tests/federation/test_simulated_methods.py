"""Every method with every start of local adapters, through training, restart and export."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from florist.config import read_config
from florist.config.building import build
from florist.federation.history import RunDirectory
from florist.federation.records import RoundRecord
from tests.tiny_federation import Silent, started, weights

CONFIG = """
[model]
name_or_path = "{model}"
[data]
path = "{data}"
test = "test.json"
partition = "iid"
prompt_template = "{{instruction}}\\n"
[lora]
ranks = [8, 4, 2]
alpha = [16, 4, 8]
target_modules = ["q_proj", "v_proj", "down_proj"]
[training]
learning_rate = 1e-2
batch_size = 4
steps = 3
threads = 1
[federation]
rounds = 3
fraction = 0.6
seed = 5
local_init = "{local_init}"
[aggregation]
method = "{method}"
[communication]
preset = "{preset}"
[evaluation]
every = 2
"""

ADDED = [(method, init) for method in ("florist", "flora") for init in ("fresh", "aligned", "warm")]
CONTINUED = [(method, "fresh") for method in ("fedit", "ffa", "flexlora", "fedex", "fedsvd", "raflora")]
ONLY_B_UP = {"ffa", "fedsvd", "linear"}
QUICK = {("florist", "aligned"), ("ffa", "fresh"), ("full", "fresh")}
every_combination = pytest.mark.parametrize(
    ("method", "local_init"),
    [
        pytest.param(*each, marks=() if each in QUICK else pytest.mark.slow)
        for each in [*ADDED, *CONTINUED, ("linear", "aligned"), ("full", "fresh")]
    ],
)


class KilledError(Exception):
    pass


class KilledAfterTheFirstRound(Silent):
    def closed(self, record: RoundRecord) -> None:
        raise KilledError


@pytest.fixture
def preset() -> str:
    """The preset of a test that has no other."""
    return "paper"


@pytest.fixture
def prepared(tiny_llama: Path, toy_data: Path, tmp_path: Path, method: str, local_init: str, preset: str) -> Path:
    file = tmp_path / "config.toml"
    text = CONFIG.format(model=tiny_llama, data=toy_data, method=method, local_init=local_init, preset=preset)
    file.write_text(text)
    return file


def untimed(record: RoundRecord) -> RoundRecord:
    clients = tuple(replace(client, seconds=0.0) for client in record.clients)
    return replace(record, clients=clients, seconds={})


COMPRESSED = [("florist", init, "compact") for init in ("fresh", "aligned", "warm")]
COMPRESSED += [(method, "fresh", "compact") for method in ("flora", "fedit", "ffa", "flexlora", "fedex", "full")]


@pytest.mark.parametrize(
    ("method", "local_init", "preset"),
    [
        *COMPRESSED[:1],
        *(
            pytest.param(*each, "paper", marks=() if each in QUICK else pytest.mark.slow)
            for each in [*ADDED, *CONTINUED, ("full", "fresh")]
        ),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in COMPRESSED[1:]),
    ],
)
@pytest.mark.quick(2)
def test_a_run_learns_is_exported_and_survives_a_kill(
    prepared: Path, tiny_llama: Path, tmp_path: Path, method: str, local_init: str, preset: str
) -> None:
    simulation, directory = started(prepared, tmp_path / "whole")
    records = simulation.run(directory, Silent())
    assert [len(record.clients) for record in records] == [2, 2, 2]
    assert records[-1].metrics["loss"] < directory.facts.initial["loss"] - 0.05

    # Base and final adapter, by PEFT alone, are what was evaluated last: all rounds are in it.
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), directory.adapter)
    last = records[-1].metrics["loss"]
    held_back = records[-1].held_back > 0  # and is in the final adapter
    assert held_back == (preset == "compact" and method in {"florist", "flora"})
    assert simulation.metrics[0](loaded)["loss"] == pytest.approx(last, rel=0.1 if held_back else 1e-5)

    interrupted, other = started(prepared, tmp_path / "killed")
    with pytest.raises(KilledError):
        interrupted.run(other, KilledAfterTheFirstRound())
    resumed = build(read_config(other.config_file)).run(RunDirectory.open(other.path), Silent())
    assert [untimed(record) for record in resumed] == [untimed(record) for record in records]
    assert weights(other.path) == weights(directory.path)


@every_combination
def test_bytes_and_ranks_are_those_of_what_was_sent(
    prepared: Path, tmp_path: Path, method: str, local_init: str
) -> None:
    simulation, directory = started(prepared, tmp_path / "run")
    records = simulation.run(directory, Silent())
    shapes, ranks = simulation.federation.shapes, simulation.federation.client_ranks
    both, halves_of_B = sum(m + n for m, n in shapes.values()), sum(m for m, _ in shapes.values())
    weights = 4 * sum(m * n for m, n in shapes.values())
    own = {
        client_id: weights if method == "full" else 4 * rank * (halves_of_B if method in ONLY_B_UP else both)
        for client_id, rank in ranks.items()
    }
    for record in records:
        # With a warm start too, the adapter is sent and not its change, which has twice the rank.
        assert all(client.upload_bytes == own[client.client_id] for client in record.clients)
        assert record.upload_bytes == sum(own[client.client_id] for client in record.clients)
        if method != "full":
            uploaded = sum(ranks[client.client_id] for client in record.clients)
            assert record.input_rank == uploaded * len(shapes)
            assert record.stack_bytes == 4 * uploaded * both
        assert record.total_rank == sum(record.ranks.values())
        assert record.download_bytes == sum(client.download_bytes for client in record.clients)
    # In the first round there is nothing to catch up with: the round's broadcast and nothing else.
    first = {client.client_id: client.download_bytes for client in records[0].clients}
    if (method, local_init) in ADDED or method == "linear":
        assert set(first.values()) == {records[0].broadcast_bytes}
    elif method == "fedex":
        assert all(sent > own[client_id] for client_id, sent in first.items())
        assert max(first.values()) == records[0].broadcast_bytes
    else:
        down = {client_id: 4 * ranks[client_id] * both for client_id in first} if method == "fedsvd" else own
        assert first == {client_id: down[client_id] for client_id in first}
        assert max(first.values()) == records[0].broadcast_bytes


@pytest.mark.parametrize("method", ["florist", "flora", "fedit", "ffa", "flexlora", "fedex", "linear", "fedsvd"])
@pytest.mark.parametrize("local_init", ["fresh"])
@pytest.mark.quick(2)
def test_the_base_stays_pristine(prepared: Path, tiny_llama: Path, tmp_path: Path, method: str) -> None:
    simulation, directory = started(prepared, tmp_path / "run")
    simulation.run(directory, Silent())
    base = dict(AutoModelForCausalLM.from_pretrained(tiny_llama).named_parameters())
    held = {
        name.replace(".base_layer", ""): parameter
        for name, parameter in simulation.model.peft.get_base_model().named_parameters()
        if ".lora_" not in name
    }
    assert held.keys() == base.keys()
    assert all(torch.equal(held[name], parameter) for name, parameter in base.items())


@pytest.mark.parametrize(("method", "local_init"), [("florist", "warm"), ("fedit", "fresh"), ("full", "fresh")])
@pytest.mark.quick(1)
def test_a_head_travels_beside_every_kind_of_update(
    prepared: Path, tiny_bert: Path, tmp_path: Path, method: str
) -> None:
    text = prepared.read_text()
    text = text.replace(str(read_config(prepared).model.name_or_path), str(tiny_bert))
    text = text.replace('prompt_template = "{instruction}\\n"', 'label_field = "category"')
    text = text.replace('["q_proj", "v_proj", "down_proj"]', '["query", "value"]')
    prepared.write_text(text + '[task]\nkind = "sequence-classification"\n')
    simulation, directory = started(prepared, tmp_path / "run")
    records = simulation.run(directory, Silent())
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3)
    loaded = PeftModel.from_pretrained(base, directory.adapter)
    assert simulation.metrics[0](loaded)["loss"] == pytest.approx(records[-1].metrics["loss"], rel=1e-5)
    head = 4 * (3 * 32 + 3)
    rank = {client.client_id: client.lora.rank for client in simulation.clients}
    for client in records[0].clients:
        assert client.upload_bytes == head + 4 * 4 * (32 * 32 if method == "full" else rank[client.client_id] * 64)
        # A new client is sent the head that everybody starts from.
        assert client.download_bytes >= 2 * head
