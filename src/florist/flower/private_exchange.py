"""The messages of a masked round's first phase: an exchange whose instructions have the terms, and that reads keys."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from flwr.app import RecordDict
from typing_extensions import override

from florist.federation.masked_round import MaskedRound
from florist.flower import private_protocol
from florist.flower.exchange import Exchange
from florist.flower.messages import Evaluation, OutOfStep, Upload
from florist.flower.private_messages import Published
from florist.flower.private_terms import PrivacyTerms

# Dataclasses with slots are made twice, so that super() without arguments finds the wrong one.


@dataclass(frozen=True, slots=True, eq=False)
class PrivateExchange(Exchange):
    """The server's side of the conversation in the first phase of a masked round.

    Attributes:
        masked: the settings of the round.
        terms: what each client is asked, by client id.
    """

    masked: MaskedRound = field(kw_only=True)
    terms: Mapping[str, PrivacyTerms] = field(kw_only=True)

    @override
    def read(self, client_id: str, content: RecordDict) -> Upload | OutOfStep | Evaluation | Published:
        """Read a client's answer.

        Raises:
            FloristError: it is neither keys nor out of step.
        """
        return private_protocol.read_keys(content)

    @override
    def refusal(self, client_id: str, answer: Upload | Evaluation | Published) -> str | None:
        """Why keys cannot be used in this round; None where they can."""
        said = cast("Published", answer).said
        if said.round_number != self.masked.round_number:
            return f"expected keys for round {self.masked.round_number}, got some for {said.round_number}"
        if said.words != self.masked.words(client_id):
            return f"expected {self.masked.words(client_id)} words, by the terms of the round, got {said.words}"
        share = self.terms[client_id].share(self.masked.ranks[client_id])
        if share is not None and (said.noise is None or said.noise < (1 - 1e-9) * share.deviation):
            return (
                f"expected noise of standard deviation {share.deviation:.3g} in what the client sends, by the terms of "
                f"the round, got {said.noise}; it needs a version of florist that knows privacy.noise = 'clients'"
            )
        return Exchange.refusal(self, client_id, answer)

    @override
    def _privacy(self, client_id: str) -> PrivacyTerms | None:
        return self.terms[client_id]
