"""What ``florist aggregate`` does, once its arguments are known to be right."""

from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

import torch

from florist import one_shot
from florist.aggregation import Florist
from florist.checkpoint import Export
from florist.cli.aggregate_table import module_table, totals
from florist.cli.hub import push
from florist.cli.memory import keep_freed_memory
from florist.cli.output import Output
from florist.cli.summaries import absences
from florist.config.methods import FOR_ALL_METHODS, make_aggregator, rank_rule
from florist.config.sections import AggregationSection
from florist.errors import ConfigurationError
from florist.one_shot import FileBudget
from florist.one_shot.inputs import Inputs
from florist.ranks import RankRule


def combine_adapters(
    adapters: Sequence[str],
    out: Path,
    section: AggregationSection,
    *,
    num_examples: Sequence[Fraction] | None,
    export: str,
    pad_rank_to: int | None,
    dtype: str,
    allow_base_mismatch: bool,
    average_full: bool,
    device: str,
    push_to_hub: str | None,
    private: bool,
    output: Output,
) -> None:
    """Combine adapters, write the result, print what became of them, and upload it.

    Args:
        adapters: their directories or hub ids.
        out: the directory to create.
        section: the method and its options.
        num_examples: the examples behind the adapters; None for what their certificates say.
        export: the value of a `checkpoint.Export`.
        pad_rank_to: as for `checkpoint.encode`.
        dtype: the name of the torch dtype to store.
        allow_base_mismatch: as for `one_shot.aggregate`.
        average_full: as for `one_shot.aggregate`.
        device: the device to decompose on.
        push_to_hub: the repository to upload to; None for none.
        private: whether a repository that is created is private.
        output: where to print.

    Raises:
        ConfigurationError: `pad_rank_to` is less than the largest rank of the result.
        UploadError: the hub could not be reached, or refused.
        FloristError: as `one_shot.open_inputs` and `one_shot.combine`.
    """
    keep_freed_memory()
    torch_dtype: torch.dtype = getattr(torch, dtype)
    budget = int(section.budget) if section.budget is not None else None
    with output.progress("reading the adapters") as progress:
        inputs = one_shot.open_inputs(
            adapters, num_examples=num_examples, allow_base_mismatch=allow_base_mismatch, average_full=average_full
        )
        aggregator = make_aggregator(section, inputs.largest_rank, torch_dtype.itemsize)
        if budget is not None:
            aggregator = Florist(FileBudget(budget, partial(rule_within, section, torch_dtype), inputs, torch_dtype))
        output.detail(*_decisions(section, inputs, given=num_examples is not None))
        progress.whole(f"modules of {len(adapters)} adapter{'s' if len(adapters) != 1 else ''}")
        result = one_shot.combine(inputs, aggregator, device=device, on_module=progress.count)
        require_padding(pad_rank_to, max(spec.rank for spec in result.adapter.specs.values()))
        document = result.write(
            out,
            export=Export(export),
            pad_rank_to=pad_rank_to,
            dtype=torch_dtype,
            max_bytes=budget,
            settings={
                **section.model_dump(mode="json", exclude={*FOR_ALL_METHODS}),
                "export": export,
                "pad_rank_to": pad_rank_to,
                "dtype": dtype,
            },
        )
    output.table(module_table(document["modules"], every_module=output.verbose))
    output.lines(*totals(document, out))
    for note in (*absences(result.inputs.compatibility.absent), *document["notes"]):
        output.note(note)
    if push_to_hub is not None:
        output.lines(f"uploaded to {push(out, push_to_hub, private=private)}")
        document = {**document, "repository": push_to_hub}
    output.document(document)


def _decisions(section: AggregationSection, inputs: Inputs, *, given: bool) -> list[str]:
    keys = section.model_dump(exclude={*FOR_ALL_METHODS}, exclude_none=True)
    settings = ", ".join(f"{key} = {value}" for key, value in keys.items())
    why = "as --weights says" if given else "as their certificates say; an adapter without one counts once"
    counts = (f"{one.path} {count}" for one, count in zip(inputs.saved, inputs.weights.counts, strict=True))
    return [settings, f"weights in {inputs.weights.counted_in.value}, {why}: {', '.join(counts)}"]


def require_padding(pad_rank_to: int | None, largest: int) -> None:
    """Check ``--pad-rank-to`` against the ranks of the result.

    Raises:
        ConfigurationError: it is less than the largest.
    """
    # `checkpoint.encode` refuses the same, and names its own arguments.
    if pad_rank_to is not None and pad_rank_to < largest:
        raise ConfigurationError(
            f"expected --pad-rank-to to be at least the largest rank, {largest}, got {pad_rank_to}; pad to {largest} "
            "or more, or keep fewer directions with a smaller --max-rank"
        )


def rule_within(section: AggregationSection, dtype: torch.dtype, nbytes: int) -> RankRule:
    """The rule of a section whose factors may take so many bytes."""
    return rank_rule(section.model_copy(update={"budget": nbytes}), dtype.itemsize)
