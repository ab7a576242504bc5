"""A server that measures the global adapter itself, for which it has the base model and held-out examples."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from florist.config import Config
from florist.config.splits import read_held_out
from florist.factors import AdapterState
from florist.federation.run_adapter import SaveTokenizer
from florist.federation.state import ServerState
from florist.flower.agreement import Agreement
from florist.flower.loaded_base import AllMetrics, load_base
from florist.models.federated_model import FederatedModel
from florist.models.loading import save_tokenizer
from florist.rounds import SavedParameters


@dataclass(frozen=True, slots=True, eq=False)
class ServerEvaluation:
    """The base model at the server, and what it is measured by.

    Attributes:
        model: the base with its adapters.
        agreement: what clients must have in common with it.
        metrics: the metrics of the rounds.
        save_tokenizer: writes the tokenizer of the base.
    """

    model: FederatedModel
    agreement: Agreement
    metrics: AllMetrics
    save_tokenizer: SaveTokenizer | None = None

    @classmethod
    def of(cls, config: Config) -> "ServerEvaluation":
        """Read the held-out examples and load the base model.

        Raises:
            ConfigurationError, MissingInputError, DataError: as `splits.read_held_out`.
            ModelError, UnsupportedHardwareError, MissingDependencyError: as `building.load`.
        """
        splits = read_held_out(config)
        loaded = load_base(config, splits)
        in_rounds, _ = loaded.metrics(splits)
        agreement = Agreement(config.flower.base_name or loaded.base, loaded.model.shapes)
        return cls(loaded.model, agreement, AllMetrics(in_rounds), partial(save_tokenizer, config.model.name_or_path))

    def measure(self, state: ServerState) -> Mapping[str, float]:
        """Measure the global model of a state."""
        self.model.saved_parameters = state.saved_parameters
        self.model.set_global(state.global_adapter)
        return self.metrics(self.model.peft)

    def deliverable(
        self, adapter: AdapterState, saved_parameters: SavedParameters
    ) -> tuple[AdapterState, SavedParameters]:
        """What makes the global model out of the pristine base; see `FederatedModel.deliverable`."""
        return self.model.deliverable(adapter, saved_parameters)
