from pathlib import Path

import pytest

from florist.checkpoint import locate
from florist.errors import MissingInputError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    repository = tmp_path / "models--org--adapter"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    (repository / "snapshots" / "abc123").mkdir(parents=True)
    return tmp_path


def test_a_path_is_a_path(tmp_path: Path):
    (tmp_path / "file").touch()
    assert locate(str(tmp_path)) == tmp_path
    assert locate(str(tmp_path / "file")) == tmp_path / "file"


@pytest.mark.parametrize("reference", ["org/adapter", "org/adapter@main", "org/adapter@abc123"])
def test_a_hub_id_is_found_in_the_cache(cache: Path, reference: str):
    assert locate(reference) == cache / "models--org--adapter" / "snapshots" / "abc123"


def test_the_cache_lies_where_hugging_face_puts_it(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(cache / "home"))
    (cache / "home").mkdir()
    (cache / "models--org--adapter").rename(cache / "home" / "models--org--adapter")
    with pytest.raises(MissingInputError):
        locate("org/adapter")
    (cache / "home" / "hub").mkdir()
    (cache / "home" / "models--org--adapter").rename(cache / "home" / "hub" / "models--org--adapter")
    assert locate("org/adapter").is_dir()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("org/other", "no such adapter in the Hugging Face cache .*hf download org/other"),
        ("org/adapter@v9", "no such adapter"),
        ("nowhere", "found nothing at nowhere; check the path, or name .* as organisation/name"),
        ("a/b/c", "found nothing at a/b/c"),
        ("../../etc@x", "found nothing|no such adapter"),
    ],
)
def test_what_is_not_there_is_named(cache: Path, reference: str, message: str):
    with pytest.raises(MissingInputError, match=message):
        locate(reference)
