"""What ``florist inspect`` does, once its arguments are known to be right."""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from florist.checkpoint import SavedAdapter, compare, locate, open_adapter
from florist.cli.inspect_table import findings, heading, kind_table, module_table, sweep_table, verdict
from florist.cli.memory import keep_freed_memory
from florist.cli.output import Output
from florist.cli.summaries import absences
from florist.errors import FloristError, InvalidAdapterError, InvalidUpdateError
from florist.one_shot import open_inputs
from florist.one_shot.inspection import (
    ModuleView,
    SweepPoint,
    combinable,
    spectra,
    sweep_thresholds,
    unlike_norms,
    view,
)

_TAUS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999, 1.0)


def look_at_adapters(
    adapters: Sequence[str],
    *,
    sweep: bool,
    num_examples: Sequence[Fraction] | None,
    allow_base_mismatch: bool,
    average_full: bool,
    every_module: bool,
    output: Output,
) -> None:
    """Decompose adapters one by one, say what may be combined, and sweep over the weighted sum if that is asked for.

    Args:
        adapters: their directories or hub ids.
        sweep: whether to show what every threshold would make of their weighted sum.
        num_examples: the examples behind the adapters, for the sweep; None for what their certificates say.
        allow_base_mismatch: as for `checkpoint.compare`.
        average_full: as for `checkpoint.compare`.
        every_module: whether the tables have a line for every module.
        output: where to print.

    Raises:
        InvalidAdapterError: some of the adapters cannot be read; the others have been shown.
    """
    keep_freed_memory()
    allowed = {"allow_base_mismatch": allow_base_mismatch, "average_full": average_full}
    points: list[SweepPoint] = []
    with output.progress("modules") as progress:
        looked, unreadable = _looked_at(adapters, progress.count)
        saved = [one for one, _ in looked]
        compatibility = compare(saved, **allowed)
        groups = combinable(saved, **allowed) if compatibility.problems or not saved else [tuple(saved)]
        obstacle = _obstacle(unreadable, compatibility.problems)
        if sweep and obstacle is None:
            try:
                inputs = open_inputs(adapters, num_examples=num_examples, **allowed)
                summed = spectra(inputs.updates, progress.count)
                points = sweep_thresholds(summed, _TAUS, layout=inputs.compatibility.layout)
            except InvalidUpdateError as error:
                obstacle = str(error)
    outliers = unlike_norms(saved)
    for one, modules in looked:
        output.table(module_table(modules) if every_module else kind_table(modules, output.fits), heading=heading(one))
        output.lines(*findings(modules))
    output.failures(*(f"{adapter} cannot be read: {reason}" for adapter, reason in unreadable.items()))
    output.lines(
        *(f"outlier: the update of {path} is {times:.2g} times the median" for path, times in outliers.items())
    )
    if len(saved) > 1 or compatibility.problems:
        who = "the adapters that can be read" if unreadable else "these adapters"
        output.lines(*absences(compatibility.absent))
        output.lines(*verdict(who, compatibility.problems, [[str(one.path) for one in group] for group in groups]))
    if points:
        output.table(sweep_table(points))
    elif sweep:
        output.lines(f"no sweep: {obstacle}")
    document: dict[str, Any] = {
        "adapters": [{"path": str(one.path), "modules": _modules_as_json(modules)} for one, modules in looked],
        "unreadable": unreadable,
        "problems": list(compatibility.problems),
        "combinable": [[str(one.path) for one in group] for group in groups],
        "absent": {module: list(map(str, paths)) for module, paths in compatibility.absent.items()},
        "outliers": outliers,
    }
    if sweep:
        document["sweep"] = [_point_as_json(point) for point in points]
    output.document(document)
    if unreadable:
        raise InvalidAdapterError(
            f"expected adapters that can be read, and {len(unreadable)} of {len(adapters)} cannot be, for the reasons "
            "given with their names"
        )


def _looked_at(
    adapters: Sequence[str], on_module: Callable[[int, int], None]
) -> tuple[list[tuple[SavedAdapter, Mapping[str, ModuleView]]], dict[str, str]]:
    """The adapters that can be read, with their modules; and why the others cannot."""
    looked: list[tuple[SavedAdapter, Mapping[str, ModuleView]]] = []
    unreadable: dict[str, str] = {}
    for adapter in adapters:
        try:
            one = open_adapter(locate(adapter))
            looked.append((one, view(one, on_module)))
        except FloristError as error:
            unreadable[adapter] = " ".join(str(error).split())
    return looked, unreadable


def _obstacle(unreadable: Mapping[str, str], problems: Sequence[str]) -> str | None:
    """Why there is nothing to sweep over; None if there is."""
    if unreadable:
        return "not all of the adapters can be read"
    return "the adapters cannot be combined as they are" if problems else None


def _modules_as_json(modules: Mapping[str, ModuleView]) -> dict[str, Any]:
    return {
        name: {
            "shape": list(module.spectrum.shape),
            "rank": module.rank,
            "numerical_rank": module.spectrum.numerical_rank,
            "norm": module.norm,
            "singular_values": module.spectrum.S.tolist(),
            "rank_at": {f"{tau:g}": rank for tau, rank in module.ranks.items()},
            "dead_directions": module.dead_directions,
            "outlier": module.outlier,
        }
        for name, module in modules.items()
    }


def _point_as_json(point: SweepPoint) -> dict[str, Any]:
    return {
        "tau": point.tau,
        "total_rank": point.total_rank,
        "bytes": point.nbytes,
        "relative_error": point.relative_error,
    }
