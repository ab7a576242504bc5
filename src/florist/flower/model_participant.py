"""A participant around a model in this process, whoever trains it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from peft import PeftModel

from florist.factors import AdapterState
from florist.federation.local_init import LocalStart
from florist.flower.messages import Assignment
from florist.flower.participant import TrainedLocally
from florist.models.federated_model import FederatedModel, LocalLora
from florist.rounds import SavedParameters, Trained

Fit = Callable[[PeftModel, int], float]
"""Trains what requires gradients in the model, in place, by the seed of this client and round; gives the mean loss."""

Measure = Callable[[PeftModel], Mapping[str, float]]
"""Gives metrics of the model as it is, on held-out examples."""


@dataclass(frozen=True, slots=True, eq=False)
class ModelParticipant:
    """A client that trains an adapter on a base model, which it may share with other clients of its process.

    Attributes:
        client_id: its name in every round.
        model: the base with its adapters.
        base: the name of the base: `models.loading.fingerprint` of the pristine weights, or a name that all sites
            vouch for.
        lora: the adapter that its hardware allows.
        num_examples: the number of its training examples.
        fit: its training.
        measure: its metrics; None where it has nothing held out.
        held_out: the number of examples behind the metrics.
        trained: what the method trains.
        initial: the values of the saved parameters before any training, which a new model has.
    """

    client_id: str
    model: FederatedModel
    base: str
    lora: LocalLora
    num_examples: int
    fit: Fit
    measure: Measure | None = None
    held_out: int = 0
    trained: Trained = Trained.FACTORS
    initial: SavedParameters = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The rank of its adapter."""
        return self.lora.rank

    @property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """(out_features, in_features) of the adapted modules."""
        return self.model.shapes

    @property
    def saved_parameters(self) -> SavedParameters:
        """The values of the saved parameters before any training."""
        return self.initial

    def train(self, start: LocalStart, saved_parameters: SavedParameters, assignment: Assignment) -> TrainedLocally:
        """Put the adapters in place, and fit."""
        started = time.perf_counter()
        self.model.saved_parameters = {**self.initial, **saved_parameters}
        self.model.set_global(start.frozen)
        self.model.start_local(self.lora, start.local, seed=assignment.rows_seed, max_rank=assignment.max_rank)
        loss = self.fit(self.model.peft, assignment.seed)
        seconds = time.perf_counter() - started
        return TrainedLocally(self.model.read_local(), self.model.saved_parameters, loss, seconds)

    def evaluate(self, adapter: AdapterState, saved_parameters: SavedParameters) -> Mapping[str, float]:
        """Measure the base with the adapter."""
        if self.measure is None:
            return {}
        self.model.saved_parameters = {**self.initial, **saved_parameters}
        self.model.set_global(adapter)
        return self.measure(self.model.peft)
