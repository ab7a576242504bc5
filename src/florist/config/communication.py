"""How updates and broadcasts travel, by name: codecs, presets, and what of it a method can use.

The names can be read without torch, which is loaded when an object is made.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from florist.config import methods
from florist.config.methods import DEFAULT_METHOD, METHODS, OWN, make_aggregator, method_named, rank_rule

if TYPE_CHECKING:
    from florist.compression.codecs import Codec, FloatCodec
    from florist.config.own_method import OwnMethod
    from florist.config.sections import Config
    from florist.federation.communication import Communication
    from florist.ranks import RankRule
    from florist.rounds import Aggregator

# ruff: noqa: PLC0415  # what loads torch is imported where it is used

CODEC_NAMES = ("float32", "float16", "bfloat16", "int8", "int4", "int3", "int2")

_PLAIN: Mapping[str, Any] = {"download": "float32", "upload": "float32", "feedback": False}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "plain": _PLAIN,
    "paper": _PLAIN,
    "compact": {"download": "int4", "upload": "int4", "upload_tau": 0.75, "feedback": True},
}
"""Keys of ``[communication]`` by the name of a preset."""

BESIDE: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "plain": {},
    "paper": {"federation": {"local_init": "fresh"}},
    "compact": {"aggregation": {"tau": 0.7}},
}
"""Keys of other sections that belong to a preset. A tau is not set where something else says how much to keep."""

SERVER_RANK_FACTOR = 0.5
"""The rank of what the server holds back of a module, over the sum of the clients' ranks. With
the whole of it the server's round took 1.7 times as long as with half (docs/results.md, uploads in 4 bits)."""

HOW_MUCH = ("upload_tau", "upload_budget")
"""The keys that say how much a client uploads. At most one of them is set."""

FOR_EXACT_SUMS = ("feedback", *HOW_MUCH)
"""The keys for methods whose clients add the exact sum: what is not sent now can be sent later."""


def with_preset(given: Mapping[str, Any], method: str) -> Mapping[str, Any]:
    """The keys of a section with those of its preset, as far as the method can use them.

    Args:
        given: keys and values, which go before those of the preset.
        method: the name of the method; an unknown one is refused elsewhere.
    """
    preset = PRESETS.get(str(given.get("preset")))
    if preset is None:
        return given  # which has none, or one that is refused with a reason
    unfit: set[str] = set(HOW_MUCH) if given.keys() & set(HOW_MUCH) else set()
    unfit.update(_unusable(method))
    return {**{key: value for key, value in preset.items() if key not in unfit}, **given}


def with_default_preset(tables: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tables of a configuration with the preset of its method, where none is given, and what belongs to a preset.

    Args:
        tables: the sections as they were given; what is wrong in them is refused elsewhere.
    """
    aggregation, communication = (tables.get(name, {}) for name in ("aggregation", "communication"))
    if not (isinstance(aggregation, Mapping) and isinstance(communication, Mapping)):
        return tables
    method = method_named(str(aggregation.get("method", DEFAULT_METHOD)))
    if method is None:
        return tables
    name = communication.get("preset", method.preset)
    beside = BESIDE.get(str(name))
    if beside is None:
        return tables
    filled = {**tables, "communication": {**communication, "preset": name}}
    for section, keys in beside.items():
        own = tables.get(section, {})
        if section == "aggregation" and ("tau" not in method.keys or own.keys() & set(methods.HOW_MUCH)):
            continue
        if isinstance(own, Mapping):
            filled[section] = {**keys, **own}
    return filled


def without_replaced(
    settings: Mapping[str, Any], overrides: Mapping[str, Any], method: object = None
) -> dict[str, Any]:
    """What overrides of ``[communication]`` leave of the settings that they change.

    An override of the preset replaces all that a preset says, and one of how much is uploaded what said it before. An
    override of the method, by one that cannot use some of the settings, removes these. What
    the overrides set themselves is not checked.

    Args:
        settings: keys and values before.
        overrides: keys and values on top of them.
        method: what overrides give as the name of the method; None where they do not.
    """
    gone: set[str] = set()
    if "preset" in overrides:
        gone.update(key for preset in PRESETS.values() for key in preset)
    if "preset" in overrides or overrides.keys() & set(HOW_MUCH):
        gone.update(HOW_MUCH)
    gone.update(_unusable(str(method)))
    return {key: value for key, value in settings.items() if key not in gone}


def _unusable(method: str) -> tuple[str, ...]:
    known = METHODS.get(method)
    if known is None:
        return ()
    if not known.adds_exact_sum:
        return FOR_EXACT_SUMS
    return HOW_MUCH if known.uncut_uploads else ()


def contradictions(method: str, section: Any) -> list[str]:
    """What of a section a method cannot use, each with what to do.

    Args:
        method: the name of the method.
        section: the validated section ``[communication]``.
    """
    known = method_named(method) or OWN
    wrong: list[str] = []
    able = " or ".join(repr(other.name) for other in METHODS.values() if other.adds_exact_sum)
    if not known.adds_exact_sum:
        for key in FOR_EXACT_SUMS:
            value = getattr(section, key)
            if value is not None and value is not False:
                wrong.append(
                    f"communication.{key} = {value!r} is for methods whose clients add the exact sum of what they "
                    f"trained, and {known.title} lets them train on from what it sends: remove it, or choose "
                    f"aggregation.method = {able}"
                )
    if known.adds_exact_sum and known.uncut_uploads:
        wrong.extend(
            f"communication.{key} = {getattr(section, key)!r} cuts what clients upload, and for {known.title} that is "
            "B alone, along rows of A that all share: remove it"
            for key in HOW_MUCH
            if getattr(section, key) is not None
        )
    return wrong


def dropped(before: Any, after: Any) -> list[str]:
    """The keys for exact sums that one section sets and another, of a method that cannot use them, does not."""
    unset = {key: field.default for key, field in type(before).model_fields.items()}
    return [key for key in FOR_EXACT_SUMS if getattr(before, key) != unset[key] and getattr(after, key) == unset[key]]


def aggregator_of(config: "Config", largest_rank: int, own: "OwnMethod | None" = None) -> "Aggregator":
    """The method of a configuration, which leaves to the communication what that cuts.

    Args:
        config: a validated one.
        largest_rank: the largest rank that any client trains.
        own: the object of a method that the configuration cannot say.
    """
    section = config.communication
    if own is not None:
        return own.sending(whole_sum=section.feedback_at_server)
    codec = _codec(section.download)
    return make_aggregator(
        config.aggregation, largest_rank, codec.itemsize, 2 * codec.row_overhead, whole_sum=section.feedback_at_server
    )


def communication_of(config: "Config", own: "OwnMethod | None" = None) -> "Communication":
    """The compression of both directions that a configuration asks for.

    Args:
        config: a validated one.
        own: the object of a method that the configuration cannot say.
    """
    from florist.compression.feedback import Compression, Feedback
    from florist.federation.communication import Communication

    section = config.communication
    download: Compression | None = None
    upload: Compression | None = None
    if section.feedback_at_server:
        download = Compression(_codec(section.download), _download_rule(config, own), Feedback(SERVER_RANK_FACTOR))
    elif section.download != "float32":
        download = Compression(_codec(section.download))
    feedback = Feedback() if section.feedback_at_clients else None
    cut = _upload_rule(config)
    if section.upload != "float32" or cut is not None or feedback is not None:
        upload = Compression(_codec(section.upload), cut, feedback)
    return Communication(upload, download, saved_codec(section.upload), saved_codec(section.download))


def _download_rule(config: "Config", own: "OwnMethod | None") -> "RankRule | None":
    """The rule that cuts what is due; None where the method sends all of it."""
    if own is not None:
        return own.rank_rule
    if not (method_named(config.aggregation.method) or OWN).keys:
        return None
    codec = _codec(config.communication.download)
    return rank_rule(config.aggregation, codec.itemsize, 2 * codec.row_overhead)


def _upload_rule(config: "Config") -> "RankRule | None":
    from florist.ranks import ByteBudget, EnergyThreshold

    section = config.communication
    if section.upload_tau is not None:
        return EnergyThreshold(section.upload_tau)
    if section.upload_budget is not None:
        codec = _codec(section.upload)
        return ByteBudget(int(section.upload_budget), codec.itemsize, 2 * codec.row_overhead)
    return None


def _codec(name: str) -> "Codec":
    from florist.compression.codecs import codec_named

    return codec_named(name)


def saved_codec(name: str) -> "FloatCodec | None":
    """The codec of parameters that travel whole, which codes of a few bits would harm: float16 in their place."""
    import torch

    from florist.compression.codecs import FloatCodec

    if name == "float32":
        return None
    codec = _codec(name)
    return codec if isinstance(codec, FloatCodec) else FloatCodec(torch.float16)
