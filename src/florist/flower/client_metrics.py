"""Metrics that clients measure on held-out examples of their own, as one mean."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from florist.flower.messages import Evaluation

LARGEST_METRIC = 1e9
"""The largest absolute value that counts. Beyond it a metric says no more than that a training diverged, as infinity
does, and a mean would say nothing else."""


def weighted_mean(evaluations: Sequence[Evaluation]) -> Mapping[str, float]:
    """Average the metrics of several clients, each weighted by its held-out examples.

    A metric counts where more than half of the clients that measured anything report it: one client alone names none
    for all. A value counts where it is finite and at most `LARGEST_METRIC`.
    """
    measured = [each for each in evaluations if each.num_examples]
    reported = Counter(name for each in measured for name in set(each.names))
    means: dict[str, float] = {}
    for name in sorted(name for name, count in reported.items() if 2 * count > len(measured)):
        given = [
            (each.num_examples, each.metrics[name])
            for each in measured
            if abs(each.metrics.get(name, math.nan)) <= LARGEST_METRIC
        ]
        total = sum(count for count, _ in given)
        if given:
            means[name] = sum(count / total * value for count, value in given)
    return means
