"""Private rounds of a configuration file over Flower, with models that train."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict

from florist.config import read_config
from florist.errors import ConfigurationError
from florist.federation.history import RunDirectory
from florist.flower import configured_client_app, configured_server_app
from florist.flower.configured_client import _base, _participant
from florist.flower.messages import EVALUATE, HELLO, KEYS, TRAIN, WORDS
from tests.federation.test_private_simulation import CONFIG, NOISE, start
from tests.federation.test_simulated_methods import Silent, weights
from tests.flower.grids import MemoryGrid

Values = Mapping[str, str | int | float | bool]
MASKS = "secure_aggregation = true\nbits = 64\n"
NODES: Mapping[int, Values] = {11: {"partition-id": 2}, 12: {"partition-id": 0}, 13: {"partition-id": 1}}


@pytest.fixture(autouse=True)
def _nothing_cached() -> None:
    _participant.cache_clear()
    _base.cache_clear()


@pytest.fixture
def text(tiny_llama: Path, toy_data: Path) -> str:
    return CONFIG.format(model=tiny_llama, data=toy_data)


def serve(folder: Path, text: str, nodes: Mapping[int, Values] = NODES, **given: str | float) -> MemoryGrid:
    file = folder / "federation.toml"
    file.write_text(text)
    run_config = {"flower.wait": 5, "flower.evaluation": "none", "flower.run": str(folder / "run")}
    run_config |= {key.replace("__", "."): value for key, value in given.items()}
    grid = MemoryGrid(configured_client_app(file), nodes, run_config=run_config)
    configured_server_app(file)(grid, Context(1, 2, {}, RecordDict(), dict(run_config)))
    return grid


@pytest.mark.slow
def test_a_masked_run_has_the_bits_of_one_process(text: str, tmp_path: Path) -> None:
    simulation, inside = start(tmp_path, text + MASKS, "inside")
    simulation.run(inside, Silent())
    _base.cache_clear()
    grid = serve(tmp_path, text + MASKS)
    assert grid.nodes_of(TRAIN) == grid.nodes_of(EVALUATE) == []
    assert len(grid.nodes_of(KEYS)) == len(grid.nodes_of(WORDS)) == 9
    directory = RunDirectory.open(tmp_path / "run")
    expected, found = inside.load(simulation.initial_state), directory.load(simulation.initial_state)
    for name, factor in expected[0].global_adapter.items():
        assert torch.equal(found[0].global_adapter[name].B, factor.B)
        assert torch.equal(found[0].global_adapter[name].A, factor.A)
    for mine, its in zip(found[1], expected[1], strict=True):
        assert mine.privacy == its.privacy
        assert not mine.dropped
        assert [(each.client_id, each.upload_bytes) for each in mine.clients] == [
            (each.client_id, each.upload_bytes) for each in its.clients
        ]
    assert weights(directory.path) == weights(inside.path)
    for path in (directory.path / "rounds.jsonl", directory.adapter / "florist.json"):
        assert '"num_examples": null' in path.read_text()


@pytest.mark.slow
def test_noise_over_flower_ends_with_its_epsilon(text: str, tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    noisy = text.replace("rounds = 3", "rounds = 9") + NOISE + MASKS
    file = tmp_path / "other.toml"
    file.write_text(noisy)
    config = read_config(file)
    from florist.config.privacy import private_rounds_over_flower

    private = private_rounds_over_flower(config, 8)
    assert private is not None
    assert private.noise is not None
    two = private.noise.accountant.epsilon(2)
    serve(tmp_path, f"{noisy}epsilon = {two + 1e-6}\n")
    records = RunDirectory.open(tmp_path / "run").records()
    assert [line.epsilon for line in records] == [private.noise.accountant.epsilon(1), two]
    assert [line.privacy.spent for line in records if line.privacy] == [False, True]


@pytest.mark.slow
def test_noise_alone_is_measured_by_clients_who_trust_the_server(text: str, tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    grid = serve(tmp_path, text + NOISE, flower__evaluation="clients", federation__rounds=1)
    assert len(grid.nodes_of(TRAIN)) == len(grid.nodes_of(EVALUATE)) == 3
    (line,) = RunDirectory.open(tmp_path / "run").records()
    assert "loss" in line.metrics
    assert line.epsilon is not None


def test_clients_that_measure_are_refused_under_masks(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"flower\.evaluation = 'clients'.*set it to 'server' or 'none'"):
        serve(tmp_path, text + MASKS, flower__evaluation="clients")


@pytest.mark.slow
def test_a_site_demands_what_its_node_config_says(text: str, tmp_path: Path) -> None:
    careful = {**NODES[12], "privacy.secure_aggregation": True, "privacy.threshold": 3}
    nodes = {**NODES, 12: careful}
    grid = serve(tmp_path, text + MASKS, nodes, federation__rounds=1)
    (line,) = RunDirectory.open(tmp_path / "run").records()
    assert "expected a threshold of 3 or more" in line.dropped[0].reason
    heads = [
        reply.config_records["florist"]
        for reply in (grid.app(message, grid.contexts[node]).content for message, node in hellos(grid))
    ]
    assert all("num_examples" not in head and head["held_out"] == 0 for head in heads)
    (tmp_path / "clear").mkdir()
    serve(tmp_path / "clear", text, nodes, federation__rounds=1, flower__min_clients=2)
    (line,) = [json.loads(each) for each in (tmp_path / "clear" / "run" / "rounds.jsonl").read_text().splitlines()]
    assert [each["client_id"] for each in line["clients"]] == ["client_1", "client_2"]


@pytest.mark.slow
def test_clients_add_the_noise_that_a_configuration_asks_for(text: str, tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    shares = 'noise = "clients"\nhonest_fraction = 1.0\n'
    nodes = {**NODES, 12: {**NODES[12], "privacy.noise_multiplier": 0.7}}
    serve(tmp_path, text + NOISE + MASKS + shares, nodes, federation__rounds=1)
    (line,) = RunDirectory.open(tmp_path / "run").records()
    assert line.privacy is not None
    assert (line.privacy.noise, line.privacy.honest_fraction) == ("clients", 1.0)
    assert len(line.clients) == 2
    assert "expected noise of 0.7 or more" in line.dropped[0].reason  # whose node config demands more
    # Of two clients that are left, both are honest, and as many have to be.
    assert line.privacy.deviation == pytest.approx(0.5 * 1.0 / 3)


def hellos(grid: MemoryGrid) -> list[tuple]:
    found = [message for message in grid.sent if message.metadata.message_type == HELLO]
    return [(message, message.metadata.dst_node_id) for message in found]
