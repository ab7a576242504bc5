"""One round's messages with the clients: what each is sent, and what of its reply can be used."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from flwr.app import RecordDict

from florist.compression.packed import PackedAdapter
from florist.errors import InvalidUpdateError
from florist.federation.downloads import Download
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.flower import messages, protocol
from florist.flower.arrays import Rows, unpacked
from florist.flower.limits import ContradictionError, Limits
from florist.flower.messages import Assignment, Evaluation, Instruction, Introduction, OutOfStep, Report, Upload
from florist.flower.private_messages import Published, PublishedKeys
from florist.flower.private_terms import PrivacyTerms
from florist.flower.upload_terms import UploadTerms
from florist.rounds import NO_ADAPTER, ClientUpdate, saved_bytes
from florist.seeding import derive_seed


@dataclass(frozen=True, slots=True, eq=False)
class Exchange:
    """The server's side of the conversation in one round.

    Attributes:
        federation: the rules, with the clients of this round.
        state: what clients are brought up to.
        introductions: what clients introduced themselves with, by client id.
        max_examples: the largest count that a client may claim; None for no limit.
        counted: the last round in which an update of a client counted, by client id; those without one are missing.
    """

    federation: Federation
    state: ServerState
    introductions: Mapping[str, Introduction]
    max_examples: int | None
    counted: Mapping[str, int] = field(default_factory=dict[str, int])

    def to_train(self, client_id: str) -> tuple[RecordDict, Download]:
        """The instruction to train in the round after `state`, and what is sent with it."""
        return self._instruction(client_id, self.state.round_number + 1)

    def to_evaluate(self, client_id: str) -> tuple[RecordDict, Download]:
        """The instruction to evaluate the global adapter of `state`, and what is sent with it."""
        return self._instruction(client_id, self.state.round_number)

    def read(self, client_id: str, content: RecordDict) -> Upload | OutOfStep | Evaluation | Published:
        """Read a client's reply, and decode it.

        Raises:
            ContradictionError: it is larger than what the client introduced itself with allows.
            FloristError: the content is no reply, damaged, or not packed as the client was told.
        """
        rows, rank = self._rows(client_id), self.introductions[client_id].rank
        Limits.of_reply(self.federation.shapes, rank, self.state.saved_parameters).require(content)
        answer = protocol.read_reply(content, rows)
        return self._decoded(answer, rows, rank) if isinstance(answer, Upload) else answer

    def contradiction(self, client_id: str, answer: Upload | OutOfStep | Evaluation | Published) -> str | None:
        """Where a reply contradicts what the client introduced itself with; None where it does not.

        It does where the node was started again as another client, or with other data, since it introduced itself.
        """
        introduction = self.introductions[client_id]
        said = _said(answer)
        if said.client_id != client_id:
            return f"expected a reply of {client_id}, got one that says {said.client_id}"
        if isinstance(answer, Evaluation) and answer.num_examples != introduction.held_out:
            return f"expected {introduction.held_out} held-out examples, as introduced, got {answer.num_examples}"
        if isinstance(said, Report | PublishedKeys) and said.base != introduction.base:
            return f"expected the base {introduction.base}, as introduced, got {said.base}"
        if isinstance(answer, Upload):
            report = answer.report
            if report.num_examples != introduction.num_examples:
                return f"expected {introduction.num_examples} examples, as introduced, got {report.num_examples}"
            rank = max((spec.rank for spec in answer.adapter.specs.values()), default=0)
            if rank > introduction.rank:
                return f"expected a rank of at most {introduction.rank}, as introduced, got {rank}"
        return None

    def refusal(self, client_id: str, answer: Upload | Evaluation | Published) -> str | None:  # noqa: ARG002  # see above
        """Why an answer cannot be used in this round; None where it can. `admission` checks the update itself."""
        said = _said(answer)
        if said.holds != self.state.latest:
            return f"expected a reply from the global adapter of round {self.state.latest}, got one from {said.holds}"
        counts = isinstance(said, Report | Evaluation)
        if counts and self.max_examples is not None and said.num_examples > self.max_examples:
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
            report.client_id,
            upload.adapter,
            report.num_examples,
            report.round_number,
            upload.saved_parameters,
            upload.sent_bytes,
            report.held_back,
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
            counted=self.counted.get(client_id, 0),
            upload=UploadTerms.of(self.federation.communication),
            privacy=self._privacy(client_id),
        )
        # Before the first broadcast the parameters are those of the base, which no codec has rounded.
        codec = self.federation.communication.saved_download if self.state.broadcasts else None
        instruction = Instruction(
            assignment,
            download.adapter,
            download.continued if download.packed_continued is None else NO_ADAPTER,
            messages.directions_of(download.directions),
            protocol.narrowed(download.saved_parameters, codec),
            download.packed,
            download.packed_continued,
        )
        return protocol.write_instruction(instruction, work.broadcast), download

    def _privacy(self, client_id: str) -> PrivacyTerms | None:  # noqa: ARG002  # of a masked round it is another for each
        """How a client is to hide its update; None where it is not."""
        return None

    def _rows(self, client_id: str) -> Rows:
        rows = self.federation.rows(self.state, client_id)
        return lambda module, rank: rows(module)[:rank]

    def _decoded(self, upload: Upload, rows: Rows, rank: int) -> Upload:
        communication, packed = self.federation.communication, upload.packed
        expected = communication.upload.codec.name if communication.upload is not None else "none"
        came = packed.codec.name if packed is not None else "none"
        if came != expected:
            raise InvalidUpdateError(
                f"expected factors packed by the codec {expected}, got {came}; send what was asked"
            )
        if packed is not None and upload.adapter:
            raise InvalidUpdateError(
                f"expected factors packed by the codec {expected} and nothing beside them, got both"
            )
        factor_bytes = self.federation.aggregator.work.sent_bytes(upload.adapter)
        adapter = upload.adapter
        if packed is not None:
            self._require_shapes(packed, rank)
            factor_bytes, adapter = packed.nbytes, unpacked(packed, rows)
        saved = upload.saved_parameters
        if communication.saved_upload is not None:
            protocol.require_dtype(saved, communication.saved_upload)
            saved = protocol.widened(saved, self.state.saved_parameters)
        return replace(
            upload,
            adapter=adapter,
            saved_parameters=saved,
            packed=None,
            sent_bytes=factor_bytes + saved_bytes(upload.saved_parameters),
        )

    def _require_shapes(self, packed: PackedAdapter, rank: int) -> None:
        """Look at what is claimed before anything is decoded by it: numbers may be too large for any tensor."""
        for name, factor in packed.factors.items():
            if name not in self.federation.shapes:
                raise InvalidUpdateError(f"{name} is not a module that this federation trains")
            shape = self.federation.shapes[name]
            if factor.shape != shape:
                raise InvalidUpdateError(f"{name}: expected the shape {shape}, got {factor.shape}; both need one base")
            if factor.rank > rank:
                raise ContradictionError(f"expected a rank of at most {rank}, as introduced, got {factor.rank}")


def _said(answer: Upload | OutOfStep | Evaluation | Published) -> Report | OutOfStep | Evaluation | PublishedKeys:
    """The scalars of an answer."""
    if isinstance(answer, Upload):
        return answer.report
    return answer.said if isinstance(answer, Published) else answer
