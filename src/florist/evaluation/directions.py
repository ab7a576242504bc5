"""Which way a metric is better."""

_LOWER = frozenset(
    {
        *("loss", "perplexity"),
        # lm-evaluation-harness
        *("word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter", "wer"),
    }
)


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of a metric is the better one.

    Args:
        metric: name as in a run's records; of lm-evaluation-harness, ``task/metric`` or ``task/metric/filter``.

    Returns:
        True for losses, perplexities and error rates; every other metric counts what is right.
    """
    _, _, of_task = metric.partition("/")
    return (of_task or metric).split("/")[0] in _LOWER
