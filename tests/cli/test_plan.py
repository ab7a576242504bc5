import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from florist.cli.plan_table import scaled
from florist.cli.plan_work import parse_rate, parse_size
from florist.config import read_config
from florist.errors import ConfigurationError

from .running import ENVIRONMENT, Run, refused

UNLIKE = "64,32,16,16,8,8,4,4"
SCHEMA = {"total_rank", "efficiency", "upload_bytes", "download_bytes", "server_flops", "server_bytes"}


def test_the_document_has_the_costs_of_every_method(florist: Run) -> None:
    done = florist("plan", "llama-7b", "--ranks", UNLIKE, "--json")
    assert (done.returncode, done.stderr.count("note")) == (0, 0)
    document = json.loads(done.stdout)
    assert {"fedit", "ffa", "flora", "flexlora", "florist", "full"} <= document["methods"].keys()
    assert all(cost.keys() >= SCHEMA for cost in document["methods"].values())
    assert document["methods"]["fedit"]["total_rank"] == 4096
    assert document["methods"]["full"]["total_rank"] is None
    assert (document["clients"], document["modules"], document["exact"]) == (8, 64, True)


def test_model_is_an_argument_or_an_option(florist: Run) -> None:
    given = florist("plan", "tinyllama", "--json").stdout
    assert florist("plan", "--model", "tinyllama", "--json").stdout == given
    assert json.loads(given)["ranks"] == {"16": 8}
    written = json.loads(florist("plan", "--shapes", "q_proj=2048x2048*22,v_proj=256x2048*22", "--json").stdout)
    assert written["methods"]["fedit"]["upload_bytes"] == json.loads(given)["methods"]["fedit"]["upload_bytes"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("llama-3.1-70b", "--ranks", UNLIKE, "--uplink", "10Mbit", "--budget", "5GB"),
        ("tinyllama", "--ranks", "4:40,8:20,16:20,32:10,64:10", "--clients", "1000000", "--fraction", "0.001",
         "--rounds", "75", "--download", "int4", "--uplink", "1kbit"),
    ],
)  # fmt: skip
def test_no_number_is_cut_at_80_columns(florist: Run, arguments: tuple[str, ...]) -> None:
    done = florist("plan", *arguments, columns=80)
    assert done.returncode == 0, done.stderr
    assert "…" not in done.stdout
    tables = [line for line in done.stdout.splitlines() if line.startswith((" florist ", " full ", " method "))]
    assert len(tables) == 6
    assert max(map(len, tables)) <= 80


def test_a_budget_says_what_fits(florist: Run) -> None:
    arguments = ("plan", "tinyllama", "--methods", "fedit,ffa,full", "--upload", "float16", "--download", "float16")
    done = florist(*arguments, "--budget", "30MB", columns=80)
    assert "within 30.00 MB, both ways, all rounds: ffa (25.95 MB)" in done.stdout
    assert "beyond 30.00 MB: fedit (72.09 MB), full (3.32 GB)" in done.stdout
    fits = json.loads(florist(*arguments, "--budget", "30MB", "--json").stdout)["methods"]
    assert {name: cost["fits_budget"] for name, cost in fits.items()} == {"fedit": False, "ffa": True, "full": False}
    assert "none of these methods" in florist(*arguments, "--budget", "1MB").stdout


def test_seconds_are_those_of_the_slowest_client(florist: Run) -> None:
    done = florist("plan", "--shapes", "q=1000x1000", "--ranks", "1,4", "--methods", "fedit", "--uplink", "1Mbit",
                   "--downlink", "2Mbit", "--json")  # fmt: skip
    bits = 8 * 4 * 2000 * 4
    assert json.loads(done.stdout)["methods"]["fedit"]["seconds_per_round"] == pytest.approx(bits / 1e6 + bits / 2e6)


def test_cut_uploads_are_for_methods_that_can_cut_them(florist: Run) -> None:
    done = florist("plan", "tinyllama", "--ranks", "16", "--upload-rank", "4", "--json")
    cost = json.loads(done.stdout)["methods"]
    assert 4 * cost["florist"]["upload_bytes"] == 4 * cost["flora"]["upload_bytes"] == cost["fedit"]["upload_bytes"]
    assert cost["flora"]["total_rank"] == 44 * 32


@pytest.mark.parametrize("preset", ["plain", "compact", "paper"])
def test_a_preset_means_for_each_method_what_it_means_in_a_configuration(
    florist: Run, tmp_path: Path, preset: str
) -> None:
    document = json.loads(florist("plan", "tinyllama", "--preset", preset, "--json").stdout)
    file = tmp_path / "config.toml"
    file.write_text(
        f'[model]\nname_or_path = "m"\n[data]\npath = "."\n[lora]\nranks = 8\n[communication]\npreset = "{preset}"\n'
    )
    for name, cost in document["methods"].items():
        config = read_config(file, [f"aggregation.method={name}"])
        said = cost["communication"]
        assert said == {key: getattr(config.communication, key) for key in said}
        assert (said.get("feedback", False), said.get("upload_tau")) == (
            config.communication.feedback,
            config.communication.upload_tau,
        )
        assert (document["preset"], document["upload"], document["download"], document["local_init"]) == (
            preset, said["upload"], said["download"], config.federation.local_init,
        )  # fmt: skip


def test_a_preset_is_its_codecs_and_gives_way_to_what_is_said(florist: Run) -> None:
    def bytes_of(*arguments: str) -> dict[str, int]:
        document = json.loads(florist("plan", "tinyllama", *arguments, "--json").stdout)
        return {name: cost["upload_bytes"] + cost["download_bytes"] for name, cost in document["methods"].items()}

    assert bytes_of("--preset", "compact") == bytes_of("--upload", "int4", "--download", "int4")
    assert bytes_of("--preset", "compact", "--upload", "int8") == bytes_of("--upload", "int8", "--download", "int4")
    assert bytes_of("--preset", "plain") == bytes_of()
    told = "florist, flora: the preset compact cuts uploads by energy"
    assert told in florist("plan", "tinyllama", "--preset", "compact").stdout
    assert told not in florist("plan", "tinyllama", "--preset", "compact", "--upload-rank", "9").stdout
    assert "communication" not in json.loads(florist("plan", "tinyllama", "--json").stdout)["methods"]["florist"]


def test_a_million_clients_take_no_longer_than_eight(florist: Run) -> None:
    florist("plan", "tinyllama")  # imports
    began = time.process_time()
    done = florist("plan", "llama-3.1-70b", "--ranks", "4:40,8:20,16:20,32:10,64:10", "--clients", "1000000",
                   "--fraction", "0.001", "--rounds", "1000", "--json")  # fmt: skip
    assert json.loads(done.stdout)["clients_per_round"] == 1000
    assert json.loads(done.stdout)["methods"]["florist"]["catch_up_bytes"] > 0
    assert time.process_time() - began < 2  # 0.1 s, without the checks of shapes that tests switch on


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "expected one of MODEL, --model and --shapes"),
        (("tinyllama", "--model", "tinyllama"), "expected one of MODEL, --model and --shapes"),
        (("nowhere",), "one of the presets tinyllama"),
        (("tinyllama", "--ranks", "a"), "--ranks: expected ranks as"),
        (("tinyllama", "--ranks", "4,8", "--clients", "5"), "--ranks names 2 clients and --clients says 5"),
        (("tinyllama", "--fraction", "2"), "expected a fraction of the clients in (0, 1], got 2.0"),
        (("tinyllama", "--upload", "int5"), "--upload: expected one of float32"),
        (("tinyllama", "--preset", "tiny"), "--preset: expected one of plain, paper, compact, got 'tiny'"),
        (("tinyllama", "--local-init", "cold"), "--local-init: expected one of fresh"),
        (("tinyllama", "--dtype", "int8"), "--dtype: expected one of float32"),
        (("tinyllama", "--methods", "fedavg"), "--methods: expected names out of florist"),
        (("tinyllama", "--target-modules", "c_attn"), "--target-modules: expected names out of down_proj"),
        (("tinyllama", "--tau-rank", "few"), "--tau-rank: expected a rank for every module"),
        (("tinyllama", "--uplink", "fast"), "--uplink: expected bits a second, as 10Mbit"),
        (("tinyllama", "--downlink", "0Mbit"), "--downlink: expected bits a second, as 10Mbit"),
        (("tinyllama", "--budget", "much"), "--budget: expected bytes, as 500MB"),
        (("tinyllama", "--rounds", "999999999999"), "--rounds"),
        (("--shapes", "q=8x8*99999999"), "--shapes: expected at most 100000 modules of a shape, got 99999999"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_line(florist: Run, arguments: tuple[str, ...], says: str) -> None:
    assert says in refused(florist("plan", *arguments))


def test_a_run_of_another_model_is_refused(florist: Run, tmp_path: Path) -> None:
    assert "found no run.json" in refused(florist("plan", "tinyllama", "--tau-rank", tmp_path))


def test_planning_loads_neither_transformers_nor_peft() -> None:
    code = (
        "import sys; sys.argv = ['florist', 'plan', 'tinyllama', '--json']\n"
        "from florist.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print(sorted({'transformers', 'peft', 'flwr'} & sys.modules.keys()), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_rates_and_sizes_are_decimal() -> None:
    assert (parse_rate("--uplink", "10Mbit"), parse_rate("--uplink", "1.5 Gbit/s")) == (1e7, 1.5e9)
    assert parse_size("5GB") == 5 * 10**9
    with pytest.raises(ConfigurationError):
        parse_size("0B")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1.00 kB"),
        (36044800, "36.04 MB"),
        (1660944384, "1.66 GB"),
        (1e18, "1000.0 PB"),
    ],
)
def test_numbers_have_a_unit(value: float, text: str) -> None:
    assert scaled(value, ("B", "kB", "MB", "GB", "TB", "PB")) == text
