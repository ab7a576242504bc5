"""The rounds of a configuration."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from florist.config.methods import DEFAULT_LOCAL_INIT, LOCAL_INITS
from florist.config.sections.section import LARGEST_NUMBER, Positive, Section, fraction_of, one_of


class FederationSection(Section):
    """``[federation]``: the rounds."""

    rounds: Positive = 3
    """How many rounds are played."""
    fraction: Annotated[float, fraction_of("the clients")] = 1.0
    """The fraction of the clients that is asked in each round."""
    min_replies: Positive | None = None
    """How many usable updates a round needs; by default half as many as clients are asked."""
    seed: Annotated[int, Field(ge=0, le=LARGEST_NUMBER)] = 0
    """The seed of all that is drawn: partitions, held-out examples, participants, adapters and batches."""
    shared_init: bool = True
    """Clients of a round start from the same random A, and a smaller rank from its first rows. Methods that average A
    and B apart need that, and have it in any case."""
    local_init: Annotated[str, one_of(LOCAL_INITS)] = DEFAULT_LOCAL_INIT
    """How the next local adapter starts where clients add the broadcast: ``fresh``, ``aligned`` or ``warm``. That is at
    random, along the last global update, or from the global adapter. Where a method lets clients train on from the
    broadcast, that is the start itself."""
    early_stopping: Positive | None = None
    """After how many evaluations in a row without an improvement the rounds stop, by the first metric of
    ``[evaluation]`` on the validation examples; by default all rounds are played."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """By how much the metric has to be better than at the last improvement, for `early_stopping`."""
    best_round: bool = False
    """Whether the final adapter is that of the round with the best metric on the validation examples, and not that of
    the last."""
    keep_rounds: Literal["last", "sent", "all"] = "last"
    """What stays on disk of the rounds before the last, so that they can be exported: nothing, what was broadcast, or
    that and what the server held back."""

    @model_validator(mode="after")
    def _consistent(self) -> "FederationSection":
        if self.min_delta and self.early_stopping is None:
            raise ValueError(f"min_delta = {self.min_delta} is for early_stopping: set that as well, or remove it")
        return self

    @property
    def chooses(self) -> bool:
        """Whether the validation examples decide when the rounds stop, or which round is the result."""
        return self.best_round or self.early_stopping is not None
