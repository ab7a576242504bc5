"""The global adapter of a run on disk: PEFT's two files, the certificate of what it is the sum of, and a model card."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from math import hypot
from pathlib import Path
from typing import Any

from florist.aggregation.certifying import frobenius_norm
from florist.checkpoint import EncodedAdapter, encode, serving_notes, write_adapter
from florist.factors import AdapterState
from florist.federation.records import RoundRecord
from florist.federation.state import ServerState
from florist.one_shot.certificate import FORMAT, write_certified
from florist.one_shot.weights import CountedIn
from florist.rounds import SavedParameters

Deliverable = Callable[[AdapterState, SavedParameters], tuple[AdapterState, SavedParameters]]
"""Makes the global model out of the pristine base, from what a server's state has."""
SaveTokenizer = Callable[[Path], None]
"""Writes the files of the base's tokenizer into a directory."""


@dataclass(frozen=True, slots=True)
class RunAdapter:
    """What is written of a run, beside the numbers of a state.

    Attributes:
        base_model: the directory or hub id of the base.
        task_type: PEFT's name of the task.
        method: the name of the aggregation method; None where nobody knows it.
        deliverable: makes an adapter of weights that were trained themselves; None where there are none.
        save_tokenizer: writes the tokenizer of the base; None where it is not at hand.
    """

    base_model: str
    task_type: str | None
    method: str | None = None
    deliverable: Deliverable | None = None
    save_tokenizer: SaveTokenizer | None = None

    def write(self, directory: Path, state: ServerState, records: Sequence[RoundRecord], *, flush: bool) -> None:
        """Write the global adapter of a state into an existing directory.

        Args:
            directory: where to write; the caller makes it with `outputs.new_directory`.
            state: the state of the server after the last of the records.
            records: the records of the rounds that it is the sum of. Where there are none, there is no certificate and
                no card.
            flush: whether the adapter has what the server still holds back.

        Raises:
            InvalidAdapterError: nothing was aggregated yet.
        """
        adapter, saved_parameters = state.flushed_adapter if flush else state.global_adapter, state.saved_parameters
        if self.deliverable is not None:
            adapter, saved_parameters = self.deliverable(adapter, saved_parameters)
        encoded = encode(
            adapter, saved_parameters=saved_parameters, base_model=self.base_model, task_type=self.task_type
        )
        write_adapter(directory, encoded)
        if records:
            document = run_certificate(self.method, state, records, adapter, encoded, flushed=flush)
            write_certified(directory, document, encoded.config, saved_parameters)
        if self.save_tokenizer is not None:
            self.save_tokenizer(directory)


def run_certificate(
    method: str | None,
    state: ServerState,
    records: Sequence[RoundRecord],
    adapter: AdapterState,
    encoded: EncodedAdapter,
    *,
    flushed: bool,
) -> dict[str, Any]:
    """The content of florist.json without its hashes: what the adapter of a run is the sum of.

    The exact sum of all that clients sent differs from the adapter, in a module, by what rounds lost for good and by
    what the server holds back. The norm of that is at most the sum of their norms, which is ``error_at_most``. It is
    null where it is not known: for methods whose clients train on from an average of the halves, for averaged weights,
    and for rounds that an older florist recorded.

    Args:
        method: the name of the aggregation method.
        state: the state of the server after the rounds.
        records: the records of all rounds up to the state.
        adapter: what is written.
        encoded: the same as PEFT stores it.
        flushed: whether it has what the server held back.

    Cost: the norm of every module, O((m + n) r^2).
    """
    changed = [record for record in records if record.aggregated]
    counted: dict[str, list[int | None]] = {}
    for record in changed:
        for client in record.clients:
            counted.setdefault(client.client_id, []).append(client.num_examples)
    modules = {name: _module(factor, name, state, changed, flushed=flushed) for name, factor in sorted(adapter.items())}
    examples = _sum([numbers[-1] for numbers in counted.values()])
    bounds = [module["error_at_most"] for module in modules.values()]
    return {
        "format": FORMAT,
        "florist": version("florist"),
        "method": method,
        "round": records[-1].round,
        "rounds": len(changed),
        "flushed": flushed,
        # A client counts once, by what it had when it last took part. Private rounds do not tell.
        "num_examples": examples,
        "counted_in": (CountedIn.EXAMPLES if examples is not None else CountedIn.SHARES).value,
        "total_rank": adapter.total_rank,
        "bytes_in": sum(record.upload_bytes for record in changed),
        "bytes_out": encoded.nbytes,
        "norm": hypot(*(module["norm"] for module in modules.values())),
        "error_at_most": None if None in bounds else hypot(*bounds),
        "modules": modules,
        "notes": list(serving_notes(encoded)),
        "clients": {
            client_id: {"num_examples": numbers[-1], "rounds": len(numbers)}
            for client_id, numbers in sorted(counted.items())
        },
    }


def _sum(numbers: Sequence[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


def _module(
    factor: Any, name: str, state: ServerState, changed: Sequence[RoundRecord], *, flushed: bool
) -> Mapping[str, Any]:
    owed = state.owed.adapter
    held_back = frobenius_norm(owed[name]) if name in owed and not flushed else 0.0
    known = not state.continued and all(name in record.lost for record in changed)
    return {
        "rank": factor.rank,
        "norm": frobenius_norm(factor),
        "held_back": held_back,
        "error_at_most": sum(record.lost[name] for record in changed) + held_back if known else None,
        "shape": [factor.B.shape[0], factor.A.shape[1]],
    }
