"""Flower apps by a configuration file, the same that `florist simulate` takes.

A key is overridden, in rising order, by Flower's run config (``flwr run --run-config``) and by a node's own
(``flower-supernode --node-config``), under its name in the file: ``data.path``. An empty text overrides nothing, since
Flower lets only those keys be set that the app's ``pyproject.toml`` has. The key ``config`` names another file, which
must then be there on every node.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from flwr.serverapp import Grid, ServerApp
from peft import PeftModel

from florist.config import Config, read_config, to_toml
from florist.config.building import LoadedTask, load
from florist.config.methods import LOCAL_INITS, make_aggregator
from florist.config.resuming import OVER_FLOWER, require_resumable
from florist.config.sections import CLASSIFICATION
from florist.config.splits import read_held_out, read_splits
from florist.errors import ConfigurationError
from florist.evaluation import Metric
from florist.federation.history import RunDirectory
from florist.federation.simulation import Client
from florist.federation.state import ServerState
from florist.flower.agreement import Agreement
from florist.flower.client import client_app
from florist.flower.journal import Journal
from florist.flower.model_participant import Measure, ModelParticipant
from florist.flower.roster import LOG
from florist.flower.strategy import Deliverable, FloristStrategy
from florist.models.federated_model import FederatedModel
from florist.models.training import train
from florist.rounds import SavedParameters, Trained

PARTITION, CLIENT = "partition-id", "client-id"
"""Keys of a node's config: which of the clients in the data the node is, and what it is called."""
ANOTHER = "config"
"""Key of the run config: a file in the place of the app's own."""


def configured_server_app(config_file: Path) -> ServerApp:
    """The server of a federation.

    It holds no base model and no data, unless ``flower.evaluation = "server"``.

    Args:
        config_file: of the app.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        _serve(_configuration(config_file, context), grid, context)

    return app


def configured_client_app(config_file: Path, mods: list[Mod] | None = None) -> ClientApp:
    """The client of a federation: it trains on the records that the configuration finds on its node.

    Args:
        config_file: of the app.
        mods: of Flower, around every message.
    """
    return client_app(lambda context: _participant(config_file, context), mods)


def _configuration(config_file: Path, context: Context) -> Config:
    given = {
        name: value
        for config in (context.run_config, context.node_config)
        for name, value in config.items()
        if value != ""
    }
    overrides = [f"{name}={_toml(value)}" for name, value in given.items() if "." in name]
    return read_config(Path(str(given.get(ANOTHER, config_file))), overrides)


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _serve(config: Config, grid: Grid, context: Context) -> None:
    settings, federation, ranks = config.flower, config.federation, config.lora.ranks
    method = config.aggregation.method
    reference: Agreement | None = None
    evaluate: Callable[[ServerState], Mapping[str, float]] | None = None
    deliverable: Deliverable | None = None
    if settings.evaluation == "server":
        splits = read_held_out(config)
        loaded = load(config, splits)
        torch.set_num_threads(_threads(config))
        reference = Agreement(settings.base_name or loaded.base, loaded.model.shapes)
        evaluate = _at_server(loaded.model, _All(loaded.metrics(splits)[0]))
        deliverable = loaded.model.deliverable
    elif Trained.WEIGHTS in make_aggregator(config.aggregation, 1).work.trained:
        raise ConfigurationError(
            f"aggregation.method = {method!r}: the final adapter is the difference of weights to the base, which the "
            "server needs: set flower.evaluation = 'server'"
        )
    path = Path(settings.run or f"florist-run-{context.run_id}").resolve()
    if (path / "run.json").is_file():
        require_resumable(RunDirectory.open(path), config, OVER_FLOWER)
    LOG.info("the run is kept in %s; to resume it: flwr run --run-config 'flower.run=\"%s\"'", path, path)
    largest = max(ranks) if isinstance(ranks, tuple) else ranks
    strategy = FloristStrategy(
        make_aggregator(config.aggregation, largest),
        seed=federation.seed,
        local_init=LOCAL_INITS[federation.local_init](),
        shared_init=federation.shared_init,
        fraction=federation.fraction,
        min_replies=federation.min_replies,
        min_clients=settings.min_clients or (len(ranks) if isinstance(ranks, tuple) else 2),
        wait=settings.wait,
        max_examples=settings.max_examples,
        evaluate=evaluate,
        evaluate_on_clients=settings.evaluation == "clients",
        reference=reference,
        journal=Journal(path, method, to_toml(config)),
    )
    strategy.start(grid, num_rounds=federation.rounds, timeout=settings.round_timeout)
    adapter = path / "adapter"
    if not strategy.state.broadcasts:
        LOG.warning("no round had enough usable updates: there is no adapter to write")
        return
    # Of a run that was over and goes on with more rounds, the adapter is the earlier one; the rounds hold all of it.
    shutil.rmtree(adapter, ignore_errors=True)
    task_type = "SEQ_CLS" if config.task.kind == CLASSIFICATION else "CAUSAL_LM"
    strategy.export(adapter, config.model.name_or_path, task_type, deliverable)
    LOG.info("the final adapter is in %s", adapter)


def _at_server(model: FederatedModel, measure: Measure) -> Callable[[ServerState], Mapping[str, float]]:
    def evaluate(state: ServerState) -> Mapping[str, float]:
        model.saved_parameters = state.saved_parameters
        model.set_global(state.global_adapter)
        return measure(model.peft)

    return evaluate


@dataclass(frozen=True, slots=True)
class _All:
    """Several metrics as one."""

    metrics: tuple[Metric, ...]

    def __call__(self, model: PeftModel) -> Mapping[str, float]:
        return {name: value for metric in self.metrics for name, value in metric(model).items()}


def _participant(config_file: Path, context: Context) -> ModelParticipant:
    partition, name = context.node_config.get(PARTITION), context.node_config.get(CLIENT)
    if partition is not None and (type(partition) is not int or partition < 0):
        raise ConfigurationError(f"node config {PARTITION}: expected a whole number from 0, got {partition!r}")
    config = _configuration(config_file, context)
    return _cached(config, partition, None if name is None else str(name))  # pyright: ignore[reportArgumentType]  # frozen models have a hash


# Of few clients only: where an engine keeps processes, each serves several, and adapters of all would not be free.
@lru_cache(maxsize=16)
def _cached(config: Config, partition: int | None, name: str | None) -> ModelParticipant:
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
    (client_id, rows), *_ = splits.training.items()
    own = replace(loaded, config=_of_one(config, partition))
    (client,) = own.clients({name or client_id: rows})
    measured = splits.validation if config.has_validation and config.evaluation.split != "test" else splits.test
    return ModelParticipant(
        client_id=client.client_id,
        model=loaded.model,
        base=config.flower.base_name or loaded.base,
        lora=client.lora,
        num_examples=len(client.examples),
        fit=partial(_fit, client),
        measure=_All(own.metrics(splits)[0]),
        held_out=len(measured),
        trained=loaded.aggregator.work.trained,
        initial=initial,
    )


def _fit(client: Client, model: PeftModel, seed: int) -> float:
    return train(model, client.examples, client.training, seed=seed, on_step=lambda _done, _total: None).loss


@lru_cache(maxsize=1)
def _base(config: Config) -> tuple[LoadedTask, SavedParameters]:
    """The base model, loaded once in a process, and the first values of what travels whole."""
    loaded = load(config, read_splits(config))
    torch.set_num_threads(_threads(config))
    return loaded, loaded.model.saved_parameters


def _threads(config: Config) -> int:
    """As configured; otherwise one: engines run several clients side by side, and small models gain nothing."""
    return config.training.threads or (1 if not torch.cuda.is_available() else torch.get_num_threads())


def _of_one(config: Config, index: int | None) -> Config:
    """The configuration with the entries of one client where it lists all."""

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
