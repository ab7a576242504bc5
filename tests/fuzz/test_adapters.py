"""Mutated adapters through `florist.aggregate`: refused in one line, or combined as a dense float64 sum says."""

import json
import math
import os
import random
import re
import resource
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

import florist
from florist.cli import main
from tests.fuzz.mutations import mutated_bytes, mutated_document, nasty_values
from tests.fuzz.oracle import refused_or_taken, require_readable
from tests.fuzz.tiny_adapter import CONFIG, PREFIX, WEIGHTS, tensors

CERTIFICATE: dict[str, Any] = {
    "format": 1,
    "florist": "0.1.0",
    "counted_in": "adapters",
    "num_examples": 3,
    "sha256": {"adapter_model.safetensors": "0" * 64, "adapter_config.json": "0" * 64},
}


def put(folder: Path, config: bytes, weights: bytes, certificate: bytes | None = None) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_bytes(config)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "florist.json").unlink(missing_ok=True)
    if certificate is not None:
        (folder / "florist.json").write_bytes(certificate)


def dumped(document: object) -> bytes:
    try:
        return json.dumps(document).encode()
    except RecursionError:  # deeper than Python writes, and than it reads
        return b"[" * 50_000


def with_header(change: Any) -> bytes:
    """The weights with another header, whose length is right."""
    (length,) = struct.unpack("<Q", WEIGHTS[:8])
    header = dumped(change(json.loads(WEIGHTS[8 : 8 + length])))
    return struct.pack("<Q", len(header)) + header + WEIGHTS[8 + length :]


def other_tensors(rng: random.Random) -> bytes:
    """The weights with one to three faults in their tensors, in a sound file."""
    held = tensors(rng.randrange(100))
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice(sorted(held))
        tensor = held.pop(name)
        fault = rng.randrange(9)
        if fault == 0:
            name = name.replace(*rng.choice(((".weight", ".default.weight"), ("_A", "_B"), ("q", "p"), (PREFIX, ""))))
        elif fault == 1:
            tensor = tensor.permute(*reversed(range(tensor.ndim))).contiguous()
        elif fault == 2:
            tensor = torch.randn([rng.randint(0, 5) for _ in range(rng.randint(0, 4))])
        elif fault == 3:
            tensor = tensor.to(rng.choice((torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool)))
        elif fault == 4:
            tensor = tensor * rng.choice((0.0, 1e-38, 1e-20, 1e19, 1e38, math.inf, math.nan))
        elif fault == 5:
            tensor = tensor.double() * rng.choice((1e-300, 1e-150, 1e100, 1e160, 1e300))
        elif fault == 6:
            tensor = torch.cat([tensor, tensor], dim=rng.randrange(2)) if tensor.ndim == 2 else tensor
        elif fault == 7:
            continue
        else:
            held[f"{PREFIX}{rng.choice(('lm_head', 'score', 'layers.0.q.base_layer'))}.weight"] = torch.ones(2, 2)
        held[name] = tensor
    return save(held)


def broken(rng: random.Random) -> tuple[bytes, bytes, bytes | None]:
    """The config, the weights and perhaps the certificate of an adapter with faults in one of them."""
    kind = rng.randrange(7)
    config, weights, certificate = dumped(CONFIG), WEIGHTS, None
    if kind == 0:
        config = mutated_bytes(config, rng)
    elif kind == 1:
        config = dumped(mutated_document(CONFIG, rng))
    elif kind == 2:
        weights = mutated_bytes(weights, rng)
    elif kind == 3:
        weights = with_header(lambda header: mutated_document(header, rng))
    elif kind == 4:
        weights = other_tensors(rng)
    elif kind == 5:
        certificate = dumped(mutated_document(CERTIFICATE, rng))
    else:
        key = rng.choice(("layers.0.q", "q", r"layers\.\d\.q", "(a+)+$", r".*\.1\..*", "a{9999999999999}", "^q", "("))
        value = nasty_values(rng) if rng.random() < 0.3 else rng.choice((1, 2, 2, 3))
        config = dumped(CONFIG | {rng.choice(("rank_pattern", "alpha_pattern")): {key: value}})
    return config, weights, certificate


def dense(folder: Path) -> dict[str, torch.Tensor]:
    """What PEFT makes of two files, in float64, without a line of florist."""
    config = json.loads((folder / "adapter_config.json").read_bytes())
    held = load((folder / "adapter_model.safetensors").read_bytes())
    updates: dict[str, torch.Tensor] = {}
    for name, A in held.items():
        match = re.fullmatch(re.escape(PREFIX) + r"(.+)\.lora_A((?:\.[^.]+)?\.weight)", name)
        if match:
            module, end = match.groups()
            B = held[f"{PREFIX}{module}.lora_B{end}"].double().flatten(1)
            rank = setting(config, "rank_pattern", module, config.get("r", 8))
            alpha = setting(config, "alpha_pattern", module, config.get("lora_alpha", 8))
            scaling = alpha / (rank**0.5 if config.get("use_rslora") else rank)
            updates[module] = B @ A.double().flatten(1) * scaling
    return updates


def setting(config: dict[str, Any], pattern: str, module: str, default: Any) -> Any:
    keys = config.get(pattern) or {}
    return keys.get(next((key for key in keys if re.match(rf"(.*\.)?({key})$", module)), module), default)


def require_sum(folders: list[Path], counts: list[int], out: Path, certificate: dict[str, Any]) -> None:
    inputs, found = [dense(folder) for folder in folders], dense(out)
    for module, written in found.items():
        parts = [
            (count / sum(counts), held[module]) for held, count in zip(inputs, counts, strict=True) if module in held
        ]
        expected = sum((share * part for share, part in parts), start=torch.zeros(()))
        largest = max(share * float(part.norm()) for share, part in parts)
        off = float((written - expected).norm())
        bound = certificate["modules"][module]["error"] * (1 + 1e-5) + 1e-5 * largest + 1e-37
        assert off <= bound, f"{module} is off by {off}, and {bound} was certified"
    assert set(found) == set().union(*inputs), "a module was lost"


def tried(case: int, folder: Path) -> bool:
    """Combine one broken adapter with none to three sound ones; return whether it was taken."""
    rng = random.Random(case)  # noqa: S311  # a test's
    put(folder / "broken", *broken(rng))
    adapters = [folder / "broken", *(folder / f"sound{n}" for n in range(rng.choice((0, 1, 1, 3))))]
    rng.shuffle(adapters)
    given = [rng.randint(1, 9) for _ in adapters] if rng.random() < 0.5 else None
    rule = florist.EnergyThreshold(rng.choice((0.9, 0.999, 1.0)))
    before, taken = sorted(folder.iterdir()), False
    with refused_or_taken(case):
        merged = florist.aggregate(adapters, rank_rule=rule, num_examples=given)
        certificate = merged.write(folder / "out")
        require_sum(adapters, list(merged.inputs.weights.counts), folder / "out", certificate)
        taken = True
    if (folder / "out").exists():
        assert taken, f"case {case}: refused, and something was written"
        for file in (folder / "out").iterdir():
            file.unlink()
        (folder / "out").rmdir()
    assert sorted(folder.iterdir()) == before, f"case {case} left something behind"
    return taken


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # nobody cuts the power here, and it takes a third
    for number in range(3):
        put(tmp_path / f"sound{number}", dumped(CONFIG), save(tensors(1000 + number)))
    return tmp_path


def test_a_sound_adapter_is_taken(folder: Path) -> None:
    put(folder / "broken", dumped(CONFIG), WEIGHTS)
    merged = florist.aggregate([folder / "broken", folder / "sound0"], rank_rule=florist.EnergyThreshold(1.0))
    require_sum([folder / "broken", folder / "sound0"], [1, 1], folder / "out", merged.write(folder / "out"))


# Checks of shapes at run time look into an adapter, whose tensors are read then.
@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    "count",
    [80, pytest.param(3_000, marks=pytest.mark.slow), pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.soak])],
)
def test_broken_adapters_are_refused_or_combined_exactly(folder: Path, count: int) -> None:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    taken = sum(tried(case, folder) for case in range(count))
    assert 0.1 * count < taken < 0.8 * count  # else the mutations test but one half
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 400_000  # KiB


@pytest.mark.parametrize("count", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_the_command_line_refuses_in_one_line(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    refused = 0
    for case in range(count):
        put(folder / "broken", *broken(random.Random(case)))  # noqa: S311  # a test's
        out = folder / f"out{case}"
        words = ["florist", "aggregate", str(folder / "broken"), str(folder / "sound0"), "-o", str(out), "--quiet"]
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as ended:
            main()
        error = capfd.readouterr().err
        assert ended.value.code in {0, None, 2}, f"case {case}: {error}"
        if ended.value.code == 2:
            refused += 1
            require_readable(error.removesuffix("\n"))
            assert error.startswith("florist: "), f"case {case}: {error}"
            assert not out.exists()
    assert refused
