"""The choice between adapters by the validation examples of a configuration; its test examples stay unseen."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from florist.config.building import load
from florist.config.metrics import METRICS
from florist.config.sections import AggregationSection, Config
from florist.config.splits import Splits, read_splits
from florist.data.reading import Example
from florist.errors import ConfigurationError, IncompatibleAdaptersError, UnsupportedAdapterError
from florist.evaluation import Metric
from florist.evaluation.directions import Measurements
from florist.factors import AdapterState
from florist.models.federated_model import FederatedModel
from florist.one_shot import AggregatedAdapter
from florist.rounds import SavedParameters


@dataclass(frozen=True, slots=True, eq=False)
class Measuring:
    """A model to measure adapters with, on held-out examples.

    Attributes:
        model: the base with its adapters.
        base_model: the directory or hub id of the base.
        metrics: what is measured.
    """

    model: FederatedModel
    base_model: str
    metrics: tuple[Metric, ...]

    def measure(self, adapter: AdapterState, saved_parameters: SavedParameters) -> Mapping[str, float]:
        """The metrics of the base with an adapter, and with these values of the parameters that travel whole."""
        self.model.set_global(adapter)
        self.model.saved_parameters = saved_parameters
        return dict(Measurements.together(metric(self.model.peft) for metric in self.metrics))


_TESTS = frozenset({"multiple_choice"})
"""Metrics that have examples of their own, which count as a test."""


def require_validation(config: Config) -> None:
    """Refuse a configuration without validation examples.

    Raises:
        ConfigurationError: There are no validation examples.
    """
    if not config.has_validation:
        raise ConfigurationError(
            "expected validation examples to choose by, and the configuration has only those of the test, which would "
            "be a test no longer; set [data] validation or validation_fraction and train with it"
        )


def metrics_to_choose_by(config: Config, metric: str | None) -> tuple[str, ...]:
    """Return the metrics to measure; the first of them decides.

    Args:
        config: The configuration that names the metrics; by default the first metric of its task is taken.
        metric: The only metric to measure instead; the configuration need not name it.

    Raises:
        ConfigurationError: The task has no such metric, or the metric is a test.
    """
    known = [name for name in METRICS[config.task.kind] if name not in _TESTS]
    if metric is None:
        named = tuple(name for name in config.evaluation.metrics or () if name in known)
        return named or tuple(known[:1])
    if metric not in known:
        why = ", whose questions count as a test" if metric in _TESTS else ""
        raise ConfigurationError(
            f"expected a metric of the validation examples, for task.kind = {config.task.kind!r} one of {known}, got "
            f"{metric!r}{why}"
        )
    return (metric,)


def require_same_validation(config: Config, splits: Splits, other: Config, whose: str) -> None:
    """Refuse a baseline that was trained on another model, or with other validation examples than will be used.

    Args:
        config: The configuration whose validation examples are used.
        splits: The examples of that configuration.
        other: The configuration of the baseline's run.
        whose: The name of the baseline in the error.

    Raises:
        ConfigurationError: The two cannot be compared.
        MissingInputError: A data file of the other run does not exist.
        DataError: The examples of the other run cannot be read.
    """
    if (config.model.name_or_path, config.task) != (other.model.name_or_path, other.task):
        raise ConfigurationError(
            f"{whose}: expected a baseline with the model {config.model.name_or_path!r} and the same [task], got "
            f"{other.model.name_or_path!r} and {other.task.kind!r}; compare runs of one model on one task"
        )
    if not other.has_validation or _sorted(read_splits(other).validation) != _sorted(splits.validation):
        raise ConfigurationError(
            f"{whose}: expected a baseline with the same validation examples, and it has others or none, so that it "
            "may have trained on these; simulate both with one [data] section, list of ranks and federation.seed"
        )


def measuring_to_choose_by(
    config: Config, splits: Splits, metrics: Sequence[str], candidates: Mapping[str, AggregatedAdapter]
) -> Measuring:
    """Return what measures adapters with the configuration's model, on the validation examples alone.

    How a run of the configuration trains and aggregates does not matter: adapters are measured, on the modules that
    they adapt.

    Args:
        config: A configuration with validation examples.
        splits: The examples of that configuration.
        metrics: The names of the metrics to measure.
        candidates: All adapters that will be measured, by their names in errors.

    Raises:
        IncompatibleAdaptersError: The model lacks a module or a saved parameter of a candidate, or has more of them.
        UnsupportedAdapterError: A candidate has biases beside its factors.
        FloristError: `building.load` refuses the configuration.
    """
    modules = set[str]().union(*(candidate.adapter for candidate in candidates.values()))
    # A pattern, because a name that no module has would be refused, and `_require_fit` says more of it.
    pattern = "|".join(re.escape(name) for name in sorted(modules))
    measured = {"metrics": tuple(metrics), "split": "validation", "multiple_choice": None, "harness_tasks": ()}
    changed = config.model_copy(
        update={
            "aggregation": AggregationSection(),
            "lora": config.lora.model_copy(update={"ranks": 1, "alpha": None, "target_modules": pattern}),
            "evaluation": config.evaluation.model_copy(update=measured),
        }
    )
    loaded = load(changed, splits)
    in_rounds, _ = loaded.metrics(splits)
    measuring = Measuring(loaded.model, config.model.name_or_path, in_rounds)
    for name, candidate in candidates.items():
        _require_fit(measuring, candidate, name)
    return measuring


def _require_fit(measuring: Measuring, candidate: AggregatedAdapter, whose: str) -> None:
    """Refuse to measure a part of an adapter."""
    if candidate.additive:
        raise UnsupportedAdapterError(
            f"{whose}: expected adapters of B and A alone, got some with lora_bias, which florist does not evaluate; "
            "aggregate them at a tau that you choose"
        )
    shapes, specs = measuring.model.shapes, candidate.adapter.specs
    strange = [name for name, spec in specs.items() if shapes.get(name) != spec.shape]
    if strange:
        name = strange[0]
        there = f"of shape {shapes[name]}" if name in shapes else "unknown"
        raise IncompatibleAdaptersError(
            f"{whose}: expected adapters of linear modules of {measuring.base_model}, got {len(strange)} others; the "
            f"first is {name} of shape {specs[name].shape}, {there} there; name the model that was adapted in [model]"
        )
    trained, brought = (
        {name: tuple(tensor.shape) for name, tensor in parameters.items()}
        for parameters in (measuring.model.saved_parameters, candidate.saved_parameters)
    )
    if trained != brought:
        raise IncompatibleAdaptersError(
            f"{whose}: expected the saved parameters that the configuration trains, {trained or 'none'}, got "
            f"{brought or 'none'}; see [task] and [lora] modules_to_save"
        )


def _sorted(examples: Iterable[Example]) -> list[str]:
    return sorted(json.dumps(example, sort_keys=True, default=str) for example in examples)
