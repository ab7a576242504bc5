"""The arguments of `simulate` as keys of a configuration, where a configuration can say them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from florist.config.communication import with_preset
from florist.config.methods import FOR_ALL_METHODS, METHODS
from florist.config.own_method import OwnMethod, as_keys, known_method
from florist.config.robust import guard_keys
from florist.config.sections import FROM_CODE, DataSection
from florist.errors import ConfigurationError, DataError
from florist.federation.guard import Guard
from florist.rounds import Aggregator

Keys = Mapping[str, Any]
"""Keys of one section of a configuration, with their values."""


def ranks_of(ranks: Any, client_ids: Sequence[str]) -> int | tuple[int, ...]:
    """The ranks as ``[lora] ranks`` has them: one for all clients, or one each in their order.

    Raises:
        ConfigurationError: they are no ranks; or they are named, and a client has none, or a name is no client.
    """
    if isinstance(ranks, int):
        return ranks
    if not isinstance(ranks, Mapping):
        if not isinstance(ranks, Sequence) or isinstance(ranks, str):
            raise ConfigurationError(
                f"ranks: expected a whole number for all clients, one each, or a dictionary by client, got {ranks!r}"
            )
        return tuple(ranks)
    missing = [name for name in client_ids if name not in ranks]
    unknown = [name for name in ranks if name not in client_ids]
    if missing or unknown:
        raise ConfigurationError(
            f"ranks: expected one for each of {', '.join(client_ids)}"
            + (f"; missing {', '.join(missing)}" if missing else "")
            + (f"; no client is called {', '.join(map(str, unknown))}" if unknown else "")
        )
    return tuple(ranks[name] for name in client_ids)


def method_keys(
    method: Any, aggregation: Keys | None, ranks: int | tuple[int, ...]
) -> tuple[OwnMethod | None, Keys | None]:
    """The object of a method that no key says, if it is one, and the keys of ``[aggregation]``.

    Args:
        method: an object, a name, or nothing for the default.
        aggregation: further keys, which go with a name.
        ranks: the ranks of the clients.

    Raises:
        ConfigurationError: it is no method, or keys were given with an object.
    """
    if method is None or isinstance(method, str):
        return None, {**({} if method is None else {"method": method}), **(aggregation or {})}
    if not isinstance(method, Aggregator) or isinstance(method, type):
        raise ConfigurationError(
            f"method: expected one of {', '.join(METHODS)}, or an object with work and __call__, got {method!r}"
        )
    beside = {key: value for key, value in (aggregation or {}).items() if key in FOR_ALL_METHODS}
    others = [key for key in aggregation or {} if key not in beside]
    if others:
        raise ConfigurationError(
            f"aggregation: expected no keys but {' and '.join(FOR_ALL_METHODS)} with a method that is an object, got "
            f"{', '.join(others)}; give them to {type(method).__name__}"
        )
    keys = as_keys(method, max(ranks) if isinstance(ranks, tuple) else ranks)
    if keys is not None:
        return None, {**keys, **beside}
    return OwnMethod(method, known_method(method)), {"method": "own", **beside}


def communication_keys(communication: str | Keys | None, own: OwnMethod | None) -> Keys:
    """The keys of ``[communication]``; a method of florist has its own preset, also with a rank rule of one's own."""
    keys = {"preset": communication} if isinstance(communication, str) else dict(communication or {})
    if own is None or own.known is None:
        return keys
    return with_preset({"preset": own.known.preset, **keys}, own.known.name)


READING = frozenset(
    {
        "format",
        "instruction_field",
        "input_field",
        "output_field",
        "label_field",
        "prompt_template",
        "chat_template",
        "loss_on",
        "max_length",
        "test_fraction",
        "validation_fraction",
    }
)
"""The keys of ``[data]`` that say how examples are read and held out; the others say which files they are in."""


def data_keys(data: Keys | None, kind: Keys, held_out: Iterable[str]) -> Keys:
    """The keys of ``[data]``.

    Args:
        data: those that were given.
        kind: those that the kind of examples needs, which the given ones change.
        held_out: what held-out examples were given, of test and validation.

    Raises:
        ConfigurationError: a key is for files, which there are none of.
    """
    files = sorted((data or {}).keys() & (DataSection.model_fields.keys() - READING))
    if files:
        raise ConfigurationError(
            f"data: expected keys that say how examples are read ({', '.join(sorted(READING))}), got "
            f"{', '.join(files)}, which are for files; give the examples as clients, test and validation"
        )
    return {**kind, **(data or {}), "path": FROM_CODE, **dict.fromkeys(held_out, FROM_CODE)}


def keys_of_guard(guard: Any) -> Keys | None:
    """The keys of ``[guard]``: those of an object, or as they were given.

    Raises:
        ConfigurationError: it is neither.
    """
    if isinstance(guard, Guard):
        return guard_keys(guard)
    if guard is not None and not isinstance(guard, Mapping):
        raise ConfigurationError(
            f"guard: expected a florist.Guard, or the keys of [guard] as a dictionary, got {guard!r}"
        )
    return guard


def require_keys(**tables: object) -> None:
    """Check that what was given for sections of a configuration are dictionaries.

    Raises:
        ConfigurationError: one is something else.
    """
    for name, table in tables.items():
        if table is not None and not isinstance(table, Mapping):
            raise ConfigurationError(f"{name}: expected the keys of [{name}] as a dictionary, got {table!r}")


def require_known_clients(held_out: object, client_ids: Mapping[str, object], keyword: str) -> None:
    """Check that held-out examples by client are those of clients.

    Raises:
        DataError: some are not.
    """
    unknown = [name for name in held_out if name not in client_ids] if isinstance(held_out, Mapping) else []
    if unknown:
        raise DataError(f"{keyword}: expected examples of {', '.join(client_ids)}, got some of {', '.join(unknown)}")


def without_none(**tables: Keys | None) -> dict[str, dict[str, Any]]:
    """The sections that are given, and of them the keys that are.

    Raises:
        ConfigurationError: a section is no dictionary.
    """
    require_keys(**tables)
    return {
        name: {key: value for key, value in table.items() if value is not None}
        for name, table in tables.items()
        if table is not None
    }
