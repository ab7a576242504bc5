"""The local training of one client, by the Trainer of transformers."""

import os
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from florist.data.examples import EncodedExamples
from florist.errors import UnsupportedHardwareError
from florist.models.batch_order import GroupedByLength


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How a client trains in one round by AdamW, in the terms of transformers' ``TrainingArguments``.

    Attributes:
        learning_rate: The peak of the schedule.
        batch_size: How many examples each device takes in a step.
        steps: How many steps the optimiser makes in a round; None counts in epochs.
        epochs: How often a round passes over the client's examples, where `steps` is None.
        lr_scheduler_type: The schedule within one round; every round starts it anew.
        gradient_accumulation_steps: How many batches are summed before a step.
        weight_decay: The weight decay of AdamW.
        max_grad_norm: The norm to which the gradient is clipped.
        train_sampling_strategy: ``"random"`` shuffles the examples; with ``"group_by_length"`` examples of about the
            same length share a batch, which pads less (`florist.models.batch_order`).
        bf16: Whether to train in bfloat16 mixed precision.
        fp16: Whether to train in float16 mixed precision, with a scaled loss; this takes CUDA.
    """

    learning_rate: float = 3e-4
    batch_size: int = 8
    steps: int | None = None
    epochs: float = 1.0
    lr_scheduler_type: str = "constant"
    gradient_accumulation_steps: int = 1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    train_sampling_strategy: Literal["random", "group_by_length"] = "random"
    bf16: bool = False
    fp16: bool = False


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a machine offers for mixed precision.

    Attributes:
        cuda: Whether there is a CUDA device.
        bf16: Whether the device that trains computes in bfloat16; every CPU does, slowly.
    """

    cuda: bool
    bf16: bool

    @classmethod
    def found(cls) -> "Hardware":
        """Return what this machine offers."""
        cuda = torch.cuda.is_available()
        return cls(cuda, not cuda or torch.cuda.is_bf16_supported(including_emulation=False))


def require_precision(settings: TrainingSettings, hardware: Hardware) -> None:
    """Check that a machine can train in the precision that is asked for.

    Raises:
        UnsupportedHardwareError: The machine cannot.
    """
    if settings.fp16 and not hardware.cuda:
        raise UnsupportedHardwareError(
            "training.fp16 = true: expected a CUDA device, found none; use bf16, or float32 without either"
        )
    if settings.bf16 and not hardware.bf16:
        raise UnsupportedHardwareError(
            "training.bf16 = true: expected a GPU that computes in bfloat16 (Ampere or newer), found an older one; use "
            "fp16"
        )


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """What training did.

    Attributes:
        steps: How many steps the optimiser made.
        loss: The mean loss over the steps.
        seconds: The wall time in seconds.
    """

    steps: int
    loss: float
    seconds: float


def train(
    model: nn.Module,
    examples: EncodedExamples,
    settings: TrainingSettings,
    *,
    seed: int,
    on_step: Callable[[int, int], None],
) -> TrainingOutcome:
    """Train the parameters of `model` that require gradients, in place.

    Args:
        model: The base with a frozen global adapter and a trainable local one.
        examples: The examples of one client.
        settings: How to train.
        seed: The seed of the order of batches and of dropout; the Trainer seeds the process-wide generators with it.
        on_step: A function that is called after each step with the steps done and the steps in all.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, _unprepared_afterwards(model):
        trainer = _Trainer(
            settings,
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                learning_rate=settings.learning_rate,
                per_device_train_batch_size=settings.batch_size,
                max_steps=settings.steps if settings.steps is not None else -1,
                num_train_epochs=settings.epochs,
                lr_scheduler_type=settings.lr_scheduler_type,
                gradient_accumulation_steps=settings.gradient_accumulation_steps,
                weight_decay=settings.weight_decay,
                max_grad_norm=settings.max_grad_norm,
                bf16=settings.bf16,
                fp16=settings.fp16,
                seed=seed,
                data_seed=seed,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=torch.cuda.is_available(),
                use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=examples,  # pyright: ignore[reportArgumentType]  # any sequence will do
            data_collator=examples.collate,  # pyright: ignore[reportArgumentType]  # any mapping will do
            callbacks=[_OnStep(on_step)],
        )
        trainer.remove_callback(PrinterCallback)  # it prints to stdout, which belongs to the command's result
        output = trainer.train()
    return TrainingOutcome(output.global_step, output.training_loss, time.perf_counter() - started)


def fastest_thread_count(model: nn.Module, batch: Mapping[str, Any], steps: int = 5) -> int:
    """Return 1, or the number of cores where all of them are clearly faster for this model and batch.

    Small models lose more to the waking of threads than they gain, and where another process wants a core as well,
    threads that wait for each other can make them many times slower. Forward and backward passes are timed with one
    thread and with all cores in turn. All cores are taken where their slowest step takes at most two thirds of one
    thread's fastest. Parameters, gradients and random state stay as they are.

    Cost: `steps` training steps with either count, and one more.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    if available == 1 or next(model.parameters()).device.type != "cpu":
        return available
    before = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[]):
            _seconds_a_step(model, batch, 1)  # the first step pays for allocation
            one, many = zip(
                *((_seconds_a_step(model, batch, 1), _seconds_a_step(model, batch, available)) for _ in range(steps)),
                strict=True,
            )
    finally:
        torch.set_num_threads(before)
    return available if max(many) < min(one) / 1.5 else 1


def _seconds_a_step(model: nn.Module, batch: Mapping[str, Any], threads: int) -> float:
    torch.set_num_threads(threads)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    started = time.perf_counter()
    torch.autograd.grad(model(**batch).loss, trained, allow_unused=True)
    return time.perf_counter() - started


class _Trainer(Trainer):
    # transformers has a sampler of this name, which goes from long to short: it is not for rounds shorter than a pass.
    def __init__(self, settings: TrainingSettings, **given: Any) -> None:
        super().__init__(**given)
        self._settings = settings

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self._settings.train_sampling_strategy == "random":
            return super()._get_train_sampler(train_dataset)
        examples: Any = train_dataset if train_dataset is not None else self.train_dataset
        return GroupedByLength(examples, self.args.train_batch_size, self.args.seed)


@contextmanager
def _unprepared_afterwards(model: nn.Module) -> Generator[None, None, None]:
    # Accelerate leaves a model as it has prepared it: in bfloat16, for its evaluation and for every later training.
    names = ("forward", "_original_forward", "_is_accelerate_prepared")
    before = {name: vars(model)[name] for name in names if name in vars(model)}
    try:
        yield
    finally:
        for name in names:
            vars(model).pop(name, None)
        vars(model).update(before)


class _OnStep(TrainerCallback):
    def __init__(self, report: Callable[[int, int], None]) -> None:
        self._report = report

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  # transformers calls it so
        self._report(state.global_step, state.max_steps)
