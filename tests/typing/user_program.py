"""A program as a user writes it, by the public names alone. It is checked for types, and never run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import florist
from florist import ByteBudget, EnergyThreshold, FloristError, LoraFactor
from florist.simulating import Run


def aggregated(adapters: Sequence[Path], out: Path) -> Path:
    """Combine saved adapters, and keep the result."""
    try:
        result = florist.aggregate(adapters, rank_rule=EnergyThreshold(0.9), num_examples=[100] * len(adapters))
    except FloristError as error:
        raise SystemExit(str(error)) from error
    result.write(out)
    return out


def train(model: Any, examples: Any, context: Any) -> float:
    """A training loop of one's own."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=context.settings.learning_rate)
    losses: list[float] = []
    for batch in context.batches(model, examples):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return sum(losses) / len(losses)


def parameters(model: Any) -> Mapping[str, float]:
    """A metric of one's own."""
    return {"parameters": float(sum(parameter.numel() for parameter in model.parameters()))}


def require(*values: object) -> None:
    """Check that all values are there."""
    assert all(value is not None for value in values)


def played(model: Path, out: Path) -> dict[str, float]:
    """Play a federation, go on with it, and read what it measured."""
    run = florist.simulate(
        model=model,
        clients={"a": [("ask", "answer")] * 4, "b": [{"instruction": "ask", "output": "answer"}] * 4},
        ranks=[4, 2],
        method=florist.Florist(ByteBudget(10_000)),
        rounds=2,
        train=train,
        metric=parameters,
        out=out,
        resume=True,
    )
    require(run.adapter, dict(run.metrics))
    again = Run.open(out)
    losses = {client.client_id: client.loss for record in again.records for client in record.clients}
    factor = LoraFactor(torch.zeros(4, 2), torch.zeros(2, 4))
    require(factor.rank, run.state)
    return losses
