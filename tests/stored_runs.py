"""Rounds that nobody trained, as a run directory keeps them, and what is done to such directories."""

import os
from pathlib import Path

import torch

from florist.factors import AdapterState, LoraFactor
from florist.federation.broadcasts import Broadcasts
from florist.federation.records import ClientRecord, Drop, RoundRecord
from florist.federation.run_facts import RunFacts
from florist.federation.state import ServerState
from tests.builders import SHAPES, adapter

CONFIG = '[model]\nname_or_path = "né\\n"\n'


FACTS = RunFacts("0.1.0", "florist", 1, {"loss": 0.1 + 0.2, "exact_match": 0.0})


def broadcast(number: int, dtype: torch.dtype = torch.float32) -> AdapterState:
    kept = adapter(3, seed=number, dtype=dtype)
    nothing = LoraFactor(torch.zeros(5, 0, dtype=dtype), torch.zeros(0, 7, dtype=dtype))
    return AdapterState.of({**kept, "layers.9.zero": nothing})


def state(number: int, *, dtype: torch.dtype = torch.float32, skipped: tuple[int, ...] = ()) -> ServerState:
    """What the server holds after a round; the rounds in `skipped` had too few replies. It keeps three rounds."""
    kept = range(max(1, number - 2), number + 1)
    return ServerState(
        round_number=number,
        cumulative=adapter(number + 3, seed=100 + number, dtype=dtype),
        continued=adapter(number + 2, seed=200 + number, dtype=dtype),
        saved_parameters={"score.weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(number)).to(dtype)},
        broadcasts=Broadcasts({k: broadcast(k, dtype) for k in kept if k not in skipped}, max(0, number - 3)),
        holds={"client_0": number, "client_é": max(0, number - 1)},
    )


def record(number: int) -> RoundRecord:
    return RoundRecord(
        round=number,
        aggregated=number != 2,
        metrics={"loss": 1 / (number + 2), "perplexity": 1e300 / 3} if number % 2 else {},
        total_rank=9,
        input_rank=24,
        cumulative_rank=12,
        relative_error=0.1 * number,
        ranks=dict.fromkeys(SHAPES, 3),
        upload_bytes=2**40 + number,
        download_bytes=7,
        broadcast_bytes=3,
        stack_bytes=4,
        clients=(ClientRecord("client_0", 4, 10, 100, 200, 0.1 + 0.2, 1e-9),),
        dropped=(Drop("client_é", "sent NaN\nor inf"),),
        seconds={"total": 0.30000000000000004},
    )


def tree(folder: Path) -> dict[str, object]:
    """All that is in a folder: what every file holds and every link leads to."""
    return {
        str(each.relative_to(folder)): os.readlink(each)  # noqa: PTH115  # what it says, though it lead nowhere
        if each.is_symlink()
        else each.read_bytes()
        if each.is_file()
        else each.lstat().st_mode
        for each in folder.rglob("*")
    }


def flip(file: Path, place: int = -3) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
