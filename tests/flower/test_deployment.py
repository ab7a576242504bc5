"""Federations of real programs: who is let in, what a fault does, and that nothing outlives them."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the example runs on Linux", allow_module_level=True)
pytest.importorskip("flwr", reason="flwr comes with the flower extra")

from examples.flower.loopback import Deployment, FlowerError, Patience, ProgramError, deploy, partitions, simulate
from examples.flower.loopback.certificates import issue_server_certificate

from tests.flower.living import called_with_files_of, living

pytestmark = pytest.mark.slow

LICENSE = Path(__file__).parents[2] / "LICENSE"
PROJECT = """
[project]
name = "echo"
version = "1.0.0"
description = "Sends an array to every node and has it back."
license = { file = "LICENSE" }
dependencies = ["flwr>=1.41.0"]
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[tool.flwr.app]
publisher = "tests"
fab-format-version = 1
flwr-version-target = "1.41.0"
[tool.flwr.app.components]
serverapp = "echo.server:app"
clientapp = "echo.client:app"
[tool.flwr.app.config]
nodes = 1
rounds = 1
seconds = 0.0
"""
SERVER = """
import logging
import time
import numpy as np
from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()

@app.main()
def main(grid: Grid, context: Context) -> None:
    while len(list(grid.get_node_ids())) < context.run_config["nodes"]:
        time.sleep(0.2)
    for number in range(context.run_config["rounds"]):
        content = RecordDict({"sent": ArrayRecord([np.full(3, number)])})
        messages = [Message(content, node, MessageType.TRAIN) for node in grid.get_node_ids()]
        replies = list(grid.send_and_receive(messages))
        records = [reply.content for reply in replies if reply.has_content()]
        assert all(record["sent"].to_numpy_ndarrays()[0].tolist() == [number] * 3 for record in records)
        sites = sorted(record["who"]["site"] for record in records)
        logging.getLogger("flwr").info("round %d: %s", number, sites)
"""
CLIENT = """
import logging
import time
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message: Message, context: Context) -> Message:
    logging.getLogger("flwr").info("training")
    time.sleep(context.run_config["seconds"])
    config = context.node_config
    who = ConfigRecord({"site": config.get("site", str(config["partition-id"]))})
    return Message(RecordDict({"sent": message.content["sent"], "who": who}), reply_to=message)
"""
SITES = [{**config, "site": f"site of {config['partition-id']}"} for config in partitions(2)]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("app")
    (folder / "echo").mkdir()
    for name, text in {"pyproject.toml": PROJECT, "echo/server.py": SERVER, "echo/client.py": CLIENT}.items():
        (folder / name).write_text(text)
    (folder / "echo" / "__init__.py").touch()
    shutil.copy(LICENSE, folder)
    return folder


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deploy(tmp_path_factory.mktemp("federation"), SITES) as running:
        yield running


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_run_survives_the_death_of_the_superlink(federation: Deployment, app: Path) -> None:
    run_id = federation.submit(app, {"nodes": 2, "rounds": 2, "seconds": 2.0})
    wait_for(lambda: all("training" in federation.log(f"supernode-{number}") for number in range(2)))
    federation.kill("superlink")
    assert not federation.answers()
    federation.start("superlink")
    status = federation.wait(run_id, 120)
    assert status.completed, status
    lines = federation.server_log(run_id)
    assert "round 0: ['site of 0', 'site of 1']" in lines
    assert "round 1: ['site of 0', 'site of 1']" in lines


def test_every_program_has_its_children_and_its_memory(federation: Deployment) -> None:
    commands = {name: [process.command for process in federation.processes(name)] for name in federation.programs}
    assert commands["superlink"] == ["flower-superlin"]
    assert commands["superexec"] == ["flower-superexe"]
    assert commands["supernode-1"] == ["flower-supernod", "flower-superexe"]
    assert all(2**25 < federation.processes(name)[0].resident_bytes < 2**30 for name in commands)


def test_a_supernode_that_nobody_registered_is_refused(federation: Deployment) -> None:
    federation.add_supernode("stranger", {}, federation.authority)
    with pytest.raises(ProgramError, match=r"(?s)stranger ended with exit status 1.*Failed to activate SuperNode"):
        federation.start("stranger")


def test_a_supernode_without_the_authoritys_certificate_does_not_connect(
    federation: Deployment, tmp_path: Path
) -> None:
    keys = federation.add_supernode("misled", {}, issue_server_certificate(tmp_path).authority)
    federation.register("misled", keys.public)
    with pytest.raises(ProgramError, match=r"(?s)misled ended with exit status 1.*CERTIFICATE_VERIFY_FAILED"):
        federation.start("misled")
    assert f"Activated node_id={federation.node_ids['misled']}" not in federation.log("superlink")


def test_flowers_refusal_of_an_app_is_passed_on(federation: Deployment, tmp_path: Path) -> None:
    # In JSON, flwr says so with exit status 0.
    with pytest.raises(FlowerError, match=r"(?s)flwr run .*exit status 0.*pyproject\.toml"):
        federation.submit(tmp_path, {})


def test_nothing_outlives_an_exception(tmp_path: Path) -> None:
    pids: list[int] = []

    def fail() -> None:
        with deploy(tmp_path, partitions(1)) as federation:
            pids.extend(pid for name in federation.programs for pid in federation.pids(name))
            assert len(living(pids)) >= 4
            assert len(called_with_files_of(tmp_path)) == 3
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert living(pids) == []
    assert called_with_files_of(tmp_path) == []


def test_nothing_outlives_a_program_that_does_not_start(tmp_path: Path) -> None:
    patience = Patience(start=0.01)
    with (
        pytest.raises(ProgramError, match="superlink runs but was not ready within 0 s"),
        deploy(tmp_path, partitions(1), patience=patience),
    ):
        pytest.fail("the SuperLink cannot be ready so soon")
    assert called_with_files_of(tmp_path) == []


def test_a_directory_is_used_once(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    with pytest.raises(FileExistsError, match="keys"), deploy(tmp_path, []):
        pytest.fail("old keys must not be mixed with new ones")


def test_a_simulation_runs_and_leaves_nothing(app: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray comes with the flower extra")
    with simulate(tmp_path / "simulation") as federation:
        run_id = federation.submit(app, {"nodes": 3}, {"num-supernodes": 3, "client-resources-num-cpus": 1})
        wait_for(lambda: any(process.command == "flwr-simulation" for process in federation.processes("superexec")))
        status = federation.wait(run_id, 180)
        assert status.completed, status
        assert "round 0: ['0', '1', '2']" in federation.server_log(run_id)
        pids = [pid for name in federation.programs for pid in federation.pids(name)]
        assert len(pids) >= 2
    assert living(pids) == []
