"""Whether adapters may be combined, and what is wrong where they may not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from florist.checkpoint.keys import TRAINED_ROWS
from florist.checkpoint.layout import AdapterLayout, ExpertLayout, ModuleLayout
from florist.checkpoint.reading import SavedAdapter
from florist.errors import IncompatibleAdaptersError, some

_LONGEST = 700
"""The characters of the problems that a refusal lists, if there are several."""


@dataclass(frozen=True, slots=True, eq=False)
class Compatibility:
    """What adapters have in common, and what keeps them apart.

    Attributes:
        problems: what is wrong. Each problem names the adapter and the remedy. There is none if the adapters may be
            combined.
        absent: module -> the adapters that lack it. Each of them counts as a zero update of the module, and its weight
            is never given to the others.
        layout: how the combined adapter is to be stored.
        base_model: the base model that the first adapter names which names one.
        revision: the revision of the base model, from the first adapter which names one.
        task_type: PEFT's name of the task, from the first adapter which names one.
        auto_mapping: what the adapters agree on of the base model's class, which PEFT's `AutoPeftModel` builds; None
            where they do not agree on the class.
    """

    problems: tuple[str, ...]
    absent: Mapping[str, tuple[Path, ...]]
    layout: AdapterLayout
    base_model: str | None
    revision: str | None
    task_type: str | None
    auto_mapping: Mapping[str, Any] | None


def compare(
    adapters: Sequence[SavedAdapter], *, allow_base_mismatch: bool = False, average_full: bool = False
) -> Compatibility:
    """Find everything that speaks against combining the adapters, and raise nothing.

    Args:
        adapters: what to compare. Each is compared with the first that has what is compared.
        allow_base_mismatch: whether names and revisions of the base model may differ, as local paths do.
        average_full: whether saved parameters are accepted. Their mean is no exact combination.

    Cost: it reads nothing but copies of frozen weights, which few adapters hold.
    """
    problems = _given_twice(adapters)
    if not allow_base_mismatch:
        problems += _unlike_bases(adapters)
    problems += _unlike(adapters, "task_type", [adapter.task_type for adapter in adapters])
    problems += _unlike_targets(adapters)
    problems += _unlike_modules(adapters)
    problems += _unlike_parameters(adapters, average_full=average_full)
    problems += _unlike_frozen(adapters)
    every = sorted({module for adapter in adapters for module in adapter.adapter})
    absent = {module: tuple(a.path for a in adapters if module not in a.adapter.specs) for module in every}
    return Compatibility(
        problems=tuple(problems),
        absent={module: paths for module, paths in absent.items() if paths},
        layout=_joint_layout(adapters),
        base_model=_first([adapter.base_model for adapter in adapters]),
        revision=_first([adapter.revision for adapter in adapters]),
        task_type=_first([adapter.task_type for adapter in adapters]),
        auto_mapping=_joint_mapping([adapter.auto_mapping for adapter in adapters]),
    )


def check_compatible(
    adapters: Sequence[SavedAdapter], *, allow_base_mismatch: bool = False, average_full: bool = False
) -> Compatibility:
    """Compare adapters that are about to be combined, as `compare` does.

    Raises:
        IncompatibleAdaptersError: something speaks against it. The message lists what it has room for;
            `Compatibility.problems` has all.
    """
    if not adapters:
        raise IncompatibleAdaptersError("expected at least one adapter to combine, got none")
    compatibility = compare(adapters, allow_base_mismatch=allow_base_mismatch, average_full=average_full)
    if compatibility.problems:
        raise IncompatibleAdaptersError(
            "these adapters cannot be combined:"
            + "".join(f"\n- {problem}" for problem in _shown(compatibility.problems))
        )
    return compatibility


def _shown(problems: Sequence[str]) -> list[str]:
    """As many problems as a message has room for, and how many there are beside."""
    room = list(accumulate(len(problem) for problem in problems))
    count = max(1, sum(used <= _LONGEST for used in room))
    return [*problems[:count], *([f"and {len(problems) - count} more"] if len(problems) > count else [])]


def _given_twice(adapters: Sequence[SavedAdapter]) -> list[str]:
    # Two paths lead to one file by links, and by hard links too. The config beside it may be another.
    first: dict[object, SavedAdapter] = {}
    return [
        f"{adapter.path} is {other.path}, given twice: name it once, and raise its weight instead"
        for adapter in adapters
        if (other := first.setdefault(adapter.weights.identity, adapter)) is not adapter
    ]


def _unlike_bases(adapters: Sequence[SavedAdapter]) -> list[str]:
    # "main" is what a missing revision means on the hub.
    bases = [f"{a.base_model or 'no base model'} at revision {a.revision or 'main'}" for a in adapters]
    return [
        f"{adapter.path} was trained on {base}, {adapters[0].path} on {bases[0]}; if they are the same weights, allow "
        "the mismatch (--allow-base-mismatch)"
        for adapter, base in zip(adapters, bases, strict=True)
        if base != bases[0]
    ]


def _unlike(adapters: Sequence[SavedAdapter], what: str, values: Sequence[str | None]) -> list[str]:
    known = [(adapter, value) for adapter, value in zip(adapters, values, strict=True) if value is not None]
    return [
        f"{adapter.path} has {what} {value}, {known[0][0].path} has {known[0][1]}; combine adapters of one task type"
        for adapter, value in known
        if value != known[0][1]
    ]


def _unlike_modules(adapters: Sequence[SavedAdapter]) -> list[str]:
    problems: list[str] = []
    first: dict[str, SavedAdapter] = {}
    for adapter in adapters:
        for module, spec in adapter.adapter.specs.items():
            other = first.setdefault(module, adapter)
            expected = other.adapter.specs[module].shape, other.layout.module(module)
            if (spec.shape, adapter.layout.module(module)) != expected:
                problems.append(
                    f"{adapter.path}: {module} updates a weight {spec.shape} as {adapter.layout.module(module)}, "
                    f"{other.path} one of {expected[0]} as {expected[1]}; combine adapters of one base model"
                )
    return problems


def _unlike_targets(adapters: Sequence[SavedAdapter]) -> list[str]:
    # Where PEFT stores a parameter depends on which others of the module are adapted.
    stacked = [a for a in adapters if any(isinstance(m, ExpertLayout) for m in a.layout.modules.values())]
    return [
        f"{adapter.path} has target_parameters {sorted(adapter.layout.target_parameters)}, {stacked[0].path} "
        f"{sorted(stacked[0].layout.target_parameters)}; combine adapters of the same parameters"
        for adapter in stacked
        if set(adapter.layout.target_parameters) != set(stacked[0].layout.target_parameters)
    ]


def _unlike_parameters(adapters: Sequence[SavedAdapter], *, average_full: bool) -> list[str]:
    problems: list[str] = []
    for adapter in adapters:
        trained = [name for name in adapter.saved_parameters if not name.endswith(TRAINED_ROWS)]
        if trained and not average_full:
            problems.append(
                f"{adapter.path} holds parameters trained whole ({some(trained)}), which do not combine exactly; "
                "accept their weighted mean (--average-full), or combine adapters that trained nothing but factors"
            )
        first = adapters[0]
        expected, found = _averaged(first, average_full=average_full), _averaged(adapter, average_full=average_full)
        if expected != found:
            differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            problems.append(
                f"{adapter.path} and {first.path} do not hold the same saved parameters "
                f"({some([f'{name}: {found.get(name)} and {expected.get(name)}' for name in differing])}), of "
                "which there is no mean; combine adapters that were trained alike"
            )
        elif adapter.layout.trainable_token_indices != first.layout.trainable_token_indices:
            problems.append(
                f"{adapter.path} trained the token rows {adapter.layout.trainable_token_indices}, {first.path} "
                f"{first.layout.trainable_token_indices}; combine adapters of the same trainable_token_indices"
            )
    return problems


def _averaged(adapter: SavedAdapter, *, average_full: bool) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters that are to be averaged."""
    shapes = adapter.saved_parameters.shapes
    return {name: shape for name, shape in shapes.items() if average_full or name.endswith(TRAINED_ROWS)}


def _unlike_frozen(adapters: Sequence[SavedAdapter]) -> list[str]:
    problems: list[str] = []
    first: dict[str, SavedAdapter] = {}
    for adapter in adapters:
        for name in adapter.frozen:
            other = first.setdefault(name, adapter)
            if other is not adapter and not torch.equal(adapter.frozen[name], other.frozen[name]):
                problems.append(
                    f"{adapter.path} and {other.path} hold unlike copies of the frozen {name}: their base models "
                    "differ; combine adapters of one base model"
                )
    return problems


def _joint_layout(adapters: Sequence[SavedAdapter]) -> AdapterLayout:
    layouts = [adapter.layout for adapter in adapters]
    modules: dict[str, ModuleLayout] = {}
    for layout in layouts:
        modules = {**layout.modules, **modules}
    return AdapterLayout(
        dict(sorted(modules.items())),
        fan_in_fan_out=any(layout.fan_in_fan_out for layout in layouts),
        modules_to_save=_union([layout.modules_to_save for layout in layouts]),
        target_parameters=_union([layout.target_parameters for layout in layouts]),
        trainable_token_indices=next((t for t in (layout.trainable_token_indices for layout in layouts) if t), None),
        tied_parameters=_union([layout.tied_parameters for layout in layouts]),
    )


def _joint_mapping(mappings: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    # PEFT imports the library that this names, so that one adapter alone must not choose it.
    entries = mappings[0].items() if mappings else ()
    joint = {key: value for key, value in entries if all(other.get(key) == value for other in mappings)}
    return joint if joint.keys() >= {"base_model_class", "parent_library"} else None


def _union(lists: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for names in lists for name in names))


def _first(values: Sequence[str | None]) -> str | None:
    return next((value for value in values if value is not None), None)
