"""``florist export``: the adapter of any kept round, what is beside it, and the upload of both."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import OfflineModeIsEnabled
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from florist.federation.closed_round import ClosedRound
from florist.federation.history import RunDirectory
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.files.outputs import sha256
from florist.rounds import ClientUpdate
from tests.builders import dense_sum
from tests.tiny_federation import configure, run, weights

from .hub import Hub
from .running import Run, refused

WEIGHTS = "adapter_model.safetensors"
ROUNDS = 4


@pytest.fixture(scope="module")
def config(tiny_llama: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return configure(tmp_path_factory.mktemp("exported"), tiny_llama, toy_data, steps=2, rounds=ROUNDS)


@pytest.fixture(scope="module")
def kept(config: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run that keeps all of every round, with 4 bits and feedback, the default."""
    return run(config, tmp_path_factory.mktemp("kept") / "run", "federation.keep_rounds=all")


@pytest.fixture(scope="module")
def forgetful(config: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    chosen = ("data.validation_fraction=0.2", "federation.best_round=true", "training.learning_rate=0.1")
    return run(config, tmp_path_factory.mktemp("forgetful") / "run", *chosen)


@pytest.mark.parametrize("flush", [True, False])
@pytest.mark.quick(1)
def test_a_round_is_bit_for_bit_the_adapter_of_a_run_that_ended_there(
    florist: Run, kept: RunDirectory, config: Path, tmp_path: Path, flush: bool
) -> None:
    word = "--flush" if flush else "--no-flush"
    told = florist("export", kept.path, "--round", 2, word, "-o", tmp_path / "out")
    assert told.returncode == 0, told.stderr
    assert "round 2 written to" in told.stdout
    shorter = run(config, tmp_path / "run", "federation.rounds=2", f"communication.flush={str(flush).lower()}")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == weights(shorter.path)
    mine, other = (json.loads((p / "florist.json").read_text()) for p in (tmp_path / "out", shorter.adapter))
    assert mine == other


@pytest.mark.parametrize(
    "method", ["fedit", "full", *(pytest.param(each, marks=pytest.mark.slow) for each in ("fedex", "flora", "ffa"))]
)
def test_other_methods_keep_their_rounds_too(florist: Run, config: Path, tmp_path: Path, method: str) -> None:
    chosen = (f"aggregation.method={method}", "lora.target_modules=['q_proj']", "lora.ranks=4")
    whole = run(config, tmp_path / "run", *chosen, "federation.rounds=3", "federation.keep_rounds=sent")
    shorter = run(config, tmp_path / "shorter", *chosen, "federation.rounds=2")
    told = florist("export", whole.path, "--round", 2, "-o", tmp_path / "out")
    assert told.returncode == 0, told.stderr
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == weights(shorter.path)


@pytest.mark.slow
def test_without_a_round_it_is_the_final_adapter(
    florist: Run, kept: RunDirectory, forgetful: RunDirectory, tmp_path: Path
) -> None:
    for number, directory in enumerate((kept, forgetful)):
        told = florist("export", directory.path, "-o", tmp_path / str(number), "--json")
        assert told.returncode == 0, told.stderr
        assert json.loads(told.stdout)["adapter"] == str(tmp_path / str(number))
        assert (tmp_path / str(number) / WEIGHTS).read_bytes() == weights(directory.path)
    best = florist("export", forgetful.path, "--best", "-o", tmp_path / "best")
    assert best.returncode == 0, best.stderr
    assert (tmp_path / "best" / WEIGHTS).read_bytes() == weights(forgetful.path)


@pytest.mark.slow
def test_what_was_not_kept_is_refused_by_name(
    florist: Run, config: Path, forgetful: RunDirectory, kept: RunDirectory, tmp_path: Path
) -> None:
    out = ("-o", tmp_path / "out")
    best = forgetful.records()[-1].best_round
    gone = next(number for number in range(1, ROUNDS) if number != best)
    line = refused(florist("export", forgetful.path, "--round", gone, *out))
    assert "federation.keep_rounds = 'last'" in line
    assert "--set federation.keep_rounds=sent" in line
    assert "expected a round from 1 to 4" in refused(florist("export", kept.path, "--round", 5, *out))
    assert "--best chooses by the validation examples" in refused(florist("export", kept.path, "--best", *out))
    assert "--round and --best contradict" in refused(florist("export", kept.path, "--best", "--round", 1, *out))
    sent = run(config, tmp_path / "sent", "federation.keep_rounds=sent", "federation.rounds=2")
    line = refused(florist("export", sent.path, "--round", 1, "--flush", *out))
    assert "expected what the server held back after round 1" in line
    told = florist("export", sent.path, "--round", 1, *out)
    assert told.returncode == 0
    assert "without what the server held back then" in told.stderr
    assert not (tmp_path / "out" / "state").exists()


@pytest.mark.slow
def test_disk_holds_what_is_documented(kept: RunDirectory, forgetful: RunDirectory) -> None:
    files = {folder.name: {file.name for file in folder.iterdir()} for folder in (kept.path / "state").glob("round-*")}
    assert len(files) == ROUNDS
    always = {"broadcast.safetensors", "continued.safetensors", "saved_parameters.safetensors"}
    assert all(always | {"owed.safetensors"} <= names for names in files.values())
    assert sum("cumulative.safetensors" in names for names in files.values()) == 1
    whole = [f.parent.name for f in (forgetful.path / "state").glob("round-*/cumulative.safetensors")]
    best = forgetful.records()[-1].best_round
    assert sorted(whole) == sorted({f"round-{best:04d}", f"round-{ROUNDS:04d}"})


def test_the_certificate_is_of_the_adapter_and_its_clients(kept: RunDirectory) -> None:
    found = json.loads((kept.adapter / "florist.json").read_text())
    assert found["sha256"][WEIGHTS] == sha256(kept.adapter / WEIGHTS)
    assert (found["round"], found["rounds"], found["flushed"]) == (ROUNDS, ROUNDS, True)
    assert found["clients"] == {f"client_{k}": {"num_examples": n, "rounds": 4} for k, n in enumerate((12, 24))}
    assert (found["num_examples"], found["counted_in"]) == (36, "examples")
    tensors = load_file(kept.adapter / WEIGHTS)
    for name, module in found["modules"].items():
        B, A = (tensors[f"base_model.model.{name}.lora_{half}.weight"] for half in "BA")
        assert module["norm"] == pytest.approx(float((B @ A).norm()), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("flush", [True, False])
def test_the_bound_holds_for_the_sum_of_all_that_the_clients_sent(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flush: bool
) -> None:
    sums: dict[str, torch.Tensor] = {}
    close_round = Federation.close_round

    def watched(self: Federation, state: ServerState, updates: Sequence[ClientUpdate], *rest: Any) -> ClosedRound:
        for name in updates[0].adapter:
            sums[name] = sums.get(name, torch.zeros(())) + dense_sum(updates, name)
        return close_round(self, state, updates, *rest)

    monkeypatch.setattr(Federation, "close_round", watched)
    directory = run(config, tmp_path / "run", f"communication.flush={str(flush).lower()}")
    certificate = json.loads((directory.adapter / "florist.json").read_text())
    tensors = load_file(directory.adapter / WEIGHTS)
    total = 0.0
    for name, module in certificate["modules"].items():
        B, A = (tensors[f"base_model.model.{name}.lora_{half}.weight"].double() for half in "BA")
        error = float((sums[name] - B @ A).norm())
        assert error <= module["error_at_most"] * (1 + 1e-5)
        assert error > 0.1 * module["error_at_most"] > 0  # and is no empty promise
        total += error**2
    assert total**0.5 <= certificate["error_at_most"] * (1 + 1e-5)


def test_without_feedback_the_bound_holds_for_the_sum_that_the_clients_sent(config: Path, tmp_path: Path) -> None:
    """At tau 1 nothing is lost; the run at tau 0.5 from the same first round is off by no more than it says."""
    plain = ("communication.preset=plain", "federation.rounds=1")
    exact = run(config, tmp_path / "exact", *plain, "aggregation.tau=1.0")
    cut = run(config, tmp_path / "cut", *plain, "aggregation.tau=0.5")
    found = json.loads((cut.adapter / "florist.json").read_text())["modules"]
    mine, whole = (load_file(directory.adapter / WEIGHTS) for directory in (cut, exact))
    for name, module in found.items():
        key = f"base_model.model.{name}.lora_{{}}.weight"
        dense = [t[key.format("B")].double() @ t[key.format("A")].double() for t in (mine, whole)]
        assert module["error_at_most"] == pytest.approx(float((dense[0] - dense[1]).norm()), rel=1e-3)
        assert module["error_at_most"] > 0


def test_the_card_loads_the_adapter_and_the_tokenizer_is_there(
    kept: RunDirectory, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = (kept.adapter / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\npipeline_tag: text-generation\ntags:\n")
    assert "| client_1 | 24 | 4 |" in card
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
    assert len(code.splitlines()) == 3
    names: dict[str, Any] = {}
    exec(code.replace("THIS_DIRECTORY", str(kept.adapter)), names)  # noqa: S102  # what the card tells people to run
    assert isinstance(names["model"], PeftModel)
    mine, base = (AutoTokenizer.from_pretrained(p) for p in (kept.adapter, tiny_llama))
    assert mine("a note").input_ids == base("a note").input_ids
    assert AutoModelForCausalLM.from_pretrained(tiny_llama)


def test_a_run_is_no_adapter(florist: Run, kept: RunDirectory, tmp_path: Path) -> None:
    line = refused(florist("aggregate", kept.path, kept.path, "-o", tmp_path / "out"))
    assert f"{kept.path} is the directory of a run: give its adapter, {kept.path}/adapter" in line


def test_an_upload_takes_everything_beside_the_adapter(
    florist: Run, kept: RunDirectory, tmp_path: Path, hub: Hub
) -> None:
    asked = ("export", kept.path, "-o", tmp_path / "out", "--push-to-hub", "me/adapter")
    told = florist(*asked, "--private")
    assert told.returncode == 0, told.stderr
    assert "uploaded to https://hub.example/me/adapter" in told.stdout
    assert hub.asked[0] == ("me/adapter", True, True)
    assert {"README.md", "florist.json", WEIGHTS, "adapter_config.json", "tokenizer.json"} <= set(hub.asked[1][1])


def test_an_upload_that_fails_is_told_in_one_line(florist: Run, kept: RunDirectory, tmp_path: Path, hub: Hub) -> None:
    hub.error = OfflineModeIsEnabled("Cannot reach the hub: offline mode is enabled.\nmore")
    told = florist("export", kept.path, "-o", tmp_path / "out", "--push-to-hub", "me/adapter")
    assert told.returncode == 2
    last = told.stderr.strip().splitlines()[-1]
    assert last.startswith(
        f"florist: the adapter is in {tmp_path / 'out'}, and uploading it to me/adapter failed: Cannot"
    )
    assert "Traceback" not in told.stderr
    assert (tmp_path / "out" / WEIGHTS).exists()
    assert "expected --push-to-hub as organisation/name" in refused(
        florist("export", kept.path, "-o", tmp_path / "other", "--push-to-hub", "a b")
    )
