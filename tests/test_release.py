"""What a release needs: one version everywhere, fragments that towncrier takes, workflows that call what exists."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = [file for file in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")) if file.name != "config.yml"]


def commands(workflow: Path) -> list[str]:
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


def test_the_citation_has_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]


def test_fragments_are_named_by_their_kind() -> None:
    kinds = {kind["directory"] for kind in PROJECT["tool"]["towncrier"]["type"]}
    fragments = [file.name for file in (ROOT / PROJECT["tool"]["towncrier"]["directory"]).iterdir()]
    for name in set(fragments) - {"README.md"}:
        assert re.fullmatch(rf"(\d+|\+[\w-]+)\.({'|'.join(kinds)})\.md", name), name


def test_the_changelog_says_where_the_next_version_comes() -> None:
    start = PROJECT["tool"]["towncrier"]["start_string"]
    assert (ROOT / PROJECT["tool"]["towncrier"]["filename"]).read_text().count(start) == 1


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_calls_targets_of_the_makefile(workflow: Path) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = {target for run in commands(workflow) for target in re.findall(r"^make ([\w ]+)$", run, re.MULTILINE)}
    assert {name for target in called for name in target.split()} <= targets


def test_every_check_of_ci_is_in_a_workflow() -> None:
    local = set(re.findall(r"^make (\w+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    hosted = {name for workflow in WORKFLOWS for run in commands(workflow) for name in run.split()}
    assert len(local) > 3
    assert local <= hosted


def test_the_versions_of_python_are_those_that_the_package_allows() -> None:
    matrix = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]["quick"]["strategy"]["matrix"]
    assert f">={matrix['python'][0]}" == PROJECT["project"]["requires-python"]


@pytest.mark.parametrize("form", FORMS, ids=lambda file: file.stem)
def test_a_form_has_fields_of_its_own_names(form: Path) -> None:
    body = yaml.safe_load(form.read_text())["body"]
    names = [field["id"] for field in body if field["type"] != "markdown"]
    assert len(names) == len(set(names)) > 0


def test_who_reports_a_fault_is_asked_for_version_and_certificate() -> None:
    body = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text())["body"]
    asked = {field["id"]: field["attributes"] for field in body if "id" in field}
    assert "florist --version" in asked["version"]["label"]
    assert "florist.json" in asked["certificate"]["description"]
