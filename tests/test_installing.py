"""What florist says of installing: from a clone, since an index may serve another package under its name."""

import re
from pathlib import Path

import pytest

from florist.errors import how_to_install

ROOT = Path(__file__).parents[1]
# What an index would be asked for, under the name of florist.
FROM_AN_INDEX = re.compile(r"pip install [^\n`]*(?<!clone of )\bflorist\b(?!/)")
READ = [
    *(path for folder in ("src", "docs", "examples", "scripts", "benchmarks") for path in (ROOT / folder).rglob("*")),
    *ROOT.glob("*.md"),
]


def test_nobody_is_sent_to_an_index_for_florist() -> None:
    texts = {path: path.read_text() for path in READ if path.suffix in {".py", ".md", ".toml", ".sh", ".ipynb"}}
    assert len(texts) > 100
    found = {path: found[0] for path, text in texts.items() if (found := FROM_AN_INDEX.search(text))}
    assert found == {}


@pytest.mark.parametrize("text", ["pip install florist", "pip install 'florist[eval]'", "pip install -U florist==1"])
def test_what_is_looked_for_would_be_found(text: str) -> None:
    assert FROM_AN_INDEX.search(text)
    assert not FROM_AN_INDEX.search(how_to_install("eval"))
