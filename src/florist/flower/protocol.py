"""What server and clients tell each other, as frozen dataclasses and as Flower's records.

    server                     client
    query.hello          ->
                         <-    Introduction
    train, Instruction   ->
                         <-    Upload, or OutOfStep where the download does not fit what the client holds
    evaluate, Instruction ->
                         <-    Evaluation, or OutOfStep

Each message carries the SHA-256 of its arrays, and each value in it is checked for its type as it is read: what comes
from another organisation may be anything.
"""

import json
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Annotated, Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from florist.config.methods import LOCAL_INITS
from florist.errors import InvalidUpdateError
from florist.factors import AdapterState, LoraFactor
from florist.flower.records import (
    Rows,
    adapter_to_arrays,
    arrays_to_adapter,
    arrays_to_tensors,
    digest,
    tensors_to_arrays,
)
from florist.local_init import LocalInit
from florist.rounds import FullParameters, Trained

PROTOCOL = 1
"""Raised when a peer of an older version could not read a message any more."""

HELLO, WHOLE, TRAIN, EVALUATE = "query.hello", "query.whole", "train", "evaluate"
"""Flower's message types."""

Head = TypeVar("Head")


def _printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("expected printable characters")
    return name


ClientId = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
"""A name that fits on a line of a log."""
Held = Annotated[int, Field(ge=-1)]
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
        held: the round whose global adapter it holds; -1 for none.
    """

    protocol: int
    client_id: ClientId
    rank: PositiveInt
    num_examples: PositiveInt
    base: str
    modules: list[str]
    out_features: list[PositiveInt]
    in_features: list[PositiveInt]
    whole: list[str]
    held: Held

    @property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """(out_features, in_features) by module."""
        return dict(zip(self.modules, zip(self.out_features, self.in_features, strict=True), strict=True))


@dataclass(frozen=True, slots=True)
class Task:
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
    since: Held
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
        task: what to do.
        added: to be added to the global adapter that the client holds.
        continued: the client's cut of the adapter that it trains on from; empty for methods that only add.
        directions: first rows of A to start from, by module; empty where the client finds them itself.
        full_parameters: current values of the parameters that travel whole; empty where the client has them.
    """

    task: Task
    added: AdapterState
    continued: AdapterState
    directions: FullParameters
    full_parameters: FullParameters


@dataclass(frozen=True, slots=True)
class Report:
    """The scalars of an upload.

    Attributes:
        client_id: as introduced.
        round_number: the round that asked.
        num_examples: behind the update.
        base: as introduced.
        held: the round whose global adapter the client held while it trained.
        loss: mean training loss.
        seconds: of local training.
    """

    client_id: ClientId
    round_number: NonNegativeInt
    num_examples: PositiveInt
    base: str
    held: Held
    loss: float
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Upload:
    """A client's reply after training: the trained adapter, scaling folded in, and the parameters that travel whole."""

    report: Report
    adapter: AdapterState
    full_parameters: FullParameters


@dataclass(frozen=True, slots=True)
class OutOfStep:
    """A client's reply where the download does not fit: what it holds instead, -1 for nothing."""

    client_id: ClientId
    held: Held


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A client's reply after an evaluation; it has the round's global adapter now.

    Attributes:
        client_id: as introduced.
        held: the round whose global adapter it holds.
        num_examples: held-out examples behind the metrics; 0 where it has none, and measured nothing.
        names: of the metrics.
        values: of the metrics.
    """

    client_id: ClientId
    held: Held
    num_examples: NonNegativeInt
    names: list[str]
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


def write_introduction(introduction: Introduction) -> RecordDict:
    """To Flower's records."""
    return _records(introduction, {})


def read_introduction(content: RecordDict) -> Introduction:
    """From Flower's records.

    Raises:
        InvalidUpdateError: it is none, or of another protocol.
    """
    introduction = _head(content, Introduction)
    if introduction.protocol != PROTOCOL:
        raise InvalidUpdateError(
            f"expected protocol {PROTOCOL}, got {introduction.protocol}; server and clients need the same version of "
            "florist"
        )
    if not len(introduction.modules) == len(introduction.out_features) == len(introduction.in_features):
        raise InvalidUpdateError("expected out_features and in_features of every module")
    if not introduction.modules or len(set(introduction.modules)) < len(introduction.modules):
        raise InvalidUpdateError("expected modules to train, each once")
    # All clients draw as many random rows as the largest rank: one client must not cost the others their memory.
    largest = max(*introduction.out_features, *introduction.in_features)
    if introduction.rank > largest:
        raise InvalidUpdateError(
            f"expected a rank of at most {largest}, the largest dimension of a module, got {introduction.rank}"
        )
    return introduction


def write_instruction(instruction: Instruction) -> RecordDict:
    """To Flower's records; of `continued`, the halves that are trained."""
    return _records(
        instruction.task,
        {
            "added": adapter_to_arrays(instruction.added),
            "continued": adapter_to_arrays(instruction.continued, instruction.task.travels),
            "directions": tensors_to_arrays(instruction.directions),
            "whole": tensors_to_arrays(instruction.full_parameters),
        },
    )


def read_instruction(content: RecordDict, rows: Rows) -> Instruction:
    """From Flower's records.

    Args:
        content: of the message.
        rows: gives A where B alone travels; see `records.arrays_to_adapter`.

    Raises:
        InvalidUpdateError: it is none, or damaged.
    """
    return Instruction(
        _head(content, Task),
        arrays_to_adapter(_arrays(content, "added")),
        arrays_to_adapter(_arrays(content, "continued"), rows),
        arrays_to_tensors(_arrays(content, "directions")),
        arrays_to_tensors(_arrays(content, "whole")),
    )


def task_of(content: RecordDict) -> Task:
    """The scalars of an instruction, before its arrays are read.

    Raises:
        InvalidUpdateError: it is no instruction.
    """
    return _head(content, Task)


def write_reply(reply: Upload | OutOfStep | Evaluation, travels: Trained = Trained.FACTORS) -> RecordDict:
    """To Flower's records; of an upload, the halves that are trained."""
    if isinstance(reply, Upload):
        arrays = {
            "adapter": adapter_to_arrays(reply.adapter, travels),
            "whole": tensors_to_arrays(reply.full_parameters),
        }
        return _records(reply.report, arrays)
    return _records(reply, {})


def read_reply(content: RecordDict, rows: Rows) -> Upload | OutOfStep | Evaluation:
    """From Flower's records.

    Args:
        content: of the message, whoever sent it.
        rows: gives A where B alone travels; see `records.arrays_to_adapter`.

    Raises:
        InvalidUpdateError: it is none of the three, or damaged.
        InvalidAdapterError: halves of a factor do not fit each other.
    """
    kind = _kind(content)
    if kind == OutOfStep.__name__:
        return _head(content, OutOfStep)
    if kind == Evaluation.__name__:
        evaluation = _head(content, Evaluation)
        if len(evaluation.names) != len(evaluation.values):
            raise InvalidUpdateError("expected a value of every metric")
        return evaluation
    return Upload(
        _head(content, Report),
        arrays_to_adapter(_arrays(content, "adapter"), rows),
        arrays_to_tensors(_arrays(content, "whole")),
    )


def write_whole(full_parameters: FullParameters) -> RecordDict:
    """Parameters that travel whole, in answer to ``query.whole``."""
    return RecordDict({"whole": tensors_to_arrays(full_parameters)})


def read_whole(content: RecordDict) -> FullParameters:
    """From Flower's records.

    Raises:
        InvalidUpdateError: damaged.
    """
    return arrays_to_tensors(_arrays(content, "whole"))


def _records(head: Any, arrays: Mapping[str, ArrayRecord]) -> RecordDict:
    fields = {"kind": type(head).__name__, **asdict(head), "sha256": digest(arrays.values())}
    return RecordDict({"florist": ConfigRecord(fields), **arrays})


def _kind(content: RecordDict) -> str:
    record = content.config_records.get("florist")
    if record is None:
        raise InvalidUpdateError(f"expected a message of florist, got the records {sorted(content)}")
    return str(record.get("kind"))


def _head(content: RecordDict, kind: type[Head]) -> Head:
    found = _kind(content)
    if found != kind.__name__:
        raise InvalidUpdateError(f"expected the kind {kind.__name__}, got {found}")
    fields = dict(content.config_records["florist"])
    del fields["kind"]
    sent = fields.pop("sha256", None)
    arrays = [record for name in _ORDER if (record := content.array_records.get(name)) is not None]
    if sent != digest(arrays):
        raise InvalidUpdateError(
            "expected arrays of the SHA-256 that was sent with them, and it differs; send them again"
        )
    try:
        # By way of JSON, whose strict mode takes an object for a dataclass.
        return _reader(kind).validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, (kind.__name__, *problem["loc"])))
        raise InvalidUpdateError(f"{where}: {problem['msg']}, got {reprlib.repr(problem['input'])}") from error
    except (TypeError, ValueError) as error:
        raise InvalidUpdateError(f"{kind.__name__}: expected numbers and texts: {error}") from error


@cache
def _reader(kind: type) -> Any:  # beartype, which the tests switch on, does not know TypeAdapter[Head]
    # Building one costs ten times what reading a message does.
    return TypeAdapter(kind)


_ORDER = ("added", "continued", "directions", "adapter", "whole")
"""Of the arrays under the digest: a RecordDict keeps none."""


def _arrays(content: RecordDict, name: str) -> ArrayRecord:
    return content.array_records.get(name, ArrayRecord())


def directions_of(adapter: AdapterState) -> FullParameters:
    """First rows of A, by module, of an adapter whose B is zero."""
    return {name: factor.A for name, factor in adapter.items()}


def adapter_along(directions: FullParameters, shapes: Mapping[str, tuple[int, int]]) -> AdapterState:
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
