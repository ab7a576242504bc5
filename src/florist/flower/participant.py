"""What a client of a federation must be able to do, whatever it trains with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from florist.factors import AdapterState
from florist.federation.local_init import LocalStart
from florist.flower.messages import Assignment
from florist.rounds import SavedParameters, Trained


@dataclass(frozen=True, slots=True, eq=False)
class TrainedLocally:
    """The outcome of local training.

    Attributes:
        adapter: the trained factors, scaling folded in.
        saved_parameters: the trained values of the saved parameters.
        loss: the mean over the steps.
        seconds: the wall time.
    """

    adapter: AdapterState
    saved_parameters: SavedParameters
    loss: float
    seconds: float


@runtime_checkable
class Participant(Protocol):
    """One client, with its model and its data. `client_app` speaks for it."""

    @property
    def client_id(self) -> str:
        """Its name in every round."""
        ...

    @property
    def rank(self) -> int:
        """The largest rank that it trains."""
        ...

    @property
    def num_examples(self) -> int:
        """The number of its training examples."""
        ...

    @property
    def held_out(self) -> int:
        """The number of held-out examples that it measures on; 0 where it measures nothing."""
        ...

    @property
    def base(self) -> str:
        """The name of its base model, which is equal for equal bases; see `models.loading.fingerprint`."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """(out_features, in_features) of every module that it can train."""
        ...

    @property
    def trained(self) -> Trained:
        """What its optimiser changes."""
        ...

    @property
    def saved_parameters(self) -> SavedParameters:
        """The values of the saved parameters before any training; empty where there are none."""
        ...

    def train(self, start: LocalStart, saved_parameters: SavedParameters, assignment: Assignment) -> TrainedLocally:
        """Train on its own examples.

        Args:
            start: the frozen global adapter, and what the local one begins with.
            saved_parameters: the values to begin with.
            assignment: the seeds; random rows of A are the first of `seeding.random_rows(assignment.rows_seed, module,
                assignment.max_rank, in_features)`.
        """
        ...

    def evaluate(self, adapter: AdapterState, saved_parameters: SavedParameters) -> Mapping[str, float]:
        """Measure the base with an adapter on its held-out examples; the result is empty where it has none."""
        ...
