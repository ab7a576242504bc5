"""What a server's round costs with codec and feedback at LLaMA-7B shapes, beside a round without them.

    python benchmarks/compression.py [--modules 2] [--rounds 7] [--threads 1] [--shape 4096 4096]

Eight clients of ranks 64, 32, 16, 16, 8, 8, 4, 4 upload factors as a first training step leaves them. A plain round
decomposes their sum, cuts it (tau 0.9), and adds it to the global adapter. A compensated round stacks them with what
the server held back, cuts (tau 0.7), packs, decodes, keeps the rest, and adds what arrives. Its clients upload in
float32 as well, or cut (tau 0.8) in 4 bits with feedback of their own; to unpack these counts as the server's time. The
rounds of both kinds take turns. The first round owes nothing; the last line has the median of the ratios of the later
half, where the residual is full.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from statistics import median
from typing import TypeVar

import torch

from florist.aggregation import Florist, lossless_sum
from florist.compression.codecs import Codec, FloatCodec, IntegerCodec
from florist.compression.feedback import Compression, Feedback, Sent
from florist.config.communication import SERVER_RANK_FACTOR
from florist.factors import AdapterState, LoraFactor, stack
from florist.ranks import EnergyThreshold
from florist.rounds import NO_ADAPTER, ClientUpdate

RANKS = (64, 32, 16, 16, 8, 8, 4, 4)
CLIENT = Compression(IntegerCodec(4), EnergyThreshold(0.8), Feedback())
Result = TypeVar("Result")


class Server:
    """One kind of round, with all that it keeps from one to the next.

    Args:
        compression: what becomes of the broadcast; None for a plain round.
        cut_uploads: whether clients cut and pack what they upload.
    """

    def __init__(self, compression: Compression | None, *, cut_uploads: bool = False) -> None:
        self.compression, self.cut_uploads = compression, cut_uploads
        self.cumulative, self.owed = NO_ADAPTER, NO_ADAPTER
        self.client_owed = [NO_ADAPTER] * len(RANKS)
        self.held = 0.0
        self.let_go = 0.0

    def round(self, updates: list[ClientUpdate]) -> tuple[float, float, int, int]:
        """Run a round; return the seconds with and without the sum of all rounds, the rank sent, and the bytes."""
        if self.compression is None:
            seconds, broadcast = timed(lambda: Florist(EnergyThreshold(0.9))(updates).shared)
            sent_bytes = broadcast.nbytes
        else:
            uploads = self._uploads(updates) if self.cut_uploads else None
            seconds, sent = timed(lambda: self._compensated(updates, uploads))
            self.owed, broadcast, sent_bytes = sent.held_back, sent.decoded, sent.packed.nbytes
            due = sum(account.due**2 for account in sent.accounts.values()) ** 0.5
            self.held = sum(account.held_back**2 for account in sent.accounts.values()) ** 0.5 / due
            self.let_go = sum(account.let_go**2 for account in sent.accounts.values()) ** 0.5 / due
        of_sum, self.cumulative = timed(lambda: lossless_sum([self.cumulative, broadcast]))
        return seconds + of_sum, seconds, broadcast.total_rank, sent_bytes

    def _uploads(self, updates: list[ClientUpdate]) -> list[Sent]:
        uploads: list[Sent] = []
        for client, update in enumerate(updates):
            uploads.append(CLIENT(update.adapter, self.client_owed[client], max_rank=RANKS[client]))
            self.client_owed[client] = uploads[-1].held_back
        return uploads

    def _compensated(self, updates: list[ClientUpdate], uploads: list[Sent] | None) -> Sent:
        if self.compression is None:
            raise ValueError("expected a compression")
        if uploads is not None:
            arrived = [upload.packed.unpacked() for upload in uploads]
            updates = [replace(update, adapter=adapter) for update, adapter in zip(updates, arrived, strict=True)]
        weight = 1 / len(updates)
        stacked = AdapterState.of(
            {name: stack([update.adapter[name].scaled(weight) for update in updates]) for name in updates[0].adapter}
        )
        return self.compression(stacked, self.owed)


def timed(function: Callable[[], Result]) -> tuple[float, Result]:
    """Return the seconds that a call takes, and its result."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter  # other work may share the cores
    begun = clock()
    result = function()
    return clock() - begun, result


def made_updates(modules: int, shape: tuple[int, int], round_number: int) -> list[ClientUpdate]:
    """Return updates whose A is shared and whose B is small, as after a few steps."""
    m, n = shape
    found: list[ClientUpdate] = []
    for client, rank in enumerate(RANKS):
        factors: dict[str, LoraFactor] = {}
        for module in range(modules):
            shared = torch.Generator().manual_seed(1000 * round_number + module)
            own = torch.Generator().manual_seed(100_000 * round_number + 1000 * client + module)
            A = torch.rand(max(RANKS), n, generator=shared)[:rank] * 2 / n**0.5 - n**-0.5
            decay = torch.linspace(1, 0.05, rank)
            factors[f"layers.{module}.q_proj"] = LoraFactor(1e-3 * torch.randn(m, rank, generator=own) * decay, A)
        found.append(ClientUpdate(f"client_{client}", AdapterState.of(factors), 10, round_number))
    return found


def main() -> None:
    """Print milliseconds and bytes a module of every round, and the ratios to a plain round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shape", type=int, nargs=2, default=(4096, 4096), metavar=("OUT", "IN"))
    parser.add_argument("--rank-factor", type=float, default=SERVER_RANK_FACTOR, help="the bound on the residual")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} torch threads, torch {version('torch')}")
    print(f"{args.modules} modules of {tuple(args.shape)} in float32, clients of ranks {RANKS}")
    feedback = Feedback(args.rank_factor)

    def compensated(codec: Codec, *, cut_uploads: bool) -> Server:
        return Server(Compression(codec, EnergyThreshold(0.7), feedback), cut_uploads=cut_uploads)

    servers = {
        "plain": Server(None),
        "float32 feedback": compensated(FloatCodec(), cut_uploads=False),
        "int8 feedback": compensated(IntegerCodec(8), cut_uploads=False),
        "int4 feedback": compensated(IntegerCodec(4), cut_uploads=False),
        "int4 both ways": compensated(IntegerCodec(4), cut_uploads=True),
    }
    ratios: dict[str, list[float]] = {name: [] for name in servers}
    print(
        "round  kind                ms a module  of it sum  to plain  rank sent  MB sent  to plain  held back  let go"
    )
    for number in range(1, args.rounds + 1):
        updates = made_updates(args.modules, tuple(args.shape), number)
        plain_seconds, plain_bytes = 1.0, 1
        for name, server in servers.items():
            seconds, of_aggregation, rank, sent_bytes = server.round(updates)
            if server.compression is None:
                plain_seconds, plain_bytes = seconds, sent_bytes
            ratios[name].append(seconds / plain_seconds)
            each = 1e3 / args.modules
            print(
                f"{number:>5}  {name:<18}  {each * seconds:11.1f}  {each * (seconds - of_aggregation):9.1f}  "
                f"{seconds / plain_seconds:8.2f}  {rank / args.modules:9.1f}  {sent_bytes / 1e6:7.2f}  "
                f"{sent_bytes / plain_bytes:8.3f}  {server.held:9.3f}  {server.let_go:6.3f}"
            )
    print("time to plain, median of the later half:", end="")
    for name, found in ratios.items():
        print(f"  {name} {median(found[len(found) // 2 :]):.2f}", end="")
    print()


if __name__ == "__main__":
    main()
