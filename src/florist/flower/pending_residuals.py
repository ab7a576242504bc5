"""What a client holds back of its updates, until it hears whether the server counted them.

A client that uploads does not learn at once what became of its update: the reply may be late, lost or refused, or the
round may have failed. It therefore keeps both what it held back before and what it holds back if the update counts. The
next assignment names the last round in which an update of this client counted, and that says which of the two is true.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from florist.compression.residual import NOTHING_OWED, Residual
from florist.flower.arrays import adapter_to_arrays, arrays_to_adapter, arrays_to_tensors, tensors_to_arrays
from florist.rounds import SavedParameters

_ROUNDS, _ADAPTER, _SAVED = "florist.held_back", "florist.held_back.adapter", "florist.held_back.saved_parameters"


@dataclass(frozen=True, slots=True, eq=False)
class PendingResiduals:
    """The residuals of a client.

    Attributes:
        by_round: each by the round of the client's own update after which it is held back; at most two. Nothing is held
            back before the first update, which is round 0.
    """

    by_round: Mapping[int, Residual] = field(default_factory=lambda: {0: NOTHING_OWED})

    def since(self, counted: int) -> Residual | None:
        """What is held back if the update of that round was the last one that counted; None where that is not known."""
        return self.by_round.get(counted)

    @classmethod
    def either(cls, counted: int, before: Residual, round_number: int, after: Residual) -> "PendingResiduals":
        """Keep what was held back before an update, and what is if it counts.

        Args:
            counted: the last round in which an update of the client counted; 0 for none.
            before: what was held back since then.
            round_number: the round of the new update.
            after: what is held back if it counts.
        """
        return cls({counted: before, round_number: after})

    def save(self, memory: RecordDict, client_id: str) -> None:
        """Put the residuals of a client into the memory that its SuperNode keeps, in the place of earlier ones."""
        rounds = sorted(self.by_round)
        memory[_ROUNDS] = ConfigRecord({"client_id": client_id, "rounds": rounds})
        for place, round_number in enumerate(rounds):
            residual = self.by_round[round_number]
            memory[f"{_ADAPTER}.{place}"] = adapter_to_arrays(residual.adapter)
            memory[f"{_SAVED}.{place}"] = tensors_to_arrays(residual.saved_parameters)

    @classmethod
    def load(cls, memory: RecordDict, client_id: str) -> "PendingResiduals":
        """Take the residuals of a client from that memory; where it has none of this client, it never uploaded.

        A node may be started again as another client, with its memory kept.
        """
        if _ROUNDS not in memory or memory.config_records[_ROUNDS]["client_id"] != client_id:
            return cls()
        rounds = memory.config_records[_ROUNDS]["rounds"]
        arrays: Mapping[str, ArrayRecord] = memory.array_records
        return cls(
            {
                int(str(round_number)): Residual(
                    arrays_to_adapter(arrays[f"{_ADAPTER}.{place}"]), arrays_to_tensors(arrays[f"{_SAVED}.{place}"])
                )
                for place, round_number in enumerate(rounds if isinstance(rounds, list) else [])
            }
        )


def misfit(residual: Residual, shapes: Mapping[str, tuple[int, int]], saved_parameters: SavedParameters) -> str | None:
    """Why a residual is not one of this model; None where it is.

    Args:
        residual: what was held back.
        shapes: (out_features, in_features) of the modules of the model.
        saved_parameters: the saved parameters of the model.
    """
    for name, spec in residual.adapter.specs.items():
        if shapes.get(name) != spec.shape:
            expected = f"the shape {shapes[name]}" if name in shapes else "no such module"
            return f"{name}: expected {expected}, got a residual of the shape {spec.shape}"
    for name, tensor in residual.saved_parameters.items():
        if name not in saved_parameters or saved_parameters[name].shape != tensor.shape:
            own = saved_parameters.get(name)
            expected = f"the shape {tuple(own.shape)}" if own is not None else "no such parameter"
            return f"{name}: expected {expected}, got a residual of the shape {tuple(tensor.shape)}"
    return None
