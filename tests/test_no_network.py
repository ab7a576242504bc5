"""Without a hub id nothing leaves the machine: commands work where no socket can be opened."""

import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from florist.cli import heartbeat, main, report_work


class _Opened(BaseException):
    """Nobody catches it by chance."""


@pytest.fixture
def without_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket.connect

    def refused(*arguments: Any, **keywords: Any) -> NoReturn:
        raise _Opened(f"a socket is opened: {arguments[1:]}")

    def local_alone(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            refused(self, address)
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_alone)
    monkeypatch.setattr(socket.socket, "connect_ex", refused)
    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["florist", *map(str, arguments)])
    monkeypatch.setattr(heartbeat, "EVERY", 3600.0)
    monkeypatch.setattr(report_work, "report_at_the_end", lambda _directory, _output: None)
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.mark.slow  # three commands
@pytest.mark.usefixtures("without_sockets")
def test_local_directories_need_no_network(
    saved_adapters: list[Path], tiny_llama: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, "aggregate", *saved_adapters, "-o", tmp_path / "merged") == 0
    assert run(monkeypatch, "inspect", *saved_adapters) == 0
    config = tmp_path / "config.toml"
    config.write_text(
        f"[model]\nname_or_path = '{tiny_llama}'\n[data]\npath = '{toy_data}'\ntest = 'test.json'\nmax_length = 64\n"
        "[lora]\nranks = [4, 2]\n[training]\nsteps = 1\n[federation]\nrounds = 1\n"
    )
    assert run(monkeypatch, "simulate", config, "-o", tmp_path / "run") == 0
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").is_file()


@pytest.mark.usefixtures("without_sockets")
def test_a_hub_id_opens_one(
    toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The test of the test: what names a hub id does reach for the network."""
    config = tmp_path / "config.toml"
    config.write_text(
        f"[model]\nname_or_path = 'nobody/nothing'\n[data]\npath = '{toy_data}'\n[lora]\nranks = [4, 2]\n"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    try:
        status = run(monkeypatch, "simulate", config, "-o", tmp_path / "run")
    except _Opened:
        return
    told = capsys.readouterr().err
    assert status == 2
    assert "nobody/nothing" in told
    assert len(told.strip().splitlines()) == 1
