import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from florist.errors import ConfigurationError, MissingDependencyError, MissingInputError
from florist.evaluation import HarnessTasks, MultipleChoice, evaluate_tasks, read_questions, require_tasks
from florist.evaluation.harness import measurements_from
from florist.models.federated_model import FederatedModel

installed = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not installed, reason="lm-evaluation-harness is not installed: the extra [eval]")

TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: " "
metric_list:
  - metric: acc
  - metric: acc_norm
"""

EXAMPLES = [
    {"question": f"say {k} and stop:", "choices": ["yes", "not now", "perhaps it is"][: 2 + k % 2], "answer": k % 2}
    for k in range(12)
]


@pytest.fixture
def task_path(tmp_path: Path) -> Path:
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(json.dumps(example) for example in EXAMPLES))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny_choice.yaml").write_text(TASK.format(file=file))
    return tmp_path / "tasks"


def test_the_harness_says_which_way_its_metrics_get_better() -> None:
    found = {
        "results": {
            "crows_pairs_english": {
                "alias": "crows_pairs_english",
                "likelihood_diff,none": 3.5,
                "likelihood_diff_stderr,none": "N/A",
                "pct_stereotype,none": 0.6,
                "pct_stereotype_stderr,none": 0.01,
            },
            "gsm8k": {"exact_match,strict-match": 0.25, "exact_match,flexible-extract": 0.5},
            "mixed": {"acc,none": 0.5, "odd,none": 2},
            "older": {"acc,none": 0.75},
        },
        # A group whose tasks contradict each other has None.
        "higher_is_better": {
            "crows_pairs_english": {"likelihood_diff": False, "pct_stereotype": False},
            "gsm8k": {"exact_match": True},
            "mixed": {"acc": True, "odd": None},
        },
    }
    measured = measurements_from(found)
    assert measured == {
        "crows_pairs_english/likelihood_diff": 3.5,
        "crows_pairs_english/pct_stereotype": 0.6,
        "gsm8k/exact_match/strict-match": 0.25,
        "gsm8k/exact_match/flexible-extract": 0.5,
        "mixed/acc": 0.5,
        "mixed/odd": 2.0,
        "older/acc": 0.75,
    }
    assert measured.lower_is_better == {
        "crows_pairs_english/likelihood_diff": True,
        "crows_pairs_english/pct_stereotype": True,
        "gsm8k/exact_match/strict-match": False,
        "gsm8k/exact_match/flexible-extract": False,
        "mixed/acc": False,
    }
    assert measurements_from({}) == {}


@pytest.mark.slow
@needs_harness
def test_the_harness_measures_an_adapted_model_and_agrees_with_multiple_choice(
    tiny_llama: Path, task_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.35, generator=draw)
    model = FederatedModel(base, "all-linear", (), "CAUSAL_LM").peft
    random = torch.get_rng_state()
    found = HarnessTasks(tokenizer, ("tiny_choice",), task_path, batch_size=4)(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert set(found) == {"tiny_choice/acc", "tiny_choice/acc_norm"}
    assert found.lower_is_better == {"tiny_choice/acc": False, "tiny_choice/acc_norm": False}
    questions = read_questions(
        EXAMPLES,
        tokenizer,
        prompt=lambda values: values["question"],
        answer=lambda values: f" {values['choice']}",
        max_length=100,
        source="here",
    )
    own = MultipleChoice(questions, tokenizer, 4)(model)["multiple_choice"]
    assert 0 < own < 1
    assert found["tiny_choice/acc_norm"] == pytest.approx(own)
    few = evaluate_tasks(model, tokenizer, ["tiny_choice"], task_path=task_path, limit=1)
    assert few["tiny_choice/acc_norm"] in (0.0, 1.0)


@pytest.mark.slow
@needs_harness
def test_unknown_tasks_and_missing_folders_are_told(task_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"expected names that lm-evaluation-harness knows, got \['no_such'\]"):
        require_tasks(["tiny_choice", "no_such"], task_path=task_path)
    with pytest.raises(MissingInputError, match=r"expected a directory of task files at .*none, found none"):
        require_tasks(["tiny_choice"], task_path=task_path / "none")


@pytest.mark.skipif(installed, reason="lm-evaluation-harness is installed")
def test_a_harness_that_is_not_there_is_named(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    with pytest.raises(MissingDependencyError, match=r'not installed: pip install -e "\.\[eval\]" in a clone'):
        evaluate_tasks(None, tokenizer, ["arc_easy"])
