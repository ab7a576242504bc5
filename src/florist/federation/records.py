"""What is written down of a run: a line of ``rounds.jsonl`` for every round, and ``test.json``."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from florist.errors import printable
from florist.federation.private_records import PrivacyRecord
from florist.files.strict_json import Number

LONGEST_REASON = 400
"""The characters that a record keeps of a reason."""


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """What one client did in a round.

    Attributes:
        client_id: the name in its update.
        rank: the rank of its local adapter, the largest over its modules.
        num_examples: how many examples are behind its update; None in a private round, which does not tell.
        upload_bytes: what the client sent.
        download_bytes: what was sent to it: all that it lacked at the start, and the round's broadcast.
        loss: the mean training loss; NaN in a private round, which does not tell.
        seconds: how long it trained.
        held_back: the norm of what it holds back and sends later.
        update_norm: the norm of what its training changed, over all modules; None where no factors travelled, in
            private rounds, and in runs that did not record it.
        weight: the weight of its update in the sum, where a robust rule or a clip made it another than its share of the
            examples; None otherwise.
    """

    client_id: str
    rank: int
    num_examples: int | None
    upload_bytes: int
    download_bytes: int
    loss: Number
    seconds: Number
    held_back: Number = 0.0
    update_norm: float | None = None
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    """A client that was asked and does not count, and the reason, on one line: it may quote what a client sent."""

    client_id: str
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", printable(self.reason, LONGEST_REASON))


@dataclass(frozen=True, slots=True)
class Clip:
    """A client whose update the guard scaled down, the factor below 1, and the reason, on one line."""

    client_id: str
    factor: Number
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", printable(self.reason, LONGEST_REASON))


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One line of ``rounds.jsonl``.

    Attributes:
        round: the number of the round, counted from 1.
        aggregated: False where too few usable updates came and the global adapter stayed as it was.
        metrics: what the global adapter measured after the round; empty where the round was not evaluated.
        total_rank: the rank of the broadcast to a client of the largest rank, summed over the modules; 0 where weights
            are trained themselves.
        input_rank: the total rank of what the clients trained, before any cut, which FLoRA would broadcast.
        cumulative_rank: the total rank of the global adapter after the round, continued part included.
        relative_error: how far the broadcast is from the exact weighted sum; with feedback, from all that was due.
        ranks: the rank of the broadcast, by module.
        upload_bytes: what all clients sent.
        download_bytes: what was sent to all clients, catch-up included.
        broadcast_bytes: one copy of the broadcast, to a client of the largest rank.
        stack_bytes: one copy of both halves of what the clients trained, in float32, which FLoRA would broadcast.
        clients: the clients that count.
        dropped: the clients that do not.
        seconds: the duration of every phase.
        codec_error: the norm of what the codec made of the broadcast, less what it was.
        held_back: the norm of what the server holds back and sends later.
        client_metrics: what the global adapter measured on the held-out examples of each client, by client and metric;
            empty where that was not asked for, or the round was not evaluated.
        lost: by module, the norm of the part of the error that is not sent later: of what was cut or rounded away for
            good.
        best_round: the best round so far, where rounds are chosen by a metric.
        stopped: whether the rounds stopped after this one, for want of an improvement.
        cosines: the cosines between the clients' updates, the lower triangle without its diagonal: row i belongs to
            the i-th of `clients` and has those with the clients before it. Rows go as far as
            `geometry.MOST_CLIENTS`; they are empty in runs that did not record them.
        clipped: the clients that count, and whose updates the guard scaled down.
        privacy: how the updates of the round were protected; None where they were not.
    """

    round: int
    aggregated: bool
    metrics: Mapping[str, Number]
    total_rank: int
    input_rank: int
    cumulative_rank: int
    relative_error: Number
    ranks: Mapping[str, int]
    upload_bytes: int
    download_bytes: int
    broadcast_bytes: int
    stack_bytes: int
    clients: tuple[ClientRecord, ...]
    dropped: tuple[Drop, ...]
    seconds: Mapping[str, Number]
    codec_error: Number = 0.0
    held_back: Number = 0.0
    client_metrics: Mapping[str, Mapping[str, Number]] = field(default_factory=dict[str, Mapping[str, Number]])
    lost: Mapping[str, Number] = field(default_factory=dict[str, float])
    best_round: int | None = None
    stopped: bool = False
    cosines: tuple[tuple[float | None, ...], ...] = ()
    clipped: tuple[Clip, ...] = ()
    privacy: PrivacyRecord | None = None

    @property
    def epsilon(self) -> float | None:
        """What the rounds up to this one have spent of the clients' privacy; None without noise."""
        return self.privacy.epsilon if self.privacy is not None else None

    @property
    def ends(self) -> bool:
        """Whether the rounds ended after this one, though more were planned."""
        return self.stopped or (self.privacy is not None and self.privacy.spent)

    @property
    def text(self) -> str:
        """What came of the round, in a line."""
        metrics = "".join(f"{name} {value:.3f}, " for name, value in self.metrics.items())
        aggregated = f"total rank {self.total_rank}" if self.ranks else "whole weights averaged"
        failed = self.privacy.failed if self.privacy is not None else None
        outcome = aggregated if self.aggregated else failed or "too few replies, nothing changed"
        spent = f", epsilon {self.epsilon:.3g}" if self.epsilon is not None else ""
        return f"round {self.round}: {metrics}{outcome}{spent}"


@dataclass(frozen=True, slots=True)
class FinalTest:
    """What is written down of the final adapter: ``test.json``.

    Attributes:
        metrics: the metrics on examples that no choice was made by.
        lower_is_better: whether a smaller value is the better one, by the name of the metric, as far as it is known.
    """

    metrics: Mapping[str, Number]
    lower_is_better: Mapping[str, bool]
