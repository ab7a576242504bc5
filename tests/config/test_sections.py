from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florist.config import Config
from florist.config.sections import as_slice
from tests.config.test_reading import MINIMAL, read, refusal, with_keys

CLASSIFIER = 'kind = "sequence-classification"'


@pytest.mark.parametrize(
    ("content", "telling"),
    [
        (with_keys(training="steps = 5\nepochs = 1.0"), "training: steps = 5 and epochs = 1.0 contradict each other"),
        (with_keys(task='labels = ["a", "b"]'), "task: labels are for kind = 'sequence-classification'"),
        (with_keys(task=f'{CLASSIFIER}\nlabels = ["a"]', data='label_field = "y"'), "labels must name at least two"),
        (with_keys(task=f'{CLASSIFIER}\nlabels = ["a", "b", "a"]', data='label_field = "y"'), "labels must differ"),
        (with_keys(data='partition = "dirichlet"\nnum_clients = 2'), "needs partition_field, the field to split over"),
        (
            with_keys(data="num_clients = 2"),
            "num_clients is for examples that are shared out; given files are the clients themselves",
        ),
        (with_keys(data='partition_field = "topic"'), "partition_field is for partition = 'dirichlet'"),
        (
            with_keys(data='partition = "iid"\nnum_clients = 2\npartition_field = "topic"'),
            "partition_field is for partition = 'dirichlet', 'by-field' or 'shards', and partition is 'iid'",
        ),
        (with_keys(data='instruction_field = "q"'), "instruction_field and output_field go together"),
        (with_keys(data='output_field = "q"'), "instruction_field and output_field go together"),
        (with_keys(data='input_field = "q"'), "input_field needs instruction_field and output_field"),
        (with_keys(data='rows = "3"'), "rows must be a slice start:stop:step of integers, got '3'"),
        (with_keys(data='label_field = "y"'), "data.label_field is for task.kind = 'sequence-classification'"),
        (
            with_keys(task=CLASSIFIER, data='label_field = "y"', evaluation='harness_tasks = ["arc_easy"]'),
            "evaluation.harness_tasks and data.chat_template are for task.kind = 'causal-lm'",
        ),
        (with_keys(task=CLASSIFIER), "needs data.label_field, the field that holds the class"),
        (
            with_keys(task=CLASSIFIER, data='label_field = "y"\ninstruction_field = "q"\noutput_field = "a"'),
            "data.instruction_field and output_field are for task.kind = 'causal-lm'",
        ),
        (with_keys(data='partition = "iid"'), "data.partition = 'iid' needs data.num_clients, or lora.ranks as a list"),
        (
            with_keys(data='partition = "iid"\nnum_clients = 3').replace("ranks = 8", "ranks = [8, 4]"),
            "lora.ranks lists 2 clients and data.num_clients says 3",
        ),
        (MINIMAL.replace("ranks = 8", "ranks = [8, 4]\nalpha = [1.0]"), "ranks lists 2 clients and alpha 1"),
        (with_keys(data='partition = "by-field"'), "partition = 'by-field' needs partition_field"),
        (with_keys(data='partition = "shards"\nnum_clients = 2'), "partition = 'shards' needs partition_field"),
        (with_keys(data="shards_per_client = 3"), "shards_per_client is for partition = 'shards', and partition is"),
        (
            with_keys(data='partition = "shards"\npartition_field = "topic"'),
            "data.partition = 'shards' needs data.num_clients, or lora.ranks as a list",
        ),
        (
            with_keys(data='validation = "v.json"\nvalidation_fraction = 0.1'),
            "validation and validation_fraction contradict each other",
        ),
        (
            with_keys(data='format = "alpaca"\ninstruction_field = "q"\noutput_field = "a"'),
            "format = 'alpaca' and instruction_field contradict each other",
        ),
        (with_keys(training="bf16 = true\nfp16 = true"), "training: bf16 and fp16 contradict each other: remove one"),
        (with_keys(training="steps = [5, 6]\nepochs = 1.0"), "training: steps = (5, 6) and epochs = 1.0 contradict"),
        (
            with_keys(evaluation='split = "validation"'),
            "evaluation.split = 'validation' needs data.validation or data.validation_fraction",
        ),
        (with_keys(evaluation='metrics = ["multiple_choice"]'), "set multiple_choice, the file of the questions"),
        (with_keys(evaluation='multiple_choice = "q.json"'), "add 'multiple_choice' to metrics"),
        (
            with_keys(task=CLASSIFIER, data='label_field = "y"\nchat_template = true'),
            "evaluation.harness_tasks and data.chat_template are for task.kind = 'causal-lm'",
        ),
        (with_keys(aggregation="tau = 0.9\nrank = 4"), "tau = 0.9 and rank = 4 contradict each other"),
        (with_keys(aggregation='scope = "global"\nrank = 4'), "scope = 'global' goes with tau, not with rank"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(tmp_path: Path, content: str, telling: str) -> None:
    assert telling in refusal(tmp_path, content)


def test_contradictions_in_several_tables_are_told_at_once(tmp_path: Path) -> None:
    told = refusal(
        tmp_path,
        with_keys(
            training="steps = 5\nepochs = 1.0",
            data='num_clients = 2\ninput_field = "x"\nrows = "a:b"',
            task='labels = ["a", "b"]',
        ),
    )
    for telling in ("steps = 5 and", "num_clients is for", "input_field needs", "rows must be", "labels are for"):
        assert told.count(telling) == 1, telling


@pytest.mark.parametrize(
    ("section", "line", "telling"),
    [
        # With one token there is nothing to predict it from.
        ("data", "max_length = 1", "data.max_length: expected a number of at least 2, got 1"),
        ("data", "dirichlet_alpha = inf", "data.dirichlet_alpha: expected a finite number, got inf"),
        (
            "data",
            "test_fraction = 1.0",
            "data.test_fraction: expected a fraction in (0, 1) (to hold no test examples out",
        ),
        ("training", "learning_rate = nan", "training.learning_rate: expected a finite number, got nan"),
        ("training", "learning_rate = inf", "training.learning_rate: expected a finite number, got inf"),
        ("training", "learning_rate = 0", "training.learning_rate: expected a number greater than 0, got 0"),
        ("lora", "alpha = 0", "lora.alpha: expected a number greater than 0, got 0"),
        ("lora", "alpha = nan", "lora.alpha: expected a finite number, got nan"),
        ("federation", "fraction = 0.0", "federation.fraction: expected a fraction of the clients in (0, 1], got 0.0"),
        ("federation", "fraction = 10", "federation.fraction: expected a fraction of the clients in (0, 1], got 10"),
        ("federation", "seed = -1", "federation.seed: expected a number of at least 0, got -1"),
        ("federation", "rounds = 2.5", "federation.rounds: Input should be a valid integer"),
        ("aggregation", "tau = 0", "aggregation.tau: expected a fraction of the energy in (0, 1], got 0"),
        ("aggregation", "tau = nan", "aggregation.tau: expected a finite number, got nan"),
        ("aggregation", "budget = 0", "aggregation.budget: expected a number greater than 0, got 0"),
        ("aggregation", 'budget = "foo"', "aggregation.budget: expected a size as 20MB or 300KB, got 'foo'"),
        (
            "aggregation",
            'budget = "20 apples"',
            "aggregation.budget: expected a size as 20MB or 300KB, got '20 apples'",
        ),
        (
            "data",
            'partition = "random"',
            "data.partition: Input should be 'given', 'iid', 'dirichlet', 'by-field' or 'shards', got 'random'",
        ),
        (
            "data",
            'format = "csv"',
            "data.format: Input should be 'auto', 'alpaca', 'dolly', 'messages', 'sharegpt' or 'text'",
        ),
        ("data", 'chat_template = "yes please"', "data.chat_template: Input should be "),
        ("data", 'loss_on = "prompt"', "data.loss_on: Input should be 'response' or 'all', got 'prompt'"),
        ("model", 'quantization = "2bit"', "model.quantization: Input should be '4bit' or '8bit', got '2bit'"),
        ("training", "batch_size = [4, 0]", "training.batch_size: expected a number greater than 0, got 0"),
        ("training", "steps = []", "training.steps: Tuple should have at least 1 item"),
        ("evaluation", 'split = "train"', "evaluation.split: Input should be 'validation' or 'test', got 'train'"),
        ("aggregation", 'method = "flrist"', "'raflora' or 'full', got 'flrist'"),
        ("federation", 'local_init = "cold"', "federation.local_init: Input should be 'fresh', 'aligned' or 'warm'"),
        ("task", 'kind = "lm"', "task.kind: Input should be 'causal-lm' or 'sequence-classification', got 'lm'"),
    ],
)
def test_values_outside_of_their_range_are_refused(tmp_path: Path, section: str, line: str, telling: str) -> None:
    assert telling in refusal(tmp_path, with_keys(**{section: line}))


def test_a_federation_has_clients(tmp_path: Path) -> None:
    told = refusal(tmp_path, with_keys(data='partition = "iid"').replace("ranks = 8", "ranks = []"))
    assert "lora.ranks: Tuple should have at least 1 item" in told


@pytest.mark.parametrize(
    "content",
    [
        with_keys(data='partition = "iid"\nnum_clients = 2'),
        with_keys(data='partition = "iid"').replace("ranks = 8", "ranks = [8, 4]"),
        with_keys(data='partition = "dirichlet"\npartition_field = "topic"\nnum_clients = 2'),
        with_keys(data='instruction_field = "q"\noutput_field = "a"\ninput_field = "i"\nrows = "::2"'),
        with_keys(task=CLASSIFIER + '\nlabels = ["b", "a"]', data='label_field = "y"'),
        with_keys(data='partition = "by-field"\npartition_field = "topic"'),
        with_keys(data='partition = "shards"\npartition_field = "topic"\nnum_clients = 2\nshards_per_client = 1'),
        with_keys(data="validation_fraction = 0.1", evaluation='split = "validation"'),
        with_keys(data='validation = "v.json"', evaluation='split = "test"'),
        with_keys(training="batch_size = [4, 2]\nepochs = [1, 0.5]"),
        with_keys(evaluation='metrics = ["loss", "multiple_choice"]\nmultiple_choice = "q.json"'),
        with_keys(aggregation='budget = "20MB"\nmax_rank = 4'),
        with_keys(aggregation='scope = "global"\ntau = 1.0'),
    ],
)
def test_keys_that_go_together_are_taken(tmp_path: Path, content: str) -> None:
    assert isinstance(read(tmp_path, content), Config)


limits = st.none() | st.integers(-25, 25)


@given(start=limits, stop=limits, step=limits, spaces=st.sampled_from(["", " "]))
def test_a_slice_is_that_of_python(start: int | None, stop: int | None, step: int | None, spaces: str) -> None:
    start_text, stop_text, step_text = ("" if limit is None else f"{spaces}{limit}" for limit in (start, stop, step))
    assert as_slice(f"{start_text}:{stop_text}") == slice(start, stop)
    found = as_slice(f"{start_text}:{stop_text}:{step_text}")
    assert found == (None if step == 0 else slice(start, stop, step))


@pytest.mark.parametrize("rows", ["", "3", "1:2:3:4", "a:b", "1.5:", "1-2", ":x", "0::0", "[1:2]"])
def test_what_is_no_slice_is_none(rows: str) -> None:
    assert as_slice(rows) is None
