"""The objects that a federation is begun with: what they are called, and what florist makes of them."""

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from florist.config.sections import FROM_CODE
from florist.errors import ConfigurationError, GivenObjectError, one_line
from florist.evaluation import Measurements, Metric, known_directions
from florist.federation.records import RoundRecord
from florist.models.loading import load_tokenizer, with_padding

OwnMetrics = Callable[[Any], Mapping[str, float]]
"""A function of a model that returns values by name."""


@dataclass(frozen=True, slots=True)
class CalledMetric:
    """A metric that is a function of one's own.

    Attributes:
        measure: the function. Where it returns `Measurements`, these say which way its values get better; otherwise
            that is known for the names of florist's own metrics alone.
    """

    measure: OwnMetrics

    def __call__(self, model: Any, /) -> Measurements:
        """Measure a model, without gradients.

        Raises:
            GivenObjectError: the function returned no numbers by name.
        """
        model.eval()
        with torch.no_grad():
            found = self.measure(model)
        if isinstance(found, Measurements):
            return found
        try:
            values = {str(name): float(value) for name, value in found.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise GivenObjectError(
                f"metric: expected a dictionary of numbers by name from {described(self.measure)}, got {found!r}"
            ) from error
        return Measurements(values, known_directions(values))


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Tells functions of a round record, and observers of a simulation, what it does.

    Attributes:
        told: functions that take a `RoundRecord`, and objects with some of the methods of `Observer`.
    """

    told: Sequence[Any] = ()

    def evaluating(self, round_number: int) -> None:
        """The global adapter is being evaluated."""
        self._tell("evaluating", round_number)

    def training(self, round_number: int, client_id: str, done: int, total: int) -> None:
        """A client took a step."""
        self._tell("training", round_number, client_id, done, total)

    def closed(self, record: RoundRecord) -> None:
        """A round was saved."""
        self._tell("closed", record)
        for each in self.told:
            if not _observes(each):
                each(record)

    def _tell(self, what: str, *arguments: Any) -> None:
        for each in self.told:
            if _observes(each) and hasattr(each, what):
                getattr(each, what)(*arguments)


def tell(record: RoundRecord) -> None:
    """A callback that writes a line on the round to stderr."""
    sys.stderr.write(f"{one_line(record.text)}\n")
    sys.stderr.flush()


def require_callables(callbacks: Any, *, told: bool = False) -> Callbacks:
    """The callbacks of a run.

    Args:
        callbacks: one, or several.
        told: whether a line on every round goes to stderr as well.

    Raises:
        ConfigurationError: one of them cannot be called.
    """
    several = callbacks if isinstance(callbacks, Sequence) else (callbacks,)
    for each in several:
        if not callable(each) and not _observes(each):
            raise ConfigurationError(
                f"callbacks: expected functions of a RoundRecord, or objects with the methods of Observer, got {each!r}"
            )
    return Callbacks((*((tell,) if told else ()), *several))


def own_metrics(metric: "OwnMetrics | Sequence[OwnMetrics] | None") -> tuple[Metric, ...]:
    """The metrics that were given.

    Raises:
        ConfigurationError: one of them cannot be called.
    """
    some = () if metric is None else (metric,) if callable(metric) else tuple(metric)
    for each in some:
        if not callable(each):
            raise ConfigurationError(f"metric: expected a function of the model, or a list of them, got {each!r}")
    return tuple(CalledMetric(each) for each in some)


def model_keys(model: Any) -> Mapping[str, Any]:
    """The keys of ``[model]`` that say which model it is.

    Raises:
        ConfigurationError: it is no model and no name, or it has adapters already.
    """
    if isinstance(model, Mapping):
        return model
    if isinstance(model, str | Path):
        return {"name_or_path": str(model)}
    if not isinstance(model, PreTrainedModel):
        inner = type(model).__name__
        raise ConfigurationError(
            f"model: expected a PreTrainedModel, a name or a path, or the keys of [model], got {inner}; of a "
            "PeftModel, give what merge_and_unload() returns"
        )
    if hasattr(model, "peft_config"):
        raise ConfigurationError(
            "model: expected a base without adapters, got one that PEFT has adapted; give what merge_and_unload() "
            "returns"
        )
    return {"name_or_path": model.name_or_path or FROM_CODE}


def usable_tokenizer(
    tokenizer: "PreTrainedTokenizerBase | str | Path | None", name_or_path: str
) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer that pads on the right, or the tokenizer of the model.

    Raises:
        ConfigurationError: there is none, and the model has no name to load one by.
        ModelError: it cannot be loaded, or it cannot pad.
    """
    if isinstance(tokenizer, str | Path) or (tokenizer is None and name_or_path != FROM_CODE):
        found = load_tokenizer(str(tokenizer or name_or_path))
    elif tokenizer is None:
        raise ConfigurationError(
            "tokenizer: expected the tokenizer of the model, which has no name to load one by, got none; give it, also "
            "for examples that are encoded, which it pads"
        )
    else:
        found = with_padding(copy.deepcopy(tokenizer), "tokenizer")
    found.padding_side = "right"  # from the left, models that count positions from there would be led astray
    return found


def described(given: Any) -> str:
    """What an object is called: the name of a function or a class, or what a dataclass shows of itself."""
    name = getattr(given, "__qualname__", None)
    if isinstance(name, str):
        return name
    text = repr(given)
    return type(given).__qualname__ if " at 0x" in text else text


def _observes(given: Any) -> bool:
    return any(hasattr(given, name) for name in ("evaluating", "training", "closed"))
