"""``florist tune``: choose tau by validation records, from one decomposition."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from florist.cli.libraries import load_training_libraries
from florist.cli.weighing import parse_weights
from florist.errors import ConfigurationError, MissingInputError

if TYPE_CHECKING:
    from rich.console import Console

    from florist.config import Config
    from florist.factors import AdapterState
    from florist.federation.simulation import Simulation
    from florist.one_shot import AggregatedAdapter
    from florist.one_shot.tuning import Goal, Point

TAUS = "0.5,0.6,0.7,0.8,0.85,0.9,0.95,0.98,0.99,1"


def tune_command(
    sources: Annotated[
        list[str], typer.Argument(metavar="RUN|ADAPTER...", help="A finished run; or PEFT adapters, with --config.")
    ],
    config_file: Annotated[
        Path | None, typer.Option("--config", metavar="CONFIG.toml", help="Model and validation records of ADAPTERs.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Of ADAPTERs, as 3,1,1; see aggregate --help.")] = None,
    taus: Annotated[str, typer.Option(help="Thresholds to try; 1 is always tried.")] = TAUS,
    metric: Annotated[str | None, typer.Option(help="That decides; by default the configuration's first.")] = None,
    margin: Annotated[
        float, typer.Option(help="By how much FLoRIST-E may fall short, in the metric's own unit.")
    ] = 0.0,
    baseline: Annotated[
        float | None, typer.Option(help="Value that FLoRIST-E has to match; by default that at tau = 1.")
    ] = None,
    baseline_runs: Annotated[
        list[Path] | None,
        typer.Option("--baseline-run", metavar="RUN", help="Measure this run for a baseline; the best of several."),
    ] = None,
    bisecting: Annotated[
        bool, typer.Option("--bisect", help="Few evaluations, if the metric gets no worse as tau grows.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Directory to create for FLoRIST-E.")] = None,
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="ADAPTERs name unlike bases that are the same.")
    ] = False,
    average_full: Annotated[
        bool, typer.Option("--average-full", help="Average parameters of ADAPTERs that were trained whole, as a head.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Sweep tau on one decomposition and pick two: FLoRIST-O, the best, and FLoRIST-E, the lowest that still matches.

    What has to be matched is the baseline, or else tau = 1. Metrics are those of the validation records.
    """
    from florist.files.outputs import require_absent  # noqa: PLC0415

    if out is not None:
        require_absent(out)
    if baseline is not None and baseline_runs:
        raise ConfigurationError("--baseline and --baseline-run contradict each other: give one")
    run = _run(sources, config_file)
    if run is not None and (weights is not None or allow_base_mismatch or average_full):
        raise ConfigurationError(
            "--weights, --allow-base-mismatch and --average-full are for ADAPTERs, and a run has one adapter: leave "
            "them out"
        )
    thresholds, counts = _thresholds(taus), parse_weights(weights) if weights is not None else None

    load_training_libraries("tune")  # takes seconds: not before the arguments are known to be right
    from rich.console import Console  # noqa: PLC0415

    from florist.cli.tuned import Tuned  # noqa: PLC0415
    from florist.config import read_config  # noqa: PLC0415
    from florist.config.choosing import metrics_to_choose_by, require_validation  # noqa: PLC0415
    from florist.evaluation import lower_is_better  # noqa: PLC0415
    from florist.one_shot.tuning import Goal, pick_efficient, pick_optimal  # noqa: PLC0415

    # A name in brackets is a name, and no markup.
    console, status = Console(stderr=as_json, markup=False), Console(stderr=True, markup=False, highlight=False)
    config = read_config(config_file if config_file is not None else Path(sources[0], "config.toml"))
    require_validation(config)
    metrics = metrics_to_choose_by(config, metric)
    goal = Goal(metrics[0], lower_is_better(metrics[0]), baseline, margin)
    _use_threads(run, config)
    with status.status("loading"):
        baselines = {str(path): _final_adapter(path) for path in baseline_runs or ()}
        whole = (
            _final_adapter(run)
            if run is not None
            else _weighted_sum(sources, counts, allow_base_mismatch=allow_base_mismatch, average_full=average_full)
        )
        simulation = _simulation(config, metrics, whole, baselines)
    for note in (*_unlike_bases(whole, config), *whole.inputs.notes):
        status.print(f"note: {note}", soft_wrap=True)
    with status.status("evaluating"):
        goal = _with_baseline(goal, simulation, baselines, status)
        points = _points(whole, simulation, thresholds, goal, status, bisecting=bisecting)
    tuned = Tuned(
        source={"run": str(run)} if run is not None else {"adapters": sources, "config": str(config_file)},
        goal=goal,
        baseline_runs=tuple(baselines),
        bisected=bisecting,
        points=tuple(points),
        optimal=pick_optimal(points, goal),
        efficient=pick_efficient(points, goal),
    )
    console.print(tuned.table())
    console.print(tuned.summary(), highlight=False, soft_wrap=True)
    if out is not None and tuned.efficient is not None:
        _write(whole, tuned.efficient, out, {"tune.json": tuned.json(indent=2) + "\n", "tune.csv": tuned.csv()})
        console.print(f"FLoRIST-E written to {out}, with its certificate in {out}/florist.json", soft_wrap=True)
    if as_json:
        typer.echo(tuned.json())
    if out is not None and tuned.efficient is None:
        raise ConfigurationError(f"nothing was written to {out}: {tuned.out_of_reach}")


def _run(sources: Sequence[str], config_file: Path | None) -> Path | None:
    """The run that is to be tuned; None where it is adapters."""
    runs = [source for source in sources if Path(source, "run.json").is_file()]
    if config_file is not None and runs:
        raise ConfigurationError(
            f"expected adapters with --config, got the run {runs[0]}, which has a configuration of its own: leave "
            f"--config out, or name {runs[0]}/adapter"
        )
    if config_file is not None:
        return None
    if runs and len(sources) > 1:
        raise ConfigurationError(
            f"expected one run or several adapters, got {', '.join(sources)}; give the run {runs[0]} alone"
        )
    if not runs:
        raise ConfigurationError(
            f"expected the directory of a run, or adapters with --config, got {', '.join(sources)} without one; "
            "--config CONFIG.toml names the model and the validation records"
        )
    return Path(runs[0])


def _thresholds(taus: str) -> list[float]:
    from florist.config.reading import validated  # noqa: PLC0415
    from florist.config.sections import AggregationSection  # noqa: PLC0415

    try:
        given = [float(part) for part in taus.split(",")]
    except ValueError as error:
        raise ConfigurationError(f"expected --taus as numbers with commas, as 0.8,0.9,1, got {taus!r}") from error
    for tau in given:
        validated(AggregationSection, {"tau": tau})
    return [*given, 1.0]  # what the others are compared with


def _use_threads(run: Path | None, config: "Config") -> None:
    """As many as the run had; small models are slower with more."""
    import torch  # noqa: PLC0415

    from florist.federation.history import RunDirectory  # noqa: PLC0415

    threads = RunDirectory.open(run).facts.threads if run is not None else config.training.threads
    torch.set_num_threads(threads or torch.get_num_threads())


def _unlike_bases(whole: "AggregatedAdapter", config: "Config") -> list[str]:
    named, model = whole.inputs.comparison.base_model, config.model.name_or_path
    if named in {None, model}:
        return []
    return [f"the adapters name the base model {named}, and are measured on {model}"]


def _final_adapter(run: Path) -> "AggregatedAdapter":
    """The final adapter of a run: the lossless sum of all its rounds, decomposed."""
    from florist.federation.history import RunDirectory  # noqa: PLC0415

    adapter = RunDirectory.open(run).adapter
    if not adapter.is_dir():
        raise MissingInputError(
            f"expected a run that has ended, and {run} has no final adapter yet: florist simulate --resume {run}"
        )
    return _weighted_sum([str(adapter)], None, average_full=True)


def _weighted_sum(
    adapters: Sequence[str],
    counts: Sequence[Fraction] | None,
    *,
    allow_base_mismatch: bool = False,
    average_full: bool = False,
) -> "AggregatedAdapter":
    from florist import one_shot  # noqa: PLC0415
    from florist.ranks import EnergyThreshold  # noqa: PLC0415

    return one_shot.aggregate(
        adapters,
        rank_rule=EnergyThreshold(1.0),
        num_examples=counts,
        allow_base_mismatch=allow_base_mismatch,
        average_full=average_full,
    )


def _simulation(
    config: "Config", metrics: Sequence[str], whole: "AggregatedAdapter", baselines: Mapping[str, "AggregatedAdapter"]
) -> "Simulation":
    from florist.config import read_config  # noqa: PLC0415
    from florist.config.choosing import require_same_validation, simulation_to_choose_by  # noqa: PLC0415
    from florist.config.splits import read_splits  # noqa: PLC0415

    splits = read_splits(config)
    for path in baselines:
        require_same_validation(config, splits, read_config(Path(path, "config.toml")), path)
    return simulation_to_choose_by(config, splits, metrics, {"the adapter to be tuned": whole, **baselines})


def _with_baseline(
    goal: "Goal", simulation: "Simulation", baselines: Mapping[str, "AggregatedAdapter"], status: "Console"
) -> "Goal":
    """The goal with the best of the baselines that are to be measured, if any are."""
    values: list[float] = []
    for name, one in baselines.items():
        values.append(simulation.measure(one.adapter, one.saved_parameters)[goal.metric])
        status.print(f"baseline {name}: {goal.metric} {values[-1]:.4g}", soft_wrap=True)
    return replace(goal, baseline=max(values, key=goal.gain)) if values else goal


def _points(
    whole: "AggregatedAdapter",
    simulation: "Simulation",
    taus: Sequence[float],
    goal: "Goal",
    status: "Console",
    *,
    bisecting: bool,
) -> "list[Point]":
    from florist.one_shot.tuning import bisect, sweep  # noqa: PLC0415

    def evaluate(cut: "AdapterState") -> Mapping[str, float]:
        return simulation.measure(cut, whole.saved_parameters)

    def tell(point: "Point") -> None:
        status.print(f"tau {point.tau:g}: total rank {point.total_rank}, {goal.metric} {goal.value(point):.4g}")

    layout = whole.inputs.comparison.layout
    if bisecting:
        return bisect(whole.adapter, taus, evaluate, goal, layout=layout, on_point=tell)
    return sweep(whole.adapter, taus, evaluate, layout=layout, on_point=tell)


def _write(whole: "AggregatedAdapter", point: "Point", out: Path, beside: Mapping[str, str]) -> None:
    from florist.config.sections import AggregationSection  # noqa: PLC0415

    settings = AggregationSection(tau=point.tau).model_dump(mode="json") | {"export": "per-module", "dtype": "float32"}
    whole.leading(point.ranks).write(out, settings=settings, beside=beside)
