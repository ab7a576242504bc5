"""The global adapter of a run over Flower as PEFT reads it."""

from collections.abc import Callable
from pathlib import Path

from florist.checkpoint import encode, write_adapter
from florist.factors import AdapterState
from florist.federation.state import ServerState
from florist.files.outputs import new_directory, replaced_directory
from florist.rounds import SavedParameters

Deliverable = Callable[[AdapterState, SavedParameters], tuple[AdapterState, SavedParameters]]
"""Makes the global model out of the pristine base, from what a server's state has."""


def write_global_adapter(
    path: Path,
    state: ServerState,
    base_model: str,
    task_type: str | None = "CAUSAL_LM",
    deliverable: Deliverable | None = None,
    *,
    flush: bool = True,
    replace: bool = False,
) -> None:
    """Write the global adapter, all of it or nothing.

    Args:
        path: the directory to create.
        state: has the adapter.
        base_model: the name of the base, for the adapter's config.
        task_type: PEFT's name of the task.
        deliverable: makes an adapter of weights that were trained themselves, as `FederatedModel.deliverable` does; it
            is needed for such methods alone.
        flush: whether the adapter has what the server still holds back.
        replace: whether the adapter takes the place of one that is there.

    Raises:
        OutputExistsError: the path is taken, and nothing is to be replaced.
        InvalidAdapterError: nothing was aggregated yet.
    """
    adapter, saved_parameters = state.flushed_adapter if flush else state.global_adapter, state.saved_parameters
    if deliverable is not None:
        adapter, saved_parameters = deliverable(adapter, saved_parameters)
    encoded = encode(adapter, saved_parameters=saved_parameters, base_model=base_model, task_type=task_type)
    with (replaced_directory if replace else new_directory)(path) as draft:
        write_adapter(draft, encoded)
