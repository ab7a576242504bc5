"""Runs that die again and again, and end bit for bit as those that never did."""

import json
import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from florist.cli import main
from florist.config import read_config, to_toml
from florist.config.building import build
from florist.federation.history import RunDirectory
from florist.federation.records import RoundRecord

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")

CONFIG = """
[model]
name_or_path = "{model}"
[data]
path = "{data}"
test = "test.json"
partition = "iid"
validation_fraction = 0.2
prompt_template = "{{instruction}}\\n"
[lora]
ranks = [8, 4, 2]
target_modules = ["q_proj", "down_proj"]
[training]
learning_rate = 1e-2
batch_size = 4
steps = 3
threads = 1
[federation]
rounds = 6
fraction = 0.6
seed = 5
local_init = "{local_init}"
[aggregation]
method = "{method}"
[communication]
preset = "{preset}"
"""
KILLS = 10
FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod"}


class Mortal:
    """Counts training steps, evaluations and operations on files of the run, and may end the process at one."""

    def __init__(self, folder: Path, lifetime: float) -> None:
        self.folder, self.lifetime, self.age = str(folder), lifetime, 0

    def grow_older(self) -> None:
        self.age += 1
        if self.age > self.lifetime:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and self.folder in str(arguments[0]):
            self.grow_older()

    def evaluating(self, round_number: int) -> None:
        self.grow_older()

    def training(self, round_number: int, client_id: str, done: int, total: int) -> None:
        self.grow_older()

    def closed(self, record: RoundRecord) -> None:
        self.grow_older()


def live(config_file: Path, out: Path, lifetime: float, ages: Any) -> None:
    """Start the run, or go on with it where there is one."""
    torch.set_num_threads(1)
    mortal = Mortal(out.parent, lifetime)
    sys.addaudithook(mortal.hook)
    config = read_config(config_file)
    simulation = build(config)
    if out.exists():
        directory = RunDirectory.open(out)
    else:
        directory = simulation.start(out, to_toml(config), config.aggregation.method, 1, mortal)
    simulation.run(directory, mortal)
    ages.value = mortal.age


def resume_by_command(out: Path) -> None:
    torch.set_num_threads(1)
    sys.argv = ["florist", "simulate", "--resume", str(out), "--no-report"]
    main()


def child(config_file: Path, out: Path, lifetime: float) -> tuple[int | None, int]:
    """(exit status, events of the whole life)."""
    forking = multiprocessing.get_context("fork")
    ages = forking.Value("i", 0)
    process = forking.Process(target=live, args=(config_file, out, lifetime, ages))
    process.start()
    process.join()
    return process.exitcode, ages.value


def untimed(run: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    for record in records:
        del record["seconds"]
        for client in record["clients"]:
            del client["seconds"]
    return records


def contents(run: Path) -> dict[str, bytes]:
    """All that a run leaves, but for what has times in it."""
    files = [file for file in run.rglob("*") if file.is_file() and file.name not in {"rounds.jsonl", "current.json"}]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


@pytest.mark.parametrize(
    ("method", "local_init", "preset"),
    [
        pytest.param("florist", "warm", "paper", marks=pytest.mark.slow),
        pytest.param("fedex", "fresh", "paper", marks=pytest.mark.slow),
        ("florist", "aligned", "compact"),
    ],
)
@pytest.mark.slow
def test_killed_at_random_moments_a_run_ends_as_if_it_never_was(
    tiny_llama: Path, toy_data: Path, tmp_path: Path, method: str, local_init: str, preset: str
) -> None:
    config = tmp_path / "config.toml"
    text = CONFIG.format(model=tiny_llama, data=toy_data, method=method, local_init=local_init, preset=preset)
    config.write_text(text)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole, killed = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    status, events = child(config, whole, float("inf"))
    assert status == 0

    draw = random.Random(3)  # noqa: S311  # moments to die at, no secrets
    rounds_reached = set[int]()
    for _ in range(KILLS):
        status, _ = child(config, killed, draw.uniform(1, events / 3))
        assert status == -signal.SIGKILL
        lines = killed / "rounds.jsonl"
        rounds_reached.add(lines.read_text().count("\n") if lines.exists() else 0)
    assert len(rounds_reached) >= 4
    assert not (killed / "adapter").exists()
    last = multiprocessing.get_context("fork").Process(target=resume_by_command, args=(killed,))
    last.start()
    last.join()
    assert last.exitcode == 0
    assert untimed(killed) == untimed(whole)
    assert contents(killed) == contents(whole)


@pytest.mark.slow
def test_killed_at_every_moment_of_its_end_a_run_has_its_adapter_whole_or_not_at_all(
    tiny_llama: Path, toy_data: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    text = CONFIG.format(model=tiny_llama, data=toy_data, method="florist", local_init="fresh", preset="compact")
    config.write_text(text.replace("rounds = 6", "rounds = 1"))
    (tmp_path / "whole").mkdir()
    whole = tmp_path / "whole" / "run"
    _, events = child(config, whole, float("inf"))
    # The last events write test.json and the adapter.
    for lifetime in range(events - 12, events, 2):
        (tmp_path / str(lifetime)).mkdir()
        killed = tmp_path / str(lifetime) / "run"
        assert child(config, killed, lifetime)[0] == -signal.SIGKILL
        assert child(config, killed, float("inf"))[0] == 0
        assert contents(killed) == contents(whole)
