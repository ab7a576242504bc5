"""What is built and given away: a wheel and a source distribution, installed where nothing of this clone is seen."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GIT = shutil.which("git") or "git"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel, made from the source distribution, which is made from the clone."""
    folder = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source")
    found = subprocess.run([GIT, "archive", "--format=tar", "HEAD"], cwd=ROOT, capture_output=True, check=False)
    if found.returncode:
        pytest.skip("the tests do not run in a clone: there is no git history to archive")
    (folder / "clone.tar").write_bytes(found.stdout)
    with tarfile.open(folder / "clone.tar") as archive:
        archive.extractall(source, filter="data")
    made = subprocess.run(
        [sys.executable, "-c", "from hatchling.build import build_sdist; build_sdist('" + str(folder) + "')"],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    sdist = next(folder.glob("*.tar.gz"))
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    made = subprocess.run(
        [sys.executable, "-c", "from hatchling.build import build_wheel; build_wheel('" + str(folder) + "')"],
        cwd=folder / sdist.name.removesuffix(".tar.gz"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    return folder


@pytest.mark.slow
def test_the_wheel_has_the_package_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"florist"}
    assert "florist/py.typed" in names
    tracked = subprocess.run(
        [GIT, "ls-files", "src/florist"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {name.removeprefix("src/") for name in tracked} <= set(names)


@pytest.mark.slow
def test_the_wheel_is_used_from_an_environment_of_its_own(
    built: Path, saved_adapters: list[Path], tmp_path: Path
) -> None:
    """Dependencies come from this environment by a path file, florist from the wheel."""
    home = tmp_path / "environment"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    wheel = next(built.glob("*.whl"))
    install = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True, timeout=200)
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    (Path(packages) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    sites = saved_adapters[:2]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [home / "bin" / "florist", "aggregate", *sites, "-o", tmp_path / "merged", "--weights", "1,1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=clean, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "merged" / "adapter_model.safetensors").is_file()
    where = [python, "-c", "import florist; print(florist.__file__)"]
    used = subprocess.run(where, capture_output=True, text=True, cwd=tmp_path, env=clean, check=True).stdout.strip()
    assert Path(used).is_relative_to(home)
