"""What docs/python.md shows is what happens."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
PROGRAMS = [file.read_text() for file in sorted((ROOT / "examples" / "python").glob("*.py"))]
EXCERPTS = [block for block in BLOCKS if any(block in program for program in PROGRAMS)]


def test_every_program_is_excerpted() -> None:
    assert [sum(block in program for block in EXCERPTS) for program in PROGRAMS] == [1] * len(PROGRAMS)
    assert len(BLOCKS) == len(PROGRAMS) + 3


@pytest.mark.slow
def test_the_other_blocks_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in BLOCKS:
        if block not in EXCERPTS:
            exec(block, names)  # noqa: S102  # a document of this repository
    assert len(names["run"].records) == 3
