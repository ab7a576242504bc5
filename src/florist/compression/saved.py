"""Saved parameters as they travel: whole values in 16 bits, with the rounding kept and sent later."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from florist.compression.codecs import FloatCodec
from florist.errors import InvalidUpdateError, NonFiniteUpdateError
from florist.rounds import NOTHING, SavedParameters


@dataclass(frozen=True, slots=True, eq=False)
class SentParameters:
    """Saved parameters after compression.

    Attributes:
        decoded: the values that arrive, each in its own dtype.
        held_back: what rounding took from each, float32; empty without feedback.
        nbytes: of what travels.
    """

    decoded: SavedParameters
    held_back: SavedParameters
    nbytes: int


def send_parameters(
    values: SavedParameters, owed: SavedParameters, codec: FloatCodec, *, feedback: bool
) -> SentParameters:
    """Round the values to what travels, and keep the difference.

    A value v is sent as ``Q(v + e)``, and ``v + e - Q(v + e)`` is kept as the next e. A change that is too small for
    the narrow type adds up until it shows.

    Args:
        values: to be sent.
        owed: what was held back before; a parameter that it lacks owes nothing.
        codec: how numbers travel.
        feedback: whether to keep what is not sent.

    Raises:
        NonFiniteUpdateError: a value does not fit the codec; names the parameter.
        InvalidUpdateError: what was held back has another shape; names the parameter.
    """
    decoded: dict[str, torch.Tensor] = {}
    held_back: dict[str, torch.Tensor] = {}
    nbytes = 0
    for name, value in values.items():
        due = value.double()
        if name in owed:
            if owed[name].shape != value.shape:
                raise InvalidUpdateError(
                    f"{name}: expected a residual of shape {tuple(value.shape)}, got {tuple(owed[name].shape)}; begin "
                    "without one"
                )
            due = due + owed[name]
        try:
            parts = codec.pack(due.reshape(1, -1))
        except NonFiniteUpdateError as error:
            raise NonFiniteUpdateError(f"{name}: {error}") from error
        arrived = codec.unpack(parts, (1, due.numel())).reshape(value.shape)
        decoded[name] = arrived.to(value.dtype)
        nbytes += _bytes(parts)
        if feedback:
            held_back[name] = (due - decoded[name]).float()
    return SentParameters(decoded, held_back or NOTHING, nbytes)


def _bytes(parts: Mapping[str, torch.Tensor]) -> int:
    return sum(part.nbytes for part in parts.values())
