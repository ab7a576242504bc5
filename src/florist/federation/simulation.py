"""A whole federation in one process: no Flower, no Ray, one loaded base model shared by all clients."""

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch

from florist.data.examples import EncodedExamples
from florist.data.partition import LabelCounts
from florist.evaluation import Measurements, Metric
from florist.factors import AdapterState
from florist.federation.choice_of_rounds import RoundChoice
from florist.federation.client_residuals import ClientResiduals
from florist.federation.environment import environment
from florist.federation.history import RunDirectory
from florist.federation.in_process import closed_in_process
from florist.federation.kept_rounds import KeepRounds
from florist.federation.observer import Observer
from florist.federation.private_rounds import PrivateRounds
from florist.federation.recording import LocalWork, first_claims, round_record
from florist.federation.records import FinalTest, RoundRecord
from florist.federation.rules import Federation
from florist.federation.run_adapter import RunAdapter, SaveTokenizer
from florist.federation.run_facts import RunFacts
from florist.federation.state import ServerState
from florist.files.locking import sole_process
from florist.files.outputs import replaced_directory
from florist.models.federated_model import FederatedModel, LocalLora
from florist.models.local_training import LocalTraining, TrainingContext, by_trainer, trained
from florist.models.training import TrainingSettings, fastest_thread_count
from florist.rounds import NO_ADAPTER, ClientUpdate, SavedParameters
from florist.seeding import derive_seed


@dataclass(frozen=True, slots=True)
class Client:
    """One client of a simulation.

    Attributes:
        client_id: names the client in every round.
        examples: its own examples, which nobody else sees; their number is its weight.
        lora: the adapter that its hardware allows.
        training: how it trains.
    """

    client_id: str
    examples: EncodedExamples
    lora: LocalLora
    training: TrainingSettings


@dataclass(frozen=True, slots=True, eq=False)
class Simulation:
    """Everything that a simulated federation consists of.

    Attributes:
        model: the shared base with its adapters.
        base_model: the directory or hub id of the base, for the config of the final adapter.
        clients: all clients.
        federation: the rules of the rounds.
        metrics: what is measured of the global adapter in the rounds, on held-out examples.
        rounds: how many rounds are played.
        final_metrics: what is measured of the final adapter once, on examples that no choice was made by.
        evaluate_every: how many rounds lie between evaluations; the last round is always evaluated.
        flush: whether the final adapter, and its test, have what the server still holds back.
        client_metrics: what is measured in the rounds on the held-out examples of each client, by client id.
        local_training: how clients train.
        choice: by what metric rounds stop early, or the final adapter is that of the best one; None for neither.
        keep_rounds: what stays on disk of the rounds before the last.
        save_tokenizer: writes the tokenizer of the base beside the final adapter; None where it is not at hand.
        private: how the updates of clients are protected; None where the server sees each of them.
    """

    model: FederatedModel
    base_model: str
    clients: tuple[Client, ...]
    federation: Federation
    metrics: tuple[Metric, ...]
    rounds: int
    final_metrics: tuple[Metric, ...] = ()
    evaluate_every: int = 1
    flush: bool = True
    client_metrics: Mapping[str, tuple[Metric, ...]] = field(default_factory=dict[str, tuple[Metric, ...]])
    local_training: LocalTraining = by_trainer
    choice: RoundChoice | None = None
    keep_rounds: KeepRounds = KeepRounds.LAST
    save_tokenizer: SaveTokenizer | None = None
    private: PrivateRounds | None = None

    @property
    def initial_state(self) -> ServerState:
        """The state of the server before the first round."""
        return ServerState.initial(self.model.saved_parameters)

    def evaluate(self, state: ServerState) -> Mapping[str, float]:
        """The metrics of the global model of a state."""
        return self.measure(state.global_adapter, state.saved_parameters)

    def measure(self, adapter: AdapterState, saved_parameters: SavedParameters) -> Mapping[str, float]:
        """The metrics of the base with any adapter, and any values of the parameters that travel whole."""
        self._show(adapter, saved_parameters)
        return dict(self._measure(self.metrics))

    def start(
        self,
        path: Path,
        config_toml: str,
        method: str,
        threads: int | None,
        observer: Observer,
        *,
        given: Mapping[str, str] | None = None,
        examples: LabelCounts | None = None,
    ) -> RunDirectory:
        """Measure the base model, choose the number of threads, and create the directory of a run.

        Nothing is left behind where the first evaluation fails.

        Args:
            path: the directory to create.
            config_toml: the configuration behind this simulation, to resume from.
            method: the name of the aggregation method, for the record.
            threads: how many torch threads to use; None for the faster of one and all.
            observer: is told of the evaluation.
            given: what code gave, by name; None where the configuration says all.
            examples: how many training examples of which label each client has, where they have labels.

        Raises:
            OutputExistsError, UnwritableOutputError: as `outputs.require_absent`.
        """
        threads = threads or self.fastest_threads()
        torch.set_num_threads(threads)
        observer.evaluating(0)
        initial = self.evaluate(self.initial_state)
        facts = RunFacts(version("florist"), method, threads, initial, given, self.keep_rounds, environment())
        return RunDirectory.create(path, config_toml, facts, examples)

    def run(self, directory: RunDirectory, observer: Observer) -> list[RoundRecord]:
        """Play the rounds that `directory` does not hold yet, then write the final adapter.

        Every round is saved before the next begins. All randomness derives from the seed, the round and the client,
        so that an interrupted run that goes on ends as if it had never stopped, bit for bit. A run that has ended and
        goes on with more rounds keeps its earlier adapter under another name (`FinalResult.set_aside`). Where
        no round had enough usable updates there is nothing to add to the base, and no adapter is written.

        Returns:
            The records of all rounds, the earlier ones included.

        Raises:
            DirectoryInUseError: another process plays them.
        """
        torch.set_num_threads(directory.facts.threads)
        # The Trainer collects garbage whenever a client starts, which takes half a second unless the loaded objects are
        # set aside.
        gc.freeze()
        try:
            with sole_process(directory.path):
                return self._play(directory, observer)
        finally:
            gc.unfreeze()

    def _play(self, directory: RunDirectory, observer: Observer) -> list[RoundRecord]:
        state, records = directory.load(self.initial_state)
        owed = directory.client_residuals()
        if not self._is_over(records):
            directory.result.set_aside(state.round_number)
        while not self._is_over(records):
            state, owed, latest = self._round(state, owed, observer, records)
            latest = self.choice.judged(records, latest, self.rounds) if self.choice is not None else latest
            latest = self.private.marked(latest, self.rounds) if self.private is not None else latest
            directory.save(state, latest, owed, latest.best_round if self._keeps_best else None)
            records.append(latest)
            observer.closed(latest)
        best = records[-1].best_round if self._keeps_best else None
        final, summed = (directory.state_after(best), records[:best]) if best is not None else (state, records)
        if self.final_metrics and not directory.result.has_test:
            observer.evaluating(len(summed))
            self._show(self._final(final), final.saved_parameters)
            found = self._measure(self.final_metrics)
            directory.save_tested(FinalTest(dict(found), dict(found.lower_is_better)))
        if state.broadcasts and not directory.result.has_adapter:
            self._export(final, summed, directory)  # last: a run that has an adapter is over
            directory.result.record_adapter()
        return records

    @property
    def _keeps_best(self) -> bool:
        return self.choice is not None and self.choice.keep_best

    def _is_over(self, records: Sequence[RoundRecord]) -> bool:
        return len(records) >= self._affordable(records) or (self.choice is not None and self.choice.stops(records))

    def _affordable(self, records: Sequence[RoundRecord]) -> int:
        """How many rounds are played where they do not stop early: as many as the clients' privacy allows."""
        return self.rounds if self.private is None else self.private.rounds_within(self.rounds, records)

    def _final(self, state: ServerState) -> AdapterState:
        return state.flushed_adapter if self.flush else state.global_adapter

    def _show(self, adapter: AdapterState, saved_parameters: SavedParameters) -> None:
        self.model.set_global(adapter)
        self.model.saved_parameters = saved_parameters

    def _measure(self, metrics: tuple[Metric, ...]) -> Measurements:
        return Measurements.together(metric(self.model.peft) for metric in metrics)

    def fastest_threads(self) -> int:
        """The faster of one torch thread and all of them, as measured on a batch of the first client."""
        client = self.clients[0]
        self.model.start_local(client.lora, NO_ADAPTER, seed=0, max_rank=client.lora.rank)
        batch = client.examples.collate([*client.examples][: client.training.batch_size])
        return fastest_thread_count(self.model.peft, batch)

    def _round(
        self, state: ServerState, owed: ClientResiduals, observer: Observer, records: Sequence[RoundRecord]
    ) -> tuple[ServerState, ClientResiduals, RoundRecord]:
        started = time.perf_counter()
        round_number = state.round_number + 1
        private = self.private.continued(records) if self.private is not None else None
        rules = self.federation
        asked = private.participants(rules, round_number) if private is not None else rules.participants(round_number)
        updates: list[ClientUpdate] = []
        work: dict[str, LocalWork] = {}
        for client in self.clients:
            if client.client_id in asked:
                update, work[client.client_id] = self._train(client, state, observer)
                updates.append(update)
        uploaded = time.perf_counter()
        if private is not None:
            closed = private.closed(rules, state, updates)
        else:
            closed, owed = closed_in_process(rules, state, owed, updates, first_claims(records))
        aggregated = time.perf_counter()
        metrics: Mapping[str, float] = {}
        by_client: Mapping[str, Mapping[str, float]] = {}
        if round_number % self.evaluate_every == 0 or round_number == self._affordable(records):
            observer.evaluating(round_number)
            metrics = self.evaluate(closed.state)
            by_client = {client_id: dict(self._measure(own)) for client_id, own in self.client_metrics.items()}
        ended = time.perf_counter()
        seconds = {
            "train": uploaded - started,
            "aggregate": aggregated - uploaded,
            "evaluate": ended - aggregated,
            "total": ended - started,
        }
        return closed.state, owed, round_record(closed, work, metrics, seconds, by_client)

    def _train(self, client: Client, state: ServerState, observer: Observer) -> tuple[ClientUpdate, LocalWork]:
        round_number, seed = state.round_number + 1, self.federation.seed
        # Every client adds what it downloads to what it holds, and so has what the server has.
        start = self.federation.start(state, client.client_id)
        self.model.saved_parameters = state.saved_parameters
        self.model.set_global(start.frozen)
        self.model.start_local(
            client.lora,
            start.local,
            seed=self.federation.local_seed(round_number, client.client_id),
            max_rank=self.federation.max_rank,
        )
        context = TrainingContext(
            client_id=client.client_id,
            round_number=round_number,
            seed=derive_seed(seed, "training", round_number, client.client_id),
            settings=client.training,
            on_step=lambda done, total: observer.training(round_number, client.client_id, done, total),
        )
        outcome = trained(self.local_training, self.model.peft, client.examples, context)
        update = ClientUpdate(
            client_id=client.client_id,
            adapter=self.model.read_local(),
            num_examples=len(client.examples),
            round_number=round_number,
            saved_parameters=self.model.saved_parameters,
        )
        # A sum of missed broadcasts is really made, once for all clients that miss the same ones: its bytes depend on
        # its rank, which nobody knows beforehand.
        download_bytes = self.federation.download(state, client.client_id).nbytes
        return update, LocalWork(download_bytes, outcome.loss, outcome.seconds)

    def _export(self, state: ServerState, records: Sequence[RoundRecord], directory: RunDirectory) -> None:
        written = RunAdapter(
            self.base_model,
            self.model.task_type,
            directory.facts.method,
            self.model.deliverable,
            self.save_tokenizer,
        )
        with replaced_directory(directory.adapter) as draft:  # a damaged one, or one of which no hash was written down
            written.write(draft, state, records, flush=self.flush)
