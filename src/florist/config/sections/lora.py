"""The adapters of a configuration."""

from typing import Annotated

from pydantic import Field, model_validator

from florist.config.sections.section import Positive, PositiveFloat, Section


class LoraSection(Section):
    """``[lora]``: what clients train."""

    ranks: Positive | Annotated[tuple[Positive, ...], Field(min_length=1)]
    """One rank for all clients, or one each in the order of the files."""
    alpha: PositiveFloat | tuple[PositiveFloat, ...] | None = None
    """PEFT's ``lora_alpha``, one for all or one each; by default twice the client's rank, so that the scaling is 2."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """The modules to adapt: ends of their names, one regular expression for whole names, or all linear ones."""
    use_rslora: bool = False
    """Whether the scaling is alpha / sqrt(rank) in the place of alpha / rank."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The probability of dropout on the input of A."""
    modules_to_save: tuple[str, ...] | None = None
    """The modules that are trained whole and averaged; by default the head of a classifier."""

    @model_validator(mode="after")
    def _consistent(self) -> "LoraSection":
        if isinstance(self.ranks, tuple) and isinstance(self.alpha, tuple) and len(self.ranks) != len(self.alpha):
            raise ValueError(f"ranks lists {len(self.ranks)} clients and alpha {len(self.alpha)}: give one each")
        return self
