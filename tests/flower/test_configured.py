import errno
import gc
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict
from peft import PeftModel
from transformers import AutoModelForCausalLM

from florist.config import read_config
from florist.config.building import build
from florist.data.examples import EncodedExamples
from florist.errors import ConfigurationError, MissingInputError
from florist.federation.history import RunDirectory
from florist.flower import configured_client_app, configured_server_app
from florist.flower.configured_client import _base, _participant, participant_of_node
from florist.flower.final_adapter import write_global_adapter
from florist.flower.overrides import overridden_config
from tests.flower.grids import MemoryGrid
from tests.tiny_federation import configure, run

Values = Mapping[str, str | int | float | bool]


@pytest.fixture(autouse=True)
def _nothing_cached() -> None:
    _participant.cache_clear()
    _base.cache_clear()


def context(node: Values | None = None, run_config: Values | None = None) -> Context:
    return Context(1, 2, dict(node or {}), RecordDict(), dict(run_config or {}))


@pytest.fixture
def file(tiny_llama: Path, toy_data: Path, tmp_path: Path) -> Path:
    return configure(tmp_path, tiny_llama, toy_data, steps=2, rounds=2)


# --- overrides


@pytest.mark.parametrize(
    ("run_config", "node", "expected"),
    [
        ({}, {}, 1e-2),
        ({"training.learning_rate": 0.5}, {}, 0.5),
        ({"training.learning_rate": 0.5}, {"training.learning_rate": 0.25}, 0.25),
        ({"training.learning_rate": ""}, {}, 1e-2),
        ({"training.learning_rate": 0.5}, {"training.learning_rate": ""}, 0.5),
        ({"training.learning_rate": "2e-3"}, {}, 2e-3),
        ({"learning_rate": 0.5, "other": "x"}, {"partition-id": 0}, 1e-2),
    ],
)
def test_a_node_overrides_the_run_and_the_run_the_file(
    run_config: Values, node: Values, expected: float, file: Path
) -> None:
    assert overridden_config(file, context(node, run_config)).training.learning_rate == expected


def test_lists_texts_and_flags_are_overridden(file: Path) -> None:
    found = overridden_config(
        file,
        context({}, {"lora.ranks": "[2, 4, 6]", "lora.use_rslora": True, "data.rows": "1:", "federation.rounds": 9}),
    )
    assert (found.lora.ranks, found.lora.use_rslora, found.data.rows) == ((2, 4, 6), True, "1:")
    assert found.federation.rounds == 9


@pytest.mark.parametrize(
    ("key", "given", "meant"),
    [
        ("data.train", "123", "123"),
        ("data.train", 123, "123"),
        ("data.train", "1e5", "1e5"),
        ("data.train", "true", "true"),
        ("data.train", "[a]*.json", "[a]*.json"),
        ("data.train", "[1]", "[1]"),
        ("data.train", "2026-01-31", "2026-01-31"),
        ("data.train", 'it\'s "one" \\ x=y', 'it\'s "one" \\ x=y'),
        ("data.rows", "10:50:10", "10:50:10"),
        ("flower.run", 20260131, "20260131"),
        ("flower.base_name", "7", "7"),
        ("lora.target_modules", "all-linear", "all-linear"),
        ("lora.target_modules", '["q_proj", "v_proj"]', ("q_proj", "v_proj")),
        ("lora.target_modules", "7", "7"),
        ("lora.ranks", "8", 8),
        ("lora.alpha", "[4, 8.5]", (4.0, 8.5)),
        ("training.steps", "1_000", 1000),
        ("data.chat_template", "false", False),
        ("data.chat_template", "auto", "auto"),
        ("aggregation.budget", "2KB", 2000),
        ("evaluation.metrics", '["loss"]', ("loss",)),
    ],
)
def test_a_value_is_what_its_key_takes(key: str, given: str | int, meant: object, file: Path) -> None:
    """Flower reads its configurations as TOML, florist's files have types of their own."""
    section, _, name = key.partition(".")
    found = getattr(getattr(overridden_config(file, context({key: given})), section), name)
    assert found == meant
    assert type(found) is type(meant) or key == "aggregation.budget"


@pytest.mark.parametrize(("key", "given"), [("data.train", 1e5), ("data.train", True), ("training.steps", "many")])
def test_a_value_that_its_key_does_not_take_is_told(key: str, given: object, file: Path) -> None:
    with pytest.raises(ConfigurationError, match=rf"{key}: Input should be a valid"):
        overridden_config(file, context({key: given}))  # pyright: ignore[reportArgumentType]


def test_a_misspelt_override_is_told(file: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"did you mean federation\.rounds\?"):
        overridden_config(file, context({}, {"federation.round": 3}))


# --- who a node is


def test_a_node_is_the_client_of_its_number(file: Path) -> None:
    first, second = (participant_of_node(file, context({"partition-id": number})) for number in (0, 1))
    assert (first.client_id, first.rank, first.num_examples) == ("client_0", 8, 12)
    assert (second.client_id, second.rank, second.num_examples) == ("client_1", 4, 24)
    assert first.base == second.base
    assert first.model is second.model  # loaded once


def test_a_node_may_be_called_by_a_number(file: Path) -> None:
    assert participant_of_node(file, context({"partition-id": 0, "client-id": 17})).client_id == "17"


def test_a_participant_is_made_once(file: Path) -> None:
    assert participant_of_node(file, context({"partition-id": 0})) is participant_of_node(
        file, context({"partition-id": 0})
    )


@pytest.mark.parametrize(
    ("node", "telling"),
    [
        ({}, r"expected which of the 2 clients in .* 0 to 1, got None"),
        ({"partition-id": 2}, r"0 to 1, got 2"),
        ({"partition-id": -1}, "expected a whole number from 0, got -1"),
        ({"partition-id": "0"}, "expected a whole number from 0, got '0'"),
        ({"partition-id": True}, "expected a whole number from 0, got True"),
        ({"partition-id": 1.0}, "expected a whole number from 0, got 1.0"),
        ({"partition-id": 0, "client-id": 1e5}, "client-id: expected a text, got 100000.0; put it in quotation marks"),
        (
            {"data.train": "client_0.json"},
            r"lora.ranks lists 2 clients: expected which of them this node is; set lora.ranks",
        ),
        ({"partition-id": 1, "lora.ranks": "[8]"}, "lora.ranks lists 1 clients, and this node is number 1"),
        ({"partition-id": 1, "training.steps": "[8]"}, "training.steps lists 1 clients, and this node is number 1"),
    ],
)
def test_a_number_of_nobody_is_refused(node: Values, telling: str, file: Path) -> None:
    with pytest.raises(ConfigurationError, match=telling):
        participant_of_node(file, context(node))


def test_a_site_with_a_file_of_its_own(file: Path, toy_data: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    shutil.copy(toy_data / "client_1.json", site / "data.json")
    shutil.copy(toy_data / "test.json", site)
    node = {"data.path": str(site), "data.train": "*.json", "lora.ranks": 3}
    assert participant_of_node(file, context(node)).client_id == "data"
    named = participant_of_node(file, context({**node, "client-id": "lyon"}))
    assert (named.client_id, named.rank, named.num_examples, named.held_out) == ("lyon", 3, 24, 9)
    numbered = participant_of_node(file, context({**node, "lora.ranks": "[8, 4]", "partition-id": 1}))
    assert numbered.rank == 4  # of the list, its own


# --- whole federations


def serve(file: Path, run_config: Values, nodes: Mapping[int, Values] | None = None) -> MemoryGrid:
    nodes = nodes or {11: {"partition-id": 1}, 12: {"partition-id": 0}}
    grid = MemoryGrid(configured_client_app(file), nodes, run_config=run_config)
    configured_server_app(file)(grid, context({}, {"flower.wait": 5, **run_config}))
    return grid


@pytest.mark.slow
@pytest.mark.parametrize("where", ["clients", "server"])
def test_the_final_adapter_is_what_was_evaluated(where: str, file: Path, tiny_llama: Path, tmp_path: Path) -> None:
    file.write_text(file.read_text() + '\n[communication]\npreset = "plain"\n')
    serve(file, {"flower.run": str(tmp_path / "run"), "flower.evaluation": where})
    directory = RunDirectory.open(tmp_path / "run")
    records = directory.records()
    assert [len(line.clients) for line in records] == [2, 2]
    assert read_config(directory.config_file).flower.evaluation == where
    assert set(directory.facts.initial) == (set() if where == "clients" else {"loss", "perplexity"})
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), directory.adapter)
    metric = build(read_config(file)).metrics[0]
    assert metric(loaded)["loss"] == pytest.approx(records[-1].metrics["loss"], rel=1e-5)
    assert [json.loads(line)["round"] for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()] == [
        1,
        2,
    ]


def test_whole_weights_need_a_server_with_the_base(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"aggregation\.method = 'full': .* set flower\.evaluation = 'server'"):
        serve(file, {"flower.run": str(tmp_path / "run"), "aggregation.method": "full"})
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_whole_weights_become_the_adapter_that_leads_to_them(
    file: Path, tiny_llama: Path, toy_data: Path, tmp_path: Path
) -> None:
    options = {"aggregation.method": "full", "flower.evaluation": "server", "training.learning_rate": 1e-3}
    serve(file, {"flower.run": str(tmp_path / "run"), **options})
    directory = RunDirectory.open(tmp_path / "run")
    inside = run(file, tmp_path / "inside", "aggregation.method=full", "training.learning_rate=1e-3")
    mine, its = directory.records(), inside.records()
    assert [line.metrics for line in mine] == [line.metrics for line in its]
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), directory.adapter)
    metric = build(read_config(file)).metrics[0]
    assert metric(loaded)["loss"] == pytest.approx(mine[-1].metrics["loss"], rel=1e-4)


@pytest.mark.slow
def test_a_classifier_with_its_head_is_the_same_as_in_the_process(
    tiny_bert: Path, toy_data: Path, tmp_path: Path, file: Path
) -> None:
    text = file.read_text().replace('prompt_template = "{instruction}\\n"', 'label_field = "category"')
    text = text.replace("ranks = [8, 4]", 'ranks = [8, 4]\ntarget_modules = ["query", "value"]')
    model = read_config(file).model.name_or_path
    file.write_text(text.replace(model, str(tiny_bert)) + '\n[task]\nkind = "sequence-classification"\n')
    inside = run(file, tmp_path / "inside")
    serve(file, {"flower.run": str(tmp_path / "run")})
    config = read_config(file)
    initial = build(config).initial_state
    expected, _ = inside.load(initial)
    found, _ = RunDirectory.open(tmp_path / "run").load(initial)
    assert expected.saved_parameters.keys() == found.saved_parameters.keys() > set()
    for name, tensor in expected.saved_parameters.items():
        assert torch.equal(found.saved_parameters[name], tensor)
    a, b = expected.global_adapter, found.global_adapter
    assert all(torch.equal(a[name].B, b[name].B) and torch.equal(a[name].A, b[name].A) for name in a)
    assert json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"


@pytest.mark.parametrize("flush", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.slow
def test_the_final_adapter_has_what_the_server_holds_back_where_that_is_asked_for(
    flush: bool, file: Path, tmp_path: Path
) -> None:
    file.write_text(f'{file.read_text()}\n[communication]\npreset = "compact"\nflush = {str(flush).lower()}\n')
    inside = run(file, tmp_path / "inside")
    serve(file, {"flower.run": str(tmp_path / "run"), "flower.evaluation": "none"})
    directory = RunDirectory.open(tmp_path / "run")
    config = read_config(file)
    state, records = directory.load(build(config).initial_state)
    assert records[-1].held_back == state.owed.norm > 0
    for name, flushed in (("with", True), ("without", False)):
        write_global_adapter(tmp_path / name, state, config.model.name_or_path, flush=flushed)
    same, other = ("with", "without") if flush else ("without", "with")
    found, of_simulation, expected, different = (
        (folder / "adapter_model.safetensors").read_bytes()
        for folder in (directory.adapter, inside.adapter, tmp_path / same, tmp_path / other)
    )
    assert found == of_simulation == expected != different


@pytest.mark.parametrize("override", [{"federation.early_stopping": 2}, {"federation.best_round": True}])
def test_every_round_is_played_and_the_last_delivered(override: Values, file: Path, tmp_path: Path) -> None:
    settings = {"flower.run": str(tmp_path / "run"), "data.validation_fraction": 0.25, **override}
    with pytest.raises(
        ConfigurationError, match=r"federation\.early_stopping and best_round are for rounds in one process"
    ):
        serve(file, settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("keep", [pytest.param("last", marks=pytest.mark.slow), "sent"])
@pytest.mark.slow
def test_rounds_are_kept_where_that_is_asked_for(keep: str, file: Path, tmp_path: Path) -> None:
    settings = {"flower.run": str(tmp_path / "run"), "flower.evaluation": "none", "federation.keep_rounds": keep}
    serve(file, settings)
    directory = RunDirectory.open(tmp_path / "run")
    if keep == "last":
        with pytest.raises(MissingInputError, match="1 of 1 were not kept"):
            directory.state_after(1, with_held_back=False)
        return
    kept = directory.state_after(1, with_held_back=False)
    inside = run(file, tmp_path / "inside", "federation.rounds=1").state_after(1, with_held_back=False)
    found, expected = kept.global_adapter, inside.global_adapter
    assert all(torch.equal(found[name].B, expected[name].B) for name in expected)


@pytest.fixture
def resumed(file: Path, tmp_path: Path) -> Callable[[], RunDirectory]:
    def again() -> RunDirectory:
        serve(file, {"flower.run": str(tmp_path / "run"), "flower.evaluation": "none"})
        return RunDirectory.open(tmp_path / "run")

    return again


@pytest.mark.slow
def test_a_run_that_has_ended_is_left_as_it_is(resumed: Callable[[], RunDirectory]) -> None:
    before = (resumed().adapter / "adapter_model.safetensors").read_bytes()
    directory = resumed()
    assert len(directory.records()) == 2
    assert (directory.adapter / "adapter_model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_a_full_disk_leaves_the_adapter_of_the_rounds_before(
    resumed: Callable[[], RunDirectory], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = resumed()
    before = (directory.adapter / "adapter_model.safetensors").read_bytes()
    file.write_text(file.read_text().replace("rounds = 2", "rounds = 3"))

    def full(draft: Path, _encoded: object) -> None:
        (draft / "adapter_model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("florist.federation.run_adapter.write_adapter", full)
        with pytest.raises(OSError, match="No space left"):
            resumed()
    assert (directory.adapter / "adapter_model.safetensors").read_bytes() == before
    assert len(directory.records()) == 3
    resumed()
    assert (directory.adapter / "adapter_model.safetensors").read_bytes() != before


@pytest.mark.slow
def test_a_crash_between_two_adapters_is_healed_before_the_next_rounds(
    resumed: Callable[[], RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = resumed()
    before = (directory.adapter / "adapter_model.safetensors").read_bytes()
    directory.adapter.rename(directory.path / ".adapter.replaced")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("florist.flower.strategy.FloristStrategy.start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        resumed()
    assert (directory.adapter / "adapter_model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_a_process_keeps_the_examples_of_one_client(file: Path) -> None:
    def encoded() -> list[EncodedExamples]:
        gc.collect()
        return [each for each in gc.get_objects() if type(each) is EncodedExamples]

    # Other tests of this process may have left some.
    before = {id(each): each for each in encoded()}
    for number, count in enumerate((12, 24)):
        assert participant_of_node(file, context({"partition-id": number})).num_examples == count
        new = sorted(len(each) for each in encoded() if id(each) not in before)
        assert new == [9, count]  # the test file's, and its own


@pytest.mark.slow
def test_validation_examples_of_the_clients_are_not_the_servers(file: Path, tmp_path: Path) -> None:
    settings = {
        "flower.run": str(tmp_path / "run"),
        "flower.evaluation": "server",
        "data.validation_fraction": 0.25,
        "federation.rounds": 1,
    }
    with pytest.raises(ConfigurationError, match=r"set data\.validation .*, or evaluation\.split = 'test'"):
        serve(file, settings)
    assert not (tmp_path / "run").exists()
    serve(file, {**settings, "evaluation.split": "test"})
    (line,) = RunDirectory.open(tmp_path / "run").records()
    assert set(line.metrics) == {"loss", "perplexity"}
