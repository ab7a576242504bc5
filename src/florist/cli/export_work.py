"""What ``florist export`` does, once its arguments are known to be right."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from florist.cli.hub import push
from florist.cli.libraries import load_training_libraries
from florist.cli.output import Output
from florist.config.communication import aggregator_of
from florist.config.reading import read_config
from florist.config.sections import CLASSIFICATION, Config
from florist.errors import ConfigurationError, ModelError
from florist.federation.history import RunDirectory
from florist.federation.kept_rounds import KeptRounds
from florist.federation.run_adapter import RunAdapter
from florist.files import strict_json
from florist.files.outputs import new_directory
from florist.rounds import Trained

if TYPE_CHECKING:
    from florist.federation.run_adapter import Deliverable


def export_round(
    path: Path,
    out: Path,
    round_number: int | None,
    *,
    best: bool,
    flush: bool | None,
    push_to_hub: str | None,
    private: bool,
    output: Output,
) -> None:
    """Write the global adapter of a round, print what was written, and upload it.

    Args:
        path: the directory of the run.
        out: the directory to create.
        round_number: the round; None for the one that the final adapter is of.
        best: whether it is the round with the best metric.
        flush: whether the adapter has what the server held back; None for what the run says, where that was kept.
        push_to_hub: the repository to upload to; None for none.
        private: whether a repository that is created is private.
        output: where to print.

    Raises:
        MissingInputError: there is no such run or round, or it was not kept.
        DamagedRunError: a file of it is missing, cannot be read or is not as it was written.
        ConfigurationError: the rounds were not measured by a metric that can choose the best.
        MissingDependencyError: something is not installed that the run's method needs.
        UploadError: the hub could not be reached, or refused.
    """
    run = RunDirectory.open(path)
    kept = run.kept_rounds()
    config = read_config(run.played_config)
    if kept is None:
        raise ConfigurationError(f"{path}: expected a run with a round, and none was played yet; play one first")
    number = _round(config, kept, round_number, best=best)
    with_held_back = flush if flush is not None else config.communication.flush and kept.has_held_back(number)
    torch.set_num_threads(run.facts.threads)  # a sum in another order rounds differently
    state = run.state_after(number, with_held_back=with_held_back)
    written = RunAdapter(
        config.model.name_or_path,
        "SEQ_CLS" if config.task.kind == CLASSIFICATION else "CAUSAL_LM",
        run.facts.method,
        _deliverable(config),
    )
    with new_directory(out) as draft:
        written.write(draft, state, kept.records[:number], flush=with_held_back)
        without = _add_tokenizer(config, draft)
    document = strict_json.decode((out / "florist.json").read_bytes())
    output.lines(
        f"round {number} written to {out}: total rank {document['total_rank']}, {document['bytes_out'] / 1e6:.2f} MB; "
        f"its certificate is in {out}/florist.json"
    )
    if without is not None:
        output.note(f"the tokenizer of the base is not beside the adapter: {without}")
    if flush is None and config.communication.flush and not with_held_back:
        output.note(
            f"round {number} is without what the server held back then, which was not kept; that takes "
            "federation.keep_rounds = 'all'"
        )
    damage = run.result.damage()
    if damage is not None:
        output.note(
            f"in the run itself, {damage}; this adapter is made from its state, and so can that one be: florist "
            f"simulate --resume {path}"
        )
    if push_to_hub is not None:
        output.lines(f"uploaded to {push(out, push_to_hub, private=private)}")
    output.document({"adapter": str(out), "certificate": document, "repository": push_to_hub})


def _round(config: Config, kept: KeptRounds, round_number: int | None, *, best: bool) -> int:
    if round_number is not None:
        return round_number
    last = kept.records[-1]
    if not best:
        return last.best_round if config.federation.best_round and last.best_round is not None else last.round
    if last.best_round is not None:
        return last.best_round
    if not (config.has_validation and config.evaluation.split != "test"):
        raise ConfigurationError(
            f"{kept.run}: --best chooses by the validation examples, and the rounds of this run were not measured on "
            "any: name a round with --round, or simulate with data.validation_fraction and federation.best_round"
        )
    load_training_libraries("export --best")
    from florist.config.choice_of_rounds import round_choice  # noqa: PLC0415  # needs these libraries

    chosen = config.federation.model_copy(update={"best_round": True})
    choice = round_choice(config.model_copy(update={"federation": chosen}))
    found = choice.best(kept.records) if choice is not None else None
    if found is None:
        raise ConfigurationError(f"{kept.run}: no round was measured by a metric that can choose; name it with --round")
    return found


def _deliverable(config: Config) -> "Deliverable | None":
    """What makes an adapter of weights that were trained themselves: the difference to the base, which is loaded."""
    ranks = config.lora.ranks
    work = aggregator_of(config, max(ranks) if isinstance(ranks, tuple) else ranks).work
    if Trained.WEIGHTS not in work.trained:
        return None
    load_training_libraries("export")
    from florist.config.building import load  # noqa: PLC0415  # needs these libraries
    from florist.config.splits import read_splits  # noqa: PLC0415

    return load(config, read_splits(config)).model.deliverable


def _add_tokenizer(config: Config, directory: Path) -> str | None:
    """Write the tokenizer of the base, and return why not where this machine has none."""
    try:
        load_training_libraries("export")
        from florist.models.loading import save_tokenizer  # noqa: PLC0415  # needs these libraries

        save_tokenizer(config.model.name_or_path, directory)
    except (ImportError, ModelError) as error:
        return " ".join(str(error).split())
    return None
