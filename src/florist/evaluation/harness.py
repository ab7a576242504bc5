"""Named benchmarks by lm-evaluation-harness, an optional part of florist."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from florist.errors import ConfigurationError, MissingDependencyError, MissingInputError


@dataclass(frozen=True, slots=True)
class HarnessTasks:
    """Metrics of lm-evaluation-harness; each is called ``task/metric``.

    Args: as those of `evaluate_tasks`.
    """

    tokenizer: PreTrainedTokenizerBase
    tasks: tuple[str, ...]
    task_path: Path | None = None
    batch_size: int = 8
    limit: int | None = None

    def __call__(self, model: Any, /) -> Mapping[str, float]:
        """The metrics of all tasks."""
        return evaluate_tasks(
            model,
            self.tokenizer,
            self.tasks,
            task_path=self.task_path,
            batch_size=self.batch_size,
            limit=self.limit,
        )


def evaluate_tasks(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    task_path: Path | None = None,
    batch_size: int = 8,
    limit: int | None = None,
) -> dict[str, float]:
    """Measure a model on tasks of lm-evaluation-harness.

    Args:
        model: a causal language model of transformers or PEFT, where it is; left in evaluation mode.
        tokenizer: of the model.
        tasks: names of tasks or groups.
        task_path: directory with task files (YAML) of your own.
        batch_size: requests run together.
        limit: examples a task; all by default.

    Returns:
        ``task/metric`` -> value, standard errors left out. The harness downloads a task's data where it is not cached.

    Raises:
        MissingDependencyError, MissingInputError, ConfigurationError: as `require_tasks`.
    """
    manager = require_tasks(tasks, task_path)
    from lm_eval.evaluator import simple_evaluate  # noqa: PLC0415  # pyright: ignore[reportMissingImports]  # optional
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415  # pyright: ignore[reportMissingImports]  # optional

    with torch.random.fork_rng(devices=[]):  # the harness seeds the process
        held = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        found = simple_evaluate(
            held, tasks=list(tasks), task_manager=manager, limit=limit, log_samples=False, bootstrap_iters=0
        )
    results: Mapping[str, Mapping[str, Any]] = found["results"] if found is not None else {}
    measured: dict[str, float] = {}
    for task, metrics in results.items():
        for key, value in metrics.items():
            name, comma, filtering = key.partition(",")
            if comma and not name.endswith("_stderr") and isinstance(value, int | float):
                measured[f"{task}/{name}" + (f"/{filtering}" if filtering != "none" else "")] = float(value)
    return measured


def require_tasks(tasks: Sequence[str], task_path: Path | None = None) -> Any:
    """The harness's task manager, once it is sure that it knows the tasks.

    Raises:
        MissingDependencyError: lm-evaluation-harness is not installed.
        MissingInputError: there is no such directory.
        ConfigurationError: a task is unknown.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingDependencyError(
            "evaluation.harness_tasks needs lm-evaluation-harness, which is not installed: pip install 'florist[eval]'"
        )
    if task_path is not None and not task_path.is_dir():
        raise MissingInputError(
            f"expected a directory of task files at {task_path}, found none; check evaluation.harness_task_path"
        )
    from lm_eval.tasks import TaskManager  # noqa: PLC0415  # pyright: ignore[reportMissingImports]  # optional

    manager: Any = TaskManager(include_path=str(task_path) if task_path is not None else None)
    unknown = sorted(set(tasks) - set(manager.all_tasks))
    if unknown:
        raise ConfigurationError(
            f"evaluation.harness_tasks: expected names that lm-evaluation-harness knows, got {unknown}; `lm-eval ls "
            "tasks` lists them, and evaluation.harness_task_path adds your own"
        )
    return manager
