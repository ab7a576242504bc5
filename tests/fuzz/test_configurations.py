"""Mutated configurations: each is refused in one line, or taken, written and read back equal."""

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from florist.cli import main
from florist.config import Config, read_config, to_toml

from .mutations import mutated_bytes, mutated_document, nasty_values
from .oracle import refused_or_taken, require_readable

DOCUMENT: dict[str, Any] = {
    "model": {"name_or_path": "m", "dtype": "bfloat16"},
    "task": {"kind": "causal-lm"},
    "data": {
        "path": "d",
        "test": "test.json",
        "partition": "dirichlet",
        "partition_field": "category",
        "rows": "::2",
        "prompt_template": "{instruction}",
        "max_length": 64,
    },
    "lora": {"ranks": [4, 2], "alpha": [8.0, 4], "target_modules": ["q_proj"]},
    "training": {"learning_rate": 3e-4, "batch_size": [4, 2], "steps": 3},
    "federation": {"rounds": 2, "seed": 1, "fraction": 0.5},
    "aggregation": {"method": "florist", "tau": 0.9},
    "communication": {"download": "int4", "upload": "int4"},
    "evaluation": {"metrics": ["loss"], "every": 2},
    "tracking": {"to": []},
    "flower": {"wait": 30.0},
}
KEYS = [f"{section}.{key}" for section, table in DOCUMENT.items() for key in table]
TEXT = tomli_w.dumps(DOCUMENT).encode()


def writable(value: Any) -> Any:
    """A document as TOML can hold it: null is a text."""
    if isinstance(value, dict):
        return {str(name): writable(each) for name, each in value.items()}
    if isinstance(value, list):
        return [writable(each) for each in value]
    return "null" if value is None else value


def document_of(rng: random.Random) -> bytes:
    try:
        return tomli_w.dumps(writable(mutated_document(DOCUMENT, rng))).encode()
    except (ValueError, RecursionError, AttributeError, TypeError):  # what cannot be written as TOML
        return mutated_bytes(TEXT, rng)


def override_of(rng: random.Random) -> str:
    if rng.random() < 0.2:
        return mutated_bytes(f"{rng.choice(KEYS)}=1".encode(), rng).decode(errors="surrogateescape")
    try:
        text = str(nasty_values(rng))
    except (ValueError, RecursionError):  # a number or a list that Python does not write
        text = rng.choice(("9" * 5000, "[" * 5000))
    return f"{rng.choice(KEYS)}={text}"


def require_sound(number: int, folder: Path, seed: int) -> bool:
    """Try one case; tell whether it was taken."""
    rng = random.Random(f"configuration {seed} {number}")  # noqa: S311  # cases, no secrets
    kind = number % 3
    content = mutated_bytes(TEXT, rng) if kind == 0 else document_of(rng) if kind == 1 else TEXT
    overrides = [override_of(rng) for _ in range(rng.randint(1, 3))] if kind == 2 else []
    file = folder / "config.toml"
    file.write_bytes(content)
    taken: Config | None = None
    with refused_or_taken(f"{seed}/{number}"):
        taken = read_config(file, overrides)
        again = folder / "again.toml"
        again.write_text(to_toml(taken), encoding="utf-8")
        assert read_config(again) == taken, "it is read back as another"
    return taken is not None


@pytest.mark.parametrize("seed", [0])
def test_some_mutated_configurations(tmp_path: Path, seed: int) -> None:
    taken = sum(require_sound(number, tmp_path, seed) for number in range(150))
    assert 0 < taken < 150


@pytest.mark.slow
def test_mutated_configurations(tmp_path: Path) -> None:
    taken = sum(require_sound(number, tmp_path, 1) for number in range(5_000))
    assert 250 < taken < 4_750  # neither all nor nothing is taken


def test_the_command_line_refuses_them_with_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(0, 60, 2):
        rng = random.Random(f"command line {number}")  # noqa: S311  # cases, no secrets
        file = tmp_path / "config.toml"
        file.write_bytes(mutated_bytes(TEXT, rng) if number % 4 else TEXT)
        overrides = [part for _ in range(number % 4 + 1) for part in ("--set", override_of(rng).replace("\0", ""))]
        # The directory of the data is not there, so that no case is taken.
        monkeypatch.setattr(sys, "argv", ["florist", "simulate", str(file), "-o", str(tmp_path / "run"), *overrides])
        with pytest.raises(SystemExit) as end:
            main()
        told = capsys.readouterr()
        assert (end.value.code, told.out) == (2, ""), f"case {number}: {told.err}"
        assert told.err.startswith("florist: "), f"case {number}: {told.err}"
        require_readable(told.err.rstrip("\n"))
        assert sorted(tmp_path.iterdir()) == [file], f"case {number} leaves something behind"
