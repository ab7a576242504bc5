"""One round's messages with the clients: what each is sent, and what of its reply can be used."""

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import RecordDict

from florist.federation.rules import Download, Federation
from florist.federation.state import ServerState
from florist.flower import messages, protocol
from florist.flower.arrays import Rows
from florist.flower.messages import Assignment, Evaluation, Instruction, Introduction, OutOfStep, Upload
from florist.rounds import ClientUpdate
from florist.seeding import derive_seed


@dataclass(frozen=True, slots=True, eq=False)
class Exchange:
    """The server's side of the conversation in one round.

    Attributes:
        federation: the rules, with the clients of this round.
        state: what clients are brought up to.
        introductions: what clients introduced themselves with, by client id.
        max_examples: the largest count that a client may claim; None for no limit.
    """

    federation: Federation
    state: ServerState
    introductions: Mapping[str, Introduction]
    max_examples: int | None

    def to_train(self, client_id: str) -> tuple[RecordDict, Download]:
        """The instruction to train in the round after `state`, and what is sent with it."""
        return self._instruction(client_id, self.state.round_number + 1)

    def to_evaluate(self, client_id: str) -> tuple[RecordDict, Download]:
        """The instruction to evaluate the global adapter of `state`, and what is sent with it."""
        return self._instruction(client_id, self.state.round_number)

    def read(self, client_id: str, content: RecordDict) -> Upload | OutOfStep | Evaluation:
        """Read a client's reply.

        Raises:
            FloristError: the content is no reply, or damaged.
        """
        return protocol.read_reply(content, self._rows(client_id))

    def contradiction(self, client_id: str, answer: Upload | OutOfStep | Evaluation) -> str | None:
        """Where a reply contradicts what the client introduced itself with; None where it does not.

        It does where the node was started again as another client, or with other data, since it introduced itself.
        """
        introduction = self.introductions[client_id]
        said = answer.report if isinstance(answer, Upload) else answer
        if said.client_id != client_id:
            return f"expected a reply of {client_id}, got one that says {said.client_id}"
        if isinstance(answer, Evaluation) and answer.num_examples != introduction.held_out:
            return f"expected {introduction.held_out} held-out examples, as introduced, got {answer.num_examples}"
        if isinstance(answer, Upload):
            report = answer.report
            if report.base != introduction.base:
                return f"expected the base {introduction.base}, as introduced, got {report.base}"
            if report.num_examples != introduction.num_examples:
                return f"expected {introduction.num_examples} examples, as introduced, got {report.num_examples}"
            rank = max((spec.rank for spec in answer.adapter.specs.values()), default=0)
            if rank > introduction.rank:
                return f"expected a rank of at most {introduction.rank}, as introduced, got {rank}"
        return None

    def refusal(self, answer: Upload | Evaluation) -> str | None:
        """Why an answer cannot be used in this round; None where it can. `admission` checks the update itself."""
        said = answer if isinstance(answer, Evaluation) else answer.report
        if said.holds != self.state.latest:
            return f"expected a reply from the global adapter of round {self.state.latest}, got one from {said.holds}"
        if self.max_examples is not None and said.num_examples > self.max_examples:
            return f"expected at most {self.max_examples} examples of one client, got {said.num_examples}"
        return None

    def plausible(self, holds: int) -> int | None:
        """The round that a client says it holds, where there was such a round; otherwise None, for nothing."""
        return holds if 0 <= holds <= self.state.latest else None

    @staticmethod
    def update(upload: Upload) -> ClientUpdate:
        """The update of an upload."""
        report = upload.report
        return ClientUpdate(
            report.client_id, upload.adapter, report.num_examples, report.round_number, upload.saved_parameters
        )

    def _instruction(self, client_id: str, round_number: int) -> tuple[RecordDict, Download]:
        download, work = self.federation.download(self.state, client_id), self.federation.aggregator.work
        assignment = Assignment(
            round_number=round_number,
            since=self.state.holds.get(client_id, -1),
            # A round that failed has nothing that a client could lack, so that this may not be the round before.
            until=self.state.latest,
            replaces=download.replaces,
            seed=derive_seed(self.federation.seed, "training", round_number, client_id),
            rows_seed=self.federation.local_seed(round_number, client_id),
            max_rank=self.federation.max_rank,
            trained=work.trained.value,
            local_init=messages.name_of(self.federation.local_init),
            agreed_rows=work.agreed_rows,
        )
        directions = messages.directions_of(download.directions)
        instruction = Instruction(
            assignment, download.adapter, download.continued, directions, download.saved_parameters
        )
        return protocol.write_instruction(instruction, work.broadcast), download

    def _rows(self, client_id: str) -> Rows:
        rows = self.federation.rows(self.state, client_id)
        return lambda module, rank: rows(module)[:rank]
