"""The local training of a configuration."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from florist.config.sections.section import Positive, PositiveFloat, Section


class TrainingSection(Section):
    """``[training]``: how a client trains in a round, by AdamW."""

    learning_rate: PositiveFloat = 3e-4
    """The learning rate of AdamW."""
    batch_size: Positive | Annotated[tuple[Positive, ...], Field(min_length=1)] = 8
    """One number for all clients, or one each in the order of the files; the same goes for `steps` and `epochs`."""
    steps: Positive | Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    """How many steps the optimiser makes in a round."""
    epochs: PositiveFloat | Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] | None = None
    """How often a round passes over the client's examples; once where neither this nor `steps` is set."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate changes within a round."""
    gradient_accumulation_steps: Positive = 1
    """How many batches make one step of the optimiser."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """The weight decay of AdamW."""
    max_grad_norm: PositiveFloat = 1.0
    """The norm that longer gradients are cut to."""
    train_sampling_strategy: Literal["random", "group_by_length"] = "random"
    """Which examples share a batch: any, or those of about the same length; the latter pads less."""
    bf16: bool = False
    """Clients train in bfloat16 mixed precision."""
    fp16: bool = False
    """Clients train in float16 mixed precision, with a scaled loss; this takes CUDA."""
    threads: Positive | None = None
    """How many threads torch uses; by default one or one a core, whichever a measurement at the start finds faster."""

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingSection":
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"steps = {self.steps} and epochs = {self.epochs} contradict each other: remove one")
        if self.bf16 and self.fp16:
            raise ValueError("bf16 and fp16 contradict each other: remove one")
        return self
