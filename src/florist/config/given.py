"""Objects that code gives in the place of what a configuration names."""

from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from florist.config.own_method import OwnMethod
from florist.evaluation import Metric
from florist.models.local_training import LocalTraining, by_trainer


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """Objects that code gives; by default none, and a configuration says all.

    Attributes:
        base: the base model.
        tokenizer: the tokenizer of the base, which pads on the right.
        method: the aggregation method, where no key says it.
        metrics: what is measured in the rounds beside, or in the place of, the metrics on held-out examples.
        local_training: how clients train.
    """

    base: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    method: OwnMethod | None = None
    metrics: tuple[Metric, ...] = ()
    local_training: LocalTraining = by_trainer


NOTHING_GIVEN = Given()
