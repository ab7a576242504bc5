"""Play the cells of a comparison, one after the other or several at once in processes of their own."""

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from florist.comparison.directory import ComparisonDirectory
from florist.comparison.planning import Cell, Comparison, Entry
from florist.comparison.results import CellResult, read_result
from florist.config import Config, to_toml
from florist.config.building import build
from florist.config.resuming import IN_ONE_PROCESS, require_resumable
from florist.config.splits import read_splits
from florist.config.tasks import RecentEncodings
from florist.config.tracking import tracking_of
from florist.errors import ConfigurationError, FloristError, UnwritableOutputError, WorkerLostError
from florist.federation.observer import Observer
from florist.federation.records import RoundRecord
from florist.files.locking import sole_process
from florist.tracking.observing import TrackedObserver

# A worker plays cell after cell in one process, and all entries of a seed read the same examples.
_ENCODED = RecentEncodings()


class Unobserved:
    """An `Observer` that ignores what it is told."""

    def evaluating(self, round_number: int) -> None:
        """Do nothing."""

    def training(self, round_number: int, client_id: str, done: int, total: int) -> None:
        """Do nothing."""

    def closed(self, record: RoundRecord) -> None:
        """Do nothing."""


def plan(configs: Mapping[Entry, Config], seeds: Sequence[int], *, threads: int | None, jobs: int = 1) -> Comparison:
    """Check that every entry can be built, and fix the number of threads.

    Each entry's model is loaded once, for its first seed; for the other seeds only the examples are read. This finds
    what contradicts the data or the model before hours of training, not after them.

    Args:
        configs: the configuration of every entry.
        seeds: the seeds of the comparison.
        threads: the torch threads of every run; None for 1 if several run at once, else for the faster of one and all,
            measured on the first entry.
        jobs: how many runs are played at once.

    Raises:
        ConfigurationError: an entry cannot be built; the message names it, and the cause is the error of
            `building.build`.
    """
    for entry, config in configs.items():
        try:
            simulation = build(_seeded(config, seeds[0]), encoded=_ENCODED)
            for seed in seeds[1:]:
                read_splits(_seeded(config, seed))
        except FloristError as error:
            raise ConfigurationError(f"{entry.name}: {error}") from error
        if threads is None:
            threads = 1 if jobs > 1 else simulation.fastest_threads()
        del simulation
        gc.collect()  # a model at a time
    return Comparison(version("florist"), tuple(configs), tuple(seeds), threads or 1)


def play(
    directory: ComparisonDirectory,
    *,
    jobs: int = 1,
    observer: Observer | None = None,
    on_start: Callable[[Cell], None] = lambda _: None,
    on_end: Callable[[CellResult], None] = lambda _: None,
    in_worker: Callable[[], None] | None = None,
) -> list[CellResult]:
    """Play the cells that are not over yet: begin new ones, and go on with those that were interrupted.

    A cell fails if florist refuses something or if its model dies of memory or numerics. It does not stop the others.
    Anything else, a full disk for instance, ends the comparison, which can be resumed.

    Args:
        directory: the directory of the comparison.
        jobs: how many cells are played at once; several are played in processes of their own.
        observer: is told of every step of the cells that are played in this process.
        on_start: is told which cell begins, if it is played in this process.
        on_end: is told how a cell ended.
        in_worker: is called first in every other process; it must be picklable.

    Returns:
        The results of all cells, those that were over before included, in the order of the comparison.

    Raises:
        WorkerLostError: a process was killed from outside, most often for want of memory.
        DirectoryInUseError: another process plays the comparison.
        UnwritableOutputError: the disk is full. All that was played is saved.
    """
    comparison = directory.comparison
    results: dict[Cell, CellResult] = {}

    def ended(cell: Cell, failure: str | None) -> None:
        results[cell] = read_result(directory, cell, failure)
        on_end(results[cell])

    with sole_process(directory.path):
        waiting = [cell for cell in comparison.cells if not directory.is_over(cell)]
        results |= {cell: read_result(directory, cell) for cell in comparison.cells if cell not in waiting}
        if jobs > 1 and len(waiting) > 1:
            _play_at_once(
                directory,
                waiting,
                threads=comparison.threads,
                jobs=min(jobs, len(waiting)),
                ended=ended,
                in_worker=in_worker,
            )
        else:
            for cell in waiting:
                on_start(cell)
                ended(cell, _play_cell(directory.path, cell, comparison.threads, observer))
    return [results[cell] for cell in comparison.cells]


def _play_at_once(
    directory: ComparisonDirectory,
    cells: Sequence[Cell],
    *,
    threads: int,
    jobs: int,
    ended: Callable[[Cell, str | None], None],
    in_worker: Callable[[], None] | None,
) -> None:
    before = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_begin_worker, initargs=(in_worker,)) as pool:
        try:
            with _ctrl_c_ignored_by_children():
                playing = {pool.submit(_play_cell, directory.path, cell, threads, None): cell for cell in cells}
            for future in as_completed(playing):
                ended(playing[future], future.result())
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - before:
                child.terminate()  # each has saved its rounds
                child.join()
            for cell in cells:
                directory.clear_drafts(cell)
            if isinstance(error, BrokenProcessPool):
                raise WorkerLostError(
                    f"a process that played a cell was killed, as systems do when memory runs out; go on in "
                    f"{directory.path} with fewer than {jobs} cells at once"
                ) from error
            raise


def _play_cell(path: Path, cell: Cell, threads: int, observer: Observer | None) -> str | None:
    """Play a cell; return why it failed, or None."""
    directory = ComparisonDirectory(path)
    watching = observer or Unobserved()
    try:
        config = directory.config(cell)
        simulation = build(config, encoded=_ENCODED)
        begun = directory.begun(cell)
        if begun is not None:
            require_resumable(begun, config, IN_ONE_PROCESS)
        run = begun or simulation.start(
            directory.run_path(cell), to_toml(config), config.aggregation.method, threads, watching
        )
        with tracking_of(
            config, run.path, cell=f"{path.resolve().name}/{cell.entry.folder}/seed-{cell.seed}"
        ) as tracking:
            tracking.begin()
            simulation.run(run, TrackedObserver(watching, tracking))
    except UnwritableOutputError:
        raise  # every other cell would fail, too
    except (FloristError, RuntimeError, ValueError, ArithmeticError, MemoryError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    finally:
        gc.collect()  # the next cell's model needs the room
    return None


def _begin_worker(in_worker: Callable[[], None] | None) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if in_worker is not None:
        in_worker()


def _end_with_parent() -> None:
    # A comparison that was killed may be resumed at once: nobody else may then still write to its cells.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _ctrl_c_ignored_by_children() -> Generator[None, None, None]:
    """Let children ignore Ctrl-C, which reaches all processes of a terminal: this process ends them in silence."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _seeded(config: Config, seed: int) -> Config:
    return config.model_copy(update={"federation": config.federation.model_copy(update={"seed": seed})})
