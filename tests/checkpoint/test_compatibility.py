import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaForSequenceClassification

from florist.checkpoint import SavedAdapter, check_compatible, compare, open_adapter
from florist.errors import IncompatibleAdaptersError

from .adapters import edit_config, saved, tiny_llama, trained

Client = Callable[..., Path]


def with_config(directory: Path, **changes: Any) -> SavedAdapter:
    return open_adapter(edit_config(directory, **changes))


def classifier(directory: Path, labels: int = 2) -> SavedAdapter:
    torch.manual_seed(0)
    base = LlamaForSequenceClassification(tiny_llama(num_labels=labels).config)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
    return open_adapter(saved(trained(base, config, seed=1), directory))


def test_unlike_ranks_and_scalings_are_compatible(client: Client):
    adapters = [
        open_adapter(client("a", r=2, lora_alpha=32)),
        open_adapter(client("b", r=8, use_rslora=True, rank_pattern={"q_proj": 3})),
    ]
    compatibility = check_compatible(adapters)
    assert compatibility.problems == ()
    assert compatibility.absent == {}
    assert compatibility.task_type == "CAUSAL_LM"


def test_a_module_that_a_client_lacks_is_reported(client: Client):
    adapters = [
        open_adapter(client("a", target_modules=["q_proj", "v_proj"])),
        open_adapter(client("b", target_modules=["q_proj"])),
    ]
    compatibility = check_compatible(adapters)
    assert set(compatibility.absent) == {f"model.layers.{layer}.self_attn.v_proj" for layer in (0, 1)}
    assert set(compatibility.absent.values()) == {(adapters[1].path,)}
    assert len(compatibility.layout.modules) == 4


def test_everything_that_is_wrong_is_listed_with_the_path_and_the_remedy(client: Client, tmp_path: Path):
    wide = trained(tiny_llama(intermediate_size=64), LoraConfig(r=2, target_modules=["up_proj"]), seed=1)
    adapters = [
        with_config(client("a"), base_model_name_or_path="org/one"),
        with_config(client("b"), base_model_name_or_path="org/two"),
        with_config(saved(wide, tmp_path / "c"), base_model_name_or_path="org/one", revision="v2"),
        with_config(client("d"), base_model_name_or_path="org/one", task_type="SEQ_CLS"),
    ]
    with pytest.raises(IncompatibleAdaptersError) as caught:
        check_compatible(adapters)
    assert re.search(r"and \d more$", str(caught.value))
    message = "\n".join(compare(adapters).problems)
    a, b, c, d = (str(adapter.path) for adapter in adapters)
    assert f"{b} was trained on org/two at revision main, {a} on org/one at revision main" in message
    assert "--allow-base-mismatch" in message
    assert f"{c} was trained on org/one at revision v2" in message
    assert f"{c}: model.layers.0.mlp.up_proj updates a weight (64, 32)" in message
    assert f"{a} one of (48, 32)" in message
    assert f"{d} has task_type SEQ_CLS, {a} has CAUSAL_LM" in message
    assert len(compare(adapters).problems) == 2 + 1 + 2


def test_a_base_mismatch_may_be_allowed(client: Client):
    adapters = [with_config(client(name), base_model_name_or_path=f"/home/{name}/base") for name in "ab"]
    assert len(compare(adapters).problems) == 1
    compatibility = check_compatible(adapters, allow_base_mismatch=True)
    assert compatibility.base_model == "/home/a/base"


def test_no_revision_means_main(client: Client):
    adapters = [with_config(client("a"), revision=None), with_config(client("b"), revision="main")]
    assert check_compatible(adapters).problems == ()


def test_an_unknown_base_is_not_taken_for_a_known_one(client: Client):
    adapters = [
        with_config(client("a"), base_model_name_or_path="org/one"),
        with_config(client("b"), base_model_name_or_path=None),
    ]
    assert "b was trained on no base model" in compare(adapters).problems[0]


def test_no_adapters_are_refused():
    with pytest.raises(IncompatibleAdaptersError, match="at least one"):
        check_compatible([])


def test_parameters_trained_whole_are_refused_unless_a_mean_is_asked_for(tmp_path: Path):
    adapters = [classifier(tmp_path / name) for name in "ab"]
    with pytest.raises(IncompatibleAdaptersError, match=r"trained whole \(score.weight\).*--average-full"):
        check_compatible(adapters)
    assert check_compatible(adapters, average_full=True).layout.modules_to_save == ("classifier", "score")


def test_heads_of_unlike_shape_have_no_mean(tmp_path: Path):
    adapters = [classifier(tmp_path / "a", labels=2), classifier(tmp_path / "b", labels=3)]
    with pytest.raises(IncompatibleAdaptersError, match=r"score.weight: \(3, 32\) and \(2, 32\)"):
        check_compatible(adapters, average_full=True)


def test_a_head_that_one_client_lacks_has_no_mean(client: Client, tmp_path: Path):
    adapters = [classifier(tmp_path / "a"), with_config(client("b"), task_type="SEQ_CLS")]
    with pytest.raises(IncompatibleAdaptersError, match=r"score.weight: None and \(2, 32\)"):
        check_compatible(adapters, average_full=True)


def test_what_auto_classes_need_is_kept_where_all_adapters_agree(client: Client):
    def mapping(*paths: Path) -> object:
        return compare([open_adapter(path) for path in paths]).auto_mapping

    llama = {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama.modeling_llama"}
    a, b = client("a", task_type=None), client("b", task_type=None)
    assert mapping(a, b) == llama  # as PEFT itself wrote it
    edit_config(b, auto_mapping=llama | {"unsloth_fixed": True})
    assert mapping(a, b) == llama
    assert mapping(b) == llama | {"unsloth_fixed": True}
    for other in (None, {}, "LlamaForCausalLM", [], llama | {"base_model_class": "GPT2LMHeadModel"}):
        edit_config(b, auto_mapping=other)
        assert mapping(a, b) is None


def test_one_file_by_two_names_is_given_twice(client: Client, tmp_path: Path):
    own = client("a")
    for name, link in (("hard", Path.hardlink_to), ("soft", Path.symlink_to)):
        (tmp_path / name).mkdir()
        for file in own.iterdir():
            link(tmp_path / name / file.name, file)
    (tmp_path / "folder").symlink_to(own)
    for other in ("hard", "soft", "folder"):
        with pytest.raises(IncompatibleAdaptersError, match=f"{other} is .*/a, given twice"):
            check_compatible([open_adapter(own), open_adapter(tmp_path / other)])


def test_a_refusal_of_very_many_problems_says_how_many_there_are(client: Client):
    others = [with_config(client(f"other{n}"), base_model_name_or_path="org/" + "x" * 150) for n in range(20)]
    adapters = [with_config(client("a"), base_model_name_or_path="org/one"), *others]
    assert len(compare(adapters).problems) == 20
    with pytest.raises(IncompatibleAdaptersError, match=r"and 1\d more$") as caught:
        check_compatible(adapters)
    assert len(str(caught.value)) < 900
    assert "characters" not in str(caught.value)
