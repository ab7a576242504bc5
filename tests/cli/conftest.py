import subprocess
import sys

import huggingface_hub
import pytest

from florist.cli import heartbeat, main, report_work

from .hub import Hub
from .running import COMMAND, ENVIRONMENT, Result, Run


@pytest.fixture(autouse=True)
def _without_pages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page that simulate and compare write at their end takes a second; test_report is about it."""
    if request.module.__name__.rpartition(".")[2] != "test_report":
        monkeypatch.setattr(report_work, "report_at_the_end", lambda _directory, _output: None)


@pytest.fixture
def florist(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""

    def run(*arguments: object, columns: int = 120) -> Result:
        monkeypatch.setattr(sys, "argv", ["florist", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(heartbeat, "EVERY", 3600.0)  # what is printed must not depend on how busy the machine is
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return Result(int(end.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def process() -> Run:
    """Run the installed command in a process of its own."""

    def run(*arguments: object) -> Result:
        done = subprocess.run(
            [COMMAND, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub, as far as this process sees it."""
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", hub.answer)
    return hub
