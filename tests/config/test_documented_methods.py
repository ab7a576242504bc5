"""What the pages about methods and rank rules say is what the code does."""

import re
import runpy
from pathlib import Path

import pytest
import torch

from florist.aggregation import Florist
from florist.config.methods import DEFAULT_TAU, METHODS, Method, make_aggregator
from florist.config.sections import AggregationSection
from florist.ranks import RankRule
from tests.builders import SHAPES, dense_sum, federation

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
METHODS_PAGE = (DOCS / "methods.md").read_text()
ADDING = (DOCS / "adding-a-method.md").read_text()
RULES_PAGE = (DOCS / "rank-rules.md").read_text()
# An excerpt is of the file that was named last before it.
EXCERPTS = [
    pytest.param(re.findall(r"`((?:src|tests|docs)/[\w/.-]+\.(?:py|md))`", ADDING[: block.start()])[-1], block[1])
    for block in re.finditer(r"```\w+\n(.*?)```", ADDING, re.DOTALL)
]


def unindented(text: str) -> str:
    """The text without leading spaces: an excerpt that is valid alone may stand at the margin."""
    return re.sub(r"^ +", "", text.rstrip(), flags=re.MULTILINE)


def line_of(method: Method) -> str:
    """The line of the table of methods, without the arguments of the object."""
    name = type(make_aggregator(AggregationSection(method=method.name), 8)).__name__
    keys = ", ".join(f"`{key}`" for key in method.keys) or "none"
    one_shot = "yes" if method.not_one_shot is None else "no"
    paper = f"[{method.title}](https://arxiv.org/abs/{method.arxiv})" if method.arxiv else "florist's own"
    return f"| `{method.name}` | `{name}(…)` | {method.summary} | {keys} | {one_shot} | {paper} |"


def test_the_table_of_methods_is_that_of_the_records() -> None:
    written = re.findall(r"^\| `\w+` \| `[A-Z]\w+\(.*$", METHODS_PAGE, re.MULTILINE)
    in_the_table = [line for line in written if line.endswith((") |", "florist's own |"))]
    assert [re.sub(r"\([\w, ]*\)`", "(…)`", line, count=1) for line in in_the_table] == [
        line_of(method) for method in METHODS.values()
    ]


def test_the_page_says_why_a_method_is_not_for_saved_adapters() -> None:
    begin = METHODS_PAGE.index("`florist aggregate` refuses")
    refused = METHODS_PAGE[begin : METHODS_PAGE.index("Every method also takes", begin)]
    assert re.findall(r"^- `(\w+)`: (.*)\.$", refused, re.MULTILINE) == [
        (method.name, method.not_one_shot) for method in METHODS.values() if method.not_one_shot is not None
    ]


def test_every_method_has_a_section_with_its_title() -> None:
    whole = METHODS_PAGE[METHODS_PAGE.index("## The methods") : METHODS_PAGE.index("## The certificate")]
    assert re.findall(r"^### (.*)$", whole, re.MULTILINE) == [method.title for method in METHODS.values()]


@pytest.mark.parametrize(("file", "excerpt"), EXCERPTS)
def test_an_excerpt_is_the_code_of_the_repository(file: str, excerpt: str) -> None:
    assert unindented(excerpt) in unindented((ROOT / file).read_text())


def test_the_page_has_an_excerpt_of_each_of_the_four_places() -> None:
    files = {excerpt.values[0] for excerpt in EXCERPTS}
    named = re.findall(r"^\d\. .*`([\w/.-]+)`", ADDING, re.MULTILINE)
    assert len(named) == 4
    assert all(any(str(file).startswith(place) for file in files) for place in named)


def test_the_default_rule_is_the_one_that_the_page_says() -> None:
    assert f"| `--tau {DEFAULT_TAU}` (the default) | `EnergyThreshold({DEFAULT_TAU})` |" in RULES_PAGE


def test_a_rule_of_ones_own_is_one(tmp_path: Path) -> None:
    block = re.search(r"```python\n(.*?)```", RULES_PAGE, re.DOTALL)
    assert block is not None
    (tmp_path / "rule.py").write_text(block[1])
    method = runpy.run_path(str(tmp_path / "rule.py"))["method"]
    assert isinstance(method, Florist)
    assert isinstance(method.rank_rule, RankRule)
    ranks = {name: module.rank for name, module in method(federation([4, 8])).certificate.modules.items()}
    spectra = {name: torch.linalg.svdvals(dense_sum(federation([4, 8]), name)) for name in SHAPES}
    assert ranks == {name: int((S > 0.1 * S[0]).sum()) for name, S in spectra.items()}
