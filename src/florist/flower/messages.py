"""What server and clients tell each other, as frozen dataclasses; `protocol` writes and reads them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt

from florist.config.methods import LOCAL_INITS
from florist.errors import InvalidUpdateError
from florist.factors import AdapterState, LoraFactor
from florist.federation.local_init import LocalInit
from florist.rounds import SavedParameters, Trained

PROTOCOL = 2
"""Raised when a peer of an older version could not read a message any more."""

HELLO, WHOLE, TRAIN, EVALUATE = "query.hello", "query.whole", "train", "evaluate"
"""Flower's message types."""


def _printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("expected printable characters")
    return name


Name = Annotated[str, Field(min_length=1, max_length=400), AfterValidator(_printable)]
"""A text that fits on a line of a log, and cannot make one of its own there."""
Holds = Annotated[int, Field(ge=-1)]
"""The round whose global adapter somebody holds; -1 for none."""


@dataclass(frozen=True, slots=True)
class Introduction:
    """A client presents itself, once a run.

    Attributes:
        protocol: `PROTOCOL` of its version.
        client_id: names it in every round, whatever node it runs on.
        rank: the largest that it trains.
        num_examples: its training examples; updates must say the same.
        base: names its base model; clients of another base are refused.
        modules: that it can train, with their `out_features` and `in_features`.
        whole: names of the parameters that travel whole.
        holds: the round whose global adapter it holds; -1 for none.
    """

    protocol: int
    client_id: Name
    rank: PositiveInt
    num_examples: PositiveInt
    base: Name
    modules: list[Name]
    out_features: list[PositiveInt]
    in_features: list[PositiveInt]
    whole: list[Name]
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
        since: the round that a client must hold for the download to fit; -1 for a newcomer, who holds nothing.
        until: the round whose global adapter the client holds with it.
        replaces: the adapter to add is the whole global one, as the server has it.
        seed: of this client's training in this round.
        rows_seed: of its random rows of A.
        max_rank: how many of them are drawn.
        trained: value of `rounds.Trained`.
        local_init: name of the start of the local adapter, as in a configuration.
    """

    round_number: NonNegativeInt
    since: Holds
    until: NonNegativeInt
    replaces: bool
    seed: NonNegativeInt
    rows_seed: NonNegativeInt
    max_rank: PositiveInt
    trained: int
    local_init: str

    @property
    def travels(self) -> Trained:
        """What is trained, and travels.

        Raises:
            InvalidUpdateError: something that this version does not know.
        """
        try:
            return Trained(self.trained)
        except ValueError:
            raise InvalidUpdateError(
                f"expected a value of {Trained.__name__} up to {sum(each.value for each in Trained)}, got "
                f"{self.trained}; client and server need the same version of florist"
            ) from None

    @property
    def start(self) -> LocalInit:
        """How the local adapter starts.

        Raises:
            InvalidUpdateError: by a name that this version does not know.
        """
        if self.local_init not in LOCAL_INITS:
            raise InvalidUpdateError(
                f"expected a local_init of {', '.join(LOCAL_INITS)}, got {self.local_init!r}; client and server need "
                "the same version of florist"
            )
        return LOCAL_INITS[self.local_init]()


@dataclass(frozen=True, slots=True, eq=False)
class Instruction:
    """What the server sends to a client that is to train or to evaluate.

    Attributes:
        assignment: what to do.
        added: to be added to the global adapter that the client holds.
        continued: the client's cut of the adapter that it trains on from; empty for methods that only add.
        directions: first rows of A to start from, by module; empty where the client finds them itself.
        saved_parameters: current values of the parameters that travel whole; empty where the client has them.
    """

    assignment: Assignment
    added: AdapterState
    continued: AdapterState
    directions: SavedParameters
    saved_parameters: SavedParameters


@dataclass(frozen=True, slots=True)
class Report:
    """The scalars of an upload.

    Attributes:
        client_id: as introduced.
        round_number: the round that asked.
        num_examples: behind the update.
        base: as introduced.
        holds: the round whose global adapter the client held while it trained.
        loss: mean training loss.
        seconds: of local training.
    """

    client_id: Name
    round_number: NonNegativeInt
    num_examples: PositiveInt
    base: Name
    holds: Holds
    loss: float
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Upload:
    """A client's reply after training: the trained adapter, scaling folded in, and the parameters that travel whole."""

    report: Report
    adapter: AdapterState
    saved_parameters: SavedParameters


@dataclass(frozen=True, slots=True)
class OutOfStep:
    """A client's reply where the download does not fit: what it holds instead, -1 for nothing."""

    client_id: Name
    holds: Holds


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A client's reply after an evaluation; it has the round's global adapter now.

    Attributes:
        client_id: as introduced.
        holds: the round whose global adapter it holds.
        num_examples: held-out examples behind the metrics; 0 where it has none, and measured nothing.
        names: of the metrics.
        values: of the metrics.
    """

    client_id: Name
    holds: Holds
    num_examples: NonNegativeInt
    names: Annotated[list[Name], Field(max_length=100)]
    values: list[float]

    @property
    def metrics(self) -> Mapping[str, float]:
        """By name."""
        return dict(zip(self.names, self.values, strict=True))


def name_of(local_init: LocalInit) -> str:
    """The name of a start, as in a configuration.

    Raises:
        InvalidUpdateError: it has none, so that a client could not be told.
    """
    for name, make in LOCAL_INITS.items():
        if make() == local_init:
            return name
    raise InvalidUpdateError(f"expected a local_init of {', '.join(LOCAL_INITS)}, got {local_init!r}")


def directions_of(adapter: AdapterState) -> SavedParameters:
    """First rows of A, by module, of an adapter whose B is zero."""
    return {name: factor.A for name, factor in adapter.items()}


def adapter_along(directions: SavedParameters, shapes: Mapping[str, tuple[int, int]]) -> AdapterState:
    """The adapter of these rows of A under B = 0.

    Raises:
        InvalidUpdateError: they do not fit the modules.
    """
    factors: dict[str, LoraFactor] = {}
    for name, A in directions.items():
        if name not in shapes or A.ndim != 2 or A.shape[1] != shapes[name][1]:
            raise InvalidUpdateError(f"{name}: expected rows of a module of this model, got the shape {tuple(A.shape)}")
        factors[name] = LoraFactor(A.new_zeros(shapes[name][0], A.shape[0]), A)
    return AdapterState.of(factors)
