"""A federation of a tiny model that is trained in seconds: its configuration, and runs of it."""

from pathlib import Path

from florist.config import read_config, to_toml
from florist.config.building import build
from florist.federation.history import RunDirectory
from florist.federation.records import RoundRecord
from florist.federation.simulation import Simulation

FAST = """
[model]
name_or_path = "{model}"
[data]
path = "{data}"
test = "test.json"
prompt_template = "{{instruction}}\\n"
[lora]
ranks = [8, 4]
[training]
learning_rate = 1e-2
batch_size = 4
steps = {steps}
threads = 1
[federation]
rounds = {rounds}
{extra}
"""


class Silent:
    def evaluating(self, round_number: int) -> None: ...
    def training(self, round_number: int, client_id: str, done: int, total: int) -> None: ...
    def closed(self, record: RoundRecord) -> None: ...


PLAIN = "communication.preset=plain"


def configure(path: Path, model: Path, data: Path, *, steps: int = 4, rounds: int = 2, extra: str = "") -> Path:
    file = path / "config.toml"
    file.write_text(FAST.format(model=model, data=data, steps=steps, rounds=rounds, extra=extra))
    return file


def started(config_file: Path, out: Path, *overrides: str) -> tuple[Simulation, RunDirectory]:
    """A run of a configuration before its first round, on one thread."""
    config = read_config(config_file, overrides)
    simulation = build(config)
    return simulation, simulation.start(out, to_toml(config), config.aggregation.method, 1, Silent())


def run(config_file: Path, out: Path, *overrides: str) -> RunDirectory:
    simulation, directory = started(config_file, out, *overrides)
    simulation.run(directory, Silent())
    return directory


def weights(directory: Path) -> bytes:
    return (directory / "adapter" / "adapter_model.safetensors").read_bytes()
