"""More SuperNodes than one machine would be given: 64 of them in a simulation, with as few actors as it has cores."""

import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the example runs on Linux", allow_module_level=True)
pytest.importorskip("ray", reason="ray comes with the flower extra")

from examples.flower.loopback import simulate

from florist.config import DEMONSTRATION
from florist.federation.history import RunDirectory

NODES = 64


@pytest.mark.slow
@pytest.mark.soak
def test_64_supernodes_all_count_in_every_round(tmp_path: Path) -> None:
    text = DEMONSTRATION.read_text(encoding="utf-8")
    for before, after in {
        '"demonstration': f'"{DEMONSTRATION.parent}/demonstration',
        'partition = "dirichlet"': f'partition = "iid"\nnum_clients = {NODES}',
        'partition_field = "task"\ndirichlet_alpha = 1.0\n': "",
        "[32, 16, 8, 4]": str([4] * NODES),
        "batch_size = 16\nsteps = 25": "batch_size = 4\nsteps = 1",
        "rounds = 4": "rounds = 2",
    }.items():
        assert before in text
        text = text.replace(before, after)
    file, directory = tmp_path / "many.toml", tmp_path / "run"
    file.write_text(text, encoding="utf-8")
    with simulate(tmp_path / "programs") as federation:
        given = {"config": str(file), "flower.run": str(directory), "flower.min_clients": NODES}
        resources = {"num-supernodes": NODES, "client-resources-num-cpus": 1}
        number = federation.submit(
            Path(__file__).parents[2] / "examples" / "flower", {**given, "flower.evaluation": "none"}, resources
        )
        status = federation.wait(number, 1200)
        assert status.completed, federation.server_log(number)
    records = RunDirectory.open(directory).records()
    assert [len(record.clients) for record in records] == [NODES] * 2
    assert [record.dropped for record in records] == [()] * 2
