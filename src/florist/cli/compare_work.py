"""What ``florist compare`` does, once its arguments are known to be right."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import typer

from florist.cli.compare_progress import CellsProgress
from florist.cli.compare_table import COST, cost_table, feedback_notes, notes, quality_heading, quality_table
from florist.cli.decisions import decisions, threads_chosen
from florist.cli.libraries import load_training_libraries
from florist.cli.output import Output
from florist.cli.progress import Progress
from florist.cli.stopping import exit_status
from florist.comparison.directory import ComparisonDirectory
from florist.comparison.planning import Entry, without_feedback
from florist.comparison.results import CellResult
from florist.comparison.summary import reference, summarise
from florist.comparison.tables import comparison_document, metric_source, write_tables
from florist.config.sections import Config
from florist.errors import UnwritableOutputError
from florist.tracking.trackers import require_installed


def create_comparison(
    path: Path, base: Config, configs: Mapping[Entry, Config], seeds: Sequence[int], jobs: int
) -> ComparisonDirectory:
    """Check that every entry can be built, and create the directory of the comparison.

    Args:
        path: the directory to create.
        base: the common configuration.
        configs: the configuration of every entry.
        seeds: the seeds of every entry.
        jobs: how many runs at once.

    Raises:
        FloristError: as `running.plan` and `ComparisonDirectory.create`.
    """
    require_installed({name for config in configs.values() for name in config.tracking.to})
    load_training_libraries("compare")
    from florist.comparison.running import plan  # noqa: PLC0415  # needs these libraries

    comparison = plan(configs, seeds, threads=base.training.threads, jobs=jobs)
    return ComparisonDirectory.create(path, comparison, base, configs)


def open_comparison(path: Path) -> ComparisonDirectory:
    """The directory of a comparison to go on with.

    Raises:
        MissingInputError, DamagedRunError: there is none, or it is damaged.
        MissingDependencyError: a tracker of a run that is not over is not installed.
    """
    directory = ComparisonDirectory.open(path)
    directory.require_whole()
    # A damaged one is refused before the libraries are loaded, and a tracker is missed before hours of training.
    to_play = [cell for cell in directory.comparison.cells if not directory.is_over(cell)]
    require_installed({name for cell in to_play for name in directory.config(cell).tracking.to})
    load_training_libraries("compare")
    return directory


def play_comparison(directory: ComparisonDirectory, jobs: int, output: Output, progress: Progress) -> list[CellResult]:
    """Play the runs that are not over yet.

    Args:
        directory: the directory of the comparison.
        jobs: how many runs at once.
        output: where to print what is decided.
        progress: where to show how they go.

    Raises:
        UnwritableOutputError: the disk is full; what was played is saved.
        FloristError: as `running.play`.
        Exit: the comparison was interrupted.
    """
    from florist.comparison.running import play  # noqa: PLC0415  # needs the training libraries

    output.detail(*decisions(directory.base), threads_chosen(directory.comparison.threads, directory.base))
    for cell in directory.comparison.cells:
        run = directory.begun(cell)
        damage = run.result.damage() if run is not None else None
        if run is not None and damage is not None:
            output.note(f"{run.path}: {damage}: it is written again, from the state after the last round")
    cells = CellsProgress(progress, verbose=output.verbose)
    cells.begin(directory)
    try:
        return play(
            directory,
            jobs=jobs,
            observer=cells,
            on_start=cells.started,
            on_end=cells.ended,
            in_worker=partial(load_training_libraries, "compare"),
        )
    except KeyboardInterrupt as stop:
        progress.stopped(f"interrupted; go on with: florist compare --resume {directory.path}")
        raise typer.Exit(exit_status(stop)) from None
    except UnwritableOutputError as error:
        raise UnwritableOutputError(f"{error}; then go on with: florist compare --resume {directory.path}") from error


def report(directory: ComparisonDirectory, results: Sequence[CellResult], output: Output) -> bool:
    """Write and print the tables; return whether a run failed."""
    lines = summarise(results)
    source = metric_source(directory.config(directory.comparison.cells[0]))
    whole = comparison_document(directory, source, lines, results)
    write_tables(directory, whole, results)
    output.table(quality_table(lines, reference([line.name for line in lines])), heading=quality_heading(lines, source))
    output.table(cost_table(lines), heading=COST)
    configs = {cell.entry: directory.config(cell) for cell in directory.comparison.cells}
    output.lines(*feedback_notes(without_feedback(directory.base, configs)), *notes(lines, directory.path))
    output.document(whole)
    return any(line.failures for line in lines)
