"""One client's part in one masked round, from its keys to the shares that it reveals, each step once."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt64

from florist.errors import RosterError
from florist.privacy.keys import PublicKeys, Secrets
from florist.privacy.masking import Revealed, masked, revealed, sealed_shares
from florist.privacy.roster import Roster


@dataclass(frozen=True, slots=True, repr=False)
class Turn:
    """What a client keeps between the phases of a masked round. Each step gives an answer and what to keep then.

    A client plays a round with one roster and reveals shares once, whatever the server asks. It lets its secrets go
    when it has revealed them.

    Attributes:
        client_id: the client.
        round_number: the round.
        words: how many words it sends.
        smallest_threshold: the smallest threshold that it takes part at.
        smallest_group: the smallest group that it takes part in.
        secrets: what it drew; None when the round is over for it.
        roster: the round's roster, once it has been told.
        received: what the clients sealed for it, once that has arrived.
        has_masked: whether it has sent its words.
    """

    client_id: str
    round_number: int
    words: int
    smallest_threshold: int
    smallest_group: int
    secrets: Secrets | None
    roster: Roster | None = None
    received: Mapping[str, bytes] | None = None
    has_masked: bool = False

    @classmethod
    def begun(
        cls, client_id: str, round_number: int, words: int, *, smallest_threshold: int = 2, smallest_group: int = 2
    ) -> "Turn":
        """A turn with new secrets."""
        return cls(client_id, round_number, words, smallest_threshold, smallest_group, Secrets.drawn())

    @property
    def public(self) -> PublicKeys:
        """The keys to publish, which are the answer of the first phase.

        Raises:
            RosterError: the round is over for the client.
        """
        return self._secrets("publishes no keys").public

    def shared(self, roster: Roster) -> "tuple[dict[str, bytes], Turn]":
        """The sealed shares for each client, which are the answer of the second phase.

        Raises:
            RosterError: the roster is of another round, was told before or is not the one that was, lacks its keys, or
                has too small a threshold.
        """
        own = self._secrets("shares nothing")
        if roster.round_number != self.round_number:
            raise RosterError(
                f"{self.client_id}: expected the roster of round {self.round_number}, got that of round "
                f"{roster.round_number}; it takes no part in that round"
            )
        if self.roster is not None and roster.digest != self.roster.digest:
            raise RosterError(
                f"{self.client_id}: expected the roster of round {self.round_number} that it was told before, got "
                "another; it takes no further part in the round"
            )
        if self.roster is not None:
            raise RosterError(
                f"{self.client_id}: expected to share its secrets once in round {self.round_number}, and was asked "
                "again; it shares nothing, since a key seals one message"
            )
        roster.require(self.client_id, own.public, self.words, self.smallest_threshold, self.smallest_group)
        return sealed_shares(self.client_id, own, roster), replace(self, roster=roster)

    def masked(
        self, received: Mapping[str, bytes], words: UInt64[np.ndarray, " words"]
    ) -> "tuple[UInt64[np.ndarray, ' words'], Turn]":
        """The words under masks, which are the answer of the third phase.

        Args:
            received: what the clients sealed for this one, its own as well.
            words: what the sum is made of.

        Raises:
            RosterError: the client has no roster yet, or has sent its words: two messages under one mask would show
                their difference.
            BelowThresholdError: too few have shared.
        """
        own, roster = self._secrets("sends nothing"), self._told()
        if self.has_masked:
            raise RosterError(
                f"{self.client_id}: expected to send its words once in round {self.round_number}, and was asked again; "
                "it sends nothing"
            )
        result = masked(self.client_id, own, roster, received, words)
        return result, replace(self, received=dict(received), has_masked=True)

    def revealed(self, survivors: Collection[str]) -> "tuple[Revealed, Turn]":
        """The shares that take the masks off, which are the answer of the last phase.

        Args:
            survivors: the clients whose words have arrived.

        Raises:
            RosterError: the client has revealed its shares before, has received none, or survivors have shared nothing.
            BelowThresholdError: too few are left.
            BrokenSharesError: shares cannot be opened, or somebody was told another roster.
        """
        own, roster = self._secrets("reveals nothing"), self._told()
        if self.received is None:
            raise RosterError(
                f"{self.client_id}: expected shares before the end of round {self.round_number}, and none arrived; it "
                "reveals nothing"
            )
        shares = revealed(self.client_id, own, roster, self.received, survivors)
        return shares, replace(self, secrets=None, received=None)

    def _secrets(self, does: str) -> Secrets:
        if self.secrets is None:
            raise RosterError(
                f"{self.client_id}: expected one end of round {self.round_number}, and it has revealed its shares; it "
                f"{does} a second time"
            )
        return self.secrets

    def _told(self) -> Roster:
        if self.roster is None:
            raise RosterError(
                f"{self.client_id}: expected the roster of round {self.round_number} first, and it was told none; it "
                "takes no part in the round"
            )
        return self.roster
