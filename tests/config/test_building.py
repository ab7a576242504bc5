import gc
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoTokenizer

from florist.aggregation import Florist
from florist.config import Config, read_config
from florist.config.building import _loras, build, load
from florist.config.splits import few_examples, read_splits, who_has_which
from florist.config.tasks import RecentEncodings
from florist.data.examples import IGNORED, EncodedExamples
from florist.errors import ConfigurationError, DataError, MissingInputError, ModelError, UnsupportedHardwareError
from florist.evaluation import Classification, ExactMatch, LanguageModelLoss, MultipleChoice
from florist.federation.local_init import Warm
from florist.federation.state import ServerState
from florist.ranks import EnergyThreshold

Rows = list[dict[str, Any]]


def _records(config: Config) -> tuple[Mapping[str, Sequence[Mapping[str, Any]]], Sequence[Mapping[str, Any]]]:
    splits = read_splits(config)
    assert not splits.validation
    return splits.training, splits.test


def config(path: Path, *, model: Path | str = "org/model", **sections: Mapping[str, Any]) -> Config:
    tables: dict[str, dict[str, Any]] = {
        "model": {"name_or_path": str(model)},
        "data": {"path": str(path), "test_fraction": 0.25},
        "lora": {"ranks": 4},
    }
    for name, keys in sections.items():
        tables[name] = {**tables.get(name, {}), **keys}
    return Config.model_validate(tables)


def rows(*numbers: int, topic: str = "a") -> Rows:
    return [{"instruction": f"say {n}", "output": str(n), "topic": topic, "n": n} for n in numbers]


def write(file: Path, records: Rows) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(records))


def numbers(records: Sequence[Mapping[str, Any]]) -> list[int]:
    return [record["n"] for record in records]


# --- which rows


def test_every_file_is_a_client_and_the_test_file_is_not(tmp_path: Path) -> None:
    write(tmp_path / "b.json", rows(3, 4, 5))
    write(tmp_path / "a.json", rows(1, 2))
    write(tmp_path / "test.json", rows(100, 101))
    held, held_out = _records(config(tmp_path, data={"train": "*.json", "test": "test.json"}))
    assert {client_id: numbers(own) for client_id, own in held.items()} == {"a": [1, 2], "b": [3, 4, 5]}
    assert list(held) == ["a", "b"]
    assert numbers(held_out) == [100, 101]


@pytest.mark.parametrize(
    "names",
    [
        [f"client_{k}" for k in range(12)],
        ["alice", "bo", "zed"],
        ["a", "a1", "a2", "a10", "a10b2", "a10b10", "b1"],
        ["site-2-part-1", "site-2-part-10", "site-10-part-1"],
        ["007", "08", "9", "10"],
    ],
)
def test_files_come_in_their_natural_order(tmp_path: Path, names: list[str]) -> None:
    for number, name in enumerate(reversed(names)):
        write(tmp_path / f"{name}.json", rows(number, number))
    held, _ = _records(config(tmp_path, data={"train": "*.json"}))
    assert list(held) == names


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("*/*.json", "held/out.json"),
        ("**/*.json", "held/out.json"),
        ("*/*.json", "./held/../held/out.json"),
    ],
)
def test_no_test_file_is_trained_on_wherever_it_lies(tmp_path: Path, train: str, test: str) -> None:
    write(tmp_path / "sites" / "a.json", rows(1, 2))
    # Another file of the same name is not the test file.
    write(tmp_path / "sites" / "out.json", rows(3, 4))
    write(tmp_path / "held" / "out.json", rows(100))
    held, held_out = _records(config(tmp_path, data={"train": train, "test": test}))
    assert {client_id: numbers(own) for client_id, own in held.items()} == {"sites/a": [1, 2], "sites/out": [3, 4]}
    assert numbers(held_out) == [100]


def test_clients_may_be_folders_with_files_of_one_name(tmp_path: Path) -> None:
    for k in (1, 2, 10):
        write(tmp_path / f"client_{k}" / "train.json", rows(k, k))
    held, _ = _records(config(tmp_path, data={"train": "*/train.json", "test": "client_1/train.json"}))
    assert {client_id: numbers(own) for client_id, own in held.items()} == {
        "client_2/train": [2, 2],
        "client_10/train": [10, 10],
    }


def test_two_files_that_would_be_one_client_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.json", rows(1, 2))
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n')
    with pytest.raises(
        ConfigurationError, match=r"data\.train = 'a\.\*': expected one file a client, got a\.json.* a\.js"
    ):
        _records(config(tmp_path, data={"train": "a.*"}))


def test_folders_that_match_are_not_files(tmp_path: Path) -> None:
    write(tmp_path / "a.json", rows(1, 2))
    (tmp_path / "folder.json").mkdir()
    assert list(_records(config(tmp_path, data={"train": "*.json"}))[0]) == ["a"]


@pytest.mark.parametrize("train", ["/etc/*.json", ""])
def test_a_pattern_that_is_none_is_refused(tmp_path: Path, train: str) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.train = .*: expected a file name or pattern in data\.path"):
        _records(config(tmp_path, data={"train": train}))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"expected the data directory .*none, found none; set it with --set"):
        _records(config(tmp_path / "none"))
    with pytest.raises(MissingInputError, match=r"expected training files client_\*\.json in .*; set \[data\] train"):
        _records(config(tmp_path))
    write(tmp_path / "client_0.json", rows(1, 2))
    with pytest.raises(MissingInputError, match=r"expected a data file at .*gone\.json, found none"):
        _records(config(tmp_path, data={"test": "gone.json"}))


@pytest.mark.parametrize(
    ("part", "expected"),
    [("1::2", [1, 3]), (":2", [0, 1]), ("-1:", [4]), ("::-1", [4, 3, 2, 1, 0]), (":", [0, 1, 2, 3, 4])],
)
def test_a_part_of_every_file_is_used(tmp_path: Path, part: str, expected: list[int]) -> None:
    write(tmp_path / "client_0.json", rows(*range(5)))
    write(tmp_path / "client_1.json", rows(*range(10, 15)))
    write(tmp_path / "test.json", rows(100, 101))
    held, held_out = _records(config(tmp_path, data={"rows": part, "test": "test.json"}))
    assert numbers(held["client_0"]) == expected
    assert numbers(held["client_1"]) == [10 + n for n in expected]
    assert numbers(held_out) == [100, 101]


@pytest.mark.parametrize("part", ["5:", ":0"])
def test_a_part_that_leaves_a_client_nothing_is_refused(tmp_path: Path, part: str) -> None:
    write(tmp_path / "client_0.json", rows(*range(5)))
    write(tmp_path / "client_1.json", rows(*range(9)))
    empty = r"\['client_0'\]" if part == "5:" else r"\['client_0', 'client_1'\]"
    with pytest.raises(ConfigurationError, match=rf"data\.rows = '{part}' leaves no examples of {empty}"):
        _records(config(tmp_path, data={"rows": part}))


def test_without_a_test_file_a_fraction_of_every_client_is_held_out(tmp_path: Path) -> None:
    write(tmp_path / "client_0.json", rows(*range(8)))
    write(tmp_path / "client_1.json", rows(*range(100, 140)))
    held, held_out = _records(config(tmp_path))
    assert [len(own) for own in held.values()] == [6, 30]
    assert sum(n < 100 for n in numbers(held_out)) == 2
    kept = [n for own in held.values() for n in numbers(own)]
    assert sorted(kept + numbers(held_out)) == [*range(8), *range(100, 140)]
    assert _records(config(tmp_path)) == (held, held_out)
    assert _records(config(tmp_path, federation={"seed": 1})) != (held, held_out)


def test_a_client_with_one_row_cannot_hold_one_out_and_is_named(tmp_path: Path) -> None:
    write(tmp_path / "client_0.json", rows(1, 2, 3))
    write(tmp_path / "client_1.json", rows(4))
    with pytest.raises(
        DataError, match=r"client_1: expected at least two examples to hold some out, got 1; .*\[data\] test"
    ):
        _records(config(tmp_path))


def test_iid_shares_the_rows_of_all_files(tmp_path: Path) -> None:
    write(tmp_path / "client_0.json", rows(*range(10)))
    write(tmp_path / "client_1.json", rows(*range(10, 33)))
    write(tmp_path / "test.json", rows(100))
    data = {"partition": "iid", "num_clients": 11, "test": "test.json"}
    held, held_out = _records(config(tmp_path, data=data))
    assert list(held) == [f"client_{k:02d}" for k in range(11)]
    assert [len(own) for own in held.values()] == [3] * 11
    assert sorted(n for own in held.values() for n in numbers(own)) == list(range(33))
    assert numbers(held_out) == [100]


def test_as_many_clients_as_ranks(tmp_path: Path) -> None:
    write(tmp_path / "client_0.json", rows(*range(12)))
    held, _ = _records(config(tmp_path, data={"partition": "iid"}, lora={"ranks": [8, 4, 2]}))
    assert list(held) == ["client_0", "client_1", "client_2"]


def topics(held: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    return [sorted({record["topic"] for record in own}) for own in held.values()]


def test_dirichlet_splits_over_a_field(tmp_path: Path) -> None:
    topical = [row for k in range(8) for row in rows(*range(50 * k, 50 * k + 50), topic="abcdefgh"[k])]
    write(tmp_path / "all.json", topical)
    write(tmp_path / "test.json", rows(1000))
    data = {
        "train": "all.json",
        "test": "test.json",
        "partition": "dirichlet",
        "partition_field": "topic",
        "num_clients": 4,
    }
    unlike, _ = _records(config(tmp_path, data={**data, "dirichlet_alpha": 0.05}))
    alike, _ = _records(config(tmp_path, data={**data, "dirichlet_alpha": 1000.0}))
    for held in (unlike, alike):
        assert sorted(n for own in held.values() for n in numbers(own)) == list(range(400))
    assert topics(alike) == [list("abcdefgh")] * 4
    assert max(len(own) for own in topics(unlike)) < 8


def test_dirichlet_needs_its_field_in_every_record(tmp_path: Path) -> None:
    write(tmp_path / "client_0.json", [*rows(1, 2, 3), {"instruction": "a", "output": "b"}])
    data = {"partition": "dirichlet", "partition_field": "topic", "num_clients": 2}
    with pytest.raises(
        ConfigurationError, match=r"data\.partition_field = 'topic': expected it in every example, got \['"
    ):
        _records(config(tmp_path, data=data))


@pytest.mark.parametrize("seed", range(8))
def test_dirichlet_leaves_every_client_a_row_to_train_on_and_one_to_hold_out(tmp_path: Path, seed: int) -> None:
    write(tmp_path / "client_0.json", rows(*range(12)))
    data = {"partition": "dirichlet", "partition_field": "topic", "num_clients": 3, "dirichlet_alpha": 0.5}
    held, held_out = _records(config(tmp_path, data=data, federation={"seed": seed}))
    assert min(len(own) for own in held.values()) >= 1
    assert len(held_out) >= 3


# --- ranks


def test_ranks_and_alphas_go_to_the_clients_in_order(tmp_path: Path) -> None:
    clients = ["client_1", "client_2", "client_10"]
    found = _loras(config(tmp_path, lora={"ranks": [8, 4, 2], "use_rslora": True, "lora_dropout": 0.1}), clients)
    assert [(lora.rank, lora.alpha) for lora in found] == [(8, 16.0), (4, 8.0), (2, 4.0)]
    assert all(lora.use_rslora and lora.dropout == 0.1 for lora in found)
    found = _loras(config(tmp_path, lora={"ranks": [8, 4, 2], "alpha": 16}), clients)
    assert [(lora.rank, lora.alpha) for lora in found] == [(8, 16.0), (4, 16.0), (2, 16.0)]
    found = _loras(config(tmp_path, lora={"ranks": 4, "alpha": [1, 2, 3]}), clients)
    assert [(lora.rank, lora.alpha) for lora in found] == [(4, 1.0), (4, 2.0), (4, 3.0)]


@pytest.mark.parametrize(
    ("lora", "telling"),
    [
        ({"ranks": [8, 4]}, "lora.ranks lists 2 clients, and the data has 3"),
        ({"ranks": [8, 4, 2, 1], "alpha": 8}, "lora.ranks lists 4 clients, and the data has 3"),
        ({"ranks": 8, "alpha": [1, 2]}, "lora.alpha lists 2 clients, and the data has 3"),
        ({"ranks": [8, 4], "alpha": [1, 2]}, "lora.ranks lists 2 clients and lora.alpha lists 2 clients, and the data"),
    ],
)
def test_lists_that_do_not_match_the_clients_are_refused_and_no_other_key_is_named(
    tmp_path: Path, lora: Mapping[str, Any], telling: str
) -> None:
    for name in "abc":
        write(tmp_path / f"client_{name}.json", rows(1, 2))
    with pytest.raises(ConfigurationError, match="client_a, client_b, client_c; give one each") as held:
        build(config(tmp_path, lora=lora))
    assert str(held.value).startswith(telling)


# --- the whole


def test_a_language_model_simulation_is_what_was_configured(tiny_llama: Path, toy_data: Path) -> None:
    simulation = build(
        config(
            toy_data,
            model=tiny_llama,
            data={"test": "test.json", "prompt_template": "{instruction}|{category}: ", "max_length": 30},
            lora={"ranks": [4, 2], "target_modules": ["q_proj"]},
            training={"steps": 7, "learning_rate": 0.01, "bf16": True, "lr_scheduler_type": "linear"},
            federation={
                "rounds": 5,
                "fraction": 0.5,
                "seed": 3,
                "shared_init": False,
                "min_replies": 1,
                "local_init": "warm",
            },
            aggregation={"tau": 0.5},
            communication={"preset": "plain"},
            evaluation={"metrics": ["exact_match", "loss", "exact_match"], "every": 2, "max_new_tokens": 3},
        )
    )
    assert [(client.client_id, len(client.examples), client.lora.rank) for client in simulation.clients] == [
        ("client_0", 12, 4),
        ("client_1", 24, 2),
    ]
    first = simulation.clients[0].examples[0]
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    assert tokenizer.decode(first["input_ids"]).replace("<unk>", "|") == "0 red|red: r<eos>"
    assert first["labels"].count(IGNORED) == len("0 red|red: ")
    assert simulation.federation.shapes == {f"model.layers.{layer}.self_attn.q_proj": (32, 32) for layer in range(2)}
    assert simulation.federation.client_ranks == {"client_0": 4, "client_1": 2}
    assert (simulation.federation.seed, simulation.federation.fraction, simulation.federation.min_replies) == (
        3,
        0.5,
        1,
    )
    assert (simulation.rounds, simulation.evaluate_every, simulation.federation.shared_init) == (5, 2, False)
    assert (
        simulation.clients[0].training.steps,
        simulation.clients[0].training.learning_rate,
        simulation.clients[0].training.bf16,
    ) == (7, 0.01, True)
    assert simulation.clients[0].training.lr_scheduler_type == "linear"
    assert simulation.federation.local_init == Warm()
    assert simulation.federation.aggregator == Florist(EnergyThreshold(0.5))
    assert [type(metric) for metric in simulation.metrics] == [ExactMatch, LanguageModelLoss]
    found = simulation.evaluate(simulation.initial_state)
    assert list(found) == ["exact_match", "loss", "perplexity"]
    assert simulation.base_model == str(tiny_llama)


def test_records_that_were_encoded_are_not_encoded_again(tiny_llama: Path, toy_data: Path) -> None:
    encoded = RecentEncodings()
    first = build(config(toy_data, model=tiny_llama), encoded=encoded)
    # What is trained, and how, does not change the tokens.
    other = {"lora": {"ranks": 2}, "aggregation": {"method": "flora"}, "training": {"learning_rate": 1.0}}
    second = build(config(toy_data, model=tiny_llama, **other), encoded=encoded)
    assert all(a.examples is b.examples for a, b in zip(first.clients, second.clients, strict=True))
    assert first.metrics[0].examples is second.metrics[0].examples


@pytest.mark.slow
def test_encoded_examples_are_let_go_with_the_client_that_has_them(tiny_llama: Path, toy_data: Path) -> None:
    settings = config(toy_data, model=tiny_llama, lora={"ranks": 2})
    splits = read_splits(settings)
    loaded = load(settings, splits)

    def alive() -> int:
        gc.collect()
        return sum(type(each) is EncodedExamples for each in gc.get_objects())  # isinstance asks slow proxies

    before = alive()
    for client_id, examples in splits.training.items():
        (client,) = loaded.clients({client_id: examples})
        assert len(client.examples) == len(examples)
        assert alive() == before + 1
        del client
    measured = loaded.metrics(splits)
    assert alive() == before + 1
    del measured
    assert alive() == before


@pytest.mark.parametrize(
    "changed",
    [
        {"data": {"max_length": 16}},
        {"data": {"loss_on": "all"}},
        {"data": {"prompt_template": "{instruction}?"}},
        {"federation": {"seed": 1}},  # holds other rows out
    ],
    ids=str,
)
def test_other_records_or_tokens_are_encoded_anew(
    changed: Mapping[str, Mapping[str, Any]], tiny_llama: Path, toy_data: Path
) -> None:
    encoded = RecentEncodings()
    build(config(toy_data, model=tiny_llama), encoded=encoded)
    again = build(config(toy_data, model=tiny_llama, **changed), encoded=encoded)
    alone = build(config(toy_data, model=tiny_llama, **changed))
    assert [[*client.examples] for client in again.clients] == [[*client.examples] for client in alone.clients]


def test_records_that_changed_on_disk_are_encoded_anew(tiny_llama: Path, tmp_path: Path) -> None:
    encoded, file = RecentEncodings(), tmp_path / "client_a.json"
    write(file, rows(*range(8)))
    build(config(tmp_path, model=tiny_llama), encoded=encoded)
    write(file, rows(*range(4)))
    (client,) = build(config(tmp_path, model=tiny_llama), encoded=encoded).clients
    assert len(client.examples) == 3


def test_the_field_names_may_be_given(tiny_llama: Path, tmp_path: Path) -> None:
    write(tmp_path / "client_0.json", [{"q": "ask", "facts": "this", "a": n} for n in range(4)])
    fields = {"instruction_field": "q", "input_field": "facts", "output_field": "a"}
    template = {"prompt_template": "{input} {instruction}: "}
    simulation = build(config(tmp_path, model=tiny_llama, data={**fields, **template}))
    assert AutoTokenizer.from_pretrained(tiny_llama).decode(
        simulation.clients[0].examples[0]["input_ids"], skip_special_tokens=True
    )[:-1] == ("this ask: ")
    with pytest.raises(DataError, match="expected examples of a known shape"):
        build(config(tmp_path, model=tiny_llama))


def test_the_default_metrics_and_epochs(tiny_llama: Path, toy_data: Path) -> None:
    simulation = build(config(toy_data, model=tiny_llama))
    assert [type(metric) for metric in simulation.metrics] == [LanguageModelLoss]
    assert (simulation.clients[0].training.steps, simulation.clients[0].training.epochs) == (None, 1.0)


def test_records_that_do_not_fit_are_named(tiny_llama: Path, tmp_path: Path) -> None:
    write(tmp_path / "client_0.json", rows(1, 2))
    write(tmp_path / "client_1.json", [{"instruction": "a", "response": "b"}] * 2)
    write(tmp_path / "test.json", rows(3))
    with pytest.raises(
        DataError,
        match=r"client_1\.json, line 1 \(example 1\): expected examples with the fields 'instruction' and 'output'",
    ):
        build(config(tmp_path, model=tiny_llama, data={"test": "test.json"}))
    write(tmp_path / "client_1.json", rows(4))
    write(tmp_path / "test.json", [{"instruction": "a", "output": "b"}])
    with pytest.raises(
        DataError, match=r"test\.json, line 1 \(example 1\): .*expected an example with the fields \['topic'\]"
    ):
        build(config(tmp_path, model=tiny_llama, data={"test": "test.json", "prompt_template": "{topic}"}))


def test_a_model_that_is_not_there_is_told(toy_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"\[model\] name_or_path = '.*none': expected a transformers model"):
        build(config(toy_data, model=tmp_path / "none"))


@pytest.mark.parametrize(
    ("task", "data", "metrics", "telling"),
    [
        (
            "causal-lm",
            {},
            ["loss", "accuracy"],
            r"unknown \['accuracy'\] for task.kind = 'causal-lm', which has \['loss'",
        ),
        ("sequence-classification", {"label_field": "category"}, ["exact_match"], r"unknown \['exact_match'\] for"),
    ],
)
def test_metrics_of_another_task_are_refused_before_anything_is_loaded(
    toy_data: Path, task: str, data: Mapping[str, Any], metrics: list[str], telling: str
) -> None:
    # There is no such model: loading it first would be another error.
    with pytest.raises(ConfigurationError, match=r"evaluation\.metrics: " + telling):
        build(config(toy_data, task={"kind": task}, data=data, evaluation={"metrics": metrics}))


@pytest.mark.parametrize(("fraction", "asked"), [(1.0, 2), (0.5, 1)])
def test_more_replies_than_are_asked_for_are_refused(
    tiny_llama: Path, toy_data: Path, fraction: float, asked: int
) -> None:
    with pytest.raises(
        ConfigurationError,
        match=rf"federation\.min_replies = 3: expected at most the {asked} of 2 clients that a round asks",
    ):
        build(config(toy_data, model=tiny_llama, federation={"fraction": fraction, "min_replies": 3}))


CLASSIFY = {"kind": "sequence-classification"}


def test_a_classifier_simulation_takes_its_classes_from_the_data(tiny_bert: Path, toy_data: Path) -> None:
    data = {"test": "test.json", "label_field": "category"}
    simulation = build(
        config(toy_data, model=tiny_bert, task=CLASSIFY, data=data, evaluation={"metrics": ["loss", "accuracy"]})
    )
    # One pass gives both.
    assert [type(metric) for metric in simulation.metrics] == [Classification]
    assert [example["labels"] for example in simulation.clients[0].examples[:3]] == [2, 0, 1]  # red, blue, green
    assert set(simulation.initial_state.saved_parameters) == {"classifier.weight", "classifier.bias"}
    found = simulation.evaluate(simulation.initial_state)
    assert set(found) == {"loss", "accuracy"}
    assert simulation.model.task_type == "SEQ_CLS"


def test_the_order_of_classes_may_be_given(tiny_bert: Path, toy_data: Path) -> None:
    task = {**CLASSIFY, "labels": ["red", "green", "blue", "white"]}
    data = {"test": "test.json", "label_field": "category", "prompt_template": "{output}: {instruction}"}
    simulation = build(config(toy_data, model=tiny_bert, task=task, data=data))
    assert [example["labels"] for example in simulation.clients[0].examples[:3]] == [0, 2, 1]
    assert simulation.initial_state.saved_parameters["classifier.weight"].shape == (4, 32)
    text = AutoTokenizer.from_pretrained(tiny_bert).decode(simulation.clients[0].examples[0]["input_ids"])
    assert text == "r: 0 red"
    with pytest.raises(
        DataError, match=r"client_0\.json, line 1 \(example 3\): expected a class of \['blue', 'red'\], got 'green'"
    ):
        build(config(toy_data, model=tiny_bert, task={**CLASSIFY, "labels": ["blue", "red"]}, data=data))


@pytest.mark.parametrize("side", ["left", "right"])
def test_results_do_not_depend_on_the_padding_of_the_tokenizer(
    tiny_bert: Path, toy_data: Path, tmp_path: Path, side: str
) -> None:
    padded = tmp_path / side
    shutil.copytree(tiny_bert, padded)
    settings = padded / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "padding_side": side}))
    assert AutoTokenizer.from_pretrained(padded).padding_side == side
    found = []
    for batch_size in (1, 9):
        simulation = build(
            config(
                toy_data,
                model=padded,
                task=CLASSIFY,
                data={"test": "test.json", "label_field": "category"},
                evaluation={"batch_size": batch_size},
            )
        )
        # A fresh model hardly tells positions apart.
        with torch.no_grad():
            for parameter in simulation.model.peft.parameters():
                parameter.mul_(10)
        found.append(simulation.evaluate(ServerState.initial(simulation.model.saved_parameters))["loss"])
    assert found[0] == pytest.approx(found[1], abs=1e-5)


# --- validation


def test_validation_rows_are_neither_trained_nor_tested_on(tmp_path: Path) -> None:
    write(tmp_path / "client_0.json", rows(*range(20)))
    write(tmp_path / "client_1.json", rows(*range(100, 120)))
    plain = read_splits(config(tmp_path))
    found = read_splits(config(tmp_path, data={"validation_fraction": 0.2}))
    # Setting some apart to choose by leaves the test what it was.
    assert numbers(found.test) == numbers(plain.test)
    kept = [n for own in found.training.values() for n in numbers(own)]
    assert sorted(kept + numbers(found.validation) + numbers(found.test)) == [*range(20), *range(100, 120)]
    assert [sum(n < 100 for n in numbers(some)) for some in (found.validation, found.test)] == [3, 5]


def test_a_validation_file_is_no_client(tmp_path: Path) -> None:
    for name, number in (("a", 1), ("choose", 2), ("test", 3)):
        write(tmp_path / f"{name}.json", rows(number))
    data = {"train": "*.json", "validation": "choose.json", "test": "test.json"}
    found = read_splits(config(tmp_path, data=data))
    assert (list(found.training), numbers(found.validation), numbers(found.test)) == (["a"], [2], [3])


def test_a_client_too_small_to_validate_is_named(tmp_path: Path) -> None:
    write(tmp_path / "client_0.json", rows(1, 2))
    with pytest.raises(DataError, match=r"client_0: expected at least two examples .*set \[data\] validation"):
        read_splits(config(tmp_path, data={"validation_fraction": 0.5}))


@pytest.mark.parametrize(
    ("split", "in_rounds", "at_the_end"), [(None, 7, [9]), ("validation", 7, [9]), ("test", 9, [])]
)
def test_rounds_are_measured_on_the_validation_records(
    tiny_llama: Path, toy_data: Path, tmp_path: Path, split: str | None, in_rounds: int, at_the_end: list[int]
) -> None:
    write(tmp_path / "choose.json", json.loads((toy_data / "test.json").read_text())[:7])
    data = {"test": "test.json", "validation": str(tmp_path / "choose.json")}
    evaluation = {"split": split} if split else {}
    simulation = build(config(toy_data, model=tiny_llama, data=data, evaluation=evaluation))
    assert [len(metric.examples) for metric in simulation.metrics] == [in_rounds]
    assert [len(metric.examples) for metric in simulation.final_metrics] == at_the_end


# --- partitions


def topical(path: Path, *topics: str) -> None:
    write(path, [row for k, topic in enumerate(topics) for row in rows(*range(10 * k, 10 * k + 10), topic=topic)])


def test_a_value_of_a_field_is_a_client_of_its_name(tmp_path: Path) -> None:
    topical(tmp_path / "all.json", "maths", "law", "art's")
    data = {"train": "all.json", "partition": "by-field", "partition_field": "topic"}
    held, _ = _records(config(tmp_path, data=data))
    assert {name: {record["topic"] for record in own} for name, own in held.items()} == {
        name: {name} for name in ("maths", "law", "art's")
    }
    held, _ = _records(config(tmp_path, data={**data, "num_clients": 2}))
    assert list(held) == ["client_0", "client_1"]
    held, _ = _records(config(tmp_path, data=data, lora={"ranks": [4, 2]}))
    assert list(held) == ["client_0", "client_1"]
    with pytest.raises(DataError, match="expected at least 4 values to deal to 4 clients, got 3"):
        read_splits(config(tmp_path, data={**data, "num_clients": 4}))


def test_shards_of_a_field(tmp_path: Path) -> None:
    topical(tmp_path / "all.json", *"abcd")
    write(tmp_path / "test.json", rows(1000))
    data = {"train": "all.json", "test": "test.json", "partition": "shards", "partition_field": "topic"}
    held, _ = _records(config(tmp_path, data={**data, "num_clients": 4, "shards_per_client": 1}))
    assert [len(own) for own in held.values()] == [10] * 4
    assert sorted(topics(held)) == [["a"], ["b"], ["c"], ["d"]]
    # Two each by default.
    held, _ = _records(config(tmp_path, data={**data, "num_clients": 2}))
    assert all(len(own) == 2 for own in topics(held))


def test_who_has_which_is_counted_by_the_field_that_divides(tmp_path: Path) -> None:
    topical(tmp_path / "all.json", "x", "y")
    data = {"train": "all.json", "partition": "by-field", "partition_field": "topic", "test_fraction": 0.1}
    configured = config(tmp_path, data=data)
    found = who_has_which(configured, read_splits(configured))
    assert found is not None
    assert (found.clients, found.labels, found.counts) == (("x", "y"), ("x", "y"), ((9, 0), (0, 9)))


@pytest.mark.parametrize(("partition", "enough"), [("dirichlet", 12), ("iid", 15)])
def test_every_client_has_the_least_number_of_examples_or_is_refused(
    tmp_path: Path, partition: str, enough: int
) -> None:
    topical(tmp_path / "all.json", *"abcdef")
    write(tmp_path / "test.json", rows(0))
    data = {"train": "all.json", "test": "test.json", "partition": partition, "num_clients": 4, "dirichlet_alpha": 0.1}
    data |= {"partition_field": "topic"} if partition == "dirichlet" else {}

    def sizes(**more: object) -> list[int]:
        held, _ = _records(config(tmp_path, data={**data, **more}))
        return [len(own) for own in held.values()]

    assert min(sizes(min_examples=enough)) >= enough
    if partition == "dirichlet":
        assert min(sizes()) < enough  # so that it was drawn again
    with pytest.raises(DataError, match=r"min_examples|at least 80 examples"):
        sizes(min_examples=20)


def test_a_given_client_with_too_few_examples_is_named(tmp_path: Path) -> None:
    for name, count in (("a", 2), ("b", 9)):
        write(tmp_path / f"client_{name}.json", rows(*range(count)))
    with pytest.raises(DataError, match=r"data\.min_examples = 3: .*got client_a with 2; share"):
        read_splits(config(tmp_path, data={"min_examples": 3}))


def test_clients_with_less_than_a_batch_are_told_where_examples_are_shared_out(tmp_path: Path) -> None:
    write(tmp_path / "client_a.json", rows(1, 2, 3))
    shared = config(tmp_path, data={"train": "client_a.json", "partition": "iid", "num_clients": 1})
    told = few_examples(shared, read_splits(shared))
    assert told is not None
    assert told.startswith(
        "few examples to train on: client_0 with 2, less than a batch of training.batch_size = 8; [data] min"
    )
    small = shared.model_copy(update={"training": shared.training.model_copy(update={"batch_size": 2})})
    given = config(tmp_path)
    assert few_examples(small, read_splits(small)) is few_examples(given, read_splits(given)) is None


def test_a_held_out_file_that_is_the_training_file_is_told(tmp_path: Path) -> None:
    write(tmp_path / "all.json", rows(1, 2, 3))
    with pytest.raises(
        ConfigurationError, match=r"'all\.json': expected files to train on.*what data\.validation names"
    ):
        read_splits(config(tmp_path, data={"train": "all.json", "validation": "all.json"}))


def test_tables_are_clients(tmp_path: Path) -> None:
    (tmp_path / "site_1.csv").write_text("instruction,output\na,b\nc,d\n")
    datasets.Dataset.from_list(rows(1, 2, 3)).save_to_disk(str(tmp_path / "site_2.v1"))
    (tmp_path / "site_3").mkdir()  # another directory
    held, _ = _records(config(tmp_path, data={"train": "site_*"}))
    assert list(held) == ["site_1", "site_2.v1"]


@pytest.mark.parametrize("key", ["multiple_choice", "harness_task_path"])
def test_what_is_found_only_at_the_old_place_is_told(
    tiny_llama: Path, toy_data: Path, tmp_path: Path, key: str
) -> None:
    shutil.copytree(toy_data, tmp_path / "data")
    write(tmp_path / "data" / "sub" / "q.json", [])
    more = 'metrics = ["multiple_choice"]' if key == "multiple_choice" else 'harness_tasks = ["arc_easy"]'
    (tmp_path / "c.toml").write_text(
        f'[model]\nname_or_path = "{tiny_llama}"\n[data]\npath = "data"\n[lora]\nranks = 2\n'
        f'[evaluation]\n{more}\n{key} = "sub/q.json"\n'
    )
    with pytest.raises(
        MissingInputError, match=rf"{key}: expected .*; there is .*data/sub/q\.json: paths are relative to"
    ):
        build(read_config(tmp_path / "c.toml"))


def test_given_clients_are_counted_by_category_where_they_have_one(toy_data: Path, tmp_path: Path) -> None:
    configured = config(toy_data, data={"test": "test.json"})
    found = who_has_which(configured, read_splits(configured))
    assert found is not None
    assert found.counts == ((4, 4, 4), (8, 8, 8))
    write(tmp_path / "client_0.json", rows(1, 2, 3))
    configured = config(tmp_path)
    assert who_has_which(configured, read_splits(configured)) is None


# --- each client its own training


def test_batch_sizes_steps_and_epochs_may_be_listed(tiny_llama: Path, toy_data: Path) -> None:
    simulation = build(config(toy_data, model=tiny_llama, training={"batch_size": [4, 2], "steps": [3, 5]}))
    assert [(c.training.batch_size, c.training.steps) for c in simulation.clients] == [(4, 3), (2, 5)]
    simulation = build(config(toy_data, model=tiny_llama, training={"epochs": [0.5, 2]}))
    assert [(c.training.steps, c.training.epochs) for c in simulation.clients] == [(None, 0.5), (None, 2.0)]


@pytest.mark.parametrize("key", ["batch_size", "steps", "epochs"])
def test_a_list_that_does_not_match_the_clients_is_refused(toy_data: Path, key: str) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"training\.{key} lists 3 clients, and the data has 2: client_0, client_1; give one"
    ):
        build(config(toy_data, data={"test": "test.json"}, training={key: [1, 2, 3]}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a CUDA device, float16 is no mistake")
def test_what_the_machine_lacks_is_told_before_anything_is_loaded(toy_data: Path) -> None:
    # There is no such model: loading it first would be another error.
    with pytest.raises(UnsupportedHardwareError, match=r"training.fp16 = true: expected a CUDA device, found none"):
        build(config(toy_data, data={"test": "test.json"}, training={"fp16": True}))


# --- chat


CHATML = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture
def chat_llama(tiny_llama: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "chat-llama"
    shutil.copytree(tiny_llama, directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(directory)
    return directory


def first_text(model: Path, data: Path, **keys: Any) -> str:
    simulation = build(config(data, model=model, data=keys))
    decoded = AutoTokenizer.from_pretrained(model).decode(simulation.clients[0].examples[0]["input_ids"])
    return str(decoded).replace("<unk>", "_")


def test_the_chat_template_of_the_tokenizer_is_used(chat_llama: Path, tiny_llama: Path, toy_data: Path) -> None:
    in_chat = "_user_ 0 red<eos>_assistant_ r<eos>"
    alpaca = first_text(tiny_llama, toy_data, test="test.json")
    assert "Instruction:" in alpaca
    own = {"test": "test.json", "prompt_template": "{instruction}?"}
    assert first_text(chat_llama, toy_data, test="test.json") == in_chat
    assert first_text(chat_llama, toy_data, test="test.json", chat_template=False) == alpaca
    # A template of one's own is meant as it is written, unless both are asked for.
    assert first_text(chat_llama, toy_data, **own) == "0 red?r<eos>"
    assert first_text(chat_llama, toy_data, **own, chat_template=True) == in_chat.replace("red<", "red?<")


def test_messages_are_trained_with_and_without_a_chat_template(
    chat_llama: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
    write(tmp_path / "data" / "client_0.json", [{"conversations": turns * 2}] * 4)
    assert first_text(chat_llama, tmp_path / "data") == "_user_ hi<eos>_assistant_ yo<eos>" * 2
    plain = first_text(tiny_llama, tmp_path / "data")
    assert plain.count("yo<eos>") == plain.count("### Instruction:\nhi") == 2
    with pytest.raises(
        ConfigurationError, match=r"data\.prompt_template is for examples with an instruction, and these hold"
    ):
        first_text(chat_llama, tmp_path / "data", prompt_template="{instruction}")


def test_a_chat_template_that_is_not_there_is_told(tiny_llama: Path, toy_data: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"data\.chat_template = true: expected a tokenizer with a chat template"
    ):
        build(config(toy_data, model=tiny_llama, data={"chat_template": True}))


def test_the_loss_on_all_tokens_is_a_matter_of_training(tiny_llama: Path, toy_data: Path) -> None:
    simulation = build(config(toy_data, model=tiny_llama, data={"test": "test.json", "loss_on": "all"}))
    assert all(row["labels"] == row["input_ids"] for client in simulation.clients for row in client.examples)
    assert all(row["labels"].count(IGNORED) > 10 for row in simulation.metrics[0].examples)


def test_a_format_may_be_said(tiny_llama: Path, tmp_path: Path) -> None:
    both = {"instruction": "a", "output": "alpaca", "response": "dolly", "context": ""}
    write(tmp_path / "client_0.json", [both] * 4)
    assert first_text(tiny_llama, tmp_path, prompt_template="{instruction}|", format="dolly") == "a_dolly<eos>"
    assert first_text(tiny_llama, tmp_path, prompt_template="{instruction}|") == "a_alpaca<eos>"


# --- multiple choice


def test_multiple_choice_is_a_test_and_no_validation(tiny_llama: Path, toy_data: Path, tmp_path: Path) -> None:
    write(tmp_path / "questions.json", [{"question": "2+2?", "choices": ["3", "4"], "answer": 1}] * 3)
    evaluation = {"metrics": ["loss", "multiple_choice"], "multiple_choice": str(tmp_path / "questions.json")}
    plain = build(config(toy_data, model=tiny_llama, evaluation=evaluation))
    assert [type(metric) for metric in plain.metrics] == [LanguageModelLoss, MultipleChoice]
    assert plain.final_metrics == ()
    data = {"validation_fraction": 0.2}
    chosen = build(config(toy_data, model=tiny_llama, data=data, evaluation=evaluation))
    assert [type(metric) for metric in chosen.metrics] == [LanguageModelLoss]
    assert [type(metric) for metric in chosen.final_metrics] == [LanguageModelLoss, MultipleChoice]
    assert set(chosen.final_metrics[1](chosen.model.peft)) == {"multiple_choice"}
