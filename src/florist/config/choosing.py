"""A configuration's model on its validation records, to choose between adapters by. The test records stay unseen."""

import json
from collections.abc import Iterable, Mapping, Sequence

from florist.config.building import build
from florist.config.metrics import METRICS
from florist.config.sections import AggregationSection, Config
from florist.config.splits import Splits, read_splits
from florist.data import Example
from florist.errors import ConfigurationError, IncompatibleAdaptersError, UnsupportedAdapterError
from florist.federation.simulation import Simulation
from florist.one_shot import AggregatedAdapter

_TESTS = frozenset({"multiple_choice"})
"""Metrics on records of their own, which count as a test."""


def require_validation(config: Config) -> None:
    """Refuse a configuration without validation records.

    Raises:
        ConfigurationError: there are none.
    """
    if not config.has_validation:
        raise ConfigurationError(
            "expected validation records to choose by, and the configuration has only those of the test, which would "
            "be a test no longer; set [data] validation or validation_fraction and train with it"
        )


def metrics_to_choose_by(config: Config, metric: str | None) -> tuple[str, ...]:
    """The metrics to measure, the one that decides first.

    Args:
        config: names them, or says the kind of task, whose first metric is the default.
        metric: this one alone instead, which need not be in the configuration.

    Raises:
        ConfigurationError: the task has no such metric, or it is a test.
    """
    known = [name for name in METRICS[config.task.kind] if name not in _TESTS]
    if metric is None:
        named = tuple(name for name in config.evaluation.metrics or () if name in known)
        return named or tuple(known[:1])
    if metric not in known:
        why = ", whose questions count as a test" if metric in _TESTS else ""
        raise ConfigurationError(
            f"expected a metric of the validation records, for task.kind = {config.task.kind!r} one of {known}, got "
            f"{metric!r}{why}"
        )
    return (metric,)


def require_same_validation(config: Config, splits: Splits, other: Config, whose: str) -> None:
    """Refuse a baseline that was trained on another model, or with other validation records than will be used.

    Args:
        config: whose validation records are used.
        splits: its records.
        other: of the baseline's run.
        whose: named in the error.

    Raises:
        ConfigurationError: the two cannot be compared.
        MissingInputError, DataError: the records of the other run cannot be read.
    """
    if (config.model.name_or_path, config.task) != (other.model.name_or_path, other.task):
        raise ConfigurationError(
            f"{whose}: expected a baseline with the model {config.model.name_or_path!r} and the same [task], got "
            f"{other.model.name_or_path!r} and {other.task.kind!r}; compare runs of one model on one task"
        )
    if not other.has_validation or _sorted(read_splits(other).validation) != _sorted(splits.validation):
        raise ConfigurationError(
            f"{whose}: expected a baseline with the same validation records, and it has others or none, so that it may "
            "have trained on these; simulate both with one [data] section, list of ranks and federation.seed"
        )


def simulation_to_choose_by(
    config: Config, splits: Splits, metrics: Sequence[str], candidates: Mapping[str, AggregatedAdapter]
) -> Simulation:
    """The configuration's model, ready to measure adapters on the validation records and on nothing else.

    How a run of the configuration aggregates does not matter: adapters are measured, on the modules that they adapt.

    Args:
        config: with validation records.
        splits: its records.
        metrics: to measure.
        candidates: all that will be measured, by a name for errors.

    Raises:
        IncompatibleAdaptersError, UnsupportedAdapterError: the model cannot hold a candidate as it is.
        ConfigurationError, DataError, ModelError and others: as `build`.
    """
    modules = set[str]().union(*(candidate.adapter for candidate in candidates.values()))
    measured = {"metrics": tuple(metrics), "split": "validation", "multiple_choice": None, "harness_tasks": ()}
    changed = config.model_copy(
        update={
            "aggregation": AggregationSection(),
            "lora": config.lora.model_copy(update={"target_modules": tuple(sorted(modules))}),
            "evaluation": config.evaluation.model_copy(update=measured),
        }
    )
    simulation = build(changed, splits)
    for name, candidate in candidates.items():
        _require_fit(simulation, candidate, name)
    return simulation


def _require_fit(simulation: Simulation, candidate: AggregatedAdapter, whose: str) -> None:
    """Refuse to measure a part of an adapter."""
    if candidate.additive:
        raise UnsupportedAdapterError(
            f"{whose}: expected adapters of B and A alone, got some with lora_bias, which florist does not evaluate; "
            "aggregate them at a tau that you choose"
        )
    shapes, specs = simulation.model.shapes, candidate.adapter.specs
    strange = [name for name, spec in specs.items() if shapes.get(name) != spec.shape]
    if strange:
        name = strange[0]
        there = f"of shape {shapes[name]}" if name in shapes else "unknown"
        raise IncompatibleAdaptersError(
            f"{whose}: expected adapters of linear modules of {simulation.base_model}, got {len(strange)} others; the "
            f"first is {name} of shape {specs[name].shape}, {there} there; name the model that was adapted in [model]"
        )
    trained, brought = (
        {name: tuple(tensor.shape) for name, tensor in parameters.items()}
        for parameters in (simulation.model.saved_parameters, candidate.saved_parameters)
    )
    if trained != brought:
        raise IncompatibleAdaptersError(
            f"{whose}: expected the whole parameters that the configuration trains, {trained or 'none'}, got "
            f"{brought or 'none'}; see [task] and [lora] modules_to_save"
        )


def _sorted(records: Iterable[Example]) -> list[str]:
    return sorted(json.dumps(record, sort_keys=True) for record in records)
