"""A client that trains what its seed says, and waits in the phases that its node config names.

Keys of the node config: ``wait-in = "query.shares-1 train.keys-4"`` for a phase and a round, and ``signals``, a folder
in which a client says that it was asked, and where it finds that it may go on.
"""

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from florist.factors import AdapterState, LoraFactor
from florist.federation.local_init import LocalStart
from florist.flower import client_app
from florist.flower.messages import Assignment
from florist.flower.participant import TrainedLocally
from florist.flower.private_terms import Demands
from florist.rounds import SavedParameters, Trained
from florist.seeding import random_rows

LONGEST_WAIT = 900.0
RANK = 2


class Participant:
    """A client of one module."""

    rank, num_examples, held_out, base, trained = RANK, 5, 0, "the base", Trained.B

    def __init__(self, client_id: str) -> None:
        self.client_id = client_id
        self.shapes: Mapping[str, tuple[int, int]] = {"q": (12, 16)}
        self.saved_parameters: SavedParameters = {}

    def train(self, start: LocalStart, saved_parameters: SavedParameters, assignment: Assignment) -> TrainedLocally:
        """Draw B."""
        draw = torch.Generator().manual_seed(assignment.seed)
        drawn = random_rows(assignment.rows_seed, "q", assignment.max_rank, 16)
        given = start.local["q"].A if "q" in start.local else drawn[:0]
        A = torch.cat([given, drawn[given.shape[0] :]])[:RANK]
        B = 0.1 * torch.randn(12, RANK, generator=draw)
        return TrainedLocally(AdapterState.of({"q": LoraFactor(B, A)}), saved_parameters, 0.5, 0.1)

    def evaluate(self, adapter: AdapterState, saved_parameters: SavedParameters) -> Mapping[str, float]:
        """Measure nothing."""
        return {}


def wait(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Say that a phase was asked for, and wait where the node config says so."""
    name = f"{message.metadata.message_type}-{message.metadata.group_id}"
    signal = Path(str(context.node_config["signals"]), f"{context.node_config['client-id']}-{name}")
    signal.touch()
    go, deadline = signal.with_name(f"{signal.name}.go"), time.monotonic() + LONGEST_WAIT
    while name in str(context.node_config["wait-in"]).split() and not go.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return call_next(message, context)


app = client_app(
    lambda context: Participant(str(context.node_config["client-id"])), [wait], lambda _: Demands(masked=True)
)
