"""A federation with an aggregation method of one's own: the update of one client is that of all, in turn."""

from dataclasses import dataclass, replace

import florist
from florist.config.reading import DEMONSTRATION

MODEL = DEMONSTRATION.parent / "demonstration" / "model"
CLIENTS = {
    "north": [("upper: oak birch\n", "OAK BIRCH"), ("upper: elm\n", "ELM")],
    "south": [("title: red fox\n", "Red Fox"), ("title: owl\n", "Owl")],
}


@dataclass(frozen=True, slots=True)
class OneOfAll:
    """Clients add the whole update of the client whose turn it is."""

    @property
    def work(self):
        """Clients train both halves, as FLoRA's do."""
        return florist.Flora().work

    def __call__(self, updates, /):
        """Let FLoRA send the one update as it is, with a certificate of it."""
        ordered = sorted(updates, key=lambda update: update.client_id)
        chosen = ordered[ordered[0].round_number % len(ordered)]
        return florist.Flora()([replace(chosen, num_examples=1)])


if __name__ == "__main__":
    run = florist.simulate(
        model=MODEL, clients=CLIENTS, ranks=[8, 4], method=OneOfAll(), rounds=2, training={"steps": 2, "threads": 1}
    )
    print(run, [record.total_rank for record in run.records])
