"""What server and clients tell each other in the phases of a masked round; `private_protocol` writes and reads it."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from florist.flower.client_texts import Name
from florist.flower.messages import Holds
from florist.privacy.keys import PublicKeys

MOST_CLIENTS = 10_000
"""The clients of a roster at most."""

_Names = Annotated[list[Name], Field(max_length=MOST_CLIENTS)]
_Words = Annotated[int, Field(gt=0, le=2**48)]
_Noise = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True)
class PublishedKeys:
    """A client's answer to the instruction of a masked round: it has trained, and has put what it trained aside.

    Attributes:
        client_id: as introduced.
        round_number: the round that asked.
        base: as introduced.
        holds: the round whose global adapter the client had while it trained.
        words: how many words it is going to send, which follows from the terms.
        noise: the standard deviation of the noise that it has added to each number of them; None where it has added
            none. A client of an earlier version, which knows no such terms, is found out by it.
    """

    client_id: Name
    round_number: NonNegativeInt
    base: Name
    holds: Holds
    words: _Words
    noise: _Noise | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Published:
    """Those scalars, and the keys."""

    said: PublishedKeys
    keys: PublicKeys


@dataclass(frozen=True, slots=True)
class RosterTold:
    """The scalars of a roster, the same for all clients of it; the keys are rows in the order of the names."""

    run: Name
    round_number: NonNegativeInt
    threshold: PositiveInt
    smallest_group: PositiveInt
    names: _Names
    words: Annotated[list[_Words], Field(max_length=MOST_CLIENTS)]


@dataclass(frozen=True, slots=True)
class SharesTold:
    """Who has sealed shares for a client, in the order of the rows; `roster` is the digest of the roster."""

    roster: _Digest
    names: _Names


@dataclass(frozen=True, slots=True)
class SurvivorsTold:
    """Whose words have arrived."""

    roster: _Digest
    names: _Names


@dataclass(frozen=True, slots=True)
class SealedShares:
    """A client's answer of the second phase: the rows are in the order of the roster."""

    roster: _Digest


@dataclass(frozen=True, slots=True)
class MaskedWords:
    """A client's answer of the third phase."""

    roster: _Digest


@dataclass(frozen=True, slots=True)
class RevealedShares:
    """A client's answer of the last phase: first the seeds of the survivors, then the keys of the others, by name."""

    roster: _Digest
