"""Shell completion, as a shell asks for it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from .running import COMMAND, ENVIRONMENT

BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="there is no bash")

COMPLETE = """
eval "$({command} --show-completion)"
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_florist_completion {command}
echo "${{COMPREPLY[@]}}"
"""


def bash(script: str, home: Path) -> str:
    done = subprocess.run(
        [BASH or "", "-c", script], env=ENVIRONMENT | {"HOME": str(home)}, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("florist sim", ["simulate"]),
        ("florist aggregate --allow", ["--allow-base-mismatch"]),
        ("florist aggregate --method fl", ["florist", "flora", "flexlora"]),
        # bash completes files where florist names nothing (complete -o default).
        ("florist simulate con", []),
        ("florist tune run -o ou", []),
    ],
)
def test_bash_completes_commands_options_and_methods_and_leaves_paths_to_itself(
    words: str, expected: list[str], tmp_path: Path
) -> None:
    assert bash(COMPLETE.format(command=COMMAND, words=words), tmp_path).split() == expected


def test_it_installs_itself_into_the_files_of_the_shell(tmp_path: Path) -> None:
    told = bash(f"{COMMAND} --install-completion; true", tmp_path)
    assert "bash completion installed in" in told
    assert "florist.sh" in (tmp_path / ".bashrc").read_text()
    script = (tmp_path / ".bash_completions" / "florist.sh").read_text()
    assert "complete -o default -F _florist_completion florist" in script
