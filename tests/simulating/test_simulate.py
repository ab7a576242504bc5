"""``florist.simulate``: the same federation as from a configuration, from objects that stay as they were."""

import json
import runpy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

import florist
from florist.config import read_config
from florist.errors import ConfigurationError, DataError, GivenObjectError
from florist.federation.records import RoundRecord
from florist.simulating import Run
from florist.simulating.keys import keys_of_guard
from tests.tiny_federation import configure
from tests.tiny_federation import run as run_configured

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "python").glob("*.py"))
TRAINING = {"learning_rate": 1e-2, "batch_size": 4, "steps": 4, "threads": 1}
PROMPT = {"prompt_template": "{instruction}\n"}
PAIRS = {"north": [("red\n", "r"), ("blue\n", "b")] * 3, "south": [("green\n", "g"), ("red\n", "r")] * 3}
QUICK = {"learning_rate": 1e-2, "batch_size": 4, "steps": 1, "threads": 1}


def examples(data: Path, name: str) -> list[dict[str, str]]:
    return json.loads((data / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def clients(toy_data: Path) -> dict[str, list[dict[str, str]]]:
    return {name: examples(toy_data, name) for name in ("client_0", "client_1")}


@pytest.fixture(scope="module")
def arguments(tiny_llama: Path, toy_data: Path, clients: dict[str, Any]) -> dict[str, Any]:
    """What `configure` writes as TOML."""
    return {
        "model": tiny_llama,
        "clients": clients,
        "ranks": [8, 4],
        "rounds": 2,
        "test": examples(toy_data, "test"),
        "data": PROMPT,
        "training": TRAINING,
    }


@pytest.fixture
def small(tiny_llama: Path) -> dict[str, Any]:
    return {"model": tiny_llama, "clients": PAIRS, "ranks": 2, "rounds": 1, "training": QUICK}


@pytest.fixture
def model(tiny_llama: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_llama)


def weights(run: Run) -> bytes:
    assert run.adapter is not None
    return (run.adapter / "adapter_model.safetensors").read_bytes()


def without_seconds(records: list[RoundRecord]) -> list[RoundRecord]:
    return [
        replace(record, seconds={}, clients=tuple(replace(client, seconds=0.0) for client in record.clients))
        for record in records
    ]


# --- the same as from a configuration


@pytest.mark.parametrize("by_object", [pytest.param(False, marks=pytest.mark.slow), True], ids=["path", "object"])
def test_it_is_the_run_of_the_configuration_bit_for_bit(
    arguments: dict[str, Any], tiny_llama: Path, toy_data: Path, tmp_path: Path, by_object: bool
) -> None:
    configured = run_configured(configure(tmp_path, tiny_llama, toy_data), tmp_path / "configured")
    given = {"model": AutoModelForCausalLM.from_pretrained(tiny_llama)} if by_object else {}
    seen: list[RoundRecord] = []
    run = florist.simulate(**arguments | given, callbacks=[seen.append])
    assert weights(run) == weights(Run(configured))
    assert without_seconds(run.records) == without_seconds(configured.records())
    assert seen == run.records
    assert run.metrics == run.records[-1].metrics
    assert run.initial == configured.facts.initial
    # What is written down of the settings is what the file says, but for where the data are.
    ours, theirs = read_config(run.directory.config_file), read_config(configured.config_file)
    assert ours.model_copy(update={"data": theirs.data}) == theirs
    assert run.state.total_rank > 0


@pytest.mark.slow
def test_a_method_as_an_object_is_the_method_of_that_name(small: dict[str, Any]) -> None:
    by_name = florist.simulate(**small, method="florist", aggregation={"tau": 0.8, "max_rank": 3})
    rule = florist.Capped(florist.EnergyThreshold(0.8), 3)
    by_object = florist.simulate(**small, method=florist.Florist(rule))
    assert weights(by_name) == weights(by_object)
    assert read_config(by_object.directory.config_file) == read_config(by_name.directory.config_file)


@pytest.mark.slow
def test_a_guard_as_an_object_is_that_of_its_keys(small: dict[str, Any]) -> None:
    off = florist.simulate(**small, guard=florist.Guard.off())
    section = read_config(off.directory.config_file).guard
    assert (section.norm_factor, section.examples_factor, section.smallest_cosine) == (False, False, False)
    tight = florist.simulate(**small, guard=florist.Guard(largest_norm=1e-9))
    assert "guard.largest_norm" in tight.records[0].dropped[0].reason
    with pytest.raises(ConfigurationError, match=r"guard: expected a florist\.Guard, or the keys of \[guard\]"):
        keys_of_guard("off")


@pytest.mark.slow
def test_progress_is_a_line_a_round_on_stderr_where_it_is_asked_for(
    small: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    florist.simulate(**small)
    assert "round 1" not in capsys.readouterr().err
    small["rounds"] = 2
    run = florist.simulate(**small, progress=True)
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("round ")]
    assert lines == [record.text for record in run.records]
    assert lines[1].startswith(f"round 2: loss {run.metrics['loss']:.3f}, perplexity ")
    assert lines[1].endswith(f"total rank {run.records[1].total_rank}")
    assert "round 1" not in printed.out


# --- the model


def frozen(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["florist", "full"])
def test_the_model_is_given_back_as_it_was(small: dict[str, Any], model: PreTrainedModel, method: str) -> None:
    model.model.embed_tokens.weight.requires_grad_(False)
    model.train()
    before, modules = frozen(model), [name for name, _ in model.named_modules()]
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    first, second = (florist.simulate(**small | {"model": model}, method=method) for _ in range(2))
    assert weights(first) == weights(second)
    assert [name for name, _ in model.named_modules()] == modules
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert model.training
    assert not hasattr(model, "peft_config")


def test_after_an_error_too(small: dict[str, Any], model: PreTrainedModel) -> None:
    before = frozen(model)

    def fails(*_: object) -> float:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        florist.simulate(**small | {"model": model}, train=fails)
    assert frozen(model).keys() == before.keys()
    assert not hasattr(model, "peft_config")


def test_a_classifier_keeps_its_head(tiny_bert: Path, clients: dict[str, Any]) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3)
    before = frozen(model)
    arguments: dict[str, Any] = {
        "tokenizer": AutoTokenizer.from_pretrained(tiny_bert),
        "clients": clients,
        "ranks": 4,
        "rounds": 1,
        "task": {"kind": "sequence-classification"},
        "data": {"label_field": "category"},
        "lora": {"target_modules": ["query", "value"]},
        "training": QUICK,
    }
    run = florist.simulate(model=model, **arguments)
    assert "accuracy" in run.metrics
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    wrong = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
    with pytest.raises(florist.FloristError, match="expected a model with 3 classes"):
        florist.simulate(model=wrong, **arguments)


# --- the examples


@pytest.mark.slow
def test_examples_of_every_kind_are_the_same_examples(tiny_llama: Path, small: dict[str, Any]) -> None:
    datasets = pytest.importorskip("datasets")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)

    def encoded(prompt: str, answer: str) -> dict[str, list[int]]:
        before = tokenizer(prompt)["input_ids"]
        after = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
        return {"input_ids": before + after, "labels": [-100] * len(before) + after}

    dictionaries = {name: [{"ask": q, "say": a} for q, a in pairs] for name, pairs in PAIRS.items()}
    fields = {"data": {"instruction_field": "ask", "output_field": "say", "prompt_template": "{ask}"}}
    kinds: list[dict[str, Any]] = [
        {"clients": PAIRS},
        {"clients": dictionaries, **fields},
        {"clients": {name: datasets.Dataset.from_list(some) for name, some in dictionaries.items()}, **fields},
        {"clients": {name: [encoded(*pair) for pair in pairs] for name, pairs in PAIRS.items()}},
    ]
    kinds.append({"clients": {name: datasets.Dataset.from_list(some) for name, some in kinds[-1]["clients"].items()}})
    runs = [florist.simulate(**small | kind) for kind in kinds]
    assert [weights(run) == weights(runs[0]) for run in runs] == [True] * len(runs)
    assert [run.metrics == runs[0].metrics for run in runs] == [True] * len(runs)


def test_texts_count_every_token(small: dict[str, Any]) -> None:
    run = florist.simulate(**small | {"clients": {"one": ["red is r", "blue is b"], "two": ["green is g"] * 3}})
    assert [client.num_examples for client in run.records[0].clients] == [1, 2]
    assert run.metrics["loss"] != run.initial["loss"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "clients: expected a mapping from the name of each client to its examples"),
        (["red"], "clients: expected a mapping"),
        ({"a": []}, r"clients\['a'\]: expected at least one example, got none"),
        ({"a": "text"}, r"clients\['a'\]: expected a datasets.Dataset or a list"),
        ({"a": {"b": ["red"]}}, r"clients\['a'\]: expected a datasets.Dataset or a list"),
        ({"a": ["red", ("blue", "b")]}, r"of one kind, got texts \(example 1\) and \(prompt, answer\) \(example 2\)"),
        ({"a": ["red"] * 2, "b": [("blue", "b")] * 2}, "of one kind, got"),
        ({"a": [3]}, r"clients\['a'\], example 1: expected a dictionary, a text or"),
        ({1: ["red"]}, "names of clients that are texts, got 1"),
        ({"a": [{"input_ids": [1, 2], "labels": [1]}] * 2}, "as many labels"),
    ],
)
def test_other_examples_are_refused(
    without_shape_checks: None, small: dict[str, Any], given: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        florist.simulate(**small | {"clients": given})


# --- what is wrong elsewhere


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ranks": {"north": 2}}, "ranks: expected one for each of north, south; missing south"),
        ({"ranks": {"north": 2, "south": 2, "east": 2}}, "no client is called east"),
        ({"ranks": [2, 2, 2]}, "lora.ranks"),
        ({"ranks": "16"}, "ranks: expected a whole number for all clients, one each, or a dictionary by client"),
        ({"ranks": 4.0}, "ranks: expected a whole number"),
        ({"ranks": None}, "ranks: expected a whole number"),
        ({"evaluation": "loss"}, r"evaluation: expected the keys of \[evaluation\] as a dictionary, got 'loss'"),
        ({"training": 3}, r"training: expected the keys of \[training\] as a dictionary"),
        ({"data": "x"}, r"data: expected the keys of \[data\] as a dictionary"),
        ({"federation": {"patience": 3}}, "unknown key federation.patience"),
        ({"federation": {"best_round": True}}, "choose by the validation examples"),
        ({"lora": {"ranks": 3}}, "have an argument of their own"),
        ({"lora": {"rank": 3}}, r"unknown key lora.rank \(did you mean lora.ranks\?\)|unknown key lora.rank"),
        ({"training": {"step": 3}}, r"unknown key training.step \(did you mean training.steps\?\)"),
        ({"method": "fedsgd"}, "aggregation.method: Input should be"),
        ({"method": "own"}, "own is an object that only code has"),
        ({"method": object()}, "method: expected one of florist"),
        ({"method": florist.FedIt, "ranks": 2}, "method: expected one of florist"),
        (
            {"method": florist.FedIt(), "aggregation": {"tau": 0.5}},
            "expected no keys but robust and hostile",
        ),
        ({"method": florist.FedIt(), "communication": "compact", "fraction": 2}, "federation.fraction"),
        ({"data": {"partition": "iid", "test": "a.json"}}, "got partition, test, which are for files"),
        ({"data": {"promt_template": "x"}}, "unknown key data.promt_template"),
        ({"model": 3}, "model: expected a PreTrainedModel"),
        ({"resume": True}, "expected the directory of the run as out"),
        ({"callbacks": [3]}, "callbacks: expected functions of a RoundRecord"),
        ({"metric": [3]}, "metric: expected a function of the model"),
        ({"evaluation": {"by_client": True}, "test": [("red", "r")]}, "expected test examples of every client's own"),
    ],
)
def test_arguments_that_are_wrong_are_named(
    without_shape_checks: None, small: dict[str, Any], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        florist.simulate(**small | given)


def test_a_loop_and_a_metric_must_return_numbers(small: dict[str, Any]) -> None:
    with pytest.raises(GivenObjectError, match="train: expected the mean loss as a number"):
        florist.simulate(**small, train=lambda *_: None)
    with pytest.raises(GivenObjectError, match="metric: expected a dictionary of numbers by name"):
        florist.simulate(**small, metric=lambda _: 3.0)


@pytest.mark.slow
def test_rounds_stop_early_and_are_tracked_where_that_is_asked_for(small: dict[str, Any], tmp_path: Path) -> None:
    seen: list[int] = []
    given = {
        "rounds": 4,
        "validation": [("red\n", "r")],
        "federation": {"early_stopping": 1, "min_delta": 100.0, "best_round": True},
        "tracking": {"to": ["tensorboard"]},
        "callbacks": lambda record: seen.append(record.round),  # one will do
        "out": tmp_path / "run",
    }
    run = florist.simulate(**small | given)
    assert [record.round for record in run.records] == seen
    assert run.records[-1].stopped
    assert len(seen) < 4
    assert [*tmp_path.rglob("events.out.tfevents*")]


# --- one's own


@pytest.mark.slow
@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_runs(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(file), run_name="__main__")
    assert capsys.readouterr().out


def test_there_is_an_example_of_everything_that_can_be_ones_own() -> None:
    assert [file.stem for file in EXAMPLES] == ["own_method", "own_metric", "own_rank_rule", "own_training_loop"]


@pytest.mark.slow
def test_a_loop_of_ones_own_trains_what_is_sent(small: dict[str, Any]) -> None:
    told: list[tuple[str, int, int]] = []

    class Watching:
        def training(self, round_number: int, client_id: str, done: int, total: int) -> None:
            told.append((client_id, done, total))

    contexts: list[Any] = []

    def train(model: Any, examples: Any, context: Any) -> float:
        contexts.append(context)
        for batch in context.batches(model, examples):
            model(**batch).loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad and parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-0.1)
        return 1.5

    training = QUICK | {"steps": 2}
    first, second = (
        florist.simulate(**small | {"training": training}, train=train, callbacks=[Watching()]) for _ in range(2)
    )
    assert weights(first) == weights(second) != weights(florist.simulate(**small | {"training": training}))
    assert [client.loss for client in first.records[0].clients] == [1.5, 1.5]
    assert told[:4] == [("north", 1, 2), ("north", 2, 2), ("south", 1, 2), ("south", 2, 2)]
    assert [(each.client_id, each.round_number, each.settings.steps) for each in contexts[:2]] == [
        ("north", 1, 2),
        ("south", 1, 2),
    ]


@pytest.mark.slow
def test_a_rank_rule_of_ones_own_cuts_what_is_sent(small: dict[str, Any]) -> None:
    plain = florist.simulate(**small, method=florist.Florist(Half()), communication="plain")
    assert set(plain.records[0].ranks.values()) == {
        1
    }  # of the 2 that two clients with the same rows of A have together
    assert read_config(plain.directory.config_file).aggregation.method == "own"
    assert plain.directory.facts.method == "Florist"
    by_default = florist.simulate(**small, method=florist.Florist(Half()))
    config = read_config(by_default.directory.config_file)
    assert (config.communication.preset, config.federation.local_init) == ("compact", "aligned")
    assert set(by_default.records[0].ranks.values()) <= {1, 2}
    assert by_default.records[0].total_rank < by_default.records[0].input_rank
    assert by_default.records[0].held_back > 0
    assert by_default.records[0].upload_bytes < plain.records[0].upload_bytes / 4


def test_what_a_method_cannot_use_is_refused(without_shape_checks: None, small: dict[str, Any]) -> None:
    class Mine:
        work = florist.Flora().work

        def __call__(self, updates: Any, /) -> Any:
            return florist.Flora()(updates)

    assert florist.simulate(**small, method=Mine()).records[0].upload_bytes > 0
    with pytest.raises(ConfigurationError, match="expected no feedback, upload_tau or upload_budget, which are for"):
        florist.simulate(**small, method=Mine(), communication="compact")
    with pytest.raises(ConfigurationError, match=r"communication\.upload_tau = 0\.5 cuts what clients upload"):
        florist.simulate(**small, method=florist.LinearRounds(Half()), communication={"upload_tau": 0.5})


@pytest.mark.slow
def test_a_metric_of_ones_own_takes_the_place_of_the_default_and_holds_nothing_out(small: dict[str, Any]) -> None:
    asked: list[bool] = []

    def norm(model: Any) -> dict[str, float]:
        asked.append(torch.is_grad_enabled() or model.training)
        return {"norm": sum(float(each.norm()) for each in model.parameters())}

    run = florist.simulate(**small, metric=norm)
    assert set(run.metrics) == {"norm"}
    assert run.metrics["norm"] != run.initial["norm"]
    assert asked == [False, False]
    assert [client.num_examples for client in run.records[0].clients] == [6, 6]
    both = florist.simulate(**small, metric=norm, evaluation={"metrics": ["loss"]})
    assert set(both.metrics) == {"loss", "perplexity", "norm"}


# --- going on


class StopHere(Exception):  # noqa: N818  # nothing is wrong
    pass


def interrupted(**arguments: Any) -> None:
    def stop(record: RoundRecord) -> None:
        raise StopHere

    with pytest.raises(StopHere):
        florist.simulate(**arguments, callbacks=[stop])


def nothing(model: Any, examples: Any, context: Any) -> float:
    return 0.0


@pytest.fixture(scope="module")
def begun(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The arguments of a run that was interrupted after its first round of two."""
    arguments: dict[str, Any] = {
        "model": AutoModelForCausalLM.from_pretrained(tiny_llama),
        "tokenizer": AutoTokenizer.from_pretrained(tiny_llama),
        "clients": PAIRS,
        "ranks": {"north": 4, "south": 2},
        "rounds": 2,
        "training": QUICK,
        "out": tmp_path_factory.mktemp("begun") / "runs" / "run",
    }
    interrupted(**arguments)
    return arguments


@dataclass(frozen=True, slots=True)
class Half:
    required_energy: float = 1.0
    per_module: bool = True

    def __call__(self, spectra: Any, /) -> Any:
        return {name: (len(each.S) + 1) // 2 for name, each in spectra.items()}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"clients": PAIRS | {"north": PAIRS["south"]}}, r"clients\['north'\]: expected 6 examples of sha256 "),
        (
            {"clients": {"north": PAIRS["north"], "east": PAIRS["south"]}, "ranks": [4, 2]},
            r"clients\['east'\]: expected none",
        ),
        ({"ranks": 4}, r"lora.ranks = 4: expected \(4, 2\)"),
        ({"seed": 1}, "federation.seed = 1: expected 0"),
        ({"method": florist.FedIt()}, "aggregation.method = 'fedit': expected 'florist'"),
        ({"method": florist.Florist(Half())}, r"method: expected none, got Florist\(rank_rule=Half\("),
        ({"train": nothing}, "train: expected the Trainer, got nothing"),
        ({"training": QUICK | {"learning_rate": 1.0}}, "training.learning_rate = 1.0: expected 0.01"),
        ({"test": [("red\n", "r")]}, "test: expected none, got 1 examples"),
        ({"rounds": 1, "fraction": 0.5}, "federation.fraction = 0.5: expected 1.0"),
    ],
)
def test_a_run_goes_on_with_what_it_was_begun_with_alone(
    begun: dict[str, Any], given: dict[str, Any], message: str
) -> None:
    before = (begun["out"] / "config.toml").read_text()
    with pytest.raises(ConfigurationError, match=message):
        florist.simulate(**begun | given, resume=True)
    assert (begun["out"] / "config.toml").read_text() == before


def test_another_model_is_refused(begun: dict[str, Any], tiny_llama: Path) -> None:
    other = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        other.lm_head.weight[0] += 1
    with pytest.raises(ConfigurationError, match="model: expected LlamaForCausalLM of weights "):
        florist.simulate(**begun | {"model": other}, resume=True)


@pytest.mark.slow
def test_an_interrupted_run_ends_as_if_it_had_never_stopped(begun: dict[str, Any]) -> None:
    assert len(Run.open(begun["out"]).records) == 1
    assert Run.open(begun["out"]).adapter is None
    with pytest.raises(florist.FloristError, match="already exists"):
        florist.simulate(**begun)
    resumed = florist.simulate(**begun, resume=True)
    whole = florist.simulate(**begun | {"out": None})
    assert weights(resumed) == weights(whole)
    assert without_seconds(resumed.records) == without_seconds(whole.records)
    # With more rounds it goes on once more, and where there is nothing yet, it begins.
    longer = florist.simulate(**begun | {"rounds": 3}, resume=True)
    assert len(longer.records) == 3
    anew = florist.simulate(**begun | {"rounds": 3, "out": begun["out"].with_name("anew")}, resume=True)
    assert weights(anew) == weights(longer)


def test_a_configured_run_goes_on_by_the_command(
    arguments: dict[str, Any], tiny_llama: Path, toy_data: Path, tmp_path: Path
) -> None:
    configured = run_configured(configure(tmp_path, tiny_llama, toy_data, rounds=1, steps=1), tmp_path / "run")
    with pytest.raises(ConfigurationError, match="begun from a configuration file; go on with: florist simulate"):
        florist.simulate(**arguments, out=configured.path, resume=True)


# --- what comes back


def test_a_temporary_run_goes_with_the_object_and_its_adapter_can_be_kept(
    small: dict[str, Any], tmp_path: Path
) -> None:
    run = florist.simulate(**small)
    path, kept = run.path, run.save_adapter(tmp_path / "kept")
    assert florist.open_adapter(kept).adapter.total_rank == run.state.total_rank
    assert path.exists()
    del run
    assert not path.exists()


def test_tables_of_a_run(small: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    name = "<script>alert('north')</script>"
    some = {name: PAIRS["north"], name + "2": PAIRS["south"]}
    run = florist.simulate(**small | {"clients": some}, evaluation={"by_client": True})
    html = run._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert html.count("<tr>") == 3
    assert repr(run).startswith("<Run of florist: 1 rounds, loss ")
    pandas = pytest.importorskip("pandas")
    rounds, by_client = run.to_pandas(), run.to_pandas(by="client")
    assert isinstance(rounds, pandas.DataFrame)
    assert list(rounds["round"]) == [0, 1]
    assert list(rounds["loss"]) == [run.initial["loss"], run.metrics["loss"]]
    assert rounds["upload_bytes"][1] == run.records[0].upload_bytes
    assert dict(zip(by_client["client"], by_client["loss"], strict=True)) == {
        client: own["loss"] for client, own in run.records[0].client_metrics.items()
    }
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(florist.FloristError, match="pip install pandas"):
        run.to_pandas()
