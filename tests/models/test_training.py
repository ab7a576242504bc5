import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from florist.data.causal_lm import CausalLmEncoder
from florist.data.examples import EncodedExamples, Features, encode_examples
from florist.data.prompts import template_prompt
from florist.data.reading import read_examples
from florist.data.rendering import InstructionPrompt
from florist.data.shapes import ALPACA
from florist.errors import UnsupportedHardwareError
from florist.evaluation import LanguageModelLoss
from florist.factors import AdapterState, LoraFactor
from florist.models.federated_model import FederatedModel, LocalLora
from florist.models.local_training import LocalTraining, TrainingContext, by_trainer
from florist.models.local_training import trained as trained_by
from florist.models.training import Hardware, TrainingSettings, fastest_thread_count, require_precision, train
from florist.rounds import NO_ADAPTER

LORA = LocalLora(rank=4, alpha=8.0)
SETTINGS = TrainingSettings(learning_rate=5e-3, batch_size=4, steps=3)


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def examples(tokenizer: PreTrainedTokenizerBase, toy_data: Path) -> EncodedExamples:
    encoder = CausalLmEncoder(tokenizer, InstructionPrompt(ALPACA, template_prompt("{instruction}:")), 40)
    return encode_examples(
        read_examples(toy_data / "client_1.json"), encoder, DataCollatorForSeq2Seq(tokenizer), "client_1"
    )


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> FederatedModel:
    """Shared, as by the clients of a simulation, each of which starts its own local adapter.

    Its global adapter does something, so that a change of it would be seen.
    """
    found = FederatedModel(AutoModelForCausalLM.from_pretrained(tiny_llama), "all-linear", (), "CAUSAL_LM")
    draw = torch.Generator().manual_seed(9)
    held = {
        name: LoraFactor(torch.randn(m, 2, generator=draw) / 9, torch.randn(2, n, generator=draw) / 9)
        for name, (m, n) in found.shapes.items()
    }
    found.set_global(AdapterState.of(held))
    return found


def silent(done: int, total: int) -> None:
    pass


def trained(model: FederatedModel, examples: EncodedExamples, settings: TrainingSettings, seed: int) -> AdapterState:
    model.start_local(LORA, NO_ADAPTER, seed=7, max_rank=4)
    train(model.peft, examples, settings, seed=seed, on_step=silent)
    return model.read_local()


def same_bits(first: AdapterState, second: AdapterState) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name].B, second[name].B) and torch.equal(first[name].A, second[name].A) for name in first
    )


def parameters(model: FederatedModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.peft.named_parameters()}


@pytest.mark.parametrize("dropout", [pytest.param(0.0, marks=pytest.mark.slow), 0.2])
def test_training_reproduces_from_its_seed_and_nothing_else(
    model: FederatedModel, examples: EncodedExamples, dropout: float
) -> None:
    def run(seed: int) -> AdapterState:
        model.start_local(replace(LORA, dropout=dropout), NO_ADAPTER, seed=7, max_rank=4)
        train(model.peft, examples, SETTINGS, seed=seed, on_step=silent)
        return model.read_local()

    first = run(1)
    assert any(float(factor.B.abs().max()) > 0 for factor in first.values())
    # Another client's training comes between, and draws from the process-wide generators.
    assert not same_bits(first, run(2))
    torch.manual_seed(1234)
    assert same_bits(first, run(1))


@pytest.mark.slow
def test_without_dropout_the_seed_decides_the_order_of_batches(
    model: FederatedModel, examples: EncodedExamples
) -> None:
    one_batch = replace(SETTINGS, batch_size=len(examples), steps=1)
    by_seed = [trained(model, examples, one_batch, seed) for seed in (1, 2)]
    for name, factor in by_seed[0].items():
        # One batch of all rows: in another order, but for rounding the same.
        torch.testing.assert_close(factor.B, by_seed[1][name].B, atol=1e-4, rtol=1e-3)
    assert not same_bits(trained(model, examples, SETTINGS, 1), trained(model, examples, SETTINGS, 2))


def test_only_the_local_adapter_changes(model: FederatedModel, examples: EncodedExamples) -> None:
    model.start_local(LORA, NO_ADAPTER, seed=7, max_rank=4)
    before = parameters(model)
    train(model.peft, examples, SETTINGS, seed=1, on_step=silent)
    after = parameters(model)
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    local = {name for name in after if ".local." in name}
    assert len(local) == 2 * len(model.shapes)
    assert changed == local
    assert sum(".global." in name for name in after) == 2 * len(model.shapes)


def test_training_learns(model: FederatedModel, examples: EncodedExamples) -> None:
    model.start_local(LORA, NO_ADAPTER, seed=7, max_rank=4)
    metric = LanguageModelLoss(examples, 8)
    before = metric(model.peft)["loss"]
    train(model.peft, examples, replace(SETTINGS, steps=20), seed=1, on_step=silent)
    assert metric(model.peft)["loss"] < before - 0.2


def test_the_loss_is_that_of_the_batches(model: FederatedModel, examples: EncodedExamples) -> None:
    model.start_local(LORA, NO_ADAPTER, seed=7, max_rank=4)
    expected = LanguageModelLoss(examples, 8)(model.peft)["loss"]
    settings = replace(SETTINGS, batch_size=len(examples), steps=1)
    outcome = train(model.peft, examples, settings, seed=1, on_step=silent)
    assert outcome.loss == pytest.approx(expected, abs=1e-5)
    assert outcome.steps == 1
    assert 0 < outcome.seconds < 60


def own_loop(model: nn.Module, examples: EncodedExamples, context: TrainingContext) -> float:
    for batch in context.batches(model, examples):
        model(**batch).loss.backward()
    return 0.0


@pytest.mark.parametrize("loop", [by_trainer, own_loop])
def test_examples_of_a_length_share_a_batch_where_that_is_asked(
    model: FederatedModel, examples: EncodedExamples, loop: LocalTraining
) -> None:
    mixed = [
        {name: numbers * (1 + place % 4) for name, numbers in features.items()}
        for place, features in enumerate(examples)
    ]

    def batches(strategy: Literal["random", "group_by_length"], seed: int) -> list[list[int]]:
        lengths: list[list[int]] = []

        def collate(batch: list[Features]) -> Mapping[str, Any]:
            lengths.append([len(features["input_ids"]) for features in batch])
            return examples.collate(batch)

        settings = replace(SETTINGS, batch_size=3, steps=None, train_sampling_strategy=strategy)
        model.start_local(LORA, NO_ADAPTER, seed=7, max_rank=4)
        context = TrainingContext("client_1", 1, seed, settings, silent)
        trained_by(loop, model.peft, EncodedExamples(mixed, collate), context)
        return lengths

    def padding(batches: list[list[int]]) -> int:
        return sum(max(lengths) - length for lengths in batches for length in lengths)

    found, shuffled = batches("group_by_length", 1), batches("random", 1)
    once = sorted(len(features["input_ids"]) for features in mixed)
    assert sorted(chain(*found)) == sorted(chain(*shuffled)) == once
    assert padding(found) < padding(shuffled) / 1.5  # these few examples are sorted by sixes
    assert found != batches("group_by_length", 2)


@pytest.mark.slow
def test_gradient_accumulation_is_a_larger_batch(model: FederatedModel, examples: EncodedExamples) -> None:
    whole = replace(SETTINGS, batch_size=8, steps=2)
    parts = replace(whole, batch_size=4, gradient_accumulation_steps=2)
    expected, found = (trained(model, examples, settings, 1) for settings in (whole, parts))
    for name, factor in expected.items():
        torch.testing.assert_close(found[name].B, factor.B, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        (TrainingSettings(batch_size=8, epochs=1.0), 3),
        (TrainingSettings(batch_size=8, steps=5), 5),
        (TrainingSettings(batch_size=4, epochs=1.0, gradient_accumulation_steps=2), 3),
        (TrainingSettings(batch_size=8, epochs=2.0), 6),
        (TrainingSettings(batch_size=7, epochs=1.0), 4),
        (TrainingSettings(batch_size=8, epochs=0.5), 2),
        (TrainingSettings(batch_size=99, steps=2), 2),
    ],
)
@pytest.mark.quick(3)
def test_steps_and_epochs_are_counted_and_reported(
    model: FederatedModel, examples: EncodedExamples, settings: TrainingSettings, steps: int
) -> None:
    assert len(examples) == 24
    model.start_local(LORA, NO_ADAPTER, seed=7, max_rank=4)
    seen: list[tuple[int, int]] = []
    outcome = train(model.peft, examples, settings, seed=1, on_step=lambda done, total: seen.append((done, total)))
    assert outcome.steps == steps
    assert seen == [(step, steps) for step in range(1, steps + 1)]


def test_nothing_goes_to_stdout_or_stays_on_disk(
    model: FederatedModel,
    examples: EncodedExamples,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    trained(model, examples, SETTINGS, 1)
    assert capfd.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_is_interrupted_goes_up(model: FederatedModel, examples: EncodedExamples) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    model.start_local(LORA, NO_ADAPTER, seed=7, max_rank=4)
    with pytest.raises(KeyboardInterrupt):
        train(model.peft, examples, SETTINGS, seed=1, on_step=interrupt)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.quick(1)
def test_finding_the_fastest_threads_leaves_no_trace(
    model: FederatedModel, examples: EncodedExamples, training: bool
) -> None:
    model.start_local(replace(LORA, dropout=0.1), NO_ADAPTER, seed=7, max_rank=4)
    model.peft.train(training)
    before, threads, random = parameters(model), torch.get_num_threads(), torch.get_rng_state()
    gradients = {name: torch.ones_like(p) for name, p in model.peft.named_parameters() if p.requires_grad}
    for name, parameter in model.peft.named_parameters():
        parameter.grad = gradients[name].clone() if name in gradients else None
    found = fastest_thread_count(model.peft, examples.collate(examples[:4]), steps=1)
    assert found in (1, os.cpu_count(), len(os.sched_getaffinity(0)))
    assert torch.get_num_threads() == threads
    assert all(torch.equal(tensor, before[name]) for name, tensor in parameters(model).items())
    for name, parameter in model.peft.named_parameters():
        assert (parameter.grad is None) == (name not in gradients), name
        assert parameter.grad is None or torch.equal(parameter.grad, gradients[name]), name
    assert model.peft.training == training
    assert torch.equal(torch.get_rng_state(), random)


def test_a_batch_that_fails_leaves_the_thread_count(model: FederatedModel, examples: EncodedExamples) -> None:
    threads = torch.get_num_threads()
    with pytest.raises(ValueError, match="input_ids"):
        fastest_thread_count(model.peft, {"labels": torch.zeros(1, 1)})
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("change", [lambda s: replace(s, weight_decay=0.5), lambda s: replace(s, max_grad_norm=1e-3)])
@pytest.mark.quick(1)
def test_the_optimiser_takes_its_settings(
    model: FederatedModel, examples: EncodedExamples, change: Callable[[TrainingSettings], TrainingSettings]
) -> None:
    assert not same_bits(trained(model, examples, SETTINGS, 1), trained(model, examples, change(SETTINGS), 1))


@pytest.mark.slow
def test_a_schedule_ends_within_the_round(model: FederatedModel, examples: EncodedExamples) -> None:
    linear = replace(SETTINGS, lr_scheduler_type="linear")
    constant = trained(model, examples, SETTINGS, 1)
    first = trained(model, examples, linear, 1)
    assert not same_bits(constant, first)
    # Every round starts the schedule anew: nothing is left of the one before.
    assert same_bits(first, trained(model, examples, linear, 1))


@pytest.mark.slow
def test_bfloat16_is_for_training_only(model: FederatedModel, examples: EncodedExamples) -> None:
    full = trained(model, examples, SETTINGS, 1)
    mixed = trained(model, examples, replace(SETTINGS, bf16=True), 1)
    # Whatever was trained before: accelerate would keep the precision of a model's first training.
    assert not same_bits(mixed, full)
    assert same_bits(mixed, trained(model, examples, replace(SETTINGS, bf16=True), 1))
    assert all(factor.spec.dtype == torch.float32 for factor in mixed.values())
    kernels: set[torch.dtype] = set()
    layer = model.peft.get_submodule(f"base_model.model.{next(iter(mixed))}")
    handle = layer.register_forward_hook(lambda _, __, output: kernels.add(output.dtype))
    LanguageModelLoss(examples, 8)(model.peft)
    handle.remove()
    assert kernels == {torch.float32}
    assert same_bits(full, trained(model, examples, SETTINGS, 1))


@pytest.mark.parametrize(
    ("settings", "hardware", "telling"),
    [
        (TrainingSettings(fp16=True), Hardware(cuda=False, bf16=True), "training.fp16 = true: expected a CUDA device"),
        (
            TrainingSettings(bf16=True),
            Hardware(cuda=True, bf16=False),
            "computes in bfloat16 .*, found an older one; use",
        ),
    ],
)
def test_a_precision_that_the_machine_lacks_is_refused(
    settings: TrainingSettings, hardware: Hardware, telling: str
) -> None:
    with pytest.raises(UnsupportedHardwareError, match=telling):
        require_precision(settings, hardware)


@pytest.mark.parametrize("settings", [TrainingSettings(), TrainingSettings(bf16=True)])
def test_a_cpu_trains_in_float32_and_bfloat16(settings: TrainingSettings) -> None:
    require_precision(settings, Hardware(cuda=False, bf16=True))


def test_this_machine_is_told_as_torch_sees_it() -> None:
    found = Hardware.found()
    assert found.cuda == torch.cuda.is_available()
    assert found.bf16 or found.cuda
