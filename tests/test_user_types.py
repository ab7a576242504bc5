"""A small program that uses the public names has no type error: what is public is annotated."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "typing" / "user_program.py"
PYRIGHT = Path(sys.executable).with_name("pyright")


@pytest.mark.slow
@pytest.mark.skipif(not PYRIGHT.is_file(), reason="pyright is not installed")
def test_a_users_program_has_no_type_errors(tmp_path: Path) -> None:
    (tmp_path / PROGRAM.name).write_text(PROGRAM.read_text())
    # torch's own annotations are partial: its unknown types are not the program's.
    settings = {"typeCheckingMode": "strict", "reportUnknownMemberType": False, "reportUnknownVariableType": False}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [PYRIGHT, "--pythonpath", sys.executable, "--outputjson"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stdout)["generalDiagnostics"]
    assert [(each["range"]["start"]["line"] + 1, each["message"]) for each in found] == []
