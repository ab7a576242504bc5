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
    """What local training gave.

    Attributes:
        adapter: the trained factors, scaling folded in.
        saved_parameters: trained values of the parameters that travel whole.
        loss: mean over the steps.
        seconds: wall time.
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
        """Names it in every round."""
        ...

    @property
    def rank(self) -> int:
        """The largest that it trains."""
        ...

    @property
    def num_examples(self) -> int:
        """Its training examples."""
        ...

    @property
    def base(self) -> str:
        """Names its base model; equal for equal bases, see `model_loading.fingerprint`."""
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
        """Current values of the parameters that travel whole; empty where none do."""
        ...

    def train(self, start: LocalStart, saved_parameters: SavedParameters, assignment: Assignment) -> TrainedLocally:
        """Train on the own examples.

        Args:
            start: the frozen global adapter, and what the local one begins with.
            saved_parameters: values to begin with.
            assignment: the seeds; random rows of A are the first of `seeding.random_rows(assignment.rows_seed, module,
                assignment.max_rank, in_features)`.
        """
        ...

    def evaluate(self, adapter: AdapterState, saved_parameters: SavedParameters) -> tuple[Mapping[str, float], int]:
        """Metrics of the base with an adapter on held-out examples of its own, and how many those are.

        No metrics and 0 where it has none.
        """
        ...
