"""What ``florist evaluate`` does, once its arguments are known to be right."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from florist.checkpoint import locate, open_adapter
from florist.cli.evaluate_table import metrics_table
from florist.cli.libraries import load_training_libraries
from florist.cli.output import Output
from florist.config.sections import Config
from florist.federation.history import RunDirectory

if TYPE_CHECKING:
    from florist.config.measuring import Measured, ToMeasure


def final_adapter(run: Path) -> str:
    """The directory of the final adapter of a run, which is as it was written.

    Raises:
        MissingInputError, DamagedRunError: as `FinalResult.require_adapter`.
    """
    return str(RunDirectory.open(run).result.require_adapter())


def evaluate(
    config: Config,
    adapter: str | None,
    *,
    split: Literal["test", "validation", "train"],
    data: Path | None,
    by_client: bool,
    base: bool,
    output: Output,
) -> None:
    """Measure an adapter, and print what was found.

    Args:
        config: the configuration that names the base, the task and the metrics.
        adapter: the directory or hub id of the adapter; None for the base alone.
        split: the examples of the configuration to measure on.
        data: a file of examples in their place.
        by_client: whether to measure on the examples of each client as well.
        base: whether to measure the base alone as well.
        output: where to print.

    Raises:
        FloristError: as `open_adapter`, `measuring.examples_of` and `measuring.measure`.
    """
    saved = open_adapter(locate(adapter)) if adapter is not None else None
    load_training_libraries("evaluate")
    from florist.config.measuring import examples_of, examples_of_file, measure  # noqa: PLC0415  # needs these libraries

    to_measure = (
        examples_of_file(config, data, by_client=by_client)
        if data is not None
        else examples_of(config, split, by_client=by_client)
    )
    with output.progress("evaluation") as progress:
        found, of_base = measure(config, to_measure, saved, base=base, told=progress.part)
    models = {name: each for name, each in (("base", of_base), ("adapter", found)) if each is not None}
    output.table(metrics_table(to_measure, models))
    output.lines(f"measured on {len(to_measure.examples)} examples: {to_measure.source}")
    output.document(_document(adapter, to_measure, models))


def _document(adapter: str | None, to_measure: "ToMeasure", models: "dict[str, Measured]") -> dict[str, Any]:
    clients = to_measure.by_client or {}
    directions = {name: lower for each in models.values() for name, lower in each.metrics.lower_is_better.items()}
    return {
        "adapter": adapter,
        "source": to_measure.source,
        "num_examples": len(to_measure.examples),
        "lower_is_better": directions,
        "metrics": {model: dict(each.metrics) for model, each in models.items()},
        "clients": {
            client_id: {
                "num_examples": len(examples),
                "metrics": {model: dict(each.by_client[client_id]) for model, each in models.items()},
            }
            for client_id, examples in clients.items()
        },
    }
