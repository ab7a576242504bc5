"""Which way the values of a metric get better: whoever measures it says so."""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from florist.errors import ConfigurationError

_LOWER_IS_BETTER: Mapping[str, bool] = MappingProxyType(
    {"loss": True, "perplexity": True, "exact_match": False, "multiple_choice": False, "accuracy": False}
)
"""The metrics that florist measures itself."""


class Measurements(Mapping[str, float]):
    """The values of metrics by name, and which way each of them gets better.

    Args:
        values: the values by name.
        lower_is_better: whether a smaller value is the better one, by name. A metric whose direction nobody knows is
            left out.
    """

    def __init__(self, values: Mapping[str, float], lower_is_better: Mapping[str, bool]) -> None:
        self._values = dict(values)
        self._lower_is_better = {name: lower for name, lower in lower_is_better.items() if name in values}

    @classmethod
    def own(cls, values: Mapping[str, float]) -> "Measurements":
        """The values of metrics that florist measures itself."""
        return cls(values, {name: _LOWER_IS_BETTER[name] for name in values})

    @classmethod
    def together(cls, parts: "Iterable[Measurements]") -> "Measurements":
        """Several measurements of one model as one; of two values of one name, the later counts."""
        values: dict[str, float] = {}
        lower_is_better: dict[str, bool] = {}
        for part in parts:
            values |= part
            lower_is_better |= part.lower_is_better
        return cls(values, lower_is_better)

    @property
    def lower_is_better(self) -> Mapping[str, bool]:
        """Whether a smaller value is the better one, by name, as far as it is known."""
        return MappingProxyType(self._lower_is_better)

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Measurements({self._values}, {self._lower_is_better})"


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of a metric is the better one, for the metrics that florist measures itself.

    Raises:
        ConfigurationError: florist does not measure it; the measurements of whoever does say which way it gets better.
    """
    if metric not in _LOWER_IS_BETTER:
        raise ConfigurationError(
            f"expected one of {', '.join(_LOWER_IS_BETTER)}, whose direction florist knows, got {metric!r}; choose by "
            "one of these"
        )
    return _LOWER_IS_BETTER[metric]


def known_directions(metrics: Iterable[str]) -> dict[str, bool]:
    """Whether a smaller value is the better one, by name, for those of the metrics that florist measures itself."""
    return {name: _LOWER_IS_BETTER[name] for name in metrics if name in _LOWER_IS_BETTER}
