"""Directories of runs and comparisons that nobody played."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from florist.checkpoint import encode, write_adapter
from florist.comparison.directory import ComparisonDirectory
from florist.comparison.planning import Comparison, Entry, configure
from florist.data.partition import LabelCounts
from florist.factors import AdapterState, LoraFactor
from florist.federation.geometry import MOST_CLIENTS
from florist.federation.history import RunDirectory
from florist.federation.last_round import CURRENT, NO_LINES, LastRound, chained, read_last_round, write_last_round
from florist.federation.records import ClientRecord, Drop, RoundRecord
from florist.federation.run_facts import RunFacts
from florist.files import strict_json
from florist.files.reading import sha256

HOSTILE = "</script><img src=x onerror=alert(1)>"
"""A name that would be markup if anybody let it."""

CONFIG = """
[model]
name_or_path = "base"
[data]
path = "."
[lora]
ranks = 8
[federation]
rounds = {rounds}
[aggregation]
method = "florist"
tau = 0.9
"""


def module_names(modules: int) -> list[str]:
    kinds = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj"]
    return [f"model.layers.{k // len(kinds)}.{kinds[k % len(kinds)]}" for k in range(modules)]


def an_adapter(modules: int, features: int, rank: int) -> AdapterState:
    """Factors whose singular values fall."""
    draw = torch.Generator().manual_seed(0)
    fall = torch.logspace(0, -3, rank)
    return AdapterState.of(
        {
            name: LoraFactor(
                torch.randn(features, rank, generator=draw) * fall, torch.randn(rank, features, generator=draw)
            )
            for name in module_names(modules)
        }
    )


def a_record(number: int, names: Sequence[str], modules: Sequence[str], *, bare: bool = False) -> RoundRecord:
    """A round in which the last client was refused; a bare one lacks all that earlier versions did not record."""
    counted = names[:-1] if len(names) > 1 else names
    clients = tuple(
        ClientRecord(name, 8, 10 + k, 1000, 2000, 1 / number + k / 100, 0.5)
        if bare
        else ClientRecord(name, 8, 10 + k, 1000, 2000, 1 / number + k / 100, 0.5, 0.1, 1.0 / number + k)
        for k, name in enumerate(counted)
    )
    several = min(len(counted), MOST_CLIENTS)
    cosines = tuple(tuple(round(math.cos(i + j + number), 4) for j in range(i)) for i in range(several))
    new: dict[str, Any] = {} if bare else {"held_back": 0.4, "cosines": cosines, **_chosen(number, counted)}
    return RoundRecord(
        round=number,
        aggregated=True,
        metrics={"loss": 3.0 / (1 + number), "perplexity": math.exp(3.0 / (1 + number))},
        total_rank=4 * len(modules),
        input_rank=8 * len(modules),
        cumulative_rank=8,
        relative_error=0.2,
        ranks={name: 2 + k % 5 for k, name in enumerate(modules)},
        upload_bytes=1000 * len(counted),
        download_bytes=2000 * len(counted),
        broadcast_bytes=2000,
        stack_bytes=9000,
        clients=clients,
        dropped=(Drop(names[-1], f"its update holds NaN {HOSTILE}"),) if len(names) > 1 else (),
        seconds={"train": 6.0, "aggregate": 0.5, "evaluate": 1.0, "total": 7.5},
        **new,
    )


def _chosen(number: int, names: Sequence[str]) -> dict[str, Any]:
    """Metrics of every client, of which the last has the worst loss, and no improvement after round 2."""
    by_client = {name: {"loss": 1.0 + k + 1 / number, "mine": 0.5} for k, name in enumerate(names)}
    return {"client_metrics": by_client, "best_round": min(number, 2), "stopped": number == 3}


def a_run(
    path: Path,
    *,
    rounds: int = 3,
    clients: int = 4,
    modules: int = 10,
    features: int = 24,
    rank: int = 6,
    bare: bool = False,
    final: bool = True,
) -> RunDirectory:
    """The directory of a run.

    Args:
        path: where to make it.
        rounds: how many rounds were played.
        clients: how many clients there are; the last has a hostile name and is always refused.
        modules: how many modules were adapted.
        features: the size of their weights.
        rank: the rank of the final adapter.
        bare: whether the run is as an earlier version wrote it.
        final: whether there is a final adapter.
    """
    names = [*(f"client_{k:03d}{HOSTILE if k == 0 else ''}" for k in range(clients - 1)), HOSTILE]
    facts = RunFacts("0.1.0", "florist", 1, {"loss": 3.0, "perplexity": math.exp(3.0)}, {} if bare else {"torch": "2"})
    counts = LabelCounts(tuple(names), ("a", "b", HOSTILE), tuple((k, 2 * k, 7) for k in range(len(names))))
    run = RunDirectory.create(path, CONFIG.format(rounds=rounds), facts, None if bare else counts)
    records = [a_record(k, names, module_names(modules), bare=bare) for k in range(1, rounds + 1)]
    if bare:
        document = json.loads((path / "run.json").read_text())
        del document["environment"]
        (path / "run.json").write_text(json.dumps(document))
    lines = [strict_json.encode(_without_new(asdict(record)) if bare else asdict(record)) + "\n" for record in records]
    (path / "rounds.jsonl").write_text("".join(lines))
    _make_current(path, lines)
    if final:
        run.adapter.mkdir()
        write_adapter(run.adapter, encode(an_adapter(modules, features, rank), base_model="base"))
        run.result.record_adapter()
    return run


def _make_current(path: Path, lines: Sequence[str]) -> None:
    """Write current.json as of a run with these lines, of which no tensors are kept."""
    own = {name: sha256(path / name) for name in read_last_round(path / CURRENT).own_files}
    earlier = [line.encode() for line in lines[:-1]]
    last = LastRound(
        len(lines),
        own,
        line_begins=sum(map(len, earlier)),
        lines_before=reduce(chained, earlier, NO_LINES),
        record=json.loads(lines[-1]) if lines else None,
    )
    write_last_round(path / CURRENT, last)


def a_comparison(path: Path, losses: Mapping[str, tuple[str, float]], seeds: Sequence[int] = (0, 1, 2)) -> None:
    """The directory of a comparison.

    Args:
        path: where to make it.
        losses: the overrides and the last loss of each entry, by its name.
        seeds: the seeds.
    """
    file = path.parent / "base.toml"
    file.write_text(CONFIG.format(rounds=2))
    entries = tuple(Entry(name, tuple(overrides.split())) for name, (overrides, _) in losses.items())
    base, configs = configure(file, (), entries)
    directory = ComparisonDirectory.create(path, Comparison("0.1.0", entries, tuple(seeds), 1), base, configs)
    for cell in directory.comparison.cells:
        run = a_run(directory.run_path(cell), rounds=2, modules=5)
        lines = [json.loads(line) for line in (run.path / "rounds.jsonl").read_text().splitlines()]
        for line in lines:
            line["metrics"] = {"loss": losses[cell.entry.name][1] + 0.01 * cell.seed + (2 - line["round"])}
        texts = [json.dumps(line) + "\n" for line in lines]
        (run.path / "rounds.jsonl").write_text("".join(texts))
        _make_current(run.path, texts)
        run.result.record_adapter()


_NEW = {"cosines", "client_metrics", "best_round", "stopped"}


def _without_new(record: dict[str, object]) -> dict[str, object]:
    """A line as it was before norms, cosines and the choice of rounds were recorded."""
    clients = record["clients"]
    assert isinstance(clients, tuple)
    old = [{key: value for key, value in client.items() if key != "update_norm"} for client in clients]
    return {**{key: value for key, value in record.items() if key not in _NEW}, "clients": old}
