import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch

from florist.errors import ModelError
from florist.models import finding
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


# --- the hub


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What the hub is asked for: it does not answer, and the local cache is empty."""
    urls: list[str] = []

    def unreachable(url: str, timeout: float) -> None:
        assert timeout == finding.TIMEOUT
        urls.append(url)
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(finding, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return urls


def test_a_hub_that_does_not_answer_is_asked_once(asked: list[str]) -> None:
    with pytest.raises(
        ModelError, match=r"local cache, and the hub cannot be reached \(Name or .*hf download org/none"
    ):
        load_tokenizer("org/none")
    assert len(asked) == 1


@pytest.mark.parametrize("name", ["no/such/directory", "./none", "a b", "/none"])
def test_a_name_that_can_be_no_hub_id_is_not_asked_for(asked: list[str], name: str) -> None:
    with pytest.raises(ModelError, match="it cannot be a hub id either"):
        load_causal_lm(name, torch.float32)
    assert not asked


def test_a_forbidden_hub_is_told() -> None:
    with pytest.raises(ModelError, match="nor is it whole in the local cache of the hub, and HF_HUB_OFFLINE is set"):
        load_tokenizer("org/none")


def test_a_model_of_the_local_cache_is_loaded_without_the_hub(
    asked: list[str], tmp_path: Path, tiny_llama: Path
) -> None:
    repository = tmp_path / "cache" / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    shutil.copytree(tiny_llama, repository / "snapshots" / "abc")
    assert load_tokenizer("org/tiny").pad_token_id == 0
    assert load_causal_lm("org/tiny", torch.float32).config.hidden_size == 32
    assert not asked
    # What is not there in whole, the hub is asked for.
    (repository / "snapshots" / "abc" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="nor is it whole in the local cache"):
        load_causal_lm("org/tiny", torch.float32)
    assert len(asked) == 1
