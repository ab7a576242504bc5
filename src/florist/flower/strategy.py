"""Flower's ``Strategy`` over florist's rounds: it carries messages, and `federation.rules` decides.

The same state machine runs in the in-process engine. What is added here is what a network adds: clients that are not
there, replies that do not come, downloads that get lost, and senders that cannot be trusted.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from typing_extensions import override

from florist.aggregation.robust import RobustRule
from florist.federation.closed_round import ClosedRound
from florist.federation.communication import Communication
from florist.federation.guard import Guard
from florist.federation.local_init import Aligned, LocalInit
from florist.federation.private_rounds import PrivateRounds
from florist.federation.records import RoundRecord
from florist.federation.rules import Federation
from florist.federation.run_adapter import Deliverable, SaveTokenizer
from florist.federation.state import ServerState
from florist.files.locking import sole_process
from florist.flower.agreement import Agreement
from florist.flower.arrays import adapter_to_arrays
from florist.flower.beginning import Beginning
from florist.flower.client_metrics import weighted_mean
from florist.flower.client_texts import one_line
from florist.flower.final_adapter import write_global_adapter
from florist.flower.journal import Journal
from florist.flower.membership import Membership
from florist.flower.messages import EVALUATE, Evaluation, name_of
from florist.flower.open_round import Answer, OpenRound
from florist.flower.private_server import PrivateServer, require_private
from florist.flower.roster import LOG
from florist.flower.round_book import RoundBook
from florist.flower.round_server import PlainServer, RoundServer
from florist.flower.rounds import Rounds
from florist.flower.upload_terms import UploadTerms
from florist.rounds import Aggregator


class FloristStrategy(Strategy):
    """Any of florist's aggregation methods as a strategy of Flower.

    Clients run the app that `client_app` makes. A round asks those that are connected, sends each what it misses, drops
    what comes too late, is damaged or does not fit, says so, and goes on with the rest; with too few usable updates the
    global adapter stays as it was.

    Args:
        aggregator: the method.
        seed: the seed of the run.
        local_init: how local adapters start where the method continues none; aligned by default.
        shared_init: whether the clients of a round draw the same random rows of A.
        fraction: the fraction of the clients that each round asks.
        min_replies: how many usable updates a round needs; by default half as many as it asks clients.
        min_clients: how many clients are waited for before the first round. One that has been away for
            `roster.ROUNDS_AWAY` rounds no longer counts, as long as half of them, and at least two, remain.
        wait: seconds to wait for them; and before each round, for as many as it needs.
        max_examples: the largest count that a client may claim, since its weight grows with it; by default any.
        evaluate: gives metrics of a state's global model at the server, before the first round and after each.
        evaluate_on_clients: after a round, the clients that took part get its broadcast and measure it on held-out
            examples of their own; the metrics are averaged by their number. Otherwise they get it with the next
            round.
        reference: what clients must agree on; by default what most of the first ones say.
        journal: where every round is saved, and resumed from.
        communication: how updates and broadcasts travel; by default as they are, in float32.
        guard: refuses, or scales down, updates that no honest client sends; `Guard` with its defaults by default.
        robust: the weights of the clients, where some may be hostile; by default their shares of the examples.
        on_round: is told of every round of this session when all is known of it, what clients measured included.
        private: how the updates of clients are protected; None where the server sees each of them. Noise and draws of
            participants come from the system's source of randomness then, so that no two runs are the same.
        phase_timeout: seconds for the replies of each phase of a masked round after training.

    Raises:
        InvalidUpdateError: `local_init` is not one that clients know by name.
        ConfigurationError, UnknownCodecError: clients cannot be told how to send their updates (`UploadTerms.of`), or
            not protect them (`require_private`).
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
        communication: Communication | None = None,
        guard: Guard | None = None,
        robust: RobustRule | None = None,
        on_round: Callable[[RoundRecord], None] | None = None,
        private: PrivateRounds | None = None,
        phase_timeout: float = 600.0,
    ) -> None:
        start = local_init if local_init is not None else Aligned()
        sending = communication if communication is not None else Communication()
        name_of(start)
        UploadTerms.of(sending)
        federation = Federation(
            {}, aggregator, {}, seed, start, shared_init, fraction, min_replies, communication=sending
        )
        federation = replace(federation, guard=guard if guard is not None else Guard(), robust=robust)
        server: RoundServer = PlainServer()
        if private is not None:
            require_private(private, federation, evaluate_on_clients=evaluate_on_clients)
            server = PrivateServer(private, phase_timeout, journal)
        self._members = Membership(federation, min_clients, wait, masked=server.masked)
        self._evaluate, self._evaluate_on_clients = evaluate, evaluate_on_clients
        self._journal, self._book = journal, RoundBook(journal)
        self._rounds = Rounds(self._members, server, self._book, max_examples)
        self._begin = Beginning(self._members, self._book, journal, reference, evaluate, server.settings)
        self._on_round = on_round
        self._grid: Grid | None = None
        self._round: OpenRound | None = None
        self._closed: ClosedRound | None = None
        self.state = ServerState.initial()

    @property
    def records(self) -> list[RoundRecord]:
        """The records of all rounds so far, those of a resumed run included."""
        return self._book.records

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
        """Wait for the clients and play the rounds, as Flower's ``Strategy.start``.

        Args:
            grid: comes from Flower.
            initial_arrays: is there for Flower's signature; the first global adapter is nothing, or what the journal
                has.
            num_rounds: the rounds of the run: a resumed one plays those that are missing.
            timeout: seconds for the replies of a round.
            train_config: is there for Flower's signature; instructions are florist's own.
            evaluate_config: is there for the same reason.
            evaluate_fn: as Flower's; it is given the arrays of the global adapter.

        Returns:
            The arrays of the last global adapter, as `adapter_to_arrays` writes them, and the metrics by round of this
            session.

        Raises:
            TooFewClientsError: fewer clients came in time than are needed to begin.
            ConfigurationError: the journal has a run of another method, of other rules, or on another base; or a round
                asks fewer clients than must reply.
            DamagedRunError: the journal cannot be resumed from.
            DirectoryInUseError: another server is at work in it.
        """
        self._grid, self._rounds.timeout, self._rounds.most = grid, timeout, num_rounds
        members, journal = self._members, self._journal
        deadline = time.monotonic() + members.wait
        with ExitStack() as locks:
            members.roster.gather(grid, members.min_clients, members.wait)
            resumed = journal is not None and journal.begun
            if journal is not None and resumed:
                locks.enter_context(sole_process(journal.path))
            self.state = self._begin(grid, self.state, timeout)
            if journal is not None and not resumed:
                locks.enter_context(sole_process(journal.path))
            self.state = members.gather(grid, self.state, deadline)
            self._rounds.server.require_possible(self._rounds.rules, self.state)
            for closed in self._rounds.left_unfinished(self.state):
                self.state = closed.state
                self._tell()
            left = self._rounds.left(self.state)
            if self.records:
                LOG.info("resumed after round %d: %d rounds to go", self.state.round_number, left)
            result = super().start(grid, self._arrays(), left, timeout, train_config, evaluate_config, evaluate_fn)
        result.arrays = self._arrays()
        return result

    @override
    def summary(self) -> None:
        """Log what runs."""
        rules = self._members.rules
        LOG.info("\t├──> %s, %s", rules.aggregator, rules.local_init)
        LOG.info("\t├──> %s", rules.communication)
        if self._rounds.server.settings is not None:
            LOG.info("\t├──> private: %s", self._rounds.server.settings)
        LOG.info("\t└──> %d clients: %s", len(rules.client_ranks), ", ".join(sorted(rules.client_ranks)))

    @override
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The instructions of a round, to the clients that are drawn among those that can be reached."""
        self._book.round_begins()
        self._closed = None
        connected, self.state = self._members.for_round(grid, self.state)
        self._round, messages = self._rounds.opened(self.state, connected)
        return messages

    @override
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Close the round: check the replies, aggregate those that can be used, and save."""
        underway = self._underway
        answers = self._answers(replies)
        self._book.training_ends()
        closed = self._closed = self._rounds.closed(self._reached, underway, self.state, answers)
        self.state = closed.state
        line = self.records[-1]
        if self._evaluate is not None:
            line = self._book.amend(self.state, closed, underway, self._evaluate(self.state))
        LOG.info(
            "round %d: %d of %d clients count, rank %d of %d, %d bytes a broadcast",
            line.round,
            len(line.clients),
            len(underway.download_bytes),
            line.total_rank,
            line.input_rank,
            line.broadcast_bytes,
        )
        return self._arrays() if closed.broadcast is not None else None, RoundBook.summary(line)

    @override
    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The broadcast of the round, to the clients that took part in it."""
        if not self._evaluate_on_clients or self._closed is None or self._closed.broadcast is None:
            return []
        connected, self.state = self._members.admitted(grid, self.state)
        present = [client_id for client_id in self._closed.ranks if client_id in connected]
        self._underway.exchange = replace(self._underway.exchange, state=self.state)
        self._underway.nodes = dict(self._members.roster.nodes)
        return self._underway.messages(present, EVALUATE)

    @override
    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average the metrics by the number of held-out examples, and complete the record of the round."""
        metrics = self._measured(replies)
        if self._closed is not None:
            self._tell()
        return MetricRecord(dict(metrics)) if metrics else None

    def export(
        self,
        path: Path | str,
        base_model: str,
        task_type: str | None = "CAUSAL_LM",
        deliverable: Deliverable | None = None,
        *,
        flush: bool = True,
        replace: bool = False,
        save_tokenizer: SaveTokenizer | None = None,
    ) -> None:
        """Write the global adapter as PEFT reads it, all of it or nothing; see `write_global_adapter`."""
        write_global_adapter(
            Path(path),
            self.state,
            base_model,
            task_type,
            deliverable,
            flush=flush,
            replace=replace,
            records=self.records,
            method=self._journal.method if self._journal is not None else None,
            save_tokenizer=save_tokenizer,
        )

    @property
    def _underway(self) -> OpenRound:
        if self._round is None:
            raise RuntimeError("expected configure_train first, which opens a round; Strategy.start calls all in turn")
        return self._round

    @property
    def _reached(self) -> Grid:
        if self._grid is None:
            raise RuntimeError("expected Strategy.start first, which is given the grid")
        return self._grid

    def _tell(self) -> None:
        if self._on_round is not None:
            self._on_round(self.records[-1])

    def _arrays(self) -> ArrayRecord:
        return adapter_to_arrays(self.state.global_adapter)

    def _answers(self, replies: Iterable[Message]) -> Mapping[str, list[Answer]]:
        """What clients sent, by client; the node of a client that contradicts itself is asked anew who it is."""
        underway = self._underway
        answers = underway.answers(self._reached, replies)
        for client_id in underway.contradicted:
            self._members.roster.doubt(client_id)
        if underway.contradicted:
            # It has until the next round to answer.
            _, self.state = self._members.admitted(self._reached, self.state)
            underway.contradicted.clear()
        return answers

    def _measured(self, replies: Iterable[Message]) -> Mapping[str, float]:
        """What the clients measured of the round, which joins its record; nothing where they were not asked."""
        if not self._evaluate_on_clients or self._closed is None or self._closed.broadcast is None:
            return {}
        underway = self._underway
        answers = self._answers(replies)
        found = [each for some in answers.values() for each in some[:1] if isinstance(each, Evaluation)]
        for each in found:
            LOG.info("round %d: %s measured %s", underway.number, each.client_id, one_line(str(dict(each.metrics))))
        self.state = underway.as_told(self.state)
        metrics = weighted_mean(found)
        self._book.amend(self.state, self._closed, underway, metrics)
        return metrics
