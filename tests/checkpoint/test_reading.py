import os
import shlex
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from florist.checkpoint import open_adapter
from florist.errors import (
    InvalidAdapterError,
    MissingInputError,
    NonFiniteUpdateError,
    UnsupportedAdapterError,
)

from .adapters import LINEARS, deltas, edit_config, edit_tensors, relative, saved, tiny_llama, trained

Client = Callable[..., Path]
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 8},
        {"r": 8, "lora_alpha": 8, "use_rslora": True},
        {"r": 1, "lora_alpha": 32},
        {
            "r": 4,
            "lora_alpha": 8,
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 6},
            "alpha_pattern": {"q_proj": 5},
        },
        {"r": 4, "lora_alpha": 8, "use_rslora": True, "rank_pattern": {"v_proj": 9}, "alpha_pattern": {"down_proj": 3}},
        {"r": 4, "init_lora_weights": "gaussian"},
        {"r": 4, "init_lora_weights": "orthogonal"},
        {"r": 32, "lora_alpha": 16},
    ],
    ids=str,
)
def test_products_equal_the_updates_that_peft_computes(tmp_path: Path, settings: dict[str, Any]):
    # r = 32 is the width of the model: both halves of q_proj are square, so that only names tell A from B.
    model = trained(tiny_llama(), LoraConfig(target_modules=LINEARS, **settings), seed=1)
    adapter = open_adapter(saved(model, tmp_path / "a")).adapter
    expected = deltas(model)
    assert set(adapter) == set(expected)
    for name, delta in expected.items():
        assert relative(adapter[name].delta_weight(), delta) < 1e-6, name
        assert adapter[name].spec == adapter.specs[name]


def test_unlike_r_and_alpha_between_clients_sum_exactly(tmp_path: Path):
    # One alpha / r for all clients would be wrong by 0.69 here.
    total: dict[str, torch.Tensor] = {}
    expected: dict[str, torch.Tensor] = {}
    for seed, (rank, alpha) in enumerate([(2, 8), (4, 8)]):
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["q_proj"])
        model = trained(tiny_llama(), config, seed)
        adapter = open_adapter(saved(model, tmp_path / str(seed))).adapter
        for name, delta in deltas(model).items():
            total[name] = total.get(name, 0) + 0.5 * adapter[name].delta_weight()
            expected[name] = expected.get(name, 0) + 0.5 * delta
    assert all(relative(total[name], expected[name]) < 1e-6 for name in expected)


def test_the_weights_file_may_be_named_itself(client: Client):
    directory = client("a")
    file = directory / "adapter_model.safetensors"
    assert open_adapter(file).adapter.specs == open_adapter(directory).adapter.specs
    assert open_adapter(file).path == file


def test_what_the_config_says_of_the_base(client: Client):
    adapter = open_adapter(edit_config(client("a"), base_model_name_or_path="org/base", revision="v2"))
    assert (adapter.base_model, adapter.revision, adapter.task_type) == ("org/base", "v2", "CAUSAL_LM")
    assert adapter.config["r"] == 4
    assert adapter.stored_bytes == adapter.adapter.nbytes


def test_scaling_a_half_precision_adapter_loses_no_digits(tmp_path: Path):
    model = trained(tiny_llama().half(), LoraConfig(r=3, lora_alpha=10, target_modules=["q_proj"]), seed=1)
    adapter = open_adapter(saved(model.half(), tmp_path / "a"))
    stored = load_file(tmp_path / "a" / "adapter_model.safetensors")
    A, B = stored[f"{Q}.lora_A.weight"], stored[f"{Q}.lora_B.weight"]
    assert A.dtype == torch.float16
    factor = adapter.adapter["model.layers.0.self_attn.q_proj"]
    assert factor.B.dtype == torch.float32
    assert relative(factor.delta_weight(), (10 / 3) * B.double() @ A.double()) < 1e-6
    assert adapter.stored_bytes * 2 == adapter.adapter.nbytes


def test_float64_stays_float64(client: Client):
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.double() for name, tensor in tensors.items()})

    adapter = open_adapter(edit_tensors(client("a"), widen)).adapter
    assert {factor.B.dtype for factor in adapter.values()} == {torch.float64}
    assert {spec.dtype for spec in adapter.specs.values()} == {torch.float64}


def test_an_adapter_name_in_the_keys_is_dropped(client: Client):
    plain = open_adapter(client("plain")).adapter

    def named(tensors: dict[str, torch.Tensor]) -> None:
        for key in list(tensors):
            tensors[key.replace(".weight", ".default.weight")] = tensors.pop(key)

    adapter = open_adapter(edit_tensors(client("named"), named)).adapter
    assert adapter.specs == plain.specs
    assert all(torch.equal(adapter[name].B, plain[name].B) for name in plain)


def test_a_classification_head_is_read_whole(tmp_path: Path):
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(0)
    base = LlamaForSequenceClassification(tiny_llama().config)
    model = trained(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS"), seed=1)
    adapter = open_adapter(saved(model, tmp_path / "a"))
    assert list(adapter.saved_parameters) == ["score.weight"]
    head = model.base_model.model.score.modules_to_save["default"].weight
    assert torch.equal(adapter.saved_parameters["score.weight"], head.detach())
    with pytest.raises(KeyError):
        adapter.saved_parameters["score.bias"]


def drop(key: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.__delitem__(key)


def put(key: str, tensor: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({key: tensor})


def strip_prefix(tensors: dict[str, torch.Tensor]) -> None:
    for key in list(tensors):
        tensors[key.removeprefix("base_model.model.")] = tensors.pop(key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop(f"{Q}.lora_B.weight"), r"layers.0.self_attn.q_proj has no lora_B.*save_pretrained"),
        (drop(f"{Q}.lora_A.weight"), "layers.0.self_attn.q_proj has no lora_A"),
        (strip_prefix, "lacks the prefix 'base_model.model.'"),
        (put(f"{Q}.lora_A.weight", torch.zeros(3, 32)), r"lora_A \(3, 32\).* where the config says rank 4"),
        (put(f"{Q}.lora_A.weight", torch.zeros(1, 32)), r"lora_A \(1, 32\) and lora_B \(32, 4\)"),
        (put(f"{Q}.lora_B.weight", torch.zeros(32, 4, 1)), r"lora_B \(32, 4, 1\)"),
        (put(f"{Q}.lora_B.weight", torch.zeros(32, 0)), r"lora_B.weight has shape \(32, 0\)"),
        (put(f"{Q}.lora_B.weight", torch.zeros(32, 4, dtype=torch.int8)), "lora_B.weight is I8"),
        (put(f"{Q}.lora_B.weight", torch.zeros(32, 4, dtype=torch.bool)), "lora_B.weight is BOOL"),
        (put(f"{Q}.lora_B.weight", torch.zeros(32, 4).to(torch.float8_e4m3fn)), "lora_B.weight is F8_E4M3"),
        (put(f"{Q}.lora_C.weight", torch.zeros(2)), "lora_C.weight is no part of a LoRA adapter that florist knows"),
        (
            put("base_model.model.norm.weight", torch.zeros(2)),
            "norm.weight is a saved parameter that the config does not name",
        ),
        (put(f"{Q}.lora_A.other.weight", torch.zeros(4, 32)), "a file must hold one adapter"),
        (lambda tensors: tensors.clear(), "holds no lora_A and lora_B at all"),
    ],
)
def test_a_file_that_is_not_what_peft_writes_is_refused(
    client: Client, change: Callable[[dict[str, torch.Tensor]], None], message: str
):
    directory = edit_tensors(client("a"), change)
    with pytest.raises(InvalidAdapterError, match=message) as caught:
        open_adapter(directory)
    assert str(directory) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "variant"),
    [
        (f"{Q}.lora_magnitude_vector", "DoRA"),
        (f"{Q}.lora_diag", "KaSA"),
        (f"{Q}.lora_diag.default", "KaSA"),
        (f"{Q}.lora_E", "AdaLoRA"),
        (f"{Q}.ranknum", "AdaLoRA"),
    ],
)
def test_a_tensor_of_a_variant_is_refused_though_the_config_is_silent(client: Client, key: str, variant: str):
    # The product alone would be combined without the tensor that stands between its halves.
    directory = edit_tensors(client("a"), put(key, torch.ones(4)))
    with pytest.raises(UnsupportedAdapterError, match=f"holds {key}: this is {variant}, whose update is not s B A"):
        open_adapter(directory)


def test_everything_that_is_wrong_is_listed(client: Client):
    def break_two(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{Q}.lora_A.weight"], tensors[f"{Q.replace('.0.', '.1.')}.lora_B.weight"]

    with pytest.raises(InvalidAdapterError, match=r"layers\.0.* has no lora_A.weight; .*layers\.1.* has no lora_B"):
        open_adapter(edit_tensors(client("a"), break_two))


def test_a_rank_one_half_never_broadcasts(client: Client):
    directory = client("a", r=1, target_modules=["q_proj"])
    edit_tensors(directory, put(f"{Q}.lora_B.weight", torch.zeros(32, 8)))
    with pytest.raises(InvalidAdapterError, match=r"lora_A \(1, 32\) and lora_B \(32, 8\)"):
        open_adapter(directory)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("half", ["A", "B"])
def test_values_that_are_not_finite_are_refused_when_read(client: Client, value: float, half: str):
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{Q}.lora_{half}.weight"][0, 0] = value

    adapter = open_adapter(edit_tensors(client("a"), poison)).adapter
    assert adapter["model.layers.1.self_attn.q_proj"].rank == 4
    with pytest.raises(NonFiniteUpdateError, match=rf"lora_{half}.weight of .*adapter_model.safetensors"):
        adapter["model.layers.0.self_attn.q_proj"]


def test_a_name_that_occurs_twice_is_refused(client: Client):
    # safetensors itself keeps the last of the two without a word.
    path = client("a") / "adapter_model.safetensors"
    entry = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
    header = f'{{"w":{entry},"w":{entry}}}'.encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    assert list(load_file(path)) == ["w"]
    with pytest.raises(InvalidAdapterError, match="w occurs twice"):
        open_adapter(path)


@pytest.mark.parametrize("content", [b"", b"\x80\x04}.", bytes(100), b"PK\x03\x04" + bytes(40)])
def test_a_file_that_is_no_safetensors_file_is_refused(client: Client, content: bytes):
    path = client("a") / "adapter_model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InvalidAdapterError, match="expected a safetensors file, got"):
        open_adapter(path)


def test_a_truncated_file_is_refused(client: Client):
    path = client("a") / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InvalidAdapterError, match="expected a safetensors file"):
        open_adapter(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": None}, 'expected "peft_type": "LORA"'),
        ({"r": 0}, "expected r in .* whole number from 1, got 0"),
        ({"r": "8"}, "expected r in .* got '8'"),
        ({"r": 4.0}, "expected r in .* got 4.0"),
        ({"r": 5}, "where the config says rank 5"),
        ({"lora_alpha": float("nan")}, "expected lora_alpha in .* finite number, at most .*, got nan"),
        ({"lora_alpha": None}, "expected lora_alpha in .* got None"),
        ({"rank_pattern": {"q_proj": -1}}, r"expected rank_pattern\['q_proj'\] in"),
        ({"rank_pattern": {"q_proj": 3}}, "where the config says rank 3"),
        ({"rank_pattern": ["q_proj"]}, "expected rank_pattern in .* to be an object"),
        ({"alpha_pattern": {"q_proj(": 3}}, "expected a regular expression"),
        ({"modules_to_save": "score"}, "expected modules_to_save in .* to be a list of names"),
    ],
)
def test_a_config_that_says_nonsense_is_refused(client: Client, changes: dict[str, Any], message: str):
    with pytest.raises(InvalidAdapterError, match=message):
        open_adapter(edit_config(client("a"), **changes))


@pytest.mark.parametrize("content", ["", "[]", "{", '"LORA"'])
def test_a_config_that_is_no_json_object_is_refused(client: Client, content: str):
    directory = client("a")
    (directory / "adapter_config.json").write_text(content)
    with pytest.raises(InvalidAdapterError, match=r"expected (JSON in|a JSON object)"):
        open_adapter(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "ADALORA"}, "is a ADALORA adapter"),
        ({"peft_type": "LOHA"}, "is a LOHA adapter"),
        ({"use_dora": True}, "uses DoRA"),
        ({"use_qalora": True}, "uses QALoRA"),
        ({"use_bdlora": {"nblocks": 2}}, "uses BD-LoRA"),
        ({"kasa_config": {"beta": 1}}, "uses KaSA"),
        ({"arrow_config": {"top_k": 3}}, "uses Arrow"),
        ({"alora_invocation_tokens": [1, 2]}, "uses activated LoRA"),
        ({"use_future_lora": True}, "uses use_future_lora"),
        ({"future_config": {"x": 1}}, "uses future_config"),
        ({"init_lora_weights": "pissa"}, "initialised with pissa.*path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "pissa_niter_16"}, "initialised with pissa_niter_16"),
        ({"init_lora_weights": "olora"}, "initialised with olora.*path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "corda"}, "initialised with corda.*path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "lora_ga"}, "initialised with lora_ga.*path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "loftq"}, "initialised with loftq"),
        ({"init_lora_weights": "future"}, "initialised with 'future'"),
    ],
)
def test_variants_whose_factors_say_too_little_are_refused(client: Client, changes: dict[str, Any], message: str):
    with pytest.raises(UnsupportedAdapterError, match=message):
        open_adapter(edit_config(client("a"), **changes))


@pytest.mark.parametrize("start", ["eva", "gaussian", "orthogonal", True, False])
def test_initialisations_that_leave_the_base_alone_are_read(client: Client, start: str | bool):
    assert len(open_adapter(edit_config(client("a"), init_lora_weights=start)).adapter) == 14


def test_every_default_of_this_peft_is_read(client: Client):
    # A setting of a new PEFT that looks like a variant must not make florist refuse plain adapters.
    directory = edit_config(client("a"), **LoraConfig().to_dict() | {"r": 4, "lora_alpha": 8, "peft_type": "LORA"})
    assert open_adapter(directory).adapter.total_rank == 14 * 4


def test_a_missing_path_is_named(tmp_path: Path):
    with pytest.raises(MissingInputError, match=r"found nothing at .*nowhere; check the path"):
        open_adapter(tmp_path / "nowhere")
    with pytest.raises(MissingInputError, match=r"expected adapter_model.safetensors"):
        open_adapter(tmp_path)


@pytest.mark.parametrize("name", ["README.md", "adapter_config.json", "weights"])
def test_a_file_that_holds_no_weights_is_named(client: Client, name: str):
    file = client("a") / name
    file.touch()
    with pytest.raises(InvalidAdapterError, match=rf"expected an adapter: a directory as .*; got the file .*{name}$"):
        open_adapter(file)


def test_a_missing_config_is_named(client: Client):
    directory = client("a")
    (directory / "adapter_config.json").unlink()
    with pytest.raises(MissingInputError, match=r"adapter_config.json beside the weights"):
        open_adapter(directory)


def test_a_pickle_is_read_only_when_asked_for(client: Client):
    directory = client("a")
    expected = dict(open_adapter(directory).adapter)
    file = directory / "adapter_model.safetensors"
    torch.save(load_file(file), directory / "adapter_model.bin")
    file.unlink()
    for named in (directory, directory / "adapter_model.bin"):
        with pytest.raises(InvalidAdapterError, match="found only the pickle"):
            open_adapter(named)
    adapter = open_adapter(directory, allow_pickle=True).adapter
    assert adapter.keys() == expected.keys()
    assert all(torch.equal(adapter[name].B, factor.B) for name, factor in expected.items())


def test_a_refused_pickle_comes_with_a_command_that_converts_it(client: Client):
    directory = client("a pickle's")
    expected = dict(open_adapter(directory).adapter)
    file = directory / "adapter_model.safetensors"
    torch.save(load_file(file), directory / "adapter_model.bin")
    file.unlink()
    with pytest.raises(InvalidAdapterError) as refusal:
        open_adapter(directory)
    command = str(refusal.value).partition("with: ")[2].partition(" and name ")[0]
    words = shlex.split(command)
    assert words[:2] == ["python", "-c"]
    subprocess.run([sys.executable, *words[1:]], check=True)
    converted = open_adapter(directory).adapter
    assert all(torch.equal(converted[name].B, factor.B) for name, factor in expected.items())


def test_finite_values_whose_sum_overflows_are_finite(client: Client):
    directory = client("a")
    edit_tensors(directory, lambda tensors: tensors[f"{Q}.lora_A.weight"].fill_(2e38))
    factor = open_adapter(directory).adapter["model.layers.0.self_attn.q_proj"]
    assert bool((factor.A == 2e38).all())


@pytest.mark.parametrize("key", ["lora_alpha", "alpha_pattern"])
def test_a_scaling_that_overflows_is_told_from_values_that_are_not_finite(client: Client, key: str):
    directory = client("a")
    edit_tensors(directory, lambda tensors: tensors[f"{Q}.lora_B.weight"].fill_(1e20))
    edit_config(directory, **{key: 1e30 if key == "lora_alpha" else {"layers.0.self_attn.q_proj": 1e30}})
    adapter = open_adapter(directory).adapter
    with pytest.raises(
        NonFiniteUpdateError,
        match=r"model\.layers\.0\.self_attn\.q_proj of .*safetensors .*scaling 2\.5e\+29 overflows.*lora_alpha",
    ):
        adapter["model.layers.0.self_attn.q_proj"]


@pytest.mark.parametrize("what", ["rewritten", "rewritten in secret", "truncated", "gone"])
def test_a_file_that_changes_after_it_was_opened_is_refused(client: Client, what: str):
    directory = client("a")
    adapter = open_adapter(directory).adapter
    file = directory / "adapter_model.safetensors"
    before = file.stat()
    if what.startswith("rewritten"):
        save_file({name: tensor * 2 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
        if what == "rewritten in secret":
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif what == "truncated":
        os.truncate(file, file.stat().st_size // 2)
    else:
        file.unlink()
    with pytest.raises(InvalidAdapterError, match="changed or gone since; copy an upload"):
        dict(adapter)


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def test_a_pickle_never_runs_code(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    directory = client("a")
    (directory / "adapter_model.safetensors").unlink()
    torch.save({"a": _Payload()}, directory / "adapter_model.bin")
    with pytest.raises(InvalidAdapterError, match="weights_only=True"):
        open_adapter(directory, allow_pickle=True)
    assert not Path("executed").exists()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 13648\n"


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin", "adapter_config.json"])
def test_a_file_that_git_lfs_has_not_fetched_is_named(client: Client, name: str):
    directory = client("a")
    if name.endswith(".bin"):
        (directory / "adapter_model.safetensors").unlink()
    (directory / name).write_bytes(POINTER)
    with pytest.raises(InvalidAdapterError, match=rf"{name} is a Git LFS pointer, .*: run `git lfs pull` in .*a"):
        open_adapter(directory, allow_pickle=True)


def test_a_directory_without_an_adapter_is_refused_with_what_is_in_it(client: Client, tmp_path: Path):
    for name in ("site1", "site2"):
        client(name)
    with pytest.raises(MissingInputError, match=r"found none: it holds the adapters site1, site2; name one of these"):
        open_adapter(tmp_path)
    model = tmp_path / "model"
    model.mkdir()
    with pytest.raises(MissingInputError, match=r"model, found none: it is empty"):
        open_adapter(model)
    for name in ("config.json", "model.safetensors"):
        (model / name).write_text("{}")
    with pytest.raises(MissingInputError, match=r"found none: it holds config\.json, model\.safetensors"):
        open_adapter(model)
    for number in range(9):
        (model / f"f{number}").write_text("")
    with pytest.raises(MissingInputError, match=r"config\.json, f0, f1, f2, f3 and 6 more"):
        open_adapter(model)
    (tmp_path / "site1" / "adapter_model.safetensors").unlink()
    with pytest.raises(MissingInputError, match=r"site1, found none: it holds README\.md, adapter_config\.json"):
        open_adapter(tmp_path / "site1")
    with pytest.raises(MissingInputError, match=r"it holds the adapters site2; name"):
        open_adapter(tmp_path)
