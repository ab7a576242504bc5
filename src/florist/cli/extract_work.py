"""What ``florist extract`` does, once its arguments are known to be right."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from florist import one_shot
from florist.checkpoint import Export, locate
from florist.checkpoint.model_weights import ModelLayers, open_model
from florist.cli.aggregate_table import module_table
from florist.cli.aggregate_work import require_padding, rule_within
from florist.cli.hub import push
from florist.cli.libraries import load_training_libraries
from florist.cli.memory import keep_freed_memory
from florist.cli.output import Output
from florist.config.methods import FOR_ALL_METHODS, rank_rule
from florist.config.sections import AggregationSection
from florist.errors import MissingInputError
from florist.one_shot import FileBudget, Others
from florist.ranks import RankRule


def extract_adapter(
    base: str,
    tuned: str,
    out: Path,
    section: AggregationSection,
    *,
    others: str,
    export: str,
    pad_rank_to: int | None,
    dtype: str,
    device: str,
    push_to_hub: str | None,
    private: bool,
    output: Output,
) -> None:
    """Extract the adapter, write it, print what became of the modules, and upload it.

    Args:
        base: the directory or hub id of the base model.
        tuned: that of the fine-tuned one.
        out: the directory to create.
        section: how much to keep.
        others: the value of a `one_shot.Others`.
        export: the value of a `checkpoint.Export`.
        pad_rank_to: as for `checkpoint.encode`.
        dtype: the name of the torch dtype to store.
        device: the device to decompose on.
        push_to_hub: the repository to upload to; None for none.
        private: whether a repository that is created is private.
        output: where to print.

    Raises:
        MissingDependencyError: transformers is not installed.
        ConfigurationError: `pad_rank_to` is less than the largest rank of the result, or the budget is too small.
        UploadError: the hub could not be reached, or refused.
        FloristError: as `open_model`, `model_layers`, `one_shot.compare_models` and `one_shot.extract`.
    """
    keep_freed_memory()
    torch_dtype: torch.dtype = getattr(torch, dtype)
    places = [_place(base), _place(tuned)]
    before, after = (open_model(place) for place in places)
    layers = _layers(places[1])
    budget = int(section.budget) if section.budget is not None else None
    with output.progress("comparing the models") as progress:
        progress.whole("tensors of two models")
        difference = one_shot.compare_models(before, after, layers, others=Others(others), on_tensor=progress.count)
    rule: RankRule = rank_rule(section, torch_dtype.itemsize)
    if budget is not None:
        rule = FileBudget(budget, partial(rule_within, section, torch_dtype), difference, torch_dtype)
    settings = section.model_dump(mode="json", exclude={"method", *FOR_ALL_METHODS})
    output.detail(
        ", ".join(f"{key} = {value}" for key, value in settings.items() if value is not None),
        f"{len(difference.modules)} of {len(layers.linear)} linear modules differ; saved whole: "
        f"{', '.join(difference.whole) or 'nothing'}",
    )
    with output.progress("decomposing") as progress:
        progress.whole("modules")
        result = one_shot.extract(difference, rule, device=device, on_module=progress.count)
        require_padding(pad_rank_to, max(spec.rank for spec in result.adapter.specs.values()))
        name, revision = _named(base)
        document = result.write(
            out,
            base_model=name,
            revision=revision,
            export=Export(export),
            pad_rank_to=pad_rank_to,
            dtype=torch_dtype,
            max_bytes=budget,
            settings={
                "method": "extract",
                **settings,
                "others": others,
                "export": export,
                "pad_rank_to": pad_rank_to,
                "dtype": dtype,
            },
        )
    output.table(module_table(document["modules"], every_module=output.verbose))
    output.lines(*_totals(document, len(layers.linear), out))
    for note in document["notes"]:
        output.note(note)
    if push_to_hub is not None:
        output.lines(f"uploaded to {push(out, push_to_hub, private=private)}")
        document = {**document, "repository": push_to_hub}
    output.document(document)


def _place(reference: str) -> Path:
    try:
        return locate(reference)
    except MissingInputError as error:
        raise MissingInputError(
            f"expected the directory of a model, or a hub id in the local cache, got {reference!r}; florist downloads "
            "nothing: run `hf download` first"
        ) from error


def _named(reference: str) -> tuple[str, str | None]:
    """What an adapter calls its base: a directory as it was given, or a hub id and the revision behind its @."""
    if Path(reference).exists():
        return reference, None
    name, _, revision = reference.partition("@")
    return name, revision or None


def _layers(directory: Path) -> ModelLayers:
    load_training_libraries("extract")
    from florist.models.layers import model_layers  # noqa: PLC0415  # needs these libraries

    return model_layers(directory)


def _totals(document: Mapping[str, Any], modules: int, out: Path) -> tuple[str, str]:
    bytes_in, bytes_out = document["bytes_in"], document["bytes_out"]
    sizes = (
        f"{len(document['modules'])} of {modules} linear modules changed; a model of {bytes_in / 1e6:.2f} MB -> an "
        f"adapter of {bytes_out / 1e6:.2f} MB, total rank {document['total_rank']} ({bytes_in / bytes_out:.1f} times "
        f"smaller); relative error {document['relative_error']:.2e}"
    )
    return sizes, f"written to {out}, with its certificate in {out}/florist.json"
