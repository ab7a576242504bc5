"""The configurations in the documentation are ones that florist takes."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from florist.config import Config
from florist.config.metrics import METRICS

DOCS = Path(__file__).parents[2] / "docs"
NEEDED: dict[str, dict[str, Any]] = {
    "model": {"name_or_path": "org/model"},
    "data": {"path": "rows"},
    "lora": {"ranks": 8},
}
BLOCKS = [
    pytest.param(block, id=f"{name}-{number}")
    for name in ("communication", "data", "evaluation", "runs", "watch")
    for number, block in enumerate(re.findall(r"```toml\n(.*?)```", (DOCS / f"{name}.md").read_text(), re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_documented_configuration_is_valid(block: str) -> None:
    tables = {**NEEDED, **tomllib.loads(block)}
    found = Config.model_validate(tables)
    assert set(found.evaluation.metrics or ()) <= METRICS["causal-lm"].keys()


def test_the_documentation_has_configurations_and_every_metric() -> None:
    assert len(BLOCKS) >= 10
    text = (DOCS / "evaluation.md").read_text()
    assert all(f"| `{metric}` |" in text for known in METRICS.values() for metric in known)
