"""The communication efficiency, against the figures that the FLoRIST paper prints."""

import pytest

from florist.aggregation.efficiency import communication_efficiency
from florist.config.methods import make_aggregator
from florist.config.sections import AggregationSection
from florist.factors import AdapterState
from florist.rounds import ClientUpdate, Trained
from tests.builders import adapter

RANK, CLIENTS = 16, 8


def updates(modules: int, *, one_A: bool) -> list[ClientUpdate]:
    """Of clients that adapt so many modules; of whom all hold one A, where B alone is trained."""
    shapes = {f"module{number}": (20, 18) for number in range(modules)}
    adapters = [adapter(RANK, seed, shapes=shapes) for seed in range(CLIENTS)]
    if one_A:
        shared = adapters[0]
        adapters = [
            AdapterState.of({name: type(factor)(factor.B, shared[name].A) for name, factor in one.items()})
            for one in adapters
        ]
    return [ClientUpdate(f"client_{k}", one, 1, 1) for k, one in enumerate(adapters)]


@pytest.mark.parametrize(
    ("modules", "method", "times_1e4"),
    [
        # TinyLlama: q_proj and v_proj of 22 layers.
        *((44, *row) for row in (("fedit", 14.20), ("flora", 1.78), ("flexlora", 14.20), ("ffa", 28.41))),
        # LLaMA-7B: q_proj and v_proj of 32 layers.
        *((64, *row) for row in (("fedit", 9.77), ("flora", 1.22), ("flexlora", 9.77), ("ffa", 19.53))),
    ],
)
def test_the_efficiency_is_that_of_the_paper(modules: int, method: str, times_1e4: float) -> None:
    aggregator = make_aggregator(AggregationSection(method=method), RANK)
    broadcast = aggregator(updates(modules, one_A=method == "ffa"))
    found = communication_efficiency(broadcast.certificate.total_rank, aggregator.work.trained)
    assert found is not None
    assert found * 1e4 == pytest.approx(times_1e4, abs=0.005)


def test_where_no_factors_travel_there_is_none() -> None:
    assert communication_efficiency(0, Trained.FACTORS) is None
    assert communication_efficiency(10, Trained.WEIGHTS) is None
