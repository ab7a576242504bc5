import pytest

from florist.config.metrics import METRICS
from florist.evaluation import lower_is_better


@pytest.mark.parametrize(
    "metric", ["loss", "perplexity", "wikitext/word_perplexity", "wikitext/bits_per_byte", "own/perplexity/cleaned"]
)
def test_losses_and_perplexities_are_better_when_lower(metric: str) -> None:
    assert lower_is_better(metric)


@pytest.mark.parametrize(
    "metric",
    ["exact_match", "accuracy", "multiple_choice", "arc_easy/acc_norm", "gsm8k/exact_match/strict", "loss/acc"],
)
def test_what_counts_right_answers_is_better_when_higher(metric: str) -> None:
    assert not lower_is_better(metric)


def test_every_metric_of_ours_has_the_direction_that_its_name_says() -> None:
    ours = {name for known in METRICS.values() for name in known}
    assert {name for name in ours if lower_is_better(name)} == {"loss", "perplexity"}
