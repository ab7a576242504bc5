"""What a round produces, for the engine that sends it and for the record of the round."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from florist.federation.downloads import Download
from florist.federation.geometry import Changes
from florist.federation.private_records import PrivacyRecord
from florist.federation.records import Clip, Drop
from florist.federation.state import ServerState
from florist.rounds import Broadcast, ClientUpdate


@dataclass(frozen=True, slots=True, eq=False)
class ClosedRound:
    """The outcome of a round.

    Attributes:
        state: the state to start the next round from.
        broadcast: what was aggregated; None where too few updates could be used and nothing changed.
        counted: the updates that went in, as they were uploaded; empty where the server had their sum alone.
        upload_bytes: the bytes of each of them, by client id.
        deliveries: what each of their clients is sent now, by client id; empty where nothing changed.
        dropped: the clients whose updates were refused, and the reasons.
        ranks: the rank that each of their clients trained, before any cut, by client id.
        stack_rank: the total rank of what their clients trained, before any cut, which FLoRA would broadcast.
        stack_bytes: the bytes of it, as no codec made them fewer, with the parameters that travel whole.
        changes: what the training of each of their clients changed, in the order of `counted`.
        clipped: those of them whose updates the guard scaled down.
        weights: the weights of all of them, by client id, where these are not their shares of the examples.
        received_bytes: what each of their clients was sent within the round, by client id, beside broadcasts.
        privacy: how updates were protected; None where they were not.
    """

    state: ServerState
    broadcast: Broadcast | None
    counted: tuple[ClientUpdate, ...]
    upload_bytes: Mapping[str, int]
    deliveries: Mapping[str, Download]
    dropped: tuple[Drop, ...]
    ranks: Mapping[str, int]
    stack_rank: int
    stack_bytes: int
    changes: Changes = field(default_factory=Changes)
    clipped: tuple[Clip, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict[str, float])
    received_bytes: Mapping[str, int] = field(default_factory=dict[str, int])
    privacy: PrivacyRecord | None = None

    @property
    def failed(self) -> str | None:
        """Why nothing could be read of a private round; None where it was, and for other rounds."""
        return self.privacy.failed if self.privacy is not None else None
