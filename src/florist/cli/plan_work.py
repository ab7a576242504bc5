"""What ``florist plan`` does, once its arguments are read: it plans, and prints or writes down the plan."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ByteSize, TypeAdapter, ValidationError

from florist.cli.output import Output
from florist.cli.plan_table import client_table, federation_table, headline, notes
from florist.config.communication import BESIDE, CODEC_NAMES, HOW_MUCH, PRESETS, with_preset
from florist.config.methods import DEFAULT_LOCAL_INIT, LOCAL_INITS
from florist.errors import ConfigurationError
from florist.planning.kept import KeptRanks, parse_kept
from florist.planning.plan import METHOD_NAMES, MethodCost, Setup, plan
from florist.planning.population import Population, parse_ranks
from florist.planning.sources import default_targets, model_named, targeted, written_shapes
from florist.planning.traffic import Link

DTYPES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""The bytes of one number of the base, by the name of its dtype."""

DEFAULT_CLIENTS = 8
"""How many clients share one rank where nobody says how many there are; the paper has eight."""

_RATE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<prefix>[kKMGT]?)(bit|bps|bit/s)")
_PREFIXES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True, slots=True)
class Question:
    """The arguments of the command; see its help."""

    model: str | None
    shapes: str | None
    target_modules: str | None
    ranks: str
    clients: int | None
    fraction: float
    rounds: int
    tau_rank: str | None
    preset: str | None
    upload: str
    download: str
    upload_rank: int | None
    local_init: str
    dtype: str
    methods: str
    uplink: float | None
    downlink: float | None
    budget: int | None

    def seconds(self, cost: MethodCost) -> float | None:
        """How long a round's transfers take the client that they take longest; None where no rate is known."""
        if self.uplink is None and self.downlink is None:
            return None
        up = 8 / self.uplink if self.uplink is not None else 0.0
        down = 8 / self.downlink if self.downlink is not None else 0.0
        return max(client.upload_bytes * up + client.download_bytes * down for client in cost.by_rank)

    def communication(self, method: str) -> Mapping[str, Any]:
        """The keys of ``[communication]`` that the preset means for a method, with the codecs that are planned."""
        given = {"preset": self.preset, "upload": self.upload, "download": self.download}
        return with_preset(given, method)

    def uncut(self, methods: Iterable[str]) -> list[str]:
        """The methods whose uploads the preset cuts, if nobody says to which rank."""
        if self.preset is None or self.upload_rank is not None:
            return []
        return [name for name in methods if not self.communication(name).keys().isdisjoint(HOW_MUCH)]


def preset_defaults(preset: str) -> Mapping[str, str]:
    """What a preset says of the codecs and of how local adapters start.

    Raises:
        ConfigurationError: there is none of this name.
    """
    if preset not in PRESETS:
        raise ConfigurationError(f"--preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
    local_init = BESIDE[preset].get("federation", {}).get("local_init", DEFAULT_LOCAL_INIT)
    return {"upload": PRESETS[preset]["upload"], "download": PRESETS[preset]["download"], "local_init": local_init}


def report(question: Question, output: Output) -> None:
    """Plan, and print the tables or the document.

    Raises:
        FloristError: an argument is wrong, or the model or the run cannot be read.
    """
    setup, names = setup_of(question), _named_methods(question.methods)
    costs = plan(setup, names)
    seconds = {name: question.seconds(cost) for name, cost in costs.items()}
    output.lines(*headline(setup))
    output.table(federation_table(costs), heading=f"All clients in {_rounds(setup)}, and the server", gap=True)
    output.table(
        client_table(costs, seconds), heading="One client in a round; the least and the most of unlike ranks", gap=True
    )
    output.lines(*notes(setup, costs, question.budget))
    if uncut := question.uncut(names):
        output.lines(
            f"{', '.join(uncut)}: the preset {question.preset} cuts uploads by energy, to ranks that depend on the "
            "training; whole ones are planned, and --upload-rank is your guess"
        )
    output.document(_document(question, setup, costs, seconds))


def setup_of(question: Question) -> Setup:
    """What is to be planned.

    Raises:
        FloristError: as `report`.
    """
    for option, value, known in (
        ("--upload", question.upload, CODEC_NAMES),
        ("--download", question.download, CODEC_NAMES),
        ("--local-init", question.local_init, tuple(LOCAL_INITS)),
        ("--dtype", question.dtype, tuple(DTYPES)),
    ):
        if value not in known:
            raise ConfigurationError(f"{option}: expected one of {', '.join(known)}, got {value!r}")
    one_rank = question.ranks.strip().isdecimal()
    clients = DEFAULT_CLIENTS if question.clients is None and one_rank else question.clients
    population = Population(parse_ranks(question.ranks, clients), question.fraction)
    if question.shapes is not None:
        model = written_shapes(question.shapes)
        wanted = question.target_modules.split(",") if question.target_modules is not None else ["all-linear"]
    else:
        model = model_named(question.model or "")
        wanted = question.target_modules.split(",") if question.target_modules is not None else default_targets(model)
    modules = targeted(model, [name.strip() for name in wanted])
    itemsize = DTYPES[question.dtype]
    return Setup(
        model=model,
        modules=modules,
        population=population,
        rounds=question.rounds,
        kept=parse_kept(question.tau_rank, modules) if question.tau_rank is not None else KeptRanks(),
        link=Link.named(question.upload, question.download, itemsize, question.upload_rank),
        aligned=question.local_init == "aligned",
        weight_itemsize=itemsize,
    )


def parse_rate(option: str, text: str) -> float:
    """Read a rate as ``10Mbit``, in bits a second with decimal prefixes.

    Raises:
        ConfigurationError: it is none, or zero.
    """
    match = _RATE.fullmatch(text.strip())
    rate = float(match["number"]) * _PREFIXES[match["prefix"]] if match is not None else 0.0
    if rate == 0:
        raise ConfigurationError(f"{option}: expected bits a second, as 10Mbit or 1Gbit, got {text!r}")
    return rate


def parse_size(text: str) -> int:
    """Read a number of bytes as ``5GB``.

    Raises:
        ConfigurationError: it is none, or zero.
    """
    try:
        size = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        size = 0
    if size <= 0:
        raise ConfigurationError(f"--budget: expected bytes, as 500MB or 5GB, got {text!r}")
    return size


def _named_methods(text: str) -> list[str]:
    names = list(METHOD_NAMES) if text == "all" else [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in METHOD_NAMES]
    if unknown:
        raise ConfigurationError(
            f"--methods: expected names out of {', '.join(METHOD_NAMES)}, or all, got {unknown[0]!r}"
        )
    return names


def _rounds(setup: Setup) -> str:
    return "one round" if setup.rounds == 1 else f"{setup.rounds} rounds"


def _document(
    question: Question, setup: Setup, costs: Mapping[str, MethodCost], seconds: Mapping[str, float | None]
) -> dict[str, Any]:
    population = setup.population
    methods: dict[str, dict[str, Any]] = {}
    for name, cost in costs.items():
        methods[name] = asdict(cost)
        if seconds[name] is not None:
            methods[name]["seconds_per_round"] = seconds[name]
        if question.budget is not None:
            methods[name]["fits_budget"] = cost.traffic_bytes <= question.budget
        if question.preset is not None:
            methods[name]["communication"] = dict(question.communication(name))
    return {
        "model": setup.model.name,
        "parameters": setup.model.parameters,
        "modules": len(setup.modules),
        "clients": population.clients,
        "clients_per_round": population.asked,
        "ranks": {str(rank): count for rank, count in sorted(population.counts.items())},
        "rounds": setup.rounds,
        "tau_rank": setup.kept.source,
        "preset": question.preset,
        "upload": question.upload,
        "download": question.download,
        "upload_rank": question.upload_rank,
        "local_init": question.local_init,
        "dtype": question.dtype,
        "budget_bytes": question.budget,
        "exact": population.asked == population.clients,
        "methods": methods,
    }
