"""A federation with a rank rule of one's own: what stands above a fraction of the largest singular value is kept."""

from dataclasses import dataclass

import florist
from florist.config.reading import DEMONSTRATION

MODEL = DEMONSTRATION.parent / "demonstration" / "model"
CLIENTS = {
    "north": [("upper: oak birch\n", "OAK BIRCH"), ("upper: elm\n", "ELM")],
    "south": [("title: red fox\n", "Red Fox"), ("title: owl\n", "Owl")],
}


@dataclass(frozen=True, slots=True)
class AboveLargest:
    """Keeps, in each module, the directions above a fraction of its largest singular value."""

    fraction: float
    required_energy: float = 1.0
    per_module: bool = True

    def __call__(self, spectra, /):
        """Return the rank of every module."""
        return {name: int((each.S > self.fraction * each.S[:1]).sum()) for name, each in spectra.items()}


if __name__ == "__main__":
    method = florist.Florist(AboveLargest(0.3))
    run = florist.simulate(
        model=MODEL, clients=CLIENTS, ranks=[8, 4], method=method, rounds=2, training={"steps": 2, "threads": 1}
    )
    print(run, [(record.total_rank, record.input_rank) for record in run.records])
