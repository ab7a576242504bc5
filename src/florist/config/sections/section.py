"""What the tables of a configuration have in common: their base class, and types of their keys."""

from collections.abc import Collection
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

LARGEST_NUMBER = 2**63 - 1
"""The largest whole number that every reader of TOML must take."""
Positive = Annotated[int, Field(gt=0, le=LARGEST_NUMBER)]
PositiveFloat = Annotated[float, Field(gt=0)]

FROM_CODE = "(given from code)"
"""What stands in a configuration for the path or the name of what was an object."""


class Section(BaseModel):
    """A table of the TOML file: frozen, without room for unknown keys, NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def one_of(names: Collection[str], *beside: str) -> AfterValidator:
    """A text that is one of these names, or of others beside, refused in the words that pydantic has for a Literal."""
    *others, last = map(repr, names)

    def known(text: str) -> str:
        if text not in names and text not in beside:
            raise ValueError(f"Input should be {', '.join(others)} or {last}")
        return text

    return AfterValidator(known)


def fraction_of(whole: str) -> AfterValidator:
    """A number in (0, 1], refused in words that say what it is a fraction of."""

    def fraction(number: float) -> float:
        if not 0 < number <= 1:
            raise ValueError(f"expected a fraction of {whole} in (0, 1]")
        return number

    return AfterValidator(fraction)
