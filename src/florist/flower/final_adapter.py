"""The global adapter of a run over Flower as PEFT reads it."""

from collections.abc import Sequence
from pathlib import Path

from florist.federation.records import RoundRecord
from florist.federation.run_adapter import Deliverable, RunAdapter, SaveTokenizer
from florist.federation.state import ServerState
from florist.files.outputs import new_directory, replaced_directory


def write_global_adapter(
    path: Path,
    state: ServerState,
    base_model: str,
    task_type: str | None = "CAUSAL_LM",
    deliverable: Deliverable | None = None,
    *,
    flush: bool = True,
    replace: bool = False,
    records: Sequence[RoundRecord] = (),
    method: str | None = None,
    save_tokenizer: SaveTokenizer | None = None,
) -> None:
    """Write the global adapter with its certificate and model card, all of it or nothing.

    Args:
        path: the directory to create.
        state: has the adapter.
        base_model: the name of the base, for the adapter's config.
        task_type: PEFT's name of the task.
        deliverable: makes an adapter of weights that were trained themselves, as `FederatedModel.deliverable` does; it
            is needed for such methods alone.
        flush: whether the adapter has what the server still holds back.
        replace: whether the adapter takes the place of one that is there.
        records: the records of the rounds up to the state. Without them there is no certificate and no card.
        method: the name of the aggregation method.
        save_tokenizer: writes the tokenizer of the base; None where the server has none.

    Raises:
        OutputExistsError: the path is taken, and nothing is to be replaced.
        InvalidAdapterError: nothing was aggregated yet.
    """
    written = RunAdapter(base_model, task_type, method, deliverable, save_tokenizer)
    with (replaced_directory if replace else new_directory)(path) as draft:
        written.write(draft, state, records, flush=flush)
