"""The base model of a configuration in this process, for a client that trains it and for whoever measures it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from peft import PeftModel

from florist.config import Config
from florist.config.building import LoadedTask, load
from florist.config.splits import Splits
from florist.evaluation import Metric


def load_base(config: Config, splits: Splits) -> LoadedTask:
    """Load the base model and set the number of torch threads for it.

    Where the configuration names no number, one thread works on a CPU: Flower's engines run several clients side by
    side, and small models gain nothing from more.

    Raises:
        ConfigurationError, ModelError, UnsupportedHardwareError, MissingDependencyError: as `building.load`.
    """
    loaded = load(config, splits)
    default = torch.get_num_threads() if torch.cuda.is_available() else 1
    torch.set_num_threads(config.training.threads or default)
    return loaded


@dataclass(frozen=True, slots=True)
class AllMetrics:
    """Several metrics as one."""

    metrics: tuple[Metric, ...]

    def __call__(self, model: PeftModel) -> Mapping[str, float]:
        """Measure the model by each of them."""
        return {name: value for metric in self.metrics for name, value in metric(model).items()}
