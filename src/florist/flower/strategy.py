"""Flower's ``Strategy`` over florist's rounds: it carries messages, and `federation.Federation` decides.

The same state machine runs in the in-process engine. What is added here is what a network adds: clients that are not
there, replies that do not come, downloads that got lost, and senders that cannot be trusted.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from typing_extensions import override

from florist.checkpoint import encode, write_adapter
from florist.errors import ConfigurationError
from florist.factors import AdapterState
from florist.federation.local_init import Aligned, LocalInit
from florist.federation.recording import round_record
from florist.federation.records import RoundRecord
from florist.federation.rules import ClosedRound, Federation
from florist.federation.state import ServerState
from florist.files.locking import sole_process
from florist.files.outputs import new_directory
from florist.flower.agreement import Agreement, ask_saved_parameters
from florist.flower.arrays import adapter_to_arrays
from florist.flower.exchange import Exchange
from florist.flower.journal import Journal
from florist.flower.messages import EVALUATE, TRAIN, Evaluation, Upload, name_of
from florist.flower.open_round import OpenRound
from florist.flower.roster import LOG, PAUSE, Roster
from florist.rounds import Aggregator, SavedParameters

Deliverable = Callable[[AdapterState, SavedParameters], tuple[AdapterState, SavedParameters]]
"""What makes the global model out of the pristine base, from what a server's state holds."""


@dataclass(slots=True)
class _Clock:
    """When the phases of a round ended."""

    started: float
    trained: float = 0.0
    aggregated: float = 0.0


class FloristStrategy(Strategy):
    """Any of florist's aggregation methods as a strategy of Flower.

    Clients are `client_app`s. A round asks those that are connected, sends each what it misses, drops what comes too
    late, is damaged or does not fit, says so, and goes on with the rest; with too few usable updates the global
    adapter stays as it was.

    Args:
        aggregator: the method.
        seed: of the run.
        local_init: how local adapters start where the method continues none; aligned by default.
        shared_init: clients of a round draw the same random rows of A.
        fraction: of the clients asked in each round.
        min_replies: usable updates that a round needs; by default half of the clients that it asks.
        min_clients: to wait for before the first round.
        wait: seconds to wait for them; and before each round, for as many as it needs.
        max_examples: the largest count that a client may claim, since its weight grows with it; by default any.
        evaluate: metrics of a state's global model at the server, before the first round and after each.
        evaluate_on_clients: after a round, the clients that took part get its broadcast and measure it on held-out
            examples of their own; the metrics are averaged by their number. Otherwise they get it with the next
            round.
        reference: what clients must agree on; by default what most of the first ones say.
        journal: where every round is saved, and resumed from.

    Raises:
        InvalidUpdateError: `local_init` is not one that clients know by name.
    """

    def __init__(
        self,
        aggregator: Aggregator,
        *,
        seed: int = 0,
        local_init: LocalInit | None = None,
        shared_init: bool = True,
        fraction: float = 1.0,
        min_replies: int | None = None,
        min_clients: int = 2,
        wait: float = 600.0,
        max_examples: int | None = None,
        evaluate: Callable[[ServerState], Mapping[str, float]] | None = None,
        evaluate_on_clients: bool = True,
        reference: Agreement | None = None,
        journal: Journal | None = None,
    ) -> None:
        start = local_init if local_init is not None else Aligned()
        name_of(start)
        self._federation = Federation({}, aggregator, {}, seed, start, shared_init, fraction, min_replies)
        self._min_clients, self._wait, self._max_examples = min_clients, wait, max_examples
        self._evaluate, self._evaluate_on_clients = evaluate, evaluate_on_clients
        self._reference, self._journal = reference, journal
        self._roster = Roster()
        self._timeout = 3600.0
        self._grid: Grid | None = None
        self._round: OpenRound | None = None
        self._closed: ClosedRound | None = None
        self._clock = _Clock(0.0)
        self.state = ServerState.initial()
        self.records: list[RoundRecord] = []

    @override
    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Wait for the clients and play the rounds; Flower's ``Strategy.start``.

        Args:
            grid: from Flower.
            initial_arrays: for Flower's signature; the first global adapter is nothing, or what the journal has.
            num_rounds: of the whole run: a resumed one plays those that are missing.
            timeout: seconds for the replies of a round.
            train_config: for Flower's signature; instructions are florist's own.
            evaluate_config: the same.
            evaluate_fn: as Flower's, given the arrays of the global adapter.

        Returns:
            The arrays of the last global adapter, as `adapter_to_arrays`, and the metrics by round of this session.

        Raises:
            TooFewClientsError: fewer clients came in time than are needed to begin.
            ConfigurationError: the journal holds a run of another method, or on another base; or a round asks fewer
                clients than must reply.
            DamagedRunError: the journal cannot be resumed from.
            DirectoryInUseError: another server is at work in it.
        """
        self._grid, self._timeout = grid, timeout
        deadline = time.monotonic() + self._wait
        with ExitStack() as held:
            self._roster.gather(grid, self._min_clients, self._wait)
            resumed = self._journal is not None and self._journal.begun
            if self._journal is not None and resumed:
                held.enter_context(sole_process(self._journal.path))
            self._begin(grid)
            if self._journal is not None and not resumed:
                held.enter_context(sole_process(self._journal.path))
            while len(self._admitted(grid)) < self._min_clients:
                self._roster.gather(grid, self._min_clients, max(0.0, deadline - time.monotonic()))
            self._rules.require_possible()
            left = max(0, num_rounds - self.state.round_number)
            if self.records:
                LOG.info("resumed after round %d: %d rounds to go", self.state.round_number, left)
            arrays = adapter_to_arrays(self.state.global_adapter)
            result = super().start(grid, arrays, left, timeout, train_config, evaluate_config, evaluate_fn)
        result.arrays = adapter_to_arrays(self.state.global_adapter)
        return result

    @override
    def summary(self) -> None:
        """Log what runs."""
        rules = self._federation
        LOG.info("\t├──> %s, %s", rules.aggregator, rules.local_init)
        LOG.info("\t└──> %d clients: %s", len(self._roster.members), ", ".join(sorted(self._roster.members)))

    @override
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The instructions of a round, to the clients that are drawn among those that can be reached."""
        self._clock = _Clock(time.perf_counter())
        self._closed = None
        connected = self._enough(grid)
        rules, members = self._rules, dict(self._roster.members)
        self._round = OpenRound(
            Exchange(rules, self.state, members, self._max_examples),
            self.state.round_number + 1,
            dict(self._roster.nodes),
            self._timeout,
        )
        if len(connected) < rules.clients_per_round:
            for client_id in sorted(members.keys() - set(connected)):
                self._round.drop(client_id, "not connected when the round began")
        asked = rules.participants(self._round.number, connected)
        LOG.info("round %d: asked to train: %s", self._round.number, ", ".join(asked) or "nobody")
        return self._round.messages(asked, TRAIN)

    @override
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Close the round: check the replies, aggregate those that can be used, and save."""
        underway, rules = self._underway, self._underway.exchange.federation
        answers = underway.answers(self._connection, replies, TRAIN)
        updates = [Exchange.update(each) for some in answers.values() for each in some if isinstance(each, Upload)]
        self._clock.trained = time.perf_counter()
        closed = rules.close_round(underway.as_told(self.state), updates)
        for drop in closed.dropped:
            underway.drop(drop.client_id, drop.reason)
        if closed.broadcast is None:
            LOG.warning(
                "round %d: the global adapter stays as it was: %d usable updates, and %d are needed",
                underway.number,
                len(closed.counted),
                rules.required_replies,
            )
        # What the in-process engine delivers at once is sent with the next message here.
        self._closed = replace(closed, state=underway.as_told(closed.state), deliveries={})
        self.state = self._closed.state
        self._clock.aggregated = time.perf_counter()
        self.records.append(self._record({}))
        if self._journal is not None:
            self._journal.save(self.state, self.records[-1])
        if self._evaluate is not None:
            self._amend(self._evaluate(self.state))
        line = self.records[-1]
        LOG.info(
            "round %d: %d of %d clients count, rank %d of %d, %d bytes a broadcast",
            line.round,
            len(line.clients),
            len(underway.download_bytes),
            line.total_rank,
            line.input_rank,
            line.broadcast_bytes,
        )
        arrays = adapter_to_arrays(self.state.global_adapter) if closed.broadcast is not None else None
        return arrays, _summary(line)

    @override
    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The broadcast of the round, to the clients that took part in it."""
        if not self._evaluate_on_clients or self._closed is None or self._closed.broadcast is None:
            return []
        connected = set(self._admitted(grid))
        present = [update.client_id for update in self._closed.counted if update.client_id in connected]
        self._underway.exchange = replace(self._underway.exchange, state=self.state)
        self._underway.nodes = dict(self._roster.nodes)
        return self._underway.messages(present, EVALUATE)

    @override
    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average the metrics by the number of held-out examples, and complete the record of the round."""
        if not self._evaluate_on_clients or self._closed is None or self._closed.broadcast is None:
            return None
        counted = list(self._underway.dropped)
        answers = self._underway.answers(self._connection, replies, EVALUATE)
        self._underway.dropped = counted  # who trained and then did not evaluate still counts
        found = [each for some in answers.values() for each in some[:1] if isinstance(each, Evaluation)]
        self.state = self._underway.as_told(self.state)
        metrics = weighted_mean(found)
        self._amend(metrics)
        return MetricRecord(dict(metrics)) if metrics else None

    def export(
        self,
        path: Path | str,
        base_model: str,
        task_type: str | None = "CAUSAL_LM",
        deliverable: Deliverable | None = None,
    ) -> None:
        """Write the global adapter as PEFT reads it, whole or not at all.

        Args:
            path: directory to create.
            base_model: its name, for the adapter's config.
            task_type: PEFT's name of the task.
            deliverable: makes an adapter of weights that were trained themselves, as `FederatedModel.deliverable`
                does; needed for such methods alone.

        Raises:
            OutputExistsError: the path is taken.
            InvalidAdapterError: nothing was aggregated yet.
        """
        adapter, whole = self.state.global_adapter, self.state.saved_parameters
        if deliverable is not None:
            adapter, whole = deliverable(adapter, whole)
        encoded = encode(adapter, saved_parameters=whole, base_model=base_model, task_type=task_type)
        with new_directory(Path(path)) as draft:
            write_adapter(draft, encoded)

    @property
    def _underway(self) -> OpenRound:
        if self._round is None:
            raise RuntimeError("expected configure_train first, which opens a round; Strategy.start calls all in turn")
        return self._round

    @property
    def _connection(self) -> Grid:
        if self._grid is None:
            raise RuntimeError("expected Strategy.start first, which is given the grid")
        return self._grid

    def _begin(self, grid: Grid) -> None:
        """Agree with the clients on what is trained, and take up the state of the run."""
        journal, members = self._journal, self._roster.members
        if journal is not None and journal.begun:
            self.state, self.records = journal.load(self.state, self._federation)
        saved = journal.agreed if journal is not None else None
        self._agreement = self._reference or saved or Agreement.of(members.values())
        if saved is not None and saved.base != self._agreement.base:
            raise ConfigurationError(
                f"expected the base {saved.base}, which the run to resume was begun with, got {self._agreement.base}"
            )
        self._federation = replace(self._federation, shapes=self._agreement.shapes)
        if not self.records:
            agreeing = [member for member in members.values() if self._agreement.refusal(member) is None]
            self.state = ServerState.initial(ask_saved_parameters(grid, self._roster.nodes, agreeing, self._timeout))
        if journal is not None:
            evaluate, initial = self._evaluate, self.state
            journal.begin(lambda: evaluate(initial) if evaluate is not None else {})
            journal.agree(self._agreement, self._federation)

    @property
    def _rules(self) -> Federation:
        """The rules for who is a member now."""
        ranks = {client_id: member.rank for client_id, member in self._roster.members.items()}
        return replace(self._federation, client_ranks=ranks)

    def _enough(self, grid: Grid) -> tuple[str, ...]:
        """The clients that can be reached, once a round could succeed with them; or as many as came in time.

        A network that is away for a minute would otherwise cost the run all the rounds that fit into that minute.
        """
        deadline = time.monotonic() + self._wait
        connected = self._admitted(grid)
        if len(connected) < self._rules.required_replies:
            LOG.warning("%d clients can be reached, and a round needs %d", len(connected), self._rules.required_replies)
        while len(connected) < self._rules.required_replies and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(PAUSE, left))
            connected = self._admitted(grid)
        return connected

    def _admitted(self, grid: Grid) -> tuple[str, ...]:
        """The clients that can be reached and that train what all train, sorted."""
        self._roster.refresh(grid)
        for introduction in self._roster.newcomers():
            reason = self._agreement.refusal(introduction)
            if reason is not None:
                self._roster.refuse(introduction.client_id, reason)
                continue
            held = introduction.holds if 0 <= introduction.holds <= self.state.latest else None
            self.state = self._federation.with_holds(self.state, {introduction.client_id: held})
        return self._roster.connected(grid)

    def _record(self, metrics: Mapping[str, float]) -> RoundRecord:
        assert self._closed is not None  # noqa: S101  # a record is written of a closed round
        clock, now = self._clock, time.perf_counter()
        seconds = {
            "train": clock.trained - clock.started,
            "aggregate": clock.aggregated - clock.trained,
            "evaluate": now - clock.aggregated,
            "total": now - clock.started,
        }
        closed = replace(self._closed, dropped=tuple(self._underway.dropped))
        return round_record(closed, self._underway.work, metrics, seconds)

    def _amend(self, metrics: Mapping[str, float]) -> None:
        """What was measured or sent after the round was saved."""
        self.records[-1] = self._record({**self.records[-1].metrics, **metrics})
        if self._journal is not None:
            self._journal.amend(self.state, self.records[-1])


def weighted_mean(evaluations: Sequence[Evaluation]) -> Mapping[str, float]:
    """Metrics of several clients, each weighted by its held-out examples; what is not finite counts nowhere."""
    names = sorted({name for evaluation in evaluations for name in evaluation.metrics})
    means: dict[str, float] = {}
    for name in names:
        given = [
            (each.num_examples, each.metrics[name])
            for each in evaluations
            if each.num_examples and math.isfinite(each.metrics.get(name, math.nan))
        ]
        total = sum(count for count, _ in given)
        if given:
            means[name] = sum(count / total * value for count, value in given)
    return means


def _summary(line: RoundRecord) -> MetricRecord:
    return MetricRecord(
        {
            "clients": len(line.clients),
            "dropped": len(line.dropped),
            "total_rank": line.total_rank,
            "relative_error": line.relative_error,
            "upload_bytes": line.upload_bytes,
            "broadcast_bytes": line.broadcast_bytes,
        }
    )
