import subprocess
import sys
from collections import defaultdict
from importlib import import_module
from importlib.metadata import version
from pkgutil import walk_packages

import pytest

import florist


@pytest.mark.parametrize("name", florist.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(florist, name).__doc__
    assert name in dir(florist)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'florist' has no attribute 'aggregat'"):
        florist.aggregat  # noqa: B018  # the access is the test


def test_the_version_is_that_of_the_package() -> None:
    assert florist.__version__ == version("florist")
    assert "__version__" in dir(florist)


def test_a_public_name_means_one_thing() -> None:
    meanings: defaultdict[str, list[object]] = defaultdict(list)
    for info in walk_packages(florist.__path__, "florist."):
        module = import_module(info.name) if not info.name.endswith("__main__") else None
        for name in getattr(module, "__all__", ()):
            meanings[name].append(getattr(module, name))
    for name in florist.__all__:
        meanings[name].append(getattr(florist, name))
    assert len(meanings) > len(florist.__all__)
    assert [name for name, objects in meanings.items() if any(each is not objects[0] for each in objects)] == []


def test_importing_florist_imports_no_torch() -> None:
    script = "import sys, florist; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout.strip() == b"False"
