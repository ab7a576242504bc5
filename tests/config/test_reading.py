import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from florist.config import Config, read_config, to_toml
from florist.config.sections import DataSection
from florist.errors import ConfigurationError, MissingInputError

MINIMAL = '[model]\nname_or_path = "org/model"\n[data]\npath = "rows"\n[lora]\nranks = 8\n'

EVERY_KEY = r"""
[model]
name_or_path = "org/model"
dtype = "bfloat16"
quantization = "4bit"
[task]
kind = "sequence-classification"
labels = ["b", "a\u2028\"\\"]
[data]
path = "/data/é ü"
train = "part-*.jsonl"
test = "held/out.json"
test_fraction = 0.30000000000000004
min_examples = 4
validation = "held/choose.json"
partition = "shards"
shards_per_client = 3
num_clients = 3
partition_field = "topic"
dirichlet_alpha = 1e-3
rows = "1::2"
format = "dolly"
chat_template = false
loss_on = "all"
label_field = "class"
prompt_template = '''
{{x}} "{text}"\n	tab'''
max_length = 99
[lora]
ranks = [16, 8, 4]
alpha = [32.5, 16.0, 8.0]
target_modules = ["q_proj", "v_proj"]
use_rslora = true
lora_dropout = 0.05
modules_to_save = ["score"]
[training]
learning_rate = 1e-5
batch_size = [3, 2, 1]
epochs = 0.5
lr_scheduler_type = "cosine"
gradient_accumulation_steps = 2
weight_decay = 0.01
max_grad_norm = 0.3
train_sampling_strategy = "group_by_length"
bf16 = true
fp16 = false
threads = 2
[federation]
rounds = 7
fraction = 0.1
min_replies = 2
seed = 123456789012345
shared_init = false
local_init = "warm"
early_stopping = 3
min_delta = 0.001
best_round = true
keep_rounds = "sent"
[aggregation]
method = "florist"
tau = 0.99
scope = "global"
max_rank = 64
robust = "geometric-median"
hostile = 0.3
[guard]
norm_factor = 20.0
component_factor = 1.5
largest_norm = 100.0
smallest_cosine = -0.5
examples_factor = false
action = "clip"
[privacy]
bits = 40
threshold = 0.75
smallest_group = 3
max_examples = 500
largest = 2.5
[communication]
preset = "compact"
download = "float16"
upload = "int8"
upload_tau = 0.95
feedback = "server"
flush = false
[evaluation]
metrics = ["loss", "multiple_choice"]
every = 2
split = "validation"
batch_size = 5
by_client = true
max_new_tokens = 6
multiple_choice = "questions.json"
choice_prompt = "{question}"
choice_answer = "{letter}"
harness_tasks = []
harness_task_path = "tasks"
harness_limit = 8
[tracking]
to = ["tensorboard", "mlflow"]
project = "a/b"
run_name = "é"
client_losses = false
mlflow_uri = "http://localhost:5000"
[flower]
run = "runs/first"
min_clients = 3
wait = 30.0
round_timeout = 120.0
phase_timeout = 60.0
evaluation = "none"
max_examples = 1000
base_name = "llama, 8 bit or not"
"""


def read(folder: Path, content: str = MINIMAL, overrides: Sequence[str] = ()) -> Config:
    file = folder / "config.toml"
    file.write_text(content, encoding="utf-8")
    return read_config(file, overrides)


def refusal(folder: Path, content: str = MINIMAL, overrides: Sequence[str] = ()) -> str:
    with pytest.raises(ConfigurationError) as held:
        read(folder, content, overrides)
    assert "\n" not in str(held.value)
    return str(held.value)


def with_keys(**keys: str) -> str:
    """The minimal file with more lines in some of its tables: ``data="rows = '1:'"``."""
    lines = MINIMAL
    for section, line in keys.items():
        head = f"[{section}]\n"
        lines = lines.replace(head, head + line + "\n") if head in lines else f"{lines}{head}{line}\n"
    return lines


# --- reading


def test_a_file_is_read_and_the_rest_has_defaults(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert (found.model.name_or_path, found.lora.ranks) == ("org/model", 8)
    assert found.federation.rounds == 3
    assert found.training.steps is None
    assert found.aggregation.method == "florist"


def test_a_configuration_is_frozen(tmp_path: Path) -> None:
    found = read(tmp_path)
    with pytest.raises(ValidationError, match="frozen"):
        found.federation.rounds = 5
    with pytest.raises(ValidationError, match="frozen"):
        found.federation = found.federation


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(MissingInputError, match=f"expected a configuration file at {path}, found none"):
            read_config(path)


def test_what_is_no_toml_is_refused_and_located(tmp_path: Path) -> None:
    assert "config.toml: expected TOML, and reading failed: " in refusal(tmp_path, "[model]\nname_or_path = \n")
    assert "line 2" in refusal(tmp_path, "[model]\nname_or_path = \n")
    assert "line 3" in refusal(tmp_path, '[model]\nname_or_path = "a"\nname_or_path = "b"\n')
    (tmp_path / "latin.toml").write_bytes('[model]\nname_or_path = "é"\n'.encode("latin-1"))
    with pytest.raises(ConfigurationError, match=r"latin\.toml: expected TOML, and reading failed: .*utf-8"):
        read_config(tmp_path / "latin.toml")


# --- mistakes


@pytest.mark.parametrize("section", Config.model_fields)
def test_every_misspelt_key_gets_its_right_name(tmp_path: Path, section: str) -> None:
    table = Config.model_fields[section].annotation
    assert table is not None
    for key in table.model_fields:
        middle = len(key) // 2
        wrong = key[:middle] + key[middle + 1 :]
        told = refusal(tmp_path, with_keys(**{section: f"{wrong} = 1"}))
        assert f"unknown key {section}.{wrong} (did you mean {section}.{key}?)" in told


@pytest.mark.parametrize(
    ("section", "key", "right"),
    [
        ("training", "rounds", "federation.rounds"),
        ("training", "seed", "federation.seed"),
        ("training", "ranks", "lora.ranks"),
        ("data", "labels", "task.labels"),
        ("model", "target_modules", "lora.target_modules"),
        ("lora", "tau", "aggregation.tau"),
        ("federation", "steps", "training.steps"),
        ("federation", "num_clients", "data.num_clients"),
        ("lora", "lora_alpha", "lora.alpha"),
        ("lora", "dropout", "lora.lora_dropout"),
        ("model", "name", "model.name_or_path"),
    ],
)
def test_a_key_in_another_table_is_found(tmp_path: Path, section: str, key: str, right: str) -> None:
    told = refusal(tmp_path, with_keys(**{section: f"{key} = 1"}))
    assert f"unknown key {section}.{key} (did you mean {right}?)" in told


def test_a_key_outside_of_any_table_is_found(tmp_path: Path) -> None:
    assert "unknown key rounds (did you mean federation.rounds?)" in refusal(tmp_path, "rounds = 3\n" + MINIMAL)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("federated", "federation"), ("train", "training"), ("modell", "model"), ("eval", "evaluation"), ("Data", "data")],
)
def test_a_misspelt_table_gets_its_right_name(tmp_path: Path, wrong: str, right: str) -> None:
    assert f"unknown key {wrong} (did you mean [{right}]?)" in refusal(tmp_path, f"{MINIMAL}[{wrong}]\nx = 1\n")


def test_a_key_like_no_other_gets_the_list(tmp_path: Path) -> None:
    told = refusal(tmp_path, with_keys(federation="zzz = 1"))
    assert "unknown key federation.zzz ([federation] has rounds, fraction, min_replies" in told
    told = refusal(tmp_path, MINIMAL + "[zzz]\nx = 1\n")
    assert "unknown key zzz (there are model, task, data, lora" in told


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    told = refusal(
        tmp_path,
        """
        [data]
        path = 3
        trian = "a.json"
        [lora]
        use_rslora = "perhaps"
        [training]
        steps = 0
        epocs = 1
        [federaton]
        rounds = 1
        [aggregation]
        tau = 1.5
        """,
    )
    for telling in (
        "config.toml: ",
        "missing model, which has no default",
        "data.path: Input should be a valid string, got 3",
        "unknown key data.trian (did you mean data.train?)",
        "missing lora.ranks, which has no default",
        "lora.use_rslora: Input should be a valid boolean",
        "training.steps: expected a number greater than 0, got 0",
        "unknown key training.epocs (did you mean training.epochs?)",
        "unknown key federaton (did you mean [federation]?)",
        "aggregation.tau: expected a fraction of the energy in (0, 1], got 1.5",
    ):
        assert told.count(telling) == 1, telling


@pytest.mark.parametrize(
    ("line", "telling"),
    [
        ('ranks = "eight"', "lora.ranks: Input should be a valid integer, unable to parse string as an integer"),
        # Of the two forms of the key, the one that came closer is the one to explain.
        ("ranks = [8, 0]", "lora.ranks: expected a number greater than 0, got 0"),
        ('ranks = [8, "x"]', "lora.ranks: Input should be a valid integer, unable to parse string as an integer"),
        ("ranks = 0", "lora.ranks: expected a number greater than 0, got 0"),
        ("ranks = 8\nalpha = [8, -1]", "lora.alpha: expected a number greater than 0, got -1"),
    ],
)
def test_a_wrong_value_of_a_key_with_two_forms_is_told_once(tmp_path: Path, line: str, telling: str) -> None:
    told = refusal(tmp_path, MINIMAL.replace("ranks = 8", line))
    assert telling in told
    assert told.count("lora.") == 1


@pytest.mark.parametrize("line", ["data = 3", 'data = "rows"', "data = []"])
def test_a_key_where_a_table_belongs_is_told(tmp_path: Path, line: str) -> None:
    told = refusal(tmp_path, line + "\n" + MINIMAL.replace('[data]\npath = "rows"\n', ""))
    assert f"data: expected a table [data], got {tomllib.loads(line)['data']!r}" in told


def test_a_table_in_the_place_of_a_value_is_told(tmp_path: Path) -> None:
    assert "federation.rounds: Input should be a valid integer" in refusal(
        tmp_path, MINIMAL + "[federation.rounds]\nmany = true\n"
    )


# --- overrides


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("federation.rounds=2", "federation", "rounds", 2),
        (" federation.rounds =  2 ", "federation", "rounds", 2),
        ("training.learning_rate=1e-4", "training", "learning_rate", 1e-4),
        ("lora.ranks=[8, 4,2]", "lora", "ranks", (8, 4, 2)),
        ("lora.use_rslora=true", "lora", "use_rslora", True),
        ("lora.use_rslora=True", "lora", "use_rslora", True),
        ('lora.target_modules=["q_proj"]', "lora", "target_modules", ("q_proj",)),
        ("lora.target_modules=all-linear", "lora", "target_modules", "all-linear"),
        (r"lora.target_modules=.*\.(q|v)_proj", "lora", "target_modules", r".*\.(q|v)_proj"),
        ("data.train=client_*.json", "data", "train", "client_*.json"),
        ("data.rows=1::2", "data", "rows", "1::2"),
        # A time of day in TOML, and yet a slice.
        ("data.rows=10:50:10", "data", "rows", "10:50:10"),
        ("data.test=2024-01-01", "data", "test", "2024-01-01"),
        ("data.prompt_template={instruction} = ?", "data", "prompt_template", "{instruction} = ?"),
        ('data.prompt_template="{instruction}\\n"', "data", "prompt_template", "{instruction}\n"),
        ("data.prompt_template='\"{instruction}\"'", "data", "prompt_template", '"{instruction}"'),
        ("data.prompt_template='''a'b\"c'''", "data", "prompt_template", "a'b\"c"),
        ('data.prompt_template="unclosed', "data", "prompt_template", '"unclosed'),
        ("data.test='3'", "data", "test", "3"),
        ('data.test=""', "data", "test", ""),
    ],
)
def test_an_override_is_toml_or_else_text(tmp_path: Path, override: str, section: str, key: str, value: object) -> None:
    assert getattr(getattr(read(tmp_path, overrides=[override]), section), key) == value


def test_overrides_add_to_a_table_and_the_last_counts(tmp_path: Path) -> None:
    content = with_keys(federation="rounds = 9\nseed = 4")
    found = read(tmp_path, content, ["federation.rounds=1", "federation.fraction=0.5", "federation.rounds=2"])
    assert (found.federation.rounds, found.federation.seed, found.federation.fraction) == (2, 4, 0.5)


@pytest.mark.parametrize("override", ["federation.rounds", "rounds=3", "=3", ".rounds=3", "federation.=3", "", "a.b"])
def test_an_override_of_another_form_is_refused(tmp_path: Path, override: str) -> None:
    assert refusal(tmp_path, overrides=[override]) == f"expected --set section.key=value, got {override!r}"


@pytest.mark.parametrize("override", ["data.path=" + "[" * 5_000, "federation.rounds=" + "9" * 5_000, "x" * 5_000])
def test_of_a_long_override_a_hundred_characters_are_quoted(tmp_path: Path, override: str) -> None:
    line = refusal(tmp_path, overrides=[override])
    assert "characters) ..." in line
    assert not re.search(r"(.)\1{100}", line)
    assert len(line) < 600


def test_an_override_is_checked_like_the_file(tmp_path: Path) -> None:
    told = refusal(tmp_path, overrides=["federation.round=2", "training.steps=many", "federaton.rounds=1", "a.b.c=1"])
    assert "unknown key federation.round (did you mean federation.rounds?)" in told
    assert "training.steps: Input should be a valid integer" in told
    assert "unknown key federaton (did you mean [federation]?)" in told
    assert "unknown key a " in told


@pytest.mark.parametrize(
    ("content", "overrides", "told"),
    [
        (MINIMAL, ["foo.bar=1"], "--set foo.bar=1: unknown key foo (there are "),
        (MINIMAL, ["federation.round=1"], "--set federation.round=1: unknown key federation.round (did you mean "),
        (MINIMAL, ["federation.rounds=2", "federation.rounds=0"], "--set federation.rounds=0: federation.rounds: "),
        (MINIMAL, ["training.steps=1", "training.epochs=1"], "--set training.steps=1, --set training.epochs=1: train"),
        (
            with_keys(training="steps = 1"),
            ["training.epochs=1"],
            "config.toml with --set training.epochs=1: training: ",
        ),
        (MINIMAL, ["task.kind=sequence-classification"], "with --set task.kind=sequence-classification: task.kind = "),
        (with_keys(training="steps = 0"), ["federation.rounds=2"], "config.toml: training.steps: "),
        (with_keys(training="steps = 0"), ["federation.rounds=0"], "got 0; --set federation.rounds=0: federation.rou"),
    ],
)
def test_a_mistake_is_told_with_the_overrides_that_brought_it(
    tmp_path: Path, content: str, overrides: list[str], told: str
) -> None:
    line = refusal(tmp_path, content, overrides)
    assert told in line
    assert ("config.toml" in line) == (not told.startswith("--set"))


def test_a_mistake_of_a_later_layer_is_told_with_its_override_alone(tmp_path: Path) -> None:
    read(tmp_path)
    with pytest.raises(ConfigurationError, match=r"^federation\.rounds=0: federation\.rounds: expected"):
        read_config(tmp_path / "config.toml", ["federation.rounds=-1"], ["federation.rounds=0"])


def test_an_override_completes_a_file(tmp_path: Path) -> None:
    found = read(tmp_path, "", ["model.name_or_path=org/model", "data.path=/rows", "lora.ranks=4"])
    assert (found.model.name_or_path, found.data.path, found.lora.ranks) == ("org/model", "/rows", 4)


def test_an_override_cannot_turn_a_value_into_a_table(tmp_path: Path) -> None:
    told = refusal(tmp_path, "federation = 3\n" + MINIMAL, ["federation.rounds=3"])
    assert told == "expected a table [federation], got 3"


# --- paths


@pytest.fixture
def two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """(of the file, current), each with ``rows`` and ``model`` in it."""
    for name in ("file", "current"):
        (tmp_path / name / "rows").mkdir(parents=True)
        (tmp_path / name / "model").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    return tmp_path / "file", tmp_path / "current"


def test_a_path_in_the_file_is_relative_to_the_file(two_folders: tuple[Path, Path]) -> None:
    of_file, _ = two_folders
    found = read(of_file, MINIMAL.replace("org/model", "model"))
    assert found.data.path == str((of_file / "rows").resolve())
    assert found.model.name_or_path == str((of_file / "model").resolve())


def test_a_path_in_an_override_is_relative_to_the_current_directory(two_folders: tuple[Path, Path]) -> None:
    of_file, current = two_folders
    found = read(of_file, MINIMAL, ["data.path=rows", "model.name_or_path=./model"])
    assert found.data.path == str((current / "rows").resolve())
    assert found.model.name_or_path == str((current / "model").resolve())


def test_a_file_named_from_elsewhere_keeps_its_own_folder(two_folders: tuple[Path, Path]) -> None:
    of_file, _ = two_folders
    read(of_file, MINIMAL)
    assert read_config(Path("../file/config.toml")).data.path == str((of_file / "rows").resolve())


def test_data_are_not_looked_for_elsewhere(two_folders: tuple[Path, Path]) -> None:
    of_file, current = two_folders
    (current / "only here").mkdir()
    found = read(of_file, MINIMAL.replace('"rows"', '"only here"'))
    assert found.data.path == str((of_file / "only here").resolve())
    found = read(of_file, MINIMAL, ["data.path=nowhere"])
    assert found.data.path == str((current / "nowhere").resolve())


def test_absolute_paths_and_hub_ids_stay(two_folders: tuple[Path, Path]) -> None:
    of_file, _ = two_folders
    for model in ("org/model", "gpt2", "/nowhere/model"):
        found = read(of_file, MINIMAL.replace("org/model", model).replace('"rows"', '"/nowhere/rows"'))
        assert (found.model.name_or_path, found.data.path) == (model, "/nowhere/rows")


# --- writing


def read_back(config: Config, folder: Path) -> Config:
    folder.mkdir(exist_ok=True)
    return read(folder, to_toml(config))


@pytest.mark.parametrize("content", [MINIMAL, EVERY_KEY], ids=["minimal", "every key"])
def test_what_is_written_is_read_back_equal(tmp_path: Path, content: str) -> None:
    config = read(tmp_path, content)
    assert read_back(config, tmp_path / "run") == config


def test_every_key_has_been_tried() -> None:
    tables = tomllib.loads(EVERY_KEY)
    tried = {f"{section}.{key}" for section, table in tables.items() for key in table}
    known = {
        f"{section}.{key}"
        for section, field in Config.model_fields.items()
        if field.annotation is not None
        for key in field.annotation.model_fields
    }
    # Of these, one excludes another.
    assert known - tried == {
        *(f"privacy.{key}" for key in ("secure_aggregation", "clip", "noise_multiplier", "epsilon", "delta")),
        "privacy.sampling",
        "privacy.adaptive_clip",
        "privacy.noise",
        "privacy.honest_fraction",
        "aggregation.noise_edge",
        "data.instruction_field",
        "data.input_field",
        "data.output_field",
        "data.validation_fraction",
        "training.steps",
        "aggregation.budget",
        "aggregation.rank",
        "communication.upload_budget",
    }
    assert tried <= known


def test_defaults_are_written_out(tmp_path: Path) -> None:
    written = tomllib.loads(to_toml(read(tmp_path)))
    assert written["federation"] == {
        "rounds": 3,
        "fraction": 1.0,
        "seed": 0,
        "shared_init": True,
        "local_init": "aligned",
        "min_delta": 0.0,
        "best_round": False,
        "keep_rounds": "last",
    }
    assert written["training"]["learning_rate"] == 3e-4


@pytest.mark.parametrize(
    "override",
    [
        "aggregation.budget=20MB",
        "aggregation.budget=1000",
        "aggregation.rank=4",
        "training.steps=3",
        "lora.alpha=16",
        "lora.ranks=[1]",
        "data.path=.",
    ],
)
def test_an_overridden_configuration_is_read_back_equal(tmp_path: Path, override: str) -> None:
    config = read(tmp_path, overrides=[override])
    assert read_back(config, tmp_path / "run") == config


@given(text=st.text(st.characters(exclude_categories=["Cs"])), number=st.floats(1e-300, 1e300))
@example(text="'''\"\"\"\\", number=0.1)
@example(text="\r\n\x85\u2028\x00\x7f", number=1e16)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_any_text_and_number_is_read_back_equal(tmp_path: Path, text: str, number: float) -> None:
    minimal = read(tmp_path)
    data = DataSection(
        path="/rows", prompt_template=text, instruction_field=text, output_field=text, dirichlet_alpha=number
    )
    config = minimal.model_copy(update={"data": data})
    assert read_back(config, tmp_path / "run") == config


def test_an_unknown_key_does_not_hide_a_contradiction_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        "[model]\nname_or_path = 'm'\n[data]\npath = 'd'\n[lora]\nranks = 4\n"
        "[training]\nsteps = 1\nepochs = 2.0\nlearning_rat = 1.0\n"
    )
    with pytest.raises(ConfigurationError, match=r"training\.learning_rate\?.*contradict each other"):
        read_config(file)


def test_every_path_in_a_file_is_relative_to_the_file_and_kept_by_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    own = with_keys(
        evaluation='metrics = ["multiple_choice"]\nmultiple_choice = "q.json"\nharness_task_path = "tasks"',
    )
    found = read(tmp_path, own)
    paths = (found.evaluation.multiple_choice, found.evaluation.harness_task_path)
    assert paths == (str(tmp_path / "q.json"), str(tmp_path / "tasks"))
    overridden = read(tmp_path, own, ["evaluation.multiple_choice=q.json"])
    assert overridden.evaluation.multiple_choice == str(tmp_path / "current" / "q.json")
    (tmp_path / "run").mkdir()
    assert read(tmp_path / "run", to_toml(found)) == found


@pytest.mark.parametrize(
    ("override", "section", "key", "default"),
    [
        ("training.steps=", "training", "steps", None),
        ("federation.rounds= ", "federation", "rounds", 3),
        ("aggregation.tau=", "aggregation", "tau", 0.7),
        ("evaluation.metrics=", "evaluation", "metrics", None),
    ],
)
def test_an_override_without_a_value_brings_the_default_back(
    tmp_path: Path, override: str, section: str, key: str, default: object
) -> None:
    own = with_keys(
        training="steps = 5", federation="rounds = 9", aggregation="tau = 0.5", evaluation="metrics=['loss']"
    )
    assert getattr(getattr(read(tmp_path, own, [override]), section), key) == default
    # The last one counts.
    assert read(tmp_path, own, [override, "federation.rounds=2"]).federation.rounds == 2


def test_what_has_no_default_cannot_be_unset_and_an_unknown_key_neither(tmp_path: Path) -> None:
    assert "--set lora.ranks=: missing lora.ranks, which has no default" in refusal(tmp_path, overrides=["lora.ranks="])
    assert "did you mean lora.ranks?" in refusal(tmp_path, overrides=["lora.rnks="])


def test_a_section_that_is_not_used_may_be_absent(tmp_path: Path) -> None:
    text = MINIMAL.replace("[lora]\nranks = 8\n", "")
    assert text != MINIMAL
    assert "missing lora" in refusal(tmp_path, text)
    assert read_config(tmp_path / "config.toml", unused={"lora": {"ranks": 1}}).lora.ranks == 1
