"""The page about evaluation has every metric; `tests/test_code_blocks.py` reads the configurations of all pages."""

from pathlib import Path

from florist.config.metrics import METRICS

EVALUATION = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()


def test_every_metric_is_documented() -> None:
    assert all(f"| `{metric}` |" in EVALUATION for known in METRICS.values() for metric in known)
