"""Clients that are trained side by side (``benchmarks/together.py``) upload what each would upload alone."""

from pathlib import Path

import pytest
import torch
from benchmarks.together import Remembered, Together

from florist.config import read_config
from florist.config.building import build
from florist.federation.simulation import Simulation
from florist.federation.state import ServerState
from florist.rounds import ClientUpdate
from tests.tiny_federation import PLAIN, Silent, configure

# All of a client's examples in a batch: the Trainer draws batches in an order of its own.
SETTINGS = ("lora.ranks=4", "training.batch_size=24", "training.steps=3", PLAIN)
LINEAR, FFA = ("aggregation.method=linear", "aggregation.method=ffa")


def alone(simulation: Simulation, state: ServerState) -> list[ClientUpdate]:
    return [simulation._train(client, state, Silent())[0] for client in simulation.clients]  # what is compared


def same(one: ClientUpdate, other: ClientUpdate) -> None:
    assert (one.client_id, one.num_examples, one.round_number) == (
        other.client_id,
        other.num_examples,
        other.round_number,
    )
    assert one.adapter.keys() == other.adapter.keys()
    for name, factor in one.adapter.items():
        torch.testing.assert_close(factor.A, other.adapter[name].A)
        torch.testing.assert_close(factor.B, other.adapter[name].B, atol=2e-4, rtol=1e-3)
    for name, tensor in one.saved_parameters.items():
        torch.testing.assert_close(tensor, other.saved_parameters[name], atol=2e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", [LINEAR, FFA])
def test_language_models(method: str, tmp_path: Path, tiny_llama: Path, toy_data: Path) -> None:
    simulation = build(read_config(configure(tmp_path, tiny_llama, toy_data), [*SETTINGS, method]))
    begun = simulation.initial_state  # before training moves the head
    first = alone(simulation, begun)
    state = simulation.federation.close_round(begun, first).state
    second, measured = alone(simulation, state), simulation.evaluate(state)
    together = Together(simulation)
    for each, before in ((first, begun), (second, state)):
        for one, other in zip(each, together.train(before, simulation.clients), strict=True):
            same(one, other)
    assert together.measure(state, simulation.metrics) == pytest.approx(measured, rel=1e-4)


@pytest.mark.slow
def test_classifiers_with_heads_of_their_own(tmp_path: Path, tiny_bert: Path, toy_data: Path) -> None:
    keys = [
        "task.kind=sequence-classification",
        "data.label_field=category",
        "data.prompt_template={instruction}",
        r"lora.target_modules=.*layer\.1\.attention\.self\.(query|value)",
    ]
    simulation = build(read_config(configure(tmp_path, tiny_bert, toy_data), [*SETTINGS, LINEAR, *keys]))
    for module in simulation.model.peft.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    begun = simulation.initial_state  # before training moves the head
    first = alone(simulation, begun)
    state = simulation.federation.close_round(begun, first).state
    measured = simulation.evaluate(state)
    together = Together(simulation)
    simulation.model.peft.eval()
    Remembered.below(simulation.model.peft.get_base_model().base_model, 1, {})
    for one, other in zip(first, together.train(begun, simulation.clients), strict=True):
        same(one, other)
    assert together.measure(state, simulation.metrics) == pytest.approx(measured, rel=1e-4)
