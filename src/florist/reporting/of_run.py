"""The page of a run."""

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from florist.checkpoint import open_adapter
from florist.comparison.intervals import Estimate
from florist.errors import FloristError
from florist.federation.damage import errors_as_damage, result_is_damaged
from florist.federation.history import RunDirectory
from florist.federation.records import RoundRecord
from florist.files.reading import read_text
from florist.linalg.spectrum import Spectrum
from florist.one_shot.inspection import spectra
from florist.reporting import contributions
from florist.reporting.client_metrics import client_metrics
from florist.reporting.content import Block, Page, Section, Table, filled
from florist.reporting.curves import (
    MOST_METRICS,
    Point,
    by_round,
    bytes_by_round,
    metric_against_bytes,
    metric_by_round,
    with_direction,
)
from florist.reporting.figures import Row
from florist.reporting.numbers import MISSING, nbytes, number
from florist.reporting.privacy import privacy_blocks
from florist.reporting.reproducing import loading, reproducing
from florist.reporting.spectra import rank_against_tau, ranks_by_layer, singular_values
from florist.rounds import ClientUpdate


def page_of_run(path: Path) -> Page:
    """Make the page of a run, which may still go on.

    Args:
        path: its directory. Runs of earlier versions lack some of the data, and their page some of the sections.

    Raises:
        MissingInputError, DamagedRunError, OtherVersionError: as `RunDirectory.open` and its readers.
    """
    run = RunDirectory.open(path)
    facts, records, config = run.facts, run.records(), _config(run)
    tested, damage = run.tested, run.result.damage()
    measured = [*facts.initial, *(name for record in records for own in record.client_metrics.values() for name in own)]
    better = {**directions(measured), **(tested.lower_is_better if tested is not None else {})}
    sections = [
        Section(
            "result",
            "What was run, and did it work",
            [*_summary(run, records, config, damage), *_metrics(run, records, better)],
        ),
        Section("cost", "What it cost", _cost(facts.method, facts.initial, records, better)),
        Section(
            "update",
            "Where the update lives",
            update_blocks(records, adapter_spectra(run.adapter) if damage is None else {}, "the final adapter"),
        ),
        Section("held-back", "What is held back", held_back_blocks(records)),
        Section("clients", "Who contributed", _clients(run, records, better)),
        Section("privacy", "What was kept private", privacy_blocks(records)),
        *([loading(run.adapter)] if damage is None else []),
        reproducing(
            f"florist simulate {run.begun_file}",
            {
                "florist": facts.florist,
                "seed": str(_get(config, "federation", "seed") or 0),
                "torch threads": str(facts.threads),
                **facts.environment,
            },
            {"The whole configuration, defaults included": read_text(run.played_config)},
        ),
    ]
    notes = (result_is_damaged(run.path, damage),) if damage is not None else ()
    return Page(f"Run {path.name}", _in_a_sentence(run, records, better), filled(sections), notes)


def adapter_spectra(adapter: Path) -> Mapping[str, Spectrum]:
    """The spectrum of every module of an adapter, from its factors; nothing where there is none or it cannot be read.

    Cost: one decomposition a module.
    """
    try:
        saved = open_adapter(adapter)
        return spectra([ClientUpdate("adapter", saved.adapter, 1, 1)])
    except FloristError:
        return {}


def directions(metrics: Iterable[str]) -> Mapping[str, bool]:
    """Whether a smaller value is the better one, for metrics that florist measures itself.

    What measures them needs transformers, and without it nothing is known of any metric.
    """
    try:
        from florist.evaluation import known_directions  # noqa: PLC0415  # imports transformers
    except ModuleNotFoundError:
        return {}
    return known_directions(metrics)


def points_of(series: str, initial: Mapping[str, float], records: Sequence[RoundRecord], metric: str) -> list[Point]:
    """A metric after every round in which it was measured, with what was sent until then."""
    sent = [0.0, *accumulate(float(record.upload_bytes + record.download_bytes) for record in records)]
    measured = [initial, *(record.metrics for record in records)]
    return [
        Point(series, number, Estimate(values[metric], None, 1, values[metric], values[metric]), traffic)
        for number, (values, traffic) in enumerate(zip(measured, sent, strict=True))
        if metric in values and math.isfinite(values[metric])
    ]


def update_blocks(records: Sequence[RoundRecord], values: Mapping[str, Spectrum], whose: str) -> list[Block]:
    """Figures of the last broadcast's ranks and of the spectra of an adapter."""
    last = next((record for record in reversed(records) if record.ranks), None)
    figures = [
        *singular_values(values, whose),
        ranks_by_layer(last.ranks, f"Of the broadcast of round {last.round}.") if last is not None else None,
        rank_against_tau(values, whose) if values else None,
    ]
    return [figure for figure in figures if figure is not None]


def held_back_blocks(records: Sequence[RoundRecord]) -> list[Block]:
    """Figures of what the server and the clients hold back; none where nothing is."""
    held: list[Row] = []
    for record in records:
        held.append({"series": "server", "round": record.round, "value": record.held_back})
        if record.clients:
            mean = sum(client.held_back for client in record.clients) / len(record.clients)
            held.append({"series": "clients, mean", "round": record.round, "value": mean})
    if not any(row["value"] > 0 for row in held):
        return []
    errors: list[Row] = [
        {"series": "not sent yet", "round": record.round, "value": record.relative_error}
        for record in records
        if record.aggregated
    ]
    figures = [
        by_round(
            "held-back",
            "norm of what is held back, by round",
            "Frobenius norm",
            held,
            "What the codec rounded away and what was cut, which is sent later. It is bounded where the "
            "curve levels off.",
        ),
        by_round(
            "held-back-share",
            "held back of what was due, by round",
            "norm not sent / norm due",
            errors,
            "The relative error of each broadcast against all that was due, what was owed from earlier "
            "rounds included.",
        ),
    ]
    return [figure for figure in figures if figure is not None]


def _summary(
    run: RunDirectory, records: Sequence[RoundRecord], config: Mapping[str, Any], damage: str | None
) -> list[Block]:
    facts, tested = run.facts, run.tested
    ranks = _get(config, "lora", "ranks")
    clients = {client.client_id for record in records for client in record.clients}
    played, planned = len(records), _get(config, "federation", "rounds")
    lines = [
        ["method", facts.method],
        ["model", str(_get(config, "model", "name_or_path") or MISSING)],
        ["rounds played", f"{played} of {planned}" if planned else str(played)],
        ["best round", _best_round(records)],
        ["stopped", f"after round {played}, {why}" if (why := _why_stopped(records)) else MISSING],
        ["rounds that changed nothing", str(sum(not record.aggregated for record in records))],
        ["clients that counted", str(len(clients))],
        ["ranks", ", ".join(map(str, ranks)) if isinstance(ranks, list) else str(ranks or MISSING)],
        ["tau", number(_get(config, "aggregation", "tau"))],
        ["codec up", str(_get(config, "communication", "upload") or MISSING)],
        ["codec down", str(_get(config, "communication", "download") or MISSING)],
        ["final adapter", _adapter(run, damage)],
    ]
    ends = [record.metrics for record in records if record.metrics]
    tables = [Table("The run", ["", "value"], [line for line in lines if line[1] not in {MISSING, "0"}])]
    if facts.initial:
        heads = [
            "metric",
            "base model",
            "last round",
            *(["final adapter, test examples"] if tested is not None else []),
        ]
        names = list(dict.fromkeys([*facts.initial, *(tested.metrics if tested is not None else ())]))
        cells = [
            [
                name.replace("_", " "),
                number(facts.initial.get(name)),
                number(ends[-1].get(name) if ends else None),
                *([number(tested.metrics.get(name))] if tested is not None else []),
            ]
            for name in names
        ]
        tables.append(Table("What was measured", heads, cells))
    return [*tables]


def _adapter(run: RunDirectory, damage: str | None) -> str:
    if damage is not None:
        return result_is_damaged(run.path, damage)
    return str(run.adapter) if run.adapter.exists() else "none, or not yet"


def _metrics(run: RunDirectory, records: Sequence[RoundRecord], better: Mapping[str, bool]) -> list[Block]:
    facts = run.facts
    figures = [
        metric_by_round(name, with_direction(name, better), points_of(facts.method, facts.initial, records, name))
        for name in list(facts.initial)[:MOST_METRICS]
    ]
    return [figure for figure in figures if figure is not None]


def _cost(
    method: str, initial: Mapping[str, float], records: Sequence[RoundRecord], better: Mapping[str, bool]
) -> list[Block]:
    if not records:
        return []
    up, down = sum(record.upload_bytes for record in records), sum(record.download_bytes for record in records)
    flora = sum(record.stack_bytes * (1 + len(record.clients)) for record in records if record.input_rank)
    lines = [
        ["sent by all clients", nbytes(up)],
        ["received by all clients", nbytes(down)],
        ["both", nbytes(up + down)],
        ["broadcasts, one copy of each", nbytes(sum(record.broadcast_bytes for record in records))],
        *([["FLoRA would take for the same updates", nbytes(flora)]] if flora else []),
        *_seconds(records),
    ]
    rows: list[Row] = [
        {"round": record.round, "direction": direction, "nbytes": value}
        for record in records
        for direction, value in (
            ("up: clients to server", record.upload_bytes),
            ("down: server to clients", record.download_bytes),
        )
    ]
    figures = [
        *(
            metric_against_bytes(name, with_direction(name, better), points_of(method, initial, records, name))
            for name in list(initial)[:MOST_METRICS]
        ),
        bytes_by_round(rows),
    ]
    table = Table("Bytes as they were sent, and seconds, over all rounds", ["", "value"], lines)
    return [table, *(figure for figure in figures if figure is not None)]


def _seconds(records: Sequence[RoundRecord]) -> list[list[str]]:
    phases = {"train": "training", "aggregate": "aggregating", "evaluate": "evaluating"}
    sums = {title: sum(record.seconds.get(phase, 0.0) for record in records) for phase, title in phases.items()}
    return [[f"seconds {title}", f"{seconds:.1f}"] for title, seconds in sums.items() if seconds]


def _clients(run: RunDirectory, records: Sequence[RoundRecord], better: Mapping[str, bool]) -> list[Block]:
    counted = run.examples
    found: list[Block | None] = [
        contributions.parts(records),
        contributions.examples_by_label(counted) if counted is not None and len(counted.labels) > 1 else None,
        contributions.update_norms(records),
        contributions.cosines(records),
        by_round(
            "mean-cosine",
            "mean cosine between the clients' updates, by round",
            "mean cosine",
            contributions.mean_cosines(records),
            "How far the clients agree on where to go, over all pairs of them.",
        ),
        contributions.training_losses(records),
        *client_metrics(records, better),
        contributions.drops([(run.path.name, records)]),
    ]
    return [block for block in found if block is not None]


def _in_a_sentence(run: RunDirectory, records: Sequence[RoundRecord], better: Mapping[str, bool]) -> str:
    initial = run.facts.initial
    if not records:
        return "No round has been played yet."
    if not any(record.aggregated for record in records):
        return "No round had enough usable updates: the model is the base as it was."
    traffic = sum(record.upload_bytes + record.download_bytes for record in records)
    ends = [record.metrics for record in records if record.metrics]
    name = next(iter(initial), None)
    if name is None or not ends or name not in ends[-1]:
        return f"{len(records)} rounds were played, in which all clients sent and received {nbytes(traffic)}."
    before, after = initial[name], ends[-1][name]
    lower = better.get(name)
    verdict = (
        ""
        if lower is None or before == after
        else (", which is better" if (after < before) == lower else ", which is worse")
    )
    best = f" The best round was {_best_round(records)}." if records[-1].best_round is not None else ""
    early = f" The rounds stopped early, {why}.{best}" if (why := _why_stopped(records)) else best
    return (
        f"{name.replace('_', ' ')} went from {number(before)} to {number(after)}{verdict}, in {len(records)} rounds in "
        f"which all clients sent and received {nbytes(traffic)}.{early}"
    )


def _best_round(records: Sequence[RoundRecord]) -> str:
    return str(records[-1].best_round or MISSING) if records else MISSING


def _why_stopped(records: Sequence[RoundRecord]) -> str | None:
    if not records:
        return None
    if records[-1].stopped:
        return "for want of an improvement"
    last = records[-1].privacy
    return "since another would exceed the epsilon" if last is not None and last.spent else None


def _config(run: RunDirectory) -> Mapping[str, Any]:
    # As it is written: a key that this version does not know is no reason to refuse the page of an old run.
    with errors_as_damage(run.path):
        return tomllib.loads(read_text(run.played_config))


def _get(config: Mapping[str, Any], section: str, key: str) -> Any:
    found = config.get(section)
    return found.get(key) if isinstance(found, dict) else None
