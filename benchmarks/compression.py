"""What a server pays for codec and feedback at LLaMA-7B shapes, beside FLoRIST without them, and what travels.

    python benchmarks/compression.py [--modules 4] [--rounds 3] [--threads 1]

Eight clients of ranks 64, 32, 16, 16, 8, 8, 4, 4 upload factors as a first training step leaves them. Without
compression the server decomposes their sum and cuts it (tau 0.9). With it, the server stacks them with what it held
back, cuts (tau 0.7), packs, decodes, and keeps the rest. The first round owes nothing, the later ones do.
"""

import argparse
import os
import platform
import time
from importlib.metadata import version

import torch

from florist.aggregation import Flora, Florist
from florist.compression.codecs import Codec, FloatCodec, IntegerCodec
from florist.compression.feedback import Compression, Feedback
from florist.factors import AdapterState, LoraFactor
from florist.ranks import EnergyThreshold
from florist.rounds import NO_ADAPTER, ClientUpdate

RANKS = (64, 32, 16, 16, 8, 8, 4, 4)
SHAPE = (4096, 4096)


def uploads(modules: int, round_number: int) -> list[ClientUpdate]:
    """Updates whose A is shared and whose B is small, as after a few steps."""
    m, n = SHAPE
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
    """Print seconds and bytes of every round for each codec, and the ratio to FLoRIST without compression."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} torch threads, torch {version('torch')}")
    print(f"{args.modules} modules of {SHAPE} in float32, clients of ranks {RANKS}")
    codecs: dict[str, Codec] = {"float16": FloatCodec(torch.float16), "int8": IntegerCodec(8), "int4": IntegerCodec(4)}
    plain, stacked = Florist(EnergyThreshold(0.9)), Flora()
    owed = dict.fromkeys(codecs, NO_ADAPTER)
    print("round  codec    seconds  to plain  MB sent  to plain  held back / due")
    for number in range(1, args.rounds + 1):
        updates = uploads(args.modules, number)
        begun = time.perf_counter()
        broadcast = plain(updates)
        plain_seconds, plain_bytes = time.perf_counter() - begun, broadcast.shared.nbytes
        print(f"{number:>5}  {'plain':<7}  {plain_seconds:7.3f}  {1:8.2f}  {plain_bytes / 1e6:7.2f}  {1:8.3f}")
        for name, codec in codecs.items():
            compression = Compression(codec, EnergyThreshold(0.7), Feedback())
            begun = time.perf_counter()
            sent = compression(stacked(updates).shared, owed[name])
            seconds = time.perf_counter() - begun
            owed[name] = sent.held_back
            held = sum(account.held_back**2 for account in sent.accounts.values()) ** 0.5
            due = sum(account.due**2 for account in sent.accounts.values()) ** 0.5
            time_ratio, byte_ratio = seconds / plain_seconds, sent.packed.nbytes / plain_bytes
            sizes = f"{sent.packed.nbytes / 1e6:7.2f}  {byte_ratio:8.3f}"
            print(f"{number:>5}  {name:<7}  {seconds:7.3f}  {time_ratio:8.2f}  {sizes}  {held / due:.3f}")


if __name__ == "__main__":
    main()
