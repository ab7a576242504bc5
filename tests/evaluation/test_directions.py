import pytest

from florist.config.metrics import METRICS
from florist.errors import ConfigurationError
from florist.evaluation import Measurements, known_directions, lower_is_better

OURS = {name for known in METRICS.values() for name in known}


def test_of_every_metric_of_ours_it_is_known_which_way_it_gets_better() -> None:
    assert {name for name in OURS if lower_is_better(name)} == {"loss", "perplexity"}
    assert known_directions([*OURS, "arc_easy/acc"]) == {name: lower_is_better(name) for name in OURS}


@pytest.mark.parametrize("metric", ["crows_pairs_english/pct_stereotype", "arc_easy/acc", "own/loss", "bleu"])
def test_nothing_is_guessed_from_a_name(metric: str) -> None:
    with pytest.raises(ConfigurationError, match=f"expected one of loss, .*got '{metric}'"):
        lower_is_better(metric)


def test_measurements_are_their_values_and_know_their_directions() -> None:
    own = Measurements.own({"loss": 1.5, "accuracy": 0.5})
    assert own == {"loss": 1.5, "accuracy": 0.5}
    assert own.lower_is_better == {"loss": True, "accuracy": False}
    harness = Measurements({"a/acc": 0.1, "a/odd": 2.0}, {"a/acc": False, "b/acc": False})
    whole = Measurements.together([own, harness])
    assert dict(whole) == {"loss": 1.5, "accuracy": 0.5, "a/acc": 0.1, "a/odd": 2.0}
    assert whole.lower_is_better == {"loss": True, "accuracy": False, "a/acc": False}
