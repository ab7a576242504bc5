"""PEFT's `add_weighted_adapter` and florist's, each against the dense float64 sum: the table of docs/peft.md.

    python benchmarks/peft_merge.py             # the table in seconds, then a large module in minutes
    python benchmarks/peft_merge.py --no-large

1. Errors. Each adapter of a tiny model is made, saved, and loaded alone: what it adds to the outputs of every module is
   read off in float64, by feeding unit vectors and zero. The weighted sum of these is what a merged adapter should add.
   All are then loaded into one model and merged there by each method, and what the merged adapter adds is read off in
   the same way. A cell is the relative error in the Frobenius norm of all modules together, biases and heads included.
   The merged adapter is saved and loaded into a new base as well; the cell says so where that fails or gives another
   error.
2. One module of 4096 x 4096 with adapters of rank 16, 32 and 64: CPU time of the whole call, the peak of its memory
   above what was in use before, and the error. Each method has a process of its own, with one thread.
"""

import argparse
import copy
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import KasaConfig, LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from florist import FixedRank, FloristError
from florist.peft import add_weighted_adapter

MERGED = "merged"
SHOWN = 1e-5
"""Errors below this are rounding, of which one digit says enough."""


class Tiny(nn.Module):
    """Two linear layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(24, 32)
        self.down = nn.Linear(32, 24)
        self.head = nn.Linear(24, 6)

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply all three."""
        return self.head(self.down(self.up(hidden)))


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        name: what the adapters are.
        adapters: their settings for `LoraConfig`, by name.
        weights: one each.
        dtype: of the base and of the adapters.
        same_heads: whether trained heads have the same values.
        into: the name of the merged adapter.
    """

    name: str
    adapters: Mapping[str, Mapping[str, Any]]
    weights: Sequence[float] = (0.7, 0.3)
    dtype: torch.dtype = torch.float32
    same_heads: bool = False
    into: str = MERGED


def two(**settings: object) -> dict[str, dict[str, object]]:
    """Two adapters of rank 4 with the same settings."""
    return {"a": {"r": 4, **settings}, "b": {"r": 4, **settings}}


UNLIKE = {"a": {"r": 4}, "b": {"r": 8, "lora_alpha": 6}}
HEAD = {"modules_to_save": ["head"]}
CASES = (
    Case("plain LoRA of one rank", two()),
    Case("unlike ranks and `lora_alpha`", UNLIKE),
    Case("a negative weight", two(), weights=(1.0, -0.6)),
    Case("unlike `target_modules`", {"a": {"r": 4}, "b": {"r": 4, "target_modules": ["up"]}}),
    Case("`target_modules` as a list and as a pattern", {"a": {"r": 4}, "b": {"r": 4, "target_modules": "up|down"}}),
    Case("`use_rslora`", two(use_rslora=True)),
    Case("`alpha_pattern`", two(alpha_pattern={"up": 20})),
    Case("`rank_pattern`, the same in both", two(rank_pattern={"up": 2})),
    Case("`rank_pattern` in one", {"a": {"r": 4}, "b": {"r": 4, "rank_pattern": {"up": 2}}}),
    Case("`rank_pattern` above `r`", {"a": {"r": 4}, "b": {"r": 2, "rank_pattern": {"up": 4}}}),
    Case("`lora_bias`", two(lora_bias=True)),
    Case('`bias="lora_only"` in one', {"a": {"r": 4, "bias": "lora_only"}, "b": {"r": 4}}),
    Case("DoRA", two(use_dora=True)),
    Case("KaSA", two(kasa_config=KasaConfig())),
    Case("a head in `modules_to_save`, the same in both", two(**HEAD), same_heads=True),
    Case("a head in `modules_to_save`, unlike", two(**HEAD)),
    Case("a head in `modules_to_save` in one", {"a": {"r": 4, **HEAD}, "b": {"r": 4}}),
    Case("kept in bfloat16", two(), dtype=torch.bfloat16),
    Case("float64", two(), dtype=torch.float64),
    Case("a name that is taken", two(), into="b"),
)

Method = Callable[[Case, PeftModel], object]


def by_peft(combination: str, *, whole: bool = False) -> Method:
    """PEFT's own method; with `whole` at the rank that the sum can have."""

    def merge(case: Case, model: PeftModel) -> None:
        own: Any = model.base_model.add_weighted_adapter
        rank = {"svd_rank": sum(largest_rank(each) for each in case.adapters.values())} if whole else {}
        own(list(case.adapters), list(case.weights), case.into, combination_type=combination, **rank)

    return merge


def by_florist(case: Case, model: PeftModel) -> None:
    """This package's method, which cuts nothing unless it is asked to."""
    add_weighted_adapter(model, list(case.adapters), case.weights, case.into)


METHODS: Mapping[str, Method] = {
    'PEFT `"cat"`': by_peft("cat"),
    'PEFT `"svd"`': by_peft("svd"),
    'PEFT `"svd"`, `svd_rank` = sum': by_peft("svd", whole=True),
    'PEFT `"linear"`': by_peft("linear"),
    "florist": by_florist,
}


@dataclass(frozen=True)
class Outcome:
    """A cell of the table.

    Attributes:
        error: the relative error of the merged adapter; None where there is none.
        raised: the name of the error that the method raised.
        reloaded: the relative error once it is saved and loaded again; None where that raises or is not tried.
        reload_raised: the name of the error that loading raised.
    """

    error: float | None = None
    raised: str = ""
    reloaded: float | None = None
    reload_raised: str = ""

    def __str__(self) -> str:
        """The cell in Markdown."""
        if self.error is None:
            return f"`{self.raised}`"
        told = number(self.error)
        if self.reload_raised:
            return f"{told}; loaded again: `{self.reload_raised}`"
        if self.reloaded is not None and abs(self.reloaded - self.error) > 0.01 * self.error + SHOWN:
            return f"{told}; loaded again: {number(self.reloaded)}"
        return told


def number(error: float) -> str:
    """An error with the digits that mean something."""
    return f"{error:.0e}" if error < SHOWN else f"{error:.2g}"


def largest_rank(settings: Mapping[str, Any]) -> int:
    """The rank of the module that has the largest one."""
    return max(settings["r"], *settings.get("rank_pattern", {"": 0}).values())


def base(dtype: torch.dtype) -> Tiny:
    """The same weights at every call."""
    torch.manual_seed(0)
    return Tiny().to(dtype).eval()


def saved(case: Case, name: str, folder: Path) -> Path:
    """One adapter of random values, as PEFT saves it."""
    seed = list(case.adapters).index(name)
    settings: dict[str, Any] = {"target_modules": ["up", "down"]} | dict(case.adapters[name])
    wrapped: Any = base(case.dtype)
    model = get_peft_model(wrapped, LoraConfig(**settings), autocast_adapter_dtype=False)
    draw = torch.Generator().manual_seed(1 + seed)
    heads = torch.Generator().manual_seed(0 if case.same_heads else 10 + seed)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=heads if "modules_to_save" in path else draw)
                start = parameter if "magnitude" in path or "lora_" not in path else 0
                parameter.copy_(start + 0.3 * noise)
    model.save_pretrained(str(folder / name))
    return folder / name


def joined(case: Case, paths: Mapping[str, Path], *, kept: bool = True) -> PeftModel:
    """A model with several saved adapters, in the dtype of the base; if not `kept`, in that which PEFT chooses."""
    model: Any = None
    load: Any = PeftModel.from_pretrained
    for name, path in paths.items():
        if model is None:
            model = load(base(case.dtype), path, adapter_name=name, autocast_adapter_dtype=not kept)
        else:
            model.load_adapter(path, name, autocast_adapter_dtype=not kept)
    return model.eval()


def added(model: PeftModel, name: str, pristine: nn.Module) -> Tensor:
    """What an adapter adds to the outputs of every module for unit vectors and zero, in float64, one after another."""
    wide: Any = copy.deepcopy(model).double()
    wide.set_adapter(name)
    before = copy.deepcopy(pristine).double()
    adapted: dict[str, Any] = dict(wide.get_base_model().named_modules())
    found: list[Tensor] = []
    for module, original in before.named_modules():
        if isinstance(original, nn.Linear):
            probes = torch.cat([torch.eye(original.in_features), torch.zeros(1, original.in_features)]).double()
            with torch.no_grad():
                outputs = adapted[module](probes) - original(probes)
            found += [(outputs[:-1] - outputs[-1]).flatten(), outputs[-1]]
    return torch.cat(found)


def relative(found: Tensor, expected: Tensor) -> float:
    """The relative error in the Frobenius norm."""
    return float((found - expected).norm() / expected.norm())


def outcome(case: Case, method: Method, paths: Mapping[str, Path], expected: Tensor, folder: Path) -> Outcome:
    """Merge by one method, and read off what the merged adapter adds, before and after it is saved."""
    pristine = base(case.dtype)
    try:
        model = joined(case, paths)
        method(case, model)
    except (FloristError, ValueError, RuntimeError, TypeError, KeyError) as error:
        return Outcome(raised=type(error).__name__)
    try:
        error = relative(added(model, case.into, pristine), expected)
    except (ValueError, RuntimeError) as failed:
        return Outcome(raised=f"{type(failed).__name__} when used")
    if case.into != MERGED:
        return Outcome(error)
    try:
        model.save_pretrained(str(folder), selected_adapters=[MERGED])
        again = joined(case, {MERGED: folder / MERGED}, kept=False)
        return Outcome(error, reloaded=relative(added(again, MERGED, pristine), expected))
    except (ValueError, RuntimeError) as failed:
        return Outcome(error, reload_raised=type(failed).__name__)


def outcomes(case: Case) -> dict[str, Outcome]:
    """A row of the table, by method."""
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(scratch)
        paths = {name: saved(case, name, folder) for name in case.adapters}
        alone = [added(joined(case, {name: path}), name, base(case.dtype)) for name, path in paths.items()]
        expected = torch.stack([weight * each for weight, each in zip(case.weights, alone, strict=True)]).sum(0)
        return {
            name: outcome(case, method, paths, expected, folder / f"out{place}")
            for place, (name, method) in enumerate(METHODS.items())
        }


def table() -> list[str]:
    """The first part, in Markdown."""
    lines = [f"| adapters | {' | '.join(METHODS)} |", f"|---|{'---|' * len(METHODS)}"]
    lines += [f"| {case.name} | {' | '.join(map(str, outcomes(case).values()))} |" for case in CASES]
    return lines


# --- one large module

RANKS = (16, 32, 64)
LARGE: Mapping[str, Callable[[Any, list[str], list[float]], object]] = {
    'PEFT `"svd"`': lambda model, names, weights: model.base_model.add_weighted_adapter(names, weights, MERGED),
    'PEFT `"svd"`, `svd_full_matrices=False`': lambda model, names, weights: model.base_model.add_weighted_adapter(
        names, weights, MERGED, svd_full_matrices=False
    ),
    "florist, `FixedRank(64)`": lambda model, names, weights: add_weighted_adapter(
        model, names, weights, MERGED, FixedRank(64)
    ),
    'PEFT `"cat"`': lambda model, names, weights: model.base_model.add_weighted_adapter(
        names, weights, MERGED, combination_type="cat"
    ),
    "florist": lambda model, names, weights: add_weighted_adapter(model, names, weights, MERGED),
}


@dataclass(frozen=True)
class Cost:
    """What one method took for the large module.

    Attributes:
        seconds: CPU time of the call.
        peak_mb: the peak of resident memory above what was in use before the call, in MB.
        rank: of the merged adapter.
        error: its relative error against the sum.
    """

    seconds: float
    peak_mb: float
    rank: int
    error: float


def measured(method: str, size: int) -> Cost:
    """Merge in this process, once."""
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    names = [f"rank{rank}" for rank in RANKS]
    model: Any = None
    for rank, name in zip(RANKS, names, strict=True):
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"])
        if model is None:
            model = get_peft_model(nn.Sequential(nn.Linear(size, size, bias=False)), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    layer: Any = model.get_submodule("base_model.model.0")
    with torch.no_grad():
        for rank, name in zip(RANKS, names, strict=True):
            fall = 0.9 ** torch.arange(rank)  # as training leaves them: few directions have most of the energy
            layer.lora_B[name].weight.copy_(torch.randn(size, rank, generator=draw) * fall / size**0.5)
            layer.lora_A[name].weight.copy_(torch.randn(rank, size, generator=draw) / size**0.5)
    weights = [0.5, 0.3, 0.2]
    reset_peak()
    in_use, start = memory("VmRSS"), time.process_time()
    LARGE[method](model, names, weights)
    seconds, peak = time.process_time() - start, memory("VmHWM")
    parts = [
        (layer.lora_B[name].weight.detach() * w, layer.lora_A[name].weight.detach())
        for name, w in zip(names, weights, strict=True)
    ]
    merged = (layer.lora_B[MERGED].weight.detach() * layer.scaling[MERGED], layer.lora_A[MERGED].weight.detach())
    return Cost(
        seconds, (peak - in_use) / 1e3, merged[1].shape[0], norm([*parts, (-merged[0], merged[1])]) / norm(parts)
    )


def norm(parts: Sequence[tuple[Tensor, Tensor]]) -> float:
    """``||sum_k B_k A_k||_F`` in float64, of the triangular factors, so that nothing cancels."""
    B = torch.cat([B.double() for B, _ in parts], dim=1)
    A = torch.cat([A.double() for _, A in parts])
    return float((torch.linalg.qr(B, mode="r")[1] @ torch.linalg.qr(A.T, mode="r")[1].T).norm())


def reset_peak() -> None:
    """Let Linux count the peak of this process anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def memory(key: str) -> int:
    """KiB of this process by the name that Linux gives it."""
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None  # noqa: S101  # Linux writes it
    return int(found[1])


def costs(size: int, repeats: int) -> dict[str, Cost]:
    """The second part: the run with the least time of each method; those of a dense SVD are run once."""
    least: dict[str, Cost] = {}
    for name in LARGE:
        runs: list[Cost] = []
        for _ in range(1 if '"svd"' in name else repeats):
            command = [sys.executable, __file__, "--one", name, "--size", str(size)]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            runs.append(Cost(**json.loads(done.stdout.splitlines()[-1])))
        least[name] = min(runs, key=lambda run: run.seconds)
    return least


def cost_lines(found: Mapping[str, Cost]) -> list[str]:
    """The second part, in Markdown."""
    lines = ["| method | rank | error | CPU s | peak MB |", "|---|---:|---:|---:|---:|"]
    for name, cost in found.items():
        lines.append(f"| {name} | {cost.rank} | {number(cost.error)} | {cost.seconds:.3g} | {cost.peak_mb:.0f} |")
    return lines


def main() -> None:
    """Print both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-large", action="store_true", help="only the table of errors")
    parser.add_argument("--size", type=int, default=4096, help="of the large module")
    parser.add_argument("--repeats", type=int, default=5, help="of what has no dense SVD")
    parser.add_argument("--one", choices=list(LARGE), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(vars(measured(args.one, args.size))))
        return
    torch.set_num_threads(1)
    print(f"PEFT {version('peft')}, torch {torch.__version__}, {platform.machine()}, one thread\n")
    print("\n".join(table()))
    if not args.no_large:
        print(f"\none module of {args.size} x {args.size}, ranks {', '.join(map(str, RANKS))}, float32\n")
        found = costs(args.size, args.repeats)
        print("\n".join(cost_lines(found)))
        first, second, third, *_ = found.values()
        print(f"\nCPU: {first.seconds / third.seconds:.0f} and {second.seconds / third.seconds:.0f} times")


if __name__ == "__main__":
    main()
