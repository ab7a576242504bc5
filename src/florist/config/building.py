"""From a configuration, and what code gives in the place of its files, to the objects of a simulation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from florist.config.choice_of_rounds import round_choice
from florist.config.communication import aggregator_of, communication_of
from florist.config.given import NOTHING_GIVEN, Given
from florist.config.methods import LOCAL_INITS
from florist.config.metrics import client_metrics, metric_names, metrics, require_own_examples
from florist.config.privacy import private_rounds, require_possible
from florist.config.robust import guard_of, robust_rule
from florist.config.sections import Config
from florist.config.splits import Splits, read_splits
from florist.config.tasks import Encoded, RecentEncodings, Task, load_task
from florist.data.reading import Example
from florist.errors import ConfigurationError, some_of
from florist.evaluation import Metric
from florist.federation.kept_rounds import KeepRounds
from florist.federation.private_rounds import PrivateRounds
from florist.federation.rules import Federation, clients_asked
from florist.federation.run_adapter import SaveTokenizer
from florist.federation.simulation import Client, Simulation
from florist.models.federated_model import FederatedModel, LocalLora
from florist.models.loading import fingerprint, load_tokenizer, save_tokenizer
from florist.models.training import Hardware, TrainingSettings, require_precision
from florist.rounds import Aggregator


@dataclass(frozen=True, slots=True, eq=False)
class LoadedTask:
    """A base model that can be trained and measured as a configuration says, by any of its clients.

    Attributes:
        config: the configuration.
        model: the base with its adapters.
        aggregator: the method.
        base: the fingerprint of the base's weights.
        tokenizer: the tokenizer of the base.
        task: the encoders, and what else depends on the kind of task.
        given: what code gave.
    """

    config: Config
    model: FederatedModel
    aggregator: Aggregator
    base: str
    tokenizer: PreTrainedTokenizerBase
    task: Task
    given: Given = NOTHING_GIVEN

    def clients(self, training: Mapping[str, Sequence[Example]]) -> tuple[Client, ...]:
        """The clients that have these examples, in their order, with the ranks and settings that are configured.

        Raises:
            ConfigurationError: it lists another number of clients.
            DataError: an example cannot be encoded.
        """
        client_ids = list(training)
        loras, settings = _loras(self.config, client_ids), _settings(self.config, client_ids)
        return tuple(
            Client(client_id, self.task.encode_training(examples, client_id), lora, own)
            for (client_id, examples), lora, own in zip(training.items(), loras, settings, strict=True)
        )

    def metrics(self, splits: Splits) -> tuple[tuple[Metric, ...], tuple[Metric, ...]]:
        """Metrics of the rounds, and those of the final adapter alone, on the held-out examples."""
        in_rounds, at_the_end = metrics(
            self.config, self._metric_names, self.task.encode_held_out, splits, self.tokenizer
        )
        return in_rounds + self.given.metrics, at_the_end + (self.given.metrics if at_the_end else ())

    def client_metrics(self, splits: Splits) -> Mapping[str, tuple[Metric, ...]]:
        """Metrics of the rounds on the held-out examples of each client."""
        return client_metrics(self.config, self._metric_names, self.task.encode_held_out, splits, self.tokenizer)

    @property
    def _metric_names(self) -> Sequence[str]:
        # A metric of one's own takes the place of the default one.
        if self.given.metrics and self.config.evaluation.metrics is None:
            return ()
        return metric_names(self.config)


def load(
    config: Config, splits: Splits, encoded: RecentEncodings | None = None, given: Given = NOTHING_GIVEN
) -> LoadedTask:
    """Load the base model of a configuration.

    Args:
        config: what to load.
        splits: its examples, which may tell the classes and the shape of all of them.
        encoded: keeps the encoded examples for other configurations. By default whoever asks for some keeps them.
        given: objects that take the place of what the configuration names.

    Raises:
        ConfigurationError: keys contradict what is in the data.
        ModelError: the model cannot be loaded or adapted.
        UnsupportedHardwareError, MissingDependencyError: this machine lacks what the precision or quantization needs.
    """
    examples = [example for some in splits.training.values() for example in some]
    kept = encoded.of(config, splits) if encoded is not None else None
    tokenizer, task = load_base(config, examples or [*splits.validation, *splits.test], kept, given)
    base = fingerprint(task.base)
    target, ranks = config.lora.target_modules, config.lora.ranks
    largest = max(ranks) if isinstance(ranks, tuple) else ranks
    aggregator = aggregator_of(config, largest, given.method)
    model = FederatedModel(
        task.base,
        target if isinstance(target, str) else list(target),
        task.modules_to_save,
        task.task_type,
        aggregator.work.trained,
    )
    return LoadedTask(config, model, aggregator, base, tokenizer, task, given)


def load_base(
    config: Config, examples: Sequence[Example], kept: Encoded | None = None, given: Given = NOTHING_GIVEN
) -> tuple[PreTrainedTokenizerBase, Task]:
    """Load the tokenizer and the bare base model of a configuration, on the device where it is to work.

    Args:
        config: what to load.
        examples: examples that tell the classes, and the shape of all of them.
        kept: where encoded examples are looked up and kept.
        given: what code gives in the place of what the configuration names.

    Raises:
        ConfigurationError, ModelError, UnsupportedHardwareError, MissingDependencyError: as `load`.
    """
    training = config.training
    require_precision(TrainingSettings(bf16=training.bf16, fp16=training.fp16), Hardware.found())
    tokenizer = given.tokenizer or load_tokenizer(config.model.name_or_path)
    tokenizer.padding_side = "right"  # from the left, models that count positions from there would be led astray
    task = load_task(config, tokenizer, examples, kept, given.base)
    # A quantized model is put on its device as it is loaded.
    if torch.cuda.is_available() and config.model.quantization is None:
        task.base.to("cuda")  # pyright: ignore[reportArgumentType]  # transformers wraps Module.to without its overloads
    return tokenizer, task


def build(
    config: Config,
    splits: Splits | None = None,
    encoded: RecentEncodings | None = None,
    given: Given = NOTHING_GIVEN,
) -> Simulation:
    """Load model and data and put the simulation together.

    Args:
        config: what to build.
        splits: its examples, where they were read before.
        encoded: keeps the encoded examples for other simulations.
        given: objects that take the place of what the configuration names.

    Raises:
        ConfigurationError: keys contradict what is in the data, the number of clients for instance.
        MissingInputError, DataError: a data file is missing or is not what it should be.
        ModelError: the model cannot be loaded or adapted.
        UnsupportedHardwareError, MissingDependencyError: this machine lacks what the precision or quantization needs.
    """
    metric_names(config)
    round_choice(config)
    splits = splits if splits is not None else read_splits(config)
    for check in (_loras, _settings):
        check(config, list(splits.training))  # before the model is loaded, which takes its time
    require_own_examples(config, splits)
    private = _private(config, len(splits.training))
    loaded = load(config, splits, encoded, given)
    clients = loaded.clients(splits.training)
    federation = config.federation
    rules = Federation(
        client_ranks={client.client_id: client.lora.rank for client in clients},
        aggregator=loaded.aggregator,
        shapes=loaded.model.shapes,
        seed=federation.seed,
        local_init=LOCAL_INITS[federation.local_init](),
        shared_init=federation.shared_init,
        fraction=federation.fraction,
        min_replies=federation.min_replies,
        communication=communication_of(config, given.method),
        guard=guard_of(config.guard),
        robust=robust_rule(config.aggregation),
    )
    rules.require_possible()
    require_possible(private, rules, loaded.model.saved_parameters)
    in_rounds, at_the_end = loaded.metrics(splits)
    return Simulation(
        model=loaded.model,
        base_model=config.model.name_or_path,
        clients=clients,
        federation=rules,
        metrics=in_rounds,
        final_metrics=at_the_end,
        rounds=federation.rounds,
        evaluate_every=config.evaluation.every,
        flush=config.communication.flush,
        client_metrics=loaded.client_metrics(splits),
        local_training=given.local_training,
        choice=round_choice(config),
        keep_rounds=KeepRounds(federation.keep_rounds),
        save_tokenizer=_tokenizer_saver(config, given),
        private=private,
    )


def _private(config: Config, clients: int) -> PrivateRounds | None:
    ranks = config.lora.ranks
    largest = max(ranks) if isinstance(ranks, tuple) else ranks
    return private_rounds(config, clients, clients_asked(config.federation.fraction, clients), largest)


def _loras(config: Config, client_ids: Sequence[str]) -> list[LocalLora]:
    lora, count = config.lora, len(client_ids)
    ranks = lora.ranks if isinstance(lora.ranks, tuple) else (lora.ranks,) * count
    if lora.alpha is None:
        alphas: tuple[float, ...] = tuple(2.0 * rank for rank in ranks)
    else:
        alphas = lora.alpha if isinstance(lora.alpha, tuple) else (lora.alpha,) * count
    listed = {"lora.ranks": lora.ranks, "lora.alpha": lora.alpha}
    wrong = {name: len(each) for name, each in listed.items() if isinstance(each, tuple) and len(each) != count}
    if wrong:
        lists = " and ".join(f"{name} lists {number} clients" for name, number in wrong.items())
        raise ConfigurationError(
            f"{lists}, and the data has {count}: {some_of(client_ids)}; give one each or one for all"
        )
    return [
        LocalLora(rank, alpha, lora.use_rslora, lora.lora_dropout) for rank, alpha in zip(ranks, alphas, strict=True)
    ]


def _settings(config: Config, client_ids: Sequence[str]) -> list[TrainingSettings]:
    training, count = config.training, len(client_ids)
    own: dict[str, tuple[Any, ...]] = {}
    for key in ("batch_size", "steps", "epochs"):
        value = getattr(training, key)
        own[key] = value if isinstance(value, tuple) else (value,) * count
        if len(own[key]) != count:
            raise ConfigurationError(
                f"training.{key} lists {len(own[key])} clients, and the data has {count}: {some_of(client_ids)}; "
                "give one each or one for all"
            )
    return [
        TrainingSettings(
            learning_rate=training.learning_rate,
            batch_size=batch_size,
            steps=steps,
            epochs=epochs or 1.0,
            lr_scheduler_type=training.lr_scheduler_type,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            weight_decay=training.weight_decay,
            max_grad_norm=training.max_grad_norm,
            train_sampling_strategy=training.train_sampling_strategy,
            bf16=training.bf16,
            fp16=training.fp16,
        )
        for batch_size, steps, epochs in zip(own["batch_size"], own["steps"], own["epochs"], strict=True)
    ]


def _tokenizer_saver(config: Config, given: Given) -> SaveTokenizer:
    if given.tokenizer is None:
        return partial(save_tokenizer, config.model.name_or_path)
    own = given.tokenizer

    def save(directory: Path) -> None:
        own.save_pretrained(directory)

    return save
