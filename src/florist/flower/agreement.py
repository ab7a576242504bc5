"""What all clients of a federation must have in common, and how the server comes to know it without a base model."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from florist.errors import FloristError, InvalidUpdateError
from florist.federation.admission import FLOATS
from florist.flower import protocol
from florist.flower.client_texts import last_line, one_line
from florist.flower.limits import Limits
from florist.flower.messages import SAVED_PARAMETERS, Introduction
from florist.rounds import NOTHING, SavedParameters


@dataclass(frozen=True, slots=True, eq=False)
class Agreement:
    """The base and the modules of a federation.

    Attributes:
        base: the name of the base model.
        shapes: (out_features, in_features) of every module that is trained.
    """

    base: str
    shapes: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, introductions: Collection[Introduction]) -> "Agreement":
        """The base and the modules that most introductions name; of equally many, the first by name.

        Raises:
            ValueError: there are no introductions.
        """
        votes = Counter((member.base, tuple(sorted(member.shapes.items()))) for member in introductions)
        base, modules = min(votes, key=lambda vote: (-votes[vote], vote))
        return cls(base, dict(modules))

    def refusal(self, introduction: Introduction) -> str | None:
        """Why a client may not take part; None where it may. It may train fewer modules, but no others."""
        if introduction.base != self.base:
            return f"expected the base {self.base}, got {introduction.base}"
        for module, shape in introduction.shapes.items():
            if self.shapes.get(module) != shape:
                expected = f"the shape {self.shapes[module]}" if module in self.shapes else "no such module"
                return f"{module}: expected {expected}, got {shape}"
        return None


def ask_saved_parameters(
    grid: Grid, nodes: Mapping[str, int], introductions: Collection[Introduction], timeout: float
) -> SavedParameters:
    """Ask for the first values of the saved parameters: all clients begin with the same, so that any can tell.

    The clients are asked in turn. A client that does not answer, or not with what it introduced, is passed over.

    Args:
        grid: carries the messages.
        nodes: the nodes by client id.
        introductions: of clients that agree on the base.
        timeout: seconds for one answer.

    Raises:
        InvalidUpdateError: no answer could be used.
    """
    reasons: list[str] = []
    # What most of them say counts: one client alone decides nothing for the others.
    votes = Counter(tuple(sorted(each.saved_parameters)) for each in introductions)
    names = min(votes, key=lambda vote: (-votes[vote], vote), default=())
    if not names:
        return NOTHING
    for introduction in sorted(introductions, key=lambda each: each.client_id):
        if tuple(sorted(introduction.saved_parameters)) != names:
            continue
        question = Message(RecordDict(), nodes[introduction.client_id], SAVED_PARAMETERS, ttl=timeout)
        for reply in grid.send_and_receive([question], timeout=timeout):
            try:
                return _saved_parameters(introduction, reply)
            except FloristError as error:
                reasons.append(one_line(f"{introduction.client_id}: {error}"))
    raise InvalidUpdateError(
        f"expected the saved parameters from one of {len(introductions)} clients, got none: "
        f"{'; '.join(reasons) or 'no reply'}"
    )


def _saved_parameters(introduction: Introduction, reply: Message) -> SavedParameters:
    if reply.has_error():
        raise InvalidUpdateError(last_line(reply.error.reason))
    Limits.of_names((), introduction.saved_parameters).require(reply.content)
    found = protocol.read_saved_parameters(reply.content)
    if sorted(found) != sorted(introduction.saved_parameters):
        raise InvalidUpdateError(f"expected {introduction.saved_parameters}, as introduced, got {sorted(found)}")
    strange = [name for name, tensor in found.items() if tensor.dtype not in FLOATS]
    if strange:
        raise InvalidUpdateError(f"{strange[0]}: expected floating-point numbers of 16, 32 or 64 bits")
    broken = [name for name, tensor in found.items() if not tensor.isfinite().all()]
    if broken:
        raise InvalidUpdateError(f"{broken[0]} holds NaN or inf")
    return found
