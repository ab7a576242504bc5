"""What ``florist simulate`` does, once its arguments are known to be right."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from florist.cli.decisions import decisions, threads_chosen
from florist.cli.libraries import load_training_libraries
from florist.cli.output import Output
from florist.cli.progress import Progress
from florist.cli.simulate_progress import RoundsProgress
from florist.cli.simulate_table import examples_table, rounds_table, totals
from florist.cli.stopping import exit_status
from florist.config.reading import read_config, to_toml
from florist.config.resuming import adopt, changes, config_to_resume
from florist.config.sections import Config
from florist.config.tracking import tracking_of
from florist.data.partition import LabelCounts
from florist.errors import UnwritableOutputError
from florist.federation.history import RunDirectory
from florist.tracking.trackers import require_installed

if TYPE_CHECKING:
    from florist.federation.simulation import Simulation


def start_run(config: Config, path: Path, output: Output, progress: Progress) -> RunDirectory:
    """Play a new run.

    Args:
        config: the configuration.
        path: the directory to create.
        output: where to print.
        progress: where to show how the run goes.

    Raises:
        UnwritableOutputError: the disk is full; the rounds so far are saved.
        FloristError: as `building.build` and `Simulation.start`.
        Exit: the run was interrupted.
    """
    simulation, counted = _built(config, output)
    observer = RoundsProgress(progress, verbose=output.verbose)
    with _way_to_go_on_told(path, observer):
        method, threads = config.aggregation.method, config.training.threads
        run = simulation.start(path, to_toml(config), method, threads, observer, examples=counted)
        _play(simulation, run, observer, config, output)
    return run


def resume_run(path: Path, overrides: Sequence[str], output: Output, progress: Progress) -> RunDirectory:
    """Go on with a run.

    Args:
        path: the directory of the run.
        overrides: changes of its configuration, which then has them.
        output: where to print.
        progress: where to show how the run goes.

    Raises:
        MissingInputError: there is no run.
        DamagedRunError: a file of it is missing, cannot be read or is not as it was written.
        ConfigurationError: settings were changed that may not change (`resuming.IN_ONE_PROCESS`).
        UnwritableOutputError: the disk is full; the rounds so far are saved.
        FloristError: as `building.build` and `Simulation.run`.
        Exit: the run was interrupted.
    """
    run = RunDirectory.open(path)
    config = config_to_resume(run, overrides)
    observer = RoundsProgress(progress, verbose=output.verbose)
    with _way_to_go_on_told(path, observer):
        simulation, _ = _built(config, output)
        changed, damage = changes(run, config), run.result.damage()
        if changed:
            output.note(f"the run goes on with {', '.join(changed)}")
        if damage is not None:
            output.note(f"{damage}; the end of the run is made again, from the state after its last round")
        adopt(run, config)
        _play(simulation, run, observer, config, output)
    return run


def report(run: RunDirectory, output: Output) -> None:
    """Print what became of a run."""
    facts, tested, records = run.facts, run.tested, run.records()
    output.table(rounds_table(facts.initial, records))
    if tested is not None:
        values = ", ".join(f"{name} {value:.3f}" for name, value in tested.metrics.items())
        output.lines(f"the final adapter on the test examples: {values}")
    config = read_config(run.played_config)
    output.lines(*totals(run, records, config.federation, flushed=config.communication.flush))
    document: dict[str, Any] = {
        "run": str(run.path),
        "method": facts.method,
        "threads": facts.threads,
        "adapter": str(run.adapter) if run.adapter.exists() else None,
        "initial": {"metrics": dict(facts.initial)},
        "rounds": [asdict(record) for record in records],
    }
    if tested is not None:
        document["test"] = asdict(tested)
    output.document(document)


def _built(config: Config, output: Output) -> "tuple[Simulation, LabelCounts | None]":
    """The simulation of a configuration, and which client has which examples, where those have labels."""
    require_installed(config.tracking.to)
    load_training_libraries("simulate")
    from florist.config.building import build  # noqa: PLC0415  # needs these libraries
    from florist.config.splits import few_examples, read_splits, who_has_which  # noqa: PLC0415

    splits = read_splits(config)
    simulation = build(config, splits)
    # Only now: a configuration that is refused gets one line.
    output.detail(*decisions(config))
    counted = who_has_which(config, splits)
    if counted is not None:
        output.status_table(examples_table(counted))
    few = few_examples(config, splits)
    if few is not None:
        output.note(few)
    return simulation, counted


def _play(
    simulation: "Simulation", run: RunDirectory, observer: RoundsProgress, config: Config, output: Output
) -> None:
    from florist.tracking.observing import TrackedObserver  # noqa: PLC0415  # needs the training libraries

    output.detail(threads_chosen(run.facts.threads, config))
    observer.begin(len(run.records()), simulation.rounds)
    with tracking_of(config, run.path, warn=lambda text: observer.line(f"note: {text}")) as tracking:
        tracking.begin()
        simulation.run(run, TrackedObserver(observer, tracking))


@contextmanager
def _way_to_go_on_told(path: Path, observer: RoundsProgress) -> Generator[None, None, None]:
    """Say how a run goes on that does not come to its end, if it was begun.

    Raises:
        Exit: it was interrupted.
        UnwritableOutputError: there was no room for a round, which the run goes on with once there is.
    """
    try:
        yield
    except (KeyboardInterrupt, UnwritableOutputError) as stop:
        if not (path / "run.json").exists():
            raise
        way = f"go on with: florist simulate --resume {path}"
        if isinstance(stop, UnwritableOutputError):
            raise UnwritableOutputError(f"{stop}; then {way}") from stop
        observer.stopped(f"interrupted; {way}")
        raise typer.Exit(exit_status(stop)) from None
