"""`florist plan` says beforehand what `florist simulate` measures, to the byte."""

import json
from pathlib import Path

import pytest

from florist.federation.history import RunDirectory
from florist.planning.plan import METHOD_NAMES
from tests.tiny_federation import run

from .running import Run

CONFIG = """
[model]
name_or_path = "{model}"
[data]
path = "{data}"
test = "test.json"
partition = "iid"
prompt_template = "{{instruction}}\\n"
[lora]
ranks = [8, 4, 2]
target_modules = ["q_proj", "v_proj", "down_proj"]
[training]
learning_rate = 1e-2
batch_size = 4
steps = {steps}
threads = 1
[federation]
rounds = {rounds}
[aggregation]
method = "{method}"
[communication]
preset = "plain"
download = "{codec}"
upload = "{codec}"
[evaluation]
every = 9
"""


def played(folder: Path, model: Path, data: Path, method: str, codec: str, rounds: int) -> RunDirectory:
    file = folder / "config.toml"
    # Before clients have trained a little, part of what their means lack is below rounding, and FedEx-LoRA omits it.
    steps = 8 if method == "fedex" else 2
    file.write_text(CONFIG.format(model=model, data=data, method=method, codec=codec, rounds=rounds, steps=steps))
    return run(file, folder / "run")


@pytest.mark.parametrize(
    ("method", "codec"),
    [
        ("florist", "int4"),
        *(pytest.param(name, "float32", marks=() if name in {"florist", "full"} else pytest.mark.slow)
          for name in METHOD_NAMES),
        *(pytest.param(name, "int3", marks=pytest.mark.slow) for name in METHOD_NAMES),
    ],
)  # fmt: skip
def test_the_plan_is_what_the_simulation_measures(
    florist: Run, tiny_llama: Path, toy_data: Path, tmp_path: Path, method: str, codec: str
) -> None:
    rounds = 2
    run = played(tmp_path, tiny_llama, toy_data, method, codec, rounds)
    # At the default tau nobody knows the ranks beforehand; those of the run are taken.
    kept = ("--tau-rank", run.path) if method in {"florist", "linear"} else ()
    done = florist(
        "plan", tiny_llama, "--target-modules", "q_proj,v_proj,down_proj", "--ranks", "8,4,2", "--rounds", rounds,
        "--upload", codec, "--download", codec, "--methods", method, "--json", *kept,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cost = json.loads(done.stdout)["methods"][method]
    records = run.records()
    assert cost["upload_bytes"] == sum(record.upload_bytes for record in records)
    assert cost["download_bytes"] == sum(record.download_bytes for record in records)
    for client in records[-1].clients:
        planned = next(each for each in cost["by_rank"] if each["rank"] == client.rank or method == "full")
        assert planned["upload_bytes"] == client.upload_bytes
        mean = sum(
            other.download_bytes
            for record in records
            for other in record.clients
            if other.client_id == client.client_id
        ) / len(records)
        assert planned["download_bytes"] == pytest.approx(mean, rel=1e-12)
    if method not in {"full", "flexlora", "raflora"}:
        assert cost["total_rank"] == pytest.approx(sum(record.total_rank for record in records) / rounds)
