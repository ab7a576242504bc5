"""The server half needs neither transformers nor PEFT."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import florist.flower
from florist.federation.history import RunDirectory
from tests.tiny_federation import configure

ROOT = Path(__file__).parents[2]
BLOCKED = "import sys\nfor name in ('transformers', 'peft', 'accelerate'): sys.modules[name] = None\n"
"""As where they are not installed: importing one raises ModuleNotFoundError."""


def server_half() -> list[str]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (modules,) = [each["source_modules"] for each in contracts if "Flower" in each["name"]]
    return modules


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_the_server_half_loads_no_training_libraries() -> None:
    imports = "".join(f"import {name}\n" for name in server_half())
    loaded = run(f"{imports}import sys\nprint({{'transformers', 'peft', 'accelerate'}} & set(sys.modules))")
    assert loaded == "set()"


def test_public_names_are_there_and_documented() -> None:
    for name in florist.flower.__all__:
        assert getattr(florist.flower, name).__doc__
        assert name in dir(florist.flower)
    assert florist.flower._HOMES.keys() == set(florist.flower.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Florist'"):
        florist.flower.Florist  # noqa: B018  # the access is the test


def test_a_site_without_training_libraries_is_told_what_to_install() -> None:
    script = f"""{BLOCKED}
from florist.errors import MissingDependencyError
try:
    from florist.flower import configured_client_app
except MissingDependencyError as error:
    print(error)
"""
    assert run(script).endswith('which is not installed: pip install -e ".[flower,train]" in a clone of florist')


SERVE = (
    BLOCKED
    + """
from pathlib import Path
from flwr.app import Context, RecordDict
from florist.errors import FloristError
from florist.flower import configured_server_app
from tests.flower.grids import MemoryGrid
from tests.flower.participants import Light, app_of

clients = {7: Light("a", 2), 8: Light("b", 3)}
given = {"flower.run": sys.argv[2], "flower.wait": 5, "flower.evaluation": sys.argv[3]}
app = configured_server_app(Path(sys.argv[1]))
try:
    app(MemoryGrid(app_of(clients), {7: {}, 8: {}}), Context(1, 2, {}, RecordDict(), given))
except FloristError as error:
    print(error)
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("evaluation", ["clients", "none", "server"])
def test_a_configured_server_works_without_them_unless_it_evaluates(
    evaluation: str, tiny_llama: Path, toy_data: Path, tmp_path: Path
) -> None:
    file = configure(tmp_path, tiny_llama, toy_data)
    command = [sys.executable, "-c", SERVE, str(file), str(tmp_path / "run"), evaluation]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if evaluation == "server":
        assert 'pip install -e ".[flower,train]" in a clone of florist there, or leave the evaluation' in done.stdout
    else:
        directory = RunDirectory.open(tmp_path / "run")
        assert [len(line.clients) for line in directory.records()] == [2, 2]
        assert (directory.adapter / "adapter_model.safetensors").is_file()
