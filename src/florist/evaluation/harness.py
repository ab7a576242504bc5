"""Named benchmarks by lm-evaluation-harness, an optional part of florist."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from florist.errors import ConfigurationError, MissingDependencyError, MissingInputError, how_to_install
from florist.evaluation.directions import Measurements


@dataclass(frozen=True, slots=True)
class HarnessTasks:
    """The metrics of lm-evaluation-harness; each is called ``task/metric``.

    Args:
        tokenizer: as for `evaluate_tasks`, like all that follow.
        tasks: names of tasks or groups.
        task_path: a directory with task files of your own.
        batch_size: how many requests are run together.
        limit: how many examples of a task are used.
    """

    tokenizer: PreTrainedTokenizerBase
    tasks: tuple[str, ...]
    task_path: Path | None = None
    batch_size: int = 8
    limit: int | None = None

    def __call__(self, model: Any, /) -> Measurements:
        """Measure all tasks."""
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
) -> Measurements:
    """Measure a model on tasks of lm-evaluation-harness, which downloads a task's data if it is not cached.

    Args:
        model: a causal language model of transformers or PEFT, on the device where it is; it is left in evaluation
            mode.
        tokenizer: the tokenizer of the model.
        tasks: names of tasks or groups.
        task_path: a directory with task files (YAML) of your own.
        batch_size: how many requests are run together.
        limit: how many examples of a task are used; all by default.

    Returns:
        The values by ``task/metric``, without standard errors, and which way each gets better, as the harness says it.

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
    return measurements_from(found or {})


def measurements_from(found: Mapping[str, Any]) -> Measurements:
    """What lm-evaluation-harness found, in florist's form.

    Args:
        found: its document: ``results`` by task and ``metric,filter``, and ``higher_is_better`` by task and metric,
            which is None for a group whose tasks contradict each other.

    Returns:
        The values by ``task/metric``, or ``task/metric/filter`` where a filter was used, without standard errors.
    """
    values: dict[str, float] = {}
    lower_is_better: dict[str, bool] = {}
    for task, metrics in found.get("results", {}).items():
        higher_is_better = found.get("higher_is_better", {}).get(task, {})
        for key, value in metrics.items():
            metric, comma, filtering = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            name = f"{task}/{metric}" + (f"/{filtering}" if filtering != "none" else "")
            values[name] = float(value)
            if isinstance(higher_is_better.get(metric), bool):
                lower_is_better[name] = not higher_is_better[metric]
    return Measurements(values, lower_is_better)


def require_tasks(tasks: Sequence[str], task_path: Path | None = None) -> Any:
    """The task manager of the harness, after a check that it knows the tasks.

    Raises:
        MissingDependencyError: lm-evaluation-harness is not installed.
        MissingInputError: there is no such directory.
        ConfigurationError: a task is unknown.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingDependencyError(
            f"evaluation.harness_tasks needs lm-evaluation-harness, which is not installed: {how_to_install('eval')}"
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
