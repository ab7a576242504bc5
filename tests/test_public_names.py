import subprocess
import sys

import pytest

import florist


@pytest.mark.parametrize("name", florist.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(florist, name).__doc__
    assert name in dir(florist)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'florist' has no attribute 'aggregat'"):
        florist.aggregat  # noqa: B018  # the access is the test


def test_importing_florist_imports_no_torch() -> None:
    script = "import sys, florist; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout.strip() == b"False"
