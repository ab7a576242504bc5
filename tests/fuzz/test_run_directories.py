"""Directories of runs, corrupted in many ways: they end with the same adapter, or are refused and left as they are."""

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from florist.config import read_config, to_toml
from florist.config.building import build
from florist.config.resuming import changes, config_to_resume
from florist.config.sections import Config
from florist.errors import FloristError
from florist.federation.history import RunDirectory
from florist.federation.records import RoundRecord
from florist.federation.simulation import Simulation
from tests.stored_runs import tree
from tests.tiny_federation import Silent, configure

from .mutations import mutated_bytes, mutated_document
from .oracle import refused_or_taken

QUICK, ALL = 30, 600
RESULT = ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "adapter/florist.json", "test.json")


class InterruptedRunError(Exception):
    """Ends a run after a round."""


class Interrupting(Silent):
    def closed(self, record: RoundRecord) -> None:
        if record.round == 2:
            raise InterruptedRunError


@dataclass(frozen=True)
class Runs:
    """A run that has ended, and the same one after two of its three rounds."""

    config: Config
    simulation: Simulation
    ended: Path
    half: Path
    result: dict[str, bytes]


@pytest.fixture(scope="module")
def runs(tiny_llama: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    config = read_config(
        configure(folder, tiny_llama, toy_data, steps=1, rounds=3),
        ["lora.target_modules=['q_proj']", "data.validation_fraction=0.2", "federation.keep_rounds=sent"],
    )
    simulation = build(config)
    half = simulation.start(folder / "half", to_toml(config), "florist", 1, Silent())
    with pytest.raises(InterruptedRunError):
        simulation.run(half, Interrupting())
    ended = RunDirectory(shutil.copytree(half.path, folder / "ended"))
    simulation.run(ended, Silent())
    result = {name: (ended.path / name).read_bytes() for name in RESULT}
    return Runs(config, simulation, ended.path, half.path, result)


def files_of(run: Path) -> list[Path]:
    return sorted(each for each in run.rglob("*") if each.is_file() and not each.name.startswith(".lock"))


def flipped(run: Path, rng: random.Random, _: Path) -> None:
    file = rng.choice(files_of(run))
    file.write_bytes(mutated_bytes(file.read_bytes(), rng))


def one_bit(run: Path, rng: random.Random, _: Path) -> None:
    file = rng.choice([each for each in files_of(run) if each.stat().st_size])
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def another_document(run: Path, rng: random.Random, _: Path) -> None:
    file = rng.choice(
        [
            each
            for each in files_of(run)
            if (each.suffix in {".json", ".jsonl"} and each.parent == run) or each.name == "current.json"
        ]
    )
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    place = rng.randrange(len(lines))
    try:
        lines[place] = json.dumps(mutated_document(json.loads(lines[place]), rng))
    except RecursionError:  # no encoder writes what is nested so deeply
        lines[place] = '{"last": ' + "[" * 5_000 + "]" * 5_000 + "}"
    file.write_text("\n".join(lines) + "\n")


def removed(run: Path, rng: random.Random, _: Path) -> None:
    rng.choice(files_of(run)).unlink()


def emptied(run: Path, rng: random.Random, _: Path) -> None:
    rng.choice(files_of(run)).write_bytes(b"")


def folder_removed(run: Path, rng: random.Random, _: Path) -> None:
    shutil.rmtree(rng.choice(sorted(each for each in run.rglob("*") if each.is_dir())))


def swapped(run: Path, rng: random.Random, _: Path) -> None:
    one = rng.choice([each for each in files_of(run) if each.suffix == ".safetensors"])
    other = rng.choice([each for each in files_of(run) if each.suffix == ".safetensors" and each != one])
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def of_another_run(run: Path, rng: random.Random, other: Path) -> None:
    file = rng.choice(files_of(other))
    (run / file.relative_to(other)).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, run / file.relative_to(other))


def no_file(run: Path, rng: random.Random, _: Path) -> None:
    file = rng.choice(files_of(run))
    file.unlink()
    make: Callable[[Path], object] = rng.choice(
        [
            os.mkfifo,
            Path.mkdir,
            lambda path: path.symlink_to("/dev/zero"),
            lambda path: path.symlink_to("nowhere"),
            lambda path: path.symlink_to(path.name),
            lambda path: path.symlink_to(path.parent, target_is_directory=True),
        ]
    )
    make(file)


def more(run: Path, rng: random.Random, _: Path) -> None:
    file = rng.choice(files_of(run))
    with file.open("ab") as stream:
        stream.write(rng.choice([b"\0", b"{}\n", b"\n", rng.randbytes(40), file.read_bytes()]))


def left_over(run: Path, rng: random.Random, _: Path) -> None:
    """What a killed process leaves, which is no damage."""
    rounds = sorted((run / "state").glob("round-*"))
    target = run / "state" / rng.choice(["round-0004", ".round-0004.00112233aabbccdd", "round-0009"])
    shutil.copytree(rng.choice(rounds), target)


CORRUPTIONS = (
    flipped,
    one_bit,
    another_document,
    removed,
    emptied,
    folder_removed,
    swapped,
    of_another_run,
    no_file,
    more,
    left_over,
)


def unlocked(run: Path) -> dict[str, object]:
    """All that is in a directory but for the lock, which a process takes that looks whether it can go on."""
    return {name: held for name, held in tree(run).items() if not Path(name).name.startswith(".lock")}


def resume(run: Path, runs: Runs) -> bool:
    """Go on with a run as the command does; return whether its configuration is that of before."""
    directory = RunDirectory.open(run)
    config = config_to_resume(directory)
    if config != runs.config:
        assert changes(directory, config), "another configuration, and nothing is said of it"
        return False
    runs.simulation.run(directory, Silent())
    return True


def corrupt(number: int, runs: Runs, folder: Path) -> str:
    """Play one case; return what became of it."""
    rng = random.Random(number)  # noqa: S311  # no secrets
    source, other = rng.sample([runs.ended, runs.half], 2)
    run = shutil.copytree(source, folder / f"run-{number}")
    corruption = CORRUPTIONS[number % len(CORRUPTIONS)]
    corruption(run, rng, other)
    before, became = unlocked(run), "refused"
    with refused_or_taken(f"{number} ({corruption.__name__} of the {source.name} run)"):
        try:
            same = resume(run, runs)
        except FloristError:
            assert unlocked(run) == before, "a run that is refused was changed"
            raise
        became = "ended" if same else "configured otherwise"
        if same:
            for name, content in runs.result.items():
                assert (run / name).read_bytes() == content, f"another {name}"
    shutil.rmtree(run)
    return became


def test_some_corruptions(runs: Runs, tmp_path: Path) -> None:
    found = {corrupt(number, runs, tmp_path) for number in range(QUICK)}
    assert found >= {"refused", "ended"}


@pytest.mark.slow
def test_many_corruptions(runs: Runs, tmp_path: Path) -> None:
    found = [corrupt(number, runs, tmp_path) for number in range(QUICK, ALL)]
    assert found.count("refused") > 200
    assert found.count("ended") > 100
