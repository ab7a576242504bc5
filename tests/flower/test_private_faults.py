"""Masked rounds between programs of their own, over TLS: a site is killed in each phase, and the server in one."""

import shutil
import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the example runs on Linux", allow_module_level=True)
pytest.importorskip("flwr", reason="flwr comes with the flower extra")

from examples.flower.loopback import deploy, simulate

from florist.config import DEMONSTRATION
from florist.federation.history import RunDirectory
from florist.flower.messages import KEYS, REVEAL, SHARES, WORDS
from tests.federation.test_simulation import run as run_inside
from tests.federation.test_simulation import weights
from tests.flower.living import called_with_files_of
from tests.flower.test_faults import LONG, ROOT, Signals, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.soak]

WAITS = {
    "a": f"{SHARES}-1",
    "b": f"{WORDS}-1",
    "c": f"{WORDS}-2 {REVEAL}-3",
    "d": f"{KEYS}-4",
    "e": "",
    "f": "",
}
"""The phases and rounds in which a site waits, and is killed; in round 2 it is the server that is."""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    shutil.copytree(Path(__file__).with_name("private_app"), folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "LICENSE", folder)
    return folder


def test_sites_that_die_in_any_phase_and_a_server_that_dies_cost_no_more_than_themselves(
    app: Path, tmp_path: Path
) -> None:
    programs, run, signals = tmp_path / "programs", tmp_path / "run", Signals(tmp_path / "signals")
    sites = [
        {"client-id": name, "signals": str(signals.folder), "wait-in": waits, "partition-id": place}
        for place, (name, waits) in enumerate(WAITS.items())
    ]

    def closed() -> int:
        return len(RunDirectory.open(run).records()) if (run / "rounds.jsonl").exists() else 0

    with deploy(programs, sites) as federation:
        number = federation.submit(app, {"run": str(run), "rounds": 4, "clients": 6})
        for name, signal in (("supernode-0", f"a-{SHARES}-1"), ("supernode-1", f"b-{WORDS}-1")):
            signals.wait(signal)
            federation.kill(name)
        wait_for(lambda: closed() == 1)
        signals.wait(f"c-{WORDS}-2", f"d-{WORDS}-2")
        federation.kill("superexec", "flwr-serverapp")
        signals.go(f"c-{WORDS}-2")
        number = federation.submit(app, {"run": str(run), "rounds": 4, "clients": 4})
        for name, signal in (("supernode-2", f"c-{REVEAL}-3"), ("supernode-3", f"d-{KEYS}-4")):
            signals.wait(signal)
            federation.kill(name)
        status = federation.wait(number, LONG)
        log = federation.server_log(number)
        assert status.completed, log
    assert called_with_files_of(programs) == []
    records = RunDirectory.open(run).records()
    assert [line.aggregated for line in records] == [True, False, True, False], log
    assert [[client.client_id for client in line.clients] for line in records] == [
        ["c", "d", "e", "f"],
        [],
        ["c", "d", "e", "f"],
        [],
    ]
    assert {drop.client_id: drop.reason for drop in records[0].dropped}.keys() == {"a", "b"}
    assert "asked for masked words, of which clients send none twice" in str(records[1].privacy)
    assert "round 3: c reveals no shares" in log
    assert "1 too few" in str(records[3].privacy)


def test_the_example_under_masks_gives_the_bits_of_one_process(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray comes with the flower extra")
    settings = {"aggregation.method": "linear", "privacy.secure_aggregation": True, "training.steps": 2}
    directory = tmp_path / "run"
    with simulate(tmp_path / "programs") as federation:
        given = {**settings, "federation.rounds": 1, "flower.run": str(directory), "flower.evaluation": "none"}
        resources = {"num-supernodes": 4, "client-resources-num-cpus": 1}
        number = federation.submit(ROOT / "examples" / "flower", given, resources)
        status = federation.wait(number, LONG)
        assert status.completed, federation.server_log(number)
    (line,) = RunDirectory.open(directory).records()
    assert line.privacy is not None
    assert line.privacy.masked
    assert len(line.clients) == 4
    overrides = ["aggregation.method=linear", "privacy.secure_aggregation=true", "training.steps=2"]
    inside = run_inside(DEMONSTRATION, tmp_path / "in-process", *overrides, "federation.rounds=1", "training.threads=1")
    assert weights(directory) == weights(inside.path)
