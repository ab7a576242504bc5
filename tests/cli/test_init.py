import io
import itertools
import json
import shutil
from pathlib import Path

import pytest

from florist.cli.init_work import preset_names
from florist.config import DEMONSTRATION, Config, read_config
from florist.config.drafting import WIDTH

from .running import Run, refused

QUICK = ["--set", "training.steps=1", "--set", "federation.rounds=1"]


@pytest.fixture
def place(tmp_path: Path, tiny_llama: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a model and two clients, where the command runs."""
    shutil.copytree(tiny_llama, tmp_path / "model")
    shutil.copytree(toy_data, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commented(text: str) -> set[str]:
    """Every key that the file says, set or not, by ``section.key``."""
    found, section = set[str](), ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif section and not line.startswith("# ") and line:
            found.add(f"{section}.{line.lstrip('#').partition(' =')[0]}")
    return found


@pytest.mark.slow  # a run
def test_what_is_written_for_a_model_and_its_clients_is_played(florist: Run, place: Path) -> None:
    done = florist("init", "--model", "model", "--data", "data", "--ranks", "4,2", "--yes", "-o", "sub/mine.toml")
    assert done.returncode == 0, done.stderr
    config = read_config(place / "sub" / "mine.toml")
    assert (config.data.partition, config.data.train, config.data.test) == ("given", "client_*.json", "test.json")
    assert (config.lora.ranks, config.data.max_length) == ((4, 2), 256)
    assert config.model.name_or_path == str(place / "model")
    text = (place / "sub" / "mine.toml").read_text()
    assert "This model has q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj." in text
    assert "36 training examples in 2 files, with instruction, input, output, category." in text
    assert 'name_or_path = "../model"' in text
    played = florist("simulate", "sub/mine.toml", "-o", "run", "--json", *QUICK)
    assert played.returncode == 0, played.stderr
    assert len(json.loads(played.stdout)["rounds"]) == 1


def test_every_key_is_there_with_a_line_of_its_own(florist: Run, place: Path) -> None:
    assert florist("init", "--model", "model", "--data", "data", "--yes").returncode == 0
    text = (place / "florist.toml").read_text()
    sections = {name: field.annotation.model_fields for name, field in Config.model_fields.items() if field.annotation}
    assert commented(text) == {f"{section}.{key}" for section, keys in sections.items() for key in keys}
    lines = text.splitlines()
    for above, line in itertools.pairwise(lines):
        assert len(line) <= WIDTH
        if " =" in line and not line.startswith("# "):
            assert above.startswith("# "), line


def test_one_file_is_shared_out_over_clients(florist: Run, place: Path) -> None:
    one = ["--model", "model", "--data", "data/client_1.json", "--yes"]
    assert florist("init", *one, "--clients", "3", "--partition-field", "category", "--rounds", "2").returncode == 0
    data = read_config(place / "florist.toml").data
    assert (data.partition, data.partition_field, data.num_clients) == ("dirichlet", "category", 3)
    assert florist("init", *one, "--ranks", "4,2", "-o", "iid.toml").returncode == 0
    assert read_config(place / "iid.toml").data.partition == "iid"


def test_questions_are_answered(florist: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("model\ndata/client_0.json\n8\n2\ncategory\n"))
    done = florist("init")
    assert done.returncode == 0, done.stderr
    config = read_config(place / "florist.toml")
    assert (config.lora.ranks, config.data.num_clients, config.data.partition_field) == (8, 2, "category")


def test_other_fields_are_named(florist: Run, place: Path) -> None:
    rows = [{"question": "1?", "reply": "2"}] * 8
    (place / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = ["--model", "model", "--data", "own.jsonl", "--yes"]
    assert "The examples have the fields question, reply" in refused(florist("init", *own))
    assert "got answer" in refused(florist("init", *own, "--instruction-field", "question", "--output-field", "answer"))
    assert florist("init", *own, "--instruction-field", "question", "--output-field", "reply").returncode == 0
    assert read_config(place / "florist.toml").data.output_field == "reply"


def test_a_class_is_learnt(florist: Run, place: Path) -> None:
    own = ["--model", "model", "--data", "data", "--label-field", "category", "--text-field", "instruction", "--yes"]
    assert florist("init", *own).returncode == 0
    config = read_config(place / "florist.toml")
    assert (config.task.kind, config.data.prompt_template) == ("sequence-classification", "{instruction}")


@pytest.mark.parametrize(
    ("arguments", "telling"),
    [
        (["--model", "model", "--data", "data", "--yes"], "already exists"),
        (["--yes", "-o", "new.toml"], "expected --model with --yes"),
        (["-o", "new.toml"], "a question was not answered, and new.toml was not written"),
        (["--model", "model", "--data", "none", "--yes", "-o", "new.toml"], "expected a directory of examples"),
        (["--model", "none", "--data", "data", "--yes", "-o", "new.toml"], "no such directory or hub id"),
        (["--model", "model", "--data", "data", "--ranks", "4,2,1", "--yes", "-o", "new.toml"], "the 2 clients whose"),
        (["--model", "model", "--data", "data", "--ranks", "a", "-o", "new.toml"], "expected --ranks as 16"),
        (["--preset", "tiny", "-o", "new.toml"], "expected one of demonstration, tinyllama-dolly-equal"),
        (["--preset", "demonstration", "--ranks", "4", "-o", "new.toml"], "got --ranks"),
    ],
)
def test_what_is_refused_leaves_no_file_and_changes_none(
    florist: Run, place: Path, arguments: list[str], telling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    (place / "florist.toml").write_text("mine")
    done = florist("init", *arguments)
    assert done.returncode == 2
    assert telling in done.stderr
    assert "Traceback" not in done.stderr
    assert (place / "florist.toml").read_text() == "mine"
    assert not (place / "new.toml").exists()


@pytest.mark.parametrize(("answer", "status"), [("n\n", 2), ("y\n", 0)])
def test_a_file_is_replaced_only_when_asked(
    florist: Run, place: Path, answer: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "florist.toml").write_text("mine")
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    assert florist("init", "--preset", "demonstration").returncode == status
    assert ((place / "florist.toml").read_text() == "mine") == bool(status)
    assert florist("init", "--preset", "demonstration", "--yes", "--overwrite").returncode == 0
    assert (place / "florist.toml").read_text() != "mine"


def test_the_demonstration_is_written_as_it_is(florist: Run, place: Path) -> None:
    assert florist("init", "--preset", "demonstration").returncode == 0
    assert read_config(place / "florist.toml") == read_config(DEMONSTRATION)


@pytest.mark.parametrize("name", [name for name, _ in preset_names()])
def test_every_set_up_is_a_configuration(florist: Run, place: Path, name: str) -> None:
    assert name in florist("init", "--preset", "list").stdout
    assert florist("init", "--preset", name, "--model", "model", "--data", "data").returncode == 0
    config = read_config(place / "florist.toml")
    assert (config.model.name_or_path, config.data.path) == (str(place / "model"), str(place / "data"))
    if name.endswith("-unlike"):
        assert config.lora.ranks == (64, 32, 16, 16, 8, 8, 4, 4)
        assert (config.communication.preset, config.federation.local_init) == ("paper", "fresh")
