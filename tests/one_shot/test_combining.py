import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModel, PeftModel
from transformers import AutoModelForCausalLM

from florist.checkpoint import Export, open_adapter
from florist.errors import (
    ConfigurationError,
    IncompatibleAdaptersError,
    InvalidAdapterError,
    InvalidUpdateError,
    OutputExistsError,
)
from florist.one_shot import aggregate
from florist.ranks import EnergyThreshold, GlobalEnergyThreshold, RankRule
from tests.breaking import copied, edit_tensors, first
from tests.builders import relative_error

IDS = torch.arange(5, 25).reshape(2, 10)


def dense_logits(base: Path, adapters: Sequence[Path], weights: Sequence[float]) -> torch.Tensor:
    """The oracle: base + weighted dense updates as PEFT itself computes them, in float64."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    for path, weight in zip(adapters, weights, strict=True):
        other = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
        saved = PeftModel.from_pretrained(other, path)
        for name, module in saved.get_base_model().named_modules():
            if hasattr(module, "get_delta_weight"):
                model.get_submodule(name).weight.data += weight * module.get_delta_weight("default").double()
    with torch.no_grad():
        return model(input_ids=IDS).logits


def loaded_logits(base: Path, adapter: Path) -> torch.Tensor:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("export", Export)
@pytest.mark.parametrize("counts", [None, [3, 1, 2]])
@pytest.mark.quick(1)
def test_through_peft_the_result_is_the_base_and_the_weighted_sum(
    tiny_llama: Path, saved_adapters: list[Path], tmp_path: Path, export: Export, counts: list[int] | None
) -> None:
    result = aggregate(saved_adapters, rank_rule=EnergyThreshold(1.0), num_examples=counts)
    result.write(tmp_path / "out", export=export)
    shares = [1 / 3] * 3 if counts is None else [count / sum(counts) for count in counts]
    expected = dense_logits(tiny_llama, saved_adapters, shares)
    assert relative_error(loaded_logits(tiny_llama, tmp_path / "out"), expected) < 1e-5


def test_at_a_threshold_the_certificate_says_what_is_lost(saved_adapters: list[Path], tmp_path: Path) -> None:
    exact = aggregate(saved_adapters, rank_rule=EnergyThreshold(1.0))
    document = aggregate(saved_adapters, rank_rule=EnergyThreshold(0.8)).write(tmp_path / "out")
    written = open_adapter(tmp_path / "out").adapter
    assert document["total_rank"] == written.total_rank < exact.adapter.total_rank == document["input_rank"]
    for name, module in document["modules"].items():
        dense = exact.adapter[name].delta_weight()
        error = relative_error(written[name].delta_weight(), dense)
        assert module["relative_error"] == pytest.approx(error, abs=1e-5)
        assert module["energy_kept"] >= 0.8
        assert module["shape"] == list(dense.shape)


def test_the_certificate_file_names_inputs_weights_and_hashes(saved_adapters: list[Path], tmp_path: Path) -> None:
    result = aggregate(saved_adapters, rank_rule=EnergyThreshold(0.9), num_examples=[3, 1, 1])
    document = result.write(tmp_path / "out", settings={"method": "florist", "tau": 0.9})
    assert json.loads((tmp_path / "out" / "florist.json").read_text()) == document
    assert [entry["weight"] for entry in document["inputs"]] == [0.6, 0.2, 0.2]
    for entry, path in zip(document["inputs"], saved_adapters, strict=True):
        assert entry["path"] == str(path)
        for name, digest in entry["sha256"].items():
            assert digest == sha256((path / name).read_bytes()).hexdigest()
    assert document["bytes_in"] == sum(open_adapter(path).stored_bytes for path in saved_adapters)
    assert document["bytes_out"] == open_adapter(tmp_path / "out").stored_bytes
    assert (document["method"], document["tau"]) == ("florist", 0.9)


def test_hashes_are_those_of_the_bytes_that_were_used(saved_adapters: list[Path], tmp_path: Path) -> None:
    one = copied(saved_adapters[0], tmp_path / "one")
    config = one / "adapter_config.json"
    before = sha256(config.read_bytes()).hexdigest()
    result = aggregate([one, saved_adapters[1]], rank_rule=EnergyThreshold(0.9))
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 9'))
    assert sha256(config.read_bytes()).hexdigest() != before
    document = result.write(tmp_path / "out")
    assert document["inputs"][0]["sha256"]["adapter_config.json"] == before


def test_weights_that_change_before_they_are_hashed_are_refused(saved_adapters: list[Path], tmp_path: Path) -> None:
    one = copied(saved_adapters[0], tmp_path / "one")
    result = aggregate([one, saved_adapters[1]], rank_rule=EnergyThreshold(0.9))
    edit_tensors(lambda tensors: tensors[first(tensors, "A")].mul_(2))(one)
    with pytest.raises(InvalidAdapterError, match=r"one/adapter_model\.safetensors as it was when it was opened"):
        result.write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_the_order_of_the_adapters_changes_no_bit(saved_adapters: list[Path], tmp_path: Path) -> None:
    for name, order in (("one", saved_adapters), ("two", saved_adapters[::-1])):
        aggregate(order, rank_rule=EnergyThreshold(0.9)).write(tmp_path / name)
    one, two = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("device", ["nowhere", "meta:x", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(saved_adapters: list[Path], device: str) -> None:
    with pytest.raises(ConfigurationError, match=f"expected a device that torch can use.*'{device}'.*use cpu"):
        aggregate(saved_adapters, rank_rule=EnergyThreshold(1.0), device=device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rule", [EnergyThreshold(1.0), EnergyThreshold(0.8), GlobalEnergyThreshold(0.9)])
def test_a_gpu_gives_what_the_cpu_gives(saved_adapters: list[Path], rule: RankRule) -> None:
    ours, theirs = (aggregate(saved_adapters, rank_rule=rule, device=device) for device in ("cuda", "cpu"))
    assert ours.certificate.total_rank == theirs.certificate.total_rank
    for name, factor in theirs.adapter.items():
        assert relative_error(ours.adapter[name].delta_weight(), factor.delta_weight()) < 1e-5


def test_an_adapter_given_twice_is_refused(saved_adapters: list[Path]) -> None:
    with pytest.raises(IncompatibleAdaptersError, match=r"A is .*A, given twice: .*raise its weight instead"):
        aggregate([saved_adapters[0], saved_adapters[0] / "."], rank_rule=EnergyThreshold(0.9))


def test_a_short_list_of_weights_is_refused(saved_adapters: list[Path]) -> None:
    with pytest.raises(InvalidUpdateError, match="a weight for each of the 3 adapters, got 2"):
        aggregate(saved_adapters, rank_rule=EnergyThreshold(0.9), num_examples=[1, 1])


def test_another_base_model_is_refused_unless_allowed(saved_adapters: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (other / file).write_bytes((saved_adapters[0] / file).read_bytes())
    config = json.loads((other / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "another/base"
    (other / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(IncompatibleAdaptersError, match="another/base"):
        aggregate([saved_adapters[1], other], rank_rule=EnergyThreshold(0.9))
    aggregate([saved_adapters[1], other], rank_rule=EnergyThreshold(0.9), allow_base_mismatch=True)


def test_an_output_that_exists_is_kept(saved_adapters: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError):
        aggregate(saved_adapters, rank_rule=EnergyThreshold(0.9)).write(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_an_observer_is_told_of_every_module(saved_adapters: list[Path]) -> None:
    told: list[tuple[int, int]] = []
    once = aggregate(saved_adapters, rank_rule=EnergyThreshold(0.9), on_module=lambda *step: told.append(step))
    assert list(dict.fromkeys(told)) == [(position, 14) for position in range(14)]
    last = told.count((13, 14))
    told.clear()
    aggregate(saved_adapters, rank_rule=GlobalEnergyThreshold(0.9), on_module=lambda *step: told.append(step))
    assert told.count((13, 14)) == 2 * last  # the rule wants every spectrum before it names a rank
    silent = aggregate(saved_adapters, rank_rule=EnergyThreshold(0.9))
    assert all(torch.equal(once.adapter[name].B, silent.adapter[name].B) for name in silent.adapter)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("tau", [0.9, 1.0])
def test_adapters_that_learnt_nothing_make_one_that_adds_nothing(
    tiny_llama: Path, saved_adapters: list[Path], tmp_path: Path, dtype: torch.dtype, tau: float
) -> None:
    def forget(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            tensors[name] = (tensor * ("lora_A" in name)).to(dtype)

    idle = [copied(path, tmp_path / path.name, edit_tensors(forget)) for path in saved_adapters]
    document = aggregate(idle, rank_rule=EnergyThreshold(tau)).write(tmp_path / "out", dtype=dtype)
    assert (document["total_rank"], document["relative_error"]) == (0, 0.0)
    assert {module["energy_kept"] for module in document["modules"].values()} == {1.0}
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        assert torch.equal(loaded_logits(tiny_llama, tmp_path / "out"), base(input_ids=IDS).logits)


def test_auto_classes_load_the_result_where_they_load_the_inputs(
    tiny_llama: Path, saved_adapters: list[Path], tmp_path: Path
) -> None:
    inputs: list[Path] = []
    for path in saved_adapters:
        # PEFT writes auto_mapping where there is no task type: saved again without one, each adapter carries it.
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), path)
        model.peft_config["default"].task_type = None
        model.save_pretrained(tmp_path / path.name)
        inputs.append(tmp_path / path.name)
        AutoPeftModel.from_pretrained(inputs[-1])
    aggregate(inputs, rank_rule=EnergyThreshold(0.9)).write(tmp_path / "out")
    model = AutoPeftModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        found = model(input_ids=IDS).logits
    assert relative_error(found, loaded_logits(tiny_llama, tmp_path / "out")) < 1e-6


def test_a_cut_of_an_aggregate_is_the_aggregate_at_that_rank(saved_adapters: list[Path], tmp_path: Path) -> None:
    whole, cut = (aggregate(saved_adapters, rank_rule=EnergyThreshold(tau)) for tau in (1.0, 0.8))
    found = whole.leading({name: factor.rank for name, factor in cut.adapter.items()})
    assert found.certificate.bytes_in == cut.certificate.bytes_in
    assert found.certificate.bytes_out == cut.certificate.bytes_out == cut.adapter.nbytes
    for name, expected in cut.certificate.modules.items():
        module = found.certificate.modules[name]
        assert (module.rank, module.input_rank, module.shape) == (expected.rank, expected.input_rank, expected.shape)
        assert module.error == pytest.approx(expected.error, rel=1e-5)
        assert module.energy_kept == pytest.approx(expected.energy_kept, rel=1e-5)
        assert relative_error(found.adapter[name].delta_weight(), cut.adapter[name].delta_weight()) < 1e-4


def test_a_cut_of_a_cut_counts_both_losses(saved_adapters: list[Path]) -> None:
    whole, cut = (aggregate(saved_adapters, rank_rule=EnergyThreshold(tau)) for tau in (1.0, 0.9))
    ones = dict.fromkeys(whole.adapter, 1)
    at_once, in_steps = whole.leading(ones).certificate, cut.leading(ones).certificate
    for name, module in at_once.modules.items():
        assert in_steps.modules[name].error == pytest.approx(module.error, rel=1e-5)
        assert in_steps.modules[name].rank == 1


def test_files_beside_an_adapter_appear_with_it_or_not_at_all(saved_adapters: list[Path], tmp_path: Path) -> None:
    whole = aggregate(saved_adapters, rank_rule=EnergyThreshold(0.5))
    whole.write(tmp_path / "out", beside={"why.txt": "because"})
    assert (tmp_path / "out" / "why.txt").read_text() == "because"
    with pytest.raises(FileNotFoundError):
        whole.write(tmp_path / "second", beside={"no/such/folder.txt": ""})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
