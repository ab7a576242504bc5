"""The client: florist's own, and a mod that does wrong in the rounds that the node config names.

Keys of the node config: ``fault-3 = "nan"`` for a fault in round 3, and ``signals``, a folder in which a client says
that it was asked to train, and where a fault ``wait`` finds that it may go on.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable
from torch import Tensor

from florist.config import DEMONSTRATION
from florist.factors import LoraFactor
from florist.flower import configured_client_app, messages, protocol
from florist.flower.messages import Upload

LONGEST_WAIT = 900.0


def not_a_number(upload: Upload) -> Upload:
    """As after a training that diverged."""
    return replace(upload, adapter=upload.adapter.map(lambda factor: factor.scaled(float("nan"))))


def wrong_shapes(upload: Upload) -> Upload:
    """As of a model with fewer outputs."""
    return replace(upload, adapter=upload.adapter.map(lambda factor: LoraFactor(factor.B[:-1], factor.A)))


def wrong_round(upload: Upload) -> Upload:
    """As a reply that is sent again one round later."""
    return replace(upload, report=replace(upload.report, round_number=upload.report.round_number - 1))


def wrong_count(upload: Upload) -> Upload:
    """As of who wants the global adapter to be its own."""
    return replace(upload, report=replace(upload.report, num_examples=1000 * upload.report.num_examples))


FAULTS: Mapping[str, Callable[[Upload], Upload]] = {
    "nan": not_a_number,
    "shapes": wrong_shapes,
    "round": wrong_round,
    "count": wrong_count,
    "wait": lambda upload: upload,
}


def misbehave(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Train as asked, and answer as the node config says."""
    if message.metadata.message_type != messages.TRAIN:
        return call_next(message, context)
    config, number = context.node_config, _round_number(message)
    fault = str(config.get(f"fault-{number}", ""))
    signal = Path(str(config["signals"]), f"{config['client-id']}-{number}")
    signal.touch()
    deadline = time.monotonic() + LONGEST_WAIT
    while fault == "wait" and not signal.with_suffix(".go").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    reply = call_next(message, context)
    answer = protocol.read_reply(reply.content, _trained)
    if fault and isinstance(answer, Upload):
        return Message(protocol.write_reply(FAULTS[fault](answer)), reply_to=message)
    return reply


def _round_number(message: Message) -> int:
    return protocol.read_instruction(message.content, lambda _assignment: _trained).assignment.round_number


def _trained(module: str, rank: int) -> Tensor:
    raise KeyError(f"{module}: expected A of rank {rank} to travel, since it is trained")


app = configured_client_app(DEMONSTRATION, mods=[misbehave])
