"""Flower's engine and the one in the process give the same federation, bit for bit."""

from pathlib import Path

import pytest
import torch

from florist.config import read_config
from florist.config.building import build
from florist.config.methods import make_aggregator
from florist.flower import Journal, configured_client_app
from florist.flower.strategy import FloristStrategy
from tests.federation.test_simulation import configure, run
from tests.flower.grids import MemoryGrid

MORE = [pytest.param(method, marks=pytest.mark.slow) for method in ("flora", "fedit", "flexlora")]


@pytest.mark.parametrize("method", ["florist", "ffa", "fedex", "linear", "fedsvd", *MORE])
def test_the_same_adapter_bit_for_bit(method: str, tiny_llama: Path, toy_data: Path, tmp_path: Path) -> None:
    file = configure(tmp_path, tiny_llama, toy_data, rounds=3, extra=f'[aggregation]\nmethod = "{method}"')
    inside = run(file, tmp_path / "inside")
    config = read_config(file)
    grid = MemoryGrid(configured_client_app(file), {11: {"partition-id": 1}, 12: {"partition-id": 0}})
    journal = Journal(tmp_path / "flower", method)
    strategy = FloristStrategy(
        make_aggregator(config.aggregation, 8), wait=5, evaluate_on_clients=False, journal=journal
    )
    strategy.start(grid, num_rounds=3)
    expected, _ = inside.load(build(config).initial_state)
    found, records = journal.load(expected)
    assert [len(line.clients) for line in records] == [2, 2, 2]
    a, b = expected.global_adapter, found.global_adapter
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name].B, b[name].B)
        assert torch.equal(a[name].A, b[name].A)
