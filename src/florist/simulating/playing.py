"""Building a simulation from objects, and playing it into a run directory."""

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from florist.config.building import build
from florist.config.given import Given
from florist.config.reading import to_toml
from florist.config.resuming import adopt
from florist.config.sections import Config
from florist.config.splits import Splits
from florist.config.tracking import tracking_of
from florist.errors import ConfigurationError
from florist.federation.history import RunDirectory
from florist.files.outputs import require_absent
from florist.simulating.lending import lent
from florist.simulating.objects import Callbacks, described
from florist.simulating.resuming import require_same
from florist.simulating.run import Run
from florist.tracking.observing import TrackedObserver
from florist.tracking.trackers import require_installed

_HEADER = (
    '# Begun from code by florist.simulate: "given" in run.json names what were objects. No file can begin it again.\n'
)


def play(
    config: Config,
    splits: Splits,
    given: Given,
    facts: Mapping[str, str],
    *,
    observer: Callbacks,
    out: Path | None,
    resume: bool,
) -> Run:
    """Play a run to its end, a new one or one that goes on.

    Args:
        config: the settings.
        splits: the examples.
        given: the objects.
        facts: the objects in words.
        observer: is told of every step.
        out: the directory of the run; None for a temporary one.
        resume: whether a run that is there goes on.

    Raises:
        FloristError: as `building.build`, `resuming.require_same` and `Simulation.start`.
    """
    if resume and out is None:
        raise ConfigurationError("resume = True: expected the directory of the run as out, got none; give out")
    temporary = tempfile.TemporaryDirectory(prefix="florist-") if out is None else None
    path = out if temporary is None else Path(temporary.name, "run")
    assert path is not None  # noqa: S101  # one of the two is there
    begun = RunDirectory.open(path) if resume and path.exists() else None
    if begun is not None:
        begun.require_whole()
        require_same(begun, config, facts)
        damage = begun.result.damage()
        if damage is not None:
            warnings.warn(f"{damage}: it is written again, from the state after the last round", stacklevel=3)
    else:
        require_absent(path)
    require_installed(config.tracking.to)
    threads = torch.get_num_threads()
    try:
        with lent(given.base):
            simulation = build(config, splits, given=given)
            whole = simulation.model.saved_parameters
            try:
                if begun is None:
                    method = config.aggregation.method
                    if given.method is not None:
                        method = described(type(given.method.aggregator))
                    toml = _HEADER + to_toml(config)
                    run = simulation.start(path, toml, method, config.training.threads, observer, given=facts)
                else:
                    run = begun
                    adopt(run, config, _HEADER)
                with tracking_of(config, run.path) as tracking:
                    tracking.begin()
                    simulation.run(run, TrackedObserver(observer, tracking))
            finally:
                simulation.model.saved_parameters = whole
    finally:
        torch.set_num_threads(threads)
    return Run(run, temporary)
