"""What a client does with its examples in a round: the Trainer of transformers, or a training loop of one's own."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from florist.data.examples import EncodedExamples
from florist.errors import GivenObjectError
from florist.models.batch_order import GroupedByLength
from florist.models.training import TrainingOutcome, TrainingSettings, train
from florist.seeding import generator


@dataclass(frozen=True, slots=True)
class TrainingContext:
    """What a training loop may want to know beside the model and the examples.

    Attributes:
        client_id: The client whose examples they are.
        round_number: The round, counted from 1.
        seed: The seed of the client in this round. The process-wide generators are seeded with it beforehand.
        settings: How the client is configured to train; a loop of one's own may follow it or not.
        on_step: A function to call after each step with the steps done and the steps in all, which shows progress.
    """

    client_id: str
    round_number: int
    seed: int
    settings: TrainingSettings
    on_step: Callable[[int, int], None]

    @property
    def steps(self) -> int | None:
        """How many steps the settings ask for; None where they count in epochs."""
        return self.settings.steps

    def batches(self, model: nn.Module, examples: EncodedExamples) -> Iterator[Mapping[str, Any]]:
        """Yield batches of the configured size on the model's device, for the configured steps or epochs.

        Every pass over the examples has another order, drawn from the seed, and with ``train_sampling_strategy =
        "group_by_length"`` examples of about the same length share a batch. `on_step` is told of each batch once the
        loop comes back for the next one.
        """
        device, size = next(model.parameters()).device, self.settings.batch_size
        in_a_pass = math.ceil(len(examples) / size)
        total = self.settings.steps or max(1, round(self.settings.epochs * in_a_pass))
        grouped = self.settings.train_sampling_strategy == "group_by_length"
        sampler = GroupedByLength(examples, size, self.seed) if grouped else None
        order: list[int] = []
        for step in range(total):
            number, place = divmod(step, in_a_pass)
            if place == 0:
                draw = generator(self.seed, "batches", number)
                order = torch.randperm(len(examples), generator=draw).tolist() if sampler is None else list(sampler)
            batch = examples.collate([examples[i] for i in order[place * size : (place + 1) * size]])
            yield {name: tensor.to(device) for name, tensor in batch.items()}
            self.on_step(step + 1, total)


LocalTraining = Callable[[Any, EncodedExamples, TrainingContext], TrainingOutcome | float]
"""Trains the parameters of a model that require gradients, in place, and returns the outcome or the mean loss."""


def by_trainer(model: nn.Module, examples: EncodedExamples, context: TrainingContext) -> TrainingOutcome:
    """Train as `context.settings` say, by the Trainer of transformers."""
    return train(model, examples, context.settings, seed=context.seed, on_step=context.on_step)


def trained(
    local_training: LocalTraining, model: nn.Module, examples: EncodedExamples, context: TrainingContext
) -> TrainingOutcome:
    """Run a training loop, and take what it returns as an outcome.

    Args:
        local_training: The loop.
        model: The base with a frozen global adapter and a trainable local one.
        examples: The examples of one client.
        context: What else the loop may want to know.

    Raises:
        GivenObjectError: The loop returned neither a loss nor an outcome.
    """
    if local_training is by_trainer:
        return by_trainer(model, examples, context)
    steps = 0

    def counted(done: int, total: int) -> None:
        nonlocal steps
        steps = done
        context.on_step(done, total)

    set_seed(context.seed)
    model.train()
    started = time.perf_counter()
    found = local_training(
        model,
        examples,
        TrainingContext(context.client_id, context.round_number, context.seed, context.settings, counted),
    )
    model.zero_grad(set_to_none=True)  # the next client has other parameters under the same names
    if isinstance(found, TrainingOutcome):
        return found
    try:
        loss = float(found)
    except (TypeError, ValueError) as error:
        raise GivenObjectError(
            f"train: expected the mean loss as a number, or a TrainingOutcome, got {found!r} of client "
            f"{context.client_id}; return one of them"
        ) from error
    return TrainingOutcome(steps, loss, time.perf_counter() - started)
