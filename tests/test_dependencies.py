"""What the package imports is what it declares, in the extra that needs it."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from .pages import NOTEBOOKS, cells

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]

# What may import more than an installation without extras brings: the longest prefix of a module's name counts.
NEEDS = {
    "florist.cli.hub": {"train"},
    "florist.cli.libraries": {"train"},
    "florist.config": {"train"},
    "florist.config.privacy": {"train", "privacy"},
    "florist.data": {"train"},
    "florist.data.partition": set(),
    "florist.data.tables": {"train", "data"},
    "florist.evaluation": {"train"},
    "florist.evaluation.harness": {"train", "eval"},
    "florist.flower": {"flower"},
    "florist.flower.configured_client": {"train", "flower"},
    "florist.flower.loaded_base": {"train", "flower"},
    "florist.flower.model_participant": {"train", "flower"},
    "florist.flower.server_evaluation": {"train", "flower"},
    "florist.models": {"train"},
    "florist.peft": {"train"},
    "florist.planning.meta_model": {"train"},
    "florist.privacy": {"privacy"},
    "florist.reporting": {"report"},
    "florist.simulating": {"train"},
    "florist.tracking.mlflow": {"mlflow"},
    "florist.tracking.tensorboard": {"tensorboard"},
    "florist.tracking.trackio": {"trackio"},
    "florist.tracking.wandb": {"wandb"},
}
HOMES = packages_distributions()  # reads the metadata of every installed package
# The Trainer of transformers wants accelerate, torch.utils.tensorboard wants tensorboard, and nobody here imports them.
UNSEEN = {"accelerate", "tensorboard"}


def declared(requirements: list[str]) -> set[str]:
    names = {re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-") for requirement in requirements}
    return names - {"florist"}


def imported(file: Path) -> set[str]:
    """The third-party distributions that a file imports, late imports included."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    tops = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"florist"}
    return {HOMES.get(top, [top])[0].lower().replace("_", "-") for top in tops}


FILES = {
    ".".join(file.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted((ROOT / "src" / "florist").rglob("*.py"))
}


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_what_its_part_of_the_package_declares(module: str) -> None:
    prefixes = [prefix for prefix in NEEDS if f"{module}.".startswith(f"{prefix}.")]
    extras = NEEDS[max(prefixes, key=len)] if prefixes else set[str]()
    allowed = declared(PROJECT["dependencies"]).union(*(declared(EXTRAS[extra]) for extra in extras))
    assert imported(FILES[module]) <= allowed


def test_nothing_is_declared_that_nobody_imports() -> None:
    of_users = EXTRAS.keys() - {"dev", "docs", "notebooks"}
    wanted = declared(PROJECT["dependencies"]).union(*(declared(EXTRAS[name]) for name in of_users))
    used = set[str]().union(*(imported(file) for file in FILES.values()))
    assert wanted - used == UNSEEN


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[notebook.stem for notebook in NOTEBOOKS])
def test_a_notebook_imports_what_its_extra_declares(notebook: Path, tmp_path: Path) -> None:
    (tmp_path / "cells.py").write_text("\n".join(cells(notebook, "code")), encoding="utf-8")
    extras = "notebooks", *re.findall(r"florist\[([a-z,]+)\]", " ".join(EXTRAS["notebooks"]))
    names = {name for extra in extras for name in extra.split(",")}
    allowed = declared(PROJECT["dependencies"]).union(*(declared(EXTRAS[name]) for name in names))
    assert imported(tmp_path / "cells.py") <= allowed


@pytest.mark.parametrize(
    ("package", "contract"),
    [
        ("florist.federation", "The aggregation server needs torch and safetensors only"),
        ("florist.flower", "What loads no base over Flower needs Flower beside that"),
    ],
)
def test_a_contract_lists_every_module_that_trains_nothing(package: str, contract: str) -> None:
    """A module escapes only if it trains: `florist.federation.simulation`, and what `NEEDS` grants the extra of."""
    contracts = {found["name"]: found for found in PYPROJECT["tool"]["importlinter"]["contracts"]}
    trains = {"florist.federation.simulation", *(module for module, extras in NEEDS.items() if "train" in extras)}
    modules = {module for module in FILES if module.startswith(f"{package}.")}
    listed = {module for module in contracts[contract]["source_modules"] if module.startswith(f"{package}.")}
    assert listed == modules - trains


def test_make_fast_runs_files_that_are_there() -> None:
    command = subprocess.run(["make", "-n", "fast"], cwd=ROOT, check=True, capture_output=True, text=True).stdout  # noqa: S607  # whichever make there is
    paths = re.findall(r"tests/\S+", command)
    assert len(paths) > 5
    assert [path for path in paths if not (ROOT / path).exists()] == []
