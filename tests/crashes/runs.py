"""A run with everything that state is kept of, whose rounds take a moment."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jaxtyping
import torch

from florist.config import read_config, to_toml
from florist.config.building import build
from florist.config.sections import Config
from florist.federation.history import RunDirectory
from florist.federation.simulation import Simulation
from florist.seeding import generator
from tests.federation.test_killed_runs import contents, untimed
from tests.tiny_federation import Silent

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
target_modules = ["q_proj"]
[training]
learning_rate = 1e-2
batch_size = 4
steps = 3
threads = 1
[federation]
rounds = {rounds}
fraction = 0.5
seed = 5
best_round = true
early_stopping = 8
[communication]
preset = "compact"
"""


def drawn(model: Any, examples: Any, context: Any) -> float:
    """Trains in no time: adds to every trainable parameter what the seed of the client says."""
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                draw = torch.randn(parameter.shape, generator=generator(context.seed, name))
                parameter.add_(draw, alpha=0.02)
    context.on_step(1, 1)
    return float(context.seed % 1000) / 1000


@dataclass(frozen=True)
class Prepared:
    """A run that can be played again and again in forked processes.

    Attributes:
        config: its configuration.
        simulation: what plays it.
        remembered: what came of a round, by all that goes into it.
    """

    config: Config
    simulation: Simulation
    remembered: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, file: Path) -> "Prepared":
        """Load the model."""
        config = read_config(file)
        return cls(config, replace(build(config), local_training=drawn))

    def play(self, path: Path) -> None:
        """Begin the run, or go on with it where it was begun; in a process that ends with it."""
        torch.set_num_threads(1)
        jaxtyping.config.update("jaxtyping_disable", True)  # the runs of other tests are checked
        if path.exists():
            directory = RunDirectory.open(path)
        else:
            method = self.config.aggregation.method
            directory = self.simulation.start(path, to_toml(self.config), method, 1, Silent())
        self.simulation.run(directory, Silent())


def prepared(folder: Path, model: Path, data: Path, rounds: int) -> Prepared:
    """The run of a number of rounds."""
    file = folder / "config.toml"
    file.write_text(CONFIG.format(model=model, data=data, rounds=rounds))
    return Prepared.of(file)


def assert_same(path: Path, whole: Path) -> None:
    """Check that a run left the files and the records of another, but for times, and nothing else."""
    assert untimed(path) == untimed(whole)
    found, expected = contents(path), contents(whole)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    assert RunDirectory.open(path).records()[-1].round == len(untimed(whole))


def remember_rounds(remembered: dict[str, Any]) -> None:
    """Let every simulation of this process play a round that is known by heart in no time.

    A round is looked up by every bit of what goes into it. Where one differs it is played, and differs itself.
    """
    play = Simulation._round

    def round_(self: Simulation, state: Any, owed: Any, observer: Any, claims: Any) -> Any:
        key = digest((state, owed, claims))
        if key not in remembered:
            remembered[key] = play(self, state, owed, observer, claims)
        return remembered[key]

    Simulation._round = round_  # type: ignore[method-assign]


def digest(content: Any) -> str:
    """A hash of all that some frozen objects hold."""
    found = hashlib.sha256()
    _feed(content, found.update)
    return found.hexdigest()


def _feed(content: Any, update: Any) -> None:
    if isinstance(content, torch.Tensor):
        update(f"{content.dtype} {tuple(content.shape)} ".encode())
        update(content.detach().contiguous().numpy().tobytes())
    elif dataclasses.is_dataclass(content):
        for each in dataclasses.fields(content):
            update(each.name.encode())
            _feed(getattr(content, each.name), update)
    elif isinstance(content, Mapping):
        for name in sorted(content):
            update(f"{name}: ".encode())
            _feed(content[name], update)
    elif isinstance(content, tuple | list):
        for each in content:
            _feed(each, update)
    else:
        update(repr(content).encode())
