"""Files that no PEFT wrote: each is refused in one readable line, at once, and within bounds."""

import json
import os
import socket
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

from florist.checkpoint import locate, open_adapter
from florist.errors import FloristError, InvalidAdapterError, MissingInputError, UnsupportedAdapterError
from tests.fuzz.oracle import require_readable

PREFIX = "base_model.model."
CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    save_file(tensors("layers.0.q"), folder / "adapter_model.safetensors")
    return folder


def tensors(*modules: str, A: str = "lora_A.weight", B: str = "lora_B.weight") -> dict[str, torch.Tensor]:
    return {
        f"{PREFIX}{module}.{half}": torch.ones(shape)
        for module in modules
        for half, shape in ((A, (2, 3)), (B, (4, 2)))
    }


def refusal(path: Path) -> str:
    started = time.perf_counter()
    with pytest.raises(FloristError) as caught:
        open_adapter(path)
    assert time.perf_counter() - started < 60
    require_readable(str(caught.value))
    return str(caught.value)


def put_fifo(path: Path) -> None:
    os.mkfifo(path)


def put_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def put_folder(path: Path) -> None:
    path.mkdir()


def put_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the address of a socket is short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize(
    ("put", "kind"),
    [(put_fifo, "FIFO"), (put_device, "device"), (put_folder, "directory"), (put_socket, "socket")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_file_is_not_waited_for(adapter: Path, name: str, put: Callable[[Path], None], kind: str):
    (adapter / name).unlink()
    put(adapter / name)
    message = refusal(adapter)
    assert f"expected a regular file at {adapter / name}, found a {kind}" in message
    assert message.count("expected") == 1


def test_a_device_by_its_own_name_is_no_adapter():
    assert "got the file /dev/zero" in refusal(Path("/dev/zero"))


@pytest.mark.parametrize("reference", ["a" * 5_000, "org/" + "a" * 5_000, "a\0b", "\ud800/x"])
def test_a_name_that_no_file_can_have_is_not_found(reference: str):
    with pytest.raises(MissingInputError):
        locate(reference)
    with pytest.raises(MissingInputError):
        open_adapter(Path(reference))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 50_000, "expected JSON"),
        (b"[" * 400 + b"]" * 400, "nested too deep"),
        (b'{"r": ' + b"9" * 5_000 + b"}", "expected JSON"),
        (b"\xff\xfe{}", "expected JSON"),
        (b" " * 16_000_001, "at most 16000000 bytes"),
    ],
    ids=["open", "deep", "digits", "bytes", "large"],
)
def test_a_config_that_is_no_document_is_refused(adapter: Path, content: bytes, reason: str):
    (adapter / "adapter_config.json").write_bytes(content)
    assert reason in refusal(adapter)


@pytest.mark.parametrize(
    "changes",
    [
        {"rank_pattern": {"a{99999999999999999999}": 2}},
        {"alpha_pattern": {"(" * 3_000: 2}},
        {"target_modules": "a{99999999999999999999}"},
        {"target_modules": {"q": 1}},
        {"rank_pattern": {"q" * 3_000_000: 2, "p": "x" * 3_000_000}},
        {"rank_pattern": [["q"] * 10_000]},
        {"modules_to_save": ["x" * 3_000_000]},
        {"modules_to_save": ["line\nbreak"]},
        {"target_parameters": [f"p{n}" for n in range(5_000)]},
        {"peft_type": ["LORA"] * 10_000},
        {"peft_type": "x\n\x1b[31m" * 10_000},
        {"trainable_token_indices": [[[1]] * 9] * 9_000},
        {"lora_alpha": 1e308},
        {"lora_alpha": 10**400},
        {"lora_alpha": True},
        {"r": 0},
        {"r": -1},
        {"r": True},
        {"r": 2.0},
        {"r": 10**300},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_a_config_that_peft_does_not_write_is_refused(adapter: Path, changes: dict[str, Any]):
    (adapter / "adapter_config.json").write_text(json.dumps(CONFIG | changes))
    refusal(adapter)


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"[" * 50_000, "nested too deeply"), (b'{"r": ' + b"1" * 5_000 + b"}", "numbers of at most 4300 digits")],
    ids=["deep", "digits"],
)
def test_what_python_says_of_itself_is_not_quoted(adapter: Path, content: bytes, told: str):
    (adapter / "adapter_config.json").write_bytes(content)
    message = refusal(adapter)
    assert told in message
    assert "save the adapter again" in message
    assert not any(word in message for word in ("recursion", "unicode string", "sys."))


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_is_refused_by_its_key_and_its_file_and_escaped_once(adapter: Path, key: str):
    (adapter / "adapter_config.json").write_text(json.dumps(CONFIG | {key: {"a\n(": 2}}))
    message = refusal(adapter)
    assert f"in {key} of {adapter / 'adapter_config.json'}, got 'a\\n(': " in message


def test_the_name_of_a_tensor_is_escaped_once(adapter: Path):
    with_header(adapter, {f"{PREFIX}q\n.lora_A.weight": entry([2, 3], 0, 24)}, bytes(24))
    assert f"'{PREFIX}q\\n.lora_A.weight' is no name" in refusal(adapter)


@pytest.mark.parametrize("key", ["base_model_name_or_path", "revision"])
@pytest.mark.parametrize(
    "value",
    ["x\ud800", "x\u001b[31m\nflorist: ok", "x\x00", "x\u202e", "b" * 1_001, "b" * 3_000_000],
    ids=["surrogate", "escape", "zero", "bidi", "long", "very long"],
)
def test_a_base_that_cannot_be_printed_is_refused(adapter: Path, key: str, value: str):
    (adapter / "adapter_config.json").write_text(json.dumps(CONFIG | {key: value}))
    message = refusal(adapter)
    assert f"expected {key} in {adapter / 'adapter_config.json'} to have up to 1000 printable characters" in message
    assert len(message) < 600


@pytest.mark.parametrize("value", ["b" * 1_000, "/models/né 模型", "", None])
def test_a_base_with_a_name_that_can_be_printed_is_read(adapter: Path, value: str | None):
    (adapter / "adapter_config.json").write_text(json.dumps(CONFIG | {"base_model_name_or_path": value}))
    assert open_adapter(adapter).base_model == (value or None)


@pytest.mark.parametrize("key", ["rank_pattern", pytest.param("alpha_pattern", marks=pytest.mark.slow)])
def test_an_expression_made_to_take_for_ever_is_refused(adapter: Path, key: str):
    save_file(tensors("a" * 60 + "!"), adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps(CONFIG | {key: {"(a+)+$": 2}}))
    started = time.perf_counter()
    with pytest.raises(InvalidAdapterError, match=r"the config of .*safetensors: .* matched within 1 s"):
        open_adapter(adapter)
    assert time.perf_counter() - started < 60


def test_a_hostile_name_is_written_as_a_name():
    from florist.checkpoint.patterns import rank_pattern

    ranks = {"(a+)+$": 1, "a" * 60 + "!": 2, "b": 3}
    started = time.perf_counter()
    assert rank_pattern(ranks, default=3) == {r"^\(a\+\)\+\$": 1, "a" * 60 + "!": 2}
    assert time.perf_counter() - started < 60


def with_header(adapter: Path, header: dict[str, Any] | bytes, body: bytes = b"", *, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = struct.pack("<Q", len(text) if length is None else length) + text + body
    (adapter / "adapter_model.safetensors").write_bytes(content)


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


A, B = (f"{PREFIX}q.lora_{half}.weight" for half in "AB")


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ({A: entry([2, 3], 0, 24), B: entry([2**40, 2], 24, 24 + 2**43)}, 56),
        ({A: entry([2, 3], 0, 24), B: entry([2**40, 2], 24, 56)}, 56),
        ({A: entry([2, 3], 0, 24), B: entry([2**63, 2**63], 24, 56)}, 56),
        ({A: entry([2, 3], 0, 24), B: entry([4, 2], 0, 32)}, 56),
        ({A: entry([2, 3], 0, 24), B: entry([4, 2], 24, 56)}, 50),
        ({A: entry([2, 3], 0, 24), B: entry([4, 2], 24, 56)}, 60),
        ({A: entry([], 0, 4), B: entry([4, 2], 4, 36)}, 36),
        ({A: entry([0, 3], 0, 0), B: entry([4, 0], 0, 0)}, 0),
        ({A: entry([2, 3], 0, 6, "I8"), B: entry([4, 2], 6, 14, "F8_E4M3")}, 14),
        ({A: entry([-2, -3], 0, 24), B: entry([4, 2], 24, 56)}, 56),
        ({A: entry([2, 3], 24, 0), B: entry([4, 2], 24, 56)}, 56),
        ({A: [1], B: None}, 56),
        ({}, 0),
        (b"[" * 50_000, 0),
        (b"", 0),
    ],
    ids=lambda value: str(value)[-60:] if isinstance(value, dict) else "",
)
def test_a_header_that_lies_is_refused_without_its_memory(adapter: Path, header: Any, body: int):
    with_header(adapter, header, bytes(body))
    tracemalloc.start()
    try:
        refusal(adapter)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [0, 3, 10**8 - 1, 2**62, 2**64 - 1])
def test_the_length_of_a_header_is_not_believed(adapter: Path, length: int):
    with_header(adapter, {}, bytes(64), length=length)
    refusal(adapter)


def test_a_file_of_a_few_bytes_is_refused(adapter: Path):
    for size in range(9):
        (adapter / "adapter_model.safetensors").write_bytes(bytes(size))
        refusal(adapter)


@pytest.mark.parametrize(
    "module",
    ["q\n[INFO] forged line", "q\x1b[31m", "q\x00", "q\u202e", "\ud800", "q" * 3_000_000],
    ids=["line", "escape", "zero", "bidi", "surrogate", "long"],
)
def test_names_that_no_model_has_are_refused(adapter: Path, module: str):
    header = {
        f"{PREFIX}{module}.lora_A.weight": entry([2, 3], 0, 24),
        f"{PREFIX}{module}.lora_B.weight": entry([4, 2], 24, 56),
    }
    with_header(adapter, header, bytes(56))
    message = refusal(adapter)
    assert "no name of a tensor" in message or "expected a safetensors file" in message


def test_very_many_faults_are_counted(adapter: Path):
    (adapter / "adapter_model.safetensors").write_bytes(
        save({f"{PREFIX}layers.{n}.q.other": torch.ones(1) for n in range(2_000)})
    )
    message = refusal(adapter)
    assert "is no part of a LoRA adapter that florist knows; and 1995 more; save the adapter again" in message


@pytest.mark.parametrize(
    "halves",
    [
        tensors("q", A="lora_A.default.weight", B="lora_B.other.weight"),
        tensors("q", A="lora_A.default.weight"),
        tensors("q", A="lora_A.default.weight", B="lora_B.default.weight")
        | tensors("p", A="lora_A.o.weight", B="lora_B.o.weight"),
    ],
    ids=["two names", "one name", "two pairs"],
)
def test_the_halves_of_two_adapters_are_no_pair(adapter: Path, halves: dict[str, torch.Tensor]):
    save_file(halves, adapter / "adapter_model.safetensors")
    assert "belong to two adapters: a file must hold one" in refusal(adapter)


def test_more_experts_than_any_model_has_are_refused(adapter: Path):
    (adapter / "adapter_config.json").write_text(json.dumps(CONFIG | {"r": 1, "target_parameters": ["m.up"]}))
    halves = {f"{PREFIX}m.lora_A.weight": torch.ones(50_000, 1), f"{PREFIX}m.lora_B.weight": torch.ones(1, 50_000)}
    save_file(halves, adapter / "adapter_model.safetensors")
    with pytest.raises(UnsupportedAdapterError, match="at most 20000 experts in m, got 50000"):
        open_adapter(adapter)
