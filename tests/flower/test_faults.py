"""florist's own apps as programs of their own, over TLS, and what goes wrong between sites.

A reply that arrives twice is not here: Flower's SuperLink takes one reply to a message and drops what comes after.
`test_strategy` delivers it twice.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaForCausalLM

if sys.platform != "linux":
    pytest.skip("the example runs on Linux", allow_module_level=True)
pytest.importorskip("flwr", reason="flwr comes with the flower extra")

from examples.flower.loopback import deploy, simulate

from florist.config import DEMONSTRATION
from florist.federation.history import RunDirectory
from florist.federation.state import ServerState
from tests.flower.living import called_with_files_of
from tests.tiny_federation import configure, run, weights

pytestmark = [pytest.mark.slow, pytest.mark.soak]

ROOT = Path(__file__).parents[2]
UNCOUNTED = 'evaluation = "none"'
PLAIN = '[communication]\npreset = "plain"'
COMPACT = '[communication]\npreset = "compact"'
HEARTBEATS_LAPSE = 60.0
"""Seconds after which Flower gives up a node that is not heard of."""
NAMES = ["client_0", "client_1"]
LONG = 600.0
"""Seconds to wait for what must come, at most."""


def site(
    client_id: str, partition: int, signals: "Signals", faults: Mapping[int, str], **more: str
) -> dict[str, str | int]:
    """A node config; keyword arguments have __ where a key has a dot."""
    wrong = {f"fault-{number}": fault for number, fault in faults.items()}
    rest = {key.replace("__", "."): value for key, value in more.items()}
    return {"client-id": client_id, "partition-id": partition, "signals": str(signals.folder), **wrong, **rest}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


def lines(directory: Path) -> list[dict[str, Any]]:
    file = directory / "rounds.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def counted(line: Mapping[str, Any]) -> list[str]:
    return [client["client_id"] for client in line["clients"]]


def reasons(line: Mapping[str, Any]) -> dict[str, str]:
    found = {drop["client_id"]: drop["reason"] for drop in line["dropped"]}
    assert len(found) == len(line["dropped"])
    return found


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("app") / "faulty"
    shutil.copytree(Path(__file__).with_name("faulty_app"), folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "LICENSE", folder)
    return folder


@pytest.fixture(scope="module")
def seconds_to_start() -> float:
    """Seconds in which a process of a client is ready to train, on this machine as loaded as it is now."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import florist.flower.configured_client"], check=True, timeout=300)
    return time.monotonic() - started


@pytest.fixture(scope="module")
def other_base(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bases") / "other"
    shutil.copytree(tiny_llama, directory)
    model = LlamaForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    model.save_pretrained(directory)
    return directory


class Signals:
    """Who has been asked to train in which round, and who may go on with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def wait(self, *names: str) -> None:
        wait_for(lambda: all((self.folder / name).exists() for name in names))

    def go(self, *names: str) -> None:
        for name in names:
            (self.folder / f"{name}.go").touch()


@dataclass(frozen=True)
class Played:
    """A run that has ended."""

    directory: Path
    round_timeout: float
    log: str


@pytest.fixture(scope="module")
def played(
    app: Path,
    tiny_llama: Path,
    toy_data: Path,
    other_base: Path,
    seconds_to_start: float,
    tmp_path_factory: pytest.TempPathFactory,
) -> Played:
    """Four rounds in which everybody but one client fails in some way."""
    folder = tmp_path_factory.mktemp("faults")
    file = configure(folder, tiny_llama, toy_data, rounds=4, extra=f"min_replies = 1\n{PLAIN}\n[flower]\n{UNCOUNTED}")
    directory, signals = folder / "run", Signals(folder / "signals")
    round_timeout = HEARTBEATS_LAPSE + 8 * seconds_to_start
    sites = [
        site("steady", 0, signals, {3: "wait", 4: "count"}),
        site("liar", 1, signals, {1: "nan", 2: "wait", 3: "shapes", 4: "round"}),
        site("mortal", 0, signals, {2: "wait"}),
        site("sleeper", 1, signals, {2: "wait"}),
        site("foreigner", 1, signals, {}, model__name_or_path=str(other_base)),
    ]
    settings = {
        "config": str(file),
        "flower.run": str(directory),
        "flower.min_clients": len(sites) - 1,
        "flower.round_timeout": round_timeout,
    }
    with deploy(folder / "programs", sites) as federation:
        number = federation.submit(app, settings)
        # Round 2: one is killed, one hangs with all its processes, one is too slow.
        signals.wait("mortal-2", "sleeper-2", "liar-2")
        federation.kill("supernode-2")
        federation.pause("supernode-3")
        wait_for(lambda: len(lines(directory)) == 2)
        signals.go("liar-2", "sleeper-2")
        # Round 3 goes on without the two, and ends when they are back.
        signals.wait("steady-3")
        federation.resume("supernode-3")
        federation.start("supernode-2")
        signals.go("steady-3")
        status = federation.wait(number, LONG)
        log = federation.server_log(number)
        assert status.completed, log
    assert called_with_files_of(folder / "programs") == []
    return Played(directory, round_timeout, log)


def test_a_client_that_fails_costs_a_round_its_own_update(played: Played) -> None:
    first, second, third, fourth = lines(played.directory)
    assert counted(first) == ["mortal", "sleeper", "steady"]
    assert reasons(first).keys() == {"liar"}
    assert reasons(first)["liar"].endswith("holds NaN or inf")
    assert counted(second) == ["steady"]
    assert reasons(second).keys() == {"liar", "mortal", "sleeper"}
    assert reasons(second)["liar"] == f"no reply within {played.round_timeout:g} s"
    assert "Node Unavailable" in reasons(second)["mortal"]
    assert "Node Unavailable" in reasons(second)["sleeper"]
    assert counted(third) == ["steady"]
    assert reasons(third).keys() == {"liar", "mortal", "sleeper"}
    assert ": expected the shape (" in reasons(third)["liar"]
    assert reasons(third)["mortal"] == reasons(third)["sleeper"] == "not connected when the round began"
    assert counted(fourth) == ["mortal", "sleeper"]
    assert reasons(fourth) == {
        "liar": "expected an update of round 4, got one of round 3",
        "steady": "expected 12 examples, as introduced, got 12000",
    }


def test_the_log_says_who_is_dropped_and_who_is_refused(played: Played) -> None:
    for line in lines(played.directory):
        for client_id, reason in reasons(line).items():
            assert f"round {line['round']}: {client_id} is dropped: {reason}" in played.log
    assert "is refused: foreigner: expected the base " in played.log


def test_a_client_that_returns_is_sent_what_it_missed(played: Played) -> None:
    """Who kept what it held gets the sum of the rest; who lost everything, the global adapter."""
    state, _ = RunDirectory.open(played.directory).load(ServerState.initial())
    assert {name: state.holds[name] for name in ("mortal", "sleeper")} == {"mortal": 3, "sleeper": 3}
    sent = {client["client_id"]: client["download_bytes"] for client in lines(played.directory)[3]["clients"]}
    missed = [line["broadcast_bytes"] for line in lines(played.directory)[:3]]
    rows = sum(min(4, factor.rank) * factor.A.shape[1] * 4 for factor in state.broadcasts[3].values())
    assert missed[2] + rows < sent["sleeper"] <= sum(missed) + rows
    assert "round 4: mortal holds round -1, and is sent what it misses" in played.log


def test_the_final_adapter_is_the_global_adapter(played: Played, tiny_llama: Path) -> None:
    saved = RunDirectory.open(played.directory)
    state, _ = saved.load(ServerState.initial())
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    before = {name: module.weight.clone() for name, module in base.named_modules() if name in state.cumulative}
    merged = PeftModel.from_pretrained(base, saved.adapter).merge_and_unload()
    assert before.keys() == state.cumulative.keys()
    for name, weight in before.items():
        expected = weight.double() + state.cumulative[name].delta_weight().double()
        torch.testing.assert_close(merged.get_submodule(name).weight.double(), expected, atol=1e-5, rtol=0)


def test_what_fails_at_the_server_changes_no_bit(app: Path, tiny_llama: Path, toy_data: Path, tmp_path: Path) -> None:
    file = configure(tmp_path, tiny_llama, toy_data, rounds=3, extra=f"{PLAIN}\n[flower]\n{UNCOUNTED}")
    directory, programs, signals = tmp_path / "run", tmp_path / "programs", Signals(tmp_path / "signals")
    sites = [site(name, number, signals, {2: "wait", 3: "wait"}) for number, name in enumerate(NAMES)]
    settings = {"config": str(file), "flower.run": str(directory), "flower.min_clients": 2}

    with deploy(programs, sites) as federation:
        before = federation.submit(app, settings)
        signals.wait("client_0-2", "client_1-2")
        federation.kill("superlink")
        signals.go("client_0-2", "client_1-2")
        federation.start("superlink")
        signals.wait("client_0-3", "client_1-3")
        federation.kill("superexec", "flwr-serverapp")
        signals.go("client_0-3", "client_1-3")
        after = federation.submit(app, settings)
        status = federation.wait(after, LONG)
        assert status.completed, federation.server_log(after)
        assert "resumed after round 2: 1 rounds to go" in federation.server_log(after)
        assert "round 3: asked to train: client_0, client_1" in federation.server_log(before)
    assert_as_in_one_process(file, directory, programs)


def test_what_clients_hold_back_survives_the_death_of_the_superlink(
    app: Path, tiny_llama: Path, toy_data: Path, tmp_path: Path
) -> None:
    file = configure(tmp_path, tiny_llama, toy_data, rounds=3, extra=f"{COMPACT}\n[flower]\n{UNCOUNTED}")
    directory, programs, signals = tmp_path / "run", tmp_path / "programs", Signals(tmp_path / "signals")
    sites = [site(name, number, signals, {2: "wait"}) for number, name in enumerate(NAMES)]
    with deploy(programs, sites) as federation:
        number = federation.submit(app, {"config": str(file), "flower.run": str(directory), "flower.min_clients": 2})
        signals.wait("client_0-2", "client_1-2")
        federation.kill("superlink")
        signals.go("client_0-2", "client_1-2")
        federation.start("superlink")
        status = federation.wait(number, LONG)
        assert status.completed, federation.server_log(number)
    assert all(client["held_back"] > 0 for line in lines(directory) for client in line["clients"])
    assert_as_in_one_process(file, directory, programs)


def assert_as_in_one_process(file: Path, directory: Path, programs: Path) -> None:
    assert called_with_files_of(programs) == []
    assert [line["round"] for line in lines(directory)] == [1, 2, 3]
    assert [counted(line) for line in lines(directory)] == [NAMES] * 3
    assert all(line["dropped"] == [] for line in lines(directory))
    assert weights(directory) == weights(run(file, directory.with_name("in-process")).path)


def test_a_simulation_of_the_example_gives_the_bits_of_one_process(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray comes with the flower extra")
    ranks = "[32, 16, 8, 4, 32, 16, 8, 4]"
    settings = {"data.num_clients": 8, "lora.ranks": ranks, "training.steps": 2, "federation.rounds": 1}
    directory = tmp_path / "run"
    with simulate(tmp_path / "programs") as federation:
        given = {**settings, "flower.run": str(directory), "flower.min_clients": 8, "flower.evaluation": "none"}
        resources = {"num-supernodes": 8, "client-resources-num-cpus": 1}
        number = federation.submit(ROOT / "examples" / "flower", given, resources)
        status = federation.wait(number, LONG)
        assert status.completed, federation.server_log(number)
    (line,) = lines(directory)
    assert counted(line) == [f"client_{number}" for number in range(8)]
    overrides = [f"{key}={value}" for key, value in settings.items()]
    inside = run(DEMONSTRATION, tmp_path / "in-process", *overrides, "training.threads=1")
    assert weights(directory) == weights(inside.path)
