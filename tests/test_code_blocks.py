"""Every block of code in the documents is run, parsed or read, or it is listed here with the reason why not.

Python runs, but for what `NOT_RUN` lists, which is compiled. Commands of florist are parsed by its own application, and
those of the tutorials are run, the three longest once a week and the others in the long tests.
TOML is read as a configuration. Other programs are in `PROGRAMS`.
`test_notebooks.py` runs the cells of notebooks; their prose is read here.
"""

import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from markdown_it import MarkdownIt

import florist
from florist.cli import app
from florist.config import DEMONSTRATION, Config
from florist.config.metrics import METRICS
from florist.config.reading import config_of

from .pages import DOCS, PAGES, ROOT, text_of

TUTORIALS = ["docs/quickstart.md", *sorted(f"docs/tutorials/{page.name}" for page in (DOCS / "tutorials").glob("*.md"))]
"""Their commands and their Python are run, block after block, in one directory."""

EXAMPLES = [ROOT / "examples" / "flower", ROOT / "examples" / "nvflare"]
"""Folders that the pages say to go to before a script of theirs is started."""

PROGRAMS = {
    "make": "the tests are what it runs",
    "python3": "it makes an environment",
    ".": "it enters the environment",
    "pip": "it installs from an index",
    "cd": "the commands after it are those of Flower",
    "python": "benchmarks take minutes, and tests/flower has tests of Flower's programs",
    "flwr": "tests/flower has tests of Flower's programs",
    "flower-supernode": "tests/flower has tests of Flower's programs",
    "vllm": "no other program that serves is installed",
}
"""Programs whose commands are not run, and why."""

EXCERPTS = {
    "docs/adding-a-method.md": "tests/config/test_documented_methods.py compares it with the files",
    "docs/python.md": "tests/simulating/test_documented.py compares it with the programs, and runs the rest",
}
"""Pages whose Python is taken from files, in part: tests of their own know which."""

NOT_RUN = {
    ("README.md", "run = florist.simulate("): "its names are the reader's; docs/python.md has a whole call, which runs",
    (
        "examples/nvflare/README.md",
        "from florist_nvflare import AdapterFedAvg, FloristAggregator",
    ): "it needs NVFlare; tests/test_nvflare_example.py runs such a job",
    ("docs/evaluation.md", "from florist.evaluation import evaluate_tasks"): "it downloads the data of a benchmark",
}
"""Python that is compiled and not run, by page and first line, and why."""

NEEDED: Mapping[str, Mapping[str, Any]] = {
    "model": {"name_or_path": "org/model"},
    "data": {"path": "rows"},
    "lora": {"ranks": 8},
}
"""What every configuration needs, and an excerpt of one may leave out."""

BESIDE: Mapping[tuple[str, str], Mapping[str, Mapping[str, Any]]] = {
    ("docs/privacy.md", "[privacy]"): {"aggregation": {"method": "linear"}},
    ("docs/privacy.md", "[aggregation]"): {
        "privacy": {"secure_aggregation": True, "clip": 0.5, "epsilon": 8, "delta": 1e-3}
    },
}
"""What the text around an excerpt says of other sections, by page and first line."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code: its page, its language (none where it is indented), and the line that it begins in."""

    page: str
    language: str
    line: int
    text: str

    @property
    def first_line(self) -> str:
        return self.text.partition("\n")[0]

    @property
    def commands(self) -> list[list[str]]:
        """The words of every command; none where the block is a formula or a drawing."""
        if self.language not in {"sh", ""}:
            return []
        lines = [line for line in self.text.replace("\\\n", " ").splitlines() if line.strip()]
        known = {"florist", *PROGRAMS}
        if self.language == "" and not any(line.split()[0] in known for line in lines):
            return []
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks_of(page: Path) -> Iterator[Block]:
    for token in MarkdownIt().parse(text_of(page)):
        if token.type in {"fence", "code_block"}:
            yield Block(str(page.relative_to(ROOT)), token.info, (token.map or [0])[0] + 1, token.content)


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def some(*languages: str, where: Callable[[Block], object] = lambda _: True) -> list[Any]:
    return [
        pytest.param(each, id=f"{each.page}:{each.line}")
        for each in BLOCKS
        if each.language in languages and where(each)
    ]


def test_every_language_is_one_that_is_tested() -> None:
    found = {block.language for block in BLOCKS}
    assert found == {"", "sh", "python", "toml", "json", "text", "markdown", "{toctree}"}
    assert {block.page for block in BLOCKS if block.language == "markdown"} <= EXCERPTS.keys()


# --- commands


@pytest.mark.parametrize("block", some("sh", "", where=lambda block: block.commands))
def test_a_command_of_florist_is_one(block: Block) -> None:
    for words in block.commands:
        if words[0] == "florist":
            parse(words)
        else:
            assert words[0] in PROGRAMS, f"{words[0]}: add it to PROGRAMS with the reason why it is not run"
            require_files(words)
        assert set(keys_of(words)) <= known_keys(), words


def parse(words: list[str]) -> None:
    """Let the application parse a command; it raises a click.UsageError that names what is wrong."""
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    options = {name for option in group.params for name in option.opts}
    if words[1] in options:
        assert words[2:] == []
    else:
        assert words[1] in group.commands, words
        group.commands[words[1]].make_context(" ".join(words[:2]), words[2:])


def keys_of(words: list[str]) -> Iterator[str]:
    """The keys of a configuration that a command sets."""
    for option, value in pairwise(words):
        if option == "--set":
            yield value.partition("=")[0]
        elif option == "--variant":
            yield from (part.strip().partition("=")[0] for part in value.partition(":")[2].split(","))
        elif option in {"--run-config", "--node-config"}:
            yield from re.findall(r"(?<![\w.])([a-z]+\.[a-z_]+)=", value)


def known_keys() -> set[str]:
    sections = {name: field.annotation for name, field in Config.model_fields.items()}
    return {f"{name}.{key}" for name, section in sections.items() if section for key in section.model_fields}


def require_files(words: list[str]) -> None:
    """A script and a target of make are there."""
    if words[0] == "python" and words[1].endswith(".py"):
        assert any((folder / words[1]).is_file() for folder in (ROOT, *EXAMPLES)), words
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()


def test_a_wrong_option_would_be_found() -> None:
    with pytest.raises(click.UsageError, match="--taus"):
        parse(["florist", "aggregate", "site1", "-o", "merged", "--taus", "0.9"])
    assert list(keys_of(["florist", "simulate", "--set", "lora.rank=3"])) == ["lora.rank"]
    assert "lora.rank" not in known_keys()


# --- configurations and JSON


@pytest.mark.parametrize("block", some("toml"))
def test_a_configuration_is_read(block: Block) -> None:
    tables = tomllib.loads(block.text)
    beside = BESIDE.get((block.page, block.first_line), {})
    names = {*NEEDED, *beside, *tables}
    read = config_of(
        {name: {**NEEDED.get(name, {}), **beside.get(name, {}), **tables.get(name, {})} for name in sorted(names)}
    )
    assert set(read.evaluation.metrics or ()) <= {name for known in METRICS.values() for name in known}


@pytest.mark.parametrize("block", some("json"))
def test_json_is_json(block: Block) -> None:
    assert json.loads(block.text)


# --- Python


def test_what_is_not_run_is_there() -> None:
    written = {(block.page, block.first_line) for block in BLOCKS}
    assert NOT_RUN.keys() | BESIDE.keys() <= written


@pytest.mark.parametrize("block", some("python", where=lambda block: block.page not in EXCERPTS))
def test_python_is_python(block: Block) -> None:
    compile(block.text, f"{block.page}:{block.line}", "exec")


@pytest.fixture
def sites(saved_adapters: list[Path], tmp_path: Path) -> Path:
    """A directory with the adapters that the pages combine, the model and data of a tutorial, and a configuration."""
    for number, adapter in enumerate(saved_adapters, 1):
        shutil.copytree(adapter, tmp_path / f"site{number}")
    shutil.copy(DEMONSTRATION, tmp_path / "federation.toml")
    return tmp_path


@pytest.fixture
def given(tiny_llama: Path, sites: Path) -> Mapping[str, Mapping[str, object]]:
    """The names that a page says that the reader has."""
    merged = florist.aggregate([sites / "site1", sites / "site2"], rank_rule=florist.EnergyThreshold(1.0))
    return {
        "docs/serving.md": {"BASE": tiny_llama},
        "docs/tune.md": {"adapter": merged.adapter, "evaluate": lambda cut: {"accuracy": float(cut.total_rank)}},
    }


RUN = sorted(
    {block.page for block in BLOCKS if block.language == "python"}
    - {*EXCERPTS, *TUTORIALS}
    - {page for page, _ in NOT_RUN}
)


@pytest.mark.parametrize("page", RUN)
def test_python_runs(
    page: str, sites: Path, given: Mapping[str, Mapping[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if page == "docs/serving.md":
        florist.aggregate([sites / "site1"], rank_rule=florist.EnergyThreshold(0.9)).write(sites / "merged")
    monkeypatch.chdir(sites)
    run_python([block for block in BLOCKS if block.page == page and block.language == "python"], given.get(page, {}))


def run_python(blocks: list[Block], names: Mapping[str, object]) -> None:
    """Run blocks one after the other, as a module of the current directory would."""
    module = {"__name__": "page", "__file__": str(Path("page.py").absolute()), **names}
    for block in blocks:
        exec(compile(block.text, f"{block.page}:{block.line}", "exec"), module)  # noqa: S102  # of this repository


# --- tutorials

OWN = "docs/tutorials/own-model-and-data.md"
"""The one that writes the florist.toml that the others go on with."""
LONGEST = {f"docs/tutorials/{name}.md" for name in ("comparing-methods", "choosing-tau-or-a-budget", "private-rounds")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.soak] if page in LONGEST else []) for page in TUTORIALS]
)
def test_a_tutorial_runs(
    page: str, tiny_llama: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(tiny_llama)
    (tmp_path / "data").symlink_to(toy_data)
    shutil.copy(DEMONSTRATION, tmp_path / "federation.toml")
    if page != OWN:
        run_florist(["init", "--model", "model", "--data", "data", "--ranks", "8,4", "--yes"])
    for block in (block for block in BLOCKS if block.page == page):
        for words in block.commands:
            if words[0] == "florist":
                run_florist(words[1:])
        if block.language == "python":
            run_python([block], {})


def run_florist(arguments: list[str]) -> None:
    assert typer.main.get_command(app).main(arguments, prog_name="florist", standalone_mode=False) in {None, 0}
