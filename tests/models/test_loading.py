from pathlib import Path

import pytest
import torch

from florist.errors import ModelError
from florist.models.loading import load_causal_lm, load_classifier, load_tokenizer


def test_a_head_that_is_not_in_the_checkpoint_depends_on_the_seed_alone(tiny_bert: Path) -> None:
    def head(seed: int) -> torch.Tensor:
        torch.manual_seed(torch.seed() % 1000)  # whatever the process drew before
        model, _ = load_classifier(str(tiny_bert), torch.float32, ("a", "b"), None, seed=seed)
        return model.get_submodule("classifier").weight

    assert torch.equal(head(0), head(0))
    assert not torch.equal(head(0), head(1))


def test_a_directory_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a directory that transformers cannot load"):
        load_causal_lm(str(tmp_path), torch.float32)
    with pytest.raises(ModelError, match="no such directory or hub id"):
        load_tokenizer(str(tmp_path / "nothing"))


def test_a_head_that_the_model_does_not_have_is_refused(tiny_bert: Path) -> None:
    with pytest.raises(ModelError, match=r"head modules \['scorer'\]"):
        load_classifier(str(tiny_bert), torch.float32, ("a", "b"), ("scorer",), seed=0)
