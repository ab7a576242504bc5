"""Parameters that PEFT saves whole though no config names them: heads of a task, copies of a tied embedding."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from florist.checkpoint import check_compatible, open_adapter
from florist.errors import IncompatibleAdaptersError, InvalidAdapterError
from florist.one_shot import aggregate
from florist.ranks import EnergyThreshold

from .adapters import edit_config, edit_tensors, loaded, logits, relative, saved, tiny_llama, trained


def tiny_bert(kind: type[PreTrainedModel]) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    return kind(BertConfig(**sizes, vocab_size=50, num_labels=3, pad_token_id=0)).eval()


def tiny_llama_classifier() -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForSequenceClassification(tiny_llama(num_labels=3).config).eval()


HEADS: dict[str, tuple[Callable[[], PreTrainedModel], str, set[str]]] = {
    "Llama, sequences": (tiny_llama_classifier, "SEQ_CLS", {"score.weight"}),
    "BERT, sequences": (
        lambda: tiny_bert(BertForSequenceClassification),
        "SEQ_CLS",
        {"classifier.weight", "classifier.bias"},
    ),
    "BERT, tokens": (
        lambda: tiny_bert(BertForTokenClassification),
        "TOKEN_CLS",
        {"classifier.weight", "classifier.bias"},
    ),
    "BERT, questions": (
        lambda: tiny_bert(BertForQuestionAnswering),
        "QUESTION_ANS",
        {"qa_outputs.weight", "qa_outputs.bias"},
    ),
}


def client(directory: Path, base: PreTrainedModel, seed: int, task_type: str | None, **settings: Any) -> Path:
    targets = ["q_proj"] if hasattr(base.model if hasattr(base, "model") else base, "layers") else ["query"]
    config = LoraConfig(r=2, target_modules=targets, task_type=task_type, **settings)
    return saved(trained(base, config, seed), directory)


@pytest.mark.parametrize(("base", "task_type", "names"), HEADS.values(), ids=HEADS)
def test_a_task_implies_its_head_where_older_peft_wrote_none_down(
    tmp_path: Path, base: Callable[[], PreTrainedModel], task_type: str, names: set[str]
) -> None:
    paths = [client(tmp_path / str(seed), base(), seed, task_type) for seed in (1, 2)]
    for path in paths:
        edit_config(path, modules_to_save=None)  # as PEFT up to 0.6 wrote it
    heads = [open_adapter(path).saved_parameters for path in paths]
    assert set(heads[0]) == names
    with pytest.raises(IncompatibleAdaptersError, match="--average-full"):
        check_compatible([open_adapter(path) for path in paths])
    merged = aggregate(paths, rank_rule=EnergyThreshold(1.0), num_examples=[3, 1], average_full=True)
    merged.write(tmp_path / "out")
    model = loaded(base(), tmp_path / "out")
    for name in names:
        module, _, leaf = name.rpartition(".")
        found = model.get_base_model().get_submodule(module).modules_to_save["default"]  # type: ignore[union-attr]  # PEFT's wrapper
        torch.testing.assert_close(getattr(found, leaf), 0.75 * heads[0][name] + 0.25 * heads[1][name])


def test_another_task_implies_no_head(tmp_path: Path) -> None:
    path = client(tmp_path / "a", tiny_llama_classifier(), 1, "SEQ_CLS")
    edit_config(path, modules_to_save=None, task_type="CAUSAL_LM")
    with pytest.raises(InvalidAdapterError, match=r"score\.weight is a saved parameter .*add its module to modules_to"):
        open_adapter(path)


def tied() -> PreTrainedModel:
    return tiny_llama(tie_word_embeddings=True)


def test_a_tied_copy_of_a_saved_embedding_is_read_averaged_and_written(tmp_path: Path) -> None:
    # PEFT stores the trained embedding under the name of the tied output layer too, which the config does not name.
    settings = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    paths = [client(tmp_path / str(seed), tied(), seed, "CAUSAL_LM", **settings) for seed in (1, 2)]
    one = open_adapter(paths[0])
    assert set(one.saved_parameters) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert one.layout.tied_parameters == ("lm_head.weight",)
    assert relative(logits(loaded(tied(), paths[0])), logits(tied())) > 0.01  # the update matters
    aggregate(paths[:1], rank_rule=EnergyThreshold(1.0), average_full=True).write(tmp_path / "same")
    assert relative(logits(loaded(tied(), tmp_path / "same")), logits(loaded(tied(), paths[0]))) < 1e-5
    aggregate(paths, rank_rule=EnergyThreshold(1.0), average_full=True).write(tmp_path / "out")
    out = open_adapter(tmp_path / "out")
    assert "lm_head" not in out.config["modules_to_save"]
    assert out.config["ensure_weight_tying"] is True
    mean = sum((open_adapter(path).saved_parameters["lm_head.weight"] for path in paths), start=torch.zeros(())) / 2
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        torch.testing.assert_close(out.saved_parameters[name], mean)
    model = loaded(tied(), tmp_path / "out").get_base_model()
    embedding, head = (
        module.modules_to_save["default"].weight  # type: ignore[union-attr]  # PEFT's wrapper
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    assert embedding.data_ptr() == head.data_ptr()


def test_a_copy_of_another_shape_is_no_tied_embedding(tmp_path: Path) -> None:
    path = client(tmp_path / "a", tied(), 1, None, modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    edit_tensors(path, lambda tensors: tensors.update({"base_model.model.lm_head.weight": torch.ones(3, 2)}))
    with pytest.raises(InvalidAdapterError, match=r"lm_head\.weight is a saved parameter that the config does not"):
        open_adapter(path)


def test_an_untied_model_stores_no_copy(tmp_path: Path) -> None:
    path = client(tmp_path / "a", tiny_llama(), 1, None, modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    assert open_adapter(path).layout.tied_parameters == ()
    assert open_adapter(path).saved_parameters.shapes == {"model.embed_tokens.weight": (50, 32)}
