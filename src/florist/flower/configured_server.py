"""The server of a federation by a configuration file, the same that ``florist simulate`` takes; see `overrides`."""

from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from florist.config import Config, to_toml
from florist.config.communication import aggregator_of, communication_of
from florist.config.methods import LOCAL_INITS
from florist.config.privacy import private_rounds_over_flower
from florist.config.resuming import OVER_FLOWER, require_resumable
from florist.config.robust import guard_of, robust_rule
from florist.config.sections import CLASSIFICATION
from florist.config.tracking import tracking_of
from florist.errors import ConfigurationError, MissingDependencyError, how_to_install
from florist.federation.history import RunDirectory
from florist.federation.kept_rounds import KeepRounds
from florist.files.locking import sole_process
from florist.files.outputs import restore_replaced
from florist.flower.journal import Journal
from florist.flower.overrides import overridden_config
from florist.flower.roster import LOG
from florist.flower.strategy import FloristStrategy
from florist.rounds import Trained
from florist.tracking.trackers import require_installed

if TYPE_CHECKING:
    from florist.flower.server_evaluation import ServerEvaluation


def configured_server_app(config_file: Path) -> ServerApp:
    """The server of a federation, which holds neither a base model nor data unless ``flower.evaluation = "server"``.

    Args:
        config_file: the file of the app.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        _serve(overridden_config(config_file, context), grid, context)

    return app


def _serve(config: Config, grid: Grid, context: Context) -> None:
    require_installed(config.tracking.to)
    settings, federation, ranks = config.flower, config.federation, config.lora.ranks
    if federation.early_stopping is not None or federation.best_round:
        raise ConfigurationError(
            "federation.early_stopping and best_round are for rounds in one process (florist simulate): over Flower "
            "every round is played, and the final adapter is that of the last; remove them, keep the rounds with "
            "federation.keep_rounds = 'sent', and write the best one with florist export RUN --round N"
        )
    method = config.aggregation.method
    largest = max(ranks) if isinstance(ranks, tuple) else ranks
    aggregator = aggregator_of(config, largest)
    private = private_rounds_over_flower(config, largest)
    evaluation = _server_evaluation(config) if settings.evaluation == "server" else None
    if evaluation is None and Trained.WEIGHTS in aggregator.work.trained:
        raise ConfigurationError(
            f"aggregation.method = {method!r}: the final adapter is the difference of weights to the base, which the "
            "server needs: set flower.evaluation = 'server'"
        )
    path = Path(settings.run or f"florist-run-{context.run_id}").resolve()
    if (path / "run.json").is_file():
        require_resumable(RunDirectory.open(path), config, OVER_FLOWER)
        with sole_process(path):
            restore_replaced(path / "adapter")
    LOG.info("the run is kept in %s; to resume it: flwr run --run-config 'flower.run=\"%s\"'", path, path)
    tracking = tracking_of(config, path, warn=LOG.warning)
    strategy = FloristStrategy(
        aggregator,
        seed=federation.seed,
        local_init=LOCAL_INITS[federation.local_init](),
        shared_init=federation.shared_init,
        fraction=federation.fraction,
        min_replies=federation.min_replies,
        min_clients=settings.min_clients or (len(ranks) if isinstance(ranks, tuple) else 2),
        wait=settings.wait,
        max_examples=settings.max_examples,
        evaluate=evaluation.measure if evaluation is not None else None,
        evaluate_on_clients=settings.evaluation == "clients",
        reference=evaluation.agreement if evaluation is not None else None,
        journal=Journal(path, method, to_toml(config), KeepRounds(federation.keep_rounds)),
        communication=communication_of(config),
        guard=guard_of(config.guard),
        robust=robust_rule(config.aggregation),
        on_round=tracking.closed,
        private=private,
        phase_timeout=settings.phase_timeout,
    )
    with tracking:
        strategy.start(grid, num_rounds=federation.rounds, timeout=settings.round_timeout)
    adapter = path / "adapter"
    if not strategy.state.broadcasts:
        LOG.warning("no round had enough usable updates: there is no adapter to write")
        return
    task_type = "SEQ_CLS" if config.task.kind == CLASSIFICATION else "CAUSAL_LM"
    deliverable = evaluation.deliverable if evaluation is not None else None
    # A run that was over and goes on with more rounds has an adapter already, the one of its earlier rounds.
    with sole_process(path):
        flush = config.communication.flush
        strategy.export(
            adapter,
            config.model.name_or_path,
            task_type,
            deliverable,
            flush=flush,
            replace=True,
            save_tokenizer=evaluation.save_tokenizer if evaluation is not None else None,
        )
    LOG.info("the final adapter is in %s", adapter)


def _server_evaluation(config: Config) -> "ServerEvaluation":
    try:
        from florist.flower.server_evaluation import ServerEvaluation  # noqa: PLC0415  # only here the server needs PEFT
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"flower.evaluation = 'server' loads the base model at the server, and {error.name} is not installed: "
            f"{how_to_install('flower,train')} there, or leave the evaluation to the clients"
        ) from error
    return ServerEvaluation.of(config)
