"""Flower's engine and the one in the process give the same federation, bit for bit, whatever travels how."""

from pathlib import Path

import pytest
import torch

from florist.config import Config, read_config
from florist.config.building import build
from florist.config.communication import aggregator_of, communication_of
from florist.config.methods import LOCAL_INITS
from florist.factors import AdapterState
from florist.federation.records import RoundRecord
from florist.federation.state import ServerState
from florist.flower import Journal, configured_client_app
from florist.flower.configured_client import _base, _participant
from florist.flower.strategy import FloristStrategy
from tests.flower.grids import MemoryGrid
from tests.tiny_federation import FAST, configure, run

MORE = [
    *(pytest.param(method, marks=pytest.mark.slow) for method in ("linear", "ffa", "fedex")),
    # These send what the others send.
    *(
        pytest.param(method, marks=[pytest.mark.slow, pytest.mark.soak])
        for method in ("flora", "fedit", "flexlora", "fedsvd")
    ),
]
COMPACT = '[communication]\npreset = "compact"\n'
CODES = '[communication]\nupload = "int8"\ndownload = "int8"\n'


@pytest.fixture(autouse=True)
def _nothing_cached() -> None:
    _participant.cache_clear()
    _base.cache_clear()


def over_flower(file: Path, folder: Path, config: Config) -> tuple[ServerState, list[RoundRecord]]:
    grid = MemoryGrid(configured_client_app(file), {11: {"partition-id": 1}, 12: {"partition-id": 0}})
    method = config.aggregation.method
    journal = Journal(folder, method)
    strategy = FloristStrategy(
        aggregator_of(config, 8),
        seed=config.federation.seed,
        local_init=LOCAL_INITS[config.federation.local_init](),
        fraction=config.federation.fraction,
        wait=5,
        evaluate_on_clients=False,
        journal=journal,
        communication=communication_of(config),
    )
    strategy.start(grid, num_rounds=config.federation.rounds)
    return journal.load(build(config).initial_state)


def assert_same_bits(a: AdapterState, b: AdapterState) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name].B, b[name].B)
        assert torch.equal(a[name].A, b[name].A)


def assert_same_federation(file: Path, folder: Path) -> tuple[ServerState, list[RoundRecord]]:
    """The global adapter, what the server holds back, the saved parameters, and what every client sent are the same."""
    inside = run(file, folder / "inside")
    config = read_config(file)
    expected, expected_records = inside.load(build(config).initial_state)
    found, records = over_flower(file, folder / "flower", config)
    assert_same_bits(found.global_adapter, expected.global_adapter)
    assert_same_bits(found.owed.adapter, expected.owed.adapter)
    for mine, its in (
        (found.saved_parameters, expected.saved_parameters),
        (found.owed.saved_parameters, expected.owed.saved_parameters),
    ):
        assert mine.keys() == its.keys()
        assert all(torch.equal(mine[name], its[name]) for name in its)
    for line, its in zip(records, expected_records, strict=True):
        assert not line.dropped
        assert [(each.client_id, each.upload_bytes, each.held_back) for each in line.clients] == [
            (each.client_id, each.upload_bytes, each.held_back) for each in its.clients
        ]
        assert (line.broadcast_bytes, line.held_back) == (its.broadcast_bytes, its.held_back)
    return found, records


@pytest.mark.slow
@pytest.mark.parametrize("method", ["florist", *MORE])
def test_the_same_adapter_bit_for_bit(method: str, tiny_llama: Path, toy_data: Path, tmp_path: Path) -> None:
    file = configure(tmp_path, tiny_llama, toy_data, rounds=3, extra=f'[aggregation]\nmethod = "{method}"')
    _, records = assert_same_federation(file, tmp_path)
    assert [len(line.clients) for line in records] == [2, 2, 2]


@pytest.mark.slow
def test_the_same_with_what_is_held_back(tiny_llama: Path, toy_data: Path, tmp_path: Path) -> None:
    file = configure(tmp_path, tiny_llama, toy_data, rounds=3, extra=COMPACT)
    found, records = assert_same_federation(file, tmp_path)
    assert found.owed.norm > 0
    assert all(client.held_back > 0 for line in records for client in line.clients)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["warm", pytest.param("fresh", marks=pytest.mark.soak)])
def test_the_same_from_another_start(start: str, tiny_llama: Path, toy_data: Path, tmp_path: Path) -> None:
    extra = f'local_init = "{start}"\n{COMPACT}'
    assert_same_federation(configure(tmp_path, tiny_llama, toy_data, extra=extra), tmp_path)


@pytest.mark.parametrize("preset", [COMPACT, pytest.param(CODES, marks=pytest.mark.soak)])
@pytest.mark.slow
def test_the_same_where_half_of_the_clients_are_asked(
    preset: str, tiny_llama: Path, toy_data: Path, tmp_path: Path
) -> None:
    extra = f"fraction = 0.5\nseed = 3\n{preset}"
    _, records = assert_same_federation(configure(tmp_path, tiny_llama, toy_data, rounds=5, extra=extra), tmp_path)
    assert {line.clients[0].client_id for line in records} == {"client_0", "client_1"}


@pytest.mark.parametrize("method", MORE)
def test_the_same_through_a_codec_alone(method: str, tiny_llama: Path, toy_data: Path, tmp_path: Path) -> None:
    extra = f'[aggregation]\nmethod = "{method}"\n{CODES}'
    assert_same_federation(configure(tmp_path, tiny_llama, toy_data, extra=extra), tmp_path)


@pytest.mark.slow
def test_the_same_by_a_budget(tiny_llama: Path, toy_data: Path, tmp_path: Path) -> None:
    extra = '[communication]\nupload = "int4"\nupload_budget = "4kB"\nfeedback = "clients"\n'
    _, records = assert_same_federation(configure(tmp_path, tiny_llama, toy_data, extra=extra), tmp_path)
    assert all(client.upload_bytes <= 4000 for line in records for client in line.clients)


@pytest.mark.parametrize("communication", [COMPACT, pytest.param(CODES, marks=pytest.mark.soak)])
@pytest.mark.slow
def test_the_same_with_a_head(communication: str, tiny_bert: Path, toy_data: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    text = FAST.format(model=tiny_bert, data=toy_data, steps=4, rounds=3, extra="")
    text = text.replace('prompt_template = "{instruction}\\n"', 'label_field = "category"')
    text = text.replace("ranks = [8, 4]", 'ranks = [8, 4]\ntarget_modules = ["query", "value"]')
    labels = '\n[task]\nkind = "sequence-classification"\nlabels = ["blue", "green", "red"]\n'
    file.write_text(text + labels + communication)
    found, records = assert_same_federation(file, tmp_path)
    assert found.saved_parameters
    assert all(line.aggregated for line in records)


@pytest.mark.slow
def test_the_same_with_whole_weights(tiny_llama: Path, toy_data: Path, tmp_path: Path) -> None:
    file = configure(tmp_path, tiny_llama, toy_data, extra=f'[aggregation]\nmethod = "full"\n{CODES}')
    found, _ = assert_same_federation(file, tmp_path)
    assert found.saved_parameters
