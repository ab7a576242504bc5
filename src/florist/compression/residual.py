"""What a sender holds back: a residual, which joins what it sends next."""

from dataclasses import dataclass, field

from florist.factors import AdapterState
from florist.rounds import NO_ADAPTER, NOTHING, SavedParameters


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """What one sender holds back; nothing at first, without feedback, or after it lost its memory.

    Attributes:
        adapter: of the factors: what the cut left out, and what the codec rounded away.
        saved_parameters: of the parameters that travel whole: what the codec rounded away.
    """

    adapter: AdapterState = field(default_factory=lambda: NO_ADAPTER)
    saved_parameters: SavedParameters = field(default_factory=lambda: NOTHING)

    @property
    def norm(self) -> float:
        """The Frobenius norm of the products of all factors together."""
        return sum(factor.energy() for factor in self.adapter.values()) ** 0.5

    def __bool__(self) -> bool:
        """Tell whether anything is held back."""
        return bool(self.adapter or self.saved_parameters)


NOTHING_OWED = Residual()
