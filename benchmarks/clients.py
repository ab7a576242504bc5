"""What a round costs beside its training steps: CPU seconds of both, in the embedded demonstration.

    python benchmarks/clients.py [ROUNDS]

Between the steps lie the set-up of the global and the local adapter, what the Trainer does before and after its loop,
and reading the update back; evaluation and aggregation are on neither side. CPU seconds, not wall time, so that a busy
machine shows as little as it can. A client's first step counts as its other steps do on average.
"""

import os
import platform
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import peft
import torch
import transformers

from florist.config import DEMONSTRATION, read_config, to_toml
from florist.config.building import build
from florist.federation.records import RoundRecord


class Stopwatch:
    """CPU seconds of the training steps."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.in_steps = 0.0

    def evaluating(self, round_number: int) -> None:
        """A round's clients are done; what follows is evaluation, and the next round."""

    def training(self, round_number: int, client_id: str, done: int, total: int) -> None:  # noqa: ARG002  # an Observer
        """A step was taken."""
        self.steps.append(time.process_time())
        if done == total:
            taken = [later - earlier for earlier, later in pairwise(self.steps)]
            self.in_steps += total * sum(taken) / len(taken)
            self.steps.clear()

    def closed(self, record: RoundRecord) -> None:
        """A round was saved."""


def main(rounds: int) -> None:
    """Play rounds and print the ratio."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config = read_config(DEMONSTRATION, [f"federation.rounds={rounds}", f"evaluation.every={rounds}"])
    simulation = build(config)
    watch = Stopwatch()
    clients = 0.0
    train_client = type(simulation)._train  # noqa: SLF001  # the boundary that is measured

    def timed(*arguments: object) -> object:
        nonlocal clients
        begun = time.process_time()
        try:
            return train_client(*arguments)
        finally:
            clients += time.process_time() - begun

    type(simulation)._train = timed  # noqa: SLF001  # as above
    with tempfile.TemporaryDirectory() as folder:
        directory = simulation.start(Path(folder, "run"), to_toml(config), config.aggregation.method, 1, watch)
        simulation.run(directory, watch)
    between = clients - watch.in_steps
    print(f"{platform.machine()}, {os.cpu_count()} cores, 1 torch thread, load {os.getloadavg()[0]:.1f}")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
    training = config.training
    print(
        f"{len(simulation.clients)} clients, {rounds} rounds, {training.steps} steps of {training.batch_size} examples"
    )
    print(f"training steps {watch.in_steps:.2f} s of CPU, between them {between:.2f} s: {between / watch.in_steps:.1%}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
