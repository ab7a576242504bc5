"""The client of a federation by a configuration file, the same that ``florist simulate`` takes; see `overrides`."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from peft import PeftModel

from florist.config import Config
from florist.config.building import LoadedTask
from florist.config.splits import read_splits
from florist.errors import ConfigurationError
from florist.federation.simulation import Client
from florist.flower.client import client_app
from florist.flower.loaded_base import AllMetrics, load_base
from florist.flower.model_participant import ModelParticipant
from florist.flower.overrides import overridden_config
from florist.flower.private_terms import ANYTHING, Demands
from florist.models.training import train
from florist.rounds import SavedParameters

PARTITION, CLIENT = "partition-id", "client-id"
"""The keys of a node's config that say which of the clients in the data the node is, and what it is called."""


def configured_client_app(config_file: Path, mods: list[Mod] | None = None) -> ClientApp:
    """The client of a federation, which trains on the examples that the configuration finds on its node.

    Args:
        config_file: the file of the app.
        mods: Flower's mods, which are put around every message.
    """
    return client_app(
        lambda context: participant_of_node(config_file, context), mods, lambda context: _demands(config_file, context)
    )


def _demands(config_file: Path, context: Context) -> Demands:
    """What the configuration of a node demands: a server may protect more than that, and not less."""
    section = overridden_config(config_file, context).privacy
    if not section.secure_aggregation:
        return ANYTHING
    clip = section.clip if section.adaptive_clip is None else None  # a clip that follows the norms may become larger
    demands = Demands(masked=True, threshold=section.threshold, smallest_group=section.smallest_group, clip=clip)
    if section.honest_fraction is None:
        return demands
    return replace(demands, noise=section.noise_multiplier or 0.0, honest_fraction=section.honest_fraction)


def participant_of_node(config_file: Path, context: Context) -> ModelParticipant:
    """The client that a node is; of a process, only the base and the client that was last asked for are kept.

    Raises:
        ConfigurationError: the node's config does not say which client it is, or keys are wrong.
        MissingInputError, DataError, ModelError and others: data or model cannot be loaded.
    """
    partition, name = context.node_config.get(PARTITION), context.node_config.get(CLIENT)
    if partition is not None and (type(partition) is not int or partition < 0):
        raise ConfigurationError(f"node config {PARTITION}: expected a whole number from 0, got {partition!r}")
    if name is not None and type(name) not in {int, str}:
        raise ConfigurationError(f"node config {CLIENT}: expected a text, got {name!r}; put it in quotation marks")
    config = overridden_config(config_file, context)
    return _participant(config, partition, None if name is None else str(name))  # pyright: ignore[reportArgumentType]  # frozen models have a hash


# One alone: a process may serve any number of clients in turn, and each has all its encoded examples.
@lru_cache(maxsize=1)
def _participant(config: Config, partition: int | None, name: str | None) -> ModelParticipant:
    loaded, initial = _base(config)  # pyright: ignore[reportArgumentType]  # frozen models have a hash

    def choose(found: Sequence[str]) -> str:
        if len(found) == 1:
            return found[0]
        if partition is None or partition >= len(found):
            raise ConfigurationError(
                f"node config {PARTITION}: expected which of the {len(found)} clients in {config.data.path} this node "
                f"is, 0 to {len(found) - 1}, got {partition}"
            )
        return found[partition]

    splits = read_splits(config, choose)
    (client_id, examples), *_ = splits.training.items()
    own = replace(loaded, config=_config_of_one(config, partition))
    (client,) = own.clients({name or client_id: examples})
    measured = splits.validation if config.has_validation and config.evaluation.split != "test" else splits.test
    in_rounds, _ = own.metrics(splits)
    return ModelParticipant(
        client_id=client.client_id,
        model=loaded.model,
        base=config.flower.base_name or loaded.base,
        lora=client.lora,
        num_examples=len(client.examples),
        fit=partial(_fit, client),
        measure=AllMetrics(in_rounds),
        held_out=len(measured),
        trained=loaded.aggregator.work.trained,
        initial=initial,
    )


def _fit(client: Client, model: PeftModel, seed: int) -> float:
    return train(model, client.examples, client.training, seed=seed, on_step=lambda _done, _total: None).loss


@lru_cache(maxsize=1)
def _base(config: Config) -> tuple[LoadedTask, SavedParameters]:
    """The base model and the first values of its saved parameters."""
    loaded = load_base(config, read_splits(config))
    return loaded, loaded.model.saved_parameters


def _config_of_one(config: Config, index: int | None) -> Config:
    """The configuration with the entries of one client where it lists those of all."""

    def own(value: object, key: str) -> object:
        if not isinstance(value, tuple):
            return value
        if index is None:
            raise ConfigurationError(
                f"{key} lists {len(value)} clients: expected which of them this node is; set {key}, or {PARTITION}, in "
                "its node config"
            )
        if index >= len(value):
            raise ConfigurationError(f"{key} lists {len(value)} clients, and this node is number {index}")
        return value[index]

    lora = {key: own(getattr(config.lora, key), f"lora.{key}") for key in ("ranks", "alpha")}
    training = {key: own(getattr(config.training, key), f"training.{key}") for key in ("batch_size", "steps", "epochs")}
    return config.model_copy(
        update={"lora": config.lora.model_copy(update=lora), "training": config.training.model_copy(update=training)}
    )
