"""How updates and broadcasts travel, by name: codecs, presets, and what of it a method can use.

The names can be read without torch, which is loaded when an object is made.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from florist.config.methods import METHODS, make_aggregator, rank_rule

if TYPE_CHECKING:
    from florist.compression.codecs import Codec, FloatCodec
    from florist.config.sections import Config
    from florist.federation.communication import Communication
    from florist.ranks import RankRule
    from florist.rounds import Aggregator

# ruff: noqa: PLC0415  # what loads torch is imported where it is used

CODEC_NAMES = ("float32", "float16", "bfloat16", "int8", "int4", "int3", "int2")

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {"download": "float32", "upload": "float32", "feedback": False},
    "compact": {"download": "int4", "upload": "int4", "upload_tau": 0.8, "feedback": True},
}
"""Keys of ``[communication]`` by the name of a preset."""


def contradictions(method: str, section: Any) -> list[str]:
    """What of a section a method cannot use, each with what to do.

    Args:
        method: the name of the method.
        section: the validated section ``[communication]``.
    """
    known = METHODS[method]
    wrong: list[str] = []
    able = " or ".join(repr(other.name) for other in METHODS.values() if other.adds_exact_sum)
    if not known.adds_exact_sum:
        for key in ("feedback", "upload_tau", "upload_budget"):
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
            for key in ("upload_tau", "upload_budget")
            if getattr(section, key) is not None
        )
        if section.feedback_at_clients:
            wrong.append(
                f"communication.feedback = {section.feedback!r} lets clients send later what they held back, along "
                f"rows of A that {known.title} no longer have then: set it to 'server', or to false"
            )
    return wrong


def aggregator_of(config: "Config", largest_rank: int) -> "Aggregator":
    """The method of a configuration, which leaves to the communication what that cuts.

    Args:
        config: a validated one.
        largest_rank: the largest rank that any client trains.
    """
    section = config.communication
    codec = _codec(section.download)
    return make_aggregator(
        config.aggregation, largest_rank, codec.itemsize, 2 * codec.row_overhead, whole_sum=section.feedback_at_server
    )


def communication_of(config: "Config") -> "Communication":
    """The compression of both directions that a configuration asks for."""
    from florist.compression.feedback import Compression, Feedback
    from florist.federation.communication import Communication

    section = config.communication
    download: Compression | None = None
    upload: Compression | None = None
    if section.feedback_at_server:
        download = Compression(_codec(section.download), _download_rule(config), Feedback())
    elif section.download != "float32":
        download = Compression(_codec(section.download))
    feedback = Feedback() if section.feedback_at_clients else None
    cut = _upload_rule(config)
    if section.upload != "float32" or cut is not None or feedback is not None:
        upload = Compression(_codec(section.upload), cut, feedback)
    return Communication(upload, download, _saved_codec(section.upload), _saved_codec(section.download))


def _download_rule(config: "Config") -> "RankRule | None":
    """The rule that cuts what is due; None where the method sends all of it."""
    if not METHODS[config.aggregation.method].keys:
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


def _saved_codec(name: str) -> "FloatCodec | None":
    """The codec of parameters that travel whole, which codes of a few bits would harm: float16 in their place."""
    import torch

    from florist.compression.codecs import FloatCodec

    if name == "float32":
        return None
    codec = _codec(name)
    return codec if isinstance(codec, FloatCodec) else FloatCodec(torch.float16)
