"""What server and clients tell each other, as frozen dataclasses; `protocol` writes and reads them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from florist.compression.packed import PackedAdapter
from florist.config.methods import LOCAL_INITS
from florist.errors import InvalidUpdateError
from florist.factors import AdapterState, LoraFactor
from florist.federation.local_init import Agreed, LocalInit
from florist.flower.client_texts import Name
from florist.flower.private_terms import PrivacyTerms
from florist.flower.upload_terms import UploadTerms
from florist.rounds import SavedParameters, Trained

PROTOCOL = 3
"""The version of the messages, raised when a peer of an older one could not read a message any more."""

HELLO, SAVED_PARAMETERS, TRAIN, EVALUATE = "query.hello", "query.saved_parameters", "train", "evaluate"
"""Flower's message types."""

KEYS, SHARES, WORDS, REVEAL = "train.keys", "query.shares", "query.words", "query.reveal"
"""Those of the phases of a masked round. A client of a version that does not know them fails, and sends nothing."""

Holds = Annotated[int, Field(ge=-1)]
"""The round whose global adapter a client has; -1 where it has none."""

Seed = Annotated[int, Field(ge=0, lt=2**31)]
"""As `seeding.derive_seed` gives it: generators of other libraries take no larger one."""

MOST_MODULES, MOST_PARAMETERS, LARGEST_DIMENSION = 100_000, 10_000, 2**27
"""What a client may introduce at most. The largest mixture of experts that is published has fewer modules."""

_Names = Annotated[list[Name], Field(max_length=MOST_MODULES)]
_Dimensions = Annotated[list[Annotated[int, Field(gt=0, le=LARGEST_DIMENSION)]], Field(max_length=MOST_MODULES)]


@dataclass(frozen=True, slots=True)
class Introduction:
    """A client presents itself, once a run, and once more where a reply contradicts what it said.

    Attributes:
        protocol: the `PROTOCOL` of its version.
        client_id: its name in every round, whatever node it runs on.
        rank: the largest rank that it trains.
        num_examples: the number of its training examples; updates must say the same. It is absent where the client
            takes part in masked rounds alone.
        held_out: the number of its held-out examples; evaluations must say the same. 0 where it measures nothing.
        base: the name of its base model; clients of another base are refused.
        modules: the modules that it can train, with their `out_features` and `in_features`.
        saved_parameters: the names of its saved parameters.
        holds: the round whose global adapter it has; -1 where it has none.
    """

    protocol: int
    client_id: Name
    rank: PositiveInt
    num_examples: Annotated[PositiveInt | None, Field(default=None)]
    held_out: NonNegativeInt
    base: Name
    modules: _Names
    out_features: _Dimensions
    in_features: _Dimensions
    saved_parameters: Annotated[list[Name], Field(max_length=MOST_PARAMETERS)]
    holds: Holds

    @property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """(out_features, in_features) by module."""
        return dict(zip(self.modules, zip(self.out_features, self.in_features, strict=True), strict=True))


@dataclass(frozen=True, slots=True)
class Assignment:
    """The scalars of an instruction.

    Attributes:
        round_number: the round to train in, or to evaluate after.
        since: the round that the client must hold for the download to fit; -1 where it fits a client with nothing.
        until: the round that the client holds with the download.
        replaces: the adapter to add is the global adapter itself, as the server has it.
        seed: the seed of this client's training in this round.
        rows_seed: the seed of its random rows of A.
        max_rank: how many rows are drawn.
        trained: a value of `rounds.Trained`.
        local_init: the name of the start of the local adapter, as in a configuration.
        agreed_rows: whether the local adapter starts along rows of A that everybody derives instead.
        privacy: how the client is to hide its update; absent where it is not.
        counted: the last round in which an update of this client counted; 0 where none did.
        upload: how the client is to send its update.
    """

    round_number: NonNegativeInt
    since: Holds
    until: NonNegativeInt
    replaces: bool
    seed: Seed
    rows_seed: Seed
    max_rank: PositiveInt
    trained: int
    local_init: str
    counted: NonNegativeInt
    upload: UploadTerms
    agreed_rows: bool = False
    privacy: PrivacyTerms | None = None

    @property
    def travels(self) -> Trained:
        """What is trained, and therefore travels to the server.

        Raises:
            InvalidUpdateError: this version does not know the value.
        """
        try:
            return Trained(self.trained)
        except ValueError:
            raise InvalidUpdateError(
                f"expected a value of {Trained.__name__} up to {sum(each.value for each in Trained)}, got "
                f"{self.trained}; client and server need the same version of florist"
            ) from None

    def start(self, shapes: Mapping[str, tuple[int, int]]) -> LocalInit:
        """How the local adapter starts.

        Args:
            shapes: (out_features, in_features) of the client's modules.

        Raises:
            InvalidUpdateError: this version does not know the name.
        """
        if self.local_init not in LOCAL_INITS:
            raise InvalidUpdateError(
                f"expected a local_init of {', '.join(LOCAL_INITS)}, got {self.local_init!r}; client and server need "
                "the same version of florist"
            )
        return Agreed(self.rows_seed, self.max_rank, shapes) if self.agreed_rows else LOCAL_INITS[self.local_init]()


@dataclass(frozen=True, slots=True, eq=False)
class Instruction:
    """What the server sends to a client that is to train or to evaluate.

    Attributes:
        assignment: what to do.
        added: the adapter to add to the global adapter that the client holds.
        continued: the client's cut of the adapter that it trains on from; empty for methods that only add.
        directions: the first rows of A to start from, by module; empty where the client finds them itself.
        saved_parameters: the current values of the saved parameters; empty where the client has them.
        packed: the adapters to add one after the other, where a codec packed them; `added` is empty then.
        packed_continued: the client's cut of the continued adapter, where a codec packed it; `continued` is empty then.
    """

    assignment: Assignment
    added: AdapterState
    continued: AdapterState
    directions: SavedParameters
    saved_parameters: SavedParameters
    packed: tuple[PackedAdapter, ...] = ()
    packed_continued: PackedAdapter | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The scalars of an upload.

    Attributes:
        client_id: as introduced.
        round_number: the round that asked.
        num_examples: the number of examples behind the update, as introduced.
        base: as introduced.
        holds: the round whose global adapter the client had while it trained.
        loss: the mean training loss.
        seconds: the wall time of local training.
        held_back: the norm of what the client holds back if this update counts.
        begins_anew: why the client had nothing to add of what it held back before; empty where it had.
    """

    client_id: Name
    round_number: NonNegativeInt
    num_examples: PositiveInt
    base: Name
    holds: Holds
    loss: float
    seconds: float
    held_back: float
    begins_anew: str


@dataclass(frozen=True, slots=True, eq=False)
class Upload:
    """A client's reply after training.

    Attributes:
        report: the scalars.
        adapter: the trained adapter, scaling folded in; empty as long as `packed` has it.
        saved_parameters: the trained saved parameters.
        packed: the adapter as a codec packed it; None where it travels as it is, and once it is decoded.
        sent_bytes: the bytes of all tensors as they came; None where nobody has counted them.
    """

    report: Report
    adapter: AdapterState
    saved_parameters: SavedParameters
    packed: PackedAdapter | None = None
    sent_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class OutOfStep:
    """A client's reply where the download does not fit: the round that it holds instead, -1 for none."""

    client_id: Name
    holds: Holds


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A client's reply after an evaluation; it has the round's global adapter now.

    Attributes:
        client_id: as introduced.
        holds: the round whose global adapter it has.
        num_examples: the number of held-out examples behind the metrics, as introduced; 0 where nothing was measured.
        names: the names of the metrics.
        values: the values of the metrics.
    """

    client_id: Name
    holds: Holds
    num_examples: NonNegativeInt
    names: Annotated[list[Name], Field(max_length=100)]
    values: list[float]

    @property
    def metrics(self) -> Mapping[str, float]:
        """The values by name."""
        return dict(zip(self.names, self.values, strict=True))


def name_of(local_init: LocalInit) -> str:
    """The name of a start, as in a configuration.

    Raises:
        InvalidUpdateError: it has no name, so that a client could not be told.
    """
    for name, make in LOCAL_INITS.items():
        if make() == local_init:
            return name
    raise InvalidUpdateError(f"expected a local_init of {', '.join(LOCAL_INITS)}, got {local_init!r}")


def directions_of(adapter: AdapterState) -> SavedParameters:
    """The first rows of A, by module, of an adapter whose B is zero."""
    return {name: factor.A for name, factor in adapter.items()}


def adapter_along(directions: SavedParameters, shapes: Mapping[str, tuple[int, int]]) -> AdapterState:
    """The adapter that has these rows of A under B = 0.

    Raises:
        InvalidUpdateError: the rows do not fit the modules.
    """
    factors: dict[str, LoraFactor] = {}
    for name, A in directions.items():
        if name not in shapes or A.ndim != 2 or A.shape[1] != shapes[name][1]:
            raise InvalidUpdateError(f"{name}: expected rows of a module of this model, got the shape {tuple(A.shape)}")
        factors[name] = LoraFactor(A.new_zeros(shapes[name][0], A.shape[0]), A)
    return AdapterState.of(factors)
